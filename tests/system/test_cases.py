"""Real suites, as ``examples/`` describe them, give through ``ponyswarm run`` what was seen.

Those marked `cases` take minutes, and run when asked for: ``pytest -m cases``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from exec_lab import holds

from ponyswarm.errors import InfraError
from ponyswarm.exec import index
from ponyswarm.exec.interpreters import discover
from ponyswarm.spec import from_pyproject

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
CASES = tomllib.loads((EXAMPLES / "cases.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    # A home that is kept makes it quick to run them again and again.
    return Path(os.environ.get("PONYSWARM_CASES_HOME") or tmp_path_factory.mktemp("cases"))


@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if case.get("ci") else pytest.mark.cases)
        for name, case in CASES.items()
    ],
)
def test_a_case_gives_what_was_seen_of_it(home, name):
    holds()
    if not any(f.implementation == "cpython" and f.version.startswith("3.12.") for f in discover()):
        pytest.skip("there is no CPython 3.12 here")
    case = CASES[name]
    try:
        sdist = index.fetch_sdist(case["source"], case["version"], case["sha256"], home / "sdists")
    except InfraError as fault:
        pytest.skip(f"no package index here: {fault}")
    command = [sys.executable, "-m", "ponyswarm", "--home", str(home), "run", str(sdist)]
    command += ["--spec", str(EXAMPLES / name / "ponyswarm.toml"), "--python", "3.12", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    assert (cell["state"], cell["counts"]) == ("completed", case["seen"])


def test_every_example_is_a_case_with_a_sound_spec_and_a_page_that_names_its_source():
    folders = {path.parent.name for path in EXAMPLES.glob("*/ponyswarm.toml")}
    assert set(CASES) <= folders
    for folder in folders:
        from_pyproject((EXAMPLES / folder / "ponyswarm.toml").read_text("utf-8"), folder)
        page = (EXAMPLES / folder / "README.md").read_text("utf-8")
        if folder in CASES:
            assert CASES[folder]["version"] in page
            assert CASES[folder]["sha256"] in page
