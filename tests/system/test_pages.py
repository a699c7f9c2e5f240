"""README and docs: every command is typed as written, and what is shown comes out."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pages
import pytest
from pages import Shell, Step
from sources import PASSES, archive, unittest_spec
from swarm_lab import announce, cells, found_project, until

from ponyswarm.demo import Member, Swarm, open_swarm
from ponyswarm.exec.interpreters import Installed, discover
from ponyswarm.exec.runners import Runner
from ponyswarm.volunteer import minor_version

PAGES = {path: pages.read(path) for path in pages.all_pages()}
RUN = [page for page in PAGES.values() if page.steps]


class World:
    """What the pages' readers have: a swarm that others run, with a project and a job in it.

    Started when the first page needs it, and shared: pages only add to it.
    """

    def __init__(self, swarm: Swarm, folder: Path) -> None:
        self.swarm = swarm
        self.folder = folder

    @cached_property
    def python(self) -> Installed:
        return next(one for one in discover() if one.implementation == "cpython")

    @cached_property
    def other(self) -> Member:
        """A maintainer's node that also volunteers, with one job that is done."""
        member = self.swarm.member("other", [self.python])
        self.project = found_project(self.swarm, member)
        self.swarm.command(member, "trust", "add", self.project)
        self.swarm.start(member, [])
        self.address = self.swarm.address(member)
        source = archive(self.folder, "app", {"test_it.py": PASSES})
        spec = unittest_spec(self.folder, minor_version(self.python))
        self.job = announce(self.swarm, member, source, spec)
        until("the job is done", lambda: cells(member, self.job)[0].runs, 60)
        self.cell = cells(member, self.job)[0].id.hex()
        return member

    def words(self) -> dict[str, str]:
        """What a page's placeholders stand for."""
        assert self.other
        return {
            "PROJECT_ID": self.project,
            "ADDRESS": self.address,
            "JOB": self.job[:16],
            "CELL": self.cell[:16],
            "NAME": "app",
        }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_swarm(print) as swarm:
        yield World(swarm, tmp_path_factory.mktemp("world"))


def given_project(shell: Shell, world: World) -> None:
    """A small project under git, with a tox.ini that names a Python of this machine."""
    folder = shell.work / "app"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[project]\nname = "app"\nversion = "1.0"\n')
    (folder / "test_it.py").write_text(PASSES)
    # The one that a shell with another home is sure to find: ours.
    version = "{}{}".format(*sys.version_info[:2])
    (folder / "tox.ini").write_text(
        f"[tox]\nenv_list = py{version}\n[testenv]\ncommands = python -m unittest\n"
        "skip_install = true\n"
    )
    type_all(
        shell,
        "cd app",
        "git init -q -b main",
        "git add .",
        "git commit -qm first",
        "export PAGER=cat",
    )


def given_own_project(shell: Shell, world: World) -> None:
    given_project(shell, world)
    type_all(
        shell,
        "ponyswarm init-project --write",
        "ponyswarm project create app",
        "git commit -qam table",
    )


def given_home(shell: Shell, world: World) -> None:
    type_all(shell, "ponyswarm --home mine init --yes")


def given_ledger(shell: Shell, world: World) -> None:
    """The world's ledger is there already, as after a first sync."""
    home = shell.environment["HOME"]
    shell.type(f"mkdir -p {home}/.local/share/ponyswarm")
    frm = f"sqlite3.connect('{world.other.home.ledger}')"
    to = f"sqlite3.connect('{home}/.local/share/ponyswarm/ledger.db')"
    type_all(shell, f'python -c "import sqlite3; {frm}.backup({to})"')


GIVEN = {
    "": [],
    "a swarm": [],
    "a swarm and its ledger": [given_ledger],
    "a project under git": [given_project],
    "a project under git and a swarm": [given_project],
    "a project under git and its own project": [given_own_project],
    "a home": [given_home],
}


def type_all(shell: Shell, *commands: str) -> None:
    for command in commands:
        code, printed = shell.type(command)
        assert code == 0, f"{command}: {printed}"


def with_words(step: Step, words: dict[str, str]) -> Step:
    command, output = step.command, step.output
    for word, value in words.items():
        command = command.replace(word, value)
        # In what is printed, the placeholders of our own messages stay as they are.
        output = None if output is None else output.replace(f"{word} is", f"{value} is")
        output = None if output is None else output.replace(f"for   {word}", f"for   {value}")
    return Step(step.page, step.line, command, output, step.stays, step.may_fail)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", RUN, ids=[page.name for page in RUN])
def test_every_command_of_a_page_does_what_the_page_shows(
    page: pages.Page, world: World, tmp_path: Path
) -> None:
    words = {}
    if "swarm" in page.begins:
        words = world.words()
    shell = Shell(tmp_path, {})
    try:
        for prepare in GIVEN[page.begins]:
            prepare(shell, world)
        for step in page.steps:
            shell.run(with_words(step, words))
    finally:
        shell.close()


@pytest.mark.parametrize("path", PAGES, ids=[page.name for page in PAGES.values()])
def test_what_is_not_run_says_why_and_what_begins_is_known(path: Path) -> None:
    page = PAGES[path]
    assert page.begins in GIVEN
    assert all(len(reason) > 10 for _, reason in page.not_run)


def test_links_between_pages_lead_somewhere() -> None:
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_runner_on_its_page_is_one() -> None:
    text = (pages.ROOT / "docs" / "howto-runner.md").read_text("utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    made: dict[str, object] = {}
    exec(compile(code, "howto-runner.md", "exec"), made)
    assert {"argv", "environment", "judge"} <= set(made)
    assert set(dir(Runner)) & {"argv", "environment", "judge"} == {"argv", "environment", "judge"}


def test_the_generated_pages_are_as_the_code_has_them() -> None:
    done = subprocess.run(
        [sys.executable, str(pages.ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"run 'python docs/generate.py': it rewrites {done.stdout}"


# --- the typing itself ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "printed", "same"),
    [
        ("a … c", "a b c\n", True),
        ("a … c", "a\nc\n", False),
        ("a\n…\nd", "a\nb\nc\nd\n", True),
        ("a\n…\nd", "a\nd\n", True),
        ("a\n…", "a\n", True),
        ("", "anything\n", False),
        ("a", "a  \n\n", True),
        ("1.0", "1x0\n", False),
    ],
)
def test_dots_stand_for_what_varies_and_for_nothing_else(
    wanted: str, printed: str, same: bool
) -> None:
    assert pages.matches(wanted, printed) is same


def test_a_page_that_lies_is_caught(tmp_path: Path) -> None:
    page = tmp_path / "lies.md"
    page.write_text("```console\n$ echo one\ntwo\n```\n\n```sh\nfalse\n```\n")
    first, second = pages.read(page).steps
    shell = Shell(tmp_path / "shell", {})
    try:
        with pytest.raises(AssertionError, match="should print"):
            shell.run(first)
        with pytest.raises(AssertionError, match="ended with 1"):
            shell.run(second)
        assert shell.type("x=3; cd /tmp") == (0, "")
        assert shell.type("echo $x; pwd")[1].split() == ["3", "/tmp"]
    finally:
        shell.close()


def test_commands_over_several_lines_are_one(tmp_path: Path) -> None:
    page = tmp_path / "long.md"
    page.write_text(
        "```sh\n# why\ncat <<EOF\nx\nEOF\necho a \\\n  b\nif true; then\n  :\nfi\n```\n"
    )
    assert [step.line for step in pages.read(page).steps] == [3, 6, 8]


def test_a_block_without_a_reason_is_never_left_out(tmp_path: Path) -> None:
    page = tmp_path / "left.md"
    page.write_text("*Not run by the tests: no*\n\n```sh\ntrue\n```\n")
    assert len(pages.read(page).steps) == 1
    page.write_text("```bash\ntrue\n```\n")
    with pytest.raises(ValueError, match="write 'sh'"):
        pages.read(page)
