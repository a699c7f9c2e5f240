"""Finding this machine's interpreters; the candidates are real programs."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ponyswarm.errors import LocalError
from ponyswarm.exec.interpreters import Installed, _is_shim, discover, probe, survey
from ponyswarm.messages import Lock
from ponyswarm.volunteer import choose_interpreter, choose_lock, machine, system

posix = pytest.mark.skipif(os.name != "posix", reason="candidates are shell scripts")


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def pretend(path: Path, **facts) -> Path:
    """A program that answers as an interpreter with these facts would."""
    told = {
        "implementation": "cpython",
        "version": "3.12.1",
        "prefix": str(path.parent),
        "executable": str(path),
        "free_threaded": False,
        "debug": False,
        "build": path.name,
        **facts,
    }
    return script(path, f"cat <<'END'\n{told!r}\nEND")


def test_this_python_is_what_its_probe_says():
    here = probe(Path(sys.executable))
    assert here.implementation == sys.implementation.name
    assert (
        here.version == ".".join(map(str, sys.version_info[:3])) or sys.version_info[3] != "final"
    )
    # The tests run in a virtualenv: what counts is the Python behind it.
    assert here.prefix == sys.base_prefix
    assert not Path(here.path).is_relative_to(sys.prefix) or sys.prefix == sys.base_prefix
    assert here.build.startswith(here.version)


def test_discover_finds_one_of_each_kind_and_no_shim():
    found = discover([Path(sys.executable)])
    assert probe(Path(sys.executable)) in found
    kinds = [(item.implementation, item.version, item.free_threaded) for item in found]
    assert len(set(kinds)) == len(kinds)
    assert len({item.path for item in found}) == len(found)
    for item in found:
        assert os.path.realpath(item.path) == item.path
        assert "shims" not in Path(item.path).parts


@posix
def test_links_to_one_executable_are_one(tmp_path):
    real = pretend(tmp_path / "real" / "python3.12")
    links = [tmp_path / name for name in ("python", "python3")]
    for link in links:
        link.symlink_to(real)
    result = survey([*links, real], search=False)
    assert [item.path for item in result.found] == [str(real)]
    assert result.skipped == ()


@posix
def test_a_copied_virtualenv_is_its_base(tmp_path):
    base = pretend(tmp_path / "base" / "python")
    copy = pretend(tmp_path / "venv" / "python", executable=str(base), prefix=str(base.parent))
    assert [item.path for item in survey([copy], search=False).found] == [str(base)]


@posix
def test_what_cannot_be_used_is_named_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("ponyswarm.exec.interpreters.PROBE_SECONDS", 0.5)
    cases = {
        script(tmp_path / "hangs", "exec sleep 60"): "did not answer",
        script(tmp_path / "shim", "echo 'pyenv: python3.9: command not found' >&2; exit 127"): (
            "exit code 127): pyenv: python3.9"
        ),
        script(tmp_path / "two", "echo 'Unknown option: -I' >&2; exit 2"): "not a Python",
        script(tmp_path / "silent", "exit 0"): "not a Python",
        script(tmp_path / "number", "echo 1"): "not a Python",
        pretend(tmp_path / "old", version="2.6.9"): "Python 2.6.9: jobs run on 2.7",
        pretend(tmp_path / "between", version="3.5.10"): "Python 3.5.10: jobs run on 2.7",
        pretend(tmp_path / "odd", version="nonsense"): "not a Python",
        pretend(tmp_path / "ipy", implementation="ironpython"): "ironpython",
        tmp_path / "absent": "No such file",
    }
    result = survey(cases, search=False)
    assert result.found == ()
    reasons = {skip.path: skip.reason for skip in result.skipped}
    assert set(reasons) == set(map(str, cases))
    for path, words in cases.items():
        assert words in reasons[str(path)]
        with pytest.raises(LocalError):
            probe(path)


@posix
def test_python_2_is_asked_in_its_own_words(tmp_path):
    told = pretend(tmp_path / "told", version="2.7.18")
    two = script(
        tmp_path / "two",
        f'test "$1" != -I || {{ echo "Unknown option: -I" >&2; exit 2; }}\nexec {told} "$@"',
    )
    assert probe(two).minor == "2.7"


@posix
def test_the_best_is_first_and_kinds_stay_apart(tmp_path):
    paths = [
        pretend(tmp_path / "a", version="3.9.18"),
        pretend(tmp_path / "b", version="3.13.0", free_threaded=True),
        pretend(tmp_path / "c", version="3.10.14", implementation="pypy"),
        pretend(tmp_path / "d", version="3.13.0", debug=True),
        pretend(tmp_path / "e", version="3.13.0"),
        pretend(tmp_path / "f", version="3.14.0a1+"),
    ]
    found = survey(paths, search=False).found
    assert [item.name for item in found] == [
        "cpython-3.14.0a1",
        "cpython-3.13.0",
        "cpython-3.9.18",
        "cpython-3.13.0t",
        "pypy-3.10.14",
    ]
    assert found[1].build == "e"


@posix
def test_only_scripts_in_a_shims_folder_are_shims(tmp_path):
    assert _is_shim(script(tmp_path / "shims" / "python3", ""))
    assert not _is_shim(script(tmp_path / "bin" / "python3", ""))
    (tmp_path / "shims" / "python.exe").write_bytes(b"MZ")
    assert not _is_shim(tmp_path / "shims" / "python.exe")


def test_an_interpreter_has_a_name():
    made = Installed(
        path="p", prefix="/", implementation="cpython", version="3.13.0", free_threaded=True
    )
    assert made.name == "cpython-3.13.0t"


def test_a_free_threaded_build_is_a_kind_of_its_own():
    plain = Installed(path="/p", prefix="/", implementation="cpython", version="3.13.0")
    free = replace(plain, free_threaded=True)
    assert (plain.minor, free.minor) == ("3.13", "3.13t")
    assert choose_interpreter("3.13", [free]) is None
    assert choose_interpreter("3.13t", [plain, free]) is free
    assert choose_interpreter(">=3.13", [plain, free]) is plain
    made_for = [lock("3.13"), lock("3.13t")]
    assert choose_lock(made_for, plain, ()) is made_for[0]
    assert choose_lock(made_for, free, ()) is made_for[1]
    assert choose_lock(made_for[:1], free, ()) is None


def lock(python: str) -> Lock:
    return Lock(
        implementation="cpython",
        python=python,
        system=system(),
        machine=machine(),
        requirements="",
        build="",
    )
