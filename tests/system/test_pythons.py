"""Pythons that today's tools leave out, and other implementations, run jobs like any."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import pytest
import trio
from exec_lab import archive, executor, holds, needs_index

from ponyswarm.exec.interpreters import Installed, discover
from ponyswarm.exec.outcome import Outcome
from ponyswarm.exec.sandbox import Limits
from ponyswarm.messages import Cell, Install, Spec
from ponyswarm.volunteer import choose_interpreter

FILES = {
    "setup.py": "from setuptools import setup\n"
    "setup(name='pony', version='1.0', py_modules=['pony'], package_dir={'': 'src'},"
    " install_requires=['six'])\n",
    "PKG-INFO": "Name: pony\nVersion: 1.0\nRequires-Dist: six\n",
    "src/pony.py": "import six\nLEGS = 4 if six.PY2 or six.PY3 else 0\n",
    "checks/test_pony.py": """\
import os, sys, unittest
import pony

class Pony(unittest.TestCase):
    def test_built_and_installed(self):
        self.assertTrue(pony.__file__.startswith("/project/site/"), pony.__file__)
        self.assertEqual(pony.LEGS, 4)

    @unittest.skip("why")
    def test_skipped(self):
        pass

    @unittest.expectedFailure
    def test_expected(self):
        self.fail()

    def test_bad(self):
        self.assertEqual(u"h\\xfcf", "")
""",
}
SEEN = {
    "built_and_installed": "passed",
    "skipped": "skipped",
    "expected": "xfailed",
    "bad": "failed",
}
COMMANDS = {
    "pytest": ("pytest", "checks"),
    "unittest": ("python", "-m", "unittest", "discover", "-s", "checks"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pythons")


@functools.lru_cache(maxsize=1)
def here() -> tuple[Installed, ...]:
    return tuple(discover())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("python", "runner"),
    [
        ("2.7", "pytest"),
        ("2.7", "unittest"),
        ("3.6", "pytest"),
        ("3.7", "unittest"),
        ("pypy", "pytest"),
    ],
)
def test_a_suite_is_built_and_run_under(python, runner, home, tmp_path):
    holds()
    needs_index()
    interpreter = choose_interpreter(f"{python}>=3" if python == "pypy" else python, here())
    if interpreter is None:
        pytest.skip(f"there is no {python} here")
    outcome = trio.run(run, home, tmp_path, interpreter, runner)
    told = {test.id.rpartition("test_")[2]: str(test.status) for test in outcome.tests}
    assert (outcome.state, told) == ("completed", SEEN), outcome.log.decode()
    assert outcome.environment is not None
    assert outcome.environment.version == interpreter.version


async def run(home: Path, folder: Path, interpreter: Installed, runner: str) -> Outcome:
    source = archive(folder, FILES)
    # The last pytest for 2.7 wants a package that has no wheel for it.
    needs = ("pytest ; python_version >= '3'", "pytest<3.7 ; python_version < '3'")
    with trio.fail_after(100):
        return await executor(home, Limits()).run(
            source=source,
            source_hash=hashlib.sha256(source.read_bytes()).digest(),
            spec=Spec(
                python=("3",),
                runner=runner,  # type: ignore[arg-type]
                command=COMMANDS[runner],
                install=Install(requirements=needs if runner == "pytest" else ()),
            ),
            cell=Cell(python="3"),
            interpreter=interpreter,
            lock=None,
            resolve_before=1_795_200_000_000,
        )
