"""bootstrap.py: its decisions, and the one big promise that any Python from 3.8 can start it."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from told import told

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bootstrap.py"
posix = pytest.mark.skipif(os.name != "posix", reason="candidates are shell scripts")


@pytest.fixture
def bootstrap(tmp_path):
    """The script as a module of its own, at home in an empty folder."""
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.HERE = str(tmp_path)
    module.VENV = str(tmp_path / ".venv")
    module.STAMP = str(tmp_path / ".venv" / "ponyswarm-stamp.json")
    return module


# --- any Python ------------------------------------------------------------------------------


def test_it_is_written_in_python_3_8():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 8))


def test_it_imports_nothing_but_the_standard_library():
    tree = ast.parse(SCRIPT.read_text())
    names = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names
    assert "tomllib" not in names


def test_it_wants_the_python_that_the_project_wants(bootstrap):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">={}.{}".format(*bootstrap.OLDEST)
    (uv,) = (line for line in project["dependencies"] if line.startswith("uv>="))
    assert uv == "uv>={}.{}".format(*bootstrap.OLDEST_UV)


# --- what was asked for ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("", ("node", None, [])),
        ("node --once", ("node", None, ["--once"])),
        ("setup", ("setup", None, [])),
        ("setup --dev", ("setup", None, ["--dev"])),
        ("test -k a --lf -h", ("test", None, ["-k", "a", "--lf", "-h"])),
        ("--home H demo --quick", ("demo", "H", ["--quick"])),
        ("--home=H", ("node", "H", [])),
        ("--help", ("help", None, [])),
        ("-h test", ("help", None, [])),
    ],
)
def test_parse(bootstrap, typed, meant):
    assert bootstrap.parse(typed.split()) == meant


@pytest.mark.parametrize("typed", ["nodes", "--dev", "setup now", "--home", "--home="])
def test_parse_refuses(bootstrap, typed, capsys):
    assert bootstrap.guarded(typed.split()) == 2
    assert "usage: python3 bootstrap.py" in capsys.readouterr().err


def test_parse_says_what_it_does_not_know(bootstrap):
    with told("there is no option --dev usage: …"):
        bootstrap.parse(["--dev"])
    with told("there is no command 'nodes' usage: …"):
        bootstrap.parse(["nodes"])
    with told("setup takes --dev and nothing else usage: …"):
        bootstrap.parse(["setup", "now"])


def test_help_does_nothing_else(bootstrap, capsys, tmp_path):
    assert bootstrap.guarded(["--help"]) == 0
    assert capsys.readouterr().out == bootstrap.USAGE
    assert list(tmp_path.iterdir()) == []
    assert bootstrap.USAGE.isascii()


# --- a Python to live in ------------------------------------------------------------------------


def facts(version, **more):
    return {"version": version, "implementation": "cpython", "gil": True, "path": "/p", **more}


def test_usable(bootstrap):
    assert bootstrap.usable(facts("3.11.0"))
    assert bootstrap.usable(facts("3.14.0"))
    assert not bootstrap.usable(facts("3.10.14"))
    assert not bootstrap.usable(facts("3.13.0", gil=False))
    assert not bootstrap.usable(facts("3.11.9", implementation="pypy"))
    assert not bootstrap.usable(None)


def test_probe_tells_of_this_python(bootstrap):
    told = bootstrap.probe(sys.executable)
    assert told["version"] == "{}.{}.{}".format(*sys.version_info[:3])
    assert not told["path"].startswith(sys.prefix) or sys.prefix == sys.base_prefix


def python(path, version="3.12.1", **more):
    """A program that answers the probe."""
    path.parent.mkdir(parents=True, exist_ok=True)
    answer = json.dumps(facts(version, **{"path": str(path), **more}))
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return str(path)


def broken(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n")
    path.chmod(0o755)
    return str(path)


@posix
def test_candidates_come_in_the_order_of_preference(bootstrap, tmp_path):
    wanted = [
        python(tmp_path / "bin" / "python3.12"),
        python(tmp_path / "pyenv" / "versions" / "3.12.10" / "bin" / "python3.12"),
        python(tmp_path / "pyenv" / "versions" / "3.12.9" / "bin" / "python3.12"),
        python(tmp_path / "uv" / "cpython-3.12.4-linux" / "bin" / "python3.12"),
        python(tmp_path / "bin" / "python3.13"),
        python(tmp_path / "bin" / "python3.11"),
        python(tmp_path / "bin" / "python3.14"),
        python(tmp_path / "bin" / "python3"),
    ]
    python(tmp_path / "bin" / "python3.10")
    environ = {
        "PATH": str(tmp_path / "bin"),
        "PYENV_ROOT": str(tmp_path / "pyenv"),
        "UV_PYTHON_INSTALL_DIR": str(tmp_path / "uv"),
    }
    assert bootstrap.candidates(environ) == wanted


@posix
def test_a_broken_shim_is_passed_over(bootstrap, tmp_path, monkeypatch):
    broken(tmp_path / "shims" / "python3.12")
    python(tmp_path / "bin" / "python3.13", "3.13.0", gil=False)
    good = python(tmp_path / "pyenv" / "versions" / "3.11.7" / "bin" / "python3.11", "3.11.7")
    monkeypatch.setenv("PATH", f"{tmp_path}/shims{os.pathsep}{tmp_path}/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setattr(bootstrap.sys, "executable", broken(tmp_path / "running"))
    assert bootstrap.find_python()["path"] == good


@posix
def test_the_running_python_is_taken_if_it_will_do(bootstrap, tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap.sys, "executable", python(tmp_path / "running", "3.14.2"))
    assert bootstrap.find_python()["version"] == "3.14.2"


def test_without_a_python_it_says_how_to_get_one(bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap, "candidates", list)
    monkeypatch.setattr(bootstrap, "probe", lambda path: None)
    with told(
        "PonySwarm needs Python 3.11 or newer (3.12 is best; with ssl and sqlite3), and this "
        "machine has none that works (this is …). Get one, then run this again: …"
    ):
        bootstrap.find_python()


def test_nothing_of_another_python_gets_in(bootstrap, monkeypatch):
    for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "KEEP_THIS"):
        monkeypatch.setenv(name, "x")
    environ = bootstrap.clean_environment()
    assert environ["KEEP_THIS"] == "x"
    assert not {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"} & set(environ)


# --- the stamp --------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_each_part(bootstrap, monkeypatch):
    first = bootstrap.fingerprint(b"a", "3.12.1", "/here")
    assert first == bootstrap.fingerprint(b"a", "3.12.1", "/here")
    others = {
        bootstrap.fingerprint(b"b", "3.12.1", "/here"),
        bootstrap.fingerprint(b"a", "3.12.2", "/here"),
        bootstrap.fingerprint(b"a", "3.12.1", "/there"),
        bootstrap.fingerprint(b"a3", ".12.1", "/here"),
    }
    monkeypatch.setattr(bootstrap, "VERSION", "next")
    others.add(bootstrap.fingerprint(b"a", "3.12.1", "/here"))
    assert len(others) == 5
    assert first not in others


def test_a_set_up_for_developers_serves_everyone(bootstrap):
    plain, full = {"fingerprint": "f", "dev": False}, {"fingerprint": "f", "dev": True}
    assert bootstrap.satisfied(plain, "f", False)
    assert not bootstrap.satisfied(plain, "f", True)
    assert bootstrap.satisfied(full, "f", False)
    assert bootstrap.satisfied(full, "f", True)
    assert not bootstrap.satisfied(full, "g", False)
    assert not bootstrap.satisfied({}, "f", False)


@pytest.mark.parametrize("text", ["", "{", "[]", "\0", '"x"'])
def test_a_damaged_stamp_is_none(bootstrap, tmp_path, text):
    assert bootstrap.read_stamp() == {}
    (tmp_path / ".venv").mkdir()
    Path(bootstrap.STAMP).write_text(text)
    assert bootstrap.read_stamp() == {}


@pytest.fixture
def checkout(bootstrap, tmp_path, monkeypatch):
    """A checkout whose steps are noted down instead of done."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    steps = []
    state = {"python": None}

    def make_venv():
        steps.append("venv")
        (tmp_path / ".venv").mkdir(exist_ok=True)
        state["python"] = facts("3.12.1")

    monkeypatch.setattr(bootstrap, "make_venv", make_venv)
    monkeypatch.setattr(bootstrap, "probe", lambda path: state["python"])
    monkeypatch.setattr(bootstrap, "install", lambda dev: steps.append(f"install dev={dev}"))
    monkeypatch.setattr(bootstrap, "system_packages", lambda: steps.append("apt"))

    def run(dev=False):
        steps.clear()
        bootstrap.set_up(dev)
        return list(steps)

    run.state = state
    return run


def test_the_second_set_up_only_looks_for_system_packages(checkout):
    assert checkout() == ["apt", "venv", "install dev=False"]
    assert checkout() == ["apt"]
    assert checkout(dev=True) == ["apt", "install dev=True"]
    assert checkout(dev=True) == ["apt"]
    assert checkout() == ["apt"]


def test_a_change_installs_again_and_keeps_what_developers_need(checkout, tmp_path):
    checkout(dev=True)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert checkout() == ["apt", "install dev=True"]


def test_a_killed_install_is_finished_by_the_next_run(checkout, bootstrap, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "install", lambda dev: 1 / 0)
        with contextlib.suppress(ZeroDivisionError):
            checkout()
    assert checkout() == ["apt", "install dev=False"]
    assert checkout() == ["apt"]


def test_a_virtualenv_whose_python_is_gone_is_made_again(checkout):
    checkout()
    checkout.state["python"] = None
    assert checkout() == ["apt", "venv", "install dev=False"]
    checkout.state["python"] = facts("3.10.1")
    assert checkout() == ["apt", "venv", "install dev=False"]


def test_a_checkout_that_was_moved_gets_a_new_virtualenv(checkout, bootstrap):
    checkout()
    stamp = bootstrap.read_stamp()
    bootstrap.write_stamp({**stamp, "where": "/elsewhere", "fingerprint": "old"})
    assert checkout() == ["apt", "venv", "install dev=False"]


def test_a_folder_that_is_no_virtualenv_is_left_alone(bootstrap, tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "diary.txt").write_text("mine")
    with told("… exists and is not a virtualenv: move it away, then run this again"):
        bootstrap.make_venv()
    assert (tmp_path / ".venv" / "diary.txt").read_text() == "mine"


def test_outside_a_checkout_it_says_so(bootstrap, capsys):
    assert bootstrap.guarded(["setup"]) == 2
    assert "checkout" in capsys.readouterr().err
    with told(
        "there is no pyproject.toml beside …: this file works from a checkout of PonySwarm ('git "
        "clone' it)"
    ):
        bootstrap.set_up(False)


def test_a_virtualenv_whose_python_never_works(checkout, bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap, "probe", lambda path: None)
    with told("the new … does not work: remove it and run this again"):
        checkout()


def test_a_virtualenv_that_cannot_be_made(bootstrap, tmp_path):
    (tmp_path / "file").touch()
    bootstrap.VENV = str(tmp_path / "file" / ".venv")
    with told("…/file/.venv could not be made: … Run this again; if it fails again, please …"):
        bootstrap.make_venv()


def test_ctrl_c_while_setting_up(bootstrap, monkeypatch, capsys):
    def interrupt(dev):
        raise KeyboardInterrupt

    monkeypatch.setattr(bootstrap, "set_up", interrupt)
    assert bootstrap.guarded(["setup"]) == 130
    assert capsys.readouterr().err == "bootstrap: interrupted; the next run goes on from here\n"


# --- installing ---------------------------------------------------------------------------------


def answering(path, answers=()):
    """A program that ends with 0 only where an argument has an answer, and prints that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cases = "".join(f'*"{word}"*) echo "{answer}"; exit 0;; ' for word, answer in answers)
    path.write_text(f'#!/bin/sh\ncase "$*" in {cases}esac\necho broken; exit 1\n')
    path.chmod(0o755)


@posix
def test_a_pip_that_cannot_be_had(bootstrap, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    venv = tmp_path / ".venv" / "bin"
    answering(venv / "python", [("version_info", "3.12")])
    with told("pip could not be put into .venv: broken Run this again; if it fails again, …"):
        bootstrap.get_uv()
    answering(tmp_path / "bin" / "apt-get")
    with told(
        "this Python has no ensurepip. Get it, then run this again: …apt-get install -y "
        "python3.12-venv"
    ):
        bootstrap.get_uv()
    answering(venv / "python", [("--version", "pip 24")])
    with told("pip could not install uv: broken Run this again; if it fails again, please …"):
        bootstrap.get_uv()


@posix
def test_an_install_that_fails(bootstrap, tmp_path):
    venv = tmp_path / ".venv" / "bin"
    answering(venv / "python", [("tomllib", "[]")])
    answering(venv / "uv", [("--version", "uv 0.9")])
    with told("installing failed: broken Run this again; if it fails again, please …"):
        bootstrap.install(dev=False)


def test_a_pyproject_that_was_damaged(bootstrap, tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool\n")
    with told(
        "the checkout's pyproject.toml is damaged: … Mend it ('git diff' shows what was changed), "
        "then run this again"
    ):
        bootstrap.overrides(sys.executable)


def test_overrides_are_what_pyproject_says(bootstrap):
    bootstrap.HERE = str(ROOT)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]
    assert bootstrap.overrides(sys.executable) == wanted["override-dependencies"]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("error: Failed to fetch: dns error: failed to lookup address", "Check the network"),
        ("Could not connect to proxy", "Check the network"),
        ("operation timed out", "Check the network"),
        ("client error (Connect): invalid peer certificate: UnknownIssuer", "SSL_CERT_FILE"),
        ("error: Failed to build `thing`", "report the lines above"),
    ],
)
def test_a_failed_install_comes_with_a_remedy(bootstrap, output, words):
    assert words in bootstrap.remedy(output)


@pytest.mark.parametrize(
    ("program", "root", "line"),
    [
        ("apt-get", False, "sudo apt-get install -y bubblewrap git"),
        ("apt-get", True, "apt-get install -y bubblewrap git"),
        ("dnf", False, "sudo dnf install -y bubblewrap git"),
        ("pacman", False, "sudo pacman -S --needed bubblewrap git"),
        ("zypper", False, "sudo zypper install -y bubblewrap git"),
        ("apk", True, "apk add bubblewrap git"),
        ("brew", False, "brew install bubblewrap git"),
        ("none", False, "install with your system's package manager: bubblewrap git"),
    ],
)
@posix
def test_one_line_to_copy_for_each_system(bootstrap, monkeypatch, program, root, line):
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: name if name == program else None)
    monkeypatch.setattr(bootstrap.os, "geteuid", lambda: 0 if root else 1000)
    assert bootstrap.install_line(["bubblewrap", "git"]) == line


@posix
@pytest.mark.parametrize("works_after", [1, 2, 99])
def test_apt_is_asked_once_more_after_an_update(bootstrap, monkeypatch, works_after):
    asked = []

    def run(command, **_):
        asked.append(command[1])
        good = command[1] == "update" or asked.count("install") >= works_after
        return subprocess.CompletedProcess(command, 0 if good else 100)

    monkeypatch.setattr(bootstrap.subprocess, "run", run)
    assert bootstrap.apt_install(["bubblewrap"]) is (works_after < 99)
    assert asked == ["install", "update", "install"][: 1 if works_after == 1 else 3]


def test_the_servers_of_tests_are_installed_without_being_started(
    bootstrap, monkeypatch, tmp_path, capsys
):
    policy = tmp_path / "policy-rc.d"
    seen = []

    def install(packages):
        seen.append((packages, policy.read_text(), os.access(policy, os.X_OK)))
        return False

    monkeypatch.setattr(bootstrap, "POLICY", str(policy))
    monkeypatch.setattr(bootstrap, "TEST_SERVERS", (("/nowhere/*", "a"), ("/usr", "b")))
    monkeypatch.setattr(bootstrap, "TEST_COMMANDS", ())
    monkeypatch.setattr(bootstrap, "apt_install", install)
    monkeypatch.setattr(bootstrap.sys, "platform", "linux")
    monkeypatch.setattr(bootstrap, "is_apt_root", lambda: True)
    bootstrap.test_servers()
    assert seen == [(["a"], "#!/bin/sh\nexit 101\n", True)]
    assert not policy.exists()
    policy.write_text("the owner's")
    bootstrap.test_servers()
    assert policy.read_text() == "the owner's"
    monkeypatch.setattr(bootstrap, "is_apt_root", lambda: False)
    capsys.readouterr()
    bootstrap.test_servers()
    assert len(seen) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(" a")


def test_missing_packages_are_named_and_do_not_end_the_set_up(bootstrap, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "missing_commands", lambda: ["git"])
    monkeypatch.setattr(bootstrap, "is_apt_root", lambda: False)
    bootstrap.system_packages()
    told = capsys.readouterr().err
    assert "git is missing (reads the source of a job)" in told
    assert "to get it:  " in told


def test_two_workers_run_the_tests_unless_told_otherwise(bootstrap) -> None:
    assert bootstrap.workers([]) == ["-n", "2", "--dist", "loadfile"]
    assert bootstrap.workers(["tests/unit", "-x"]) == ["-n", "2", "--dist", "loadfile"]
    for chosen in (["-n0"], ["-n", "4"], ["--pdb"], ["-s"], ["-p", "no:xdist"]):
        assert bootstrap.workers(chosen) == []
