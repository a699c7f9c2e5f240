"""Runners: what a command's own report says, and Django's workers, test by test."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import pytest
import trio
from exec_lab import archive, executor, holds, in_trio, needs_index, run

from ponyswarm.exec import interpreters
from ponyswarm.exec.outcome import Outcome, Progress
from ponyswarm.exec.sandbox import Limits
from ponyswarm.messages import RESULTS_VARIABLE, Cell, Install, Reason, Spec

JUNIT = """<?xml version="1.0"?>
<testsuites><testsuite name="s">
 <testcase classname="a.B" name="good" time="1.5"/>
 <testcase classname="a.B" name="bad"><failure message="why">trace</failure></testcase>
 <testcase name="wrong"><error message="oh"/></testcase>
 <testcase classname="a" name="left"><skipped type="pytest.skip" message="no"/></testcase>
 <testcase classname="a" name="meant"><skipped type="pytest.xfail" message="yes"/></testcase>
</testsuite></testsuites>
"""
TAP = """\
TAP version 14
1..6
ok 1 - adds # not a directive
not ok 2 - takes away
  ---
  message: 1 != 2
  ...
    # Subtest: inner
    not ok 1 - inner
ok 3 - later # SKIP no device
not ok 4 - some day # TODO write it
ok 5 - already # todo
ok 6
"""


def prints(text: str, into: str, then: str = "") -> tuple[str, ...]:
    code = f"open({into!r}, 'w').write({text!r})" if into else f"print({text!r}, flush=True)"
    return ("python", "-c", f"import os, time\n{code}\n{then}")


def told(outcome: Outcome) -> dict[str, str]:
    return {test.id: str(test.status) for test in outcome.tests}


async def reported(folder: Path, report: str, command: tuple[str, ...], **more) -> Outcome:
    return await run(
        folder, "", runner="command", command=command, env={RESULTS_VARIABLE: report}, **more
    )


@in_trio
async def test_junit_xml_that_a_command_writes_is_its_outcome(tmp_path):
    command = prints(JUNIT, "out.xml", "raise SystemExit(1)")
    outcome = await reported(tmp_path, "out.xml", command)
    assert told(outcome) == {
        "a.B.good": "passed",
        "a.B.bad": "failed",
        "wrong": "error",
        "a.left": "skipped",
        "a.meant": "xfailed",
    }, outcome.log.decode()
    assert outcome.state == "completed"
    assert {t.id: t.message for t in outcome.tests}["a.B.bad"] == "why\ntrace"


@in_trio
async def test_a_broken_report_keeps_what_came_before(tmp_path):
    cut = JUNIT[: JUNIT.index('<testcase name="wrong">')]
    outcome = await reported(tmp_path, "*.xml", prints(cut, "out.xml"))
    assert told(outcome) == {
        "out.xml::a.B.good": "passed",
        "out.xml::a.B.bad": "failed",
        "out.xml::the report": "error",
    }


@pytest.mark.parametrize("into", ["", "out.tap"])
def test_tap_is_read_from_output_or_a_file(tmp_path, into):
    @in_trio
    async def check():
        outcome = await reported(tmp_path, into or "-", prints(TAP, into))
        assert told(outcome) == {
            "adds # not a directive": "passed",
            "takes away": "failed",
            "later": "skipped",
            "some day": "xfailed",
            "already": "xpassed",
            "test 6": "passed",
        }, outcome.log.decode()
        assert "1 != 2" in next(t.message for t in outcome.tests if t.id == "takes away")

    check()


@in_trio
async def test_tap_arrives_as_it_is_written_and_stays_when_the_command_dies(tmp_path):
    seen: list[Progress] = []
    text = "1..3\nok 1 - one\nok 2 - two\n# and so on\n"
    then = "time.sleep(1); os.kill(os.getpid(), 9)"
    command = prints(text, "out.tap", then)
    outcome = await reported(tmp_path, "out.tap", command, progress=seen.append)
    assert any(now.done == 1 for now in seen)
    assert told(outcome) == {"one": "passed", "two": "passed", "the plan": "error"}
    assert (outcome.state, outcome.reason) == ("broken", Reason.CRASHED)


@in_trio
async def test_a_command_that_writes_no_report_is_broken(tmp_path):
    outcome = await reported(tmp_path, "out.xml", ("true",))
    assert outcome.reason is Reason.CRASHED
    assert "wrote no report" in outcome.detail


@in_trio
async def test_a_failing_command_with_a_good_report_is_bad(tmp_path):
    outcome = await reported(tmp_path, "-", prints("1..1\nok 1 - a", "", "raise SystemExit(3)"))
    assert told(outcome) == {"a": "passed", "command": "failed"}


# --- Django ------------------------------------------------------------------------------

MANAGE = """\
import os, sys
from django.core.management import execute_from_command_line
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
if __name__ == "__main__":
    execute_from_command_line(sys.argv)
"""
SETTINGS = """\
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = ["app"]
SECRET_KEY = "x"
USE_TZ = True
"""
TESTS = """\
import os, subprocess, sys, unittest
from django.test import SimpleTestCase, TestCase

class A(TestCase):
    def test_good(self): pass
    @unittest.skip("why")
    def test_skip(self): pass
    def test_bad(self): self.assertEqual(1, 2)
    @unittest.expectedFailure
    def test_meant(self): self.fail()

class B(SimpleTestCase):
    def test_nested(self):
        subprocess.run([sys.executable, "manage.py", "test", "app.inner"], check=True)
    def test_subtests(self):
        for i in range(3):
            with self.subTest(i=i): self.assertNotEqual(i, 1)

@unittest.skip("whole")
class C(SimpleTestCase):
    def test_c(self): pass

class D(SimpleTestCase):
    @classmethod
    def setUpClass(cls): raise OSError("gone")
    def test_d(self): pass
"""
INNER = """\
from django.test import SimpleTestCase
class Inner(SimpleTestCase):
    def test_inner(self): pass
class Other(SimpleTestCase):
    def test_other(self): pass
"""
FILES = {
    "PKG-INFO": "Name: app\nVersion: 1.0\n",
    "manage.py": MANAGE,
    "settings.py": SETTINGS,
    "app/__init__.py": "",
    "app/tests.py": TESTS,
    "app/inner.py": INNER,
}
SEEN = {
    "app.tests.A.test_good": "passed",
    "app.tests.A.test_skip": "skipped",
    "app.tests.A.test_bad": "failed",
    "app.tests.A.test_meant": "xfailed",
    "app.tests.B.test_nested": "passed",
    "app.tests.B.test_subtests": "failed",
    "app.tests.C.test_c": "skipped",
    "setUpClass (app.tests.D)": "error",
}


@pytest.fixture(scope="module")
def django_home(tmp_path_factory):
    return tmp_path_factory.mktemp("django")


def django(home: Path, folder: Path, files: dict[str, str], *options: str, **more) -> Outcome:
    holds()
    return trio.run(functools.partial(run_django, home, folder, files, *options, **more))


async def run_django(
    home: Path, folder: Path, files: dict[str, str], *options: str, **more
) -> Outcome:
    needs_index()
    for found in interpreters.discover():
        if found.implementation == "cpython" and found.version.startswith("3.12."):
            break
    else:
        pytest.skip("there is no CPython 3.12 here")
    folder.mkdir(exist_ok=True)
    source = archive(folder, files)
    return await executor(home, Limits(**more)).run(
        source=source,
        source_hash=hashlib.sha256(source.read_bytes()).digest(),
        spec=Spec(
            python=("3.12",),
            runner="django",
            command=("python", "manage.py", "test", *options),
            install=Install(project=False, requirements=("django~=5.2.0", "tblib")),
        ),
        cell=Cell(python="3.12"),
        interpreter=found,
        lock=None,
        resolve_before=1_795_200_000_000,
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--parallel", "2")])
def test_an_app_under_django_gives_the_same_alone_and_in_parallel(django_home, tmp_path, options):
    outcome = django(django_home, tmp_path / "p", FILES, *options)
    assert (outcome.state, told(outcome)) == ("completed", SEEN), outcome.log.decode()


@pytest.mark.slow
def test_a_worker_of_django_that_hangs_is_named(django_home, tmp_path):
    hangs = INNER.replace(
        "def test_inner(self): pass", "def test_inner(self):\n        while 1: pass"
    )
    files = {**FILES, "app/tests.py": hangs}
    options = ("app.tests", "--parallel", "2")
    outcome = django(django_home, tmp_path / "p", files, *options, silent_seconds=6.0)
    assert (outcome.reason, outcome.culprit) == (
        Reason.NO_OUTPUT,
        "app.tests.Inner.test_inner",
    ), outcome.log.decode()
    assert told(outcome) == {"app.tests.Other.test_other": "passed"}
