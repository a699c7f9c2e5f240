"""A home whose ledger is filled by hand, and which commands then ask."""

from __future__ import annotations

import json
from pathlib import Path

from authors import FAR, NOW, Author, announce, cell_ids, digest, environment
from click.testing import CliRunner

from ponyswarm import codec
from ponyswarm.cli import main
from ponyswarm.codec import encode_tests, outcome_digest
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Blob, Entry, Result, Spec, Status

SPEC = Spec(python=("3.12", "3.13"), redundancy=2)


class Ledger:
    """A home's ledger and blobs, filled by hand and asked by commands."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / "ledger.db"
        self.store = Store(self.path)
        self.maintainer = Author(1)
        genesis = self.maintainer.project()
        self.project = genesis.id
        self.fill(genesis)

    def fill(self, *entries: Entry) -> None:
        for entry in entries:
            self.store.append(entry, FAR)

    def job(self, title: str, commit: str) -> tuple[Entry, list[bytes]]:
        payload = announce(spec=SPEC, title=title, commit=commit)
        entry = self.maintainer.sign(payload, self.project)
        self.fill(entry)
        return entry, cell_ids(entry, payload)

    def run(
        self,
        author: Author,
        job: Entry,
        cell: bytes,
        statuses: dict[str, Status],
        *,
        version: str = "3.12.1",
        keep: bool = True,
        message: str = "assert 1 == 2",
    ) -> Entry:
        """A result whose list of tests is a blob, here unless ``keep`` is false."""
        records = [codec.TestRecord(id_, status, 0.1, message) for id_, status in statuses.items()]
        data = encode_tests(records)
        blob = Blob(hash=digest(data.hex()), size=len(data))
        counts: dict[Status, int] = {}
        for status in statuses.values():
            counts[status] = counts.get(status, 0) + 1
        bad = tuple(id_ for id_, s in statuses.items() if s in (Status.FAILED, Status.ERROR))
        entry = author.sign(
            Result(
                job=job.id,
                cell=cell,
                state="completed",
                counts=counts,
                digest=outcome_digest("completed", None, list(statuses.items())),
                bad=bad,
                tests=blob,
                environment=environment(version),
                started=NOW,
                seconds=1.0,
            ),
            self.project,
        )
        self.fill(entry)
        if keep:
            path = self.home / "blobs" / blob.hash.hex()[:2] / blob.hash.hex()[2:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self.store.notes.explain(entry.id, [(id_, message) for id_ in bad])
        return entry

    def ask(self, *arguments: str, code: int = 0) -> object:
        done = CliRunner().invoke(main, ["--home", str(self.home), *arguments, "--json"])
        assert done.exit_code == code, (done.exit_code, done.output)
        return json.loads(done.stdout)

    def say(self, *arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, ["--home", str(self.home), *arguments])
        assert done.exit_code == code, (done.exit_code, done.output)
        return done.stdout
