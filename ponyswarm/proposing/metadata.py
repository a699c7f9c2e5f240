"""Hints from a project's metadata: classifiers, ``requires-python``, test extras. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from ponyswarm.proposing.hints import Factors, Hints, Read, pythons_of, table_of, texts_of

NEWEST_MINOR = 14
OLDEST_MINOR = 9
_EXTRAS = ("test", "tests", "testing")


def from_metadata(pyproject: Mapping[str, object], read: Read) -> Hints:
    """Classifiers, ``requires-python``, and extras or groups that are there for tests."""
    project = table_of(pyproject, "project")
    classifiers = texts_of(project.get("classifiers"))
    origin = "pyproject.toml [project]"
    if not classifiers:
        for path in ("setup.cfg", "setup.py"):
            written = read(path) or ""
            classifiers = re.findall(r"(?:Programming Language|Framework) :: [^\"'\n]+", written)
            if classifiers:
                origin = path
                break
    pythons = list(
        pythons_of(
            re.findall(r"(?m)^Programming Language :: Python :: (3\.\d+)", "\n".join(classifiers))
        )
    )
    if not pythons and isinstance(wanted := project.get("requires-python"), str):
        pythons = _within(wanted)
    if pythons and any("Implementation :: PyPy" in line for line in classifiers):
        pythons.append("pypy3")
    django = [
        line.rpartition(" ")[2]
        for line in classifiers
        if line.startswith("Framework :: Django :: ")
    ]
    versions = sorted((v for v in django if re.fullmatch(r"\d+\.\d+", v)), key=Version)
    factors: Factors = {"django": {v: (f"django~={v}.0",) for v in versions}} if versions else {}
    optional = table_of(project, "optional-dependencies")
    groups = table_of(pyproject, "dependency-groups")
    extras = tuple(name for name in _EXTRAS if name in optional)[:1]
    group = () if extras else tuple(name for name in (*_EXTRAS, "dev") if name in groups)[:1]
    return Hints(
        origin=origin, pythons=tuple(pythons), factors=factors, extras=extras, groups=group
    )


def _within(specifiers: str) -> list[str]:
    try:
        wanted = SpecifierSet(specifiers)
        minors = range(OLDEST_MINOR, NEWEST_MINOR + 1)
        # ">=3.9.2" wants 3.9 as well: its later releases.
        return [f"3.{minor}" for minor in minors if wanted.contains(f"3.{minor}.99")]
    except (InvalidSpecifier, InvalidVersion):
        return []
