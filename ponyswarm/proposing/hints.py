"""What one file says of a project's tests, and the pieces that all readers share. Pure."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from packaging.requirements import InvalidRequirement, Requirement

from ponyswarm.errors import LocalError
from ponyswarm.matrix import requirement

# The text of a file of the project by its path, None where there is none.
Read = Callable[[str], str | None]
Factors = dict[str, dict[str, tuple[str, ...]]]

_TEST_WORDS = ("pytest", "py.test", "unittest", "manage.py", "runtests.py", "django-admin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What one file says. Empty is "does not say"."""

    origin: str
    pythons: tuple[str, ...] = ()
    command: str = ""
    requirements: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    factors: Factors = field(default_factory=dict)
    exclude: tuple[dict[str, str], ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    project: bool = True
    notes: tuple[str, ...] = ()


def python_named(name: str) -> str:
    """``py312``, ``3.12-dev``, ``pypy-3.10``, ``py313t`` as a matrix names it; "" if it is none."""
    name = name.strip().lower().removesuffix("-dev")
    match = re.fullmatch(r"(py|pypy|python|cpython)?-?(\d)\.?(\d{1,2})?(t?)", name)
    if match is None or (match[3] is None and match[1] != "pypy"):
        return ""
    version = match[2] + (f".{match[3]}" if match[3] else "")
    python = ("pypy" if match[1] == "pypy" else "") + version + match[4]
    try:
        requirement(python)
    except LocalError:
        return ""
    return python


def pythons_of(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(python for name in names if (python := python_named(name))))


@dataclass(slots=True)
class Needs:
    """Requirements as they are found, one argument or line after the other."""

    read: Read
    origin: str
    requirements: list[str] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def line(self, text: str, depth: int = 0) -> None:
        """A line of a requirements file or of ``deps``."""
        text = re.sub(r"(^|\s)#.*", "", text).strip()
        match = re.match(r"(?:-r|--requirement)[ =]?\s*(\S+)", text)
        if match:
            self.file(match[1], depth)
        elif text.startswith(("-e", "--editable")):
            self.local(text.split(maxsplit=1)[-1])
        elif text.startswith("-"):
            self.notes.append(f"{self.origin}: the option {text!r} is left out")
        elif text.startswith("."):
            self.local(text)
        elif text:
            self.named(text)

    def file(self, path: str, depth: int = 0) -> None:
        path = re.sub(r"^(\{toxinidir\}|\{tox_root\}|\.)/", "", path)
        text = self.read(path) if depth < 5 and ".." not in path else None
        if text is None:
            self.notes.append(f"{self.origin}: the requirements file {path} cannot be read")
            return
        folder = path.rpartition("/")[0]
        for line in text.splitlines():
            inner = re.match(r"\s*(?:-r|--requirement)[ =]?\s*(\S+)", line)
            if inner and folder:
                self.file(f"{folder}/{inner[1]}", depth + 1)
            else:
                self.line(line, depth + 1)

    def local(self, text: str) -> None:
        match = re.search(r"\[([^\]]*)\]", text)
        for extra in match[1].split(",") if match else ():
            _add(self.extras, extra.strip())

    def named(self, text: str) -> None:
        try:
            found = Requirement(text)
        except InvalidRequirement:
            self.notes.append(f"{self.origin}: {text!r} is left out, it is no requirement by name")
            return
        if found.url:
            self.notes.append(f"{self.origin}: {text!r} is left out, only the index can be pinned")
        else:
            _add(self.requirements, text)

    def arguments(self, words: Sequence[str]) -> None:
        """What follows ``pip install``."""
        rest = iter(words)
        for word in rest:
            if word in ("-r", "--requirement"):
                self.file(next(rest, ""))
            elif word == "--group":
                _add(self.groups, next(rest, "").rpartition(":")[2])
            elif word.startswith("--group="):
                _add(self.groups, word.partition("=")[2])
            elif word in ("-e", "--editable"):
                self.local(next(rest, ""))
            elif word in ("-c", "--constraint", "-i", "--index-url", "--extra-index-url"):
                self.notes.append(f"{self.origin}: {word} {next(rest, '')} is left out")
            elif not word.startswith("-"):
                self.line(word)


def _add(values: list[str], value: str) -> None:
    if value and value not in values:
        values.append(value)


def command_of(lines: Iterable[str]) -> str:
    """The first of these command lines that runs tests, without coverage and placeholders."""
    for line in lines:
        line = re.sub(r"\{posargs:([^{}]*)\}", r"\1", line)
        line = re.sub(r"\{(posargs|env:PYTEST_ADDOPTS:?[^}]*)\}", "", line)
        line = re.sub(r"\{(toxinidir|tox_root)\}/?", "", line)
        line = line.replace("{envpython}", "python").lstrip("-! ")
        try:
            words = shlex.split(line)
        except ValueError:
            continue
        words = _without_coverage([word for word in words if not re.search(r"\{[^}]*\}", word)])
        names = {word.rpartition("/")[2] for word in words}
        if names & {"manage.py", "django-admin"} and "test" not in words:
            continue
        if names & set(_TEST_WORDS):
            return shlex.join(words)
    return ""


def _without_coverage(words: list[str]) -> list[str]:
    """``coverage run -m pytest`` is ``python -m pytest``: nobody collects coverage here."""
    if "coverage" in words[1:] and words[0] == "python":
        words = words[words.index("coverage") :]
    if words[:2] == ["coverage", "run"]:
        rest = words[2:]
        while rest and rest[0].startswith("-") and rest[0] != "-m":
            rest = rest[1:]
        words = ["python", *rest]
    words = [word for word in words if not re.match(r"--(no-)?cov(-\w+)?(=|$)", word)]
    return ["pytest", *words[3:]] if words[:3] == ["python", "-m", "pytest"] else words


def toml_of(text: str | None) -> dict[str, object]:
    try:
        return tomllib.loads(text or "")
    except tomllib.TOMLDecodeError as fault:
        raise LocalError(f"pyproject.toml is not valid TOML ({fault}): mend that line") from fault


def table_of(value: object, *names: str) -> dict[str, object]:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def texts_of(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
