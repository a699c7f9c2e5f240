"""A world of one project, its jobs and its volunteers: what the ledger's benchmarks ask about.

    python -m bench.world HOME [--entries 10000000]

builds it as a ledger in HOME, which `ponyswarm --home HOME results bench` and the other
commands read, and `bench.ledger --home HOME`. Frames are as nodes publish them; to build ten
million without ten million signatures, theirs are noise, which the store never looks at.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sqlite3
import time
from pathlib import Path

from msgspec.structs import replace

from ponyswarm import codec
from ponyswarm.codec import ZERO, decode_frame, sign_entry
from ponyswarm.home import Home
from ponyswarm.keys import SecretKey
from ponyswarm.ledger.store import Store
from ponyswarm.matrix import cells
from ponyswarm.messages import (
    Announce,
    Blob,
    Entry,
    Environment,
    Header,
    Kind,
    Project,
    Reason,
    Result,
    Spec,
    Status,
)

NOW = 1_800_000_000_000
LATER = NOW + 10**12
SEGMENT = 50
AUTHORS = 20
CELLS = 40
# Runs of the first job: one commit that everybody ran again and again.
HOT = 61_000
# Entries of one feed, which is at most 64 MiB.
LONG = 50_000
# Of so many results one fails, and one is broken.
KINDS = 50


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def environment(author: int) -> Environment:
    return Environment(
        implementation="cpython",
        version=f"3.12.{author % 5}",
        build="GCC 13.2.0",
        system="linux",
        release="6.8.0-45-generic",
        machine="x86_64",
        libc="glibc 2.39",
        packages=digest("packages"),
        services={"postgresql": "16.3"},
        sandbox="bubblewrap 0.9.0",
    )


def outcome(job: bytes, cell: bytes, author: int, number: int) -> Result:
    return Result(
        job=job,
        cell=cell,
        state="completed",
        counts={Status.PASSED: 1200 + number % 7, Status.SKIPPED: 14},
        digest=hashlib.sha256(job + bytes([number % 3])).digest(),
        tests=Blob(hash=os.urandom(32), size=20_000 + number % 9000),
        log=Blob(hash=os.urandom(32), size=3_000 + number % 900),
        environment=environment(author),
        started=NOW + number * 60_000,
        seconds=31.5 + number / 7,
    )


class World:
    """A project, its jobs, and volunteers whose feeds go on and on."""

    def __init__(self) -> None:
        self.root = SecretKey(b"\1" * 32)
        self.genesis = self._said(Project(name="bench", roots=(self.root.public,)), ZERO, ZERO, 0)
        self.project = self.genesis.id
        self.jobs: list[tuple[Entry, list[bytes]]] = []
        self._prev = ZERO

    @classmethod
    def with_jobs(cls, count: int) -> World:
        world = cls()
        for _ in range(count):
            world.announce()
        return world

    def _said(self, payload: Project | Announce, project: bytes, prev: bytes, seq: int) -> Entry:
        return sign_entry(
            self.root, payload, project=project, nonce=bytes(8), seq=seq, prev=prev, time=NOW + seq
        )

    def announce(self) -> Entry:
        number = len(self.jobs)
        spec = Spec(python=tuple(f"3.{minor}" for minor in range(CELLS)))
        said = Announce(
            title=f"commit {number}",
            commit=hashlib.sha1(str(number).encode()).hexdigest(),
            source=digest(f"source {number}"),
            source_size=100_000,
            source_name="bench.tar.gz",
            spec=spec,
            resolve_before=NOW,
            expires=LATER,
        )
        job = self._said(said, self.project, self._prev, number)
        self._prev = job.id
        self.jobs.append((job, [codec.cell_id(job.id, cell) for cell in cells(spec)]))
        return job


def _templates(author: int) -> list[bytes]:
    """What an author's results say, job and cell zero: most pass, one fails, one is broken."""
    passing = outcome(bytes(32), bytes(32), author, 7)
    bad = tuple(f"tests/test_{name}.py::test_{name}_{author % 3}" for name in ("pool", "retry"))
    counts = {**passing.counts, Status.FAILED: len(bad)}
    failing = replace(passing, counts=counts, bad=bad, digest=digest(" ".join(bad)))
    broken = replace(passing, state="broken", reason=Reason.TIMEOUT, counts={})
    said = [passing] * (KINDS - 2) + [failing, broken]
    return [codec.pack(result) for result in said]


def build(world: World, store: Store, count: int) -> int:
    """Fill a ledger with results, and announce jobs meanwhile; the bytes of the frames."""
    project, total = world.project, 0
    heads: dict[int, tuple[int, bytes, int]] = {}
    authors = [SecretKey(bytes([2 + author]) * 32).public for author in range(AUTHORS)]
    noise = os.urandom(64 + 4096)
    hot = min(HOT, count // 4)
    templates = [_templates(author) for author in range(AUTHORS)]
    done = feeds = 0
    while done < count:
        if done >= hot and done % (CELLS * AUTHORS) < SEGMENT:
            store.append(world.announce(), LATER)
        batch = []
        for _ in range(20):
            author = feeds % AUTHORS
            feeds += 1
            seq, prev, nonce = heads.get(author, (0, ZERO, 0))
            if seq == LONG:
                seq, prev, nonce = 0, ZERO, nonce + 1
            job, ids = world.jobs[0 if done < hot else -1 - random.randrange(2) % len(world.jobs)]
            segment = []
            for _ in range(SEGMENT):
                template = templates[author][(seq + 7 * author) * 13 % KINDS]
                a, b = template.index(b"\xa3job") + 6, template.index(b"\xa4cell") + 7
                cell = ids[seq % CELLS]
                body = template[:a] + job.id + template[a + 32 : b] + cell + template[b + 32 :]
                header = Header(
                    Kind.RESULT, len(body), authors[author], project, nonce.to_bytes(8, "big"),
                    seq, prev, NOW + (done + seq) * 1000 + nonce, hashlib.sha256(body).digest(),
                )  # fmt: skip
                packed = codec.pack_header(header)
                at = seq % 4096
                segment.append(packed + noise[at : at + 64] + body)
                seq, prev = seq + 1, codec.entry_id(packed)
            heads[author] = (seq, prev, nonce)
            batch.append([decode_frame(frame) for frame in segment])
            total += sum(map(len, segment))
            done += SEGMENT
        store.append_segments(batch, LATER)
    return total


def build_home(folder: Path, count: int) -> None:
    """A home with such a ledger; its file appears when it is complete."""
    home = Home.under(folder)
    home.create()
    path = home.ledger.with_suffix(".new")
    store = Store(path)
    world = World.with_jobs(1)
    store.append_all([world.genesis, *(job for job, _ in world.jobs)], LATER)
    start = time.perf_counter()
    build(world, store, count)
    store.close()
    path.rename(home.ledger)
    print(f"built {count:,} entries in {time.perf_counter() - start:.0f} s: {home.ledger}")


def jobs_of(path: Path) -> tuple[bytes, list[bytes]]:
    """The project of a ledger that was built here, and its jobs, the first one first."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    rows = db.execute("SELECT project, job FROM job ORDER BY announced").fetchall()
    db.close()
    return rows[0][0], [job for _, job in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build a large ledger.")
    parser.add_argument("home", type=Path)
    parser.add_argument("--entries", type=int, default=10_000_000)
    chosen = parser.parse_args()
    build_home(chosen.home, chosen.entries)
