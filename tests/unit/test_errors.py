"""Every mistake that a person can make at a command is told: what happened, why, what to do."""

from __future__ import annotations

import ast
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from authors import Author, result
from click.testing import CliRunner
from filelock import FileLock
from filled import Ledger
from told import provoked

import ponyswarm
from ponyswarm import announcing, cli, config, hooks, keys
from ponyswarm.cli import hook, main
from ponyswarm.errors import InfraError, LocalError, PeerError
from ponyswarm.exec import seccomp
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.seals import Seals
from ponyswarm.ledger.store import Store
from ponyswarm.messages import Approve, Status

SOURCE = Path(ponyswarm.__file__).parent
OTHER = keys.peer_id(keys.SecretKey(bytes([7]) * 32).public)


@pytest.fixture(scope="session")
def furnished(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A home with a ledger, and what its parts are called; each desk gets a copy."""
    home = tmp_path_factory.mktemp("furnished")
    ledger = Ledger(home)
    mine = keys.SecretKey(bytes([1]) * 32)  # The maintainer of the ledger's project.
    keys.save(home / "key", mine)
    config.write(home / "ponyswarm.ini", config.template(listen="/ip4/127.0.0.1/tcp/0"))
    job, (cell, other) = ledger.job("demo 1.0", "ab" * 20)
    ledger.run(Author(2), job, cell, {"t::a": Status.PASSED})
    ledger.store.close()
    words = {
        "JOB": job.id.hex(),
        "CELL": cell.hex(),
        "UNRUN": other.hex(),
        "ME": keys.peer_id(mine.public),
        "KEY": OTHER,
        "NOTHING": "",
        "LONG": "x" * 9000,
    }
    return home, words


class Desk:
    """A home with a ledger, a project under git, and whatever a row of the table breaks."""

    def __init__(self, folder: Path, furnished: tuple[Path, dict[str, str]], patch) -> None:
        self.folder, self.patch = folder, patch
        self.home = folder / "home"
        shutil.copytree(furnished[0], self.home)
        self.words = {**furnished[1], "DIR": str(folder)}
        self.locks: list[FileLock] = []
        self.app = folder / "app"
        self.app.mkdir()
        (folder / "empty").mkdir()
        (folder / "notes.txt").write_text("no archive\n")

    def git(self, *files: tuple[str, str]) -> None:
        for name, text in files:
            (self.app / name).write_text(text)
        for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x", "--allow-empty"]):
            subprocess.run(
                ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
                cwd=self.app,
                check=True,
            )

    def fill(self, change: Callable[[Ledger], object]) -> None:
        ledger = Ledger(self.home)
        change(ledger)
        ledger.store.close()

    def runs(self, line: str) -> int:
        return CliRunner().invoke(main, ["--home", str(self.home), *line.split()]).exit_code

    def types(self, line: str) -> tuple[BaseException, str]:
        """How the command ended, and what it said."""
        words = [self.words.get(word, word) for word in line.split()]
        words = [word.replace("DIR", self.words["DIR"]) for word in words]
        ends: list[BaseException] = []
        invoke = main.invoke

        def remembered(ctx):
            try:
                return invoke(ctx)
            except BaseException as fault:
                ends.append(fault)
                raise

        self.patch.setattr(main, "invoke", remembered)
        done = CliRunner().invoke(main, ["--home", str(self.home), *words])
        assert isinstance(done.exception, SystemExit), (done.exc_info, done.output)
        assert done.exit_code == 2, (done.exit_code, done.output)
        return ends[0], done.output


@pytest.fixture
def desk(tmp_path: Path, furnished, monkeypatch) -> Iterator[Desk]:
    made = Desk(tmp_path, furnished, monkeypatch)
    yield made
    for lock in made.locks:
        lock.release()


# --- what goes wrong --------------------------------------------------------------------------


def nothing(desk: Desk) -> None:
    """The home as it is."""


def ini(text: str):
    return lambda desk: (desk.home / "ponyswarm.ini").write_text(text)


def project(*files: tuple[str, str]):
    return lambda desk: desk.git(*files)


def table(text: str):
    return project(("pyproject.toml", f"[tool.ponyswarm]\n{text}"))


def without(name: str):
    return lambda desk: (desk.home / name).unlink()


def folder_at(name: str):
    """A folder where a file should be."""

    def prepare(desk: Desk) -> None:
        place = desk.folder / name
        if place.is_file():
            place.unlink()
        (place / "x").mkdir(parents=True)

    return prepare


def open_key(desk: Desk) -> None:
    (desk.home / "key").chmod(0o644)


def key_text(text: str):
    return lambda desk: (desk.home / "key").write_text(text)


def stranger(desk: Desk) -> None:
    (desk.home / "key").write_text("22" * 32 + "\n")


def held(name: str):
    """A lock that another process holds."""

    def prepare(desk: Desk) -> None:
        path = desk.home / name
        path.parent.mkdir(exist_ok=True)
        desk.locks.append(FileLock(path))
        desk.locks[-1].acquire()

    return prepare


def no_programs(desk: Desk) -> None:
    desk.patch.setenv("PATH", str(desk.folder / "empty"))


def both(*prepared):
    return lambda desk: [prepare(desk) for prepare in prepared]


def impatient(desk: Desk) -> None:
    desk.patch.setattr(hook, "QUEUE_SECONDS", 0)


def smallest(desk: Desk) -> None:
    desk.patch.setattr(announcing, "MAX_SOURCE", 10)


def many_jobs(desk: Desk) -> None:
    """So many that two of a kind begin with the same four figures."""

    def twice(ids: list[bytes]) -> str:
        starts = Counter(id_.hex()[:4] for id_ in ids)
        return next((start for start, count in starts.most_common(1) if count > 1), "")

    def change(ledger: Ledger) -> None:
        jobs: list[bytes] = []
        cells: list[bytes] = []
        ledger.maintainer = Author(1, nonce=bytes(8))  # A feed of its own.
        while not (twice(jobs) and twice(cells)):
            job, ids = ledger.job(f"demo {len(jobs)}", f"{len(jobs):040}")
            jobs.append(job.id)
            cells += ids
        desk.words |= {"TWOJOBS": twice(jobs), "TWOCELLS": twice(cells)}

    desk.fill(change)


def two_projects(desk: Desk) -> None:
    desk.fill(lambda ledger: ledger.fill(ledger.maintainer.project(url="https://a.example")))


def sealed(desk: Desk) -> None:
    """An outcome that was committed to, and not told yet."""
    seals = Seals(desk.home / "seals.db", keys.load(desk.home / "key").public)
    seals.keep(result(bytes(32), bytes(32), nonce=bytes(32)), bytes(32))
    seals.close()


def workflow(text: str):
    def prepare(desk: Desk) -> None:
        folder = desk.app / ".github" / "workflows"
        folder.mkdir(parents=True)
        (folder / "a.yml").write_text(text)

    return prepare


def hooks_elsewhere(desk: Desk) -> None:
    desk.git(("a", ""))
    subprocess.run(["git", "config", "core.hooksPath", "/no"], cwd=desk.app, check=True)


def hooked(desk: Desk) -> None:
    desk.git(("a", ""))
    hooks.install(desk.app, "post-commit", ["x"])


def empty_git(desk: Desk) -> None:
    desk.git()


def big_matrix() -> str:
    values = ", ".join(f'"{number}"' for number in range(50))
    return f"{TABLE}factors.a = [{values}]\nfactors.b = [{values}]\n"


def hook_below(desk: Desk) -> None:
    """Our hook stands there, and a folder has the name under which the earlier one is kept."""
    desk.git(("a", ""))
    hooks.install(desk.app, "post-commit", ["x"])
    (desk.app / ".git" / "hooks" / f"post-commit{hooks.KEPT}").mkdir()


def proposals(*urls: str):
    """What one of two roots proposes, and the other has not approved."""

    def prepare(desk: Desk) -> None:
        other = desk.words["KEY"]
        for line in (f"add-maintainer --root demo {other}", "set demo --threshold 2"):
            assert desk.runs(f"project {line}") == 0
        for url in urls:
            assert desk.runs(f"project set demo --url {url}") == 0

    return prepare


def overtaken(desk: Desk) -> None:
    """Of two proposals the other root approved the first."""
    proposals("https://a.example", "https://b.example")(desk)
    with Reader(desk.home / "ledger.db") as reader:
        project = reader.find_project("demo")
    with closing(Store(desk.home / "ledger.db")) as store:
        state = store.state(project)
        assert state is not None
        first, second = (one.id for one in state.proposals)
        desk.words["SECOND"] = second.hex()
        now = time.time_ns() // 10**6
        store.append(Author(7).sign(Approve(record=first), project, now), now)


def no_seccomp(desk: Desk) -> None:
    desk.patch.setitem(sys.modules, "pyseccomp", None)
    seccomp.program.cache_clear()


def xdg_file(desk: Desk) -> None:
    desk.patch.setenv("XDG_CONFIG_HOME", str(desk.folder / "notes.txt"))


def no_systemctl(desk: Desk) -> None:
    desk.patch.setenv("XDG_CONFIG_HOME", str(desk.folder))
    no_programs(desk)


def bad_systemctl(desk: Desk) -> None:
    desk.patch.setenv("XDG_CONFIG_HOME", str(desk.folder))
    program = desk.folder / "empty" / "systemctl"
    program.write_text("#!/bin/sh\necho no bus >&2; exit 1\n")
    program.chmod(0o755)
    desk.patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def slow(desk: Desk) -> None:
    desk.words["SLOW"] = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    )


def taken_port(desk: Desk) -> None:
    desk.socket = socket.create_server(("127.0.0.1", 0))
    desk.words["PORT"] = str(desk.socket.getsockname()[1])


def schema(version: int):
    def prepare(desk: Desk) -> None:
        with closing(sqlite3.connect(desk.home / "ledger.db")) as db:
            db.execute(f"PRAGMA user_version = {version}")

    return prepare


TABLE = 'python = ["3.12"]\n'


def row(prepare, typed: str, said: str, at: str = ""):
    """What is prepared, what is typed, and all that is said; "…" stands for anything."""
    return pytest.param(prepare, typed, said, at, id=typed)


MISTAKES = [
    # --- words ---
    row(nothing, "anounce", "there is no command 'anounce': did you mean 'announce'?"),
    row(nothing, "xyzzy", "there is no command 'xyzzy': 'ponyswarm --help' lists them."),
    row(
        nothing,
        "announce DIR/app -p demo --expires soon",
        "--expires: 'soon' is no duration: write a number and a unit, such as '30 min' or '1 h'",
        at="cli/opening.py seconds_of",
    ),
    row(
        nothing,
        "announce DIR/app -p demo --expires 3parsecs",
        "--expires: '3parsecs' is no duration, 'parsecs' is no unit: write s, min, h or d",
    ),
    row(
        nothing,
        "watch JOB --timeout 3x",
        "--timeout: '3x' is no duration, 'x' is no unit: write s, min, h or d",
    ),
    row(
        nothing,
        "pause --for later",
        "--for 'later' is no duration: write a number and a unit, such as '30 min' or '1 h'",
    ),
    row(nothing, "pause --for 0s", "--for must be longer than nothing, such as 2h"),
    row(nothing, "sql", "give a query, or --schema"),
    row(
        nothing,
        "search NOTHING",
        "give at least one word to search for: part of a test's name, or of what it said",
    ),
    row(
        nothing,
        "trust add 123",
        "'123' has 3 digits and a project id has 64: copy the whole id, as 'ponyswarm "
        "project show' prints it",
    ),
    row(
        nothing,
        "trust add hello",
        "'hello' is no project id: it has 64 hexadecimal digits, as 'ponyswarm project "
        "show' prints them",
    ),
    row(
        nothing,
        "project add-maintainer demo me",
        "'me' is not a whole Ed25519 key: a key looks like 12D3KooW…, as 'ponyswarm key "
        "show' prints it",
    ),
    row(
        nothing,
        "project add-maintainer demo 0OIl",
        "'0OIl' is not a key: a key looks like 12D3KooW…, as 'ponyswarm key show' prints it",
        at="keys.py",
    ),
    row(
        nothing,
        "results demo --policy mine",
        "'mine' is not a whole Ed25519 key: a key looks like 12D3KooW…, as 'ponyswarm key "
        "show' prints it",
    ),
    row(
        nothing,
        "results demo --policy NOTHING",
        "this is no policy: write 'all', 'vouched', or keys separated by commas",
    ),
    row(
        nothing,
        "init --listen here",
        "Invalid value for '--listen': 'here' is no address to listen on: write one such as "
        "/ip4/0.0.0.0/tcp/7797",
        at="cli/init.py _listen",
    ),
    row(
        nothing,
        "init --python /no/such",
        "there is …/home/ponyswarm.ini already: change it with an editor, or have it "
        "replaced with --force",
    ),
    row(
        without("ponyswarm.ini"),
        "init --python /no/such",
        "/no/such cannot be run: No such file or directory: name a Python that works by "
        "--python, or leave it out to have them found",
    ),
    row(
        nothing,
        "export -o x",
        "say one of --proof, --frames, --junit, --in-toto, --badge, --markdown",
    ),
    row(
        nothing,
        "verify -n 1",
        "--witness and -n are about a proof: name its file with --proof FILE",
    ),
    row(
        nothing,
        "project revoke demo KEY --since yesterday",
        "'yesterday' is not a time: write it as 2026-11-27T20:00",
    ),
    row(nothing, "web --port 99999", "99999 is no port: take one from 1 to 65535"),
    row(
        nothing,
        "web --host not.a.host.invalid",
        "the web pages cannot listen on not.a.host.invalid port 7640 (Name or service not "
        "known): name an address of this machine with --host",
    ),
    row(
        nothing,
        "node --listen /ip4/1.2.3/tcp/1",
        "'/ip4/1.2.3/tcp/1' has no valid IP address: write one such as /ip4/192.0.2.7/tcp/4001",
    ),
    # --- what is not there ---
    row(
        nothing,
        "results nothing",
        "no project 'nothing' in this ledger: 'ponyswarm project show' lists those that "
        "are; 'ponyswarm follow add ID' gets another one",
    ),
    row(
        nothing,
        "results demo --job ffff",
        "there is no job ffff in this ledger; 'ponyswarm log' shows what is",
    ),
    row(nothing, "show zz", "'zz' is not a cell's id: 'ponyswarm results PROJECT' shows ids"),
    row(
        nothing,
        "show ffffffff",
        "no cell 'ffffffff' here: 'ponyswarm results PROJECT' shows cell ids",
    ),
    row(
        nothing,
        "watch nothing",
        "'nothing' is neither a job, nor a commit, nor a project with jobs in this ledger: "
        "'ponyswarm log' shows what is there",
    ),
    row(
        nothing,
        "withdraw ffff",
        "there is no job ffff in this ledger; 'ponyswarm log' shows what is",
    ),
    row(
        nothing,
        "diff ffff ffff",
        "there is no job of commit ffff in this ledger; 'ponyswarm log' shows what is",
    ),
    row(
        nothing,
        "diff 3.12 amiga --job JOB",
        "nothing in 'demo 1.0' ran on or by 'amiga': name a Python of the matrix, a part of "
        "an environment such as 'linux arm64', or the end of a volunteer's key",
    ),
    row(
        nothing,
        "export --badge demo -o DIR/no/b.svg",
        "…/no/b.svg cannot be written: No such file or directory; name another file by -o",
    ),
    row(
        nothing,
        "export --frames demo -o DIR/no/b.svg",
        "…/no/b.svg cannot be written: No such file or directory; name another file by -o",
    ),
    row(
        nothing,
        "export --proof CELL -o DIR/no/b.svg",
        "…/no/b.svg cannot be written: No such file or directory; name another file by -o",
    ),
    row(
        nothing,
        "export --proof UNRUN -o DIR/p",
        "the cell '…' has no such result here yet: 'ponyswarm show …' shows those it has",
    ),
    row(
        nothing,
        "export --proof CELL --author KEY -o DIR/p",
        "the cell '…' has no such result here yet: 'ponyswarm show …' shows those it has",
    ),
    row(
        many_jobs,
        "export --proof TWOJOBS -o DIR/p",
        "… could be several entries: give more of the id",
    ),
    row(many_jobs, "results demo --job TWOJOBS", "… could be several jobs: give more of the id"),
    row(many_jobs, "show TWOCELLS", "… could be several cells: give more of the id"),
    row(
        two_projects,
        "results demo",
        "'demo' could be several projects (demo …, demo …): give more of the id",
    ),
    row(
        two_projects,
        "announce DIR/app",
        "your key may announce in several projects: choose by --project: demo (…), demo (…)",
    ),
    row(
        nothing,
        "export --in-toto demo -o -",
        "2 of 2 cells are not confirmed yet, and an attestation of half a matrix would "
        "mislead: 'ponyswarm watch …' waits for them",
    ),
    row(
        without("ledger.db"),
        "log",
        "there is no ledger at …/home/ledger.db yet: start 'ponyswarm node'",
    ),
    row(
        without("ledger.db"),
        "sql x",
        "there is no ledger at …/home/ledger.db yet: start 'ponyswarm node'",
    ),
    row(
        without("ledger.db"),
        "fsck",
        "there is no ledger at …/home/ledger.db yet: start 'ponyswarm node'",
    ),
    row(
        without("key"),
        "announce DIR/app",
        "there is no key at …/home/key: make one with 'ponyswarm init'",
    ),
    row(
        without("key"),
        "key show",
        "there is no key at …/home/key: make one with 'ponyswarm init'",
    ),
    row(
        without("ponyswarm.ini"),
        "node",
        "there is no …/home/ponyswarm.ini: make one with 'ponyswarm init'",
    ),
    row(
        without("ponyswarm.ini"),
        "trust add " + "aa" * 32,
        "there is no …/home/ponyswarm.ini: make one with 'ponyswarm init'",
    ),
    row(
        without("ponyswarm.ini"),
        "service install",
        "there is no …/home/ponyswarm.ini: make one with 'ponyswarm init'",
    ),
    row(
        nothing,
        "drain",
        "no node runs on this home (…/home): there is nothing to stop; 'ponyswarm node' starts one",
    ),
    # --- the key ---
    row(
        open_key,
        "key show",
        "the key at …/home/key can be read by other users: close it with 'chmod 600 …/home/key'",
    ),
    row(
        key_text("zz"),
        "key show",
        "the key at …/home/key is damaged (expected 64 hexadecimal digits): restore it from "
        "a backup, or move it away and run 'ponyswarm init'",
    ),
    row(
        key_text("00" * 31),
        "key show",
        "the key at …/home/key is damaged (expected 64 hexadecimal digits): restore it from "
        "a backup, or move it away and run 'ponyswarm init'",
    ),
    row(
        folder_at("home/key"),
        "key show",
        "the key at …/home/key cannot be read: Is a directory; check who owns it, or "
        "restore it from a backup",
    ),
    row(
        nothing,
        "key new",
        "there is a key at …/home/key already, and it is never replaced: for another one "
        "choose another home with --home DIR",
    ),
    row(
        stranger,
        "withdraw JOB",
        "the record of 'demo' does not allow this to your key … (unauthorised-withdraw): "
        "ask one of its roots to add it",
    ),
    row(
        stranger,
        "announce DIR/app",
        "your key may announce in no project here: 'ponyswarm project create NAME' founds "
        "one; or name the id of one whose maintainers added your key by --project",
    ),
    row(
        held("state/lock"),
        "key rotate",
        "a node runs on this home and goes by its key: stop it, rotate the key, start it again",
    ),
    row(
        sealed,
        "key rotate",
        "this key has committed to outcomes that it has not told yet, and only it can: "
        "start the node and let it run until it has told them (it waits for others to run "
        "the same cells), then rotate",
    ),
    # --- a node that runs here, or another program's lock ---
    row(
        held("state/lock"),
        "node",
        "a node runs on this home already (…/home): 'ponyswarm status' shows it; choose "
        "another home with --home DIR",
    ),
    row(
        held("state/lock"),
        "fsck --repair",
        "a node runs on this home: stop it ('ponyswarm drain --wait'), then repair",
    ),
    row(
        both(held("state/hook.lock"), impatient),
        "hook announce --project PROJECT DIR/app",
        "an announcement before this one has not ended in an hour: look for it with "
        "'ponyswarm hook show', end it, then announce by hand",
    ),
    # --- rights and records ---
    row(
        nothing,
        "project create NOTHING",
        "this cannot be published: Expected `str` of length >= 1 - at `$.name`; change "
        "that, then try again",
    ),
    row(
        nothing,
        "project set demo --threshold 1",
        "that is what the record of demo says already: nothing is changed; 'ponyswarm "
        "project show' prints it",
    ),
    row(
        nothing,
        "project set demo --threshold 2",
        "a threshold of 2 cannot be reached by 1 roots: add roots first, or lower it",
    ),
    row(
        nothing,
        "project set demo --url LONG",
        "this cannot be published: 9180 bytes, and 8192 is the most; change that, then try again",
    ),
    row(
        nothing,
        "project remove demo KEY",
        "… is not in the record of demo: 'ponyswarm project show demo' shows who is",
    ),
    row(nothing, "project remove demo ME", "… is the only root of demo: add another one first"),
    row(
        nothing,
        "project add-maintainer demo ME",
        "… may do that in demo already: 'ponyswarm project show' lists who may",
    ),
    row(
        nothing,
        "project approve demo",
        "demo has no proposal that is open: 'ponyswarm project show demo' lists what it has",
    ),
    row(
        overtaken,
        "project approve demo SECOND",
        "the record was changed since this was proposed, so it can have no force any more: make "
        "the change again",
    ),
    row(
        proposals("a", "b"),
        "project approve demo",
        "demo has 2 proposals that are open: give more of the id of one; 'ponyswarm project show "
        "demo' lists them",
    ),
    row(
        stranger,
        "project create demo --url LONG",
        "this cannot be published: 9137 bytes, and 8192 is the most; change that, then try again",
    ),
    # --- settings ---
    row(
        ini("slots = 1\n"),
        "node",
        "…/home/ponyswarm.ini is no ini file (File contains no section headers. file: "
        "'…/home/ponyswarm.ini', line: 1 'slots = 1\\n'): mend that line, or have it written "
        "anew with 'ponyswarm init --force'",
    ),
    row(
        ini("[nod]\n"),
        "node",
        "…/home/ponyswarm.ini: there is no section [nod]: did you mean 'node'?",
    ),
    row(
        ini("[node]\nslot = 1\n"),
        "node",
        "…/home/ponyswarm.ini: [node] has no key 'slot': did you mean 'slots'?",
    ),
    row(
        ini("[node]\nslots = many\n"),
        "node",
        "…/home/ponyswarm.ini: [node] slots = 'many' is no whole number from 1 to 1024",
    ),
    row(
        ini("[limits]\nmemory = 1\n"),
        "node",
        "…/home/ponyswarm.ini: [limits] memory = '1' is no size: write a number and a unit, "
        "such as '2 GiB' or '500 MB'",
    ),
    row(
        ini("[limits]\nmemory = 1 KB\n"),
        "node",
        "…/home/ponyswarm.ini: [limits] memory = '1 KB' is too little: 64 MiB is the least",
    ),
    row(
        ini("[limits]\ntime = 1 fortnight\n"),
        "node",
        "…/home/ponyswarm.ini: [limits] time = '1 fortnight' is no duration, 'fortnight' is "
        "no unit: write s, min, h or d",
    ),
    row(
        ini("[network]\nbootstrap = maybe\n"),
        "node",
        "…/home/ponyswarm.ini: [network] bootstrap = 'maybe' is neither yes nor no: write "
        "yes or no",
    ),
    row(
        ini("[network]\npeers = here\n"),
        "node",
        "…/home/ponyswarm.ini: [network] peers = 'here' is no peer address: write one such "
        "as /ip4/192.0.2.7/tcp/7797/p2p/12D3…",
    ),
    row(
        ini("[network]\npeers = /ip4/1.2.3.4/tcp/1\n"),
        "node",
        "…/home/ponyswarm.ini: [network] peers = '/ip4/1.2.3.4/tcp/1' does not say which "
        "peer is there: add /p2p/ and its key (12D3KooW…)",
    ),
    row(
        ini("[network]\nannounce = here\n"),
        "node",
        "…/home/ponyswarm.ini: [network] announce = 'here' is no address that others can "
        "call: write one such as /ip4/192.0.2.7/tcp/7797 or /dns4/node.example.org/tcp/7797",
    ),
    row(
        ini("[network]\nrelay = maybe\n"),
        "node",
        "…/home/ponyswarm.ini: [network] relay = 'maybe' is none of auto, yes and no: write "
        "one of these",
    ),
    row(
        ini("[volunteer]\nload = much\n"),
        "node",
        "…/home/ponyswarm.ini: [volunteer] load = 'much' is no load: write what other "
        "programs may use of each core, such as 0.5",
    ),
    row(
        ini("[volunteer]\nhours = night\n"),
        "node",
        "…/home/ponyswarm.ini: [volunteer] hours = 'night' is no time of day: write "
        "'22:00-07:00' or 'mon-fri 19:00-08:00, sat-sun 00:00-24:00'",
    ),
    row(
        ini("[volunteer]\nhours = 26:00-27:00\n"),
        "node",
        "…/home/ponyswarm.ini: [volunteer] hours = '26:00-27:00' has an hour that no clock "
        "shows: hours go from 00:00 to 24:00",
    ),
    row(
        ini("[interpreters]\nx = python3\n"),
        "node",
        "…/home/ponyswarm.ini: [interpreters] x = 'python3' is no full path: write one such "
        "as /usr/bin/python3.12",
    ),
    row(
        ini("[services]\nredis.password = x\n"),
        "node",
        "…/home/ponyswarm.ini: [services] redis.password: no secret belongs in this file: "
        "put the password into a file that only you can read and write 'redis.password_file "
        "= …', or into the environment and write 'redis.password_env = …'",
    ),
    row(
        ini("[services]\nredis.pasword_file = x\n"),
        "node",
        "…/home/ponyswarm.ini: [services] redis.pasword_file: a service has no option "
        "'pasword_file': did you mean 'password_file'?",
    ),
    row(
        ini("[services]\nredis.password_env =\n"),
        "node",
        "…/home/ponyswarm.ini: [services] redis.password_env is empty: give it a value or "
        "remove the line",
    ),
    row(
        ini("[services]\nredis.password_env = A\nredis.password_file = /b\n"),
        "node",
        "…/home/ponyswarm.ini: [services] has redis.password_file and redis.password_env: keep one",
    ),
    row(
        ini("[services]\nBAD NAME = yes\n"),
        "node",
        "…/home/ponyswarm.ini: [services] bad name: 'bad name' is no service's name: write "
        "one such as redis",
    ),
    row(
        ini("[notify]\ncommand = 'x\n"),
        "node",
        '…/home/ponyswarm.ini: [notify] command = "\'x" is no command (No closing '
        "quotation): quote it as in a shell",
    ),
    row(
        ini("[notify]\ncommand = ''\n"),
        "node",
        """…/home/ponyswarm.ini: [notify] command = "''" names no program: write its full path""",
    ),
    row(
        folder_at("home/ponyswarm.ini"),
        "node",
        "…/home/ponyswarm.ini cannot be read: Is a directory; 'ponyswarm doctor' says what to do",
    ),
    row(
        lambda desk: (desk.home / "ponyswarm.ini").write_bytes(b"\xff"),
        "node",
        "…/home/ponyswarm.ini is not UTF-8 text: save it as UTF-8",
    ),
    # --- projects on disk ---
    row(
        nothing,
        "announce DIR/empty -p demo",
        "…/empty is no git checkout: announce a checkout ('git init' makes one) or an sdist "
        "(.tar.gz)",
    ),
    row(
        nothing,
        "announce DIR/notes.txt -p demo",
        "notes.txt is not a source archive that can be used (not a sound archive: truncated "
        "header): announce a git checkout or an sdist as 'python -m build --sdist' makes it",
    ),
    row(
        project(),
        "announce DIR/app -p demo",
        "git tracks no file at HEAD in …/app: 'git add' and 'git commit' some",
    ),
    row(
        project(("a", "")),
        "announce DIR/app -p demo",
        "…/app has no pyproject.toml: 'ponyswarm init-project --write' makes one with a "
        "[tool.ponyswarm] table; or name a file that has one by --spec",
    ),
    row(
        project(("pyproject.toml", "[project]\nname = 'a'\n")),
        "announce DIR/app -p demo",
        "pyproject.toml has no [tool.ponyswarm] table: 'ponyswarm init-project --write' "
        'proposes one; it needs at least python = ["3.12"] and command = "pytest"',
    ),
    row(
        project(("pyproject.toml", "[tool.ponyswarm\n")),
        "announce DIR/app -p demo",
        "…/app: pyproject.toml cannot be read: Expected ']' at the end of a table "
        "declaration (at line 1, column 16); mend that file, then try again",
    ),
    row(
        table("pithon = 3\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm]: unknown key 'pithon' (did you mean 'python'?); "
        "known are command, cross_check, env, exclude, factors, files, install, python, "
        "redundancy, report, runner, services, timeout",
    ),
    row(
        table("python = 3\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm] python: expected array, got int",
        at="spec.py from_table: …, […]…",
    ),
    row(
        table("python = '3.1.2.3.4'\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm] python: '3.1.2.3.4' names no Python: write a "
        "version (3.12, 3.12.1), a range ('>=3.9'), either with a name before it (pypy3.10, "
        "'cpython>=3.11'), or 3.13t for the free-threaded build",
    ),
    row(
        table("python = ''\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm] python[0]: expected str of length >= 1",
    ),
    row(
        table(TABLE + "services = ['?']\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm] services: '?' names no service: write a name, "
        "perhaps with versions (redis, 'postgresql>=13', 'mariadb 10.11'), and join several "
        "of one cell by '+'",
    ),
    row(
        table(TABLE + "services = ['redis~~7']\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm] services: 'redis~~7' names no service: write a "
        "name, perhaps with versions (redis, 'postgresql>=13', 'mariadb 10.11'), and join "
        "several of one cell by '+'",
    ),
    row(
        table(TABLE + "runner = 'command'\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm]: runner = 'command' needs a command: write "
        'command = "…"',
    ),
    row(
        table(TABLE + "report = 'x.xml'\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm] report: only runner = 'command' reads a report, "
        "and pytest tells its tests itself: take this key out",
    ),
    row(
        table(TABLE + "runner = 'command'\ncommand = 'x'\nreport = '../x'\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm] report: '../x' leaves the source tree: name a "
        "file in it (or a pattern such as 'reports/*.xml'), or '-' for TAP on the standard "
        "output",
    ),
    row(
        table(TABLE + "command = 'pytest \"'\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm] command: No closing quotation in 'pytest \"': "
        "quote it as in a shell",
    ),
    row(
        table(TABLE + "factors.django = 4\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm.factors] django: write a table of values, such as "
        'django = { "1" = ["package~=1.0"], "2" = ["package~=2.0"] }',
    ),
    row(
        table(TABLE + "factors.django = []\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm]: the factor 'django' has no values: give it some",
    ),
    row(
        table(TABLE + "exclude = [{ python = '3.12' }]\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm]: every cell is excluded: take a rule out of 'exclude'",
    ),
    row(
        table(big_matrix()),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm]: 2500 cells, and 2000 is the most: take some out",
    ),
    row(
        table(TABLE + "install.from_source = 'docopt'\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm.install] from_source: 'docopt' is not one exact "
        "version: write it as in 'docopt==0.6.2', without extras or markers",
    ),
    row(
        table(TABLE + "install.from_source = ['docopt==']\n"),
        "announce DIR/app -p demo --spec DIR/app/pyproject.toml",
        "pyproject.toml, [tool.ponyswarm.install] from_source: 'docopt==' is not one exact …",
        at="spec.py from_table: …, [….install] from_source",
    ),
    row(
        table(TABLE + "install.from_source = ['a==1', 'A==2']\n"),
        "announce DIR/app -p demo",
        "pyproject.toml, [tool.ponyswarm.install] from_source: a is there twice: keep the "
        "version that the tests need",
    ),
    row(
        table(TABLE),
        "announce DIR/app -p demo --commit nonsense",
        "there is no commit 'nonsense' in …/app: 'git log' shows those there are, and 'git "
        "commit' makes a first one",
    ),
    row(
        table(TABLE),
        "announce DIR/app -p demo --spec DIR/notes.txt",
        "notes.txt is not valid TOML (Expected '=' after a key in a key/value pair (at line "
        "1, column 4)): mend that line",
    ),
    row(
        both(table(TABLE), smallest),
        "announce DIR/app -p demo",
        "the source is 156 bytes, and 10 is the most: take large files out of what git "
        "tracks, or announce an sdist without them",
    ),
    row(
        table(TABLE),
        "init-project DIR/app --write",
        "pyproject.toml has a [tool.ponyswarm] table already, which stays as it is: edit "
        "it, or take it out to have one proposed",
    ),
    row(
        project(("pyproject.toml", "[tool\n")),
        "init-project DIR/app --write",
        "pyproject.toml is not valid TOML (Expected ']' at the end of a table declaration "
        "(at line 1, column 6)): mend that line",
    ),
    row(
        folder_at("app/pyproject.toml"),
        "init-project DIR/app --write",
        "…/app/pyproject.toml cannot be written: Is a directory; without --write the "
        "proposal is only printed",
    ),
    row(
        project(("tox.ini", "[tox\n")),
        "init-project DIR/app",
        "tox.ini is no ini file (File contains no section headers. file: 'tox.ini', line: 1 "
        "'[tox\\n'): mend that line",
    ),
    row(
        project(("noxfile.py", "def\n")),
        "init-project DIR/app",
        "noxfile.py is not valid Python (invalid syntax, line 1): mend that line",
    ),
    row(
        workflow("a: [\n"),
        "init-project DIR/app",
        ".github/workflows/a.yml is not valid YAML (expected the node content, but found "
        "'<stream end>', line 2): mend that file",
    ),
    row(
        nothing,
        "hook install DIR/empty",
        "…/empty is no git repository (fatal: not a git repository (or any of the parent "
        "directories): .git): name one, or make one with 'git init'",
    ),
    row(
        hooks_elsewhere,
        "hook install DIR/app -p demo",
        "core.hooksPath of this repository is /no, which is outside of it: a hook there "
        "would announce commits of every repository that uses it. Set core.hooksPath to a "
        "folder of this repository, or call 'ponyswarm hook run post-commit' from a hook "
        "there",
    ),
    row(
        both(project(("a", "")), folder_at("app/.git/hooks/post-commit.new")),
        "hook install DIR/app -p demo",
        "the hook …/app/.git/hooks/post-commit cannot be written: Is a directory; check who "
        "owns …/app/.git/hooks",
    ),
    row(
        hook_below,
        "hook remove DIR/app",
        "the hook …/app/.git/hooks/post-commit cannot be removed: Not a directory; check "
        "who owns …/app/.git/hooks",
    ),
    row(
        nothing,
        "try DIR/empty",
        "…/empty is no git checkout: announce a checkout ('git init' makes one) or an sdist "
        "(.tar.gz)",
    ),
    row(empty_git, "try DIR/app", "git tracks no file in …/app: 'git add' some"),
    row(
        no_programs,
        "try DIR/app",
        "…/app is no git checkout: announce a checkout ('git init' makes one) or an sdist "
        "(.tar.gz)",
    ),
    row(
        both(project(), no_programs),
        "try DIR/app",
        "git does not run (No such file or directory): install git, then try again",
        at="exec/source.py _git",
    ),
    row(
        no_programs,
        "hook install DIR/app",
        "git does not run (No such file or directory): install git, then try again",
        at="hooks.py _git",
    ),
    row(
        folder_at("home/state/control.json"),
        "pause",
        "…/home/state/control.json cannot be written (Is a directory): the node was told "
        "nothing. Check who owns that folder, then try again",
    ),
    row(
        xdg_file,
        "service install",
        "…/notes.txt/systemd/user/ponyswarm.service cannot be written: Not a directory; "
        "--dry-run prints what should stand in it",
    ),
    row(
        no_systemctl,
        "service install",
        "'systemctl' does not run here (No such file or directory); the file is written: "
        "…/systemd/user/ponyswarm.service; to start it yourself: systemctl "
        "--user daemon-reload",
    ),
    row(
        bad_systemctl,
        "service install",
        "'systemctl --user' failed: no bus; the file is written: "
        "…/systemd/user/ponyswarm.service; to start it yourself: systemctl --user "
        "daemon-reload",
    ),
    # --- questions ---
    row(
        nothing,
        "sql DELETE",
        "the query is refused: incomplete input; 'ponyswarm sql --schema' shows what there is",
    ),
    row(
        nothing,
        "sql BEGIN",
        "the query is refused: not authorized; 'ponyswarm sql --schema' shows what there is",
    ),
    row(
        slow,
        "sql SLOW --timeout 0.01",
        "the query took longer than 0.01 s and was ended: narrow it, or allow more with --timeout",
    ),
    row(
        taken_port,
        "web --port PORT",
        "the web pages cannot listen on 127.0.0.1 port … (Address already in use): "
        "choose another one with --port, or --port 0 for any that is free",
    ),
    row(
        nothing,
        "sql ;",
        "the query gives no rows: only SELECT is taken here; 'ponyswarm sql "
        "--schema' shows what there is",
    ),
    row(
        no_seccomp,
        "run DIR/notes.txt",
        "nothing can be run here: libseccomp is missing …; what may help: …",
    ),
    row(
        no_seccomp,
        "demo",
        "the demo needs a sandbox: libseccomp is missing …; what may help: …",
    ),
    # --- damage ---
    row(
        lambda desk: (desk.home / "ledger.db").write_bytes(b"x" * 9999),
        "log",
        "…/ledger.db cannot be read as a ledger (file is not a database): if it is damaged, move "
        "it away; peers give it back",
    ),
    row(
        schema(99),
        "log",
        "…/home/ledger.db was written by a later PonySwarm (schema 99): update this one",
    ),
    row(
        schema(1),
        "log",
        "…/home/ledger.db was written by an earlier PonySwarm (schema 1): 'ponyswarm node' "
        "brings it up to date when it starts; no entry is lost",
    ),
]


@pytest.mark.parametrize(("prepare", "typed", "said", "at"), MISTAKES)
def test_a_mistake_is_told_with_its_reason_and_its_remedy(
    desk: Desk, prepare, typed: str, said: str, at: str
) -> None:
    prepare(desk)
    fault, output = desk.types(typed)
    provoked(fault, output, said, at)
    assert "Traceback" not in output


# --- where an error ends ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ([LocalError("a")], 2),
        ([InfraError("a")], 2),
        ([PeerError("bad-signature")], 4),
        ([PeerError("bad-frame"), LocalError("a")], 2),
        ([KeyboardInterrupt()], 130),
    ],
)
def test_each_kind_of_error_has_its_exit_code(faults: list[BaseException], code: int) -> None:
    assert cli._report(faults) == code


def raised() -> Iterator[tuple[str, str]]:
    """(place, text) of each error for a person that the command line and its files raise."""
    for path in sorted(SOURCE.rglob("*.py")):
        inside = path.relative_to(SOURCE)
        if inside.parts[0] not in ("cli", "config.py", "hooks.py", "spec.py", "announcing.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            if getattr(node.exc.func, "id", "") in ("LocalError", "InfraError"):
                texts = [
                    part.value
                    for argument in node.exc.args
                    for part in ast.walk(argument)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                ]
                yield f"{inside}:{node.lineno}", "".join(texts)


# Texts whose second half comes from a value that says what would be right.
BY_VALUE = re.compile(
    r"what may help|did you mean|^:  $|\[|: $|there is $|known are|no (key|section|service)"
)


def test_every_error_of_the_command_line_says_more_than_what_happened() -> None:
    mute = [
        f"{place}: {text!r}"
        for place, text in raised()
        if not re.search(r"[:;,(] ?.{4,}", text) and not BY_VALUE.search(text)
    ]
    assert not mute, "say why, and what to do next:\n" + "\n".join(mute)
