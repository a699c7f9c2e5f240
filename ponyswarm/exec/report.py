"""The reporter's other end: reads a job's events outside the sandbox, trusting none of them.

Lines, ids, messages and counts are bounded; whatever does not parse is dropped and
counted. The first session open has the word until it finishes. A test that started
and did not end is the culprit of what broke the run. Only ``" at 0x…"`` is normalised:
broader patterns damaged real ids. Called by `executor`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable

from ponyswarm.exec.outcome import TestOutcome
from ponyswarm.messages import Status

MAX_LINE = 4096
MAX_ID = 500
MAX_MESSAGE = 1500
MAX_TESTS = 200_000
MAX_BYTES = 512 << 20
# Bytes of all ids, and of all messages: a list of tests is read up to 64 MiB
# (`codec.MAX_BLOB_EXPANDED`), so what is longer could be written and never shown.
MAX_IDS, MAX_MESSAGES = 32 << 20, 16 << 20
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class Report:
    """What the events say so far. ``heard`` is when the last sound one came."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._rest = b""
        self._bytes = 0
        self._session: str | None = None
        self._seen: Counter[str] = Counter()
        self._open: dict[str, int] = {}
        self._tests: list[TestOutcome] = []
        self._ids = 0
        self._messages = 0
        self.heard = now()
        self.entered = False
        self.began = 0
        self.finished = 0
        self.status: int | None = None
        self.collected = 0
        self.nonsense = 0
        self.full = False
        self.overflow = ""

    @property
    def tests(self) -> tuple[TestOutcome, ...]:
        return tuple(sorted(self._tests, key=lambda test: test.id))

    @property
    def done(self) -> int:
        return len(self._tests)

    @property
    def culprit(self) -> str:
        """The test that started first of those that did not end."""
        return next(iter(self._open), "")

    @property
    def complete(self) -> bool:
        return self.began > 0 and self._session is None

    def feed(self, data: bytes) -> None:
        self._bytes += len(data)
        if self.overflow:
            return
        if self._bytes > MAX_BYTES:
            self.overflow = "the reporter's events never end"
            return
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()[: MAX_LINE + 1]
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        if len(line) > MAX_LINE:
            self.nonsense += 1
            return
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            self.nonsense += 1
            return
        if isinstance(event, dict):
            self._event(event)

    def _event(self, event: dict[str, object]) -> None:
        kind = event.get("e")
        self.heard = self._now()
        if kind == "entered":
            self.entered = True
            return
        if kind == "space":
            free, size = event.get("free"), event.get("size")
            if isinstance(free, int) and isinstance(size, int) and size > 0:
                self.full = self.full or free * 200 < size
            return
        session = event.get("s")
        if not isinstance(session, str) or len(session) > 100:
            self.nonsense += 1
            return
        if kind == "begin" and self._session is None:
            self._session = session
            self.began += 1
        if session != self._session:
            return  # A run nested in a test, or one that has finished.
        name = event.get("id")
        count = event.get("n")
        if kind == "collected" and isinstance(count, int) and 0 <= count <= MAX_TESTS:
            self.collected += count
        elif kind == "start" and isinstance(name, str):
            if len(self._open) < MAX_TESTS:
                name = _bounded(name)
                self._open[name] = self._open.get(name, 0) + 1
        elif kind == "end" and isinstance(name, str):
            self._end(_bounded(name), event)
        elif kind == "finish":
            self._session = None
            self.finished += 1
            code = event.get("code")
            self.status = code if isinstance(code, int) else None

    def _end(self, name: str, event: dict[str, object]) -> None:
        try:
            status = Status(str(event.get("st")))
        except ValueError:
            self.nonsense += 1
            return
        if len(self._tests) >= MAX_TESTS:
            self.overflow = f"more than {MAX_TESTS} tests"
            return
        self._ids += len(name.encode())
        if self._ids > MAX_IDS:
            self.overflow = f"the tests' ids are longer than {MAX_IDS >> 20} MiB in all"
            return
        left = self._open.pop(name, 0) - 1
        if left > 0:
            self._open[name] = left
        self._seen[name] += 1
        suffix = f"#{self._seen[name]}" if self._seen[name] > 1 else ""
        seconds, message = event.get("t"), event.get("m")
        sound = isinstance(seconds, int | float) and math.isfinite(seconds) and 0 <= seconds < 1e7
        text = _clean(message)[:MAX_MESSAGE] if isinstance(message, str) else ""
        self._messages += len(text.encode())
        self._tests.append(
            TestOutcome(
                id=name[: MAX_ID - len(suffix)] + suffix,
                status=status,
                seconds=float(seconds) if sound else 0.0,  # type: ignore[arg-type]
                message=text if self._messages <= MAX_MESSAGES else "",
            )
        )


def _bounded(name: str) -> str:
    return _UNPRINTABLE.sub("\ufffd", _ADDRESS.sub(" at 0x…", name))[:MAX_ID] or "?"


def _clean(message: str) -> str:
    return "".join(c if c in "\n\t" else _UNPRINTABLE.sub("\ufffd", c) for c in message)
