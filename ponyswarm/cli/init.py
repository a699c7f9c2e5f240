"""``ponyswarm init``: a home for this machine."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from click.core import ParameterSource

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
        if pythons or _typed("listen"):
            raise LocalError(
                f"there is {home.ini} already: change it with an editor, or have it replaced "
                "with --force"
            )
        home.create()
        made = _ensure_key(home)
        if as_json:
            print_json({**_facts(home), "created": False, "key_created": made})
        else:
            click.echo(f"there is a home already: {home.ini}")
        return
    found = survey(map(Path, pythons), search=not pythons)
    if pythons and found.skipped:
        raise LocalError(
            "; ".join(item.reason for item in found.skipped)
            + ": name a Python that works by --python, or leave it out to have them found"
        )
    services = services_here()
    if not as_json:
        _show(found)
        if services:
            click.echo(f"  services: {', '.join(services)}")
    chosen = Chosen(listen=listen or config.DEFAULT_LISTEN, slots=share()[0])
    if not (yes or as_json) and sys.stdin.isatty():
        chosen = _ask(listen, services)
    if home.ini.exists():
        shutil.copy2(home.ini, home.ini.with_name(home.ini.name + ".old"))
    made = set_up(home, found, chosen, services)
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


def _typed(option: str) -> bool:
    """Whether an option was given here and now, and not by a variable for all calls."""
    source = click.get_current_context().get_parameter_source(option)
    return source is ParameterSource.COMMANDLINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a person may decide when a home is made."""

    listen: str
    slots: int
    offer: tuple[str, ...] = ()


def set_up(home: Home, found: Survey, chosen: Chosen, services: Sequence[str]) -> bool:
    """Make a home: folders, key, settings; whether the key is new."""
    home.create()
    text = config.template(
        listen=chosen.listen,
        slots=chosen.slots,
        memory=share()[1],
        interpreters={item.name: item.path for item in found.found},
        services=services,
    )
    config.parse(text, str(home.ini))
    made = _ensure_key(home)
    config.write(home.ini, text)  # Last: while it is missing, init is not done.
    for name in chosen.offer:
        config.offer_service(home.ini, name)
    return made


def ensure(home: Home) -> None:
    """Make a home with what `init --yes` would choose, where there is none yet."""
    if home.key.exists():
        return
    click.echo(f"setting this machine up first, in {home.config_dir}", err=True)
    if home.ini.exists():
        _ensure_key(home)
        return
    # As a call of `init` would find it: PONYSWARM_INIT_LISTEN counts here, too.
    root = click.get_current_context().find_root()
    listen = init.make_context("init", ["--yes"], parent=root).params["listen"]
    chosen = Chosen(listen=listen or config.DEFAULT_LISTEN, slots=share()[0])
    set_up(home, survey(), chosen, services_here())


def _ask(listen: str | None, services: Sequence[str]) -> Chosen:
    """The three questions of `init`; Enter takes what is proposed."""
    slots = click.prompt("How many runs at once", default=share()[0], type=click.IntRange(1, 1024))
    listen = listen or click.prompt(
        "Address to listen on", default=config.DEFAULT_LISTEN, value_proc=_ask_listen
    )
    offer: tuple[str, ...] = ()
    names = tuple(dict.fromkeys(words.split()[0] for words in services))
    if names and click.confirm(f"Offer {', '.join(names)} to jobs, on servers of their own?"):
        offer = names
    return Chosen(listen=listen, slots=slots, offer=offer)


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


def services_here() -> list[str]:
    """The services that could be offered here, as ``name version``."""
    import trio

    from ponyswarm.exec import provisioning
    from ponyswarm.exec.services.service import Offer

    probed = trio.run(provisioning.probe, provisioning.whatever_is_here({}))
    return [one.words for one in probed.values() if isinstance(one, Offer)]


def share() -> tuple[int, int]:
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
