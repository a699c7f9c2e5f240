"""A matrix becomes its cells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponyswarm.errors import PeerError
from ponyswarm.matrix import MAX_CELLS, cells, requirements
from ponyswarm.messages import Cell, Install, Spec


def test_cells_come_in_the_order_a_person_wrote():
    spec = Spec(
        python=("3.13", "3.9"),
        services=("redis", "postgresql"),
        factors={"b": {"2": (), "1": ()}, "a": {"x": ()}},
    )
    found = cells(spec)
    assert [cell.python for cell in found] == ["3.13"] * 4 + ["3.9"] * 4
    assert [cell.services for cell in found[:4]] == [("redis",)] * 2 + [("postgresql",)] * 2
    assert [cell.factors for cell in found[:2]] == [
        (("a", "x"), ("b", "2")),
        (("a", "x"), ("b", "1")),
    ]


def test_without_services_and_factors_there_is_a_cell_a_python():
    assert cells(Spec(python=("3.12",))) == (Cell(python="3.12"),)


def test_services_may_be_joined_and_are_sorted_and_unique():
    spec = Spec(python=("3.12",), services=("redis + postgresql+redis", " mariadb "))
    assert [cell.services for cell in cells(spec)] == [("postgresql", "redis"), ("mariadb",)]


def test_equal_cells_are_one():
    spec = Spec(python=("3.12", "3.12"), services=("a+b", "b + a"))
    assert len(cells(spec)) == 1


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ({"python": "3.12"}, 4),
        ({"python": "3.12", "services": "redis"}, 6),
        ({"services": "postgresql+redis"}, 4),
        ({"services": "redis + postgresql"}, 4),
        ({"services": "postgresql"}, 8),
        ({"django": "5"}, 4),
        ({"python": "3.12", "services": "redis", "django": "5"}, 7),
        ({"python": "3"}, 8),
        ({"flask": "3"}, 8),
        ({}, 8),
    ],
)
def test_a_rule_excludes_the_cells_of_which_all_of_it_holds(rule, left):
    spec = Spec(
        python=("3.12", "3.13"),
        services=("redis", "redis+postgresql"),
        factors={"django": {"4": (), "5": ()}},
        exclude=(rule,),
    )
    assert len(cells(spec)) == left


def test_a_factor_named_python_does_not_hide_the_python():
    spec = Spec(
        python=("3.12", "3.13"), factors={"python": {"x": ()}}, exclude=({"python": "3.12"},)
    )
    assert [cell.python for cell in cells(spec)] == ["3.13"]


@pytest.mark.parametrize(
    "spec",
    [
        Spec(python=("3.12",), exclude=({"python": "3.12"},)),
        Spec(python=("3.12",), factors={"django": {}}),
        Spec(
            python=("3.12",),
            factors={str(n): {str(i): () for i in range(10)} for n in range(4)},
        ),
    ],
    ids=["nothing left", "an empty factor", "too many"],
)
def test_a_matrix_is_refused_for(spec):
    with pytest.raises(PeerError, match="bad-matrix"):
        cells(spec)


def test_a_huge_matrix_is_refused_before_it_is_made():
    factors = {str(n): {str(i): () for i in range(100)} for n in range(30)}
    with pytest.raises(PeerError, match="bad-matrix"):
        cells(Spec(python=("3.12",), factors=factors))


names = st.sampled_from(["a", "b", "c"])


@given(
    st.builds(
        Spec,
        python=st.lists(st.sampled_from(["3.12", "3.13"]), min_size=1, max_size=3).map(tuple),
        services=st.lists(st.sampled_from(["x", "y", "x+y", "y+x"]), max_size=3).map(tuple),
        factors=st.dictionaries(names, st.dictionaries(names, st.just(()), min_size=1), max_size=3),
    )
)
def test_cells_are_unique_and_within_the_bound(spec):
    found = cells(spec)
    assert len(found) == len(set(found)) <= MAX_CELLS
    assert all(list(cell.factors) == sorted(cell.factors) for cell in found)


def test_a_cell_installs_the_common_requirements_and_its_factors():
    spec = Spec(
        python=("3.12",),
        install=Install(requirements=("pytest",)),
        factors={"django": {"5": ("django~=5.0", "psycopg")}, "a": {"1": ("attrs",)}},
    )
    (cell,) = cells(spec)
    assert requirements(spec, cell) == ("pytest", "attrs", "django~=5.0", "psycopg")
