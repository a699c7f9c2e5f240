"""The reporter's outer end takes nothing on trust."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponyswarm import codec
from ponyswarm.exec import report as limits
from ponyswarm.exec.report import MAX_ID, MAX_MESSAGE, Report


def reported(*events: dict[str, object], cut: int = 7) -> Report:
    """A report of these events, arriving in small pieces."""
    report = Report(lambda: 0.0)
    data = b"".join(json.dumps({"s": "1", **event}).encode() + b"\n" for event in events)
    for start in range(0, len(data), cut):
        report.feed(data[start : start + cut])
    return report


def end(name: str, status: str = "passed", **more: object) -> dict[str, object]:
    return {"e": "end", "id": name, "st": status, **more}


BEGIN: dict[str, object] = {"e": "begin"}
FINISH: dict[str, object] = {"e": "finish", "code": 0}


def test_a_whole_session_is_complete() -> None:
    report = reported(BEGIN, {"e": "start", "id": "a"}, end("a", t=1.5), FINISH)
    assert [(test.id, test.status, test.seconds) for test in report.tests] == [("a", "passed", 1.5)]
    assert report.complete
    assert report.culprit == ""


def test_a_start_without_an_end_is_the_culprit() -> None:
    report = reported(BEGIN, {"e": "start", "id": "a"}, end("a"), {"e": "start", "id": "b"})
    assert report.culprit == "b"
    assert not report.complete


def test_ids_that_come_twice_are_numbered() -> None:
    report = reported(BEGIN, end("a"), end("a"), end("a"), FINISH)
    assert [test.id for test in report.tests] == ["a", "a#2", "a#3"]


def test_addresses_are_normalised_and_nothing_else() -> None:
    report = reported(BEGIN, end("f[<a at 0x7f12ab>]"), end("f[0x7f12ab-/tmp/x]"))
    assert [test.id for test in report.tests] == ["f[0x7f12ab-/tmp/x]", "f[<a at 0x…>]"]


def test_ids_and_messages_are_bounded() -> None:
    report = reported(BEGIN, end("x" * 900, m="y" * 2500), end("a\nb\x00\ud800"))
    assert {len(test.id) for test in report.tests} == {MAX_ID, 5}
    assert max(len(test.message) for test in report.tests) == MAX_MESSAGE


def test_a_session_inside_another_is_not_heard() -> None:
    report = reported(
        BEGIN, {"e": "begin", "s": "2"}, {**end("x"), "s": "2"}, {**FINISH, "s": "2"}, end("a")
    )
    assert [test.id for test in report.tests] == ["a"]
    assert not report.complete


def test_sessions_one_after_the_other_add_up() -> None:
    second = [{**event, "s": "2"} for event in (BEGIN, end("a"), FINISH)]
    report = reported(BEGIN, end("a"), FINISH, *second)
    assert [test.id for test in report.tests] == ["a", "a#2"]
    assert report.complete


def test_events_before_a_session_are_not_heard() -> None:
    assert reported(end("a")).tests == ()


def test_unknown_statuses_and_absurd_times_are_not_taken() -> None:
    report = reported(BEGIN, end("a", "splendid"), end("b", t=float("inf")), end("c", t=-1))
    assert [(test.id, test.seconds) for test in report.tests] == [("b", 0.0), ("c", 0.0)]


def test_what_is_kept_of_a_long_suite_can_always_be_read_again() -> None:
    most = limits.MAX_TESTS * 40 + limits.MAX_IDS + limits.MAX_MESSAGES
    assert most < codec.MAX_BLOB_EXPANDED


def test_messages_that_are_too_many_are_left_out_and_ids_that_are_too_long_end_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_MESSAGES", 10)
    monkeypatch.setattr(limits, "MAX_IDS", 20)
    told = [end(f"test{n}", "failed", m="\u00e9" * 3) for n in range(4)]
    report = reported(BEGIN, *told)
    assert [test.message for test in report.tests] == ["\u00e9" * 3, "", "", ""]
    assert report.overflow == ""
    report = reported(BEGIN, *told, end("one more"), end("test5"))
    assert len(report.tests) == 4
    assert "ids" in report.overflow


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes_are_survived(pieces: list[bytes]) -> None:
    report = Report(lambda: 0.0)
    for piece in pieces:
        report.feed(piece)
    assert report.tests == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


KEYS = st.sampled_from(["e", "s", "id", "st", "t", "m", "n", "code", "free", "size"])
WORDS = st.sampled_from(["begin", "start", "end", "finish", "collected", "space", "1", "passed"])


@given(st.lists(st.dictionaries(KEYS, JSON | WORDS), max_size=30))
def test_any_events_are_survived(events: list[dict[str, object]]) -> None:
    report = Report(lambda: 0.0)
    for event in events:
        report.feed(json.dumps(event).encode() + b"\n")
    assert all(len(test.id) <= MAX_ID for test in report.tests)
