"""Real suites give the counts that were seen of them, and the same ones a second time."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from pathlib import Path

import pytest
import trio
from exec_lab import holds

from ponyswarm.errors import InfraError
from ponyswarm.exec import index, interpreters
from ponyswarm.exec.executor import Executor
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.outcome import Outcome
from ponyswarm.exec.sandbox import Limits
from ponyswarm.messages import Cell, Install, Reason, Spec

# The end of the time in which what these suites need is taken from the index.
BEFORE = 1_795_200_000_000


@functools.lru_cache(maxsize=1)
def python_312() -> Installed:
    for one in interpreters.discover():
        if one.implementation == "cpython" and one.version.startswith("3.12."):
            return one
    pytest.skip("there is no CPython 3.12 here")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suites")


def sdist(home: Path, name: str, version: str, sha256: str | None = None) -> Path:
    try:
        return index.fetch_sdist(name, version, sha256, home / "sdists")
    except InfraError as fault:
        pytest.skip(f"no package index here: {fault}")


def run(
    home: Path,
    archive: Path,
    requirements: tuple[str, ...],
    command: str,
    *,
    runner: str = "pytest",
) -> Outcome:
    holds()
    spec = Spec(
        python=("3.12",),
        runner=runner,  # type: ignore[arg-type]
        command=tuple(command.split()),
        install=Install(requirements=requirements),
    )
    executor = Executor(
        cache=home / "cache", scratch=home / "scratch", limits=Limits(), sandbox=holds()
    )
    return trio.run(
        functools.partial(
            executor.run,
            source=archive,
            source_hash=hashlib.sha256(archive.read_bytes()).digest(),
            spec=spec,
            cell=Cell(python="3.12"),
            interpreter=python_312(),
            lock=None,
            resolve_before=BEFORE,
        )
    )


def counts(outcome: Outcome) -> dict[str, int]:
    return dict(Counter(test.status.value for test in outcome.tests))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "version", "requirements", "command", "seen"),
    [
        ("itsdangerous", "2.2.0", ("freezegun", "pytest"), "pytest tests", {"passed": 297}),
        ("six", "1.17.0", ("pytest",), "pytest test_six.py", {"passed": 198, "skipped": 2}),
        ("pluggy", "1.7.0", ("pytest",), "pytest testing", {"passed": 219}),
        ("markupsafe", "3.0.4", ("pytest",), "pytest tests", {"passed": 79, "skipped": 1}),
        (
            "itsdangerous",
            "2.2.0",
            ("freezegun", "pytest", "pytest-xdist"),
            "pytest -n 2 tests",
            {"passed": 297},
        ),
    ],
)
def test_a_real_suite_gives_what_was_seen_of_it(
    home: Path,
    name: str,
    version: str,
    requirements: tuple[str, ...],
    command: str,
    seen: dict[str, int],
) -> None:
    archive = sdist(home, name, version)
    first = run(home, archive, requirements, command)
    assert (first.state, counts(first)) == ("completed", seen), first.log.decode()
    second = run(home, archive, requirements, command)
    assert [(test.id, test.status) for test in second.tests] == [
        (test.id, test.status) for test in first.tests
    ]
    assert second.environment == first.environment


AWKWARD = """\
import os, sys, pytest

@pytest.mark.parametrize("value", [object(), object()])
def test_addresses(value): pass

def test_fail(): assert 0

@pytest.fixture
def broken(): raise OSError("gone")

def test_error(broken): pass

@pytest.fixture
def late():
    yield
    raise OSError("late")

def test_late(late): pass

@pytest.mark.xfail
def test_xfail(): assert 0

@pytest.mark.xfail
def test_xpass(): pass

@pytest.mark.xfail(strict=True)
def test_strict(): pass

def test_skip(): pytest.skip("why")

pytest_plugins = ["pytester"]

def test_nested(pytester):
    pytester.makepyfile("def test_inner(): assert 0")
    pytester.runpytest_inprocess().assert_outcomes(failed=1)
    pytester.runpytest_subprocess().assert_outcomes(failed=1)

def test_subtests(subtests):
    for i in range(3):
        with subtests.test(i=i): assert i != 1

def test_environment(): assert "PYTEST_ADDOPTS" not in os.environ

def test_site():
    import awkward
    assert awkward.__file__ == "/project/site/awkward.py" or os.path.exists("awkward.py")
    for folder in ("/project/site", "/env/lib"):
        with pytest.raises(OSError): open(folder + "/planted", "w")
"""


def project(folder: Path, **files: str) -> Path:
    from exec_lab import archive

    folder.mkdir()
    texts = {name.replace("__", "."): text for name, text in files.items()}
    return archive(folder, texts)


PYPROJECT = """\
[project]
name = "awkward"
version = "1.0"
[build-system]
requires = ["flit_core"]
build-backend = "flit_core.buildapi"
[tool.pytest.ini_options]
filterwarnings = ["error"]
"""


@pytest.mark.slow
def test_every_status_of_pytest_is_told_apart(home: Path, tmp_path: Path) -> None:
    source = project(
        tmp_path / "p",
        pyproject__toml=PYPROJECT.replace('version = "1.0"', 'version = "1.0"\ndescription = "x"'),
        awkward__py='"""x"""\n',
        test_it__py=AWKWARD,
        test_unimportable__py="import no_such_module\n",
        test_whole__py="import pytest\npytest.importorskip('no_such_module')\n",
    )
    outcome = run(home, source, ("pytest",), "pytest --continue-on-collection-errors")
    assert outcome.state == "completed", outcome.log.decode()
    assert {test.id: test.status.value for test in outcome.tests} == {
        "test_it.py::test_addresses[value0]": "passed",
        "test_it.py::test_addresses[value1]": "passed",
        "test_it.py::test_environment": "passed",
        "test_it.py::test_error": "error",
        "test_it.py::test_fail": "failed",
        "test_it.py::test_late": "error",
        "test_it.py::test_nested": "passed",
        "test_it.py::test_site": "passed",
        "test_it.py::test_skip": "skipped",
        "test_it.py::test_strict": "failed",
        "test_it.py::test_subtests": "failed",
        "test_it.py::test_xfail": "xfailed",
        "test_it.py::test_xpass": "xpassed",
        "test_unimportable.py": "error",
        "test_whole.py": "skipped",
    }, outcome.log.decode()


@pytest.mark.slow
def test_a_project_that_does_not_build_is_broken_and_the_next_is_good(
    home: Path, tmp_path: Path
) -> None:
    bad = project(tmp_path / "bad", setup__py="import socket\nraise SystemExit('no build today')\n")
    outcome = run(home, bad, ("pytest",), "pytest")
    assert outcome.reason is Reason.INSTALL
    assert b"no build today" in outcome.log
    unknown = project(tmp_path / "unknown", setup__py="from setuptools import setup\nsetup()\n")
    outcome = run(home, unknown, ("no-such-package-by-ponyswarm",), "pytest")
    assert outcome.reason is Reason.INSTALL
    assert "no-such-package-by-ponyswarm" in outcome.detail


@pytest.mark.slow
def test_a_failing_exit_status_without_a_failing_test_is_a_failure(
    home: Path, tmp_path: Path
) -> None:
    source = project(
        tmp_path / "p",
        setup__py="from setuptools import setup\nsetup(name='awkward', py_modules=[])\n",
        test_it__py="def test_a(): pass\n",
        conftest__py="def pytest_sessionfinish(session): session.exitstatus = 1\n",
    )
    outcome = run(home, source, ("pytest",), "pytest")
    assert {test.id: test.status.value for test in outcome.tests} == {
        "command": "failed",
        "test_it.py::test_a": "passed",
    }


@pytest.mark.slow
def test_a_crash_of_pytest_keeps_what_came_before(home: Path, tmp_path: Path) -> None:
    source = project(
        tmp_path / "p",
        setup__py="from setuptools import setup\nsetup(name='awkward', py_modules=[])\n",
        test_it__py="import os\ndef test_a(): pass\ndef test_b(): os._exit(0)\n",
    )
    outcome = run(home, source, ("pytest",), "pytest")
    assert (outcome.reason, outcome.culprit) == (Reason.CRASHED, "test_it.py::test_b")
    assert [test.id for test in outcome.tests] == ["test_it.py::test_a"]
    source = project(
        tmp_path / "q",
        setup__py="from setuptools import setup\nsetup(name='awkward', py_modules=[])\n",
    )
    outcome = run(home, source, ("pytest",), "pytest")
    assert (outcome.reason, outcome.detail) == (Reason.CRASHED, "no tests were collected")
