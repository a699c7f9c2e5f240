"""Authors for tests: they sign real entries with fixed keys, and can be told to misbehave."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

from ponyswarm.codec import ZERO, cell_id, commitment, outcome_digest, sign_entry
from ponyswarm.keys import SecretKey
from ponyswarm.matrix import cells
from ponyswarm.messages import (
    Announce,
    Commit,
    Entry,
    Environment,
    Fork,
    Payload,
    Project,
    Result,
    Revoke,
    Spec,
    Status,
    Vouch,
    Withdraw,
)

NOW = 1_800_000_000_000
FAR = NOW + 10**9


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def environment(version: str = "3.12.1", **more: Any) -> Environment:
    return Environment(
        implementation="cpython",
        version=version,
        system="linux",
        machine="x86_64",
        packages=digest("packages"),
        **more,
    )


def project_record(*roots: Author, **more: Any) -> Project:
    more.setdefault("name", "demo")
    return Project(roots=tuple(root.public for root in roots), **more)


def announce(python: tuple[str, ...] = ("3.12",), redundancy: int = 2, **more: Any) -> Announce:
    spec = more.pop("spec", None) or Spec(python=python, redundancy=redundancy)
    more.setdefault("title", "demo 1.0")
    more.setdefault("expires", FAR)
    return Announce(
        source=digest("source"),
        source_size=1000,
        source_name="demo-1.0.tar.gz",
        spec=spec,
        resolve_before=NOW,
        **more,
    )


def result(
    job: bytes,
    cell: bytes,
    *,
    passed: int = 3,
    failed: int = 0,
    state: str = "completed",
    reason: Any = None,
    **more: Any,
) -> Result:
    tests = [(f"t{i}", Status.PASSED) for i in range(passed)]
    tests += [(f"f{i}", Status.FAILED) for i in range(failed)]
    more.setdefault("digest", outcome_digest(state, reason, tests))
    more.setdefault("environment", environment())
    return Result(
        job=job,
        cell=cell,
        state=state,
        reason=reason,
        counts={Status.PASSED: passed, Status.FAILED: failed},
        bad=tuple(f"f{i}" for i in range(failed))[:50],
        started=NOW,
        seconds=1.5,
        **more,
    )


def sealed_result(
    author: Author, job: bytes, cell: bytes, *, seen: tuple[bytes, ...] = (), **more: Any
) -> tuple[Commit, Result]:
    """What a blind volunteer commits to, and the result that opens it."""
    nonce = digest(f"nonce {author.number} {cell.hex()}")
    told = result(job, cell, nonce=nonce, seen=seen, **more)
    bound = commitment(nonce, told.digest, author.public)
    return Commit(job=job, cell=cell, commitment=bound), told


def cell_ids(job: Entry, payload: Announce) -> list[bytes]:
    return [cell_id(job.id, cell) for cell in cells(payload.spec)]


def fork_of(first: Entry, second: Entry) -> Fork:
    return Fork(
        first=first.frame[:160],
        first_signature=first.signature,
        second=second.frame[:160],
        second_signature=second.signature,
    )


class Author:
    """A key with its feeds. Each call signs the next entry, one second after the last."""

    def __init__(self, number: int, *, nonce: bytes | None = None) -> None:
        self.number = number
        self.key = SecretKey(bytes([number]) * 32)
        self.nonce = nonce if nonce is not None else bytes([number]) * 8
        self._heads: dict[bytes, tuple[int, bytes, int]] = {}

    @property
    def public(self) -> bytes:
        return self.key.public

    def branch(self) -> Author:
        """The same key at the same point of its feeds: what it signs now is a fork."""
        twin = copy.copy(self)
        twin._heads = dict(self._heads)
        return twin

    def reopen(self, nonce: bytes) -> Author:
        """The same key with a fresh nonce."""
        return Author(self.number, nonce=nonce)

    def sign(self, payload: Payload, project: bytes = ZERO, time: int | None = None) -> Entry:
        seq, prev, last = self._heads.get(project, (0, ZERO, NOW))
        time = last + 1000 if time is None else time
        entry = sign_entry(
            self.key,
            payload,
            project=project,
            nonce=self.nonce,
            seq=seq,
            prev=prev,
            time=time,
        )
        if project != ZERO:
            self._heads[project] = (seq + 1, entry.id, time)
        return entry

    def project(self, **more: Any) -> Entry:
        """A genesis entry with this author as its root."""
        return self.sign(project_record(self, **more))

    def announce(self, project: bytes, **more: Any) -> Entry:
        return self.sign(announce(**more), project)

    def result(self, project: bytes, job: bytes, cell: bytes, **more: Any) -> Entry:
        return self.sign(result(job, cell, **more), project)

    def vouch(self, project: bytes, key: bytes, operator: str) -> Entry:
        return self.sign(Vouch(key=key, operator=operator), project)

    def revoke(self, project: bytes, key: bytes, since: int) -> Entry:
        return self.sign(Revoke(key=key, since=since), project)

    def withdraw(self, project: bytes, job: bytes) -> Entry:
        return self.sign(Withdraw(job=job, reason="wrong"), project)
