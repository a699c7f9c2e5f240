"""A run on a node: what its log tells meanwhile, and the result that it becomes."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from authors import announce
from msgspec.structs import replace

from ponyswarm import runs
from ponyswarm.codec import decode_tests, outcome_digest
from ponyswarm.exec.outcome import Outcome, Progress, TestOutcome
from ponyswarm.matrix import cells
from ponyswarm.messages import Result, Status
from ponyswarm.p2p.blobs import BlobStore
from ponyswarm.p2p.fetcher import Fetcher

TESTS = tuple(
    TestOutcome(id=f"t::{number}", status=Status.FAILED if number == 7 else Status.PASSED)
    for number in range(3_000)
)


def ran(folder: Path) -> tuple[Result, BlobStore]:
    """The result of a suite of 3,000 tests that ran on a node whose store holds the source."""
    blobs = BlobStore(folder, budget=1 << 30, floor=0)
    source = blobs.put(b"a source")
    job = replace(announce(), source=source.hash, source_size=source.size)

    async def execute(task: runs.Task, watch: Callable[[Progress], None]) -> Outcome:
        assert hashlib.sha256(task.source.read_bytes()).digest() == source.hash
        for done in (0, 1_000, 2_000):
            watch(Progress(step="test", done=done, total=3_000))
        return Outcome(state="completed", tests=TESTS, log=b"all of it")

    async def open_(peer: bytes) -> None:
        raise AssertionError("what is here is not fetched")

    async def main() -> Result | None:
        fetcher = Fetcher(blobs, open_=open_, peers=list, refuse=lambda why, peer: None)  # type: ignore[arg-type]
        return await runs.Runs(execute, fetcher, blobs).run(
            bytes(32), bytes(32), cells(job.spec)[0], job
        )

    result = trio.run(main)
    assert result is not None
    return result, blobs


def test_the_result_of_a_long_suite_names_blobs_that_hold_all_of_it(tmp_path: Path) -> None:
    result, blobs = ran(tmp_path)
    assert (result.counts, result.bad) == ({Status.PASSED: 2_999, Status.FAILED: 1}, ("t::7",))
    assert result.digest == outcome_digest("completed", None, [(t.id, t.status) for t in TESTS])
    assert result.tests is not None
    assert result.log is not None
    assert [test.id for test in decode_tests(blobs.read(result.tests.hash))] == [
        t.id for t in TESTS
    ]
    assert zlib.decompress(blobs.read(result.log.hash)) == b"all of it"


@pytest.mark.parametrize(("every", "told"), [(0.0, 2), (300.0, 0)])
def test_the_log_tells_now_and_then_how_far_a_long_suite_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    every: float,
    told: int,
) -> None:
    monkeypatch.setattr(runs, "SAY_EVERY", every)
    with caplog.at_level(logging.INFO, "ponyswarm"):
        ran(tmp_path)
    lines = [line for line in caplog.messages if "of 3,000 tests after" in line]
    assert len(lines) == told
