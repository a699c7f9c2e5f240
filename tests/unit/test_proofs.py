"""Trees, checkpoints, witnesses and proofs: C2SP's examples, tampering, crashes, lies."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nacl
import pytest
from authors import NOW, Author, digest, environment, result
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from told import told

from ponyswarm.cli import main
from ponyswarm.errors import PeerError
from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.ledger import merkle, proofs, verifier
from ponyswarm.ledger.database import connect, id_prefix
from ponyswarm.ledger.proofs import BLOCK, Log, Tree
from ponyswarm.ledger.store import Store
from ponyswarm.ledger.witness import BURST, MAX_NEW_ORIGINS_A_DAY, REFILL_MS, Answer, Witness
from ponyswarm.messages import Blob, Entry
from ponyswarm.p2p import witness as protocol

LOG_KEY = SecretKey(b"L" * 32)
WITNESSES = [SecretKey(bytes([n]) * 32) for n in (101, 102, 103)]
SECONDS = NOW // 1000


# --- a ledger, a log and witnesses, with nothing but SQLite ---------------------------------


class Home:
    """One home's ledger, tree, log and witness."""

    def __init__(self, folder: Path, key: SecretKey, bound: str = "here") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.key = key
        self.store = Store(folder / "ledger.db")
        self.tree = Tree(folder / "ledger.db")
        self.db = connect(folder / "witness.db", synchronous="FULL")
        self.log = Log(self.db, self.tree, key, bound=bound, random=os.urandom)
        self.witness = Witness(self.db, key)
        self.now = NOW

    def close(self) -> None:
        self.store.close()
        self.tree.close()
        self.db.close()

    def checkpoint(self) -> proofs.Held:
        held = self.log.fresh(self.now)
        assert held is not None
        return held

    def ask(self, other: Home, held: proofs.Held, old: int | None = None) -> Answer:
        """Have ``other`` cosign, through the bytes that go over the wire."""
        known = self.log.cosigned_size(other.key.public, held.origin) if old is None else old
        path = self.log.growth(known, held) if known else []
        request = protocol.Request(known, tuple(path), held.own_note)
        assert protocol.decode_request(protocol.encode_request(request)) == request
        answer = other.witness.cosign(
            self.key.public, request.old, request.proof, request.checkpoint, self.now
        )
        if answer.status == 200:
            self.log.add_cosignature(held, other.key.public, answer.body, self.now)
        return answer


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Callable[..., Home]]:
    opened: list[Home] = []

    def make(name: str, key: SecretKey = LOG_KEY, **more: str) -> Home:
        opened.append(Home(tmp_path / name, key, **more))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def fill(store: Store, author: Author, count: int, first: int = 0) -> list[Entry]:
    """A project and results in it: ``count`` entries in all."""
    entries: list[Entry] = []
    if first == 0:
        entries.append(author.project())
        project = entries[0].id
    else:
        project = store.entries_project  # type: ignore[attr-defined]
    store.entries_project = project  # type: ignore[attr-defined]
    while len(entries) < count:
        job = digest("job")
        entries.append(author.result(project, job, digest(f"cell {first + len(entries)}")))
    store.append_all(entries, NOW + 10**9)
    return entries


def plain(path: Path, ids: list[bytes]) -> None:
    """A ledger file with nothing but these ids in it."""
    db = sqlite3.connect(path)
    db.execute(
        "CREATE TABLE IF NOT EXISTS entry"
        " (arrival INTEGER PRIMARY KEY, prefix INTEGER, id BLOB, frame BLOB)"
    )
    db.executemany("INSERT INTO entry (prefix, id) VALUES (?, ?)", [(id_prefix(i), i) for i in ids])
    db.commit()
    db.close()


def many(count: int, first: int = 0) -> list[bytes]:
    return [digest(f"entry {number}") for number in range(first, first + count)]


def mth(ids: list[bytes]) -> bytes:
    levels = merkle.full([merkle.leaf_hash(id_) for id_ in ids])
    return merkle.root(len(ids), lambda level, position: levels[level][position])


# --- C2SP's formats -------------------------------------------------------------------------


def test_the_signed_note_of_the_specification() -> None:
    """The example key and note of c2sp.org/signed-note."""
    key = base64.b64decode("AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")
    note = verifier.open_note(
        (
            "This is an example message.\n\n"
            "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYj"
            "OBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
        ).encode()
    )
    assert note.text == b"This is an example message.\n"
    ((name, signature),) = note.signatures
    assert verifier.key_id(name, key[0], key[1:]).hex() == "530d903a"
    assert signature[:4].hex() == "530d903a"
    assert verifier.signed_by(key[1:], note.text, signature[4:])
    assert not verifier.signed_by(key[1:], note.text + b"x", signature[4:])


def test_a_note_is_signed_as_the_reference_implementation_signs_it() -> None:
    """The key and note in the documentation of golang.org/x/mod/sumdb/note, byte for byte."""
    seed = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
    key = SecretKey(seed)
    text = (
        b"If you think cryptography is the answer to your problem,\n"
        b"then you don't know what your problem is.\n"
    )
    line = proofs.signature_line("PeterNeumann", verifier.ED25519, key.public, key.sign(text))
    assert line.decode() == (
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdng"
        "otpRZb6KE6RyyBwJnAM=\n"
    )


COSIGNED = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2"
    "q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2"
    "oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
).encode()


def test_the_checkpoint_and_cosignature_of_the_specification() -> None:
    """The example of c2sp.org/tlog-cosignature; it comes without keys, so its form is checked."""
    note = verifier.open_note(COSIGNED)
    assert verifier.open_checkpoint(note.text) == verifier.Checkpoint(
        "example.com/behind-the-sofa",
        20852163,
        bytes.fromhex("0ac5186a91863e8e1d90c808014aa89bf5da8e3ee1d9f07630f0378f68f1ab62"),
    )
    name, signature = note.signatures[1]
    assert (name, len(signature)) == ("witness.example.com/w1", 4 + 8 + 64)
    assert int.from_bytes(signature[4:12], "big") == 1679315147
    assert verifier.cosigned_text(note.text, 1679315147) == (
        b"cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n20852163\n"
        b"CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    )


def test_the_request_of_the_specification() -> None:
    """The example of c2sp.org/tlog-witness goes through unchanged."""
    hashes = [
        "PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=",
        "jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=",
        "5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=",
        "/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=",
    ]
    body = "\n".join(["old 20852014", *hashes, "", ""]).encode() + COSIGNED
    request = protocol.decode_request(body)
    assert request.old == 20852014
    assert [base64.b64encode(hash_).decode() for hash_ in request.proof] == hashes
    assert request.checkpoint == COSIGNED
    assert protocol.encode_request(request) == body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"old 1",
        b"old x\n\nnote",
        b"old 01\n\nnote",
        b"old -1\n\nnote",
        b"old 1\nAAAA\n\nnote",
        b"old 1\n!\n\nnote",
        b"old 1\n" + base64.b64encode(bytes(32)) * 2 + b"\n\nnote",
        b"old 1\n" + (base64.b64encode(bytes(32)) + b"\n") * 64 + b"\nnote",
        b"new 1\n\nnote",
        b"old 9999999999999999999999\n\nnote",
    ],
)
def test_requests_out_of_form_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="bad-witness"):
        protocol.decode_request(data)


@given(st.binary(max_size=200))
def test_no_bytes_make_a_decoder_raise_anything_else(data: bytes) -> None:
    for decode in (protocol.decode_request, protocol.decode_reply):
        try:
            found = decode(data)
        except PeerError:
            continue
        if isinstance(found, protocol.Reply):
            try:
                protocol.known_size(found)
            except PeerError:
                continue
    for open_ in (
        verifier.open_note,
        verifier.open_checkpoint,
        verifier.open_frame,
        verifier.open_proof,
        lambda data: verifier.open_proof(verifier.MAGIC + data),
        lambda data: verifier.check_cosignature(b"x", "x", data),
        lambda data: verifier.parse_peer_id(data.decode("latin-1")),
        lambda data: verifier.log_key(data.decode("latin-1")),
    ):
        try:
            open_(data)
        except (verifier.Invalid, UnicodeDecodeError):
            continue


@given(st.binary(min_size=32, max_size=32))
def test_keys_are_written_as_everywhere_else(key: bytes) -> None:
    assert verifier.peer_id(key) == peer_id(key)
    assert verifier.parse_peer_id(peer_id(key)) == key


# --- the tree -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 700, 1024, 1500])
def test_the_kept_tree_is_the_tree_of_the_ids(tmp_path: Path, count: int) -> None:
    ids = many(count)
    plain(tmp_path / "ledger.db", ids)
    tree = Tree(tmp_path / "ledger.db")
    while not tree.grow(blocks=1):
        pass
    view = tree.view()
    assert view.size == count
    levels = merkle.full([merkle.leaf_hash(id_) for id_ in ids])

    def node(level: int, position: int) -> bytes:
        return levels[level][position]

    for size in {1, count // 3 + 1, count - count % BLOCK or 1, count}:
        assert view.root(size) == merkle.root(size, node)
        for index in {0, size // 2, size - 1}:
            assert view.index(ids[index]) == index
            wanted = merkle.inclusion(index, size, node)
            assert merkle.inclusion(index, size, view.node) == wanted
        grown = merkle.consistency(size, count, node)
        assert merkle.consistency(size, count, view.node) == grown
    assert view.index(digest("of no entry")) is None
    tree.close()


def test_the_tree_grows_with_the_ledger_and_is_made_again_when_lost(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    plain(path, many(600))
    tree = Tree(path)
    assert tree.grow()
    before = tree.view().root(600)
    plain(path, many(900, first=600))
    assert tree.view().size < 1500, "full blocks wait for the next call of grow"
    assert tree.grow()
    assert tree.view().size == 1500
    assert tree.view().root(600) == before
    db = sqlite3.connect(path)
    db.execute("DELETE FROM tree_block")
    db.execute("DELETE FROM tree_node")
    db.commit()
    db.close()
    assert tree.grow()
    assert tree.view().root(600) == before
    assert tree.view().root(1500) == mth(many(1500))
    tree.close()


def test_a_hole_in_the_ledger_is_found_and_the_next_log_is_another(
    home: Callable[..., Home],
) -> None:
    ours = home("log")
    fill(ours.store, Author(1), 600)
    first = ours.checkpoint()
    ours.db.execute("SELECT 1")
    db = sqlite3.connect(ours.folder / "ledger.db")
    (id_, frame) = db.execute("SELECT id, frame FROM entry WHERE arrival = 120").fetchone()
    db.execute("DELETE FROM entry WHERE arrival = 100")
    db.commit()
    db.close()
    with told("entries that were in the tree are gone or changed; it is made again"):
        ours.tree.block(0)
    with told(
        "no proof can be made from this ledger (entries that were in the tree are gone or changed; "
        "it is made again): its entries or the tree over them were changed; 'ponyswarm verify' "
        "says what does not hold, then try again"
    ):
        ours.log.prove(id_, frame, first)
    second = ours.checkpoint()
    assert second.origin != first.origin
    assert second.size == 599
    proved = verifier.check(ours.log.prove(id_, frame, second))
    assert proved.index == 118


def test_an_entry_is_not_proved_under_a_checkpoint_before_it(home: Callable[..., Home]) -> None:
    ours = home("log")
    fill(ours.store, Author(1), 3)
    held = ours.checkpoint()
    (late,) = fill(ours.store, Author(2), 1)
    with told("the entry is not in that checkpoint's tree yet: prove it under a later one"):
        ours.log.prove(late.id, late.frame, held)


def test_an_entry_with_a_junk_signature_is_not_quoted_alone(home: Callable[..., Home]) -> None:
    ours = home("log")
    entries = fill(ours.store, Author(1), 300)
    held = ours.checkpoint()
    frame = bytearray(entries[5].frame)
    frame[160] ^= 1
    with told(
        "this entry cannot be quoted alone: the entry's signature does not hold. What it says may "
        "still stand in its feed, where a later signature covers it"
    ):
        ours.log.prove(entries[5].id, bytes(frame), held)
    assert ours.tree.view()._blocks == 1, "the tree is as good as before"


def test_views_ask_for_few_hashes(tmp_path: Path) -> None:
    plain(tmp_path / "ledger.db", many(5000))
    tree = Tree(tmp_path / "ledger.db")
    while not tree.grow():
        pass
    view = tree.view()
    merkle.inclusion(2500, view.size, view.node)
    assert len(view._levels) <= 2, "one block of leaves and the tail, no more"
    with told("a hash of the tree is missing; it is made again"):
        tree._node(30, 0)
    tree.close()


# --- the log --------------------------------------------------------------------------------


def test_a_checkpoint_is_signed_once_for_each_size(home: Callable[..., Home]) -> None:
    ours = home("log")
    assert ours.log.checkpoint(NOW) is None
    entries = fill(ours.store, Author(1), 5)
    first = ours.checkpoint()
    assert (first.size, first.root) == (5, mth([entry.id for entry in entries]))
    assert ours.checkpoint() == first
    note = verifier.open_note(first.note)
    verifier.check_log(note, first.origin)
    assert first.origin.startswith(peer_id(LOG_KEY.public) + "/")
    fill(ours.store, Author(1).reopen(b"otherone"), 3)
    second = ours.checkpoint()
    assert (second.origin, second.size) == (first.origin, 8)


def test_checkpoints_are_due_when_entries_came_and_some_time_went_by(
    home: Callable[..., Home],
) -> None:
    ours = home("log")
    assert ours.log.due(NOW, 1000)
    fill(ours.store, Author(1), 2)
    ours.checkpoint()
    assert not ours.log.due(NOW + 2000, 1000), "nothing came"
    fill(ours.store, Author(2), 2)
    assert not ours.log.due(NOW + 500, 1000), "too soon"
    assert ours.log.due(NOW + 2000, 1000)
    assert ours.log.due(NOW - 5000, 1000), "the clock was set back"
    ours.log.wish(NOW)
    assert ours.log.take_wishes()
    assert not ours.log.take_wishes()


@pytest.mark.parametrize("how", ["lost", "restored", "copied"])
def test_a_ledger_that_is_not_the_same_any_more_begins_another_log(
    home: Callable[..., Home], tmp_path: Path, how: str
) -> None:
    """The rule of a log: never sign two trees of which one does not begin with the other."""
    ours = home("log")
    fill(ours.store, Author(1), 4)
    ours.store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(ours.folder / "ledger.db", tmp_path / "backup.db")
    fill(ours.store, Author(2), 4)
    before = ours.checkpoint()
    bound = "here"
    ours.close()
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        if how != "copied":
            (tmp_path / "log" / name).unlink(missing_ok=True)
    if how == "restored":
        shutil.copy(tmp_path / "backup.db", tmp_path / "log" / "ledger.db")
    if how == "copied":
        bound = "there"
    again = home("log", bound=bound)
    fill(again.store, Author(3), 9)
    after = again.checkpoint()
    assert after.origin != before.origin


@pytest.mark.slow
def test_what_was_signed_survives_a_kill(tmp_path: Path) -> None:
    """A log and a witness are killed over and over; neither contradicts what it handed out."""
    script = """
import os, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
import test_proofs as t
ours = t.Home(Path(sys.argv[1]) / "log", t.LOG_KEY)
other = t.Home(Path(sys.argv[1]) / "witness", t.WITNESSES[0])
author = t.Author(7, nonce=os.urandom(8))
while True:
    t.fill(ours.store, author.reopen(os.urandom(8)), 1)
    held = ours.checkpoint()
    ours.now += 60_000
    answer = ours.ask(other, held)
    if answer.status == 409:
        size, _ = t.protocol.known_size(t.protocol.Reply(409, answer.body))
        answer = ours.ask(other, held, old=size)
    print(held.origin, held.size, held.root.hex(), answer.status, flush=True)
"""
    seen: dict[tuple[str, int], str] = {}
    last = 0
    for turn in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent),
             str(Path(__file__).parent.parent)],
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert process.stdout is not None
        for _ in range(6 + 3 * turn):
            line = process.stdout.readline().split()
            if not line:
                break
            origin, size, root, status = line[0], int(line[1]), line[2], int(line[3])
            assert status in (200, 429), line
            assert size >= last
            assert seen.setdefault((origin, size), root) == root
            last = size
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert len({origin for origin, _ in seen}) == 1
    assert len(seen) > 20


def test_two_processes_of_a_home_sign_one_history(home: Callable[..., Home]) -> None:
    """A command and the node, turn by turn, each with connections of its own."""
    one, two = home("log"), home("log")
    held: list[proofs.Held] = []
    for turn in range(12):
        fill(one.store, Author(1).reopen(bytes([turn]) * 8), 40)
        held.append((one, two)[turn % 2].checkpoint())
    assert len({checkpoint.origin for checkpoint in held}) == 1
    assert [checkpoint.size for checkpoint in held] == [40 * (turn + 1) for turn in range(12)]
    assert one.checkpoint() == two.checkpoint() == held[-1]
    for early in held:
        path = two.log.growth(early.size, held[-1])
        assert merkle.extends(early.size, early.root, held[-1].size, held[-1].root, path)


# --- witnesses ------------------------------------------------------------------------------


def test_a_witness_cosigns_what_grows(home: Callable[..., Home]) -> None:
    ours, other = home("log"), home("witness", WITNESSES[0])
    fill(ours.store, Author(1), 5)
    held = ours.checkpoint()
    answer = ours.ask(other, held)
    assert answer.status == 200
    assert ours.log.latest() == proofs.Held(
        held.origin, 5, held.root, NOW, held.note + answer.body, (WITNESSES[0].public,)
    )
    fill(ours.store, Author(2), 400)
    later = ours.checkpoint()
    assert ours.ask(other, later).status == 200
    assert ours.ask(other, later).status == 200, "the same once more"
    assert ours.log.cosigned_size(WITNESSES[0].public, later.origin) == 405


def test_a_log_that_forgot_what_its_witness_knows_learns_it(home: Callable[..., Home]) -> None:
    ours, other = home("log"), home("witness", WITNESSES[0])
    fill(ours.store, Author(1), 5)
    ours.ask(other, ours.checkpoint())
    fill(ours.store, Author(2), 5)
    held = ours.checkpoint()
    answer = ours.ask(other, held, old=0)
    assert (answer.status, answer.reason) == (409, "")
    size, note = protocol.known_size(protocol.Reply(409, answer.body))
    assert size == 5
    assert ours.log.is_ours(size, note, held)
    assert ours.ask(other, held, old=size).status == 200
    with pytest.raises(PeerError, match="bad-witness"):
        ours.log.is_ours(6, note, held)
    with pytest.raises(PeerError, match="bad-witness"):
        ours.log.is_ours(size, note.replace(b"5", b"6", 1), held)


def test_two_trees_of_one_size_are_refused_and_kept_as_proof(home: Callable[..., Home]) -> None:
    other = home("witness", WITNESSES[0])
    origin = f"{peer_id(LOG_KEY.public)}/00000000"
    one = proofs.sign_checkpoint(LOG_KEY, origin, 3, digest("one"))
    two = proofs.sign_checkpoint(LOG_KEY, origin, 3, digest("two"))
    public = LOG_KEY.public
    assert other.witness.cosign(public, 0, (), one, NOW).status == 200
    answer = other.witness.cosign(public, 3, (), two, NOW)
    assert (answer.status, answer.reason) == (409, "two-trees")
    assert other.witness.splits() == [(origin, one, two)]
    assert other.witness.cosign(public, 3, (), one, NOW).status == 409, "never again"
    more = proofs.sign_checkpoint(LOG_KEY, origin, 4, digest("more"))
    assert other.witness.cosign(public, 3, (digest("x"),), more, NOW).status == 409


def test_a_witness_never_goes_back_nor_takes_a_bad_proof(home: Callable[..., Home]) -> None:
    ours, other = home("log"), home("witness", WITNESSES[0])
    fill(ours.store, Author(1), 5)
    early = ours.checkpoint()
    fill(ours.store, Author(2), 5)
    late = ours.checkpoint()
    assert ours.ask(other, late, old=0).status == 200
    assert ours.ask(other, early, old=0).status == 409
    public = ours.key.public
    assert other.witness.cosign(public, 10, (), early.own_note, NOW).status == 400
    fill(ours.store, Author(3), 5)
    grown = ours.checkpoint()
    path = tuple(ours.log.growth(10, grown))
    for wrong in ((), path[:-1], (*path, path[0]), (digest("x"), *path[1:])):
        answer = other.witness.cosign(public, 10, wrong, grown.own_note, NOW)
        assert (answer.status, answer.reason) == (422, "bad-consistency")
    assert other.witness.cosign(public, 10, path, grown.own_note, NOW).status == 200


def test_a_witness_cosigns_only_for_the_log_itself(home: Callable[..., Home]) -> None:
    ours, other = home("log"), home("witness", WITNESSES[0])
    fill(ours.store, Author(1), 5)
    held = ours.checkpoint()
    stranger = WITNESSES[1].public
    forged = held.own_note.replace(b"\n5\n", b"\n6\n", 1)
    answers = [
        other.witness.cosign(stranger, 0, (), held.own_note, NOW),
        other.witness.cosign(ours.key.public, 0, (), forged, NOW),
        other.witness.cosign(ours.key.public, 0, (), b"", NOW),
        other.witness.cosign(ours.key.public, 0, (), COSIGNED, NOW),
        other.witness.cosign(
            ours.key.public,
            0,
            (),
            held.own_note + proofs.cosign(WITNESSES[1], held.text, SECONDS),
            NOW,
        ),
    ]
    assert {(answer.status, answer.reason) for answer in answers} == {(403, "bad-checkpoint")}
    assert ours.witness.cosign(ours.key.public, 0, (), held.own_note, NOW).status == 404


def test_what_a_stranger_can_make_a_witness_do_is_bounded(home: Callable[..., Home]) -> None:
    other = home("witness", WITNESSES[0])
    public = LOG_KEY.public

    def note(tree: int) -> bytes:
        return proofs.sign_checkpoint(
            LOG_KEY, f"{peer_id(public)}/{tree:08x}", 3, digest(str(tree))
        )

    statuses = [other.witness.cosign(public, 0, (), note(n), NOW).status for n in range(BURST + 2)]
    assert statuses == [200] * BURST + [429] * 2
    later = NOW + REFILL_MS
    assert other.witness.cosign(public, 0, (), note(BURST), later).status == 200
    assert other.witness.cosign(public, 0, (), note(BURST + 1), later).status == 429
    far = NOW + 20 * REFILL_MS
    statuses = [other.witness.cosign(public, 0, (), note(n), far).status for n in range(50, 60)]
    assert statuses.count(200) == MAX_NEW_ORIGINS_A_DAY - BURST - 1
    assert statuses[-1] == 507


def test_a_cosignature_that_does_not_hold_is_not_kept(home: Callable[..., Home]) -> None:
    ours = home("log")
    fill(ours.store, Author(1), 5)
    held = ours.checkpoint()
    witness = WITNESSES[0]
    good = proofs.cosign(witness, held.text, SECONDS)
    for line in (
        b"",
        good[:-1],
        good + good,
        proofs.cosign(WITNESSES[1], held.text, SECONDS),
        proofs.cosign(witness, held.text + b"x\n", SECONDS),
        proofs.cosign(witness, held.text, SECONDS + 10**6),
        good.replace(b" ", b"  "),
        b"junk\n\n" + good,
    ):
        with pytest.raises(PeerError, match="bad-cosignature"):
            ours.log.add_cosignature(held, witness.public, line, NOW)
    ours.log.add_cosignature(held, witness.public, good, NOW)


# --- proofs ---------------------------------------------------------------------------------


@pytest.fixture
def proof(home: Callable[..., Home]) -> bytes:
    """A proof of one result among 700 entries, with two witnesses."""
    ours = home("log")
    entries = fill(ours.store, Author(1), 700)
    held = ours.checkpoint()
    for number, key in enumerate(WITNESSES[:2]):
        assert ours.ask(home(f"witness {number}", key), held).status == 200
    found = ours.log.covering(entries[300].id)
    assert found is not None
    return ours.log.prove(entries[300].id, entries[300].frame, found)


def test_a_proof_says_who_signed_what_where_and_who_saw_it(proof: bytes) -> None:
    proved = verifier.check(proof)
    assert proved.entry.author == Author(1).public
    assert proved.entry.kind == 5
    assert (proved.index, proved.checkpoint.size, proved.log) == (300, 700, LOG_KEY.public)
    assert {key for key, _ in proved.witnesses} == {key.public for key in WITNESSES[:2]}
    text = "\n".join(verifier.words(proved, [], None))
    assert "a result in project" in text
    assert "completed, 3 passed on cpython 3.12.1" in text
    assert max(map(len, text.splitlines())) < 100
    assert "Not proved" in text
    assert "true" in text
    assert peer_id(WITNESSES[0].public) in text


def test_witnesses_are_the_readers_choice(proof: bytes) -> None:
    first, second, third = (key.public for key in WITNESSES)

    def code(chosen: list[bytes], needed: int | None) -> int:
        return verifier.judge(proof, chosen, needed, as_json=False)[0]

    assert code([], None) == code([], 2) == code([first], None) == code([first, second], None) == 0
    assert code([first, third], 1) == 0
    assert code([], 3) == code([third], None) == code([first, third], None) == 4
    assert "NOT ENOUGH: 3 witnesses" in verifier.judge(proof, [], 3, as_json=False)[1]
    facts = json.loads(verifier.judge(proof, [third], None, as_json=True)[1])
    assert (facts["proved"], facts["counted"], facts["needed"]) == (False, 0, 1)


def test_no_tampered_byte_is_accepted(proof: bytes) -> None:
    """Every byte, changed in three ways, left out, and cut off there."""
    for at in range(len(proof)):
        byte = proof[at]
        for other in {byte ^ 1, byte ^ 0x80, (byte + 1) % 256} - {byte}:
            code, text = verifier.judge(
                proof[:at] + bytes([other]) + proof[at + 1 :], [], None, as_json=False
            )
            assert code == 4, f"byte {at} as {other}: {text}"
        left_out = proof[:at] + proof[at + 1 :]
        assert verifier.judge(left_out, [], None, as_json=True)[0] == 4, at
        code, _ = verifier.judge(proof[:at], [], None, as_json=True)
        # Without its last witnesses, line by line, it is a weaker proof and a true one.
        line_ends = proof[:at].endswith(b"\n") and at > proof.index(b"\n\n\xe2\x80\x94") + 150
        assert (code == 0) == line_ends, at
        if code == 0:
            assert len(verifier.check(proof[:at]).witnesses) < 2
    assert verifier.judge(proof + b"\n", [], None, as_json=False)[0] == 4


@settings(max_examples=300)
@given(st.data())
def test_no_splice_is_accepted(data: st.DataObject) -> None:
    proof = SYNTHETIC
    at, end = sorted(data.draw(st.tuples(*[st.integers(0, len(proof))] * 2)))
    junk = data.draw(st.binary(max_size=40) | st.sampled_from([b"\n", b"\n\n", b"\xe2\x80\x94 "]))
    changed = proof[:at] + junk + proof[end:]
    try:
        proved, wanted = verifier.check(changed), verifier.check(proof)
    except verifier.Invalid:
        return
    # Without some of its witnesses it is a weaker proof of the same, and true.
    assert (proved.entry, proved.index) == (wanted.entry, wanted.index)
    assert proved.checkpoint == wanted.checkpoint
    assert set(proved.witnesses) <= set(wanted.witnesses)


def synthetic(size: int, frame: bytes, id_: bytes, witnesses: int) -> bytes:
    """A proof of an entry in the middle of a tree of ``size``."""
    index = size // 2 - 1
    ids = many(4096)
    levels = merkle.full([merkle.leaf_hash(i) for i in ids])
    levels[0][index % 4096] = merkle.leaf_hash(id_)

    def node(level: int, position: int) -> bytes:
        # Only the entry's own path has to be true; the rest of the tree is one block again.
        start, end = position << level, (position + 1) << level
        if start <= index < end and level:
            left = node(level - 1, position * 2)
            return merkle.node_hash(left, node(level - 1, position * 2 + 1))
        if start == index:
            return merkle.leaf_hash(id_)
        return digest(f"{level} {position}")

    root = merkle.root(size, node)
    path = tuple(merkle.inclusion(index, size, node))
    note = proofs.sign_checkpoint(LOG_KEY, f"{peer_id(LOG_KEY.public)}/01234567", size, root)
    text = verifier.open_note(note).text
    note += b"".join(proofs.cosign(key, text, SECONDS) for key in WITNESSES[:witnesses])
    return proofs.encode_proof(verifier.Proof(index, path, frame, note))


def typical() -> Entry:
    """A result as nodes publish it: a full environment and both blobs."""
    author = Author(1)
    place = environment(
        build="main, Dec 10 2025 GCC 12.2.0",
        release="6.1.0-18-amd64",
        libc="glibc 2.36",
        services={"postgresql": "15.6"},
        sandbox="bubblewrap 0.8.0, cgroup v2, seccomp",
    )
    said = result(
        digest("job"),
        digest("cell"),
        passed=512,
        environment=place,
        tests=Blob(hash=digest("tests"), size=12345),
        log=Blob(hash=digest("log"), size=2345),
    )
    return author.sign(said, digest("project"))


SYNTHETIC = synthetic(10**6, typical().frame, typical().id, 3)


def test_a_proof_at_a_million_entries_with_three_witnesses_is_small() -> None:
    proved = verifier.check(SYNTHETIC)
    assert (proved.checkpoint.size, len(proved.witnesses)) == (10**6, 3)
    assert len(verifier.open_proof(SYNTHETIC).path) in (19, 20)
    assert len(typical().frame) > 800
    assert len(SYNTHETIC) <= 2500


@given(st.integers(1, 70), st.data())
def test_the_verifier_agrees_with_the_tree(size: int, data: st.DataObject) -> None:
    """Two implementations of one check, on true and false claims."""
    ids = many(size)
    levels = merkle.full([merkle.leaf_hash(id_) for id_ in ids])

    def node(level: int, position: int) -> bytes:
        return levels[level][position]

    index = data.draw(st.integers(0, size - 1))
    path = tuple(merkle.inclusion(index, size, node))
    root = merkle.root(size, node)
    for claimed in range(size + 2):
        for of in (size, claimed):
            wanted = merkle.includes(merkle.leaf_hash(ids[index]), claimed, of, path, root)
            assert verifier._includes(ids[index], claimed, of, path, root) == wanted
    assert verifier._includes(ids[index], index, size, path, root)


def test_cosignatures_of_the_log_itself_or_twice_make_it_invalid(proof: bytes) -> None:
    opened = verifier.open_proof(proof)
    text = verifier.open_note(opened.note).text
    own = proofs.cosign(LOG_KEY, text, SECONDS)
    again = proofs.cosign(WITNESSES[0], text, SECONDS)
    for line in (own, again):
        assert verifier.judge(proof + line, [], None, as_json=False)[0] == 4
    third = proofs.cosign(WITNESSES[2], text, SECONDS)
    assert verifier.judge(proof + third, [], 3, as_json=False)[0] == 0


def test_strangers_text_is_made_harmless() -> None:
    author = Author(1)
    entry = author.project(name="demo\x1b[31m\u202e\n")
    text = verifier.describe(verifier.open_frame(entry.frame))
    assert "demo?" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


@given(st.binary(max_size=60))
def test_any_content_can_be_described(payload: bytes) -> None:
    for kind in range(12):
        verifier.describe(verifier.Signed(bytes(32), kind, bytes(32), b"p" * 32, 0, 0, payload))


# --- what never changes ---------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


def golden(frame: bytes) -> tuple[bytes, bytes]:
    """(checkpoint, proof) of an entry that is the fourth of eleven leaves."""
    ids = many(11)
    ids[3] = verifier.open_frame(frame).id
    levels = merkle.full([merkle.leaf_hash(id_) for id_ in ids])
    size = len(ids)

    def node(level: int, position: int) -> bytes:
        return levels[level][position]

    log, first, second = (SecretKey(bytes([number]) * 32) for number in (1, 2, 3))
    origin = f"{peer_id(log.public)}/00000001"
    note = proofs.sign_checkpoint(log, origin, size, merkle.root(size, node))
    text = verifier.open_note(note).text
    note += proofs.cosign(first, text, 1_800_000_100) + proofs.cosign(second, text, 1_800_000_101)
    path = tuple(merkle.inclusion(3, size, node))
    return note, proofs.encode_proof(verifier.Proof(3, path, frame, note))


def test_the_bytes_of_a_proof_never_change() -> None:
    """tests/vectors/proof.hex and docs/proofs.md hold them for other implementations."""
    kept = bytes.fromhex((ROOT / "tests/vectors/proof.hex").read_text())
    note, proof = golden(verifier.open_proof(kept).frame)
    assert kept == proof
    assert note.decode() in (ROOT / "docs/proofs.md").read_text("utf-8")
    assert len(verifier.check(kept).witnesses) == 2


# --- the programs ---------------------------------------------------------------------------


def alone(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of the verifier where nothing but PyNaCl can be imported."""
    packages = tmp_path / "packages"
    packages.mkdir(exist_ok=True)
    site = Path(nacl.__file__).parent.parent
    for found in [site / "nacl", *site.glob("_cffi_backend*"), site / "cffi"]:
        target = packages / found.name
        if found.exists() and not target.exists():
            target.symlink_to(found)
    shutil.copy(str(verifier.__file__), tmp_path / "verifier.py")
    runner = (
        "import runpy, sys\n"
        f"sys.path.append({str(packages)!r})\n"
        "for name in ('ponyswarm', 'base58', 'msgpack'):\n"
        "    try: __import__(name)\n"
        "    except ImportError: continue\n"
        "    sys.exit('not alone')\n"
        "sys.argv[0:1] = []\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", runner, "verifier.py", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_verifier_works_where_there_is_no_ponyswarm(tmp_path: Path, proof: bytes) -> None:
    (tmp_path / "good.proof").write_bytes(proof)
    (tmp_path / "bad.proof").write_bytes(proof[:500] + bytes([proof[500] ^ 1]) + proof[501:])
    witness = peer_id(WITNESSES[0].public)
    done = alone(tmp_path, "good.proof", "--witness", witness, "-n", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Not proved" in done.stdout
    assert "(not one that you named)" in done.stdout
    facts = json.loads(alone(tmp_path, "good.proof", "--json").stdout)
    assert (facts["proved"], facts["index"], facts["size"]) == (True, 300, 700)
    done = alone(tmp_path, "bad.proof")
    assert (done.returncode, done.stderr) == (4, "")
    assert "NOT A VALID PROOF" in done.stdout
    assert alone(tmp_path, "good.proof", "-n", "3").returncode == 4
    done = alone(tmp_path, "missing.proof")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert alone(tmp_path, "good.proof", "--witness", "nobody").returncode == 2


def test_export_and_verify_are_commands(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    run = CliRunner()

    def ponyswarm(*arguments: str, code: int = 0) -> str:
        done = run.invoke(main, ["--home", str(folder), *arguments])
        assert done.exit_code == code, done.output
        return done.output

    ponyswarm("init", "--yes")
    made = json.loads(ponyswarm("project", "create", "demo", "--json"))
    file = str(tmp_path / "demo.proof")
    said = ponyswarm("export", "--proof", made["project"][:12], "-o", file)
    assert "in a tree of 1, 0 witnesses" in said
    assert "no node runs here" in said
    said = ponyswarm("verify", "--proof", file)
    assert "a project: demo" in said
    assert "no witness cosigned this" in said
    facts = json.loads(ponyswarm("verify", "--proof", file, "--json"))
    assert facts["entry"] == made["project"]
    assert "NOT ENOUGH" in ponyswarm("verify", "--proof", file, "-n", "1", code=4)
    assert "--proof FILE" in ponyswarm("verify", "-n", "1", code=2)
    assert "is not a cell" in ponyswarm("export", "--proof", "xyz", "-o", file, code=2)
    assert "no cell" in ponyswarm("export", "--proof", "0123456789", "-o", file, code=2)
    Path(file).write_bytes(b"junk")
    assert "NOT A VALID PROOF" in ponyswarm("verify", "--proof", file, code=4)
