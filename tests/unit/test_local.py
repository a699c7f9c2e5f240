"""Which cells `ponyswarm run` takes, and what its JUnit XML says of them."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ElementTree

from told import told

from ponyswarm import junit, local
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.outcome import Outcome, TestOutcome
from ponyswarm.local import Ended, Place
from ponyswarm.messages import Cell, Reason, Spec, Status

HERE = [
    Installed(path=f"/p/{version}", prefix="/p", implementation="cpython", version=version)
    for version in ("3.12.1", "3.12.7", "3.11.2")
]
SPEC = Spec(
    python=("3.11", "3.12", "3.13"),
    factors={"django": {"4.2": ("django~=4.2.0",), "5.2": ("django~=5.2.0",)}},
    exclude=({"python": "3.11", "django": "5.2"},),
)


def names(**choice) -> list[str]:
    return [place.name for place in local.places(SPEC, HERE, **choice)]


def test_the_whole_matrix_is_taken_with_the_latest_interpreter_for_each_cell():
    places = local.places(SPEC, HERE)
    assert len(places) == 5
    found = {p.cell.python: p.interpreter.version if p.interpreter else None for p in places}
    assert found == {"3.11": "3.11.2", "3.12": "3.12.7", "3.13": None}


def test_cells_are_chosen_by_words_of_their_names():
    assert names(wanted=["3.12"]) == ["3.12 django=4.2", "3.12 django=5.2"]
    assert names(wanted=["3.12 django=4*", "3.11"]) == ["3.11 django=4.2", "3.12 django=4.2"]
    with told("no cell is called 3.1: there are 3.11 django=4.2, …"):
        names(wanted=["3.1"])


def test_other_pythons_than_the_matrix_has_may_be_run():
    assert names(pythons=[">=3.8"]) == [">=3.8 django=4.2", ">=3.8 django=5.2"]
    with told("'snake' names no Python: write a version …", at="matrix.py requirement"):
        names(pythons=["snake"])


def test_junit_xml_tells_every_status_and_a_broken_run_is_never_good():
    tests = tuple(
        TestOutcome(
            id=f"tests/test_a.py::TestB::test_{status}[x.y]", status=status, message="m\ufffe"
        )
        for status in Status
    )
    places = [Place(cell=Cell(python=name), interpreter=HERE[0]) for name in ("3.12", "3.1")]
    good = Outcome(state="completed", tests=tests, seconds=1.0)
    broken = Outcome(
        state="broken", reason=Reason.TIMEOUT, detail="late", culprit="a.b", log=b"\x1b\xff"
    )
    ended = [
        Ended(place=place, outcome=one, steps=())
        for place, one in zip(places, (good, broken), strict=True)
    ]
    root = ElementTree.fromstring(junit.document("it", ended).tostring())
    first, second = root.iter("testsuite")
    assert [first.get(key) for key in ("tests", "failures", "errors", "skipped")] == list("6112")
    assert {case.get("classname") for case in first.iter("testcase")} == {"tests.test_a.TestB"}
    assert {case.get("name") for case in first.iter("testcase")} == {
        f"test_{status}[x.y]" for status in Status
    }
    (case,) = second.iter("testcase")
    assert case.get("name") == "a.b"
    assert case.find("error").get("message") == "timeout: late"


def test_junit_xml_of_a_large_suite_takes_no_time_to_speak_of():
    tests = tuple(TestOutcome(id=f"a.test_{n}", status=Status.PASSED) for n in range(20_000))
    place = Place(cell=Cell(python="3.12"), interpreter=HERE[0])
    outcome = Outcome(state="completed", tests=tests)
    began = time.process_time()
    document = junit.document("it", [Ended(place=place, outcome=outcome, steps=())])
    assert document.tests == 20_000
    assert time.process_time() - began < 20
