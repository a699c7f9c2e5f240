"""When a volunteer's machine takes jobs: pure decisions over the owner's wishes and readings.

``hold`` is asked twice a second by a running node. It says why nothing is taken now, until
when as far as that is known, and whether what runs is given back at once (the owner wants
the machine) or may end (there is only no room for more).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 1440


@dataclass(frozen=True, slots=True)
class Span:
    """Minutes of a day from ``start`` up to ``end``, on these days (0 is Monday).

    One whose end is not after its start goes on past midnight; its days are those it begins on.
    """

    days: frozenset[int]
    start: int
    end: int

    def holds(self, when: datetime) -> bool:
        minute = when.hour * 60 + when.minute
        if self.start < self.end:
            return when.weekday() in self.days and self.start <= minute < self.end
        if minute >= self.start:
            return when.weekday() in self.days
        return minute < self.end and (when.weekday() - 1) % 7 in self.days


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the owner wants. ``load`` is of other programs, a core; ``floor`` in bytes."""

    hours: tuple[Span, ...] = ()
    load: float | None = None
    battery: bool = False
    floor: int = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What a command told this home's node: `pause`, `resume`, `drain`. Times as `Readings`.

    ``drain`` is the process id of the node that is to stop when its runs have ended.
    """

    paused: bool = False
    until: float | None = None
    finish: bool = False
    drain: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """The moment: local time, load a core without our runs, power, free bytes.

    What the machine cannot tell is None, and is no reason to hold.
    """

    when: datetime
    load: float | None = None
    on_battery: bool | None = None
    free: int | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Nothing is taken. ``until`` is when that ends, None when it cannot be known."""

    why: str
    until: datetime | None = None
    gives_back: bool = False


def parse_hours(text: str) -> tuple[Span, ...]:
    """``22:00-07:00``, ``mon-fri 19:00-08:00, sat-sun 00:00-24:00``; raises `ValueError`."""
    return tuple(_span(part.strip().lower()) for part in text.split(",") if part.strip())


_SPAN = re.compile(r"(?:([a-z]{3})(?:-([a-z]{3}))?\s+)?(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)")


def _span(text: str) -> Span:
    match = _SPAN.fullmatch(text)
    if match is None or any(day and day not in DAYS for day in match.group(1, 2)):
        raise ValueError(
            "is no time of day: write '22:00-07:00' or 'mon-fri 19:00-08:00, sat-sun 00:00-24:00'"
        )
    start = int(match[3]) * 60 + int(match[4])
    end = int(match[5]) * 60 + int(match[6])
    if not (start < DAY_MINUTES and end <= DAY_MINUTES and int(match[4]) < 60 > int(match[6])):
        raise ValueError("has an hour that no clock shows: hours go from 00:00 to 24:00")
    first = DAYS.index(match[1]) if match[1] else 0
    last = DAYS.index(match[2] or match[1]) if match[1] else 6
    count = (last - first) % 7 + 1
    return Span(frozenset((first + n) % 7 for n in range(count)), start, end)


def next_hours(hours: tuple[Span, ...], when: datetime) -> datetime | None:
    """The next moment that lies in one of the spans; None when there is none in a week."""
    moment = when.replace(second=0, microsecond=0)
    for day in range(8):
        midnight = (moment + timedelta(days=day)).replace(hour=0, minute=0)
        starts = [
            midnight + timedelta(minutes=span.start)
            for span in hours
            if midnight.weekday() in span.days
        ]
        later = [start for start in starts if start > when]
        if later:
            return min(later)
    return None


def hold(wishes: Wishes, control: Control, now: Readings) -> Hold | None:
    """Why this machine takes no jobs now; None when it does. The owner's word goes first."""
    if control.drain is not None:
        return Hold("it stops when what runs has ended (drain)")
    if control.paused:
        until = None if control.until is None else datetime.fromtimestamp(control.until)
        if until is None or until > now.when:
            return Hold("paused by its owner", until, gives_back=not control.finish)
    if wishes.hours and not any(span.holds(now.when) for span in wishes.hours):
        why = "outside the hours of [volunteer]"
        return Hold(why, next_hours(wishes.hours, now.when), gives_back=True)
    if now.on_battery and not wishes.battery:
        return Hold("the machine runs on battery", gives_back=True)
    if wishes.load is not None and now.load is not None and now.load > wishes.load:
        return Hold(f"other programs keep it busy (load {now.load:.1f} a core)")
    if now.free is not None and now.free < wishes.floor:
        return Hold(f"only {now.free >> 20} MiB of disk are free, less than the floor")
    return None


def say(held: Hold) -> str:
    """A hold in a line for people."""
    end = "" if held.until is None else f", until {held.until:%a %H:%M:%S}"
    return held.why + end
