"""A node of a later version says more than this one knows: it is kept, relayed, and ignored."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import msgpack
import pytest
from authors import FAR, NOW, Author, announce, cell_ids, project_record, result

from ponyswarm import codec
from ponyswarm.codec import ZERO, pack
from ponyswarm.errors import PeerError
from ponyswarm.ledger.chain import Accept
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.store import Store
from ponyswarm.ledger.verdicts import Verdict
from ponyswarm.messages import Claim, Entry, Header, Later, Offer, Payload, Project
from ponyswarm.p2p import blobs
from ponyswarm.p2p.protocol import Protocol
from ponyswarm.policy import ReaderPolicy, refusal

MORE = {"later": {"deep": [1, b"2", "drei", None]}, "score": 0.5}


def said_later(
    author: Author, kind: int, payload: dict, project: bytes, seq: int, prev: bytes, time: int
) -> Entry:
    """An entry as another version would sign it."""
    body = msgpack.packb(payload)
    header = Header(
        kind, len(body), author.public, project, author.nonce, seq, prev, time,
        hashlib.sha256(body).digest(),
    )  # fmt: skip
    raw = codec.pack_header(header)
    return codec.decode_entry(raw + author.key.sign(codec.signed_text(codec.entry_id(raw))) + body)


def with_more(author: Author, payload: Payload, project: bytes, time: int = NOW) -> Entry:
    plain = codec.unpack(pack(payload))
    assert isinstance(plain, dict)
    kind = codec.KIND_OF[type(payload)]
    return said_later(author, kind, {**plain, **MORE}, project, 0, ZERO, time)


@pytest.fixture
def store(tmp_path: Path):
    made = Store(tmp_path / "ledger.db")
    yield made
    made.close()


def test_an_entry_of_an_unknown_kind_is_kept_given_on_and_not_interpreted(store, tmp_path):
    root, later = Author(1), Author(9, nonce=b"laterlat")
    genesis = root.project()
    first = said_later(later, 77, MORE, genesis.id, 0, ZERO, NOW)
    second = said_later(later, 78, {}, genesis.id, 1, first.id, NOW + 1)
    assert codec.decode_payload(first) is None
    assert store.append_all([genesis, first, second], FAR) == [Accept()] * 3
    frames = store.segment(genesis.id, first.feed, 0, 1 << 20)
    assert frames == [first.frame, second.frame]
    packed = codec.pack_segment(frames)
    assert codec.unpack_segment(codec.Cursor(packed), genesis.id, 10) == [first, second]
    with Reader(tmp_path / "ledger.db") as reader:
        assert reader.verify(lambda done: None) == []
        assert [row.kind for row in reader.log(most=2)] == ["78", "77"]


def test_fields_that_were_added_later_are_kept_and_change_nothing(store, tmp_path):
    """A project, a job and results that say more give the verdict of those that do not."""
    root, a, b = Author(1), Author(2), Author(3)
    genesis = with_more(root, project_record(root), ZERO)
    said = announce()
    job = with_more(root, said, genesis.id)
    (cell,) = cell_ids(job, said)
    results = [with_more(author, result(job.id, cell), genesis.id) for author in (a, b)]
    assert store.append_all([genesis, job, *results], FAR) == [Accept()] * 4
    with Reader(tmp_path / "ledger.db") as reader:
        (row,) = reader.matrix(reader.jobs()[0], ReaderPolicy())
        assert row.finding.verdict is Verdict.CONFIRMED_PASS
        entry = reader.entry(results[0].id)
    assert entry is not None
    assert entry.frame == results[0].frame
    assert msgpack.unpackb(entry.payload)["later"] == MORE["later"]


def test_a_later_record_has_the_force_of_what_this_version_reads_of_it():
    root, friend = Author(1), Author(2)
    genesis = with_more(root, project_record(root), ZERO)
    assert refusal(None, genesis, codec.decode_payload(genesis)) is None
    state = codec.decode_payload(genesis)
    assert isinstance(state, Project)
    assert state.roots == (root.public,)
    assert friend.public not in state.announcers


def test_an_ephemeral_message_of_a_later_kind_is_relayed_and_nothing_else():
    data = bytes([9]) + msgpack.packb(MORE)
    message = codec.decode_gossip(data)
    assert isinstance(message, Later)
    assert codec.encode_gossip(message) == data
    protocol = Protocol(Author(50).public, None, random.Random(1))
    genesis = Author(1).project()
    protocol.follow(genesis.id, trusted=True, genesis=genesis, now=NOW)
    before = protocol.offers(genesis.id, NOW)
    assert protocol.gossip(genesis.id, Author(2).public, Author(2).public, message, NOW) == []
    assert protocol.offers(genesis.id, NOW) == before


@pytest.mark.parametrize(
    "data",
    [
        bytes([0]) + msgpack.packb({}),
        bytes([128]) + msgpack.packb({}),
        bytes([9]) + msgpack.packb([1]),
        bytes([9]) + msgpack.packb({}) + b"\0",
        bytes([9]) + b"\xc1",
        bytes([9]) + msgpack.packb({1: 2}, strict_types=True),
        bytes([9]) + msgpack.packb({"x": "y" * codec.MAX_GOSSIP}),
    ],
)
def test_what_no_version_may_say_is_not_relayed(data):
    with pytest.raises(PeerError):
        codec.decode_gossip(data)


def test_offers_claims_and_requests_may_say_more():
    offer = Offer(interpreters=(), system="linux", machine="x86_64", slots=1, until=NOW)
    claim = Claim(job=bytes(32), cell=bytes(32), until=NOW)
    for tag, known in ((2, offer), (3, claim)):
        plain = codec.unpack(pack(known))
        assert isinstance(plain, dict)
        assert codec.decode_gossip(bytes([tag]) + msgpack.packb({**plain, **MORE})) == known
    get = blobs.Get(hash=bytes(32), offset=0, length=10)
    plain = codec.unpack(pack(get))
    assert isinstance(plain, dict)
    assert codec.convert(codec.unpack(msgpack.packb({**plain, **MORE})), blobs.Get, "bad") == get


def test_another_version_of_the_entry_itself_is_refused():
    """Its id and its signature may be something else: nobody could vouch for what it says."""
    frame = bytearray(Author(1).project().frame)
    frame[0] = 2
    with pytest.raises(PeerError, match="unknown-version"):
        codec.decode_frame(bytes(frame))
