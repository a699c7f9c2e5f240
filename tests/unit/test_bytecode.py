"""Which modules of a source tree are compiled before a run, and what their bytecode is kept by."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ponyswarm.exec.bytecode import modules

FILES = (
    "tests/test_a.py",
    "tests/sub/b_test.py",
    "tests/sub/lib.py",
    "tests/data/x.py",
    "src/m.py",
)


@pytest.fixture
def tree(tmp_path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    return tmp_path


def paths(tree: Path, *command: str) -> list[str]:
    return sorted(module.path for module in modules(tree, ("pytest", *command)))


def test_without_a_path_every_folder_with_tests_counts(tree):
    assert paths(tree) == ["tests/sub/b_test.py", "tests/sub/lib.py", "tests/test_a.py"]


@pytest.mark.parametrize("word", ["tests/sub", "tests/sub/b_test.py", "tests/sub/b_test.py::test"])
def test_a_path_in_the_command_leaves_out_the_rest(tree, word):
    assert paths(tree, "-q", word) == ["tests/sub/b_test.py", "tests/sub/lib.py"]


@pytest.mark.parametrize("word", ["/etc", "../x", "-k", "nowhere"])
def test_nothing_outside_the_tree_is_looked_at(tree, word):
    assert paths(tree, word) == paths(tree)


def test_links_are_left_to_the_run(tree):
    (tree / "tests" / "test_link.py").symlink_to("/etc/passwd")
    assert "tests/test_link.py" not in paths(tree)


def test_another_way_of_rewriting_is_left_to_the_run(tree):
    (tree / "pytest.ini").write_text("[pytest]\nenable_assertion_pass_hook = true\n")
    assert paths(tree) == []


def test_the_key_is_of_path_time_and_content(tree):
    def key(name: str = "tests/test_a.py") -> str:
        return next(one.key for one in modules(tree, ("pytest",)) if one.path == name)

    file = tree / "tests" / "test_a.py"
    os.utime(file, ns=(1, 1))
    keys = [key(), key()]
    file.write_text("# other\n")
    os.utime(file, ns=(1, 1))
    keys.append(key())
    os.utime(file, ns=(2, 2))
    keys.append(key())
    file.rename(file.with_name("test_z.py"))
    keys.append(key("tests/test_z.py"))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
