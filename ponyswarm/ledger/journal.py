"""An author's own record of what it signed, and the fence that keeps it from forking.

An honest author never signs two entries for one place, even after a crash, a restored
backup or a copied disk. The rule is *durable before visible*: sign, commit to the journal
with ``synchronous = FULL``, update the fence file and fsync it, and only then hand the
entry to anyone. The fence names the journal file it belongs to (device and inode), the
machine, and the last position; and it is no older than what it says of itself, for a copy
written over it is a later change. Where it does not match, nobody can know what was handed
out before, so every feed is closed and the next entry opens a new one under a fresh
nonce, naming the old head in ``continues``.

A machine that is rolled back to a snapshot has its old fence as well. So a feed is only
extended within the boot of the machine in which its head was signed, or in which peers
were asked for it (`confirm`); a node doubts all feeds when it starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
from filelock import FileLock

from ponyswarm.codec import MAX_FRAME, ZERO, decode_frame, sign_entry
from ponyswarm.errors import InfraError
from ponyswarm.keys import SecretKey
from ponyswarm.ledger.chain import FUTURE_MS, MAX_BYTES_PER_FEED
from ponyswarm.ledger.database import connect, transaction
from ponyswarm.messages import Entry, Payload

# From the moment that a fence names to its last change, in nanoseconds: it is on the disk by then.
WRITTEN_WITHIN = 5_000_000_000

# So many entries fit in what others keep of one feed, whatever their sizes.
MAX_ENTRIES = MAX_BYTES_PER_FEED // MAX_FRAME

_SCHEMA = """
CREATE TABLE IF NOT EXISTS own (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    project BLOB NOT NULL,
    id BLOB NOT NULL UNIQUE,
    frame BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS feed (
    project BLOB PRIMARY KEY,
    nonce BLOB NOT NULL,
    seq INTEGER NOT NULL,
    head BLOB NOT NULL,
    time INTEGER NOT NULL,
    closed INTEGER NOT NULL DEFAULT 0,
    boot TEXT
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Fence:
    """What the fence file says: which journal, on which machine, how far, and when it was made."""

    machine: str
    device: int
    inode: int
    anchored: int
    position: int
    id: str
    written: int


def machine_id() -> str:
    """A text that differs between machines and stays on one, as well as the system tells."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            text = Path(path).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text:
            return text
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "")


def boot_id() -> str:
    """A text that is another one after each start of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        import psutil

        return str(round(psutil.boot_time()))


class Journal:
    """The journal of one key. Several processes of one home may hold it open at once."""

    def __init__(
        self,
        path: Path,
        *,
        fence: Path,
        key: SecretKey,
        machine: str,
        nonce: Callable[[], bytes],
        boot: str = "",
    ) -> None:
        """``nonce`` gives 8 random bytes for each new feed; ``boot`` names this start of
        the machine (`boot_id`)."""
        self._key = key
        self._path = path
        self._fence = fence
        self._machine = machine
        self._nonce = nonce
        self._boot = boot
        # Touched only when the fence did not hold. A copy that is put in its place may get its
        # inode, and never the time at which that was last changed (nanoseconds, which no tool
        # can set).
        self._anchor = path.with_name(path.name + ".anchor")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._anchor.exists():
            self._anchor.touch()
        self._db = connect(path, synchronous="FULL")
        self._db.executescript(_SCHEMA)
        self._lock = FileLock(f"{path}.lock")
        self.reopened = False
        """True when the fence did not match, so that feeds were closed on opening."""
        with self._lock:
            if not self._fence_holds():
                self.reopened = self.position > 0
                self._close_feeds()
                # A tool that restores only what differs leaves a file of the same size and time
                # alone. After this one, the backup's own differs, and comes with a new change.
                os.utime(self._anchor)
            # Also after a crash between commit and fence, so that a second one is no mismatch.
            self._write_fence()

    def close(self) -> None:
        self._db.close()

    @property
    def position(self) -> int:
        """The number of the last entry signed here; 0 before the first."""
        return int(self._db.execute("SELECT ifnull(max(position), 0) FROM own").fetchone()[0])

    def holds(self, id_: bytes) -> bool:
        """Whether this journal signed the entry; an own entry it lacks came from elsewhere."""
        return self._db.execute("SELECT 1 FROM own WHERE id = ?", (id_,)).fetchone() is not None

    def since(self, position: int) -> list[tuple[int, Entry]]:
        """What was signed after a position, oldest first."""
        rows = self._db.execute(
            "SELECT position, frame FROM own WHERE position > ? ORDER BY position", (position,)
        )
        return [(number, decode_frame(frame)) for number, frame in rows]

    def sign(self, payload: Payload, *, project: bytes, now: int) -> Entry:
        """A new entry, durable before it is returned. ``project`` is zero for a genesis.

        Raises `PeerError` ("bad-payload") when it would break the format, `InfraError`
        when it cannot be made durable; then nothing was signed that anyone will see.
        """
        with self._lock:
            if not self._fence_holds():
                self._close_feeds()
            row = None
            if project != ZERO:
                row = self._db.execute(
                    "SELECT nonce, seq, head, time, closed OR boot IS NOT ? FROM feed"
                    " WHERE project = ?",
                    (self._boot, project),
                ).fetchone()
            # Where the clock ran far ahead once, others would hold back all that follows there;
            # and of a feed that is too long they would keep no more.
            if row is None or row[4] or row[3] > now + FUTURE_MS or row[1] + 1 >= MAX_ENTRIES:
                continues = None if row is None else row[2]
                entry = sign_entry(
                    self._key,
                    msgspec.structs.replace(payload, continues=continues),
                    project=project,
                    nonce=self._nonce(),
                    seq=0,
                    prev=ZERO,
                    time=now,
                )
            else:
                nonce, seq, head, time, _ = row
                # A clock that was set back must not make time fall within the feed.
                entry = sign_entry(
                    self._key,
                    payload,
                    project=project,
                    nonce=nonce,
                    seq=seq + 1,
                    prev=head,
                    time=max(now, time),
                )
            self._commit(entry, project)
            self._write_fence()
            return entry

    def doubt(self) -> None:
        """Extend no feed until peers were asked for it; what is signed goes into new ones."""
        with self._lock, transaction(self._db):
            self._db.execute("UPDATE feed SET boot = NULL")

    def confirm(self, project: bytes) -> None:
        """Peers were asked and know no more of our feed than we do: it may be extended."""
        with self._lock, transaction(self._db):
            self._db.execute("UPDATE feed SET boot = ? WHERE project = ?", (self._boot, project))

    def close_feed(self, project: bytes) -> None:
        """Never extend the current feed again."""
        with self._lock, transaction(self._db):
            self._db.execute("UPDATE feed SET closed = 1 WHERE project = ?", (project,))

    def seen(self, entry: Entry) -> bool:
        """Somebody has this entry of our key; True when that closed a feed of ours.

        One that this journal did not sign comes from a copy of this home, or from before a
        backup was restored. What continues our current feed must never be contradicted; an
        entry of another feed of ours contradicts nothing.
        """
        if self.holds(entry.id) or entry.is_genesis:
            return False
        header, project = entry.header, entry.namespace
        with self._lock, transaction(self._db):
            row = self._db.execute(
                "SELECT nonce, seq, closed FROM feed WHERE project = ?", (project,)
            ).fetchone()
            if row is not None and (row[0] != header.nonce or (row[2] and row[1] >= header.seq)):
                return False
            seq, head = header.seq, entry.id
            if row is not None and row[1] >= header.seq:
                seq, head = row[1], self._head(project)
            self._db.execute(
                "INSERT OR REPLACE INTO feed (project, nonce, seq, head, time, closed)"
                " VALUES (?, ?, ?, ?, ?, 1)",
                (project, header.nonce, seq, head, header.time),
            )
            return row is None or not row[2]

    def _head(self, project: bytes) -> bytes:
        return bytes(
            self._db.execute("SELECT head FROM feed WHERE project = ?", (project,)).fetchone()[0]
        )

    def _commit(self, entry: Entry, project: bytes) -> None:
        with transaction(self._db):
            self._db.execute(
                "INSERT INTO own (project, id, frame) VALUES (?, ?, ?)",
                (entry.namespace, entry.id, entry.frame),
            )
            if project != ZERO:
                header = entry.header
                self._db.execute(
                    "INSERT OR REPLACE INTO feed (project, nonce, seq, head, time, boot)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (project, header.nonce, header.seq, entry.id, header.time, self._boot),
                )

    def _close_feeds(self) -> None:
        with transaction(self._db):
            self._db.execute("UPDATE feed SET closed = 1")

    # --- the fence ------------------------------------------------------------------------

    def _fence_holds(self) -> bool:
        """Whether the journal is the one that the fence was last written for.

        One entry more than the fence knows is a crash between commit and fence: that
        entry was handed to nobody, and stands.
        """
        fence = self._read_fence()
        position, last = self._last()
        if fence is None:
            return position == 0
        here = self._path.stat()
        if (fence.machine, fence.device, fence.inode, fence.anchored) != (
            self._machine,
            here.st_dev,
            here.st_ino,
            self._anchor.stat().st_ctime_ns,
        ):
            return False
        # What is put back over a fence in place, journal and all, is told by this alone: the
        # inodes stay, and a tool that copies only what differs leaves the anchor out.
        if self._fence.stat().st_ctime_ns > fence.written + WRITTEN_WITHIN:
            return False
        if fence.position == position:
            return fence.id == last
        if fence.position + 1 != position:
            return False
        row = self._db.execute(
            "SELECT id FROM own WHERE position = ?", (fence.position,)
        ).fetchone()
        return fence.id == ("" if row is None else row[0].hex())

    def _last(self) -> tuple[int, str]:
        row = self._db.execute(
            "SELECT position, id FROM own ORDER BY position DESC LIMIT 1"
        ).fetchone()
        return (0, "") if row is None else (row[0], row[1].hex())

    def _read_fence(self) -> Fence | None:
        try:
            return msgspec.json.decode(self._fence.read_bytes(), type=Fence)
        except (OSError, msgspec.MsgspecError, ValueError):
            # Missing or damaged says the same: it cannot vouch for the journal.
            return None

    def _write_fence(self) -> None:
        position, last = self._last()
        here = self._path.stat()
        anchored = self._anchor.stat().st_ctime_ns
        place = (self._machine, here.st_dev, here.st_ino, anchored, position, last)
        told = self._read_fence()
        if told is not None and told == Fence(*place, told.written):
            return
        try:
            self._fence.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._fence.with_suffix(".new")
            with fresh.open("w", encoding="utf-8") as file:
                os.utime(file.fileno())
                written = os.fstat(file.fileno()).st_mtime_ns
                json.dump(asdict(Fence(*place, written)), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self._fence)
            if os.name == "posix":
                folder = os.open(self._fence.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        except OSError as fault:
            raise InfraError(
                f"the fence {self._fence} could not be written ({fault.strerror}); nothing was "
                "published: see that the disk has room, and who owns its folder"
            ) from fault
