"""Records of peers: signed by whom they tell of, handed on as they came."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponyswarm.codec import pack
from ponyswarm.errors import PeerError
from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.p2p import peers
from ponyswarm.p2p.peers import Answer, Question, Record

NOW = 1_800_000_000_000
ALICE, BOB = SecretKey(b"a" * 32), SecretKey(b"b" * 32)
PROJECT = b"p" * 32


def record(key=ALICE, time=NOW, projects=(), **changes):
    address = f"/ip4/20.1.2.3/tcp/4001/p2p/{peer_id(key.public)}"
    values = {"peer": key.public, "time": time, "addresses": (address,), "projects": projects}
    return Record(**{**values, **changes})


def test_a_record_comes_out_as_it_went_in():
    signed = peers.sign(record(projects=(PROJECT,)), ALICE)
    assert peers.read(signed.raw, NOW) == signed


def test_nobody_speaks_for_another():
    forged = peers.sign(record(ALICE), BOB)
    with pytest.raises(PeerError, match="signed"):
        peers.read(forged.raw, NOW)


@given(st.data())
def test_no_changed_byte_is_believed(data):
    raw = bytearray(peers.sign(record(), ALICE).raw)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PeerError):
        peers.read(bytes(raw), NOW)


@pytest.mark.parametrize("time", [NOW - peers.MAX_AGE_MS - 1, NOW + peers.MAX_AHEAD_MS + 1])
def test_records_of_other_days_are_not_taken(time):
    with pytest.raises(PeerError) as caught:
        peers.read(peers.sign(record(time=time), ALICE).raw, NOW)
    assert caught.value.reason == "stale-record"


@pytest.mark.parametrize(
    "changes",
    [
        {"peer": b"short"},
        {"addresses": ("x" * 401,)},
        {"addresses": tuple(str(n) for n in range(9))},
        {"projects": (b"short",)},
        {"projects": tuple(bytes([n]) * 32 for n in range(65))},
    ],
)
def test_records_have_bounds(changes):
    with pytest.raises(PeerError):
        peers.read(peers.sign(record(**changes), ALICE).raw, NOW)


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else_is_raised(data):
    for read in (peers.decode_question, peers.decode_answer, lambda raw: peers.read(raw, NOW)):
        try:
            read(data)
        except PeerError:
            continue


def test_later_versions_may_add_fields():
    later = pack({"own": b"", "projects": [], "wish": 3})
    assert peers.decode_question(later) == Question()
    assert peers.decode_answer(peers.encode(Answer(peers=(b"x",)))).peers == (b"x",)


def test_the_biggest_answer_fits():
    most = Answer(own=bytes(peers.MAX_RECORD), peers=(bytes(peers.MAX_RECORD),) * peers.MAX_PEERS)
    assert len(peers.encode(most)) <= peers.MAX_ANSWER


def signed(number, projects=()):
    key = SecretKey(number.to_bytes(32, "big"))
    return peers.sign(record(key, projects=projects), key)


def test_peers_of_the_asked_project_come_first():
    ours = [(signed(n, (PROJECT,)), f"r{n}") for n in range(1, 6)]
    others = [(signed(n), f"r{n}") for n in range(10, 60)]
    told = peers.select([*others, *ours], Question(projects=(PROJECT,)), BOB.public, Random(1))
    assert {one.raw for one in told[:5]} == {one.raw for one, _ in ours}
    assert len(told) == peers.MAX_PEERS


def test_an_answer_names_few_of_one_range_and_never_the_asker():
    crowd = [(signed(n), "66.66.0.0/16") for n in range(1, 50)]
    asker = crowd[0][0].record.peer
    told = peers.select(crowd, Question(), asker, Random(2))
    assert len(told) == peers.PER_RANGE
    assert asker not in {one.record.peer for one in told}


def test_who_has_no_address_is_not_told_of():
    hidden = peers.sign(record(addresses=()), ALICE)
    assert peers.select([(hidden, "x")], Question(), BOB.public, Random(3)) == []
