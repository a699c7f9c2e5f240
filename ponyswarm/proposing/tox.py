"""Hints from tox: an ini, ``[tool.tox]`` of pyproject.toml, or an ini within it. Pure."""

from __future__ import annotations

import configparser
import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ponyswarm.errors import LocalError
from ponyswarm.proposing.hints import (
    Factors,
    Hints,
    Needs,
    Read,
    command_of,
    python_named,
    table_of,
    texts_of,
)


def expanded(text: str) -> list[str]:
    """The names of an envlist: ``py{38,39}-django{42,50}, lint`` and ``py3{9-12}``."""
    names: list[str] = []
    for item in re.findall(r"(?:[^\s,{}]|\{[^}]*\})+", text):
        parts = re.split(r"\{([^}]*)\}", item)
        choices = [[part] if place % 2 == 0 else _choices(part) for place, part in enumerate(parts)]
        names += ["".join(choice) for choice in itertools.product(*choices)]
    return list(dict.fromkeys(names))


def _choices(text: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        span = re.fullmatch(r"\s*(\d+)-(\d+)\s*", part)
        if span and int(span[1]) <= int(span[2]) < 100:
            found += [str(number) for number in range(int(span[1]), int(span[2]) + 1)]
        else:
            found.append(part.strip())
    return found


def from_tox_ini(text: str, read: Read, origin: str = "tox.ini") -> Hints | None:
    """tox.ini, or the ``tox:tox`` section of a setup.cfg; None when there is no envlist."""
    ini = configparser.RawConfigParser(strict=False, comment_prefixes=("#",))
    try:
        ini.read_string(text, origin)
    except configparser.Error as fault:
        why = " ".join(str(fault).split())
        raise LocalError(f"{origin} is no ini file ({why}): mend that line") from fault
    head = next((name for name in ("tox", "tox:tox") if ini.has_section(name)), None)
    if head is None:
        return None

    def option(section: str, *names: str) -> str:
        return next((ini.get(section, n) for n in names if ini.has_option(section, n)), "")

    envs = expanded(option(head, "envlist", "env_list"))
    skipped = option(head, "skipsdist", "no_package").strip().lower() == "true"
    package = option("testenv", "package").strip() == "skip"
    base = _Testenv(
        deps=option("testenv", "deps").splitlines(),
        commands=_joined(option("testenv", "commands")),
        extras=re.split(r"[\s,]+", option("testenv", "extras")),
        groups=re.split(r"[\s,]+", option("testenv", "dependency_groups")),
        env=option("testenv", "setenv", "set_env").splitlines(),
        project=not (skipped or package),
    )
    return _from_tox(envs, base, read, origin)


def from_tox_toml(pyproject: Mapping[str, object], read: Read) -> Hints | None:
    """``[tool.tox]``: native, or an ini in ``legacy_tox_ini``; None when there is none."""
    tox = table_of(pyproject, "tool", "tox")
    if not tox:
        return None
    origin = "pyproject.toml [tool.tox]"
    if isinstance(legacy := tox.get("legacy_tox_ini"), str):
        return from_tox_ini(legacy, read, origin)
    run = table_of(tox, "env_run_base")
    commands = run.get("commands")
    lines = [
        shlex.join(str(word) for word in command if isinstance(word, str))
        for command in (commands if isinstance(commands, list) else [])
        if isinstance(command, list)
    ]
    base = _Testenv(
        deps=texts_of(run.get("deps")),
        commands=lines,
        extras=texts_of(run.get("extras")),
        groups=texts_of(run.get("dependency_groups")),
        env=[f"{name}={value}" for name, value in table_of(run, "set_env").items()],
        project=run.get("package") != "skip" and tox.get("no_package") is not True,
    )
    return _from_tox(texts_of(tox.get("env_list")), base, read, origin)


def _joined(text: str) -> list[str]:
    return re.sub(r"\\\n\s*", " ", text).splitlines()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Testenv:
    deps: list[str]
    commands: list[str]
    extras: list[str]
    groups: list[str]
    env: list[str]
    project: bool


_CONDITION = re.compile(r"\s*([\w.!,{}-]+?)\s*:(?!//)\s+(\S.*)")


def _from_tox(envs: Sequence[str], base: _Testenv, read: Read, origin: str) -> Hints | None:
    needs = Needs(read, origin)
    conditional: dict[str, list[str]] = {}
    for line in base.deps:
        match = _CONDITION.fullmatch(line)
        if match is None:
            needs.line(line)
            continue
        for condition in expanded(match[1]):
            if re.search(r"[!-]", condition) or python_named(condition):
                needs.notes.append(f"{origin}: {line.strip()!r} is left out: add it by hand")
            else:
                conditional.setdefault(condition, []).append(match[2])
    points, rest = _points(envs, set(conditional))
    if rest:
        needs.notes.append(f"{origin}: no tests' environments, left out: {', '.join(rest)}")
    pythons = tuple(dict.fromkeys(python for python, _ in points))
    if not pythons and not base.commands:
        return None
    factors: Factors = {}
    for _, chosen in points:
        for name, (value, token) in chosen.items():
            inner = Needs(read, origin)
            for text in conditional.get(token, ()):
                inner.line(text)
            needs.notes += inner.notes
            factors.setdefault(name, {})[value] = tuple(inner.requirements)
    env, notes = _tox_env(base.env, origin)
    return Hints(
        origin=origin,
        pythons=pythons,
        command=command_of(_unconditional(base.commands)),
        requirements=tuple(needs.requirements),
        extras=tuple(extra for extra in (*base.extras, *needs.extras) if extra),
        groups=tuple(group for group in base.groups if group),
        factors=factors,
        exclude=_missing(pythons, factors, points),
        env=env,
        project=base.project,
        notes=(*needs.notes, *notes),
    )


def _unconditional(commands: Iterable[str]) -> Iterator[str]:
    for line in commands:
        match = _CONDITION.fullmatch(line)
        yield match[2] if match else line


# A point: its Python, and for each factor its value and the word that stood for both.
_Point = tuple[str, dict[str, tuple[str, str]]]


def _points(envs: Iterable[str], conditions: set[str]) -> tuple[list[_Point], list[str]]:
    """The environments as points of a matrix, and the names of those that are none."""
    points: list[_Point] = []
    rest: list[str] = []
    for env in envs:
        words = env.split("-")
        named = [python for word in words if (python := python_named(word))]
        others = [word for word in words if not python_named(word) and word not in ("tests", "py")]
        factors = {}
        for word in others:
            match = re.fullmatch(r"([a-z_]+?)_?(\d[\d.]*|main|master|dev|latest)", word)
            if match is not None:
                factors[match[1]] = (_version(match[2]), word)
        if len(named) != 1 or len(factors) != len(others):
            rest.append(env)
        else:
            points.append((named[0], factors))
    # A matrix has all its factors at every point.
    common = max((tuple(sorted(f)) for _, f in points), key=len, default=())
    kept = [(python, f) for python, f in points if tuple(sorted(f)) == common]
    if common and any(not f for _, f in points):
        rest += [f"those without {', '.join(common)}"]
    return kept, rest


def _version(text: str) -> str:
    return f"{text[0]}.{text[1:]}" if re.fullmatch(r"\d{2,3}", text) else text


def _missing(
    pythons: Sequence[str], factors: Factors, points: Sequence[_Point]
) -> tuple[dict[str, str], ...]:
    """The points of the full matrix that are not wanted, as rules of ``exclude``."""
    if not factors:
        return ()
    wanted = {(python, tuple(sorted((n, v) for n, (v, _) in f.items()))) for python, f in points}
    names = sorted(factors)
    return tuple(
        {"python": python, **dict(zip(names, values, strict=True))}
        for python in pythons
        for values in itertools.product(*(factors[name] for name in names))
        if (python, tuple(zip(names, values, strict=True))) not in wanted
    )


def _tox_env(lines: Iterable[str], origin: str) -> tuple[dict[str, str], list[str]]:
    env: dict[str, str] = {}
    notes: list[str] = []
    for line in lines:
        name, mark, value = (part.strip() for part in line.partition("="))
        value = re.sub(r"\{(toxinidir|tox_root)\}", "/project/src", value)
        if not mark or not re.fullmatch(r"\w+", name):
            if line.strip():
                notes.append(f"{origin}: the variable {line.strip()!r} is left out")
        elif "{" in value:
            notes.append(f"{origin}: the variable {name} is left out: it is computed")
        elif not name.startswith("COVERAGE"):
            env[name] = value
    return env, notes
