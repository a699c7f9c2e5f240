"""What is kept between runs: quick for the next one, and nothing of a job's own choice."""

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
    environments = []
    for _ in range(3):
        outcome = await once()
        told = {test.id.partition("::")[2]: (test.status, test.message) for test in outcome.tests}
        assert [status for status, _ in told.values()] == ["passed"] * 2, outcome.log.decode()
        now = contents(tmp_path / "cache" / "bytecode")
        assert len(now) == len(files)
        assert kept in (None, now)
        kept = now
        environments.append(contents(tmp_path / "cache" / "environments"))
    first, second, third = environments
    assert not first
    assert second
    assert second == third


BUILD = """\
import os, pathlib, sys
from setuptools import setup

for folder in ("/env", "/source", "/tools/uv", sys.prefix, sys.base_prefix, "/bytecode"):
    for path in (folder, folder + "/poison", folder + "/lib/poison.pth"):
        try:
            with open(path, "a"):
                raise SystemExit("written: " + path)
        except OSError:
            pass
setup(name="evil", version="1.0", py_modules=["evil", "six", "sitecustomize"])
"""
EVIL = {
    "PKG-INFO": "Name: evil\nVersion: 1.0\nRequires-Dist: six\n",
    "setup.py": BUILD,
    "evil.py": "",
    "six.py": "POISON = True\n",
    "sitecustomize.py": "import os\nos.environ['POISON'] = '1'\n",
    "checks/test_it.py": "import os, six, unittest\n"
    "class T(unittest.TestCase):\n"
    "    def test_it_reaches_itself(self):\n"
    "        self.assertTrue(six.POISON)\n",
}
HONEST = {
    "PKG-INFO": "Name: honest\nVersion: 1.0\nRequires-Dist: six\n",
    "setup.py": "from setuptools import setup\nsetup(name='honest', py_modules=['honest'])\n",
    "honest.py": "",
    "checks/test_it.py": "import os, six, sys, unittest\n"
    "class T(unittest.TestCase):\n"
    "    def test_the_next_is_spared(self):\n"
    "        self.assertFalse(hasattr(six, 'POISON'))\n"
    "        self.assertNotIn('POISON', os.environ)\n"
    "        self.assertTrue(six.__file__.startswith('/env/'), six.__file__)\n",
}


@in_trio
async def test_a_build_reaches_its_own_project_and_not_the_next_one(tmp_path):
    needs_index()
    runs = executor(tmp_path, Limits())
    for name, files in (("evil", EVIL), ("honest", HONEST)):
        (tmp_path / name).mkdir()
        source = archive(tmp_path / name, files)
        outcome = await runs.run(
            source=source,
            source_hash=hashlib.sha256(source.read_bytes()).digest(),
            spec=Spec(
                python=("3",),
                runner="unittest",
                command=(
                    "python",
                    "-P",
                    "-m",
                    "unittest",
                    "discover",
                    "-s",
                    "checks",
                    "-t",
                    "checks",
                ),
            ),
            cell=Cell(python="3"),
            interpreter=this_python(),
            lock=None,
            resolve_before=1_795_200_000_000,
        )
        assert outcome.state == "completed", outcome.log.decode()
        assert [str(test.status) for test in outcome.tests] == ["passed"], outcome.log.decode()
        assert f"{name}==" in outcome.log.decode()
        assert "six==" in outcome.log.decode()
