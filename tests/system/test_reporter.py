"""The reporter says the same under every interpreter that is found here, without a sandbox."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import pytest

from ponyswarm.exec import reporter
from ponyswarm.exec.interpreters import Installed, discover
from ponyswarm.exec.report import Report
from ponyswarm.volunteer import choose_interpreter

FOLDER = Path(next(iter(reporter.__path__)))
PYTHONS = ["2.7", *(f"3.{minor}" for minor in range(6, 15)), "3.13t", "3.14t", "pypy>=3"]
START = """\
import sys
sys.path[:0] = [{folder!r}]
import _ponyswarm_site
import unittest
unittest.main(module=None, argv=["x", "discover", "-s", {tests!r}])
"""
SUITE = """\
# -*- coding: utf-8 -*-
import os, unittest

class Kinds(unittest.TestCase):
    def test_pass(self): pass
    def test_fail(self): self.assertEqual(u"h\\xfcf", "")
    def test_error(self): raise OSError("gone")
    @unittest.skip("why")
    def test_skip(self): pass
    @unittest.expectedFailure
    def test_xfail(self): self.fail()
    @unittest.expectedFailure
    def test_xpass(self): pass

    def test_nested_runs_are_not_told(self):
        class Inner(unittest.TestCase):
            def test_inner(self): self.fail()
        suite = unittest.TestSuite([Inner("test_inner")])
        self.assertFalse(suite.run(unittest.TestResult()).wasSuccessful())
        self.assertNotIn("PONYSWARM_REPORT", os.environ)

    def test_a_subtest_counts_with_its_test(self):
        if not hasattr(self, "subTest"):
            self.fail()
        for number in range(3):
            with self.subTest(number=number):
                self.assertNotEqual(number, 1)

class Unready(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise OSError("no")
    def test_never(self): pass
"""
SEEN = {
    "test_it.Kinds.test_a_subtest_counts_with_its_test": "failed",
    "test_it.Kinds.test_error": "error",
    "test_it.Kinds.test_fail": "failed",
    "test_it.Kinds.test_nested_runs_are_not_told": "passed",
    "test_it.Kinds.test_pass": "passed",
    "test_it.Kinds.test_skip": "skipped",
    "test_it.Kinds.test_xfail": "xfailed",
    "test_it.Kinds.test_xpass": "xpassed",
    "setUpClass (test_it.Unready)": "error",
}
DIES = """\
import os, unittest

class Dies(unittest.TestCase):
    def test_a(self): pass
    def test_b(self): os._exit(0)
    def test_c(self): pass
"""


@functools.lru_cache(maxsize=1)
def here() -> tuple[Installed, ...]:
    return tuple(discover())


def reported(python: str, folder: Path, suite: str) -> Report:
    """What the reporter tells of a suite under an interpreter."""
    interpreter = choose_interpreter(python, here())
    if interpreter is None:
        pytest.skip(f"there is no {python} here")
    (folder / "test_it.py").write_text(suite, "utf-8")
    events = folder / "events"
    events.touch()
    subprocess.run(
        [interpreter.path, "-c", START.format(folder=str(FOLDER), tests=str(folder))],
        env={**os.environ, "PONYSWARM_REPORT": str(events), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        timeout=100,
        check=False,
    )
    report = Report(lambda: 0.0)
    report.feed(events.read_bytes())
    return report


@pytest.mark.parametrize("python", PYTHONS)
def test_every_status_is_told_under(python: str, tmp_path: Path) -> None:
    report = reported(python, tmp_path, SUITE)
    assert {test.id: test.status.value for test in report.tests} == SEEN
    assert (report.complete, report.status, report.nonsense) == (True, 1, 0)


@pytest.mark.parametrize("python", PYTHONS)
def test_what_came_before_a_death_is_kept_and_its_test_named_under(
    python: str, tmp_path: Path
) -> None:
    report = reported(python, tmp_path, DIES)
    assert [test.id for test in report.tests] == ["test_it.Dies.test_a"]
    assert (report.complete, report.culprit) == (False, "test_it.Dies.test_b")
