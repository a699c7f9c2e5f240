"""A home's notary: its own log of checkpoints, and its memory as a witness of others.

Both live in one database of the state folder, apart from the ledger: a backup of the
ledger that is put back must not take with it the memory of what was signed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ponyswarm.keys import SecretKey
from ponyswarm.ledger.database import connect
from ponyswarm.ledger.journal import machine_id
from ponyswarm.ledger.proofs import Log, Tree
from ponyswarm.ledger.witness import Witness


@dataclass(frozen=True, slots=True)
class Notary:
    key: SecretKey
    log: Log
    witness: Witness


@contextmanager
def open_notary(*, key: SecretKey, ledger: Path, witness: Path) -> Iterator[Notary]:
    """Open a home's notary beside its ledger, which must be there already.

    Several processes of one home may. Raises `LocalError` for what cannot be opened.
    """
    tree = Tree(ledger)
    try:
        db = connect(witness, synchronous="FULL")
        try:
            places = [(found.st_dev, found.st_ino) for found in (ledger.stat(), witness.stat())]
            bound = f"{machine_id()} {places}"
            log = Log(db, tree, key, bound=bound, random=os.urandom)
            yield Notary(key, log, Witness(db, key))
        finally:
            db.close()
    finally:
        tree.close()
