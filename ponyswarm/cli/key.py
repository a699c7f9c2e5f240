"""``ponyswarm key``: make and show the key of this home."""

from __future__ import annotations

import click

from ponyswarm import keys
from ponyswarm.cli import json_option, print_json
from ponyswarm.home import Home


@click.group()
def key() -> None:
    """Make or show your key."""


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


def _print(home: Home, secret: keys.SecretKey, as_json: bool) -> None:
    name = keys.peer_id(secret.public)
    if as_json:
        print_json({"key": name, "public": secret.public.hex(), "path": str(home.key)})
    else:
        click.echo(name)
