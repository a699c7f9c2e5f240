"""What a project needs is read, never run."""

from __future__ import annotations

from pathlib import Path

import pytest
from told import told

from ponyswarm.errors import LocalError
from ponyswarm.exec.resolve import build_requirements, project_requirements
from ponyswarm.messages import Install, Spec


def needs(folder: Path, files: dict[str, str], **install: object) -> tuple[str, ...]:
    for name, text in files.items():
        (folder / name).write_text(text)
    spec = Spec(python=("3.12",), install=Install(**install))  # type: ignore[arg-type]
    return project_requirements(folder, spec)


PROJECT = """\
[project]
name = "this"
dependencies = ["a>=1"]
[project.optional-dependencies]
b = ["b1", "b2 ; python_version < '3.9'"]
All = ["this[b]", "c"]
[dependency-groups]
test = ["t", {include-group = "more"}]
more = ["m"]
"""


def test_static_dependencies_extras_and_groups_are_read(tmp_path: Path) -> None:
    found = needs(tmp_path, {"pyproject.toml": PROJECT}, extras=("all",), groups=("test",))
    assert found == ("a>=1", "b1", "b2 ; python_version < '3.9'", "c", "t", "m")


def test_a_cell_that_does_not_install_the_project_needs_its_groups_only(tmp_path: Path) -> None:
    found = needs(tmp_path, {"pyproject.toml": PROJECT}, groups=("test",), project=False)
    assert found == ("t", "m")


@pytest.mark.parametrize("chosen", [{"extras": ("none",)}, {"groups": ("none",)}])
def test_an_extra_or_group_that_is_not_there_is_named(
    tmp_path: Path, chosen: dict[str, object]
) -> None:
    with pytest.raises(LocalError, match="'none'"):
        needs(tmp_path, {"pyproject.toml": PROJECT}, **chosen)


def test_dynamic_dependencies_come_from_the_metadata_of_an_sdist(tmp_path: Path) -> None:
    files = {
        "pyproject.toml": '[project]\nname = "x"\ndynamic = ["dependencies"]\n',
        "PKG-INFO": "Metadata-Version: 2.2\nName: x\nRequires-Dist: a\n"
        "Requires-Dist: b ; extra == 'e'\n"
        'Requires-Dist: c ; python_version < "3.9" and extra == "e"\n',
    }
    assert needs(tmp_path, files) == ("a",)
    assert needs(tmp_path, files, extras=("e",)) == ("a", "b", 'c ; python_version < "3.9"')


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"setup.cfg": "[options]\ninstall_requires =\n    a\n    b\n"}, ("a", "b")),
        ({"setup.py": "from setuptools import setup\nsetup(install_requires=['a'])"}, ("a",)),
        ({"setup.py": "import setuptools\nsetuptools.setup(name='x')"}, ()),
        ({"README": ""}, ()),
    ],
)
def test_older_projects_are_read_where_they_are_plain(
    tmp_path: Path, files: dict[str, str], expected: tuple[str, ...]
) -> None:
    assert needs(tmp_path, files) == expected


COMPUTED = {"setup.py": "from setuptools import setup\nsetup(install_requires=open('r').read())"}


def test_what_only_a_build_would_tell_must_be_listed(tmp_path: Path) -> None:
    with told(
        "the project's dependencies are not written down but computed by its build, which is "
        "never run while resolving: list them under [tool.ponyswarm] as install.requirements"
    ):
        needs(tmp_path, COMPUTED)
    assert needs(tmp_path, COMPUTED, requirements=("a",)) == ()


def test_build_requirements_have_a_default(tmp_path: Path) -> None:
    assert build_requirements(tmp_path) == ("setuptools>=40.8.0", "wheel")
    (tmp_path / "pyproject.toml").write_text('[build-system]\nrequires = ["hatchling"]\n')
    assert build_requirements(tmp_path) == ("hatchling",)
