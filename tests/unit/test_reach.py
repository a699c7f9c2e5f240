"""What calls back add up to: whether others can reach a node."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponyswarm.errors import PeerError
from ponyswarm.p2p import reach
from ponyswarm.p2p.reach import Answer, Question, Reach, Report, judge

NOW = 10_000.0


def reports(*said):
    return [
        Report(bytes([n]) * 32, where, arrived, NOW - 10 + n)
        for n, (where, arrived) in enumerate(said)
    ]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([], Reach.UNKNOWN),
        ([("a", True)], Reach.OPEN),
        ([("a", False)], Reach.UNKNOWN),
        ([("a", False), ("a", False)], Reach.CLOSED),
        ([("a", False), ("b", False)], Reach.CLOSED),
        ([("a", False), ("b", True)], Reach.OPEN),
        ([("a", False), ("b", False), ("c", True)], Reach.CLOSED),
        ([("a", False), ("a", False), ("a", True)], Reach.OPEN),
        ([("a", True), ("a", False), ("a", False)], Reach.CLOSED),
    ],
)
def test_the_latest_voice_of_each_range_counts_once(said, expected):
    assert judge(reports(*said), NOW) is expected


def test_one_range_full_of_liars_does_not_outvote_two_honest_ones():
    said = [("liars", False)] * 50 + [("a", True), ("b", True)]
    assert judge(reports(*said), NOW) is Reach.OPEN


def test_old_reports_say_nothing():
    assert judge(reports(("a", True)), NOW + reach.GOOD_FOR + 20) is Reach.UNKNOWN


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=20))
def test_a_node_is_never_open_without_an_arrival_nor_closed_without_a_failure(said):
    found = judge(reports(*said), NOW)
    assert found is not Reach.OPEN or any(arrived for _, arrived in said)
    assert found is not Reach.CLOSED or not all(arrived for _, arrived in said)


@given(st.binary(max_size=100))
def test_garbage_is_refused_and_nothing_else_is_raised(data):
    for decode in (reach.decode_question, reach.decode_answer):
        try:
            decode(data)
        except PeerError:
            continue


@pytest.mark.parametrize("ports", [(0,), (65536,), (1, 2, 3)])
def test_ports_have_bounds(ports):
    with pytest.raises(PeerError):
        reach.decode_question(reach.encode(Question(ports=ports)))


def test_messages_come_out_as_they_went_in():
    question, answer = Question(ports=(4001,)), Answer(seen="/ip4/20.1.2.3/tcp/9", tried=(4001,))
    assert reach.decode_question(reach.encode(question)) == question
    assert reach.decode_answer(reach.encode(answer)) == answer


@pytest.mark.parametrize("state", list(Reach))
@pytest.mark.parametrize("relays", [0, 1, 2])
def test_every_state_is_a_sentence_and_a_closed_one_says_what_to_do(state, relays):
    text = reach.words(state, asked=1, relays=relays, carrying=False, mapped=False)
    assert len(text) > 20
    if state is Reach.CLOSED:
        assert "forward" in text
