"""A crash campaign: SIGKILLs and power cuts while a home publishes and takes entries in.

A child process opens a real home and works as fast as it can: it signs and publishes
results of its own, and appends segments of a stranger's feed. What it acknowledges, it
tells its parent. Killed at a random moment, and opened again: nothing acknowledged may be
missing, no place may ever have two entries, and the ledger must verify from its bytes.

A power cut is played from a trace of the child's system calls (strace): of each file, what
was synced before the cut survives, and each later write survives or not, by chance. The
journal must then hold all that was acknowledged; the ledger may be behind, never damaged,
and is made up from the journal and from peers.
"""

from __future__ import annotations

import os
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.report import Row, main
from ponyswarm import keys
from ponyswarm.codec import ZERO, sign_entry, unpack_header
from ponyswarm.home import Home
from ponyswarm.ledger.queries import Reader
from ponyswarm.messages import Entry, FeedMark, FeedRef, Project, Result
from ponyswarm.session import Session, open_session

SEGMENT = 20
FOREIGN = 4_000
# The ledger is verified whole after each kill: a home is left while that is quick.
KILLS_PER_HOME = 30
LONGEST_LIFE = 0.08
STRANGER = b"stranger"
TRACE_SECONDS = 2.0


def now_ms() -> int:
    return int(time.time() * 1000)


@contextmanager
def opened(home: Home) -> Iterator[Session]:
    with open_session(
        key=home.key,
        journal=home.journal,
        fence=home.fence,
        ledger=home.ledger,
        blobs=home.blobs,
        ledger_budget=1 << 40,
        blob_budget=1 << 40,
        now=now_ms(),
    ) as session:
        yield session


def a_result(number: int) -> Result:
    return Result(
        job=bytes(32),
        cell=struct.pack("!I", number) + bytes(28),
        state="completed",
        digest=bytes(32),
        started=0,
        seconds=1.0,
    )


def strangers_feed(project: bytes, count: int) -> list[Entry]:
    """A chain of results by somebody else."""
    key, prev, feed = keys.SecretKey(b"\7" * 32), ZERO, []
    for seq in range(count):
        entry = sign_entry(
            key,
            a_result(seq),
            project=project,
            nonce=STRANGER,
            seq=seq,
            prev=prev,
            time=1_700_000_000_000 + seq,
        )
        prev = entry.id
        feed.append(entry)
    return feed


def found(folder: Path) -> tuple[Home, bytes]:
    """A home with a project that the child works in."""
    home = Home.under(folder)
    home.create()
    keys.save(home.key, keys.SecretKey.generate())
    with opened(home) as session:
        record = Project(name="bench", roots=(session.key.public,))
        return home, session.publish(record, now=now_ms()).id


def work(home: Home, project: bytes, feed: list[Entry], out: int, chance: random.Random) -> None:
    """The child: work until killed; a line on ``out`` for whatever is acknowledged."""
    with opened(home) as session:
        stranger = FeedRef(feed[0].header.author, STRANGER, False)
        nothing = FeedMark(0, b"")
        held = session.store.frontier(project).get(stranger, nothing).height
        while True:
            part = feed[held : held + SEGMENT]
            if part and chance.random() < 0.5:
                session.store.append_segment(part, now_ms())
                held += len(part)
                os.write(out, b"taken " + part[-1].id.hex().encode() + b"\n")
            else:
                entry = session.publish(a_result(held), project=project, now=now_ms())
                os.write(out, b"own " + entry.frame[:160].hex().encode() + b"\n")


# --- what must hold ------------------------------------------------------------------------


@dataclass(slots=True)
class Witness:
    """All that was ever acknowledged, and what was found wrong."""

    own: dict[bytes, bytes] = field(default_factory=dict)
    taken: set[bytes] = field(default_factory=set)
    lost: int = 0
    forks: int = 0
    unreadable: int = 0

    def hear(self, said: bytes) -> None:
        """Take down the child's whole lines."""
        for line in said.split(b"\n")[:-1]:
            word, _, value = line.partition(b" ")
            data = bytes.fromhex(value.decode("ascii"))
            if word == b"taken":
                self.taken.add(data)
                continue
            # A place is author, project, nonce and seq: bytes 8 to 88 of the header.
            place, id_ = data[8:88], unpack_header(data).payload_hash + data
            if self.own.setdefault(place, id_) != id_:
                self.forks += 1

    def add(self, other: Witness) -> None:
        """Sum another home's record up."""
        self.own.update(other.own)
        self.taken |= other.taken
        self.lost += other.lost
        self.forks += other.forks
        self.unreadable += other.unreadable

    def judge(self, home: Home, *, ledger_may_lag: bool) -> None:
        """Open the home again and look for what was acknowledged."""
        try:
            with opened(home) as session, Reader(home.ledger) as reader:
                journal = {entry.frame[8:88]: entry for _, entry in session.journal.since(0)}
                ledger = {row.id for row in reader.log(most=10**9)}
                if reader.verify(lambda done: None):
                    self.unreadable += 1
        except Exception as fault:
            print(f"unreadable: {fault!r}")
            self.unreadable += 1
            return
        for place, id_ in self.own.items():
            entry = journal.get(place)
            if (
                entry is None
                or entry.header.payload_hash + entry.frame[:160] != id_
                or entry.id not in ledger
            ):
                self.lost += 1
        if not ledger_may_lag:
            self.lost += len(self.taken - ledger)


# --- SIGKILL ---------------------------------------------------------------------------------


def kill_once(home: Home, project: bytes, feed: list[Entry], witness: Witness, seed: int) -> None:
    """Fork a child, let it live for some milliseconds, kill it, and judge."""
    chance = random.Random(seed)
    mine, childs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(mine)
        try:
            work(home, project, feed, childs, chance)
        finally:
            os._exit(0)
    os.close(childs)
    if chance.random() < 0.8:
        # It works by then; the others die while they open the home, or soon after.
        select.select([mine], [], [], 30)
    time.sleep(chance.uniform(0, LONGEST_LIFE))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(mine, "rb") as pipe:
        witness.hear(pipe.read())
    witness.judge(home, ledger_may_lag=False)


# --- power cuts ----------------------------------------------------------------------------

_CALL = re.compile(rb"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
_DESCRIPTOR = re.compile(rb"^(\d+)<([^>]*)>")
_TEXT = re.compile(rb'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_TRACED = (
    "openat,write,pwrite64,fsync,fdatasync,ftruncate,rename,renameat,renameat2,unlink,unlinkat"
)


def _bytes(text: bytes) -> bytes:
    r"""``\x41\x42`` as strace prints it; paths of descriptors may stand as they are."""
    if not text.startswith(rb"\x"):
        return text
    return bytes.fromhex(text.replace(rb"\x", b"").decode("ascii"))


@dataclass(slots=True)
class Disk:
    """The files of a home as a disk would have them: what is synced, what is only written."""

    synced: dict[bytes, bytearray] = field(default_factory=dict)
    written: dict[bytes, list[tuple[int, bytes | None]]] = field(default_factory=dict)
    places: dict[bytes, int] = field(default_factory=dict)

    def content(self, path: bytes, chance: random.Random | None) -> bytes:
        """The file with all of its unsynced writes, or with some of them by chance."""
        data = bytearray(self.synced.get(path, b""))
        for offset, piece in self.written.get(path, []):
            if chance is not None and chance.random() < 0.5:
                continue
            if piece is None:
                del data[offset:]
                data.extend(bytes(max(0, offset - len(data))))
            else:
                data.extend(bytes(max(0, offset - len(data))))
                data[offset : offset + len(piece)] = piece
        return bytes(data)

    def play(self, name: str, arguments: bytes, result: int) -> bytes | None:
        """Apply one call; what the child said, when it said something."""
        descriptor = _DESCRIPTOR.match(arguments)
        path = _bytes(descriptor[2]) if descriptor else b""
        if name == "openat":
            opened_ = _TEXT.search(arguments)
            if opened_ and result >= 0:
                target = _bytes(opened_[1])
                self.places[target] = 0
                if b"O_TRUNC" in arguments:
                    self.written.setdefault(target, []).append((0, None))
        elif name == "write" and descriptor:
            piece = _TEXT.search(arguments)
            data = _bytes(piece[1])[: max(0, result)] if piece else b""
            if descriptor[1] == b"1":
                return data
            place = self.places.get(path, 0)
            self.written.setdefault(path, []).append((place, data))
            self.places[path] = place + len(data)
        elif name == "pwrite64":
            piece = _TEXT.search(arguments)
            offset = int(arguments.rpartition(b",")[2])
            data = _bytes(piece[1])[: max(0, result)] if piece else b""
            self.written.setdefault(path, []).append((offset, data))
        elif name == "ftruncate":
            size = int(arguments.rpartition(b",")[2])
            self.written.setdefault(path, []).append((size, None))
        elif name in ("fsync", "fdatasync") and path in {*self.synced, *self.written}:
            self.synced[path] = bytearray(self.content(path, None))
            self.written.pop(path, None)
        elif name.startswith("rename") and result == 0:
            old, new = (_bytes(match[1]) for match in list(_TEXT.finditer(arguments))[:2])
            self.synced[new] = self.synced.pop(old, bytearray())
            self.written[new] = self.written.pop(old, [])
        elif name.startswith("unlink") and result == 0:
            gone = _bytes(_TEXT.findall(arguments)[0][0])
            self.synced.pop(gone, None)
            self.written.pop(gone, None)
        return None


def trace(home: Home, project: bytes, folder: Path) -> list[tuple[str, bytes, int]]:
    """The system calls of a child that works for a while, in order."""
    log = folder / "trace"
    command = [
        *("strace", "-f", "-qq", "-y", "-xx", "-s", "200000", "-e", f"trace={_TRACED}"),
        *("-o", str(log), sys.executable, "-m", "bench.crashes", "--work"),
        *(str(home.data_dir), project.hex()),
    ]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    time.sleep(TRACE_SECONDS + 2)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    calls = []
    for line in log.read_bytes().splitlines():
        match = _CALL.match(line)
        if match:
            calls.append((match[1].decode("ascii"), match[2], int(match[3])))
    return calls


def cut_power(folder: Path, cuts: int, chance: random.Random) -> Witness:
    """Trace one child, and cut the power at random places of the trace."""
    home, project = found(folder / "home")
    before = {
        os.fsencode(path): path.read_bytes() for path in home.data_dir.rglob("*") if path.is_file()
    }
    calls = trace(home, project, folder)
    total = Witness()
    prefix = os.fsencode(home.data_dir) + b"/"
    for number in range(cuts):
        disk = Disk(synced={path: bytearray(data) for path, data in before.items()})
        witness = Witness()
        said = b""
        for call in calls[: chance.randrange(len(calls))]:
            said += disk.play(*call) or b""
        witness.hear(said)
        image = folder / f"image{number}"
        for path in {*disk.synced, *disk.written}:
            # Shared memory is not on the disk; SQLite makes it again.
            if path.startswith(prefix) and not path.endswith((b"-shm", b".lock")):
                target = image / os.fsdecode(path[len(prefix) :])
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(disk.content(path, chance))
        key = image / "key"
        if key.exists():
            key.chmod(0o600)
            witness.judge(Home.under(image), ledger_may_lag=True)
            total.add(witness)
        shutil.rmtree(image, ignore_errors=True)
    return total


# --- what befalls a home -------------------------------------------------------------------


def say(home: Home, project: bytes, witness: Witness, chance: random.Random, at: int) -> None:
    """Publish some entries, with the clock at ``at``."""
    with opened(home) as session:
        for number in range(chance.randrange(1, 6)):
            entry = session.publish(a_result(number), project=project, now=at)
            witness.hear(b"own " + entry.frame[:160].hex().encode() + b"\n")


def restored(home: Home, project: bytes, witness: Witness, chance: random.Random) -> None:
    """A backup is put back where the home was."""
    folder = home.ledger.parent
    backup = folder.with_name("backup")
    shutil.copytree(folder, backup)
    say(home, project, witness, chance, now_ms())
    shutil.rmtree(folder)
    shutil.copytree(backup, folder)
    shutil.rmtree(backup)


def copied(home: Home, project: bytes, witness: Witness, chance: random.Random) -> None:
    """A copy of the home is started too."""
    folder = home.ledger.parent
    twin = folder.with_name(f"twin{chance.randrange(1 << 30)}")
    shutil.copytree(folder, twin)
    say(Home.under(twin), project, witness, chance, now_ms())


def without_fence(home: Home, project: bytes, witness: Witness, chance: random.Random) -> None:
    """The state folder is lost."""
    shutil.rmtree(home.fence.parent)


def set_back(home: Home, project: bytes, witness: Witness, chance: random.Random) -> None:
    """The clock ran a year ahead, or a day behind, for a while."""
    ahead = chance.choice((365, -1)) * 86_400_000
    say(home, project, witness, chance, now_ms() + ahead)


MISHAPS = {
    "backups restored in place": restored,
    "homes copied and both started": copied,
    "fences lost": without_fence,
    "clocks set wrong and back": set_back,
}


def befall(folder: Path, times: int, chance: random.Random) -> list[Row]:
    """Each mishap some times in the life of a home; never may one place have two entries."""
    rows = []
    for name, mishap in MISHAPS.items():
        witness = Witness()
        home, project = found(folder / name.replace(" ", "-") / "home")
        for _ in range(times):
            say(home, project, witness, chance, now_ms())
            mishap(home, project, witness, chance)
            say(home, project, witness, chance, now_ms())
        feeds = len({place[64:72] for place in witness.own})
        rows += [
            Row(f"{times} {name}: feeds, of {len(witness.own)} entries", feeds),
            Row(f"{times} {name}: places with two entries", witness.forks, goal="< 1"),
        ]
    return rows


# --- all -------------------------------------------------------------------------------------


def measure(quick: bool) -> list[Row]:
    kills, cuts = (30, 10) if quick else (600, 120)
    seed = int(os.environ.get("PONYSWARM_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"PONYSWARM_SEED={seed}")
    chance = random.Random(seed)
    rows = []
    with tempfile.TemporaryDirectory(prefix="ponyswarm-crashes-") as folder:
        total = Witness()
        for first in range(0, kills, KILLS_PER_HOME):
            home, project = found(Path(folder, f"home{first}"))
            feed = strangers_feed(project, FOREIGN)
            witness = Witness()
            for number in range(first, min(kills, first + KILLS_PER_HOME)):
                kill_once(home, project, feed, witness, seed + number)
            total.add(witness)
        rows += _rows(f"{kills} SIGKILLs", total)
        rows += befall(Path(folder), 5 if quick else 25, chance)
        if shutil.which("strace"):
            traced = Path(folder, "traced")
            traced.mkdir()
            rows += _rows(f"{cuts} power cuts", cut_power(traced, cuts, chance))
        else:
            print("no power cuts: strace is missing")
    return rows


def _rows(what: str, witness: Witness) -> list[Row]:
    return [
        Row(f"{what}: entries acknowledged", len(witness.own) + len(witness.taken)),
        Row(f"{what}: acknowledged and lost", witness.lost, goal="< 1"),
        Row(f"{what}: places with two entries", witness.forks, goal="< 1"),
        Row(f"{what}: unreadable databases", witness.unreadable, goal="< 1"),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        place, name = Home.under(Path(sys.argv[2])), bytes.fromhex(sys.argv[3])
        work(place, name, strangers_feed(name, 2_000), 1, random.Random(1))
    main("crashes", __doc__.splitlines()[0], measure)
