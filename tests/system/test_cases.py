"""Real suites, as ``examples/`` describe them, give what was seen: by `run` and through nodes.

Those marked `cases` take minutes, and run when asked for: ``pytest -m cases``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from exec_lab import holds

from bench import cases
from bench.cases import EXAMPLES, Case, Ran, through_run
from ponyswarm.errors import InfraError
from ponyswarm.exec.provisioning import probe
from ponyswarm.exec.services.service import Missing, Options
from ponyswarm.matrix import service_requirement
from ponyswarm.spec import from_pyproject

CASES = cases.load()
WAITS = 2400


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A home that is kept makes it quick to run them again and again.
    return Path(os.environ.get("PONYSWARM_CASES_HOME") or tmp_path_factory.mktemp("cases"))


def marked(way: str) -> list[object]:
    """Every case, those that run this way with every run of the tests marked so."""
    return [
        pytest.param(case, id=name, marks=pytest.mark.slow if case.ci == way else pytest.mark.cases)
        for name, case in CASES.items()
    ]


def need(case: Case, folder: Path) -> None:
    """Skip a case for want of what it needs here."""
    holds()
    missing = set(case.pythons) - set(cases.interpreters(case))
    if missing == set(case.pythons):
        pytest.skip(f"there is no Python {', '.join(sorted(missing))} here")
    spec = from_pyproject(case.spec.read_text("utf-8"), case.name)
    parts = "+".join(spec.services).split("+") if spec.services else []
    names = {service_requirement(part).name for part in parts}
    for name, found in trio.run(probe, {name: Options() for name in names}).items():
        if isinstance(found, Missing):
            pytest.skip(f"{name} is not here: {found.why}")
    try:
        case.sdist(folder / "sdists")
    except InfraError as fault:
        pytest.skip(f"no package index here: {fault}")


def right(case: Case, ran: list[Ran]) -> None:
    assert ran
    assert [text for one in ran if (text := case.wrong(one))] == []


@pytest.mark.timeout(WAITS)
@pytest.mark.parametrize("case", marked("run"))
def test_a_case_gives_what_was_seen_of_it(home: Path, case: Case) -> None:
    need(case, home)
    right(case, through_run(case, home))


@pytest.mark.timeout(WAITS)
@pytest.mark.cases
@pytest.mark.parametrize("case", [case for case in CASES.values() if case.ci != "node"], ids=str)
def test_a_case_gives_the_same_through_a_node(tmp_path: Path, case: Case) -> None:
    need(case, tmp_path)
    with cases.open_nodes(list(cases.interpreters(case).values())) as nodes:
        right(case, list(nodes.run(case)))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_small_cases_give_the_same_through_one_node(tmp_path: Path) -> None:
    small = [case for case in CASES.values() if case.ci == "node"]
    for case in small:
        need(case, tmp_path)
    with cases.open_nodes(list(cases.interpreters(small[0]).values())) as nodes:
        for case in small:
            right(case, list(nodes.run(case)))


def test_every_example_is_a_case_with_a_sound_spec_and_a_page_that_names_its_source() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/ponyswarm.toml")}
    assert set(CASES) <= folders
    for folder in folders:
        from_pyproject((EXAMPLES / folder / "ponyswarm.toml").read_text("utf-8"), folder)
        page = (EXAMPLES / folder / "README.md").read_text("utf-8")
        if folder in CASES:
            assert CASES[folder].version in page
            assert CASES[folder].sha256 in page


def test_a_case_is_wrong_when_a_count_differs_or_nothing_explains_a_failure() -> None:
    case = Case(
        name="it",
        source="it",
        version="1",
        sha256="",
        seen={"passed": 9, "failed": 1},
        differs={"3.6": {"passed": 8}, "3.6 mariadb": {"passed": 7, "failed": 1}},
        bad={"known": "because"},
        flaky={"now and then": "it is timed"},
    )

    def ran(cell: str, bad: tuple[str, ...] = (), **counts: int) -> str:
        return case.wrong(Ran(cell=cell, state="completed", counts=counts, bad=bad, digest=""))

    assert ran("3.12", ("known",), passed=9, failed=1) == ""
    assert "nothing explains" in ran("3.12", ("other",), passed=9, failed=1)
    assert "expected" in ran("3.12", passed=10)
    assert ran("3.12", ("known", "now and then"), passed=8, failed=2) == ""
    assert ran("3.6", passed=8) == ""
    assert ran("3.6 mariadb", ("known",), passed=7, failed=1) == ""
    broken = Ran(cell="3.6", state="broken", detail="timeout", counts={}, bad=(), digest="")
    assert "timeout" in case.wrong(broken)
