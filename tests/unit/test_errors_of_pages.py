"""What a reader of the pages is told when there is nothing to show, and of a proof that is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from authors import NOW, Author
from told import told
from web_home import Sights, WebHome, furnish

from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.ledger import merkle, proofs, verifier
from ponyswarm.ledger.queries import Reader
from ponyswarm.web.pages import coverage, project, run, test, volunteer
from ponyswarm.web.pages.common import hex_id
from ponyswarm.web.site import Site

# --- pages ------------------------------------------------------------------------------------

NOBODY = "ab" * 32


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WebHome, Sights, Reader]]:
    home, sights = furnish(tmp_path_factory.mktemp("web") / "home")
    with Reader(home.home.ledger) as reader:
        yield home, sights, reader
    home.close()


def test_a_project_that_is_not_here(furnished: tuple[WebHome, Sights, Reader]) -> None:
    home, sights, reader = furnished
    site, id_ = home.site(), sights.project.hex()
    with told(
        "the project abababababababab… is not in this ledger: 'ponyswarm follow add …' gets it, "
        "once a node runs",
        at="web/pages/project.py",
    ):
        project.project(site, reader, NOBODY, before=None, now=home.now)
    with told(
        "the project abababababababab… is not in this ledger: 'ponyswarm follow add …' gets it, "
        "once a node runs",
        at="web/pages/coverage.py",
    ):
        coverage.coverage(site, reader, NOBODY, home.now)
    with told(
        "the project abababababababab… is not in this ledger: 'ponyswarm follow add …' gets it, "
        "once a node runs",
        at="web/pages/test.py",
    ):
        test.test(site, reader, NOBODY, "t")
    with told("name a test: its address ends in ?id=TEST, as links to tests do"):
        test.test(site, reader, id_, "")


def test_a_run_that_is_not_here(furnished: tuple[WebHome, Sights, Reader]) -> None:
    home, _, reader = furnished
    with told(
        "the run abababababababab… is not in this ledger: it may come while a node runs, and "
        "'ponyswarm log' shows what did"
    ):
        run.log(home.site(), reader, NOBODY)


def test_output_that_is_not_here(furnished: tuple[WebHome, Sights, Reader], tmp_path: Path) -> None:
    home, sights, reader = furnished
    bare = Site(ledger=home.home.ledger, blobs=tmp_path, status_file=home.home.status)
    with told(
        "its output is not on this machine: 'ponyswarm show … --log' asks peers for it while a "
        "node runs",
        at="web/pages/run.py log",
    ):
        run.log(bare, reader, sights.failing_run.hex())


def test_a_volunteer_that_is_not_here(furnished: tuple[WebHome, Sights, Reader]) -> None:
    home, _, reader = furnished
    with told(
        "'me' is not a whole Ed25519 key: a key looks like …", at="web/pages/volunteer.py volunteer"
    ):
        volunteer.volunteer(home.site(), reader, "me", now=home.now)
    with told(
        "the key …… has published nothing in this ledger: check it, or let a node run until what "
        "it published came"
    ):
        nobody = peer_id(SecretKey(bytes([77]) * 32).public)
        volunteer.volunteer(home.site(), reader, nobody, now=home.now)


# --- proofs -----------------------------------------------------------------------------------

LOG_KEY, WITNESS = (SecretKey(bytes([number]) * 32) for number in (1, 2))
SECONDS = NOW // 1000


def test_an_id_that_is_none() -> None:
    with told("'zz' is not an id: ids have 64 hexadecimal digits"):
        hex_id("zz")


def test_a_file_that_is_no_proof() -> None:
    with told("this is not a proof of PonySwarm, or of a later version"):
        verifier.open_proof(b"hello")
    with told("a proof has at most … bytes"):
        verifier.open_proof(bytes(verifier.MAX_FILE + 1))


def test_an_entry_that_is_none() -> None:
    with told("the entry is cut short"):
        verifier.open_frame(b"")


def test_a_key_that_is_none() -> None:
    with told("a key has at most 64 characters"):
        verifier.parse_peer_id("x" * 65)


def test_a_checkpoint_that_is_none() -> None:
    with told("the checkpoint is not UTF-8"):
        verifier.open_note(b"\xff")
    with told("the checkpoint has control characters"):
        verifier.open_note(b"a\x00b")
    with told("the checkpoint has no signatures"):
        verifier.open_note(b"a\n")
    with told("the checkpoint has too many signatures"):
        verifier.open_note(b"a\n\n" + "\u2014 a AAAA\n".encode() * 99)
    with told("what should be base64 is not"):
        verifier.unbase64("?")
    with told("base64 is not written in its one form"):
        verifier.unbase64("AB==")
    with told("what should be a number is not"):
        verifier.unnumber("x")


def test_a_value_that_is_none() -> None:
    with told("nested too deep"):
        verifier._unpack(b"\x91" * 99, 0, 0)
    with told("a value of an unknown type"):
        verifier._unpack(b"\xc1", 0, 0)
    with told("cut short"):
        verifier._unpack(b"\xa5ab", 0, 0)
    with told("a name that is not text"):
        verifier._unpack(b"\x81\x01\x01", 0, 0)


def test_a_signature_that_is_none() -> None:
    with told("a signature line is out of form"):
        verifier._signature("x")
    with told("a signature's name has spaces in it"):
        verifier._signature(f"{verifier.SIGNATURE_MARK}a\u2003b AAAA")
    with told("a signature is cut short"):
        verifier._signature(f"{verifier.SIGNATURE_MARK}a AAAA")


# --- a proof that was damaged -----------------------------------------------------------------

ORIGIN = f"{peer_id(LOG_KEY.public)}/00000001"
FRAME = Author(1).project().frame
OTHER = Author(2).project().frame


def proof(
    frame: bytes = FRAME, *, index: int = 0, origin: str = ORIGIN, key: SecretKey = LOG_KEY
) -> bytes:
    """A proof of an entry that is alone in its tree."""
    root = merkle.leaf_hash(verifier.open_frame(FRAME).id)
    note = proofs.sign_checkpoint(key, origin, 1, root)
    return proofs.encode_proof(verifier.Proof(index, (), frame, note))


def text(data: bytes) -> bytes:
    return verifier.open_note(verifier.open_proof(data).note).text


def changed(frame: bytes, at: int, byte: int) -> bytes:
    return frame[:at] + bytes([byte]) + frame[at + 1 :]


def test_a_proof_that_is_whole_says_nothing() -> None:
    whole = proof()
    cosigned = whole + proofs.cosign(WITNESS, text(whole), SECONDS)
    assert verifier.check(cosigned).witnesses == ((WITNESS.public, SECONDS),)


@pytest.mark.parametrize("length", [20, 28, 70])
def test_a_proof_that_is_cut(length: int) -> None:
    with told("the file is cut short: get it again"):
        verifier.check(proof()[:length])


def test_an_entry_in_a_proof_that_was_changed() -> None:
    def checked(at: int, byte: int) -> None:
        verifier.check(proof(changed(FRAME, at, byte)))

    with told(
        "the entry is of a version that this program does not know: check it with a newer one"
    ):
        checked(0, 9)
    with told("the entry breaks the rules of its format"):
        checked(80, 1)  # A sequence number of which no entry came before.
    with told("the entry names no project"):
        checked(1, 5)  # A result that begins a feed of no project.
    with told("the entry's content is not what its header says"):
        checked(len(FRAME) - 1, FRAME[-1] ^ 1)
    with told("the entry's signature does not hold"):
        checked(verifier.HEADER.size, FRAME[verifier.HEADER.size] ^ 1)


def test_a_proof_of_an_entry_that_is_not_in_the_tree() -> None:
    with told("the entry is not in the tree of the checkpoint"):
        verifier.check(proof(OTHER))


def test_a_checkpoint_that_says_something_else() -> None:
    with told("the checkpoint is not the three lines that it should be"):
        verifier.open_checkpoint(b"a\n1\n")
    with told("the checkpoint's root is not a SHA-256"):
        verifier.open_checkpoint(b"a\n1\nAAAA\n")
    with told("the checkpoint's origin is not a key and a tree's number"):
        verifier.check(proof(origin="example.org"))
    with told("'0OIl' is not a key: a key looks like 12D3KooW…", at="ledger/verifier.py"):
        verifier.check(proof(origin="0OIl/00000001"))


def test_a_checkpoint_of_another_key() -> None:
    with told("the checkpoint's first signature is not of its log"):
        verifier.check(proof(key=WITNESS))
    whole = proof()
    at = whole.rindex(b" ") + 20
    with told("the checkpoint's signature does not hold"):
        verifier.check(changed(whole, at, ord("A") if whole[at] != ord("A") else ord("B")))


def test_a_witness_that_is_none() -> None:
    whole = proof()
    good = proofs.cosign(WITNESS, text(whole), SECONDS)
    with told("a cosignature is out of form"):
        verifier.check(
            whole + proofs.signature_line(peer_id(WITNESS.public), 1, WITNESS.public, b"x")
        )
    with told("the cosignature of … does not hold"):
        verifier.check(whole + proofs.cosign(WITNESS, b"another", SECONDS))
    for line in (good + good, proofs.cosign(LOG_KEY, text(whole), SECONDS)):
        with told("a witness is the log itself, or stands twice"):
            verifier.check(whole + line)
