"""Frontier sync: after a pull the asker has everything, and junk ends as a `PeerError`."""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Callable, Mapping

import pytest
from authors import digest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponyswarm import codec
from ponyswarm.codec import Cursor, pack_header, pack_segment, unpack_segment, varint
from ponyswarm.errors import PeerError
from ponyswarm.frontier import BUCKETS, Frontier, bucket_of, fingerprint
from ponyswarm.messages import Entry, FeedMark, FeedRef, Header
from ponyswarm.p2p import sync

PROJECT = digest("project")
FRAME = 300


class Shelf:
    """Feeds of frames that hold together, under signatures of nobody."""

    def __init__(self, feeds: Mapping[FeedRef, tuple[int, ...]]) -> None:
        """Each feed as the branch that each of its entries is on."""
        self.frames: dict[FeedRef, list[bytes]] = {}
        for ref, branches in feeds.items():
            chain: list[bytes] = []
            for seq, branch in enumerate(branches):
                chain.append(self.frame(ref, seq, branch, chain))
            self.frames[ref] = chain

    @staticmethod
    def frame(ref: FeedRef, seq: int, branch: int, chain: list[bytes]) -> bytes:
        body = codec.pack({"branch": branch})
        body = codec.pack({"branch": branch, "pad": "." * (FRAME - 224 - len(body) - 6)})
        header = Header(
            kind=1 if ref.genesis else 99,
            length=len(body),
            author=ref.author,
            project=bytes(32) if ref.genesis else PROJECT,
            nonce=ref.nonce,
            seq=seq,
            prev=codec.entry_id(chain[-1][:160]) if chain else bytes(32),
            time=1000 * seq,
            payload_hash=hashlib.sha256(body).digest(),
        )
        return pack_header(header) + digest(f"{ref} {seq}") * 2 + body

    @property
    def frontier(self) -> Frontier:
        return Frontier(
            {
                ref: FeedMark(len(chain), codec.entry_id(chain[-1][:160])[:8])
                for ref, chain in self.frames.items()
                if chain
            }
        )

    def segment(self, project: bytes, ref: FeedRef, start: int, most: int) -> list[bytes]:
        assert project == PROJECT
        return self.frames[ref][start : start + max(1, most // FRAME)]

    def take(self, entry: Entry) -> bool:
        """Append an entry if it is the next of its feed; whether it was."""
        mine = self.frames.setdefault(entry.feed, [])
        prev = codec.entry_id(mine[-1][:160]) if mine else bytes(32)
        if entry.header.seq == len(mine) and entry.header.prev == prev:
            mine.append(entry.frame)
            return True
        return False


def pull(asker: Shelf, server: Shelf) -> tuple[int, int, list[bytes]]:
    """Round trips, rounds, and all frames that came, as `replication.pull` would do it."""
    trips, rounds, came = 0, 0, []
    doubted: frozenset[int] = frozenset()
    while True:
        rounds += 1
        asking = sync.Asking(PROJECT, asker.frontier, doubted)
        reply, serving = sync.answer(asking.ask(), lambda _: server.frontier)
        trips += 1
        wish = asking.want(reply)
        if isinstance(wish, str):
            return trips, rounds, came
        trips += 1
        new = 0
        assert serving is not None
        for message in serving.serve(wish, server.segment):
            assert len(message) <= sync.MAX_MESSAGE
            part = sync.read(message, PROJECT)
            if isinstance(part, sync.Part):
                for segment in part.segments:
                    came += [entry.frame for entry in segment]
                    new += sum(asker.take(entry) for entry in segment)
        assert isinstance(part, sync.End)
        alike, doubted = asking.settle(part, asker.frontier)
        if alike or not (new or doubted):
            return trips, rounds, came


refs = st.builds(
    FeedRef,
    st.integers(1, 40).map(lambda n: bytes([n]) * 32),
    st.sampled_from([b"nonce__1", b"nonce__2"]),
    st.just(False),
)
heights = st.dictionaries(refs, st.integers(1, 30), max_size=12)


def straight(feeds: Mapping[FeedRef, int]) -> Shelf:
    return Shelf({ref: (0,) * height for ref, height in feeds.items()})


@given(heights, heights)
def test_after_a_pull_the_asker_has_everything_and_lost_nothing(mine, theirs):
    asker, server = straight(mine), straight(theirs)
    _, _, came = pull(asker, server)
    for ref in {*mine, *theirs}:
        assert len(asker.frames[ref]) == max(mine.get(ref, 0), theirs.get(ref, 0))
    missing = sum(max(0, height - mine.get(ref, 0)) for ref, height in theirs.items())
    assert len(came) == len(set(came)) == missing


@given(heights, heights)
def test_after_pulling_both_ways_the_frontiers_are_equal(mine, theirs):
    one, two = straight(mine), straight(theirs)
    pull(one, two)
    pull(two, one)
    assert one.frontier.root == two.frontier.root
    assert dict(one.frontier.items()) == dict(two.frontier.items())


@given(heights, heights)
def test_roots_are_equal_exactly_when_frontiers_are(mine, theirs):
    one, two = straight(mine).frontier, straight(theirs).frontier
    assert (one.root == two.root) == (dict(one.items()) == dict(two.items()))


marks = st.builds(FeedMark, st.integers(1, 9), st.sampled_from([b"mark___1", b"mark___2"]))


@given(st.lists(st.tuples(refs, st.none() | marks), max_size=40))
def test_a_frontier_that_is_kept_up_equals_one_that_is_made_new(changes):
    kept = Frontier()
    for ref, mark in changes:
        if mark is None:
            kept.discard(ref)
        else:
            kept.set(ref, mark)
        fresh = Frontier(dict(kept.items()))
        assert kept.root == fresh.root
        for bucket in range(BUCKETS):
            assert kept.feeds(bucket) == fresh.feeds(bucket)
            assert kept.names(bucket) == fresh.names(bucket)


@given(heights)
def test_equal_frontiers_cost_one_round_trip_and_sixteen_bytes(feeds):
    shelf = straight(feeds)
    assert pull(shelf, straight(feeds)) == (1, 1, [])
    request = sync.Asking(PROJECT, shelf.frontier).ask()
    assert len(request) == 32 + 16
    assert sync.answer(request, lambda _: shelf.frontier)[0] == b"\0"


def many(count: int) -> dict[FeedRef, int]:
    return {FeedRef(digest(str(n)), bytes(8), False): 500 for n in range(count)}


@pytest.mark.parametrize(("differing", "most"), [(10, 1500), (1000, 5000), (2000, 5000)])
def test_what_is_said_of_two_thousand_feeds_is_little(differing, most):
    mine = Frontier({ref: FeedMark(height, bytes(8)) for ref, height in many(2000).items()})
    theirs = Frontier(dict(mine.items()))
    for ref in list(many(2000))[:differing]:
        theirs.set(ref, FeedMark(501, bytes(8)))
    asking = sync.Asking(PROJECT, mine)
    reply, serving = sync.answer(asking.ask(), lambda _: theirs)
    wish = asking.want(reply)
    assert serving is not None
    assert len(asking.ask()) + len(reply) + len(wish) <= most


def test_a_pull_of_new_entries_takes_two_round_trips():
    feeds = dict.fromkeys(many(30), 3)
    longer = {ref: height + (at % 3) for at, (ref, height) in enumerate(feeds.items())}
    asker, server = straight(feeds), straight(longer)
    trips, rounds, came = pull(asker, server)
    assert (trips, rounds, len(came)) == (2, 1, 30)


@given(st.integers(0, 70), st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=200)
def test_where_branches_differ_the_first_differing_entry_comes(common, left, right):
    """Both sides ask; one of them must get an entry for a place where it holds another."""
    ref = FeedRef(bytes(31) + b"1", bytes(8), False)
    one = Shelf({ref: (0,) * common + (1,) * left})
    two = Shelf({ref: (0,) * common + (2,) * right})
    if left and right:
        theirs = two.frames[ref][common], one.frames[ref][common]
        came = pull(one, two)[2] + pull(two, one)[2]
        assert theirs[0] in came or theirs[1] in came


def test_a_deep_fork_is_found_step_by_step():
    ref = FeedRef(bytes(31) + b"1", bytes(8), False)
    one, two = Shelf({ref: (1,) * 300}), Shelf({ref: (2,) * 300})
    _, rounds, came = pull(one, two)
    assert came == two.frames[ref][300 - sync.REWIND :]
    assert rounds == 2


def test_an_asker_that_is_ahead_is_not_asked_twice():
    ref, other = list(many(2))
    assert pull(straight({ref: 5, other: 3}), straight({ref: 4, other: 3})) == (2, 1, [])


def test_feeds_that_only_one_side_knows_are_no_matter():
    refs = list(many(200))
    asker = straight(dict.fromkeys(refs[:150], 2))
    server = straight(dict.fromkeys(refs[50:], 3))
    _, _, came = pull(asker, server)
    assert len(came) == 100 + 50 * 3
    assert all(len(asker.frames[ref]) == 3 for ref in refs[50:])


def test_feeds_that_come_while_the_asker_thinks_shift_no_places():
    refs = list(many(300))
    asker, server = straight(dict.fromkeys(refs[:200], 2)), straight(dict.fromkeys(refs[:200], 3))
    frontier = server.frontier
    asking = sync.Asking(PROJECT, asker.frontier)
    reply, serving = sync.answer(asking.ask(), lambda _: frontier)
    wish = asking.want(reply)
    for ref in refs[200:]:
        frontier.set(ref, FeedMark(1, bytes(8)))
    assert serving is not None
    parts = [sync.read(m, PROJECT) for m in serving.serve(wish, server.segment)]
    assert sum(len(s) for p in parts if isinstance(p, sync.Part) for s in p.segments) == 200


def test_a_long_reply_is_cut_and_goes_on(monkeypatch):
    monkeypatch.setattr(sync, "MAX_REPLY", 20 * FRAME)
    monkeypatch.setattr(sync, "MAX_CHUNK", 8 * FRAME)
    feeds = {FeedRef(bytes([n + 1]) * 32, bytes(8), False): 30 for n in range(5)}
    asker, server = Shelf({}), straight(feeds)
    _, rounds, came = pull(asker, server)
    assert rounds > 5
    assert len(came) == len(set(came)) == 150
    assert asker.frontier.root == server.frontier.root


def test_the_genesis_feed_goes_first():
    genesis = FeedRef(b"\xff" * 32, bytes(8), True)
    server = straight(
        {genesis: 1, **{FeedRef(bytes([n + 1]) * 32, bytes(8), False): 2 for n in range(9)}}
    )
    _, _, came = pull(Shelf({}), server)
    assert came[0] == server.frames[genesis][0]


def test_a_project_that_is_not_followed_is_unknown():
    asking = sync.Asking(PROJECT, Frontier())
    reply, serving = sync.answer(asking.ask(), lambda _: None)
    assert asking.want(reply) == "unknown"
    assert serving is None


def test_a_feed_and_a_genesis_feed_of_equal_name_are_two():
    one = FeedRef(digest("a"), bytes(8), True)
    two = FeedRef(digest("a"), bytes(8), False)
    assert fingerprint(one) != fingerprint(two)
    mark = FeedMark(1, bytes(8))
    assert Frontier({one: mark}).root != Frontier({two: mark}).root


# --- segments ---------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 39), st.booleans())
def test_a_segment_comes_out_as_it_went_in(height, start, genesis):
    ref = FeedRef(digest("a"), b"nonce__1", genesis)
    height, start = (1, 0) if genesis else (height, min(start, height - 1))
    frames = straight({ref: height}).frames[ref][start:]
    packed = pack_segment(frames)
    cursor = Cursor(packed + b"rest")
    entries = unpack_segment(cursor, PROJECT, 99)
    assert [entry.frame for entry in entries] == frames
    assert [entry.id for entry in entries] == [codec.entry_id(f[:160]) for f in frames]
    assert entries == [codec.decode_frame(frame) for frame in frames]
    assert cursor.at == len(packed)
    if len(frames) > 30:
        assert len(packed) < 0.6 * sum(map(len, frames))


@given(st.integers(0, (1 << 63) - 1))
def test_a_number_has_one_form(number):
    assert Cursor(varint(number)).number() == number
    longer = varint(number)[:-1] + bytes([varint(number)[-1] | 0x80, 0])
    with pytest.raises(PeerError, match="bad-sync"):
        Cursor(longer).number()


def packed(**changes: bytes) -> bytes:
    parts = {
        "author": bytes(31) + b"1", "nonce": bytes(8), "genesis": b"\0", "seq": b"\0", "prev": b"",
        "count": b"\1", "row": b"\x63\x01\x05", "signature": bytes(64), "payload": b"\x80",
    }  # fmt: skip
    return b"".join((parts | changes).values())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (packed(genesis=b"\2"), "bad-sync"),
        (packed(genesis=b"\1"), "bad-frame"),
        (packed(genesis=b"\1", count=b"\2", row=b"\x01\x01\x05" * 2), "bad-sync"),
        (packed(genesis=b"\1", seq=b"\1", prev=b"p" * 32), "bad-sync"),
        (packed(seq=b"\1", prev=bytes(32)), "bad-sync"),
        (packed(seq=b"\xff" * 8 + b"\x7f", prev=b"p" * 32), "bad-sync"),
        (packed(seq=b"\xff" * 9 + b"\1", prev=b"p" * 32), "bad-sync"),
        (packed(count=b"\0"), "bad-sync"),
        (packed(count=b"\x7f"), "bad-sync"),
        (packed(row=b"\x63\x81\x40\x05"), "bad-frame"),
        (packed(row=b"\x63\x01" + b"\xff" * 9), "bad-sync"),
        (packed(payload=b""), "bad-sync"),
        (packed(payload=b"\x90"), "bad-msgpack"),
        (packed(payload=b"\xc1"), "bad-msgpack"),
    ],
)
def test_a_segment_out_of_rule_is_refused(data, reason):
    unpack_segment(Cursor(packed()), PROJECT, 99)
    with pytest.raises(PeerError) as caught:
        unpack_segment(Cursor(data), PROJECT, 99)
    assert caught.value.reason == reason


# --- junk -------------------------------------------------------------------------------------

PLACES = straight({FeedRef(bytes([n + 1]) * 32, bytes(8), False): 5 for n in range(9)})
ALL = b"\xff" * 8
NONE = bytes(8)


def serve_all(request: bytes) -> None:
    list(sync.Serving(PROJECT, PLACES.frontier).serve(request, PLACES.segment))


READERS: dict[str, Callable[[bytes], object]] = {
    "answer": lambda data: sync.answer(data, lambda _: Frontier()),
    "want": lambda data: sync.Asking(PROJECT, Frontier()).want(data),
    "read": lambda data: sync.read(data, PROJECT),
    "serve": serve_all,
}


@pytest.mark.parametrize("name", READERS)
@given(st.binary(max_size=200))
def test_junk_raises_nothing_but_what_is_declared(name, data):
    with contextlib.suppress(PeerError):
        READERS[name](data)


@given(st.binary(max_size=300))
def test_junk_in_segments_raises_nothing_but_what_is_declared(data):
    with contextlib.suppress(PeerError):
        sync.read(b"\1" + zlib.compress(data), PROJECT)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("answer", bytes(47)),
        ("answer", bytes(49)),
        ("want", b""),
        ("want", b"\3"),
        ("want", b"\0\0"),
        ("want", b"\2" + bytes(64 * 12 - 1)),
        ("want", b"\2" + bytes(64 * 12 + 1)),
        ("read", b""),
        ("read", b"\2"),
        ("read", b"\0\2" + bytes(8)),
        ("read", b"\0\0" + bytes(9)),
        ("read", b"\1" + zlib.compress(packed()) + b"x"),
        ("read", b"\1" + zlib.compress(bytes(sync.MAX_EXPANDED + 1))),
        ("serve", b""),
        ("serve", ALL + ALL),
        ("serve", ALL + NONE),
        ("serve", ALL + NONE + b"\1" * 10),
        ("serve", NONE + ALL + b"\1" + bytes(17)),
        ("serve", NONE + NONE + b"x"),
    ],
)
def test_a_message_out_of_form_is_refused(name, message):
    with pytest.raises(PeerError, match="bad-sync"):
        READERS[name](message)


def test_feeds_that_the_server_does_not_know_are_no_theft_of_time():
    feeds = b"".join(digest(str(n))[:8] + varint((1 << 63) - 1) + bytes(8) for n in range(99))
    serve_all(NONE + bytes([128]) + bytes(7) + varint(99) + feeds)


def test_buckets_are_even_enough():
    found = [bucket_of(ref) for ref in many(2000)]
    assert max(found.count(bucket) for bucket in range(BUCKETS)) < 60
