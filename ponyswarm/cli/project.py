"""``ponyswarm project``: create a project, show it, change its record, end its keys."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

import click
from msgspec import UNSET
from msgspec.structs import replace

from ponyswarm import keys
from ponyswarm.cli import json_option, print_json
from ponyswarm.cli.opening import now_ms, opened
from ponyswarm.errors import LocalError
from ponyswarm.home import Home
from ponyswarm.messages import Project
from ponyswarm.plain import harmless
from ponyswarm.policy import ProjectState
from ponyswarm.session import Session

COUNTS = click.Choice(["all", "vouched"])


def moment(millis: int) -> str:
    return datetime.fromtimestamp(millis / 1000, UTC).isoformat(" ", "seconds")


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
@click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="KEY",
    help="A further root key, which may change the record; may be given again.",
)
@click.option(
    "--threshold",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="How many roots must agree to a change.",
)
@click.option(
    "--redundancy",
    type=click.IntRange(1, 20),
    default=2,
    show_default=True,
    help="Runs asked for of each cell.",
)
@click.option(
    "--cross-check",
    type=click.Choice(["blind", "open"]),
    default="open",
    show_default=True,
    help="blind: every job is, whatever it says itself.",
)
@click.option("--counts", type=COUNTS, help="Whose results fill the redundancy (default: all).")
@click.option(
    "--floor",
    type=click.IntRange(1, 100),
    metavar="PERCENT",
    help="Check vouched keys with a long record less often, never less than this.",
)
@json_option
@click.pass_obj
def create(
    home: Home,
    name: str,
    url: str,
    announcers: tuple[str, ...],
    roots: tuple[str, ...],
    threshold: int,
    redundancy: int,
    cross_check: Literal["blind", "open"],
    counts: Literal["all", "vouched"] | None,
    floor: int | None,
    as_json: bool,
) -> None:
    """Found a project; your key becomes its root.

    Where this machine has no home yet, one is made first, as 'init --yes' would.
    """
    from ponyswarm import config
    from ponyswarm.cli.init import ensure
    from ponyswarm.messages import CrossCheck

    ensure(home)
    with opened(home) as session:
        record = Project(
            name=name,
            url=url,
            roots=(session.key.public, *(keys.parse_peer_id(text) for text in roots)),
            threshold=threshold,
            announcers=tuple(keys.parse_peer_id(text) for text in announcers),
            cross_check=CrossCheck(
                redundancy=redundancy,
                mode=cross_check,
                counts=counts or UNSET,
                floor=floor or UNSET,
            ),
        )
        _check_threshold(record)
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
@click.option("--root", is_flag=True, help="As a root, which may also change the record.")
@json_option
@click.pass_obj
def add_maintainer(home: Home, name: str, key: str, root: bool, as_json: bool) -> None:
    """Let KEY announce jobs of a project (a root's right).

    Where the record asks for several roots this is a proposal, until others approve it.
    """
    public = keys.parse_peer_id(key)

    def change(record: Project) -> Project:
        if public in (record.roots if root else (*record.roots, *record.announcers)):
            raise LocalError(
                f"{key} may do that in {record.name} already: "
                "'ponyswarm project show' lists who may"
            )
        if root:
            return replace(record, roots=(*record.roots, public))
        return replace(record, announcers=(*record.announcers, public))

    _propose(home, name, change, f"{key} may announce jobs", as_json=as_json)


@project.command()
@click.argument("name")
@click.argument("key")
@json_option
@click.pass_obj
def remove(home: Home, name: str, key: str, as_json: bool) -> None:
    """Take KEY out of a project's record; what it said before stands.

    A key that is stolen is better ended at once, with 'ponyswarm project revoke'.
    """
    public = keys.parse_peer_id(key)

    def change(record: Project) -> Project:
        if public not in (*record.roots, *record.announcers):
            raise LocalError(
                f"{key} is not in the record of {record.name}: 'ponyswarm project show "
                f"{record.name}' shows who is"
            )
        changed = replace(
            record,
            roots=tuple(one for one in record.roots if one != public),
            announcers=tuple(one for one in record.announcers if one != public),
        )
        if not changed.roots:
            raise LocalError(f"{key} is the only root of {record.name}: add another one first")
        return changed

    _propose(home, name, change, f"{key} is out of the record", as_json=as_json)


@project.command("set")
@click.argument("name")
@click.option("--url", help="Where the project lives.")
@click.option("--threshold", type=click.IntRange(1, 16), help="How many roots must agree.")
@click.option("--redundancy", type=click.IntRange(1, 20), help="Runs asked for of each cell.")
@click.option("--cross-check", type=click.Choice(["blind", "open"]), help="How runs are compared.")
@click.option("--counts", type=COUNTS, help="Whose results fill the redundancy.")
@click.option(
    "--floor",
    type=click.IntRange(0, 100),
    metavar="PERCENT",
    help="Check keys with a long record less often, never less than this; 0: check all.",
)
@json_option
@click.pass_obj
def set_(
    home: Home,
    name: str,
    url: str | None,
    threshold: int | None,
    redundancy: int | None,
    cross_check: Literal["blind", "open"] | None,
    counts: Literal["all", "vouched"] | None,
    floor: int | None,
    as_json: bool,
) -> None:
    """Change what a project's record asks for (a root's right)."""

    def change(record: Project) -> Project:
        check = record.cross_check
        if floor is not None:
            check = replace(check, floor=floor or UNSET)
        return replace(
            record,
            url=record.url if url is None else url,
            threshold=threshold or record.threshold,
            cross_check=replace(
                check,
                redundancy=redundancy or check.redundancy,
                mode=cross_check or check.mode,
                counts=counts or check.counts,
            ),
        )

    _propose(home, name, change, "the record is changed", as_json=as_json)


@project.command()
@click.argument("name")
@click.argument("proposal", required=False)
@json_option
@click.pass_obj
def approve(home: Home, name: str, proposal: str | None, as_json: bool) -> None:
    """Stand behind a proposed record (the beginning of its id), as one of several roots.

    Without PROPOSAL, the only one that is open. 'ponyswarm project show' lists them.
    """
    from ponyswarm.messages import Approve

    with opened(home) as session:
        state = _state(home, session, name)
        open_ = [
            one for one in state.proposals if one.id.hex().startswith((proposal or "").lower())
        ]
        which = f" that begins with {proposal!r}" if proposal else ""
        if not open_:
            raise LocalError(
                f"{state.record.name} has no proposal that is open{which}: 'ponyswarm project show "
                f"{state.record.name}' lists what it has"
            )
        if len(open_) > 1:
            raise LocalError(
                f"{state.record.name} has {len(open_)} proposals that are open{which}: give more "
                f"of the id of one; 'ponyswarm project show {state.record.name}' lists them"
            )
        if open_[0].stale:
            raise LocalError(
                "the record was changed since this was proposed, so it can have no force any "
                "more: make the change again"
            )
        entry = session.publish(Approve(record=open_[0].id), project=state.id, now=now_ms())
        state = _state(home, session, name)
    _said(state, open_[0].id, "the record is changed", entry.id, as_json=as_json)


@project.command()
@click.argument("name")
@click.argument("key")
@click.option("--reason", default="", help="Why, for all to read.")
@click.option("--since", metavar="TIME", help="From when on, as 2026-11-27T20:00 (default: now).")
@json_option
@click.pass_obj
def revoke(home: Home, name: str, key: str, reason: str, since: str | None, as_json: bool) -> None:
    """End a key in a project, from now or an earlier time on; what it said before stands.

    A root may end any key, and everyone its own.
    """
    from ponyswarm.messages import Revoke

    public = keys.parse_peer_id(key)
    with opened(home) as session:
        state = _state(home, session, name)
        now = now_ms()
        start = now if since is None else _millis(since)
        said = Revoke(key=public, since=start, reason=reason)
        entry = session.publish(said, project=state.id, now=now)
    if as_json:
        print_json({"key": key, "since": start, "entry": entry.id.hex()})
        return
    when = "now" if since is None else moment(start)
    click.echo(f"{key} counts for nothing in {state.record.name} from {when} on")


def _millis(text: str) -> int:
    try:
        return int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)
    except ValueError as fault:
        raise LocalError(f"{text!r} is not a time: write it as 2026-11-27T20:00") from fault


def _propose(
    home: Home, name: str, change: Callable[[Project], Project], what: str, *, as_json: bool
) -> None:
    """Publish a changed record, and say whether it has force or who must agree yet."""
    with opened(home) as session:
        state = _state(home, session, name)
        changed = change(state.record)
        if changed == state.record:
            raise LocalError(
                f"that is what the record of {state.record.name} says already: nothing is changed; "
                "'ponyswarm project show' prints it"
            )
        _check_threshold(changed)
        record = replace(changed, cosigns=(), continues=None, replaces=state.entry)
        entry = session.publish(record, project=state.id, now=now_ms())
        state = _state(home, session, name)
    _said(state, entry.id, what, entry.id, as_json=as_json)


def _said(state: ProjectState, proposal: bytes, what: str, entry: bytes, *, as_json: bool) -> None:
    missing = 0
    for one in state.proposals:
        if one.id == proposal:
            missing = state.record.threshold - len(one.agreed)
    if as_json:
        print_json(
            {
                "project": state.id.hex(),
                "entry": entry.hex(),
                "proposal": proposal.hex(),
                "in_force": state.entry == proposal,
                "missing": missing,
            }
        )
    elif state.entry == proposal:
        click.echo(f"{what} in {state.record.name} now")
    else:
        click.echo(
            f"{what} in {state.record.name} when {missing} more of its roots agree. They say:\n\n"
            f"  ponyswarm project approve {state.record.name} {proposal.hex()[:16]}"
        )


def _check_threshold(record: Project) -> None:
    if record.threshold > len(set(record.roots)):
        raise LocalError(
            f"a threshold of {record.threshold} cannot be reached by {len(set(record.roots))} "
            "roots: add roots first, or lower it"
        )


def _state(home: Home, session: Session, name: str) -> ProjectState:
    from ponyswarm.ledger.queries import Reader

    with Reader(home.ledger) as reader:
        state = session.store.state(reader.find_project(name))
    if state is None:
        raise LocalError(
            f"the record of {name!r} is not in this ledger yet: let 'ponyswarm node' run until "
            "it came"
        )
    return state


def _facts(state: ProjectState) -> dict[str, object]:
    record = state.record
    check = record.cross_check
    return {
        "project": state.id.hex(),
        "name": record.name,
        "url": record.url,
        "roots": [keys.peer_id(key) for key in record.roots],
        "threshold": record.threshold,
        "announcers": [keys.peer_id(key) for key in record.announcers],
        "redundancy": check.redundancy,
        "mode": check.mode,
        "counts": "all" if check.counts is UNSET else check.counts,
        "floor": None if check.floor is UNSET else check.floor,
        "revoked": {keys.peer_id(key): since for key, since in state.revoked.items()},
        "operators": {keys.peer_id(key): name for key, name in state.operators.items()},
        "successors": {
            keys.peer_id(before): keys.peer_id(key) for key, before in state.before.items()
        },
        "proposals": [
            {
                "proposal": one.id.hex(),
                "time": one.time,
                "author": keys.peer_id(one.author),
                "changes": _changes(record, one.record),
                "agreed": [keys.peer_id(key) for key in sorted(one.agreed)],
                "stale": one.stale,
            }
            for one in state.proposals
        ],
    }


def _changes(now: Project, then: Project) -> list[str]:
    """What a proposed record would change, in words."""
    found = [
        f"{name} {keys.peer_id(key)} {word}"
        for name, old, new in (
            ("root", now.roots, then.roots),
            ("announcer", now.announcers, then.announcers),
        )
        for word, which in (("added", set(new) - set(old)), ("removed", set(old) - set(new)))
        for key in sorted(which)
    ]
    for name in ("name", "url", "threshold"):
        if getattr(now, name) != getattr(then, name):
            found.append(f"{name} {getattr(now, name)} → {getattr(then, name)}")
    for name in ("redundancy", "mode", "counts", "floor"):
        old, new = (getattr(one.cross_check, name) for one in (now, then))
        if old != new:
            words = ["default" if value is UNSET else value for value in (old, new)]
            found.append(f"{name} {words[0]} → {words[1]}")
    return found


def _print(state: ProjectState) -> None:
    record = state.record
    check = record.cross_check
    click.echo(harmless(f"{record.name}  {record.url}".rstrip()))
    click.echo(f"  id          {state.id.hex()}")
    for key in record.roots:
        click.echo(f"  root        {keys.peer_id(key)}")
    if len(record.roots) > 1 or record.threshold > 1:
        click.echo(f"  threshold   {record.threshold} of {len(record.roots)} roots change this")
    for key in record.announcers:
        click.echo(f"  announcer   {keys.peer_id(key)}")
    words = [f"{check.redundancy} runs", check.mode]
    if check.counts == "vouched":
        words.append("of vouched keys only")
    if check.floor is not UNSET:
        words.append(f"long records are checked less, never below {check.floor} %")
    click.echo(f"  redundancy  {', '.join(words)}")
    for key, operator in state.operators.items():
        click.echo(harmless(f"  vouched     {keys.peer_id(key)} is run by {operator}"))
    for key, before in state.before.items():
        click.echo(f"  successor   {keys.peer_id(key)} goes on from {keys.peer_id(before)}")
    for key, since in state.revoked.items():
        click.echo(f"  ended       {keys.peer_id(key)} since {moment(since)}")
    for one in state.proposals:
        note = (
            "can have no force: the record was changed since"
            if one.stale
            else (f"{len(one.agreed)} of {record.threshold} roots agree")
        )
        click.echo(f"  proposal    {one.id.hex()[:16]} by {keys.peer_id(one.author)}: {note}")
        for change in _changes(record, one.record):
            click.echo(harmless(f"                {change}"))
