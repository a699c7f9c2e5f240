"""A maintainer's day with real nodes: commits that announce themselves, tries, CI, news."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from junitparser import JUnitXml
from sources import PASSES, SLEEPS
from swarm_lab import found_project, ponyswarm, until

from ponyswarm import config, keys
from ponyswarm.cli.ci import ANNOUNCE
from ponyswarm.demo import Member, Swarm, open_swarm
from ponyswarm.exec.interpreters import discover
from ponyswarm.ledger.queries import JobRow, Reader
from ponyswarm.volunteer import minor_version

pytestmark = pytest.mark.slow

TELL = """\
import sys
with open({path!r}, "a") as file:
    file.write(sys.stdin.read() + "\\n")
"""


class Day:
    """A repository, its maintainer with a node, and one volunteer."""

    def __init__(self, swarm: Swarm, folder: Path) -> None:
        python = next(one for one in discover() if one.implementation == "cpython")
        self.swarm = swarm
        self.folder = folder
        self.maintainer = swarm.member("maintainer", [python])
        self.volunteer = swarm.member("volunteer", [python])
        self.told = folder / "told"
        self._notify()
        self.project = found_project(swarm, self.maintainer)
        swarm.command(self.volunteer, "trust", "add", self.project)
        swarm.start(self.maintainer, [], "--read-only")
        self.hub = swarm.address(self.maintainer)
        swarm.start(self.volunteer, [self.hub])
        self.repository = folder / "app"
        self.repository.mkdir()
        self.git("init", "-q", "-b", "main")
        (self.repository / "pyproject.toml").write_text(
            f"""\
[project]
name = "app"
version = "1.0"

[tool.ponyswarm]
python = ["{minor_version(python)}"]
runner = "unittest"
redundancy = 1
install = {{ project = false }}
"""
        )
        self.write(PASSES)
        self.git("add", ".")
        self.commit("first")

    def _notify(self) -> None:
        script = self.folder / "tell.py"
        script.write_text(TELL.format(path=str(self.told)))
        ini = self.maintainer.home.ini
        command = shlex.join([sys.executable, str(script)])
        ini.write_text(ini.read_text().replace("\ncommand =", f"\ncommand = {command}"))
        assert config.load(ini).notify == command

    def write(self, test: str) -> None:
        (self.repository / "test_it.py").write_text(test)

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=self.repository,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    def commit(self, message: str) -> str:
        self.git("commit", "-qam", message)
        return self.git("rev-parse", "HEAD")

    def jobs(self, commit: str) -> list[JobRow]:
        with Reader(self.maintainer.home.ledger) as reader:
            return [job for job in reader.jobs() if job.commit == commit]

    def news(self) -> list[str]:
        lines = self.told.read_text().splitlines() if self.told.exists() else []
        return [one["what"] for line in lines for one in json.loads(line)["news"]]


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    with open_swarm(print) as swarm:
        yield Day(swarm, tmp_path_factory.mktemp("day"))


FAILS = PASSES.replace("1 + 1, 2", "1 + 1, 3")


@pytest.mark.timeout(150)
def test_a_commit_announces_itself_and_only_news_is_told(day: Day) -> None:
    first = day.git("rev-parse", "HEAD")
    done = ponyswarm(day.maintainer, "announce", str(day.repository), "--wait", "--timeout", "60 s")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 cells are a confirmed pass" in done.stdout
    assert "confirmed pass" in done.stderr  # A line for the cell, as it happened.
    assert len(day.jobs(first)) == 1

    done = ponyswarm(day.maintainer, "hook", "install", str(day.repository))
    assert done.returncode == 0, done.stderr
    day.write(FAILS)
    second = day.commit("break it")
    until("the hook announces", lambda: day.jobs(second), 40)
    done = ponyswarm(day.maintainer, "watch", second, "--timeout", "60 s", "--json")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["cells"][0]["verdict"] == "confirmed fail"
    until("the failure is told", lambda: day.news() == ["first failure"], 20)

    day.write(PASSES)
    third = day.commit("mend it")
    until("the hook announces", lambda: day.jobs(third), 40)
    assert ponyswarm(day.maintainer, "watch", third, "--timeout", "60 s").returncode == 0
    until("it is told as fixed", lambda: day.news() == ["first failure", "fixed"], 20)
    log = ponyswarm(day.maintainer, "hook", "show", str(day.repository)).stdout
    assert "post-commit: ours" in log
    assert f"{third[:12]}: announced" in log
    assert ponyswarm(day.maintainer, "hook", "remove", str(day.repository)).returncode == 0


@pytest.mark.timeout(120)
def test_a_try_is_run_by_who_trusts_it_and_says_nothing_of_a_commit(day: Day) -> None:
    before = ponyswarm(day.maintainer, "results", "demo", "--json").stdout
    day.write(FAILS)
    founded = ponyswarm(
        day.maintainer, "try", str(day.repository), "--no-wait", "--no-locks", "--json"
    )
    assert founded.returncode == 0, founded.stderr
    made = json.loads(founded.stdout)
    assert made["commit"] == ""
    assert f"ponyswarm trust add {made['project']}" in founded.stderr
    day.swarm.command(day.volunteer, "trust", "add", made["project"])
    done = ponyswarm(day.maintainer, "try", str(day.repository), "--no-locks")
    assert done.returncode == 1, done.stderr
    assert "uncommitted on" in done.stdout
    with Reader(day.maintainer.home.ledger) as reader:
        tries = reader.jobs(bytes.fromhex(made["project"]))
    # The newer one took the place of the first.
    assert [job.withdrawn for job in tries] == [False, True]
    assert ponyswarm(day.maintainer, "results", "demo", "--json").stdout == before

    day.write(SLEEPS.format(seconds=60))
    with subprocess.Popen(
        [*command(day.maintainer), "try", "--no-locks", str(day.repository)],
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        assert waiting.stderr is not None
        while "publishes it" not in (line := waiting.stderr.readline()):
            assert line, "it ended"
        time.sleep(1)
        waiting.send_signal(signal.SIGINT)
        assert "withdrawn" in waiting.stderr.read()
    assert waiting.returncode == 130
    assert _latest(day, made["project"]).withdrawn
    day.git("checkout", "-q", "test_it.py")


def command(member: Member) -> list[str]:
    return [sys.executable, "-m", "ponyswarm", "--home", str(member.folder)]


def _latest(day: Day, project: str) -> JobRow:
    with Reader(day.maintainer.home.ledger) as reader:
        return reader.jobs(bytes.fromhex(project))[0]


@pytest.mark.timeout(120)
def test_the_step_for_a_hosted_ci_works_from_nothing_but_its_variables(
    day: Day, tmp_path: Path
) -> None:
    """The very lines that `ci-step` prints, on a machine that knows only key, project and peer."""
    key = keys.SecretKey.generate()
    day.swarm.command(day.maintainer, "project", "add-maintainer", "demo", keys.peer_id(key.public))
    summary = tmp_path / "summary.md"
    done = subprocess.run(
        ["bash", "-e", "-c", ANNOUNCE],
        cwd=day.repository,
        capture_output=True,
        text=True,
        timeout=100,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PONYSWARM_HOME": str(tmp_path / "home"),
            "PONYSWARM_KEY": key.seed.hex(),
            "PONYSWARM_PROJECT": day.project,
            "PONYSWARM_PEERS": day.swarm.address(day.volunteer),
            "GITHUB_STEP_SUMMARY": str(summary),
        },
    )
    assert done.returncode == 0, done.stderr
    assert "with its source" in done.stderr
    assert "confirmed pass" in summary.read_text()
    (suite,) = JUnitXml.fromfile(str(day.repository / "ponyswarm.xml"))
    assert (suite.tests, suite.failures, suite.errors) == (1, 0, 0)


@pytest.mark.timeout(200)
def test_a_push_to_a_server_is_announced_by_its_hook_and_run_and_a_second_hook_adds_nothing(
    day: Day, tmp_path: Path
) -> None:
    """Real git between a clone and a bare repository, as on a server that many push to."""
    server, clone = tmp_path / "app.git", tmp_path / "clone"

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(clone), *arguments],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def hook(*words: str) -> str:
        done = ponyswarm(day.maintainer, "hook", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for made, bare in ((server, ["--bare"]), (clone, [])):
        subprocess.run(["git", "clone", "-q", *bare, str(day.repository), str(made)], check=True)
    git("remote", "set-url", "origin", str(server))
    main = ("--ref", "refs/heads/main")
    assert "installed" in hook("install", "--on", "post-receive", *main, str(server))

    git("checkout", "-q", "-b", "side")
    git("commit", "-q", "--allow-empty", "-m", "not for everybody")
    aside = git("rev-parse", "HEAD")
    git("checkout", "-q", "main")
    git("commit", "-q", "--allow-empty", "-m", "for everybody")
    pushed = git("rev-parse", "HEAD")
    git("push", "-q", "origin", "main", "side")
    until("the server's hook announces", lambda: day.jobs(pushed), 60)
    done = ponyswarm(day.maintainer, "watch", pushed, "--timeout", "60 s")
    assert done.returncode == 0, done.stderr
    assert not day.jobs(aside)

    assert "installed" in hook("install", "--on", "pre-push", str(clone))
    git("push", "-q", "origin", ":side")
    git("commit", "-q", "--allow-empty", "-m", "pushed by who has a hook as well")
    twice = git("rev-parse", "HEAD")
    git("push", "-q", "origin", "main")
    until(
        "the later of both hooks finds it announced",
        lambda: f"{twice[:12]} of" in (log := hook("show", str(clone))) and "already" in log,
        60,
    )
    assert len(day.jobs(twice)) == 1
    assert not day.jobs(aside)
