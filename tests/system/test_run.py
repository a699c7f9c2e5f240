"""``ponyswarm run``, as a person types it: a matrix here, through a volunteer's own code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from exec_lab import holds, this_python
from junitparser import JUnitXml

THIS = ".".join(this_python().version.split(".")[:2])
SPEC = f"""\
[tool.ponyswarm]
python = ["{THIS}", "3.99"]
runner = "unittest"
[tool.ponyswarm.install]
project = false
[tool.ponyswarm.factors]
side = ["left", "right"]
"""
MIXED = """\
import time
import unittest


class Test(unittest.TestCase):
    def test_bad(self):
        self.assertEqual(1, 2, "because")

    def test_good(self):
        pass
"""


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def checkout(home, tmp_path, monkeypatch):
    holds()
    monkeypatch.setenv("PONYSWARM_HOME", str(home))
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "pyproject.toml").write_text(SPEC)
    (folder / "test_it.py").write_text(MIXED.replace("1, 2", "1, 1"))
    git(folder, "add", ".")
    return folder


def command(checkout: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "ponyswarm", "run", str(checkout), *words]


def types(checkout: Path, *words: str, code: int) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(checkout, *words), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_working_tree_is_run_as_it_is_on_disk(checkout):
    told = types(checkout, code=0).stdout
    assert "2 of 4 cells good, 2 without an interpreter here" in told
    (checkout / "test_it.py").write_text(MIXED)
    (checkout / "test_new.py").write_text("raise SystemExit('never added to git')\n")
    xml = checkout.parent / "it.xml"
    done = types(checkout, "--junit", str(xml), code=1)
    assert "test_it.Test.test_bad everywhere" in done.stdout
    assert "AssertionError: 1 != 2 : because" in done.stdout
    assert "1 file left out, since git does not track them: test_new.py" in done.stderr
    suites = list(JUnitXml.fromfile(str(xml)))
    assert [(suite.tests, suite.failures, suite.errors) for suite in suites] == [(2, 1, 0)] * 2


def test_json_says_all_and_the_second_run_prepares_at_once(checkout):
    first = json.loads(types(checkout, "--json", code=0).stdout)
    second = json.loads(types(checkout, "--json", code=0).stdout)
    ran = [cell for cell in second["cells"] if cell["state"] != "not run"]
    assert len(ran) == 2
    for cell in ran:
        assert cell["counts"] == {"passed": 2}
        assert sum(seconds for name, seconds in cell["steps"].items() if name != "test") < 0.5
    assert [cell.get("digest") for cell in first["cells"]] == [
        cell.get("digest") for cell in second["cells"]
    ]


def test_cells_and_arguments_are_chosen(checkout):
    one = types(checkout, "--cell", f"{THIS} side=l*", "--", "test_it.Test.test_good", code=0)
    assert "1 of 1 cell good" in one.stdout
    assert "1 passed in" in one.stdout
    assert "no cell is called" in types(checkout, "--cell", "side=up", code=2).stderr
    assert (
        "no interpreter here satisfies 3.98" in types(checkout, "--python", "3.98", code=2).stderr
    )
    assert "names no Python" in types(checkout, "--python", "snake", code=2).stderr


def test_what_is_no_project_is_said_to_be_none(checkout, tmp_path):
    holds()
    plain = tmp_path / "plain"
    plain.mkdir()
    assert "no git checkout" in types(plain, code=2).stderr
    (checkout / "pyproject.toml").unlink()
    assert "init-project" in types(checkout, code=2).stderr


def test_a_broken_run_names_what_was_running_and_exits_3(checkout):
    (checkout / "test_it.py").write_text(MIXED.replace("pass", "import os; os._exit(0)"))
    done = types(checkout, "--cell", "side=left", code=1)
    assert "this test was running: test_it.Test.test_good" in done.stdout
    good = MIXED.replace("1, 2", "1, 1").replace("pass", "import os; os._exit(0)")
    (checkout / "test_it.py").write_text(good)
    done = types(checkout, "--cell", "side=left", code=3)
    assert "before it: 1 passed" in done.stdout


def test_ctrl_c_leaves_nothing_and_keeps_what_is_done(checkout, home):
    body = MIXED.replace("1, 2", "1, 1").replace("pass", "time.sleep({}) if {} else None")
    slow = body.format("300", "__import__('os').environ['SIDE'] == 'right'")
    (checkout / "test_it.py").write_text(slow)
    (checkout / "pyproject.toml").write_text(
        SPEC.replace("runner", 'env.SIDE = "{factor.side}"\nrunner')
    )
    process = subprocess.Popen(
        command(checkout, "-j", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = []
    while not any("side=left" in line and "passed" in line for line in lines):
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "1 of 4 cells good" in rest
    assert "1 not done: interrupted" in rest
    assert os.listdir(home / "cache" / "local") == []
