"""The main job on one machine: a small swarm of real nodes, a real package, a liar.

Every node is a process with a home of its own, started and driven through the same
commands that people type, on loopback. Nothing here is a shortcut past the product; the
only thing added is the liar, a volunteer whose node turns one passed test into a failure
before it signs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ponyswarm import keys, status
from ponyswarm.errors import InfraError, LocalError
from ponyswarm.exec import process
from ponyswarm.exec.interpreters import Installed
from ponyswarm.home import Home
from ponyswarm.ledger.queries import CellRow, JobRow, Reader
from ponyswarm.ledger.verdicts import Verdict
from ponyswarm.messages import Cell
from ponyswarm.policy import ReaderPolicy
from ponyswarm.volunteer import minor_version

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
VOLUNTEERS = 3
REDUNDANCY = 2
START_SECONDS = 60
JOB_SECONDS = 1200

# What is announced when no path is given: a real package whose suite needs no network.
PACKAGE = "itsdangerous"
PACKAGE_VERSION = "2.2.0"
PACKAGE_SHA256 = "e0050c0b7da1eea53ffaf149c0cfbb5c6e2e2b69c4bef22c81fa6eb73e5f6173"

# A demo that is killed outright leaves no node behind: the kernel then ends them in good order.
_MORTAL = (str(process.SETPRIV), "--pdeathsig", "TERM", "--") if process.MORTAL else ()

_SETTLED = {
    Verdict.CONFIRMED_PASS,
    Verdict.CONFIRMED_FAIL,
    Verdict.FLAKY,
    Verdict.DISPUTED,
    Verdict.BROKEN,
}


def package_spec(pythons: Sequence[str]) -> str:
    """The ``[tool.ponyswarm]`` of the embedded package: interpreters by two pytests."""
    return f"""\
[tool.ponyswarm]
python = {json.dumps(list(pythons))}
runner = "pytest"
command = "pytest tests"
install = ["freezegun"]
timeout = 600
redundancy = {REDUNDANCY}

[tool.ponyswarm.factors.pytest]
7 = ["pytest>=7.4,<8"]
8 = ["pytest>=8,<9"]
"""


def choose_pythons(found: Sequence[Installed], most: int) -> list[Installed]:
    """One interpreter for each minor version that the package supports, the latest ``most``."""
    best: dict[tuple[str, tuple[int, int]], Installed] = {}
    for one in found:
        numbers = tuple(int(part) for part in one.version.split(".")[:2])
        if one.free_threaded or one.implementation != "cpython" or numbers < (3, 8):
            continue
        key = (one.implementation, (numbers[0], numbers[1]))
        if key not in best or _numbers(one.version) > _numbers(best[key].version):
            best[key] = one
    latest = sorted(best.values(), key=lambda one: _numbers(one.version), reverse=True)
    return latest[:most]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


# --- processes -----------------------------------------------------------------------------


@dataclass(slots=True)
class Member:
    """One node process of the swarm."""

    name: str
    home: Home
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    prefix: tuple[str, ...] = ()
    """What stands before the command of its node, such as what enters a network namespace."""

    @property
    def log(self) -> Path:
        return self.folder / "node.log"


@dataclass(slots=True)
class Swarm:
    """Homes under one temporary folder, and the processes started there."""

    root: Path
    say: Callable[[str], None]
    patience: float = START_SECONDS
    """How many seconds a node has to get ready."""
    members: list[Member] = field(default_factory=list)

    def member(self, name: str, pythons: Sequence[Installed]) -> Member:
        """A new home, set up by ``ponyswarm init``."""
        folder = self.root / name
        member = Member(name, Home.under(folder), folder)
        arguments = ["init", "--yes", "--listen", LOOPBACK]
        for python in pythons:
            arguments += ["--python", python.path]
        self.command(member, *arguments)
        self.members.append(member)
        return member

    def command(self, member: Member, *arguments: str) -> str:
        """Run one ``ponyswarm`` command on a member's home; its standard output."""
        done = subprocess.run(
            [*_ponyswarm(member), *arguments],
            capture_output=True,
            env=_environment(),
            check=False,
        )
        if done.returncode not in (0, 3):
            words = done.stderr.decode("utf-8", "replace").strip()
            raise InfraError(f"'ponyswarm {arguments[0]}' failed for {member.name}: {words}")
        return done.stdout.decode("utf-8")

    def start(self, member: Member, peers: Sequence[str], *extra: str, liar: bool = False) -> None:
        """Start a member's node; it calls ``peers`` first."""
        arguments = [arg for peer in peers for arg in ("--peer", peer)]
        if liar:
            command = [sys.executable, "-m", "ponyswarm.liar", str(member.folder), *peers]
        else:
            command = [*_ponyswarm(member), "node", *arguments, *extra]
        with member.log.open("ab") as log:
            # A process group of its own: Ctrl-C reaches the demo alone, which then ends them.
            member.process = subprocess.Popen(
                [*_MORTAL, *member.prefix, *command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,
            )

    def address(self, member: Member) -> str:
        """Where a started member listens; waits until it does."""
        return self.wait_for(member, lambda now: bool(now.addresses)).addresses[0]

    def wait_for(
        self, member: Member, ready: Callable[[status.NodeStatus], bool]
    ) -> status.NodeStatus:
        """Wait until a member's node says of itself what is wanted."""
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            now = status.read(member.home.status)
            if now is not None and ready(now):
                return now
            self.check(member)
            time.sleep(0.05)
        raise InfraError(f"the node of {member.name} did not get ready; its log:\n{_tail(member)}")

    def check(self, member: Member) -> None:
        """Raise when a member's node ended by itself."""
        if member.process is not None and member.process.poll() is not None:
            raise InfraError(
                f"the node of {member.name} ended ({member.process.returncode}); its log:\n"
                f"{_tail(member)}"
            )

    def stop(self, *members: Member) -> None:
        """End nodes in good order, by force after ten seconds."""
        running = [m for m in members if m.process is not None and m.process.poll() is None]
        for member in running:
            assert member.process is not None
            member.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        for member in running:
            assert member.process is not None
            try:
                member.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()


@contextmanager
def open_swarm(say: Callable[[str], None]) -> Iterator[Swarm]:
    """A swarm that leaves neither processes nor files behind, whichever signal ends it."""
    with _exiting_on(signal.SIGTERM, signal.SIGHUP) as hold:
        root = Path(tempfile.mkdtemp(prefix="ponyswarm-demo-"))
        swarm = Swarm(root, say)
        try:
            yield swarm
        finally:
            hold()
            swarm.stop(*swarm.members)
            shutil.rmtree(root, ignore_errors=True)


@contextmanager
def _exiting_on(*signals: signal.Signals) -> Iterator[Callable[[], None]]:
    """Let these signals raise `SystemExit`: at once, or when the block ends.

    The latter after the first of them, or after a call of what this yields: then nothing
    interrupts what cleans up.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    def hold() -> None:
        for each in signals:
            signal.signal(each, note)

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        hold()
        raise SystemExit(128 + number)

    before = {each: signal.signal(each, leave) for each in signals}
    try:
        yield hold
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if came:
            raise SystemExit(128 + came[0])


def _ponyswarm(member: Member) -> list[str]:
    return [sys.executable, "-m", "ponyswarm", "--home", str(member.folder)]


def _environment() -> Mapping[str, str]:
    """Our own environment, less what would point the nodes at the person's real home."""
    return {name: value for name, value in os.environ.items() if name != "PONYSWARM_HOME"}


def _tail(member: Member) -> str:
    try:
        return "\n".join(member.log.read_text("utf-8", "replace").splitlines()[-15:])
    except OSError:
        return "(no log)"


# --- the story --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """An announced job as the reader's ledger shows it."""

    row: JobRow
    cells: Sequence[CellRow]
    points: Mapping[bytes, Cell]


# Called again and again while a job runs, with what the reader's ledger holds by then.
Watch = Callable[[str, Job | None, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What the demo showed."""

    nodes: Sequence[Mapping[str, object]]
    job: Job
    verified_entries: int
    faults: Sequence[str]
    liar: bytes
    disputed: Job
    settled: Job
    seconds: Mapping[str, float]

    @property
    def good(self) -> bool:
        """Every cell a confirmed pass, the ledger sound, the lie seen and outvoted."""
        passes = all(c.finding.verdict is Verdict.CONFIRMED_PASS for c in self.job.cells)
        seen = all(c.finding.verdict is Verdict.DISPUTED for c in self.disputed.cells)
        outvoted = all(
            c.finding.verdict is Verdict.CONFIRMED_PASS and self.liar in c.finding.dissent
            for c in self.settled.cells
        )
        return passes and not self.faults and seen and outvoted

    @property
    def liar_verdicts(self) -> Mapping[str, int]:
        """The verdicts that the lie led to: while it stood alone, and after two more runs."""
        return Counter(
            str(cell.finding.verdict) for job in (self.disputed, self.settled) for cell in job.cells
        )


def tell(
    source: Path,
    spec: str | None,
    pythons: Sequence[Installed],
    *,
    say: Callable[[str], None],
    watch: Watch,
) -> Story:
    """Run the whole demo; ``spec`` is None when ``source`` brings its own."""
    began = time.monotonic()
    with open_swarm(say) as swarm:
        say("setting up homes: a maintainer, a reader, three volunteers and a liar")
        maintainer = swarm.member("maintainer", pythons[:1])
        reader = swarm.member("reader", pythons[:1])
        volunteers = [swarm.member(f"volunteer{n + 1}", pythons) for n in range(VOLUNTEERS)]
        liar = swarm.member("liar", pythons)
        created = swarm.command(maintainer, "project", "create", "demo", "--json")
        project = json.loads(created)["project"]
        swarm.command(reader, "follow", "add", project)
        for volunteer in (*volunteers, liar):
            swarm.command(volunteer, "trust", "add", project)

        say("starting five nodes")
        swarm.start(maintainer, [], "--read-only")
        hub = swarm.address(maintainer)
        swarm.start(reader, [hub], "--read-only")
        for volunteer in volunteers:
            swarm.start(volunteer, [hub])
        peers = [hub, *(swarm.address(member) for member in (reader, *volunteers))]
        swarm.wait_for(reader, lambda now: any(p.volunteers == VOLUNTEERS for p in now.projects))
        started = time.monotonic()

        say("announcing")
        job = _announce(swarm, maintainer, source, spec)
        done = _wait(swarm, reader, job, "the swarm runs the job", watch, _is_settled)
        confirmed = time.time()
        first_claim = _first_claim(reader, done.row)
        nodes = [_node_facts(member) for member in (maintainer, reader, *volunteers)]

        say("verifying the reader's ledger")
        verified, faults = _verify(reader)

        say("the other half: one honest volunteer and one that lies")
        swarm.stop(*volunteers[1:])
        swarm.start(liar, peers[:2], liar=True)
        swarm.wait_for(reader, lambda now: any(p.volunteers >= 2 for p in now.projects))
        # One interpreter is enough to show a lie; a path of the user's keeps its own matrix.
        narrow = None if spec is None else package_spec([minor(pythons[0])])
        lie = _announce(swarm, maintainer, source, narrow)
        disputed = _wait(swarm, reader, lie, "two runs that differ", watch, _all_have(2))
        say("the lie is seen; two more volunteers come, blind to each other")
        for volunteer in volunteers[1:]:
            swarm.start(volunteer, peers[:2])
        settled = _wait(swarm, reader, lie, "two more runs decide", watch, _all_have(4))
        return Story(
            nodes=[*nodes, _node_facts(liar)],
            job=done,
            verified_entries=verified,
            faults=faults,
            liar=keys.load(liar.home.key).public,
            disputed=disputed,
            settled=settled,
            seconds={
                "setup": round(started - began, 2),
                "announce_to_first_claim": first_claim,
                "announce_to_all_confirmed": round(confirmed - done.row.announced / 1000, 2),
                "total": round(time.monotonic() - began, 2),
            },
        )


def minor(one: Installed) -> str:
    """``3.12`` of an interpreter, or ``pypy3.10``."""
    text = minor_version(one)
    return text if one.implementation == "cpython" else one.implementation + text


def _announce(swarm: Swarm, maintainer: Member, source: Path, spec: str | None) -> str:
    arguments = ["announce", str(source), "--project", "demo", "--json"]
    if spec is not None:
        file = swarm.root / "demo.toml"
        file.write_text(spec, "utf-8")
        arguments += ["--spec", str(file)]
    return str(json.loads(swarm.command(maintainer, *arguments))["job"])


def _wait(
    swarm: Swarm,
    reader: Member,
    job: str,
    what: str,
    watch: Watch,
    ready: Callable[[Sequence[CellRow]], bool],
) -> Job:
    """Watch the reader's ledger until the job is where it should be."""
    began = time.monotonic()
    while True:
        seen = _look(reader, job)
        waited = time.monotonic() - began
        watch(what, seen, waited)
        if seen is not None and ready(seen.cells):
            return seen
        if waited > JOB_SECONDS:
            raise InfraError(
                f"after {waited:.0f} s the job is not where it should be ({what}):\n"
                + "\n".join(f"--- {m.name}\n{_tail(m)}" for m in swarm.members)
            )
        for member in swarm.members:
            if member.process is not None and member.process.returncode is None:
                swarm.check(member)
        time.sleep(0.25)


def _look(reader: Member, job: str) -> Job | None:
    try:
        with Reader(reader.home.ledger) as ledger:
            row = ledger.find_job(None, job, None)
            cells = ledger.cells(row, ReaderPolicy(agreeing=row.redundancy))
            return Job(row, cells, ledger.points(row.id))
    except LocalError:
        return None  # The announcement has not reached the reader yet.


def _is_settled(cells: Sequence[CellRow]) -> bool:
    return all(
        cell.finding.verdict in _SETTLED and len(cell.results) >= REDUNDANCY for cell in cells
    )


def _all_have(runs: int) -> Callable[[Sequence[CellRow]], bool]:
    return lambda cells: all(len(cell.results) >= runs for cell in cells)


def _first_claim(reader: Member, job: JobRow) -> float:
    """Seconds from the announcement's own time until the reader's node heard a claim."""
    now = status.read(reader.home.status)
    at = None if now is None else now.first_claims.get(job.id.hex())
    return -1.0 if at is None else round((at - job.announced) / 1000, 3)


def _verify(reader: Member) -> tuple[int, list[str]]:
    with Reader(reader.home.ledger) as ledger:
        return ledger.count(), ledger.verify(lambda done: None)


def _node_facts(member: Member) -> dict[str, object]:
    now = status.read(member.home.status)
    return {
        "name": member.name,
        "key": keys.peer_id(keys.load(member.home.key).public),
        "runs": 0 if now is None else now.runs,
        "tests": 0 if now is None else now.tests,
        "peers": 0 if now is None else len(now.peers),
    }
