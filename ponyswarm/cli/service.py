"""``ponyswarm service``: have the node started with the machine, by what the system has for it."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from ponyswarm import __version__, background, config
from ponyswarm.cli import EXIT_USAGE, json_option, print_json
from ponyswarm.cli.opening import home_option
from ponyswarm.errors import InfraError, LocalError
from ponyswarm.home import Home

KINDS = ("systemd", "launchd", "windows", "docker")

_kind = click.option(
    "--kind",
    type=click.Choice(KINDS),
    default=lambda: {"darwin": "launchd", "win32": "windows"}.get(sys.platform, "systemd"),
    help="Which (default: what this system has).",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A file, and the commands that make the system take it up or forget it."""

    path: Path
    data: bytes
    install: tuple[tuple[str, ...], ...] = ()
    remove: tuple[tuple[str, ...], ...] = ()
    after: str = ""


@click.group()
def service() -> None:
    """Start the node with this machine, as your own user.

    By a user unit of systemd, a launch agent of macOS, or a task of Windows; 'docker'
    gives a Dockerfile.
    """


@service.command()
@_kind
@click.option("--dry-run", is_flag=True, help="Print what would be written and run; do nothing.")
@json_option
@click.pass_obj
def install(home: Home, kind: str, dry_run: bool, as_json: bool) -> None:
    """Write the file and start the node, now and after each login."""
    plan = plan_of(home, kind)
    if dry_run:
        _print(plan, plan.install, as_json=as_json)
        return
    if kind != "docker":
        config.load(home.ini)  # A node that cannot start is no service.
    try:
        plan.path.parent.mkdir(parents=True, exist_ok=True)
        plan.path.write_bytes(plan.data)
    except OSError as fault:
        raise LocalError(
            f"{plan.path} cannot be written: {fault.strerror}; --dry-run prints what should "
            "stand in it"
        ) from fault
    for command in plan.install:
        _perform(command, f"the file is written: {plan.path}; to start it yourself: ")
    if as_json:
        print_json({"kind": kind, "file": str(plan.path), "installed": True})
        return
    click.echo(f"written: {plan.path}")
    if plan.after:
        click.echo(plan.after, err=True)


@service.command()
@_kind
@click.option("--dry-run", is_flag=True, help="Print what would be run; do nothing.")
@json_option
@click.pass_obj
def remove(home: Home, kind: str, dry_run: bool, as_json: bool) -> None:
    """Stop the node and forget the service; the home stays as it is."""
    plan = plan_of(home, kind)
    if dry_run:
        for command in plan.remove:
            click.echo(" ".join(command))
        click.echo(f"remove {plan.path}")
        return
    was = plan.path.exists()
    if was:
        for command in plan.remove:
            _perform(command, f"{plan.path} is still there; to stop it yourself: ")
        plan.path.unlink()
    if as_json:
        print_json({"kind": kind, "file": str(plan.path), "removed": was})
    else:
        click.echo(f"removed: {plan.path}" if was else f"there is no {plan.path}")


@service.command()
@_kind
@json_option
@click.pass_context
def show(ctx: click.Context, kind: str, as_json: bool) -> None:
    """Print the file that is installed; exits 2 when none is."""
    home: Home = ctx.obj
    plan = plan_of(home, kind)
    there = plan.path.exists()
    same = there and plan.path.read_bytes() == plan.data
    if as_json:
        print_json({"file": str(plan.path), "installed": there, "as_it_would_be_now": same})
    elif there:
        click.echo(f"# {plan.path}")
        click.echo(plan.path.read_bytes().decode("utf-8", "replace"), nl=False)
        if not same:
            click.echo("it differs from what 'service install' would write now", err=True)
    else:
        click.echo(f"none is installed: 'ponyswarm service install' writes {plan.path}", err=True)
    ctx.exit(0 if there else EXIT_USAGE)


def plan_of(home: Home, kind: str) -> Plan:
    """What this home's node as a service would be."""
    command = [sys.executable, "-m", "ponyswarm", *home_option(home), "node", "--plain"]
    path = os.environ.get("PATH", os.defpath)
    if kind == "systemd":
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        control = ("systemctl", "--user")
        return Plan(
            path=folder / "systemd" / "user" / background.UNIT,
            data=background.systemd(command, path).encode(),
            install=(
                (*control, "daemon-reload"),
                (*control, "enable", "--now", background.UNIT),
            ),
            remove=((*control, "disable", "--now", background.UNIT),),
            after=(
                f"'journalctl --user -u {background.UNIT}' shows its log; 'loginctl enable-linger' "
                "lets it run while you are logged out"
            ),
        )
    if kind == "launchd":
        user = f"gui/{os.getuid()}" if hasattr(os, "getuid") else "gui/501"
        place = Path.home() / "Library" / "LaunchAgents" / f"{background.LABEL}.plist"
        log = str(home.state_dir / "node.log")
        return Plan(
            path=place,
            data=background.launchd(command, path, log),
            install=(("launchctl", "bootstrap", user, str(place)),),
            remove=(("launchctl", "bootout", f"{user}/{background.LABEL}"),),
            after=f"its log is {log}",
        )
    if kind == "windows":
        place = home.config_dir / "ponyswarm-task.xml"
        return Plan(
            path=place,
            data=background.windows(command, getpass.getuser()).encode("utf-8"),
            install=(
                ("schtasks", "/Create", "/F", "/TN", background.TASK, "/XML", str(place)),
                ("schtasks", "/Run", "/TN", background.TASK),
            ),
            remove=(
                ("schtasks", "/End", "/TN", background.TASK),
                ("schtasks", "/Delete", "/F", "/TN", background.TASK),
            ),
        )
    return Plan(
        path=Path.cwd() / "Dockerfile",
        data=background.dockerfile(__version__).encode(),
        after="its first lines say how to build and run it",
    )


def _print(plan: Plan, commands: Sequence[Sequence[str]], *, as_json: bool) -> None:
    if as_json:
        text = plan.data.decode("utf-8")
        print_json({"file": str(plan.path), "text": text, "commands": [list(c) for c in commands]})
        return
    click.echo(f"# {plan.path}")
    click.echo(plan.data.decode("utf-8"), nl=False)
    for command in commands:
        click.echo(f"# then: {' '.join(command)}")


def _perform(command: Sequence[str], otherwise: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as fault:
        why = fault.strerror if isinstance(fault, OSError) else "no answer within a minute"
        raise InfraError(
            f"'{command[0]}' does not run here ({why}); {otherwise}{' '.join(command)}"
        ) from fault
    if done.returncode:
        why = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise InfraError(f"'{' '.join(command[:2])}' failed: {why}; {otherwise}{' '.join(command)}")
