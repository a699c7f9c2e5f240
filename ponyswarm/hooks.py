"""Git hooks that announce commits: written, found and taken away; what they were asked to do.

A hook must never slow a commit down or fail it: the script starts a process of its own in
the background and ends with the code of the hook that was there before, which it keeps
beside itself and runs first. Called by ``cli.hook``.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ponyswarm.errors import LocalError

NAMES = ("post-commit", "pre-push", "post-receive")
MARK = "# Written by 'ponyswarm hook install'."
KEPT = ".before-ponyswarm"
NOTHING = "0" * 40

_SCRIPT = """\
#!/bin/sh
{mark} 'ponyswarm hook remove' takes it away.
# The announcement is made by a process of its own: it neither slows git down nor fails it.
said=$(mktemp 2>/dev/null) || said=/dev/null
{read}
code=0
if [ -x "$0{kept}" ]; then
    "$0{kept}" "$@" <"$said" || code=$?
fi
if [ "$code" -eq 0 ]; then
    {command} "$@" <"$said" >/dev/null 2>&1 || :
fi
[ "$said" = /dev/null ] || rm -f "$said"
exit $code
"""


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook file, and whether it is ours."""

    name: str
    path: Path
    ours: bool
    kept: bool


def folder(repository: Path) -> Path:
    """Where git looks for this repository's hooks, `core.hooksPath` heeded.

    Raises `LocalError` for no repository, and for a folder outside of it, since hooks
    there would run for other repositories too.
    """
    shown = _git(repository, "rev-parse", "--git-path", "hooks")
    found = (repository / shown).resolve()
    common = (repository / _git(repository, "rev-parse", "--git-common-dir")).resolve()
    bare = _git(repository, "rev-parse", "--is-bare-repository") == "true"
    top = common if bare else Path(_git(repository, "rev-parse", "--show-toplevel")).resolve()
    if common not in (found, *found.parents) and top not in (found, *found.parents):
        raise LocalError(
            f"core.hooksPath of this repository is {found}, which is outside of it: a hook there "
            "would announce commits of every repository that uses it. Set core.hooksPath to a "
            "folder of this repository, or call 'ponyswarm hook run post-commit' from a hook there"
        )
    return found


def look(repository: Path) -> Iterator[Hook]:
    """The hooks of this repository that could be ours."""
    where = folder(repository)
    for name in NAMES:
        path = where / name
        if path.exists() or path.is_symlink():
            yield Hook(name, path, _is_ours(path), (where / f"{name}{KEPT}").exists())


def install(repository: Path, name: str, arguments: Sequence[str]) -> bool:
    """Write a hook that calls ``ponyswarm hook run NAME ARGUMENTS…``; False if it was so already.

    A hook that is there already is kept beside the new one, which runs it first.
    """
    where = folder(repository)
    path, kept = where / name, where / f"{name}{KEPT}"
    command = shlex.join([sys.executable, "-m", "ponyswarm", *arguments])
    text = _SCRIPT.format(
        mark=MARK,
        kept=KEPT,
        command=command,
        # Git feeds these hooks on standard input, which the kept hook wants to read as well.
        read=":" if name == "post-commit" else 'cat >"$said"',
    )
    try:
        where.mkdir(parents=True, exist_ok=True)
        if path.exists() or path.is_symlink():
            if _is_ours(path):
                if path.read_text("utf-8") == text:
                    return False
            elif kept.exists():
                raise LocalError(
                    f"both {path} and {kept} are there, and neither may be lost: join them or "
                    "move one away, then try again"
                )
            else:
                path.rename(kept)
        fresh = path.with_name(f"{name}.new")
        fresh.write_text(text, "utf-8")
        fresh.chmod(0o755)
        os.replace(fresh, path)
    except OSError as fault:
        raise LocalError(
            f"the hook {path} cannot be written: {fault.strerror}; check who owns {where}"
        ) from fault
    return True


def remove(repository: Path, name: str) -> bool:
    """Take our hook away and put back what was there before; False when it is not there."""
    where = folder(repository)
    path, kept = where / name, where / f"{name}{KEPT}"
    if not _is_ours(path):
        return False
    try:
        if kept.exists():
            os.replace(kept, path)
        else:
            path.unlink()
    except OSError as fault:
        raise LocalError(
            f"the hook {path} cannot be removed: {fault.strerror}; check who owns {where}"
        ) from fault
    return True


def pushed(lines: Iterable[str], name: str, patterns: Sequence[str]) -> list[str]:
    """The commits to announce of what git tells a hook on standard input. Pure.

    ``pre-push`` says "local-ref local-id remote-ref remote-id", ``post-receive`` says
    "old-id new-id ref". Deleted refs name no commit; a commit of several refs counts once.
    """
    found: dict[str, None] = {}
    for line in lines:
        parts = line.split()
        if (name == "pre-push" and len(parts) == 4) or (name == "post-receive" and len(parts) == 3):
            commit, ref = parts[1], parts[2]
        else:
            continue
        if commit.strip("0") and any(fnmatchcase(ref, pattern) for pattern in patterns):
            found[commit] = None
    return list(found)


def _is_ours(path: Path) -> bool:
    try:
        return MARK in path.read_text("utf-8", "replace")[:300]
    except OSError:
        return False


def _git(repository: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        why = getattr(fault, "strerror", None) or "no answer within two minutes"
        raise LocalError(f"git does not run ({why}): install git, then try again") from fault
    if done.returncode:
        raise LocalError(
            f"{repository} is no git repository ({done.stderr.strip()}): name one, or make one "
            "with 'git init'"
        )
    return done.stdout.strip()
