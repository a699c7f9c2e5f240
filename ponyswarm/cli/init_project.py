"""``ponyswarm init-project``: propose ``[tool.ponyswarm]`` from what a project has."""

from __future__ import annotations

from pathlib import Path

import click

from ponyswarm.cli import json_option, print_json
from ponyswarm.errors import LocalError
from ponyswarm.matrix import cells
from ponyswarm.proposing import proposal
from ponyswarm.spec import from_table

MAX_FILE = 1 << 20


@click.command("init-project")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".")
@click.option("--write", is_flag=True, help="Add it to pyproject.toml; the rest stays as it is.")
@json_option
def init_project(path: Path, write: bool, as_json: bool) -> None:
    """Propose a matrix from tox, nox, workflows or classifiers; none of it is executed."""

    def read(name: str) -> str | None:
        place = path / name
        if not place.is_file() or place.stat().st_size > MAX_FILE:
            return None
        return place.read_text("utf-8", "replace")

    folder = path / ".github" / "workflows"
    workflows = [
        f".github/workflows/{file.name}"
        for file in sorted(folder.glob("*.y*ml") if folder.is_dir() else ())
    ]
    made = proposal.propose(read, workflows)
    spec = from_table(made.table, "the proposal")
    text = proposal.text_of(made)
    if as_json:
        print_json({"table": made.table, "origins": made.origins, "notes": made.notes})
    else:
        click.echo(text, nl=False)
        click.echo(f"# {len(cells(spec))} cells; 'ponyswarm run' runs them here")
    for note in made.notes:
        click.echo(f"note: {note}", err=True)
    if write:
        _write(path / "pyproject.toml", made)
        click.echo(f"added to {path / 'pyproject.toml'}", err=True)


def _write(pyproject: Path, made: proposal.Proposal) -> None:
    try:
        before = pyproject.read_bytes().decode("utf-8") if pyproject.exists() else ""
        pyproject.write_bytes(proposal.added_to(before, made).encode())
    except OSError as fault:
        raise LocalError(
            f"{pyproject} cannot be written: {fault.strerror}; without --write the proposal is "
            "only printed"
        ) from fault
