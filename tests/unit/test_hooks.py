"""Git hooks in real repositories: they keep what was there, and git never waits or fails."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from told import told

from ponyswarm import hooks
from ponyswarm.errors import LocalError
from ponyswarm.hooks import KEPT


def git(where: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        cwd=where,
        capture_output=True,
        text=True,
        timeout=60,
        env={k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
    )
    assert done.returncode == code, done.stderr
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    made = tmp_path / "a project"
    made.mkdir()
    git(made, "init", "-q", "-b", "main")
    (made / "a.txt").write_text("a")
    git(made, "add", ".")
    git(made, "commit", "-qm", "first")
    return made


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_installing_again_changes_nothing_and_removing_leaves_nothing(repository: Path) -> None:
    before = sorted(path.name for path in (repository / ".git" / "hooks").iterdir())
    assert hooks.install(repository, "post-commit", ["hook", "run", "post-commit"])
    assert not hooks.install(repository, "post-commit", ["hook", "run", "post-commit"])
    assert hooks.install(repository, "post-commit", ["hook", "run", "post-commit", "--ref", "x"])
    assert hooks.remove(repository, "post-commit")
    assert not hooks.remove(repository, "post-commit")
    assert sorted(path.name for path in (repository / ".git" / "hooks").iterdir()) == before


def test_a_hook_that_was_there_runs_first_with_all_it_would_see_and_comes_back(
    repository: Path, tmp_path: Path
) -> None:
    theirs = executable(
        repository / ".git" / "hooks" / "pre-push",
        f'#!/bin/sh\n(echo "$@"; cat) >"{tmp_path}/seen"\nexit 3\n',
    )
    text = theirs.read_text()
    git(tmp_path, "init", "-q", "--bare", "server.git")
    git(repository, "remote", "add", "origin", str(tmp_path / "server.git"))
    hooks.install(repository, "pre-push", ["hook", "run", "pre-push", "--project", "aa"])
    assert (repository / ".git" / "hooks" / f"pre-push{KEPT}").read_text() == text
    # Its refusal stands: ours is never asked, and the push fails as it would have.
    git(repository, "push", "-q", "origin", "main", code=1)
    head = git(repository, "rev-parse", "HEAD")
    assert head in (tmp_path / "seen").read_text()
    assert "origin" in (tmp_path / "seen").read_text()
    hooks.remove(repository, "pre-push")
    assert theirs.read_text() == text
    assert not (repository / ".git" / "hooks" / f"pre-push{KEPT}").exists()


@pytest.mark.parametrize("broken", [["--no-such-option"], ["hook", "run", "nonsense"]])
def test_a_commit_succeeds_whatever_our_part_does(repository: Path, broken: list[str]) -> None:
    hooks.install(repository, "post-commit", broken)
    (repository / "a.txt").write_text("b")
    git(repository, "commit", "-qam", "second")
    assert git(repository, "log", "-1", "--format=%s") == "second"


def test_a_commit_does_not_wait_for_the_announcement(repository: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    arguments = ["--home", str(home), "hook", "run", "post-commit", "--project", "aa" * 32]
    hooks.install(repository, "post-commit", arguments)
    (repository / "a.txt").write_text("b")
    began = time.monotonic()
    git(repository, "commit", "-qam", "second")
    # The process behind it first waits a second for commits to come to rest.
    took = time.monotonic() - began
    log = home / "state" / "hook.log"
    deadline = time.monotonic() + 30
    while "there is no ledger" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.1)
    assert time.monotonic() - began > took


def test_core_hookspath_is_heeded_inside_the_repository_and_refused_outside(
    repository: Path, tmp_path: Path
) -> None:
    git(repository, "config", "core.hooksPath", "tools/hooks")
    hooks.install(repository, "post-commit", ["hook"])
    assert (repository / "tools" / "hooks" / "post-commit").exists()
    git(repository, "config", "core.hooksPath", str(tmp_path / "shared"))
    with pytest.raises(LocalError, match=r"core\.hooksPath.*outside of it.*hook run"):
        hooks.install(repository, "post-commit", ["hook"])


def test_two_hooks_that_would_have_to_be_kept_are_both_kept(repository: Path) -> None:
    folder = repository / ".git" / "hooks"
    executable(folder / "post-commit", "#!/bin/sh\n")
    executable(folder / f"post-commit{KEPT}", "#!/bin/sh\n# older\n")
    with told(
        "both … and … are there, and neither may be lost: join them or move one away, then try "
        "again"
    ):
        hooks.install(repository, "post-commit", ["hook"])
    assert (folder / f"post-commit{KEPT}").read_text().endswith("older\n")


def test_a_folder_without_git_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"no git repository.*git init"):
        hooks.folder(tmp_path)


def test_what_was_pushed_is_read_as_git_says_it() -> None:
    a, b, none = "a" * 40, "b" * 40, "0" * 40
    heads = ("refs/heads/*",)
    push = [f"refs/heads/x {a} refs/heads/x {none}", f"(delete) {none} refs/heads/y {b}", "junk"]
    assert hooks.pushed(push, "pre-push", heads) == [a]
    took = [f"{none} {a} refs/heads/x", f"{a} {b} refs/tags/v1", f"{b} {none} refs/heads/z"]
    assert hooks.pushed(took, "post-receive", heads) == [a]
    assert hooks.pushed(took, "post-receive", ("refs/*",)) == [a, b]
