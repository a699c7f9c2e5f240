"""``ponyswarm trust`` and ``ponyswarm follow``: the lists of projects in ponyswarm.ini."""

from __future__ import annotations

import click

from ponyswarm import config
from ponyswarm.cli import json_option, print_json
from ponyswarm.home import Home

AGAIN = "a running node sees it within seconds"


@click.group()
def trust() -> None:
    """Choose the projects whose jobs may run here.

    A job is other people's code, and a sandbox lowers the risk without ending it: trust
    projects whose maintainers you would let work on this machine.
    """


@click.group()
def follow() -> None:
    """Choose further projects whose ledger to keep.

    Their jobs do not run here; a trusted project is followed as well.
    """


def _project(ctx: click.Context, parameter: click.Parameter, value: str) -> bytes:
    return config.parse_project(value)


def _register(group: click.Group, verb: str, past: str) -> None:
    section = verb

    @group.command(help=f"Begin to {verb} a project.")
    @click.argument("project", metavar="PROJECT_ID", callback=_project)
    @click.option("--note", default="", help="Words for yourself, such as the project's name.")
    @json_option
    @click.pass_obj
    def add(home: Home, project: bytes, note: str, as_json: bool) -> None:
        changed = config.add_project(home.ini, section, project, note)
        if as_json:
            print_json({"project": project.hex(), "changed": changed})
        elif changed:
            click.echo(f"{project.hex()} is {past} now; {AGAIN}")
        else:
            click.echo(f"{project.hex()} is {past} already")

    @group.command(help=f"Cease to {verb} a project.")
    @click.argument("project", metavar="PROJECT_ID", callback=_project)
    @json_option
    @click.pass_obj
    def remove(home: Home, project: bytes, as_json: bool) -> None:
        changed = config.remove_project(home.ini, section, project)
        if as_json:
            print_json({"project": project.hex(), "changed": changed})
        elif changed:
            click.echo(f"{project.hex()} is no longer {past}; {AGAIN}")
        else:
            click.echo(f"{project.hex()} was not {past}")

    @group.command("list", help=f"List the {past} projects.")
    @json_option
    @click.pass_obj
    def list_(home: Home, as_json: bool) -> None:
        found = config.projects(home.ini, section)
        if as_json:
            print_json([{"project": project.hex(), "note": note} for project, note in found])
            return
        for project, note in found:
            click.echo(f"{project.hex()}  {note}".rstrip())
        if not found:
            click.echo(f"no project is {past}: 'ponyswarm {verb} add PROJECT_ID'", err=True)


_register(trust, "trust", "trusted")
_register(follow, "follow", "followed")
