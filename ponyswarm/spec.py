"""``[tool.ponyswarm]``: what a maintainer writes, checked, as a `Spec`. Pure.

Written for people: a command may be one line of text, a requirement list one string.
Every error names the key, what is wrong with it, and what would be right.
"""

from __future__ import annotations

import difflib
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import PurePosixPath

from ponyswarm.codec import convert
from ponyswarm.errors import LocalError, PeerError
from ponyswarm.matrix import cells, requirement, service_requirement, source_pins
from ponyswarm.messages import RESULTS_VARIABLE, FileTemplate, Install, Spec

_TABLE = "tool.ponyswarm"
_COMMANDS: Mapping[str, list[str]] = {
    "unittest": ["python", "-m", "unittest"],
    "django": ["python", "manage.py", "test"],
}


def from_pyproject(text: str, name: str = "pyproject.toml") -> Spec:
    """The spec in a pyproject.toml; `LocalError` when it has none or a wrong one."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise LocalError(f"{name} is not valid TOML ({fault}): mend that line") from fault
    table = document.get("tool", {}).get("ponyswarm")
    if table is None:
        raise LocalError(
            f"{name} has no [{_TABLE}] table: 'ponyswarm init-project --write' proposes one; it "
            'needs at least python = ["3.12"] and command = "pytest"'
        )
    return from_table(table, name)


def has_table(text: str | None) -> bool:
    """Whether a pyproject.toml's text holds the table at all, right or wrong."""
    try:
        tool = tomllib.loads(text or "").get("tool")
    except tomllib.TOMLDecodeError:
        return False
    return isinstance(tool, dict) and "ponyswarm" in tool


def from_table(table: Mapping[str, object], name: str) -> Spec:
    """The spec a TOML table says. ``name`` is the file, for error texts."""
    _known(table, {field.name for field in fields(Spec)} | {"report"}, name, _TABLE)
    plain: dict[str, object] = dict(table)
    if "report" in plain:
        # The command sees it too, as a variable.
        report, env = plain.pop("report"), plain.get("env", {})
        if isinstance(env, Mapping):
            plain["env"] = {**env, RESULTS_VARIABLE: report}
    for key in ("python", "services"):
        if isinstance(plain.get(key), str):
            plain[key] = [plain[key]]
    if isinstance(plain.get("command"), str):
        plain["command"] = _words(str(plain["command"]), name)
    runner = plain.get("runner")
    if runner in _COMMANDS:
        plain.setdefault("command", _COMMANDS[str(runner)])
    install = plain.get("install")
    if isinstance(install, str | list):
        # The short form: only requirements.
        plain["install"] = {"requirements": install}
    if isinstance(plain.get("install"), Mapping):
        install = dict(_mapping(plain["install"]))
        _known(install, {field.name for field in fields(Install)}, name, f"{_TABLE}.install")
        for key in ("requirements", "extras", "groups", "from_source"):
            if isinstance(install.get(key), str):
                install[key] = [install[key]]
        plain["install"] = install
    if isinstance(plain.get("factors"), Mapping):
        plain["factors"] = {
            factor: _factor(values, name, factor)
            for factor, values in _mapping(plain["factors"]).items()
        }
    files = plain.get("files")
    for rule in files if isinstance(files, list) else ():
        if isinstance(rule, Mapping):
            _known(rule, {field.name for field in fields(FileTemplate)}, name, f"{_TABLE}.files")
    redundancy = plain.get("redundancy", 2)
    if isinstance(redundancy, int) and redundancy > 1:
        plain.setdefault("cross_check", "blind")
    try:
        spec = convert(plain, Spec, "bad-spec")
        cells(spec)
    except PeerError as fault:
        raise LocalError(f"{name}, [{_TABLE}]{_at_key(fault.detail)}") from fault
    for python in spec.python:
        try:
            requirement(python)
        except LocalError as fault:
            raise LocalError(f"{name}, [{_TABLE}] python: {fault}") from fault
    for service in spec.services:
        for part in service.split("+") if service.strip() else ():
            try:
                service_requirement(part)
            except LocalError as fault:
                raise LocalError(f"{name}, [{_TABLE}] services: {fault}") from fault
    try:
        source_pins(spec)
    except LocalError as fault:
        raise LocalError(f"{name}, [{_TABLE}.install] from_source: {fault}") from fault
    if spec.runner == "command" and "command" not in plain:
        raise LocalError(
            f"{name}, [{_TABLE}]: runner = 'command' needs a command: write command = \"…\""
        )
    _check_report(spec, name)
    for rule in spec.exclude:
        _known(rule, {"python", "services", *spec.factors}, name, f"{_TABLE}.exclude")
    return spec


def _at_key(detail: str) -> str:
    """``Expected `array`, got `int` - at `$.python` `` as " python: expected array, got int"."""
    wrong, _, place = detail.replace("`", "").partition(" - at $.")
    return f" {place}: {wrong[:1].lower()}{wrong[1:]}" if place else f": {detail}"


def _check_report(spec: Spec, name: str) -> None:
    if RESULTS_VARIABLE not in spec.env:
        return
    place = f"{name}, [{_TABLE}] report"
    if spec.runner != "command":
        raise LocalError(
            f"{place}: only runner = 'command' reads a report, and {spec.runner} tells its tests "
            "itself: take this key out"
        )
    path = PurePosixPath(spec.report)
    if path.is_absolute() or ".." in path.parts:
        raise LocalError(
            f"{place}: {spec.report!r} leaves the source tree: name a file in it (or a pattern "
            "such as 'reports/*.xml'), or '-' for TAP on the standard output"
        )


def _factor(values: object, name: str, factor: str) -> object:
    if isinstance(values, list):
        # Plain values without requirements, to be used in env and files.
        return {str(value): [] for value in values}
    if not isinstance(values, Mapping):
        raise LocalError(
            f"{name}, [{_TABLE}.factors] {factor}: write a table of values, such as "
            f'{factor} = {{ "1" = ["package~=1.0"], "2" = ["package~=2.0"] }}'
        )
    return {
        str(value): [needs] if isinstance(needs, str) else needs for value, needs in values.items()
    }


def _words(text: str, name: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as fault:
        raise LocalError(
            f"{name}, [{_TABLE}] command: {fault} in {text!r}: quote it as in a shell"
        ) from fault


def _mapping(value: object) -> Mapping[str, object]:
    assert isinstance(value, Mapping)
    return value


def _known(table: Mapping[str, object], names: set[str], file: str, place: str) -> None:
    for key in table:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise LocalError(
                f"{file}, [{place}]: unknown key {key!r}{hint}; "
                f"known are {', '.join(sorted(names))}"
            )
