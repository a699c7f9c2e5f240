"""``ponyswarm pause``, ``resume`` and ``drain``: words to the node that runs on this home."""

from __future__ import annotations

import os
import time

import click

from ponyswarm import readings
from ponyswarm.cli import json_option, print_json
from ponyswarm.cli.opening import node_is_running, running_status
from ponyswarm.config import parse_duration
from ponyswarm.errors import InfraError, LocalError
from ponyswarm.home import Home
from ponyswarm.limits import Control


@click.command()
@click.option("--for", "span", metavar="TIME", help="Resume by itself after this, such as 2h.")
@click.option("--finish", is_flag=True, help="Let what runs end; it is given back otherwise.")
@json_option
@click.pass_obj
def pause(home: Home, span: str | None, finish: bool, as_json: bool) -> None:
    """Take no jobs from now on, also after a restart, until 'ponyswarm resume'."""
    until = None
    if span is not None:
        try:
            seconds = parse_duration(span)
        except ValueError as fault:
            raise click.UsageError(f"--for {span!r} {fault}") from fault
        if seconds <= 0:
            raise click.UsageError("--for must be longer than nothing, such as 2h")
        until = time.time() + seconds
    _tell(home, Control(paused=True, until=until, finish=finish))
    runs = node_is_running(home)
    if as_json:
        print_json({"paused": True, "until": until, "node_runs": runs})
        return
    end = "" if until is None else time.strftime(" until %a %H:%M:%S", time.localtime(until))
    click.echo(f"paused{end}" + ("" if runs else "; no node runs now, the next one starts paused"))


@click.command()
@json_option
@click.pass_obj
def resume(home: Home, as_json: bool) -> None:
    """Take jobs again after a pause, or after a drain that has not ended."""
    told = readings.control(home.control)
    was = told.paused or told.drain is not None
    home.control.unlink(missing_ok=True)
    if as_json:
        print_json({"paused": False, "was_paused": was, "node_runs": node_is_running(home)})
    else:
        click.echo("takes jobs again" if was else "it was not paused")


@click.command()
@click.option("--wait", is_flag=True, help="Return when the node has stopped.")
@json_option
@click.pass_obj
def drain(home: Home, wait: bool, as_json: bool) -> None:
    """Let what runs end, take no more, then stop the node."""
    now = running_status(home)
    if now is None:
        raise LocalError(
            f"no node runs on this home ({home.data_dir}): there is nothing to stop; "
            "'ponyswarm node' starts one"
        )
    _tell(home, Control(drain=now.pid))
    while wait and node_is_running(home):
        time.sleep(0.2)
    if as_json:
        print_json({"draining": not wait, "running": len(now.running), "stopped": wait})
    elif wait:
        click.echo("the node has stopped")
    else:
        click.echo(f"the node stops when its {len(now.running)} runs have ended")


def _tell(home: Home, told: Control) -> None:
    try:
        readings.write_control(home.control, told)
    except OSError as fault:
        raise InfraError(
            f"{home.control} cannot be written ({os.strerror(fault.errno or 0)}): "
            "the node was told nothing. Check who owns that folder, then try again"
        ) from fault
