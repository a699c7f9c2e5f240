"""``ponyswarm hook``: announce commits from git, without git ever waiting for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import click
from filelock import FileLock, Timeout

from ponyswarm import hooks
from ponyswarm.cli import json_option, print_json
from ponyswarm.cli.opening import home_option, opened
from ponyswarm.errors import LocalError
from ponyswarm.home import Home
from ponyswarm.ledger.queries import Reader

LOG_BYTES = 1 << 20
# A background announcement waits so long for the one before it.
QUEUE_SECONDS = 3600
# Let commits that follow each other at once, as in a rebase, come to rest.
SETTLE_SECONDS = 1.0

_repository = click.argument(
    "path", type=click.Path(exists=True, file_okay=False, path_type=Path), default="."
)
_which = click.option(
    "--on",
    "names",
    multiple=True,
    type=click.Choice(hooks.NAMES),
    help="post-commit (default), pre-push, or a server's post-receive; may be given again.",
)


@click.group()
def hook() -> None:
    """Announce commits from git hooks.

    A hook hands the commit to a process in the background, which writes a log; git never
    waits for it and never fails by it. Hooks that are there already are kept and run first.
    """


@hook.command()
@_repository
@_which
@click.option("--project", "-p", help="The project, by name or id (default: your only one).")
@click.option(
    "--ref",
    "refs",
    multiple=True,
    metavar="PATTERN",
    help="With pre-push and post-receive: only such refs (default: refs/heads/*).",
)
@json_option
@click.pass_obj
def install(
    home: Home,
    path: Path,
    names: tuple[str, ...],
    project: str | None,
    refs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write hooks into the repository PATH; again, it changes nothing."""
    from ponyswarm.cli.sending import choose_project

    with opened(home) as session:
        id_ = choose_project(home, session, project)
    made = {}
    for name in names or ("post-commit",):
        arguments = [*home_option(home), "hook", "run", name, "--project", id_.hex()]
        arguments += [part for ref in refs for part in ("--ref", ref)]
        made[name] = hooks.install(path, name, arguments)
    if as_json:
        print_json({"folder": str(hooks.folder(path)), "installed": made})
        return
    for name, new in made.items():
        click.echo(f"{name}: {'installed' if new else 'is there already'}")
    click.echo(f"what they do is written to {home.hook_log}", err=True)


@hook.command()
@_repository
@_which
@json_option
def remove(path: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Take our hooks out of PATH, and put back those that were there before."""
    gone = {name: hooks.remove(path, name) for name in names or hooks.NAMES}
    if as_json:
        print_json({"removed": gone})
        return
    for name, was in gone.items():
        if was or name in names:
            click.echo(f"{name}: {'removed' if was else 'none of ours is there'}")
    if not any(gone.values()) and not names:
        click.echo("no hook of ours is there")


@hook.command()
@_repository
@json_option
@click.pass_obj
def show(home: Home, path: Path, as_json: bool) -> None:
    """Show which hooks are in PATH, and the end of their log."""
    found = list(hooks.look(path))
    log = home.hook_log
    tail = log.read_text("utf-8", "replace").splitlines()[-10:] if log.exists() else []
    if as_json:
        print_json(
            {
                "hooks": [
                    {"name": one.name, "path": str(one.path), "ours": one.ours, "kept": one.kept}
                    for one in found
                ],
                "log": str(log),
                "last": tail,
            }
        )
        return
    for one in found:
        whose = "ours" if one.ours else "not ours"
        click.echo(f"{one.name}: {whose}{', runs the one before it first' * one.kept}")
    if not found:
        click.echo("no hooks: 'ponyswarm hook install' writes one")
    for line in tail:
        click.echo(f"  {line}")


@hook.command(hidden=True)
@click.argument("name", type=click.Choice(hooks.NAMES))
@click.argument("arguments", nargs=-1)
@click.option("--project", required=True)
@click.option("--ref", "refs", multiple=True)
@click.pass_obj
def run(
    home: Home, name: str, arguments: tuple[str, ...], project: str, refs: tuple[str, ...]
) -> None:
    """What a hook calls: hand what git says to a process of its own, and end at once."""
    lines = [] if name == "post-commit" else sys.stdin.read().splitlines()
    commits = hooks.pushed(lines, name, refs or ("refs/heads/*",))
    if name != "post-commit" and not commits:
        return
    home.create()
    log = home.hook_log
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.old"))
    with log.open("ab") as file:
        subprocess.Popen(
            _ponyswarm(home, "hook", "announce", "--project", project, str(Path.cwd()), *commits),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            # Git tells its hooks by these which index and folder to use; ours is another errand.
            env={k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
        )


@hook.command("announce", hidden=True)
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("commits", nargs=-1)
@click.option("--project", required=True)
@click.pass_obj
def announce_(home: Home, path: Path, commits: tuple[str, ...], project: str) -> None:
    """What happens in the background: announce commits that are not announced yet."""
    try:
        with FileLock(home.state_dir / "hook.lock", timeout=QUEUE_SECONDS):
            if not commits:
                time.sleep(SETTLE_SECONDS)
            for commit in commits or (_head(path),):
                _announce(home, path, commit, project)
    except Timeout as fault:
        raise LocalError(
            "an announcement before this one has not ended in an hour: look for it with "
            "'ponyswarm hook show', end it, then announce by hand"
        ) from fault


def _announce(home: Home, path: Path, commit: str, project: str) -> None:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    with Reader(home.ledger) as reader:
        known = any(
            row.commit == commit and not row.withdrawn
            for row in reader.jobs(bytes.fromhex(project))
        )
    if known:
        click.echo(f"{stamp} {commit[:12]} of {path.name} is announced already")
        return
    click.echo(f"{stamp} announcing {commit[:12]} of {path.name}")
    done = subprocess.run(
        _ponyswarm(home, "announce", str(path), "--commit", commit, "--project", project),
        stdin=subprocess.DEVNULL,
        check=False,
    )
    click.echo(f"{stamp} {commit[:12]}: {'announced' if not done.returncode else 'see above'}")


def _head(path: Path) -> str:
    from ponyswarm.exec import source

    return source.head(path)


def _ponyswarm(home: Home, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "ponyswarm", *home_option(home), *arguments]
