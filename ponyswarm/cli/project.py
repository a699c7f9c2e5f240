"""``ponyswarm project``: create a project, show it, change who may announce."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import click

from ponyswarm import keys
from ponyswarm.cli import json_option, print_json
from ponyswarm.cli.opening import now_ms, opened
from ponyswarm.errors import LocalError
from ponyswarm.home import Home
from ponyswarm.policy import ProjectState
from ponyswarm.session import Session


@click.group()
def project() -> None:
    """Create and look after a project.

    A project is a namespace of the ledger. Its record names the keys that may announce
    jobs; volunteers trust it by its id.
    """


@project.command()
@click.argument("name")
@click.option("--url", default="", help="Where the project lives.")
@click.option(
    "--announcer",
    "announcers",
    multiple=True,
    metavar="KEY",
    help="A further key that may announce jobs (12D3KooW…); may be given again.",
)
@click.option("--redundancy", default=2, show_default=True, help="Runs asked for of each cell.")
@json_option
@click.pass_obj
def create(
    home: Home, name: str, url: str, announcers: tuple[str, ...], redundancy: int, as_json: bool
) -> None:
    """Found a project; your key becomes its root.

    Where this machine has no home yet, one is made first, as 'init --yes' would.
    """
    from ponyswarm import config
    from ponyswarm.cli.init import ensure
    from ponyswarm.messages import CrossCheck, Project

    ensure(home)
    with opened(home) as session:
        record = Project(
            name=name,
            url=url,
            roots=(session.key.public,),
            announcers=tuple(keys.parse_peer_id(text) for text in announcers),
            cross_check=CrossCheck(redundancy=redundancy),
        )
        entry = session.publish(record, now=now_ms())
    if home.ini.exists():
        config.add_project(home.ini, "follow", entry.id, name)
    if as_json:
        print_json({"project": entry.id.hex(), "name": name})
        return
    click.echo(f"{name} is founded. Its id, which volunteers need:\n\n  {entry.id.hex()}\n")
    click.echo(f"They say: ponyswarm trust add {entry.id.hex()}", err=True)


@project.command()
@click.argument("name", required=False)
@json_option
@click.pass_obj
def show(home: Home, name: str | None, as_json: bool) -> None:
    """Show a project by name or id, or all projects in this ledger."""
    from ponyswarm.ledger.queries import Reader

    with Reader(home.ledger) as reader:
        if name is None:
            states = reader.projects()
        else:
            found = reader.project(reader.find_project(name))
            states = [] if found is None else [found]
    if as_json:
        print_json([_facts(state) for state in states])
        return
    for state in states:
        _print(state)
    if not states:
        click.echo("no projects in this ledger: 'ponyswarm follow add ID' gets one", err=True)


@project.command("add-maintainer")
@click.argument("name")
@click.argument("key")
@click.pass_obj
def add_maintainer(home: Home, name: str, key: str) -> None:
    """Let KEY announce jobs of a project (a root's right)."""
    public = keys.parse_peer_id(key)
    with opened(home) as session:
        state = _state(home, session, name)
        if public in state.record.announcers:
            click.echo(f"{key} may announce {state.record.name} already")
            return
        record = replace(state.record, announcers=(*state.record.announcers, public), cosigns=())
        session.publish(record, project=state.id, now=now_ms())
    click.echo(f"{key} may announce jobs of {state.record.name} now")


@project.command()
@click.argument("name")
@click.argument("key")
@click.option("--reason", default="", help="Why, for all to read.")
@click.pass_obj
def revoke(home: Home, name: str, key: str, reason: str) -> None:
    """End a key's rights in a project from now on."""
    from ponyswarm.messages import Revoke

    public = keys.parse_peer_id(key)
    with opened(home) as session:
        state = _state(home, session, name)
        now = now_ms()
        session.publish(Revoke(key=public, since=now, reason=reason), project=state.id, now=now)
    click.echo(f"{key} counts for nothing in {state.record.name} from now on")


def _state(home: Home, session: Session, name: str) -> ProjectState:
    from ponyswarm.ledger.queries import Reader

    with Reader(home.ledger) as reader:
        state = session.store.state(reader.find_project(name))
    if state is None:
        raise LocalError(f"the record of {name!r} is not in this ledger yet")
    return state


def _facts(state: ProjectState) -> dict[str, object]:
    record = state.record
    return {
        "project": state.id.hex(),
        "name": record.name,
        "url": record.url,
        "roots": [keys.peer_id(key) for key in record.roots],
        "threshold": record.threshold,
        "announcers": [keys.peer_id(key) for key in record.announcers],
        "redundancy": record.cross_check.redundancy,
        "mode": record.cross_check.mode,
        "revoked": {keys.peer_id(key): since for key, since in state.revoked.items()},
        "operators": {keys.peer_id(key): name for key, name in state.operators.items()},
    }


def _print(state: ProjectState) -> None:
    record = state.record
    click.echo(f"{record.name}  {record.url}".rstrip())
    click.echo(f"  id          {state.id.hex()}")
    for key in record.roots:
        click.echo(f"  root        {keys.peer_id(key)}")
    for key in record.announcers:
        click.echo(f"  announcer   {keys.peer_id(key)}")
    click.echo(f"  redundancy  {record.cross_check.redundancy}, {record.cross_check.mode}")
    for key, since in state.revoked.items():
        when = datetime.fromtimestamp(since / 1000, UTC).isoformat(" ", "seconds")
        click.echo(f"  revoked     {keys.peer_id(key)} since {when}")
