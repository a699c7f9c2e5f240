"""What the parts below the commands say when they cannot, by their real functions."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import trio
from authors import FAR, Author
from told import told

from ponyswarm import config, junit, keys
from ponyswarm.cli import init, notifying
from ponyswarm.cli.export import covering
from ponyswarm.cli.opening import service_options
from ponyswarm.exec import environment, interpreters, process, resolve, seccomp, source
from ponyswarm.exec.process import Patience
from ponyswarm.home import Home
from ponyswarm.ledger.store import Store
from ponyswarm.local import places
from ponyswarm.messages import Blob, Install, Spec
from ponyswarm.notary import open_notary
from ponyswarm.p2p import table
from ponyswarm.p2p.blobs import BlobStore
from ponyswarm.p2p.discovery import parse_address, parse_bootstrap, parse_target, read_bootstrap
from ponyswarm.p2p.listening import _bind_one

ME = keys.peer_id(keys.SecretKey(bytes([7]) * 32).public)


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# --- a home and its files ---------------------------------------------------------------------


def test_a_home_that_is_nowhere() -> None:
    with told("the home '~nobody-here/x' cannot be found (…): name a full path"):
        Home.locate("~nobody-here/x")


def test_a_home_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with told(
        "the folder … cannot be made (Not a directory): choose another with --home DIR or "
        "PONYSWARM_HOME"
    ):
        Home.under(tmp_path / "file" / "x").create()


def test_a_key_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with told(
        "the key … cannot be written: …; check who owns that folder, or choose another home with "
        "--home DIR"
    ):
        keys.save(tmp_path / "file" / "key", keys.SecretKey.generate())


def test_settings_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with told("… cannot be written: …; check who owns the folder, and that there is room"):
        config.write(tmp_path / "file" / "ponyswarm.ini", config.template())


def test_what_was_told_that_cannot_be_kept(tmp_path: Path) -> None:
    with told(
        "what was told cannot be kept in … (No such file or directory), so nothing is told: make "
        "room, or mend who owns the folder"
    ):
        notifying._remember(tmp_path / "no" / "told.json", {})


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    with told("… cannot be written: No such file or directory; name another file by --junit"):
        junit.write(tmp_path / "no" / "x.xml", "demo", ())


def test_an_address_that_is_asked_for_and_is_none() -> None:
    with told("'here' is no address to listen on: write one such as …", at="cli/init.py _ask"):
        init._ask_listen("here")


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_password_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    service = config.Service(name="redis", password_file=path)
    with told(
        "the password of redis cannot be read from … (…): mend that file, or name another by "
        "redis.password_file in ponyswarm.ini"
    ):
        service_options(config.Settings(services={"redis": service}))


def test_a_password_that_is_in_no_variable() -> None:
    service = config.Service(name="redis", password_env="NOT_SET_ANYWHERE")
    with told(
        "the password of redis should be in the environment variable NOT_SET_ANYWHERE, which is "
        "not set: set it, or take the line out of ponyswarm.ini"
    ):
        service_options(config.Settings(services={"redis": service}))


# --- addresses --------------------------------------------------------------------------------


def test_addresses_that_cannot_be_called() -> None:
    with told("'here' is not an address: write it as /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW…"):
        parse_address("here")
    with told("'/ip4/1.2.3.4/tcp/70000' has no such port: ports end at 65535"):
        parse_address("/ip4/1.2.3.4/tcp/70000")
    with told("… has no valid IP address: write one such as /ip4/192.0.2.7/tcp/4001"):
        parse_address("/ip4/1.2.3/tcp/1")
    with told("'/ip4/::1/tcp/1' names an IPv6 address as ip4: write /ip6/"):
        parse_address("/ip4/::1/tcp/1")
    with told(
        "'/dns4/-/tcp/1' has no valid host name: write one such as …",
        at="p2p/discovery.py parse_address",
    ):
        parse_address("/dns4/-/tcp/1")
    with told(
        "'/dnsaddr/-' has no valid host name: write one such as …",
        at="p2p/discovery.py parse_target",
    ):
        parse_target("/dnsaddr/-")
    with told("… does not name its relay: add /p2p/ and its key before"):
        parse_target(f"/ip4/1.2.3.4/tcp/1/p2p-circuit/p2p/{ME}")
    with told("… is for a transport other than TCP, which is not spoken here: take one with /tcp/"):
        parse_target(f"/ip4/1.2.3.4/udp/1/quic-v1/p2p/{ME}")


def test_a_list_of_peers_says_which_line_is_wrong(tmp_path: Path) -> None:
    with told("peers.txt, line 2: 'here' is not an address: write it as …", at="p2p/discovery.py"):
        parse_bootstrap("# ours\nhere\n", "peers.txt")
    with told("peers.txt, line 1: … does not name its peer: add /p2p/ and its key at the end"):
        parse_bootstrap("/ip4/1.2.3.4/tcp/1", "peers.txt")
    with told("… cannot be read (Is a directory): mend it, or take it away"):
        read_bootstrap(tmp_path)


# --- interpreters and programs ------------------------------------------------------------------


def test_a_program_that_is_no_python(tmp_path: Path, monkeypatch) -> None:
    with told("… is not a Python that works (exit code 3): broken"):
        interpreters._ask(program(tmp_path / "a", "echo no; echo broken >&2; exit 3"))
    with told("… cannot be run: No such file or directory"):
        interpreters._ask(tmp_path / "no")
    monkeypatch.setattr(interpreters, "PROBE_SECONDS", 0.2)
    with told("… did not answer within 0.2 seconds"):
        interpreters._ask(program(tmp_path / "b", "exec sleep 9"))


FACTS = (
    """echo '{"version": "%s", "executable": "'$0'", "prefix": "/p", "implementation": "%s","""
    """ "free_threaded": False, "build": "", "debug": False}'"""
)


def test_a_python_that_no_job_asks_for(tmp_path: Path) -> None:
    with told("… is Python 3.5.1: jobs run on 2.7, and from 3.6 on"):
        interpreters._ask(program(tmp_path / "a", FACTS % ("3.5.1", "cpython")))
    with told("… is snake, which no job can ask for"):
        interpreters._ask(program(tmp_path / "b", FACTS % ("3.12.1", "snake")))


def test_a_program_whose_folder_is_gone(tmp_path: Path) -> None:
    async def start() -> None:
        await process.run(["sh"], env={}, cwd=tmp_path / "no", patience=Patience(seconds=5))

    with told(
        "sh does not start (No such file or directory): see that it and its folder are there"
    ):
        trio.run(start)


def test_a_machine_without_libseccomp(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    seccomp.program.cache_clear()
    with told("libseccomp is missing (…): install it with '…'"):
        seccomp.program()


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    with told("… cannot be written (No such file or directory): check who owns it"):
        environment._complete(tmp_path / "partial", tmp_path / "no" / "target")


# --- what a project says of itself --------------------------------------------------------------


def needs(folder: Path, pyproject: str, **install: tuple[str, ...]) -> tuple[str, ...]:
    (folder / "pyproject.toml").write_text(pyproject)
    spec = Spec(python=("3.12",), install=Install(**install))
    return resolve.project_requirements(folder, spec)


def test_what_a_project_installs_and_has_not(tmp_path: Path) -> None:
    mine = "[project]\nname = 'a'\n"
    with told("the project has no extra 'none': correct install.extras"):
        needs(tmp_path, mine, extras=("none",))
    with told("pyproject.toml has no dependency group 'none': correct install.groups"):
        needs(tmp_path, mine, groups=("none",))
    with told("'a b' is not a requirement (…): write one such as 'django>=4.2'"):
        resolve._checked("a b")
    with told(
        "'a @ https://x/a.whl' is a requirement by address, and only what the package index has "
        "can be locked: name a version instead"
    ):
        resolve._checked("a @ https://x/a.whl")


def test_a_matrix_of_which_nothing_is_left() -> None:
    spec = Spec(python=("3.12",), exclude=({"python": "3.12"},))
    with told("the matrix cannot be run: every cell is excluded: take a rule out of 'exclude'"):
        places(spec, ())


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file nobody can read")
def test_a_tracked_file_that_cannot_be_read() -> None:
    with told("/proc/self/mem cannot be read: …; check who owns it, or 'git rm' it"):
        list(source._on_disk(Path("/proc/self"), "mem"))


# --- blobs ------------------------------------------------------------------------------------


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", budget=1 << 20, floor=0)


def test_blobs_whose_folder_is_gone(blobs: BlobStore, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "blobs" / "partial")
    blob = Blob(hash=bytes(32), size=3)
    with told(
        "a blob of 3 bytes could not be kept (No such file or directory): see that the disk has "
        "room, and who owns …"
    ):
        blobs.put(b"abc")
    with told(
        "a blob could not be written (No such file or directory): see that the disk has room, "
        "and who owns …"
    ):
        blobs.extend(blob, b"abc")
    with told(
        "what came of a blob could not be kept (No such file or directory): see that the disk "
        "has room, and who owns …"
    ):
        blobs.complete(blob)


def test_peers_that_were_met_have_names() -> None:
    with told("/ip4/1.2.3.4/tcp/1 does not name its peer: add /p2p/ and its key at the end"):
        table._named("/ip4/1.2.3.4/tcp/1")


def test_an_address_that_no_socket_can_have() -> None:
    with told("… cannot be listened on: give an /ip4/ or /ip6/ address"):
        trio.run(_bind_one, parse_address("/dns4/example.org/tcp/1"))


# --- the ledger -------------------------------------------------------------------------------


def test_an_entry_that_no_checkpoint_has(tmp_path: Path, ledger: Store) -> None:
    ledger.append(Author(1).project(), FAR)
    path = tmp_path / "ledger.sqlite"
    key = keys.SecretKey(bytes([7]) * 32)
    with (
        open_notary(key=key, ledger=path, witness=tmp_path / "witness.db") as notary,
        told("the entry is in no checkpoint: 'ponyswarm verify' checks the ledger"),
    ):
        covering(notary.log, bytes(32), 0, None)
