"""An honest author never forks: crashes, backups, copies, clocks, two processes at once."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from authors import NOW, Author, digest, project_record, result
from told import told

from ponyswarm import keys
from ponyswarm.codec import MAX_FRAME, ZERO, decode_entry, decode_payload
from ponyswarm.errors import InfraError, PeerError
from ponyswarm.keys import SecretKey
from ponyswarm.ledger import journal as journal_module
from ponyswarm.ledger import store as store_module
from ponyswarm.ledger.chain import FUTURE_MS, MAX_BYTES_PER_FEED, Accept
from ponyswarm.ledger.journal import MAX_ENTRIES, Journal, machine_id
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Entry, Withdraw

KEY = SecretKey(bytes([3]) * 32)
PROJECT = digest("project")


def open_journal(
    home: Path, fence: Path | None = None, machine: str = "here", boot: str = ""
) -> Journal:
    return Journal(
        home / "journal",
        fence=fence or home.parent / "fence",
        key=KEY,
        machine=machine,
        nonce=lambda: os.urandom(8),
        boot=boot,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def say(journal: Journal, text: str, now: int = NOW) -> Entry:
    return journal.sign(Withdraw(job=digest(text)), project=PROJECT, now=now)


def places(entries: Iterable[Entry]) -> Counter[tuple[bytes, int]]:
    """How many different entries there are at each place."""
    unique = {(entry.header.nonce, entry.header.seq, entry.id) for entry in entries}
    return Counter((nonce, seq) for nonce, seq, _ in unique)


def continues(entry: Entry) -> bytes | None:
    payload = decode_payload(entry)
    assert payload is not None
    return payload.continues


def test_a_journal_signs_one_chain(home):
    journal = open_journal(home)
    entries = [say(journal, str(i)) for i in range(5)]
    assert [entry.header.seq for entry in entries] == list(range(5))
    assert [entry.header.prev for entry in entries[1:]] == [entry.id for entry in entries[:-1]]
    assert [entry for _, entry in journal.since(0)] == entries
    assert [number for number, _ in journal.since(3)] == [4, 5]
    assert journal.position == 5
    assert journal.holds(entries[2].id)
    assert not journal.holds(ZERO)
    journal.close()


def test_a_chain_goes_on_when_the_journal_is_opened_again(home):
    for number in range(3):
        journal = open_journal(home)
        assert say(journal, str(number)).header.seq == number
        assert not journal.reopened
        journal.close()


def test_each_genesis_is_a_feed_of_its_own(home, tmp_path):
    journal = open_journal(home)
    ledger = Store(tmp_path / "ledger")
    record = project_record(Author(3), name="x")
    one = journal.sign(record, project=ZERO, now=NOW)
    two = journal.sign(record, project=ZERO, now=NOW)
    assert one.id != two.id
    first = journal.sign(Withdraw(job=PROJECT), project=one.id, now=NOW)
    second = journal.sign(Withdraw(job=PROJECT), project=two.id, now=NOW)
    assert (first.header.seq, second.header.seq) == (0, 0)
    assert ledger.append_all([one, two, first, second], NOW) == [Accept()] * 4
    journal.close()
    ledger.close()


def test_a_restored_backup_opens_a_new_feed(home, tmp_path):
    journal = open_journal(home)
    handed_out = [say(journal, "a")]
    journal.close()
    shutil.copytree(home, tmp_path / "backup")
    journal = open_journal(home)
    handed_out += [say(journal, "b"), say(journal, "c")]
    journal.close()
    shutil.rmtree(home)
    shutil.copytree(tmp_path / "backup", home)
    journal = open_journal(home)
    assert journal.reopened
    fresh = say(journal, "d")
    assert fresh.header.seq == 0
    assert fresh.header.nonce != handed_out[0].header.nonce
    assert continues(fresh) == handed_out[0].id
    assert say(journal, "e").header.prev == fresh.id
    assert set(places([*handed_out, fresh]).values()) == {1}
    journal.close()


def test_a_backup_written_over_the_same_file_opens_a_new_feed(home, tmp_path):
    journal = open_journal(home)
    say(journal, "a")
    journal.close()
    shutil.copyfile(home / "journal", tmp_path / "backup")
    journal = open_journal(home)
    say(journal, "b")
    journal.close()
    shutil.copyfile(tmp_path / "backup", home / "journal")
    journal = open_journal(home)
    assert journal.reopened
    assert say(journal, "c").header.seq == 0
    journal.close()


def test_a_copied_home_opens_a_new_feed_and_the_original_goes_on(home, tmp_path):
    fence = home / "fence"  # Even when the fence is copied with it.
    journal = open_journal(home, fence)
    first = say(journal, "a")
    journal.close()
    shutil.copytree(home, tmp_path / "copy")
    original, copy = (
        open_journal(home, fence),
        open_journal(tmp_path / "copy", tmp_path / "copy" / "fence"),
    )
    assert copy.reopened
    assert not original.reopened
    entries = [first, say(original, "b"), say(copy, "c"), say(original, "d"), say(copy, "e")]
    assert set(places(entries).values()) == {1}
    assert continues(entries[2]) == first.id
    assert entries[3].header.seq == 2
    original.close()
    copy.close()


# --- a home that is put back whole: journal, fence and all ----------------------------------------


def overwrite(backup: Path, place: Path) -> None:
    """Write each file of a backup over the one in its place: every inode stays what it was."""
    for source in backup.rglob("*"):
        target = place / source.relative_to(backup)
        if source.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        if source.is_file():
            with target.open("wb") as file:
                file.write(source.read_bytes())
            shutil.copystat(source, target)


def synchronise(backup: Path, place: Path) -> None:
    """As rsync does: what has the size and time of its copy is left alone, the rest replaced."""
    for source in backup.rglob("*"):
        target = place / source.relative_to(backup)
        if not source.is_file():
            target.mkdir(exist_ok=True)
            continue
        was, here = source.stat(), target.stat()
        if (was.st_size, was.st_mtime_ns) != (here.st_size, here.st_mtime_ns):
            fresh = target.with_name(f".{target.name}.fresh")
            shutil.copy2(source, fresh)
            os.replace(fresh, target)


def synchronise_in_place(backup: Path, place: Path) -> None:
    """As rsync --inplace does: what differs in size or time is written over."""
    for source in backup.rglob("*"):
        target = place / source.relative_to(backup)
        if source.is_file() and (
            (was := source.stat()).st_size != (here := target.stat()).st_size
            or was.st_mtime_ns != here.st_mtime_ns
        ):
            with target.open("r+b") as file:
                file.write(source.read_bytes())
                file.truncate()
            shutil.copystat(source, target)


def copy_anew(backup: Path, place: Path) -> None:
    """Remove everything and copy the backup there, times, owners and rights as they were."""
    shutil.rmtree(place)
    subprocess.run(["cp", "-a", str(backup), str(place)], check=True)


@pytest.mark.parametrize("put_back", [overwrite, synchronise, copy_anew])
def test_a_home_put_back_with_its_fence_opens_a_new_feed_each_time(home, tmp_path, put_back):
    fence, backup = home / "state" / "fence", tmp_path / "backup"
    journal = open_journal(home, fence)
    handed_out = [say(journal, "kept")]
    journal.close()
    subprocess.run(["cp", "-a", str(home), str(backup)], check=True)
    for life in range(6):
        journal = open_journal(home, fence)
        assert journal.reopened == (life > 0)
        handed_out += [say(journal, f"{life}.{number}") for number in range(3)]
        journal.close()
        # An ordinary start, between two mishaps, is no reason for one.
        journal = open_journal(home, fence)
        assert not journal.reopened
        handed_out.append(say(journal, f"{life}.again"))
        journal.close()
        put_back(backup, home)
    journal = open_journal(home, fence)
    assert journal.reopened
    fresh = say(journal, "last")
    journal.close()
    assert (fresh.header.seq, continues(fresh)) == (0, handed_out[0].id)
    assert set(places([*handed_out, fresh]).values()) == {1}
    assert len({entry.header.nonce for entry in [*handed_out, fresh]}) == 7


def test_a_journal_and_fence_put_back_in_place_open_a_new_feed(home, tmp_path, monkeypatch):
    """Inodes and the anchor stay: what tells is that the fence changed after it was written."""
    monkeypatch.setattr(journal_module, "WRITTEN_WITHIN", 2_000_000_000)
    fence, backup = home / "state" / "fence", tmp_path / "backup"
    journal = open_journal(home, fence)
    first = say(journal, "in the backup")
    journal.close()
    subprocess.run(["cp", "-a", str(home), str(backup)], check=True)
    journal = open_journal(home, fence)
    later = say(journal, "after the backup")
    journal.close()
    unchanged = (home / "journal.anchor").stat().st_ctime_ns
    time.sleep(2.2)
    synchronise_in_place(backup, home)
    assert (home / "journal.anchor").stat().st_ctime_ns == unchanged
    facts = json.loads(fence.read_text())
    assert (facts["inode"], facts["id"]) == ((home / "journal").stat().st_ino, first.id.hex())
    journal = open_journal(home, fence)
    assert journal.reopened
    fresh = say(journal, "again")
    journal.close()
    assert (fresh.header.seq, continues(fresh)) == (0, first.id)
    assert set(places([first, later, fresh]).values()) == {1}
    journal = open_journal(home, fence)
    assert not journal.reopened
    journal.close()


def test_a_copy_that_got_its_old_inode_again_opens_a_new_feed(home, tmp_path):
    """Some file systems give the number of a removed file to the next one."""
    fence, backup = home / "state" / "fence", tmp_path / "backup"
    journal = open_journal(home, fence)
    first = say(journal, "a")
    journal.close()
    shutil.copytree(home, backup)
    journal = open_journal(home, fence)
    second = say(journal, "b")
    journal.close()
    number = (home / "journal").stat().st_ino
    overwrite(backup, home)
    assert (home / "journal").stat().st_ino == number
    assert json.loads(fence.read_text())["inode"] == number, "else the inode alone would tell"
    journal = open_journal(home, fence)
    assert journal.reopened
    third = say(journal, "c")
    journal.close()
    assert (third.header.seq, continues(third)) == (0, first.id)
    assert third.header.nonce != second.header.nonce


def test_a_home_copied_with_all_its_times_opens_a_new_feed_beside_the_original(home, tmp_path):
    journal = open_journal(home, home / "state" / "fence")
    first = say(journal, "a")
    journal.close()
    subprocess.run(["cp", "-a", str(home), str(tmp_path / "copy")], check=True)
    copied = open_journal(tmp_path / "copy", tmp_path / "copy" / "state" / "fence")
    original = open_journal(home, home / "state" / "fence")
    assert (original.reopened, copied.reopened) == (False, True)
    entries = [first, *(say(one, str(n)) for n in range(3) for one in (original, copied))]
    assert set(places(entries).values()) == {1}
    assert len({entry.header.nonce for entry in entries}) == 2
    original.close()
    copied.close()


def test_a_lost_state_folder_opens_one_new_feed_and_no_more(home):
    state = home / "state"
    journal = open_journal(home, state / "fence")
    handed_out = [say(journal, "a"), say(journal, "b")]
    journal.close()
    shutil.rmtree(state)
    for number in range(3):
        journal = open_journal(home, state / "fence")
        assert journal.reopened == (number == 0)
        handed_out.append(say(journal, str(number)))
        journal.close()
    assert [entry.header.seq for entry in handed_out] == [0, 1, 0, 1, 2]
    assert set(places(handed_out).values()) == {1}


def test_a_home_moved_elsewhere_on_its_disk_goes_on(home, tmp_path):
    journal = open_journal(home, home / "state" / "fence")
    first = say(journal, "a")
    journal.close()
    moved = home.rename(tmp_path / "moved")
    journal = open_journal(moved, moved / "state" / "fence")
    assert not journal.reopened
    assert say(journal, "b").header.prev == first.id
    journal.close()


@pytest.mark.parametrize("wrong", [-365 * 86_400_000, -60_000, 60_000, 365 * 86_400_000])
def test_a_clock_set_wrong_and_right_again_signs_no_place_twice(home, wrong):
    handed_out = []
    for number, now in enumerate((NOW, NOW + wrong, NOW + 10, NOW + wrong, NOW + 20)):
        journal = open_journal(home)
        assert not journal.reopened
        handed_out += [say(journal, f"{number}.{i}", now) for i in range(2)]
        journal.close()
    assert set(places(handed_out).values()) == {1}
    for before, after in itertools.pairwise(handed_out):
        if before.header.nonce == after.header.nonce:
            assert after.header.prev == before.id
            assert after.header.time >= before.header.time
    # Only where it was further off than what others accept, a feed is left for a new one.
    assert (len({entry.header.nonce for entry in handed_out}) > 1) == (abs(wrong) > FUTURE_MS)


def test_another_machine_opens_a_new_feed(home):
    journal = open_journal(home)
    say(journal, "a")
    journal.close()
    journal = open_journal(home, machine="elsewhere")
    assert say(journal, "b").header.seq == 0
    journal.close()


@pytest.mark.parametrize(
    "damage",
    ["lost", "empty", "no JSON", "a list", "another type", "a field missing", "no text"],
)
def test_a_fence_that_says_nothing_opens_a_new_feed(home, damage):
    journal = open_journal(home)
    say(journal, "a")
    journal.close()
    fence = home.parent / "fence"
    facts = json.loads(fence.read_text())
    if damage == "lost":
        fence.unlink()
    else:
        fence.write_bytes(
            {
                "empty": b"",
                "no JSON": b"{",
                "a list": b"[]",
                "another type": json.dumps({**facts, "position": "1"}).encode(),
                "a field missing": json.dumps({"machine": "here"}).encode(),
                "no text": b"\xff\xfe\x00",
            }[damage]
        )
    journal = open_journal(home)
    assert journal.reopened
    assert say(journal, "b").header.seq == 0
    assert say(journal, "c").header.seq == 1
    journal.close()


def test_a_fence_lost_while_the_journal_is_open_opens_a_new_feed(home):
    journal = open_journal(home)
    first = say(journal, "a")
    (home.parent / "fence").unlink()
    fresh = say(journal, "b")
    assert (fresh.header.seq, continues(fresh)) == (0, first.id)
    journal.close()


def test_a_lost_journal_starts_anew(home):
    journal = open_journal(home)
    first = say(journal, "a")
    journal.close()
    for file in home.iterdir():
        file.unlink()
    journal = open_journal(home)
    fresh = say(journal, "b")
    assert fresh.header.seq == 0
    assert fresh.header.nonce != first.header.nonce
    journal.close()


def test_a_clock_set_back_does_not_make_time_fall(home):
    journal = open_journal(home)
    say(journal, "a", NOW)
    second = say(journal, "b", NOW - 60_000)
    assert (second.header.seq, second.header.time) == (1, NOW)
    journal.close()


def test_a_clock_that_ran_far_ahead_does_not_hold_the_feed_back_for_ever(home):
    journal = open_journal(home)
    ahead = say(journal, "a", NOW + 10 * FUTURE_MS)
    fresh = say(journal, "b", NOW)
    assert (fresh.header.seq, fresh.header.time) == (0, NOW)
    assert continues(fresh) == ahead.id
    assert say(journal, "c", NOW).header.seq == 1
    journal.close()


def test_a_feed_that_others_would_keep_no_more_of_is_left_for_a_new_one(
    home, tmp_path, monkeypatch
):
    """A volunteer that works for years must not be silenced by the quota for strangers."""
    assert MAX_ENTRIES * MAX_FRAME <= MAX_BYTES_PER_FEED
    root = Author(1)
    genesis = root.project()
    size = 3 * len(Author(2).result(genesis.id, PROJECT, PROJECT).frame)
    monkeypatch.setattr(journal_module, "MAX_ENTRIES", 3)
    monkeypatch.setattr(store_module, "MAX_BYTES_PER_FEED", size)
    journal, ledger = open_journal(home), Store(tmp_path / "ledger")
    ledger.append(genesis, NOW)
    runs = [
        journal.sign(result(PROJECT, digest(str(n))), project=genesis.id, now=NOW) for n in range(8)
    ]
    journal.close()
    assert [entry.header.seq for entry in runs] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert [continues(entry) for entry in runs[::3]] == [None, runs[2].id, runs[5].id]
    assert ledger.append_all(runs, NOW) == [Accept()] * 8
    ledger.close()


def test_a_closed_feed_is_never_extended(home):
    journal = open_journal(home)
    first = say(journal, "a")
    journal.close_feed(PROJECT)
    fresh = say(journal, "b")
    assert (fresh.header.seq, continues(fresh)) == (0, first.id)
    journal.close()


def test_a_doubted_feed_is_not_extended_until_peers_confirm_it(home):
    journal = open_journal(home)
    first = say(journal, "a")
    journal.doubt()
    journal.confirm(PROJECT)
    second = say(journal, "b")
    assert second.header.prev == first.id
    journal.doubt()
    fresh = say(journal, "c")
    assert (fresh.header.seq, continues(fresh)) == (0, second.id)
    # A fresh nonce needs no asking, and doubt outlives the process.
    assert say(journal, "d").header.seq == 1
    journal.doubt()
    journal.close()
    journal = open_journal(home)
    assert not journal.reopened
    assert say(journal, "e").header.seq == 0
    journal.close()


def test_after_a_start_of_the_machine_a_feed_is_doubted(home):
    journal = open_journal(home, boot="monday")
    say(journal, "a")
    journal.close()
    journal = open_journal(home, boot="monday")
    assert say(journal, "b").header.seq == 1
    journal.close()
    journal = open_journal(home, boot="tuesday")
    assert say(journal, "c").header.seq == 0
    journal.close()


def test_an_own_entry_from_elsewhere_closes_the_feed_that_it_continues(home, tmp_path):
    journal = open_journal(home)
    say(journal, "a")
    journal.close()
    shutil.copytree(home, tmp_path / "copy")
    lost = open_journal(home)
    later = [say(lost, text) for text in "bc"]
    lost.close()
    # As a rolled back disk has it: fence and journal of the same moment.
    (tmp_path / "elsewhere").mkdir()
    journal = open_journal(tmp_path / "copy", tmp_path / "elsewhere" / "fence")
    journal.confirm(PROJECT)
    journal._db.execute("UPDATE feed SET closed = 0")
    assert journal.seen(later[1])
    assert not journal.seen(later[0]), "it is closed already"
    fresh = say(journal, "d")
    assert (fresh.header.seq, continues(fresh)) == (0, later[1].id)
    # What continues the old feed closes the new one no more, nor does an entry of its own.
    assert not journal.seen(later[0])
    assert not journal.seen(fresh)
    assert say(journal, "e").header.seq == 1
    journal.close()


def test_a_lost_journal_names_the_head_that_the_ledger_remembers(home):
    journal = open_journal(home)
    old = say(journal, "a")
    journal.close()
    for file in home.iterdir():
        file.unlink()
    journal = open_journal(home)
    assert journal.seen(old)
    assert continues(say(journal, "b")) == old.id
    journal.close()


class FailsAfter:
    """A connection that says a commit failed after it was made: failed, but persisted."""

    def __init__(self, db: object) -> None:
        self._db = db
        self.fails = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    def execute(self, sql: str, *values: object) -> object:
        done = self._db.execute(sql, *values)
        if sql == "COMMIT" and self.fails:
            self.fails -= 1
            raise sqlite3.OperationalError("disk I/O error")
        return done


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_commit_that_failed_but_persisted_never_leads_to_two_entries_for_one_place(home, times):
    journal = open_journal(home)
    say(journal, "a")
    journal._db = FailsAfter(journal._db)
    for number in range(times):
        journal._db.fails = 1
        with pytest.raises(InfraError):
            say(journal, str(number))
    after = say(journal, "after")
    journal.close()
    journal = open_journal(home)
    chain = [entry for _, entry in journal.since(0)]
    assert after in chain
    # From the third on it is the closing of the feeds that fails.
    assert len(chain) == 2 + min(times, 2)
    assert set(places([*chain, say(journal, "last")]).values()) == {1}
    journal.close()


# A node's way of publishing, killed at one point of it: everything on disk, and what it printed.
PUBLISHER = """
import os, signal, sys
from pathlib import Path
from ponyswarm.ledger import journal, store
from ponyswarm.messages import Project, Withdraw
from ponyswarm.session import open_session

home, point, now = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name):
    setattr(owner, name, die)

def after(owner, name):
    made = getattr(owner, name)
    setattr(owner, name, lambda *a, **k: (made(*a, **k), die()))

with open_session(key=home / "key", journal=home / "journal", fence=home / "state" / "fence",
                  ledger=home / "ledger", blobs=home / "blobs", ledger_budget=1 << 30,
                  blob_budget=1 << 30, now=now) as session:
    def say(text):
        project = bytes.fromhex((home / "project").read_text())
        entry = session.publish(Withdraw(job=bytes(32), reason=text), project=project, now=now)
        os.write(1, entry.frame.hex().encode() + b"\\n")
    if not (home / "project").exists():
        record = Project(name="demo", roots=(session.key.public,))
        (home / "project").write_text(session.publish(record, now=now).id.hex())
    say("before " + point)
    {
        "none": lambda: None,
        "signed": lambda: before(journal.Journal, "_commit"),
        "committed": lambda: after(journal.Journal, "_commit"),
        "fencing": lambda: before(os, "replace"),
        "fenced": lambda: after(journal.Journal, "_write_fence"),
        "appending": lambda: before(store.Store, "append"),
        "appended": lambda: after(store.Store, "append"),
        "told": lambda: None,
    }[point]()
    say("at " + point)
    if point == "told":
        die()
"""

POINTS = ("signed", "committed", "fencing", "fenced", "appending", "appended", "told", "none")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_at_each_step_of_publishing_nothing_is_lost_or_contradicted(tmp_path):
    home = tmp_path / "home"
    (home / "state").mkdir(parents=True)
    keys.save(home / "key", KEY)
    handed_out: list[Entry] = []
    for number, point in enumerate(POINTS):
        done = subprocess.run(
            [sys.executable, "-c", PUBLISHER, str(home), point, str(NOW + number)],
            capture_output=True,
            check=False,
        )
        assert done.returncode == (0 if point == "none" else -signal.SIGKILL), done.stderr.decode()
        handed_out += handed_out_by(done.stdout)
    journal = open_journal(home, home / "state" / "fence", machine=machine_id())
    held = [entry for _, entry in journal.since(0)]
    ledger = Store(home / "ledger")
    assert not journal.reopened
    assert len(handed_out) == 10
    assert all(entry in held and ledger.holds(entry.id) for entry in handed_out)
    assert all(ledger.holds(entry.id) for entry in held)
    assert set(places(held).values()) == {1}
    # One feed of the project, beside the genesis: a mere kill costs none.
    assert len({entry.header.nonce for entry in held}) == 2
    ledger.close()
    journal.close()


def test_what_breaks_the_format_is_not_signed_and_takes_no_place(home):
    journal = open_journal(home)
    say(journal, "a")
    with pytest.raises(PeerError, match="bad-payload"):
        journal.sign(Withdraw(job=PROJECT, reason="x" * 501), project=PROJECT, now=NOW)
    assert say(journal, "b").header.seq == 1
    journal.close()


def test_a_fence_that_cannot_be_written_publishes_nothing_and_loses_nothing(home, monkeypatch):
    journal = open_journal(home)
    say(journal, "a")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", full)
        with told(
            "the fence … could not be written (No space left on device); nothing was published: "
            "see that the disk has room, and who owns its folder"
        ):
            say(journal, "b")
    third = say(journal, "c")
    assert third.header.seq == 2
    chain = [entry for _, entry in journal.since(0)]
    assert [entry.header.seq for entry in chain] == [0, 1, 2]
    journal.close()


def test_a_full_disk_signs_nothing_and_is_no_end(home):
    journal = open_journal(home)
    first = say(journal, "a")
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages + 1}")
    handed_out = [first]
    with pytest.raises(InfraError):  # noqa: PT012
        for number in range(500):
            handed_out.append(say(journal, str(number)))
    journal._db.execute(f"PRAGMA max_page_count = {pages + 500}")
    handed_out.append(say(journal, "after"))
    assert [entry.header.seq for entry in handed_out] == list(range(len(handed_out)))
    journal.close()


SIGNER = """
import os, sys
from pathlib import Path
from ponyswarm.keys import SecretKey
from ponyswarm.ledger.journal import Journal
from ponyswarm.messages import Withdraw

home, number = Path(sys.argv[1]), sys.argv[2]
journal = Journal(home / "journal", fence=home.parent / "fence", key=SecretKey(bytes([3]) * 32),
                  machine="here", nonce=lambda: os.urandom(8))
for i in range(int(sys.argv[3])):
    entry = journal.sign(Withdraw(job=bytes(32), reason=f"{number}.{i}"),
                         project=bytes.fromhex(sys.argv[4]), now=1_800_000_000_000 + i)
    os.write(1, entry.frame.hex().encode() + b"\\n")
"""


def start_signer(home: Path, number: int, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SIGNER, str(home), str(number), str(count), PROJECT.hex()],
        stdout=subprocess.PIPE,
    )


def handed_out_by(output: bytes) -> list[Entry]:
    """Whole lines only: what was cut was never handed out in full."""
    lines = output.split(b"\n")[:-1]
    return [decode_entry(bytes.fromhex(line.decode())) for line in lines]


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_at_any_moment_it_never_signs_two_entries_for_one_place(home):
    chance = random.Random(int(os.environ.get("PONYSWARM_SEED", "7")))
    handed_out: list[Entry] = []
    for number in range(25):
        process = start_signer(home, number, 100_000)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(chance.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        handed_out += handed_out_by(first + process.stdout.read())
        process.stdout.close()
        process.wait()
    journal = open_journal(home)
    held = [entry for _, entry in journal.since(0)]
    assert len(handed_out) >= 25
    assert set(places([*held, *handed_out]).values()) == {1}
    assert {entry.id for entry in handed_out} <= {entry.id for entry in held}
    # A mere kill is no reason for a new feed: durable before visible makes it none.
    assert len({entry.header.nonce for entry in held}) == 1
    journal.close()


def test_two_processes_that_sign_at_once_share_one_chain(home):
    processes = [start_signer(home, number, 40) for number in range(3)]
    handed_out = [
        entry for process in processes for entry in handed_out_by(process.communicate()[0])
    ]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(entry.header.seq for entry in handed_out) == list(range(120))
    assert len({entry.header.nonce for entry in handed_out}) == 1
