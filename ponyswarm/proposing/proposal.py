"""A ``[tool.ponyswarm]`` from what a project has: tox, nox, workflows, classifiers. Pure.

Each reader of one kind of file gives `Hints`; `propose` takes each key from the first
that knows it and says from where. Nothing of the project is run: a noxfile is read as a
syntax tree. What cannot be taken over is named in a note, never dropped in silence.
Called by ``cli.init_project``.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import tomlkit
from tomlkit.items import Table

from ponyswarm.errors import LocalError
from ponyswarm.proposing.hints import Hints, Read, table_of, toml_of
from ponyswarm.proposing.metadata import from_metadata
from ponyswarm.proposing.nox import from_noxfile
from ponyswarm.proposing.tox import from_tox_ini, from_tox_toml
from ponyswarm.proposing.workflow import from_workflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The table to be, where each of its keys comes from, and what was left out."""

    table: dict[str, object]
    origins: dict[str, str]
    notes: tuple[str, ...]


# --- putting it together -----------------------------------------------------------------


def propose(read: Read, workflows: Sequence[str] = ()) -> Proposal:
    """A proposal from a project's files; ``workflows`` are the paths of workflow files."""
    found = [hints for hints in _all_hints(read, workflows) if hints is not None]
    table: dict[str, object] = {}
    origins: dict[str, str] = {}

    def take(key: str, value: Callable[[Hints], object]) -> object:
        for hints in found:
            if value(hints):
                origins[key] = hints.origin
                return value(hints)
        return None

    take("python", lambda hints: hints.pythons)
    pythons = next((hints.pythons for hints in found if hints.pythons), ())
    if not pythons:
        pythons, origins["python"] = ("3.12", "3.13"), "nothing says: a guess"
    table["python"] = list(pythons)
    command = take("command", lambda hints: hints.command)
    if not command:
        command, origins["command"] = _guessed_command(read)
    runner = _runner(shlex.split(str(command)))
    if runner != "pytest":
        table["runner"] = runner
        origins["runner"] = origins["command"]
    table["command"] = str(command)
    _take_install(table, origins, take, found, runner)
    factors = take("factors", lambda hints: hints.factors)
    if factors:
        assert isinstance(factors, dict)
        table["factors"] = {
            name: {value: list(needs) for value, needs in values.items()}
            for name, values in factors.items()
        }
        rules = next(hints.exclude for hints in found if hints.origin == origins["factors"])
        known = [rule for rule in rules if rule.get("python", pythons[0]) in pythons]
        if known:
            table["exclude"] = known
            origins["exclude"] = origins["factors"]
    env = take("env", lambda hints: hints.env)
    if env:
        table["env"] = env
    used = set(origins.values())
    notes = [note for hints in found if hints.origin in used for note in hints.notes]
    return Proposal(table=table, origins=origins, notes=tuple(dict.fromkeys(notes)))


def _all_hints(read: Read, workflows: Sequence[str]) -> Iterator[Hints | None]:
    pyproject = toml_of(read("pyproject.toml"))
    yield from_tox_toml(pyproject, read)
    for path in ("tox.ini", "setup.cfg"):
        text = read(path)
        yield from_tox_ini(text, read, path) if text else None
    noxfile = read("noxfile.py")
    yield from_noxfile(noxfile, read) if noxfile else None
    for path in workflows:
        text = read(path)
        yield from_workflow(text, path) if text else None
    yield from_metadata(pyproject, read)


def _take_install(
    table: dict[str, object],
    origins: dict[str, str],
    take: Callable[[str, Callable[[Hints], object]], object],
    found: Sequence[Hints],
    runner: str,
) -> None:
    """Requirements, extras and groups come from one file: together they are its set."""
    take("install", lambda hints: hints.requirements or hints.extras or hints.groups)
    origin = origins.get("install")
    one = next((hints for hints in found if hints.origin == origin), None)
    install: dict[str, object] = {}
    if one is not None:
        for key, values in (
            ("requirements", one.requirements),
            ("extras", one.extras),
            ("groups", one.groups),
        ):
            if values:
                install[key] = list(values)
        if not one.project:
            install["project"] = False
    elif runner == "pytest":
        install["requirements"] = ["pytest"]
        origins["install"] = "its command"
    if set(install) == {"requirements"}:
        table["install"] = install["requirements"]
    elif install:
        table["install"] = install


def _guessed_command(read: Read) -> tuple[str, str]:
    if read("tests/runtests.py") is not None:
        return "python tests/runtests.py", "tests/runtests.py is there"
    if read("manage.py") is not None:
        return "python manage.py test", "manage.py is there"
    return "pytest", "nothing says: a guess"


def _runner(words: Sequence[str]) -> str:
    names = [word.rpartition("/")[2] for word in words]
    if "manage.py" in names or "runtests.py" in names or "django-admin" in names:
        return "django"
    if "pytest" in names or "py.test" in names:
        return "pytest"
    return "unittest" if "unittest" in names else "command"


def as_toml(proposal: Proposal) -> Table:
    """The table with a comment on each key that says where it comes from."""
    table = tomlkit.table()
    later: list[str] = []
    for key, value in proposal.table.items():
        if isinstance(value, dict) and key != "install":
            later.append(key)
            continue
        item = tomlkit.item(value)
        if isinstance(value, list) and (len(str(value)) > 70 or key == "exclude"):
            item = tomlkit.array()
            for one in value:
                inline = tomlkit.inline_table()
                inline.update(one if isinstance(one, dict) else {})
                item.append(inline if isinstance(one, dict) else one)
            item.multiline(True)
        elif isinstance(value, dict):
            item = tomlkit.inline_table()
            item.update(value)
        item.comment(f"from {proposal.origins.get(key, '?')}")
        table.add(key, item)
    for key in later:
        inner = tomlkit.item(proposal.table[key])
        assert isinstance(inner, Table)
        inner.comment(f"from {proposal.origins.get(key, '?')}")
        table.add(key, inner)
    return table


def text_of(proposal: Proposal) -> str:
    """The proposal as it would stand in pyproject.toml."""
    document = tomlkit.document()
    tool = tomlkit.table(is_super_table=True)
    tool.add("ponyswarm", as_toml(proposal))
    document.add("tool", tool)
    return tomlkit.dumps(document)


def added_to(pyproject: str, proposal: Proposal) -> str:
    """A pyproject.toml with the table added, everything else kept as it is."""
    if "ponyswarm" in table_of(toml_of(pyproject), "tool"):
        raise LocalError(
            "pyproject.toml has a [tool.ponyswarm] table already, which stays as it is: edit it, "
            "or take it out to have one proposed"
        )
    gap = "" if not pyproject or pyproject.endswith("\n\n") else "\n"
    if pyproject and not pyproject.endswith("\n"):
        gap = "\n\n"
    return f"{pyproject}{gap}{text_of(proposal)}"
