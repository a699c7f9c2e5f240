"""What the tests of running jobs share: tiny projects, an executor, and a way into trio."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio

from ponyswarm.errors import InfraError
from ponyswarm.exec import index, interpreters, sandbox
from ponyswarm.exec.executor import Executor
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.outcome import Outcome, Progress
from ponyswarm.exec.sandbox import MIB, Holds, Limits
from ponyswarm.messages import Cell, FileTemplate, Install, Lock, Spec

REPOSITORY = Path(__file__).parents[2]
ORDINARY_ID = 54_321
NOW = 1_790_000_000_000
SMALL = Limits(
    memory_bytes=256 * MIB,
    processes=64,
    scratch_bytes=64 * MIB,
    output_bytes=4 * MIB,
    seconds=30.0,
    silent_seconds=20.0,
)


def in_trio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test; nothing of it may take longer than a minute and a half."""

    @functools.wraps(test)
    def run(**arguments: object) -> None:
        async def bounded() -> None:
            with trio.fail_after(90):
                await test(**arguments)

        holds()
        trio.run(bounded)

    return run


@functools.lru_cache(maxsize=1)
def holds() -> Holds:
    found = trio.run(sandbox.probe)
    if not isinstance(found, Holds):
        pytest.skip(f"no sandbox here: {found.why}")
    return found


@functools.lru_cache(maxsize=1)
def this_python() -> Installed:
    return interpreters.probe(Path(getattr(sys, "_base_executable", sys.executable)))


def needs_index() -> None:
    """For a test that gets packages: skip it where no index answers."""
    try:
        index._get(index.url() + "/six/", index.MAX_PAGE)
    except InfraError as fault:
        pytest.skip(f"no package index here: {fault}")


@contextmanager
def served(pages: Mapping[str, tuple[str, bytes]]) -> Iterator[str]:
    """The address of a server of these pages: path → content type and body; 404 for others."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content_type, body = pages.get(self.path, ("", b""))
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def archive(folder: Path, files: dict[str, str]) -> Path:
    """A source archive of these files."""
    path = folder / "source.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"project-1.0/{name}")
            member.size = len(text.encode())
            member.mode = 0o644
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def needs_nothing(interpreter: Installed) -> Lock:
    """The lock of a job that installs nothing."""
    return Lock(
        implementation=interpreter.implementation,
        python=".".join(interpreter.version.split(".")[:2]),
        system="linux",
        machine="any",
        requirements="",
        build="",
    )


def executor(folder: Path, limits: Limits = SMALL) -> Executor:
    return Executor(
        cache=folder / "cache", scratch=folder / "scratch", limits=limits, sandbox=holds()
    )


async def run(
    folder: Path,
    body: str,
    *,
    limits: Limits = SMALL,
    runner: str = "unittest",
    command: tuple[str, ...] = ("python", "-m", "unittest", "-v"),
    env: dict[str, str] | None = None,
    files: tuple[FileTemplate, ...] = (),
    timeout: int = 60,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Outcome:
    """Run one test module that needs nothing but the standard library."""
    folder.mkdir(exist_ok=True)
    source = archive(folder, {"test_it.py": body})
    interpreter = this_python()
    return await executor(folder, limits).run(
        source=source,
        source_hash=hashlib.sha256(source.read_bytes()).digest(),
        spec=Spec(
            python=("3",),
            runner=runner,  # type: ignore[arg-type]
            command=command,
            install=Install(project=False),
            env=env or {},
            files=files,
            timeout=timeout,
        ),
        cell=Cell(python="3"),
        interpreter=interpreter,
        lock=needs_nothing(interpreter),
        resolve_before=NOW,
        progress=progress,
    )


def module(body: str, before: str = "pass") -> str:
    """A test module: one test that passes, then one with this body."""
    indented = "\n".join(f"        {line}" for line in body.strip().splitlines())
    return (
        "import os, sys, time, socket, signal, subprocess, unittest\n"
        "class Jobs(unittest.TestCase):\n"
        f"    def test_a_first(self):\n        {before}\n"
        f"    def test_b_second(self):\n{indented}\n"
    )


FIRST = "test_it.Jobs.test_a_first"
SECOND = "test_it.Jobs.test_b_second"


def as_ordinary_user(file: Path) -> None:
    """Root runs a test file again as a user without any right, by a Python that one can read."""
    python = shutil.which("python3", path="/usr/bin")
    version = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]!r})"
    if python is None or subprocess.call([python, "-c", version]) != 0:
        pytest.skip("the system has no Python of this version that other users can run")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    with_space = Path("/tmp") / f"ponyswarm-ordinary-{os.getpid()}"
    with_space.mkdir()
    os.chown(with_space, ORDINARY_ID, ORDINARY_ID)
    try:
        done = subprocess.run(
            [
                *(python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--rootdir"),
                *(str(REPOSITORY), "--basetemp", str(with_space / "tests"), str(file)),
            ],
            cwd=REPOSITORY,
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(with_space),
                "LANG": "C.UTF-8",
                "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{packages}",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            user=ORDINARY_ID,
            group=ORDINARY_ID,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
            timeout=390,
        )
    finally:
        shutil.rmtree(with_space, ignore_errors=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
