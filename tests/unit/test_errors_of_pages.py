"""What a reader of the pages is told when there is nothing to show, and of a proof that is none."""

from __future__ import annotations

from told import told

from ponyswarm.ledger import verifier
from ponyswarm.web.pages.common import hex_id


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
