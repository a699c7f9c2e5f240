"""A cell's ``python``: what it accepts, what it refuses, what is nonsense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponyswarm.errors import LocalError
from ponyswarm.matrix import matches, requirement


@pytest.mark.parametrize(
    ("text", "interpreter"),
    [
        ("3.12", ("cpython", "3.12.1", False)),
        ("3.12", ("cpython", "3.12.0rc2", False)),
        ("3", ("cpython", "3.9.18", False)),
        ("3.12.1", ("cpython", "3.12.1", False)),
        ("3.14.0rc1", ("cpython", "3.14.0rc1", False)),
        (">=3.9", ("cpython", "3.13.0", False)),
        (">= 3.9, <3.13", ("cpython", "3.12.4", False)),
        ("~=3.11.2", ("cpython", "3.11.7", False)),
        (">=3.14.0a1", ("cpython", "3.14.0b1", False)),
        ("cpython", ("cpython", "3.8.18", False)),
        ("cpython3.12", ("cpython", "3.12.1", False)),
        ("cpython >=3.9", ("cpython", "3.12.1", False)),
        ("pypy", ("pypy", "3.10.14", False)),
        ("pypy3.10", ("pypy", "3.10.14", False)),
        ("pypy>=3.9", ("pypy", "3.10.14", False)),
        ("3.13t", ("cpython", "3.13.0", True)),
        ("cpython3.13t", ("cpython", "3.13.0", True)),
        (">=3.13t", ("cpython", "3.14.0", True)),
        ("3.13.0rc1t", ("cpython", "3.13.0rc1", True)),
    ],
)
def test_accepts(text, interpreter):
    assert matches(text, *interpreter)


@pytest.mark.parametrize(
    ("text", "interpreter"),
    [
        ("3.1", ("cpython", "3.12.1", False)),
        ("3.12", ("cpython", "3.13.0", False)),
        ("3.12", ("pypy", "3.12.1", False)),
        ("3.12.1", ("cpython", "3.12.10", False)),
        ("3.12.1", ("cpython", "3.12.1rc1", False)),
        (">=3.9", ("cpython", "3.8.18", False)),
        (">=3.9", ("cpython", "3.15.0a1", False)),
        (">=3.9", ("pypy", "3.10.14", False)),
        ("pypy3.10", ("cpython", "3.10.14", False)),
        ("3.13", ("cpython", "3.13.0", True)),
        (">=3.13", ("cpython", "3.13.0", True)),
        ("cpython", ("cpython", "3.13.0", True)),
        ("3.13t", ("cpython", "3.13.0", False)),
        ("3.12", ("cpython", "not a version", False)),
        ("3.12", ("cpython", "", False)),
    ],
)
def test_refuses(text, interpreter):
    assert not matches(text, *interpreter)


@pytest.mark.parametrize(
    "text",
    ["", " ", "t", "py312", "3.x", "3.12.1.4", "=3.9", "jython2.7", "cpythont", "pypy 3.10 x",
     "3.12tt", "3.12 3.13", "latest", "-3.12", ">=", "٣.١٢", "3.12\n3.13"],
)  # fmt: skip
def test_nonsense_is_refused_with_a_remedy(text):
    with pytest.raises(LocalError, match=r"write a version"):
        matches(text, "cpython", "3.12.1")


numbers = st.integers(0, 99)


@given(numbers, numbers, numbers, st.sampled_from(["cpython", "pypy"]), st.booleans())
def test_a_version_names_its_own_series_and_itself_only(major, minor, patch, name, free):
    mark = "t" if free else ""
    version = f"{major}.{minor}.{patch}"
    for text in (
        f"{name}{major}.{minor}{mark}",
        f"{name}{version}{mark}",
        f"{name}>={version}{mark}",
    ):
        assert matches(text, name, version, free)
        assert not matches(text, name, version, not free)
        assert not matches(text, "graalpy", version, free)
    assert not matches(f"{name}{major}.{minor}{mark}", name, f"{major}.{minor + 1}.{patch}", free)
    assert not matches(f"{name}{version}{mark}", name, f"{major}.{minor}.{patch + 1}", free)


@given(st.text(max_size=100), st.text(max_size=30))
def test_any_text_is_answered_or_refused(text, version):
    try:
        wanted = requirement(text)
    except LocalError:
        return
    assert wanted.accepts(wanted.implementation, version, wanted.free_threaded) in (True, False)


@given(
    st.from_regex(
        r"(cpython|pypy)?(>=|<|==|~=|!=)?[0-9]{1,3}(\.[0-9]{1,3}){0,3}(\.\*)?t?", fullmatch=True
    )
)
def test_text_near_the_grammar_is_answered_or_refused(text):
    try:
        answer = matches(text, "cpython", "3.12.1")
    except LocalError:
        return
    assert answer in (True, False)
