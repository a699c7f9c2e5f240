"""What a node shows of itself: all that a volunteer asks, at any width, harmlessly."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from ponyswarm.cli import live
from ponyswarm.cli.plain import JsonFormatter, room, size
from ponyswarm.status import IdleLine, NodeStatus, PeerLine, ProjectLine, Room, RunLine

KEY = "12D3KooWBBnZ9ApRy3g74dVsMYmyi95Wk91XBoGEottkWYyUNp4Y"
BUSY = NodeStatus(
    pid=1,
    started=0.0,
    updated=3725.0,
    peer=KEY,
    peers=tuple(PeerLine(peer=KEY, address=f"/ip4/192.0.2.{n}/tcp/7797") for n in range(9)),
    projects=(ProjectLine(project="aa" * 32, name="demo", trusted=True, volunteers=4),),
    running=(
        RunLine(
            job="bb" * 32,
            title="Django 5.2 \x1b[2J\u202eevil",
            cell="3.13 postgresql django=5.2 with-a-rather-long-name",
            step="testing",
            done=1234,
            total=17000,
            seconds=75.0,
        ),
        RunLine(job="b", title="x", cell="3.12", step="building", done=0, total=None, seconds=4),
    ),
    idle=(IdleLine(job="cc" * 32, title="other 1.0", why="no interpreter here fits"),),
    refused={"bad-signature": 3, "unknown-project": 1200},
    entries=12345,
    waiting=7,
    today_runs=12,
    today_tests=4321,
    disk=(Room(name="ledger", used=3 << 20, budget=5 << 30), Room(name="blobs", used=0)),
    reach="others reach this node only through a relay: forward TCP port 7797 to this machine",
    limits="2 runs at once, each with at most 2.0 GiB memory, 2.0 GiB disk, 60 min",
    disk_free=9 << 30,
)


def shown(now: NodeStatus, width: int, **more: object) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, **more)  # type: ignore[arg-type]
    console.print(live.view(now, width))
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_view_says_all_that_a_volunteer_asks_and_never_runs_over(width: int) -> None:
    text = shown(BUSY, width)
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= width
    assert "\x1b" not in text
    assert "\u202e" not in text
    for words in ("9 connected", "12 runs", "queue", "not run", "refused", "1:02:05"):
        assert words in text
    if width >= 80:
        told = " ".join(text.split())
        for words in (
            "bad-signature 3 (its author did not sign it so)",
            "unknown-project 1,200 (of a project that is not kept here)",
            "1,234 of 17,000",
            "3.0 MiB of 5.0 GiB",
            "9.0 GiB free",
            "7 cells",
        ):
            assert words in told


def test_a_command_to_copy_and_the_free_disk_are_never_cut_off() -> None:
    trust = f"its project is not trusted here: 'ponyswarm trust add {'ab' * 32}'"
    full = replace(BUSY, idle=(IdleLine(job="d", title="other 1.0", why=trust),))
    told = "".join(shown(full, 80).split())
    assert "".join(trust.split()) in told
    assert "9.0GiBfree" in told


def test_a_run_of_which_nobody_knows_how_far_it_is_has_no_bar() -> None:
    (building,) = [one for one in shown(BUSY, 200).splitlines() if "building" in one]
    assert "━" not in building


def test_a_wide_screen_has_bars_and_addresses() -> None:
    assert "192.0.2.3" in shown(BUSY, 200)
    assert "and 5 more" in shown(BUSY, 200)
    assert "━" in shown(BUSY, 200)
    assert "192.0.2.3" not in shown(BUSY, 80)


def test_an_idle_node_has_a_view_too() -> None:
    text = shown(NodeStatus(pid=1, started=0, updated=1, peer=KEY), 80)
    assert "0 connected" in text
    assert "0 cells" in text
    assert "refused" not in text


def test_the_view_says_whether_others_reach_the_node_and_why_it_rests() -> None:
    text = " ".join(shown(BUSY, 60).split())
    assert "reach others reach this node only through a relay: forward TCP" in text
    assert "port 7797" in text  # The remedy stands at the sentence's end: it is folded, not cut.
    assert "2 runs at once" in text
    paused = replace(BUSY, hold="paused by its owner", hold_until=1_800_000_000.0)
    assert "resting" in shown(paused, 80)
    assert "paused by its owner, until Fri" in shown(paused, 80)


def test_colours_are_left_out_where_none_are_wanted() -> None:
    assert "\x1b[32m" in shown(BUSY, 80, force_terminal=True, color_system="standard")
    plain = shown(BUSY, 80, force_terminal=True, no_color=True)
    assert "\x1b[32m" not in plain


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes_are_said_shortly(count: int, said: str) -> None:
    assert size(count) == said


def test_what_has_no_budget_says_only_what_it_takes() -> None:
    assert room(Room(name="blobs", used=0)) == "blobs 0 B"


def test_a_log_line_as_json_is_one_line_whatever_a_stranger_wrote() -> None:
    record = logging.LogRecord(
        "ponyswarm", logging.WARNING, "", 0, "heard of %s", ("a\nb\x1b[2J\u202e",), None
    )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    assert json.loads(line) | {"time": ""} == {
        "time": "",
        "level": "warning",
        "logger": "ponyswarm",
        "message": "heard of a\nb\x1b[2J\u202e",
    }
