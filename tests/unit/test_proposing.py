"""A [tool.ponyswarm] is proposed from what projects really have, and says from where."""

from __future__ import annotations

import json
import tomllib

import pytest
from click.testing import CliRunner

from ponyswarm import cli
from ponyswarm.errors import LocalError
from ponyswarm.matrix import cells
from ponyswarm.proposing.hints import command_of, python_named
from ponyswarm.proposing.proposal import added_to, propose, text_of
from ponyswarm.proposing.tox import expanded
from ponyswarm.spec import from_pyproject, from_table


def proposed(files: dict[str, str]):
    workflows = sorted(path for path in files if path.startswith(".github/"))
    made = propose(files.get, workflows)
    from_table(made.table, "the proposal")
    assert from_pyproject(text_of(made)) == from_table(made.table, "it")
    return made


TOX_DJANGO = """\
[tox]
envlist =
    py{39,310}-django42
    py{310,311,312}-django{51,main}
    lint
isolated_build = true

[testenv]
deps =
    -rrequirements/tests.txt
    django42: Django>=4.2,<5.0
    django51: Django>=5.1,<5.2
    djangomain: https://github.com/django/django/archive/main.tar.gz
    coverage
extras = argon2
setenv =
    PYTHONPATH = {toxinidir}
    COVERAGE_FILE = .coverage.{envname}
    DJANGO_SETTINGS_MODULE = tests.settings
    HOME = {envtmpdir}
commands =
    python -Wa -m coverage run --branch manage.py check
    coverage run --branch manage.py test {posargs:tests}
"""


def test_a_tox_matrix_of_djangos_becomes_a_factor():
    files = {
        "tox.ini": TOX_DJANGO,
        "requirements/tests.txt": "# for tests\n-r base.txt\nfreezegun>=1.2  # time\n",
        "requirements/base.txt": "tblib\n",
    }
    made = proposed(files)
    assert made.table == {
        "python": ["3.9", "3.10", "3.11", "3.12"],
        "runner": "django",
        "command": "python manage.py test tests",
        "install": {
            "requirements": ["tblib", "freezegun>=1.2", "coverage"],
            "extras": ["argon2"],
        },
        "factors": {
            "django": {
                "4.2": ["Django>=4.2,<5.0"],
                "5.1": ["Django>=5.1,<5.2"],
                "main": [],
            }
        },
        "exclude": [
            {"python": "3.9", "django": "5.1"},
            {"python": "3.9", "django": "main"},
            {"python": "3.11", "django": "4.2"},
            {"python": "3.12", "django": "4.2"},
        ],
        "env": {"PYTHONPATH": "/project/src", "DJANGO_SETTINGS_MODULE": "tests.settings"},
    }
    assert set(made.origins.values()) == {"tox.ini"}
    notes = "\n".join(made.notes)
    for left_out in ("archive/main.tar.gz", "lint", "HOME"):
        assert left_out in notes


def test_tox_in_pyproject_is_read_too():
    native = """\
[tool.tox]
env_list = ["3.13", "3.12", "pypy3.10", "style", "3.14t"]
[tool.tox.env_run_base]
dependency_groups = ["tests"]
commands = [["pytest", "-v", "--tb=short", { replace = "posargs", extend = true }]]
"""
    made = proposed({"pyproject.toml": native})
    assert made.table == {
        "python": ["3.13", "3.12", "pypy3.10", "3.14t"],
        "command": "pytest -v --tb=short",
        "install": {"groups": ["tests"]},
    }
    legacy = '[tool.tox]\nlegacy_tox_ini = """\n[tox]\nenvlist = py312\n[testenv]\n' + (
        'deps = pytest\ncommands = pytest --cov=it {posargs}\n"""\n'
    )
    made = proposed({"pyproject.toml": legacy})
    assert made.table == {"python": ["3.12"], "command": "pytest", "install": ["pytest"]}


NOX = """\
import nox
import os

raise_if_run = open("/no/such/file")
PYTHONS = ["3.11", "3.12"]
ALL = ["3.10", *PYTHONS, "pypy3.10"]

@nox.session
def lint(session):
    session.install("ruff")
    session.run("ruff", "check", ".")

@nox.session(python=ALL, venv_backend="uv")
@nox.parametrize("django", ["4.2", nox.param("5.2", id="lts")])
def tests(session, django):
    session.install("-e", ".[test]", "pytest", f"django~={django}.0")
    session.install("-r", "requirements.txt")
    session.install(*compute())
    session.run("python", "-m", "pytest", "tests", *session.posargs, env={"MODE": "fast"})
"""


def test_a_noxfile_is_read_and_never_executed():
    made = proposed({"noxfile.py": NOX, "requirements.txt": "attrs\n"})
    assert made.table == {
        "python": ["3.10", "3.11", "3.12", "pypy3.10"],
        "command": "pytest tests",
        "install": {"requirements": ["pytest", "attrs"], "extras": ["test"]},
        "factors": {"django": {"4.2": ["django~=4.2.0"], "5.2": ["django~=5.2.0"]}},
        "env": {"MODE": "fast"},
    }
    assert made.origins["python"] == "noxfile.py, session tests"
    assert any("compute()" in note for note in made.notes)


WORKFLOW = """\
name: tests
on: [push]
jobs:
  lint:
    runs-on: ubuntu-latest
    steps: [{run: ruff check}]
  tests:
    runs-on: ${{ matrix.os }}
    strategy:
      matrix:
        os: [ubuntu-latest, windows-latest]
        python-version: [3.9, 3.10, '3.14-dev', pypy-3.10, 3.x]
        django-version: ['4.2', '5.2']
        include:
          - {os: ubuntu-latest, python-version: '3.13t'}
        exclude:
          - {os: windows-latest, python-version: pypy-3.10}
          - {python-version: 3.9, django-version: '5.2'}
    steps:
      - uses: actions/checkout@v4
      - run: |
          pip install -r requirements.txt "django~=${{ matrix.django-version }}.0"
          python -m pytest \\
            tests --cov
"""


def test_a_workflow_keeps_3_10_apart_from_3_1():
    made = proposed({".github/workflows/ci.yml": WORKFLOW})
    assert made.table == {
        "python": ["3.9", "3.10", "3.14", "pypy3.10", "3.13t"],
        "command": "pytest tests",
        "install": ["pytest"],
        "factors": {"django": {"4.2": ["django~=4.2.0"], "5.2": ["django~=5.2.0"]}},
        "exclude": [{"python": "3.9", "django": "5.2"}],
    }
    assert made.origins["factors"] == ".github/workflows/ci.yml, job tests"
    assert len(cells(from_table(made.table, "it"))) == 9


APP = """\
# kept: a comment
[project]
name = "app"
classifiers = [
  "Framework :: Django",
  "Framework :: Django :: 5.2",
  "Framework :: Django :: 4.2",
  "Programming Language :: Python :: 3",
  "Programming Language :: Python :: 3.12",
  "Programming Language :: Python :: 3.13",
  "Programming Language :: Python :: 3 :: Only",
  "Programming Language :: Python :: Implementation :: PyPy",
]
[project.optional-dependencies]
tests = ["freezegun"]
"""


def test_classifiers_give_pythons_and_djangos():
    made = proposed({"pyproject.toml": APP, "manage.py": ""})
    assert made.table == {
        "python": ["3.12", "3.13", "pypy3"],
        "runner": "django",
        "command": "python manage.py test",
        "install": {"extras": ["tests"]},
        "factors": {"django": {"4.2": ["django~=4.2.0"], "5.2": ["django~=5.2.0"]}},
    }
    assert made.origins["command"] == "manage.py is there"


def test_requires_python_and_an_empty_project_give_guesses_that_are_named():
    made = proposed({"pyproject.toml": '[project]\nrequires-python = ">=3.12.1,<3.14"\n'})
    assert made.table["python"] == ["3.12", "3.13"]
    nothing = proposed({})
    assert nothing.table["command"] == "pytest"
    assert nothing.origins["python"] == "nothing says: a guess"


def test_a_table_is_added_and_the_rest_of_the_file_stays():
    made = proposed({"pyproject.toml": APP})
    text = added_to(APP, made)
    assert text.startswith(APP)
    assert "# from pyproject.toml [project]" in text
    assert from_pyproject(text).python == ("3.12", "3.13", "pypy3")
    with pytest.raises(LocalError, match="already"):
        added_to(text, made)
    for before in ("", "[tool.black]\nline-length = 1", "[tool]\nx.y = 1\n"):
        assert tomllib.loads(added_to(before, made))["tool"]["ponyswarm"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("py{39,310}-django{42,50}, lint", "py39-django42 py39-django50 py310-django42 "
         "py310-django50 lint"),
        ("py3{9-11}\n  pypy3", "py39 py310 py311 pypy3"),
        ("py312{,-nodeps}", "py312 py312-nodeps"),
    ],
)  # fmt: skip
def test_an_envlist_is_expanded_as_tox_does(text, names):
    assert expanded(text) == names.split()


@pytest.mark.parametrize(
    ("name", "python"),
    [
        ("py312", "3.12"), ("3.12", "3.12"), ("py3.12", "3.12"), ("3.14-dev", "3.14"),
        ("pypy3", "pypy3"), ("pypy310", "pypy3.10"), ("pypy-3.10", "pypy3.10"),
        ("py313t", "3.13t"), ("py27", "2.7"), ("py3", ""), ("3.x", ""), ("lint", ""), ("", ""),
    ],
)  # fmt: skip
def test_a_python_is_named_in_many_ways(name, python):
    assert python_named(name) == python


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("coverage run -p -m pytest {posargs:tests}", "pytest tests"),
        ("python -m pytest --cov=x --cov-report=xml -n 2", "pytest -n 2"),
        ("{envpython} -m unittest discover {tty:--color}", "python -m unittest discover"),
        ("python {toxinidir}/tests/runtests.py", "python tests/runtests.py"),
        ("- sphinx-build docs out", ""),
        ("pytest 'unbalanced", ""),
    ],
)
def test_a_command_is_freed_of_placeholders_and_coverage(line, command):
    assert command_of([line]) == command


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("tox.ini", "no section\n"),
        ("noxfile.py", "def ("),
        (".github/workflows/a.yml", "a: [\n"),
        ("pyproject.toml", "= 1"),
    ],
)
def test_a_damaged_file_is_named(path, text):
    with pytest.raises(LocalError, match=path.split("/")[-1]):
        proposed({path: text})


def test_the_command_prints_and_writes(tmp_path):
    (tmp_path / "pyproject.toml").write_text(APP)
    type_ = CliRunner().invoke
    shown = type_(cli.main, ["init-project", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "[tool.ponyswarm]" in shown.stdout
    assert "# 6 cells" in shown.stdout
    assert (tmp_path / "pyproject.toml").read_text() == APP
    told = json.loads(type_(cli.main, ["init-project", str(tmp_path), "--json"]).stdout)
    assert told["origins"]["python"] == "pyproject.toml [project]"
    assert type_(cli.main, ["init-project", str(tmp_path), "--write"]).exit_code == 0
    assert from_pyproject((tmp_path / "pyproject.toml").read_text()).factors["django"]
    assert type_(cli.main, ["init-project", str(tmp_path), "--write"]).exit_code == 2
