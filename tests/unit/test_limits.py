"""When a machine takes jobs: hours to the minute, battery, load, disk, pauses and drains."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponyswarm import readings
from ponyswarm.limits import (
    Control,
    Hold,
    Readings,
    Wishes,
    hold,
    next_hours,
    parse_hours,
    say,
)

# 4 January 2027 is a Monday.
MONDAY = datetime(2027, 1, 4)
NOBODY = Control()


def at(text: str, day: int = 0) -> datetime:
    hour, minute, second = (int(part) for part in (text + ":00").split(":")[:3])
    return MONDAY.replace(day=4 + day, hour=hour, minute=minute, second=second)


def moment(when: datetime = MONDAY, **facts: object) -> Readings:
    return Readings(when=when, **facts)


@pytest.mark.parametrize(
    ("hours", "when", "day", "holds"),
    [
        ("22:00-07:00", "21:59:59", 0, False),
        ("22:00-07:00", "22:00:00", 0, True),
        ("22:00-07:00", "06:59:59", 0, True),
        ("22:00-07:00", "07:00:00", 0, False),
        ("09:00-17:30", "17:29:59", 2, True),
        ("09:00-17:30", "17:30:00", 2, False),
        ("mon-fri 19:00-08:00", "03:00", 5, True),  # Friday night, that is Saturday.
        ("mon-fri 19:00-08:00", "03:00", 0, False),  # Sunday night.
        ("mon-fri 19:00-08:00, sat-sun 00:00-24:00", "12:00", 6, True),
        ("sat-mon 10:00-11:00", "10:30", 0, True),
        ("sat-mon 10:00-11:00", "10:30", 1, False),
        ("sun 00:00-24:00", "23:59:59", 6, True),
        ("00:00-00:00", "12:00", 3, True),
    ],
)
def test_hours_hold_to_the_second(hours, when, day, holds):
    wishes = Wishes(hours=parse_hours(hours))
    held = hold(wishes, NOBODY, moment(at(when, day)))
    assert (held is None) == holds
    if held is not None:
        assert held.gives_back
        assert held.until is not None
        assert hold(wishes, NOBODY, moment(held.until)) is None


def test_a_hold_says_when_it_ends():
    held = hold(Wishes(hours=parse_hours("mon 08:00-09:00")), NOBODY, moment(at("09:00")))
    assert held is not None
    assert held.until == at("08:00", 7)
    assert "until Mon 08:00:00" in say(held)


@given(
    st.lists(
        st.builds(
            lambda d, a, b: f"{d} {a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}",
            st.sampled_from(["mon", "tue-thu", "fri-mon", "sun"]),
            st.integers(0, 1439),
            st.integers(0, 1440),
        ),
        min_size=1,
        max_size=3,
    ),
    st.datetimes(datetime(2027, 1, 1), datetime(2027, 12, 1)),
)
def test_the_next_hours_begin_when_a_hold_ends_and_not_sooner(parts, when):
    spans = parse_hours(", ".join(parts))
    after = next_hours(spans, when)
    assert after is not None
    assert after > when
    assert any(span.holds(after) for span in spans)


@pytest.mark.parametrize(
    "text",
    ["22-07", "22:00", "25:00-07:00", "10:60-11:00", "funday 10:00-11:00", "mon- 10:00-11:00"],
)
def test_what_is_no_time_of_day_is_refused(text):
    with pytest.raises(ValueError, match=r"no time of day|no clock shows"):
        parse_hours(text)


def test_battery_gives_back_unless_the_owner_allows_it():
    held = hold(Wishes(), NOBODY, moment(on_battery=True))
    assert held == Hold("the machine runs on battery", gives_back=True)
    assert hold(Wishes(battery=True), NOBODY, moment(on_battery=True)) is None
    assert hold(Wishes(), NOBODY, moment(on_battery=None)) is None


def test_load_and_disk_take_no_more_and_let_what_runs_end():
    for wishes, now in (
        (Wishes(load=0.5), moment(load=0.6)),
        (Wishes(floor=2 << 30), moment(free=(2 << 30) - 1)),
    ):
        held = hold(wishes, NOBODY, now)
        assert held is not None
        assert not held.gives_back
    assert hold(Wishes(load=0.5), NOBODY, moment(load=0.5, free=1 << 30)) is None


def test_a_pause_ends_to_the_second_and_a_drain_does_not():
    until = at("10:00:05").timestamp()
    pause = Control(paused=True, until=until)
    assert hold(Wishes(), pause, moment(at("10:00:04"))) == Hold(
        "paused by its owner", at("10:00:05"), gives_back=True
    )
    assert hold(Wishes(), pause, moment(at("10:00:05"))) is None
    finish = hold(Wishes(), Control(paused=True, finish=True), moment())
    assert finish is not None
    assert not finish.gives_back
    drained = hold(Wishes(), Control(drain=7), moment())
    assert drained is not None
    assert "drain" in drained.why


def test_readings_are_read_from_this_machine(tmp_path):
    now = readings.read(tmp_path, own_runs=10_000)
    assert now.load == 0
    assert now.free is not None
    assert now.free > 0
    assert readings.read(Path("/nowhere"), own_runs=0).free is None


def test_what_a_command_said_is_found_again_and_rubbish_is_nothing(tmp_path):
    path = tmp_path / "state" / "control.json"
    assert readings.control(path) == Control()
    told = Control(paused=True, until=5.0)
    readings.write_control(path, told)
    assert readings.control(path) == told
    path.write_bytes(b'{"paused": 7')
    assert readings.control(path) == Control()
