"""Every place where the program tells a person what went wrong, and what a test provoked.

`SITES` are found in the source: each text as it stands there, its values as ``…``. A test
says what a person reads, in full (`told`, or a row of a table that calls `provoked`), and
proves by the traceback that the text came from there. `claimed` finds what tests say without
running them, so that ``test_every_message_is_provoked`` names the places that none provokes.
"""

from __future__ import annotations

import ast
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import ponyswarm

SOURCE = Path(ponyswarm.__file__).parent
ROOT = SOURCE.parent
TESTS = Path(__file__).parent

# What is said as it stands: its arguments that are for people, by position or name.
OUTER = {
    "LocalError": (0,),
    "InfraError": (0,),
    "UsageError": (0,),
    "BadParameter": (0,),
    "fail": (0,),  # click's own, of a context.
    "Failure": (0,),
    "OtherTransport": (0,),
    "NotHere": (0,),
    "Invalid": (0,),
    "Broken": (1,),
}
# What is said within another text; of these only the ones that a person's own input brings up.
INNER = {
    "ValueError": (0, ("config.py", "limits.py")),
    "PeerError": (1, ("matrix.py", "exec/source.py")),
}
# What is shown, not raised: what is wrong and what would help.
SHOWN = {"Missing": ("why", "remedy"), "Check": ("what", "remedy")}
VALUE = "…"


@dataclass(frozen=True)
class Site:
    """One place: ``kind`` is the class of the message, ``words`` its text."""

    file: str
    function: str
    kind: str
    words: str
    lines: frozenset[int]

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        return f"{self.file} {self.function}: {self.words}"

    @cached_property
    def weight(self) -> int:
        """How much of the text is its own: where several places could have said it, most wins."""
        return len(self.words.replace(VALUE, ""))

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return _pattern(self.words)


def _pattern(words: str) -> re.Pattern[str]:
    """The text as an expression; white space counts once."""
    return re.compile(".*".join(re.escape(part) for part in _plain(words).split(VALUE)))


def _plain(text: str) -> str:
    return " ".join(text.split())


# --- the source -------------------------------------------------------------------------------


class _Reader(ast.NodeVisitor):
    """The places in one file."""

    def __init__(self, file: str) -> None:
        self.file, self.found = file, []
        self._names: list[str] = []
        self._inner: list[ast.AST] = []

    def _inside(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._names.append(node.name)
        self._inner.append(node)
        self.generic_visit(node)
        self._names.pop()
        self._inner.pop()

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _inside

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        kind = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if kind in OUTER and (kind != "Failure" or self.file == "bootstrap.py"):
            texts = [node.args[at] for at in OUTER[kind] if at < len(node.args)]
        elif kind in INNER and self.file in INNER[kind][1]:
            texts = node.args[INNER[kind][0] : INNER[kind][0] + 1]
        elif kind in SHOWN:
            named = {keyword.arg: keyword.value for keyword in node.keywords}
            state = named.get("state")
            if isinstance(state, ast.Name) and state.id == "GOOD":
                return
            texts = [named[name] for name in SHOWN[kind] if name in named]
        else:
            return
        words = " → ".join(map(self._words, texts))
        # Several values on end are one.
        words = re.sub(rf"{VALUE}(\s*{VALUE})*", VALUE, _plain(words))
        place = ".".join(self._names)
        lines = frozenset(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        self.found.append(Site(self.file, place, kind, words, lines))

    def _assigned(self, name: str, line: int) -> list[ast.expr]:
        """What this function gave a name before that line, the latest last."""
        values = [
            node.value
            for node in ast.walk(self._inner[-1] if self._inner else ast.Pass())
            if isinstance(node, ast.Assign)
            and getattr(node.targets[0], "id", None) == name
            and node.value.lineno < line
        ]
        return sorted(values, key=lambda value: value.lineno)

    def _words(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.JoinedStr(values=parts):
                return "".join(map(self._words, parts))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._words(left) + self._words(right)
            case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
                return re.sub(r"{[^{}]*}", VALUE, text)
            case ast.Name(id=name, lineno=line):
                before = self._assigned(name, line)
                return self._words(before[-1]) if before else VALUE
            case _:
                return VALUE


@cache
def sites() -> tuple[Site, ...]:
    found: list[Site] = []
    for path in (ROOT / "bootstrap.py", *sorted(SOURCE.rglob("*.py"))):
        file = path.name if path.parent == ROOT else str(path.relative_to(SOURCE))
        reader = _Reader(file)
        reader.visit(ast.parse(path.read_text("utf-8")))
        found += reader.found
    # A function that says a thing in two branches is one place.
    places: dict[tuple[str, str], list[Site]] = {}
    for site in found:
        places.setdefault((str(site), site.kind), []).append(site)
    return tuple(
        replace(same[0], lines=frozenset().union(*(site.lines for site in same)))
        for same in places.values()
    )


# --- what is said ------------------------------------------------------------------------------


def claims(said: str, at: str = "") -> list[Site]:
    """The places that a text speaks for: the one whose own words it has most of, and those
    whose words stand within it. ``at`` ("FILE FUNCTION: WORDS", or how that begins) is
    where it comes from, for a text that several places could have said."""
    said = _plain(said)
    near = [site for site in sites() if str(site).startswith(at)]
    outer = [
        site
        for site in near
        if site.kind not in INNER and (at or site.weight > 3) and site.pattern.fullmatch(said)
    ]
    most = max((site.weight for site in outer), default=0)
    inner = [
        site
        for site in sites()
        if site.kind in INNER and site.weight > 9 and site.pattern.search(said)
    ]
    return [site for site in outer if site.weight == most] + inner


def origins(fault: BaseException) -> set[Site]:
    """The places that an exception came from, and those that it came about by."""
    found: set[Site] = set()
    seen: set[int] = set()
    waiting: list[BaseException | None] = [fault]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        lines = [
            (frame.filename, line)
            for frame in traceback.extract_tb(one.__traceback__)
            for line in (frame.lineno,)
        ]
        for name, line in lines:
            path = Path(name)
            file = path.name if path.name == "bootstrap.py" else ""
            if path.is_relative_to(SOURCE):
                file = str(path.relative_to(SOURCE))
            found |= {site for site in sites() if site.file == file and line in site.lines}
    return found


def provoked(fault: BaseException, output: str, said: str, at: str = "") -> None:
    """See that a person reads ``said`` ("…" is anything), and that each place it speaks for
    is where it came from."""
    assert _pattern(said).search(_plain(output)), f"wanted: {said}\nread:   {_plain(output)}"
    spoken, came = claims(said, at), origins(fault)
    named = "\n  ".join(map(str, came))
    assert spoken, f"no place says {said!r} in full; it came from\n  {named}"
    for site in spoken:
        assert site in came, f"{site}\ndid not say it, but\n  {named}\nwrite at='FILE FUNCTION: …'"


@contextmanager
def told(said: str, *, at: str = "") -> Iterator[None]:
    """The block ends with an error that says just this; "…" is anything."""
    try:
        yield
    except BaseException as fault:
        provoked(fault, str(fault), said, at)
    else:
        raise AssertionError(f"nothing was wrong, and {said!r} was to be said")


def shown(said: str, *texts: str) -> None:
    """One of these texts, shown and not raised, says just this."""
    assert claims(said), f"no place says {said!r}"
    found = any(_pattern(said).fullmatch(_plain(text)) for text in texts)
    assert found, f"wanted: {said}\nshown:  {texts}"


@cache
def claimed() -> frozenset[Site]:
    """What the tests' own text says is provoked: each literal argument of `told`, `shown` and
    of a table's `row`."""
    found: set[Site] = set()
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id in ("told", "shown", "row"):
                texts = [
                    argument.value
                    for argument in node.args
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                ]
                at = next(
                    (
                        keyword.value.value
                        for keyword in node.keywords
                        if keyword.arg == "at" and isinstance(keyword.value, ast.Constant)
                    ),
                    "",
                )
                # Of a row, the text that is said comes last.
                said = texts[-1] if node.func.id == "row" else texts[0] if texts else ""
                found.update(claims(said, at) if said else ())
    return frozenset(found)
