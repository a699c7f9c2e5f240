"""What tests of real node processes share: waiting, announcing, reading a member's ledger."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ponyswarm import status
from ponyswarm.demo import Member, Swarm
from ponyswarm.errors import LocalError
from ponyswarm.ledger.queries import CellRow, Reader
from ponyswarm.policy import ReaderPolicy


def until(what: str, ready: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def found_project(swarm: Swarm, maintainer: Member) -> str:
    made = swarm.command(maintainer, "project", "create", "demo", "--json")
    return str(json.loads(made)["project"])


def announce(swarm: Swarm, maintainer: Member, source: Path, spec: Path) -> str:
    said = swarm.command(
        maintainer, "announce", str(source), "-p", "demo", "--spec", str(spec), "--json"
    )
    return str(json.loads(said)["job"])


def cells(member: Member, job: str) -> list[CellRow]:
    try:
        with Reader(member.home.ledger) as reader:
            row = reader.find_job(None, job, None)
            return reader.cells(row, ReaderPolicy(agreeing=row.redundancy))
    except LocalError:
        return []


def runs(member: Member, job: str) -> int:
    return sum(len(cell.results) for cell in cells(member, job))


def entry_ids(member: Member) -> set[bytes]:
    with Reader(member.home.ledger) as reader:
        assert reader.verify(lambda done: None) == []
        assert all(not reader.forked(state.id) for state in reader.projects())
        return {row.id for row in reader.log(most=10_000)}


def running(member: Member) -> bool:
    now = status.read(member.home.status)
    return now is not None and any(run.step != "fetching the source" for run in now.running)


def kill(member: Member) -> None:
    assert member.process is not None
    member.process.send_signal(signal.SIGKILL)
    member.process.wait()
    member.process = None
    # The dead node left its last words; its successor writes its own.
    member.home.status.unlink(missing_ok=True)


def ponyswarm(member: Member, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ponyswarm", "--home", str(member.folder), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
