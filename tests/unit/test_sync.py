"""Frontier sync: after a pull the asker has everything, and junk ends as a `PeerError`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import pytest
from authors import digest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponyswarm.codec import pack, unpack
from ponyswarm.errors import PeerError
from ponyswarm.messages import FeedMark, FeedRef
from ponyswarm.p2p import sync

PROJECT = digest("project")
FRAME = 300


class Shelf:
    """Feeds of made-up frames: what the bytes 88 to 96 and the marks must be, and no more."""

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
        prev = digest(chain[-1].hex()) if chain else bytes(32)
        text = f"{ref} {seq} {branch}".encode()
        return (bytes(88) + prev + digest(text.hex()) + text).ljust(FRAME, b".")

    @property
    def frontier(self) -> dict[FeedRef, FeedMark]:
        return {
            ref: FeedMark(len(chain), digest(chain[-1].hex())[:8])
            for ref, chain in self.frames.items()
            if chain
        }

    def segment(self, project: bytes, ref: FeedRef, start: int, most: int) -> list[bytes]:
        assert project == PROJECT
        return self.frames[ref][start : start + max(1, most // FRAME)]

    def take(self, other: Shelf, frame: bytes) -> bool:
        """Append a frame of the other shelf if it is the next of its feed; whether it was."""
        for ref, chain in other.frames.items():
            if frame in chain:
                seq, mine = chain.index(frame), self.frames.setdefault(ref, [])
                prev = digest(mine[-1].hex()) if mine else bytes(32)
                if seq == len(mine) and frame[88:120] == prev:
                    mine.append(frame)
                    return True
        return False


def pull(asker: Shelf, server: Shelf) -> tuple[int, int, list[bytes]]:
    """Round trips, rounds, and all frames that came, as `replication.pull` would do it."""
    trips, rounds, came = 0, 0, []
    while True:
        rounds += 1
        mine = asker.frontier
        project, reply = sync.answer(sync.ask(PROJECT, mine), lambda _: server.frontier)
        trips += 1
        wish = sync.want(reply, mine)
        if isinstance(wish, str):
            return trips, rounds, came
        trips += 1
        new = 0
        for message in sync.serve(wish, project, server.frontier, server.segment):
            assert len(message) <= sync.MAX_MESSAGE
            part = sync.chunk(message)
            came += part.frames
            new += sum(asker.take(server, frame) for frame in part.frames)
        if not new:
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
def test_after_pulling_both_ways_the_roots_are_equal(mine, theirs):
    one, two = straight(mine), straight(theirs)
    pull(one, two)
    pull(two, one)
    assert sync.root(one.frontier) == sync.root(two.frontier)
    assert sync.buckets(one.frontier) == sync.buckets(two.frontier)


@given(heights, heights)
def test_roots_are_equal_exactly_when_frontiers_are(mine, theirs):
    one, two = straight(mine).frontier, straight(theirs).frontier
    assert (sync.root(one) == sync.root(two)) == (one == two)


@given(heights)
def test_equal_frontiers_cost_one_round_trip_and_sixteen_bytes(feeds):
    shelf = straight(feeds)
    assert pull(shelf, straight(feeds)) == (1, 1, [])
    request = unpack(sync.ask(PROJECT, shelf.frontier))
    assert isinstance(request, dict)
    assert len(request["root"]) == 16
    assert len(sync.ask(PROJECT, shelf.frontier)) < 80


def test_only_differing_buckets_are_spoken_of():
    feeds = {FeedRef(digest(str(n)), bytes(8), False): 3 for n in range(2000)}
    longer = {**feeds, next(iter(feeds)): 4}
    asker, server = straight(feeds), straight(longer)
    _, reply = sync.answer(sync.ask(PROJECT, asker.frontier), lambda _: server.frontier)
    wish = sync.want(reply, asker.frontier)
    assert len(reply) < 700
    assert len(wish) < 6000
    assert len(pull(asker, server)[2]) == 1


@given(st.integers(0, 70), st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=200)
def test_where_branches_differ_the_first_differing_entry_comes(common, left, right):
    """Both sides ask; one of them must get an entry for a place where it holds another."""
    ref = FeedRef(bytes(32), bytes(8), False)
    one = Shelf({ref: (0,) * common + (1,) * left})
    two = Shelf({ref: (0,) * common + (2,) * right})
    if left and right and common + left + right > 0:
        came = pull(one, two)[2] + pull(two, one)[2]
        assert two.frames[ref][common] in came or one.frames[ref][common] in came


def test_a_deep_fork_is_found_step_by_step():
    ref = FeedRef(bytes(32), bytes(8), False)
    one, two = Shelf({ref: (1,) * 300}), Shelf({ref: (2,) * 300})
    wish = sync.want(
        sync.answer(sync.ask(PROJECT, one.frontier), lambda _: two.frontier)[1], one.frontier
    )
    assert isinstance(wish, bytes)
    parts = [sync.chunk(m) for m in sync.serve(wish, PROJECT, two.frontier, two.segment)]
    frames = [frame for part in parts for frame in part.frames]
    assert frames == two.frames[ref][300 - sync.REWIND :]


def test_a_long_reply_is_cut_and_goes_on(monkeypatch):
    monkeypatch.setattr(sync, "MAX_REPLY", 20 * FRAME)
    monkeypatch.setattr(sync, "MAX_CHUNK", 8 * FRAME)
    feeds = {FeedRef(bytes([n]) * 32, bytes(8), False): 30 for n in range(5)}
    asker, server = Shelf({}), straight(feeds)
    _, rounds, came = pull(asker, server)
    assert rounds > 5
    assert len(came) == len(set(came)) == 150
    assert asker.frontier == server.frontier


def test_the_genesis_feed_goes_first():
    genesis = FeedRef(b"\xff" * 32, bytes(8), True)
    server = straight(
        {genesis: 1, **{FeedRef(bytes([n]) * 32, bytes(8), False): 2 for n in range(9)}}
    )
    _, _, came = pull(Shelf({}), server)
    assert came[0] == server.frames[genesis][0]


def test_a_project_that_is_not_followed_is_unknown():
    _, reply = sync.answer(sync.ask(PROJECT, {}), lambda _: None)
    assert sync.want(reply, {}) == "unknown"


def test_a_bucket_does_not_depend_on_the_genesis_flag():
    one = FeedRef(digest("a"), bytes(8), True)
    two = FeedRef(digest("a"), bytes(8), False)
    assert sync.bucket_of(one) == sync.bucket_of(two)
    mark = FeedMark(1, bytes(8))
    assert sync.root({one: mark}) != sync.root({two: mark})


# --- junk -------------------------------------------------------------------------------------


def serve_all(request: bytes) -> None:
    shelf = straight({FeedRef(bytes([n]) * 32, bytes(8), False): 5 for n in range(9)})
    list(sync.serve(request, PROJECT, shelf.frontier, shelf.segment))


READERS: dict[str, Callable[[bytes], object]] = {
    "answer": lambda data: sync.answer(data, lambda _: {}),
    "want": lambda data: sync.want(data, {}),
    "chunk": sync.chunk,
    "serve": serve_all,
}


@pytest.mark.parametrize("name", READERS)
@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_peer_error(name, data):
    with contextlib.suppress(PeerError):
        READERS[name](data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("want", {"state": "maybe"}),
        ("want", {"state": "differs"}),
        ("want", {"state": "differs", "buckets": [bytes(8)] * 63}),
        ("want", {"state": "differs", "buckets": [bytes(8)] * 65}),
        ("want", {"state": "differs", "buckets": [bytes(7)] * 64}),
        ("want", {"state": "differs", "buckets": ["12345678"] * 64}),
        ("want", []),
        ("answer", {"project": bytes(31), "root": bytes(16)}),
        ("answer", {"project": bytes(32), "root": bytes(15)}),
        ("answer", {"project": bytes(32)}),
        ("chunk", {"frames": [1]}),
        ("chunk", {"frames": "abc"}),
        ("chunk", {"done": 1}),
        ("serve", {"buckets": [64], "feeds": []}),
        ("serve", {"buckets": [-1], "feeds": []}),
        ("serve", {"buckets": [0], "feeds": [[bytes(32), bytes(8), False, 1]]}),
        ("serve", {"buckets": [0], "feeds": [[bytes(32), bytes(8), False, -1, bytes(8)]]}),
        ("serve", {"buckets": [0], "feeds": [[bytes(32), bytes(8), 1, 1, bytes(8)]]}),
    ],
)
def test_a_message_out_of_form_is_refused(name, message):
    with pytest.raises(PeerError, match="bad-sync"):
        READERS[name](pack(message))


def test_feeds_that_the_server_does_not_know_are_no_matter():
    serve_all(
        pack(
            {
                "buckets": list(range(64)),
                "feeds": [[bytes([n]) * 32, bytes(8), True, 1 << 53, bytes(8)] for n in range(99)],
            }
        )
    )
