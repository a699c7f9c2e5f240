"""Hints from a workflow file: the first job with a matrix of Pythons. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

import yaml

from ponyswarm.errors import LocalError
from ponyswarm.proposing.hints import (
    Factors,
    Hints,
    command_of,
    python_named,
    pythons_of,
    table_of,
    texts_of,
)

_MATRIX = re.compile(r"\$\{\{\s*matrix\.([\w-]+)\s*\}\}")


def from_workflow(text: str, origin: str) -> Hints | None:
    """The first job of a workflow with a matrix of Pythons; None when there is none."""
    try:
        # Every scalar stays text: 3.10 is not the number 3.1.
        document = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - makes plain text only
    except (yaml.YAMLError, RecursionError) as fault:
        mark = getattr(fault, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        why = f"{getattr(fault, 'problem', None) or 'it cannot be read'}{line}"
        raise LocalError(f"{origin} is not valid YAML ({why}): mend that file") from fault
    for name, job in table_of(document, "jobs").items():
        hints = _job(table_of(job), f"{origin}, job {name}")
        if hints is not None:
            return hints
    return None


def _job(job: dict[str, object], origin: str) -> Hints | None:
    matrix = table_of(job, "strategy", "matrix")
    key = next((k for k in matrix if k in ("python", "python-version", "python_version", "py")), "")
    versions = texts_of(matrix.get(key))
    include = matrix.get("include")
    rows = [row for row in include if isinstance(row, dict)] if isinstance(include, list) else []
    if not key:
        key = next((k for row in rows for k in row if k.startswith("python")), "")
    versions += [str(row[key]) for row in rows if key in row]
    pythons = pythons_of(versions)
    if not pythons:
        return None
    steps = job.get("steps")
    lines = [
        line
        for step in (steps if isinstance(steps, list) else [])
        if isinstance(step, dict) and isinstance(step.get("run"), str)
        for line in step["run"].replace("\\\n", " ").splitlines()
    ]
    factors: Factors = {}
    for line in lines:
        installs = re.search(r"(?:pip3?|uv pip)\s+install\s+(.*)", line)
        for word in shlex.split(installs[1], comments=True) if installs and _sound(line) else ():
            used = [name for name in _MATRIX.findall(word) if name != key]
            if len(used) == 1 and texts_of(matrix.get(used[0])):
                factor = _factor(used[0])
                for value in texts_of(matrix.get(used[0])):
                    text = _MATRIX.sub(value, word)
                    known = factors.setdefault(factor, {}).get(value, ())
                    factors[factor][value] = (*known, text)
    exclude = tuple(rule for rule in _excluded(matrix, key) if set(rule) <= {"python", *factors})
    test_lines = [line for line in lines if "${{" not in line]
    return Hints(
        origin=origin,
        pythons=pythons,
        command=command_of(test_lines),
        factors=factors,
        exclude=exclude,
    )


def _excluded(matrix: Mapping[str, object], key: str) -> list[dict[str, str]]:
    """The rules of ``exclude``, but for those that are about a system alone."""
    found: list[dict[str, str]] = []
    rules = matrix.get("exclude")
    for rule in rules if isinstance(rules, list) else []:
        if isinstance(rule, dict) and not {"os", "runs-on", "platform"} & set(rule):
            found.append(
                {
                    "python" if k == key else _factor(str(k)): python_named(v) if k == key else v
                    for k, v in rule.items()
                    if isinstance(v, str)
                }
            )
    return found


def _factor(name: str) -> str:
    """``django-version`` is the factor ``django``."""
    return re.sub(r"[_-]?versions?$", "", name.lower()) or name


def _sound(line: str) -> bool:
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return False
    return True
