"""A node that lost its latest past never contradicts it, as long as a peer remembers."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from swarm_lab import found_project, kill, until

from ponyswarm import keys
from ponyswarm.codec import decode_payload
from ponyswarm.demo import Member, Swarm
from ponyswarm.ledger.journal import Journal, boot_id, machine_id
from ponyswarm.ledger.queries import Reader
from ponyswarm.messages import Entry, Vouch

pytestmark = pytest.mark.slow


def vouch(swarm: Swarm, maintainer: Member, number: int) -> None:
    key = keys.peer_id(keys.SecretKey(bytes([number]) * 32).public)
    swarm.command(maintainer, "vouch", "demo", key, f"operator-{number}")


def vouches(member: Member) -> dict[str, Entry]:
    """By operator: the entries of this ledger that vouch for one."""
    with Reader(member.home.ledger) as reader:
        entries = [reader.entry(row.id) for row in reader.log(most=1000)]
    found = {}
    for entry in entries:
        assert entry is not None
        payload = decode_payload(entry)
        if isinstance(payload, Vouch):
            found[payload.operator.removeprefix("operator-")] = entry
    return found


def knows(member: Member, *numbers: int) -> bool:
    return set(vouches(member)) >= {str(number) for number in numbers}


def assert_no_fork(*members: Member) -> None:
    """Nobody proved one, and all ledgers together hold one entry for each place."""
    entries = {}
    for member in members:
        with Reader(member.home.ledger) as reader:
            assert all(not reader.forked(state.id) for state in reader.projects())
            for row in reader.log(most=1000):
                entries[row.id] = reader.entry(row.id)
    found = list(entries.values())
    places = Counter((e.header.author, e.namespace, e.header.nonce, e.header.seq) for e in found)
    assert set(places.values()) == {1}


def restore(backup: Path, home: Path) -> None:
    """Put old bytes into the same files, as a disk that is rolled back has them.

    What did not change is left alone: on such a disk, it has the times that it had.
    """
    for file in sorted(home.rglob("*")):
        old = backup / file.relative_to(home)
        if file.is_file() and not file.is_socket():
            if not old.exists():
                file.unlink()
            elif file.read_bytes() != old.read_bytes():
                file.write_bytes(old.read_bytes())


def made_now(fence: Path) -> None:
    """Let a fence say that it was made when its file last changed: a disk that is rolled back
    has that time too, which nobody can set."""
    fence.write_text(json.dumps(json.loads(fence.read_text()) | {"written": time.time_ns()}))


def confirmed(swarm: Swarm, member: Member) -> None:
    swarm.wait_for(member, lambda now: bool(now.projects) and now.projects[0].heads == "checked")


@pytest.mark.timeout(240)
def test_a_whole_home_that_is_rolled_back_goes_on_in_a_new_feed(swarm: Swarm) -> None:
    maintainer, *peers = (swarm.member(name, []) for name in ("maintainer", "one", "two"))
    project = found_project(swarm, maintainer)
    for peer in peers:
        swarm.command(peer, "follow", "add", project)
        swarm.start(peer, [], "--read-only")
    addresses = [swarm.address(peer) for peer in peers]
    swarm.start(maintainer, addresses, "--read-only")
    confirmed(swarm, maintainer)
    vouch(swarm, maintainer, 1)
    until("both peers know it", lambda: all(knows(peer, 1) for peer in peers), 30)
    swarm.stop(maintainer)
    backup = swarm.root / "backup"
    shutil.copytree(maintainer.folder, backup)

    swarm.start(maintainer, addresses, "--read-only")
    confirmed(swarm, maintainer)
    vouch(swarm, maintainer, 2)
    vouch(swarm, maintainer, 3)
    until("a peer knows what came after it", lambda: knows(peers[0], 2, 3), 30)
    before = vouches(peers[0])
    # Checked heads are extended: a restart costs no feed.
    assert len({entry.header.nonce for entry in before.values()}) == 1
    kill(maintainer)
    restore(backup, maintainer.folder)
    made_now(maintainer.home.fence)
    journal = Journal(
        maintainer.home.journal,
        fence=maintainer.home.fence,
        key=keys.load(maintainer.home.key),
        machine=machine_id(),
        nonce=lambda: bytes(8),
        boot=boot_id(),
    )
    assert not journal.reopened, "the fence was rolled back as well and finds nothing"
    journal.close()
    assert not knows(maintainer, 2)

    swarm.start(maintainer, addresses, "--read-only")
    swarm.address(maintainer)
    vouch(swarm, maintainer, 4)
    confirmed(swarm, maintainer)
    vouch(swarm, maintainer, 5)
    for member in (maintainer, *peers):
        until("all know all", lambda m=member: knows(m, 1, 2, 3, 4, 5), 60)
    assert_no_fork(maintainer, *peers)
    after = vouches(peers[1])
    assert after["4"].header.nonce != before["3"].header.nonce


@pytest.mark.timeout(240)
def test_two_copies_of_one_home_at_once_never_contradict_each_other(swarm: Swarm) -> None:
    maintainer, hub = swarm.member("maintainer", []), swarm.member("hub", [])
    project = found_project(swarm, maintainer)
    swarm.command(hub, "follow", "add", project)
    swarm.start(hub, [], "--read-only")
    address = swarm.address(hub)
    swarm.start(maintainer, [address], "--read-only")
    confirmed(swarm, maintainer)
    vouch(swarm, maintainer, 1)
    until("the hub knows it", lambda: knows(hub, 1), 30)
    # While the original goes on.
    folder = swarm.root / "copy"
    shutil.copytree(maintainer.folder, folder, ignore=shutil.ignore_patterns("lock", "status.json"))
    copy = Member("copy", type(maintainer.home).under(folder), folder)
    swarm.members.append(copy)
    swarm.start(copy, [address], "--read-only")
    swarm.address(copy)
    for number in (2, 4):
        vouch(swarm, maintainer, number)
        vouch(swarm, copy, number + 1)
        time.sleep(0.5)
    for member in (maintainer, copy):
        # Two nodes of one key take turns on the network; each hands over what it has.
        kill(member)
    swarm.start(copy, [address], "--read-only")
    until("the hub knows the copy's", lambda: knows(hub, 3, 5), 60)
    kill(copy)
    swarm.start(maintainer, [address], "--read-only")
    until("the original knows all", lambda: knows(maintainer, 1, 2, 3, 4, 5), 60)
    until("the hub knows all", lambda: knows(hub, 1, 2, 3, 4, 5), 60)
    assert_no_fork(maintainer, hub, copy)
    found = vouches(hub)
    assert found["4"].header.nonce == found["1"].header.nonce
    assert found["3"].header.nonce == found["5"].header.nonce != found["1"].header.nonce
