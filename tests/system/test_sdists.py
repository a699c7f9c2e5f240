"""Dependencies that exist only as sdists: read without running them, built in the sandbox alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from exec_lab import NOW, archive, executor, in_trio, needs_index, served, this_python
from sources import archive as sdist_archive

from ponyswarm.exec import index
from ponyswarm.exec.environment import uv_binary
from ponyswarm.exec.interpreters import Installed, discover
from ponyswarm.exec.outcome import Outcome, Progress
from ponyswarm.messages import Cell, Install, Lock, Reason, Spec
from ponyswarm.volunteer import choose_interpreter

# Whatever asks this back end anything runs its first lines.
BACK_END = """\
import socket, zipfile
try:
    open({ran!r}, "a").close()
except OSError:
    pass
try:
    socket.create_connection(("127.0.0.1", {port}), 2).close()
    ALONE = False
except OSError:
    ALONE = True

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "tricky-1.0-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        wheel.writestr("tricky.py", "ALONE = %r\\n" % ALONE)
        info = "tricky-1.0.dist-info/"
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: tricky\\nVersion: 1.0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\n"
                       "Tag: py3-none-any\\n")
        wheel.writestr(info + "entry_points.txt", "[console_scripts]\\ntricky = tricky:ALONE\\n")
        wheel.writestr(info + "RECORD", "tricky.py,,\\n" + info + "METADATA,,\\n" + info
                       + "WHEEL,,\\n" + info + "entry_points.txt,,\\n" + info + "RECORD,,\\n")
    return name
"""
SYSTEM = '[build-system]\nrequires = []\nbuild-backend = "back_end"\nbackend-path = ["."]\n'
TESTS = """\
import os, unittest

class Test(unittest.TestCase):
    def test_it_was_built_without_a_network(self):
        import tricky
        self.assertTrue(tricky.ALONE)
        self.assertTrue(tricky.__file__.startswith("/env/"), tricky.__file__)

    def test_its_script_is_there(self):
        with open("/env/bin/tricky") as file:
            self.assertEqual(file.readline(), "#!/env/bin/python\\n")
"""


@pytest.fixture
def tricky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An index with sdists alone; the path of a file that is there once any of 1.0 runs here."""
    pages: dict[str, tuple[str, bytes]] = {}
    with served(pages) as address:
        ran = tmp_path / "ran"
        (tmp_path / "served").mkdir()
        back_end = BACK_END.format(ran=str(ran), port=address.rpartition(":")[2])
        files = {"pyproject.toml": SYSTEM, "back_end.py": back_end, "setup.py": back_end}
        data = sdist_archive(tmp_path / "served", "tricky", files).read_bytes()
        listed = [
            {
                "filename": f"tricky-{version}.tar.gz",
                "url": "../tricky-1.0.tar.gz",
                "hashes": {"sha256": hashlib.sha256(data).hexdigest()},
                "upload-time": "2020-01-01T00:00:00Z",
            }
            for version in ("0.9", "1.0", "1.1rc1")
        ]
        page = {"meta": {"api-version": "1.0"}, "name": "tricky", "files": listed}
        pages["/tricky/"] = ("application/vnd.pypi.simple.v1+json", json.dumps(page).encode())
        pages["/tricky-1.0.tar.gz"] = ("application/gzip", data)
        monkeypatch.setenv("UV_DEFAULT_INDEX", address)
        _forget_index()
        yield ran
    monkeypatch.undo()
    _forget_index()


def _forget_index() -> None:
    index.url.cache_clear()
    index._named.cache_clear()


async def outcome_of(
    folder: Path,
    install: Install,
    tests: str,
    lock: Lock | None = None,
    interpreter: Installed | None = None,
) -> tuple[Outcome, list[str]]:
    steps: list[str] = []

    def note(progress: Progress) -> None:
        steps.append(progress.step)

    source = archive(folder, {"test_it.py": tests})
    command = ("python", "-m", "unittest", "discover", "-v")
    outcome = await executor(folder).run(
        source=source,
        source_hash=hashlib.sha256(source.read_bytes()).digest(),
        spec=Spec(python=("3",), runner="unittest", command=command, install=install),
        cell=Cell(python="3"),
        interpreter=interpreter or this_python(),
        lock=lock,
        resolve_before=NOW,
        progress=note,
    )
    return outcome, steps


def taken(*from_source: str) -> Install:
    return Install(project=False, requirements=("tricky",), from_source=from_source)


@pytest.mark.slow
@in_trio
async def test_a_named_sdist_is_built_offline_in_the_sandbox_and_nowhere_else(
    tricky: Path, tmp_path: Path
) -> None:
    outcome, steps = await outcome_of(tmp_path, taken("Tricky==1.0"), TESTS)
    assert (outcome.detail, outcome.reason) == ("", None), outcome.log
    assert [(test.id, test.status) for test in outcome.tests] == [
        ("test_it.Test.test_it_was_built_without_a_network", "passed"),
        ("test_it.Test.test_its_script_is_there", "passed"),
    ]
    assert b"installed: tricky==1.0\n" in outcome.log
    assert "build" in steps
    assert not tricky.exists()
    # The environment is kept: nothing is fetched and built again.
    again, steps = await outcome_of(tmp_path, taken("tricky==1.0"), TESTS)
    assert again.tests
    assert not {"download", "build"} & set(steps)
    # And the file would have been there, had any of it run on this machine.
    (tmp_path / "in.txt").write_text("tricky\n")
    arguments = ["pip", "compile", "--no-config", "--cache-dir", str(tmp_path / "uv"), "in.txt"]
    done = subprocess.run(
        [uv_binary(), *arguments], cwd=tmp_path, env=os.environ, check=False, timeout=60
    )
    assert tricky.exists(), done


@in_trio
async def test_an_sdist_that_was_not_named_is_refused_with_the_remedy(
    tricky: Path, tmp_path: Path
) -> None:
    outcome, _ = await outcome_of(tmp_path, taken(), TESTS)
    assert outcome.reason is Reason.INSTALL
    assert 'from_source = ["tricky==1.0"]' in outcome.detail
    assert not tricky.exists()


@in_trio
async def test_a_lock_with_another_hash_is_refused_before_anything_is_built(
    tricky: Path, tmp_path: Path
) -> None:
    python = this_python()
    lock = Lock(
        implementation=python.implementation,
        python=python.minor,
        system="linux",
        machine="any",
        requirements=f"tricky==1.0 --hash=sha256:{'0' * 64}\n",
        build="",
    )
    outcome, _ = await outcome_of(tmp_path, taken("tricky==1.0"), TESTS, lock)
    assert outcome.reason is Reason.INSTALL
    assert "has the hash" in outcome.detail
    assert list((tmp_path / "cache" / "projects").glob("*")) == []
    assert [
        p for p in (tmp_path / "cache" / "environments").glob("*") if ".partial" in p.name
    ] == []


DOCOPT = """\
import unittest

class Test(unittest.TestCase):
    def test_it_reads_a_command_line(self):
        from docopt import docopt
        self.assertEqual(docopt("usage: x [--y]", ["--y"]), {"--y": True})
"""


@pytest.mark.slow
@pytest.mark.parametrize("python", ["2.7", "ours"])
@in_trio
async def test_a_real_package_without_wheels_is_installed(tmp_path: Path, python: str) -> None:
    needs_index()
    interpreter = this_python() if python == "ours" else choose_interpreter(python, discover())
    if interpreter is None:
        pytest.skip(f"there is no {python} here")
    install = Install(project=False, requirements=("docopt",), from_source=("docopt==0.6.2",))
    outcome, _ = await outcome_of(tmp_path, install, DOCOPT, interpreter=interpreter)
    assert (outcome.detail, outcome.reason) == ("", None), outcome.log
    assert [test.status for test in outcome.tests] == ["passed"]
    assert b"installed: docopt==0.6.2\n" in outcome.log
