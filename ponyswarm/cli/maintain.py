"""``ponyswarm withdraw`` and ``vouch``: what a maintainer says of a job and of a volunteer."""

from __future__ import annotations

import click

from ponyswarm import keys
from ponyswarm.cli import json_option, print_json
from ponyswarm.cli.opening import now_ms, opened
from ponyswarm.home import Home
from ponyswarm.ledger.queries import Reader
from ponyswarm.messages import Vouch, Withdraw


@click.command()
@click.argument("job")
@click.option("--reason", default="", help="Why, for all to read.")
@json_option
@click.pass_obj
def withdraw(home: Home, job: str, reason: str, as_json: bool) -> None:
    """End JOB (the beginning of its id): it is started no more, and stopped where it runs."""
    with opened(home) as session:
        with Reader(home.ledger) as reader:
            row = reader.find_job(None, job, None)
        said = Withdraw(job=row.id, reason=reason)
        entry = session.publish(said, project=row.project, now=now_ms())
    if as_json:
        print_json({"job": row.id.hex(), "entry": entry.id.hex()})
    else:
        click.echo(f"{row.title} is withdrawn; a running node tells the others")


@click.command()
@click.argument("project")
@click.argument("key")
@click.argument("operator")
@json_option
@click.pass_obj
def vouch(home: Home, project: str, key: str, operator: str, as_json: bool) -> None:
    """Say that KEY is a volunteer you know, run by OPERATOR.

    Keys of one operator count as one voice. Readers may count vouched keys only.
    """
    public = keys.parse_peer_id(key)
    with opened(home) as session:
        with Reader(home.ledger) as reader:
            project_id = reader.find_project(project)
        said = Vouch(key=public, operator=operator)
        entry = session.publish(said, project=project_id, now=now_ms())
    if as_json:
        print_json({"key": key, "operator": operator, "entry": entry.id.hex()})
    else:
        click.echo(f"{key} is known as run by {operator}")
