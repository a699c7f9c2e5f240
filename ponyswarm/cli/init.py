"""``ponyswarm init``: a home for this machine."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from ponyswarm import config, keys
from ponyswarm.cli import json_option, print_json
from ponyswarm.errors import LocalError
from ponyswarm.exec.interpreters import Survey, survey
from ponyswarm.home import Home


def _listen(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else config.check_listen(value)
    except ValueError as fault:
        raise click.BadParameter(f"{value!r} {fault}") from fault


@click.command()
@click.option("--yes", is_flag=True, help="Ask nothing.")
@click.option("--python", "pythons", multiple=True, metavar="PATH", help="Offer only these.")
@click.option("--listen", metavar="ADDR", callback=_listen, help="Such as /ip4/0.0.0.0/tcp/7797.")
@click.option("--force", is_flag=True, help="Replace ponyswarm.ini; the old one is kept as .old.")
@json_option
@click.pass_obj
def init(
    home: Home, yes: bool, pythons: tuple[str, ...], listen: str | None, force: bool, as_json: bool
) -> None:
    """Set this machine up: settings, key, interpreters.

    Looks for the Pythons of this machine, writes a commented ponyswarm.ini that offers
    them, and makes a key. A home that is there already is left alone.
    """
    if home.ini.exists() and not force:
        if pythons or listen:
            raise LocalError(
                f"there is {home.ini} already: change it with an editor, or have it replaced "
                "with --force"
            )
        made = _ensure_key(home)
        if as_json:
            print_json({**_facts(home), "created": False, "key_created": made})
        else:
            click.echo(f"there is a home already: {home.ini}")
        return
    found = survey(map(Path, pythons), search=not pythons)
    if pythons and found.skipped:
        raise LocalError("; ".join(item.reason for item in found.skipped))
    services = _services()
    if not as_json:
        _show(found)
        if services:
            click.echo(f"  services: {', '.join(services)} (offer them under [services])")
    if not (yes or as_json) and sys.stdin.isatty():
        listen = listen or click.prompt(
            "Address to listen on", default=config.DEFAULT_LISTEN, value_proc=_ask_listen
        )
        click.confirm(f"Write {home.ini}?", default=True, abort=True)
    home.create()
    if home.ini.exists():
        shutil.copy2(home.ini, home.ini.with_name(home.ini.name + ".old"))
    slots, memory = _share()
    text = config.template(
        listen=listen or config.DEFAULT_LISTEN,
        slots=slots,
        memory=memory,
        interpreters={item.name: item.path for item in found.found},
        services=services,
    )
    config.parse(text, str(home.ini))
    made = _ensure_key(home)
    config.write(home.ini, text)  # Last: while it is missing, init is not done.
    if as_json:
        print_json(
            {
                **_facts(home),
                "created": True,
                "key_created": made,
                "interpreters": [
                    {
                        "name": item.name,
                        "implementation": item.implementation,
                        "version": item.version,
                        "free_threaded": item.free_threaded,
                        "path": item.path,
                    }
                    for item in found.found
                ],
                "services": services,
                "skipped": [{"path": item.path, "reason": item.reason} for item in found.skipped],
            }
        )
        return
    click.echo(f"settings  {home.ini}")
    click.echo(f"key       {_facts(home)['key']}{'' if made else '  (kept)'}")
    if not _sandbox() and sys.platform.startswith("linux"):
        click.echo("bubblewrap is missing: without it no job runs here; install it", err=True)
    click.echo("Next: 'ponyswarm trust add PROJECT_ID', then 'ponyswarm node'.")


def _ask_listen(text: str) -> str:
    try:
        return config.check_listen(text)
    except ValueError as fault:
        raise click.UsageError(f"{text!r} {fault}") from fault


def _ensure_key(home: Home) -> bool:
    """Make the key if there is none, and see that it can be read; whether it was made."""
    missing = not home.key.exists()
    if missing:
        keys.save(home.key, keys.SecretKey.generate())
    keys.load(home.key)
    return missing


def _facts(home: Home) -> dict[str, object]:
    return {
        "settings": str(home.ini),
        "key": keys.peer_id(keys.load(home.key).public),
        "sandbox": _sandbox(),
    }


def _sandbox() -> str | None:
    return shutil.which("bwrap")


def _services() -> list[str]:
    """The services that could be offered here, as ``name version``."""
    import trio

    from ponyswarm.exec import provisioning
    from ponyswarm.exec.services.service import Offer

    probed = trio.run(provisioning.probe, provisioning.whatever_is_here({}))
    return [one.words for one in probed.values() if isinstance(one, Offer)]


def _share() -> tuple[int, int]:
    """(runs at once, bytes of memory for each): half of the machine at most."""
    import psutil

    slots = max(1, (os.cpu_count() or 1) // 2)
    share = psutil.virtual_memory().total // (2 * slots)
    memory = min(config.Limits().memory, max(256 * config.MIB, share))
    return slots, memory // config.MIB * config.MIB


def _show(found: Survey) -> None:
    if not found.found:
        click.echo("no Python was found that jobs could use: add some under [interpreters]")
    width = max((len(item.name) for item in found.found), default=0)
    for item in found.found:
        click.echo(f"  {item.name:<{width}}  {item.path}")
    for skip in found.skipped:
        click.echo(f"  skipped: {skip.reason}")
