"""Bytecode of tests is there before a run, and no run can leave any for the next."""

from __future__ import annotations

import hashlib
from pathlib import Path

from exec_lab import archive, executor, in_trio, needs_index, this_python

from ponyswarm.exec.bytecode import WORTH_BYTES
from ponyswarm.exec.outcome import Outcome
from ponyswarm.exec.sandbox import Limits
from ponyswarm.messages import Cell, Install, Spec

CONFTEST = """\
import pathlib
pathlib.Path("/tmp/began").touch()
"""
TESTS = """\
import glob, os, pathlib
MARK = "".join(["POISON", "ED"]).encode()

def test_it_was_compiled_before_this_run():
    import lib
    for name in ("test_big.*-pytest-*.pyc", "lib.*.pyc"):
        (path,) = glob.glob("tests/__pycache__/" + name)
        assert os.stat(path).st_mtime_ns < os.stat("/tmp/began").st_mtime_ns, path

def test_it_can_be_poisoned_for_this_run_alone():
    (path,) = glob.glob("tests/__pycache__/test_big.*-pytest-*.pyc")
    honest = pathlib.Path(path).read_bytes()
    assert MARK not in honest
    pathlib.Path(path).write_bytes(honest + MARK)
    try:
        pathlib.Path("/bytecode", path).write_bytes(MARK)
    except OSError:
        return
    raise AssertionError("the cache can be written")
"""
PADDING = "\n# " + "x" * WORTH_BYTES + "\n"


def contents(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.suffix == ".pyc" or path.suffix == ".none"
    }


@in_trio
async def test_tests_are_compiled_before_a_run_and_never_by_one(tmp_path):
    needs_index()
    files = {
        "tests/conftest.py": CONFTEST,
        "tests/test_big.py": TESTS + PADDING,
        "tests/lib.py": "VALUE = 1\n",
        "tests/test_wrong.py": "raise SystemExit('not run while it is compiled')\n",
    }
    source = archive(tmp_path, files)
    runs = executor(tmp_path, Limits())

    async def once() -> Outcome:
        return await runs.run(
            source=source,
            source_hash=hashlib.sha256(source.read_bytes()).digest(),
            spec=Spec(
                python=("3",),
                command=("pytest", "tests", "--ignore=tests/test_wrong.py"),
                install=Install(project=False, requirements=("pytest",)),
            ),
            cell=Cell(python="3"),
            interpreter=this_python(),
            lock=None,
            resolve_before=1_795_200_000_000,
        )

    kept = None
    for _ in range(2):
        outcome = await once()
        told = {test.id.partition("::")[2]: (test.status, test.message) for test in outcome.tests}
        assert [status for status, _ in told.values()] == ["passed"] * 2, outcome.log.decode()
        now = contents(tmp_path / "cache" / "bytecode")
        assert len(now) == len(files)
        assert kept in (None, now)
        kept = now
