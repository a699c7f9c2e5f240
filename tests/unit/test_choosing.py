"""Whom a node calls next, and what it keeps of what strangers tell it."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponyswarm import keys
from ponyswarm.p2p.choosing import Link, Wanted, choose, pause
from ponyswarm.p2p.discovery import range_of
from ponyswarm.p2p.table import Known, PeerTable

ONE, TWO = b"\1" * 32, b"\2" * 32
KEYS = [keys.SecretKey(number.to_bytes(32, "big")).public for number in range(1, 121)]


def known(number, net=None, *, reached=1.0, failures=0, projects=()):
    peer = KEYS[number]
    host = f"{net or f'20.{number}'}.0.{number}"
    address = f"/ip4/{host}/tcp/4001/p2p/{keys.peer_id(peer)}"
    return Known(
        address=address,
        peer=peer,
        where=range_of(address),
        reached=reached,
        failures=failures,
        projects=frozenset(projects),
    )


def called(*peers):
    return {one.peer: Link(one.where, True) for one in peers}


def pick(seed=1, **options):
    defaults = {
        "own": (),
        "anchors": (),
        "known": (),
        "links": {},
        "followers": {},
        "resting": frozenset(),
        "wanted": Wanted(),
        "random": Random(seed),
    }
    return choose(**{**defaults, **options})


def test_the_owners_addresses_come_first_and_always():
    own = tuple(known(number).address for number in range(9))
    links = called(*(known(number) for number in range(20, 40)))
    assert pick(own=own, links=links) == own
    assert pick(own=own, resting=frozenset(own[1:])) == own[:1]


def test_a_node_with_enough_peers_calls_nobody():
    links = {KEYS[number]: Link("20.1.0.0/16", False) for number in range(8)}
    assert pick(known=[known(number) for number in range(20, 40)], links=links) == ()


def test_anchors_go_before_others():
    everybody = [known(number) for number in range(60)]
    old = everybody[17].address
    assert all(pick(seed, known=everybody, anchors=(old,))[0] == old for seed in range(20))


def test_a_project_that_has_too_few_peers_gets_its_own():
    others = [known(number) for number in range(20, 40)]
    ours = [known(number, projects=[ONE]) for number in range(40, 43)]
    full = {KEYS[number]: Link("9.9.0.0/16", False) for number in range(8)}
    wanted = pick(
        known=[*others, *ours], links=full, followers={ONE: frozenset(), TWO: frozenset()}
    )
    assert set(wanted) == {one.address for one in ours}
    enough = frozenset(KEYS[:4])
    assert pick(known=ours, links=full, followers={ONE: enough}) == ()


def test_one_range_gets_few_calls_however_many_peers_it_has():
    surrounding = [known(number, "66.66") for number in range(20, 100)]
    friends = [known(number) for number in range(3)]
    links = called(*friends)
    for seed in range(50):
        assert len(pick(seed, known=surrounding, links=links)) == 2
    more = called(*friends, *surrounding[:2])
    assert pick(known=surrounding, links=more) == ()


def test_a_lonely_node_takes_whom_it_can_get():
    neighbours = [known(number, "66.66") for number in range(20)]
    assert len(pick(known=neighbours)) == 3


def test_strangers_and_friends_take_turns():
    friends = [known(number) for number in range(50)]
    strangers = [known(number, reached=0.0) for number in range(50, 100)]
    met = [pick(seed, known=[*friends, *strangers])[0] for seed in range(200)]
    share = sum(one in {friend.address for friend in friends} for one in met) / len(met)
    assert 0.3 < share < 0.7


KNOWN = st.builds(
    known,
    st.integers(0, 119),
    st.one_of(st.none(), st.sampled_from(["30.1", "30.2", "30.3"])),
    reached=st.sampled_from([0.0, 5.0]),
    failures=st.integers(0, 20),
    projects=st.sets(st.sampled_from([ONE, TWO])),
)


@given(
    st.lists(KNOWN, max_size=60),
    st.lists(KNOWN, max_size=20),
    st.integers(0, 1000),
    st.data(),
)
def test_no_choice_breaks_a_rule(table, met, seed, data):
    links = {one.peer: Link(one.where, data.draw(st.booleans())) for one in met}
    resting = frozenset(one.address for one in table if data.draw(st.booleans()))
    followers = {ONE: frozenset(list(links)[:2]), TWO: frozenset()}
    wanted = Wanted()
    chosen = pick(seed, known=table, links=links, resting=resting, followers=followers)
    by_address = {one.address: one for one in table}
    peers = [by_address[address].peer for address in chosen]
    assert len(set(peers)) == len(peers)
    assert not set(peers) & set(links)
    assert not set(chosen) & resting
    assert len(chosen) <= wanted.at_once
    calls = [link.where for link in links.values() if link.called]
    if chosen:
        assert len(calls) + len(chosen) <= wanted.calls
    for count, address in enumerate(chosen):
        where = by_address[address].where
        before = calls + [by_address[other].where for other in chosen[:count]]
        assert before.count(where) < wanted.in_range or len(links) + count < wanted.lonely
    assert chosen == pick(seed, known=table, links=links, resting=resting, followers=followers)


@given(st.integers(0, 10_000), st.integers(0, 1000))
def test_pauses_grow_to_five_minutes_and_differ(failures, seed):
    waited = pause(failures, Random(seed))
    assert 0.5 <= waited <= 300
    if failures > 9:
        assert waited >= 150


def test_one_teller_and_one_range_have_few_places_in_the_table():
    table = PeerTable()
    for number, key in enumerate(KEYS):
        address = f"/ip4/30.{number}.0.1/tcp/1/p2p/{keys.peer_id(key)}"
        table.heard(key, [address], frozenset(), teller="6.6.0.0/16", now=1)
    assert len(table.known()) == PeerTable.PER_TELLER
    table = PeerTable()
    for number, key in enumerate(KEYS):
        address = f"/ip4/66.66.0.{number}/tcp/1/p2p/{keys.peer_id(key)}"
        table.heard(key, [address], frozenset(), teller=f"7.{number}.0.0/16", now=1)
    assert len(table.known()) == PeerTable.PER_RANGE


def test_hearsay_does_not_push_out_what_was_reached():
    table = PeerTable()
    friend = known(1)
    table.reached(friend.address, now=5)
    for number, key in enumerate(KEYS[2:]):
        for port in range(1, 12):
            address = f"/ip4/{30 + number}.{port}.0.1/tcp/{port}/p2p/{keys.peer_id(key)}"
            table.heard(key, [address], frozenset(), teller=f"{port}.{number}.0.0/16", now=9)
    assert table.addresses()[0] == friend.address
    assert len(table.known()) <= 1 + PeerTable.HEARD


def test_hearsay_that_never_answers_is_forgotten():
    table = PeerTable()
    stranger = known(1)
    table.heard(stranger.peer, [stranger.address], frozenset(), teller="x", now=1)
    for _ in range(PeerTable.GIVEN_UP):
        table.failed(stranger.address)
    assert table.known() == ()


def test_a_record_says_nothing_about_other_peers():
    table = PeerTable()
    table.heard(KEYS[2], [known(1).address], frozenset(), teller="x", now=1)
    assert table.known() == ()


@pytest.mark.parametrize("seed", range(3))
def test_the_table_is_kept(tmp_path, seed):
    table = PeerTable(tmp_path / "peers.json")
    table.reached(known(1).address, now=5)
    table.follows(KEYS[1], frozenset([ONE]))
    stranger = known(2)
    table.heard(KEYS[2], [stranger.address], frozenset([TWO]), teller="x", now=seed)
    table.anchors = (known(1).address,)
    table.save()
    again = PeerTable(tmp_path / "peers.json")
    assert again.known() == table.known()
    assert again.anchors == table.anchors
