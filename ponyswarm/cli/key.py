"""``ponyswarm key``: make, show and rotate the key of this home."""

from __future__ import annotations

import click

from ponyswarm import keys
from ponyswarm.cli import json_option, print_json
from ponyswarm.errors import LocalError
from ponyswarm.home import Home


@click.group()
def key() -> None:
    """Make, show or rotate your key."""


@key.command()
@json_option
@click.pass_obj
def new(home: Home, as_json: bool) -> None:
    """Make a key; one that is there is never replaced."""
    home.create()
    made = keys.SecretKey.generate()
    keys.save(home.key, made)
    _print(home, made, as_json)
    if not as_json:
        click.echo(f"It is in {home.key}: keep a copy in a safe place.", err=True)


@key.command()
@json_option
@click.pass_obj
def show(home: Home, as_json: bool) -> None:
    """Show the public key, which names you in the network."""
    _print(home, keys.load(home.key), as_json)


@key.command()
@json_option
@click.pass_obj
def rotate(home: Home, as_json: bool) -> None:
    """Give your place to a new key: rights, vouches and record go on with it.

    Your key says so in every project where it said anything or is named, and the new one
    takes its place in this home. The old key is kept beside it, under another name, and
    counts for nothing from now on. Stop the node first.
    """
    from contextlib import closing

    from ponyswarm import rotating
    from ponyswarm.cli.opening import node_is_running, now_ms, opened
    from ponyswarm.ledger.seals import Seals

    if node_is_running(home):
        raise LocalError(
            "a node runs on this home and goes by its key: stop it, rotate the key, start it again"
        )
    old = keys.load(home.key)
    if home.seals.exists():
        with closing(Seals(home.seals, old.public)) as seals:
            if seals.count():
                raise LocalError(
                    "this key has committed to outcomes that it has not told yet, and only it can: "
                    "start the node and let it run until it has told them (it waits for others "
                    "to run the same cells), then rotate"
                )
    heir = rotating.successor(home.key)
    with opened(home) as session:
        projects = rotating.say(session, heir, now=now_ms())
    kept = rotating.put(home.key)
    if as_json:
        print_json(
            {
                "key": keys.peer_id(heir.public),
                "before": keys.peer_id(old.public),
                "kept": str(kept),
                "projects": [project.hex() for project in projects],
            }
        )
        return
    click.echo(keys.peer_id(heir.public))
    click.echo(
        f"It goes on from {keys.peer_id(old.public)} in {len(projects)} projects, once others "
        f"have heard: start the node, or announce something. The old key is kept in {kept}.",
        err=True,
    )


def _print(home: Home, secret: keys.SecretKey, as_json: bool) -> None:
    name = keys.peer_id(secret.public)
    if as_json:
        print_json({"key": name, "public": secret.public.hex(), "path": str(home.key)})
    else:
        click.echo(name)
