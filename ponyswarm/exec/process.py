"""The one place that starts processes: bounded in time, silence and output, killed whole.

A process is spawned on the calling (main) thread, because the kernel ties
``--die-with-parent`` to the *thread* that spawned, and trio's own helpers use one that
expires after ten seconds. Waiting goes through trio by a pidfd. The environment is
always given, every other descriptor closed, standard input empty unless bytes are given.
Whatever happens, cancellation included, the tree is dead when `run` returns; when we are
killed, the kernel ends the process itself. Called by `sandbox` (for everything of a job),
`environment` and `resolve` (for uv), and for the owner's notify command.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import trio

from ponyswarm.errors import InfraError

TICK_SECONDS = 0.25
READ_BYTES = 1 << 16
# A test runner writes a few bytes many times a second: reading them together, and from a
# pipe with room for them, spares it and us most of the switches between processes.
GATHER_SECONDS = 0.02
PIPE_BYTES = 1 << 20
# Lets the kernel end a process when its node is killed; busybox's knows no such option.
SETPRIV = Path("/usr/bin/setpriv")
MORTAL = (
    (str(SETPRIV), "--pdeathsig", "KILL", "--")
    if SETPRIV.exists() and SETPRIV.resolve().name != "busybox"
    else ()
)
# How long to read on from a pipe that a stray child may hold open.
DRAIN_SECONDS = 1.0


class How(StrEnum):
    """How a process came to its end."""

    EXITED = "exited"
    TIMEOUT = "timeout"
    NO_OUTPUT = "no-output"
    OUTPUT_LIMIT = "output-limit"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long and how much: wall clock, silence (None: any), and bytes of output."""

    seconds: float
    silent_seconds: float | None = None
    output_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The end of a process. ``code`` is the exit status, or minus the signal's number."""

    how: How
    code: int
    output: bytes
    seconds: float

    @property
    def good(self) -> bool:
        return self.how is How.EXITED and self.code == 0

    @property
    def signal(self) -> int:
        """The signal it died of, also when a shell or bubblewrap tells of it; else 0."""
        if self.code < 0:
            return -self.code
        return self.code - 128 if 128 < self.code < 160 else 0


class HeadTail:
    """The first and the last bytes of a stream, so that a flood keeps what matters."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._half:
            del self._tail[: -self._half]

    @property
    def value(self) -> bytes:
        tail = bytes(self._tail[-self._half :])
        left_out = self.total - len(self._head) - len(tail)
        gap = f"\n[… {left_out} bytes left out …]\n".encode() if left_out > 0 else b""
        return bytes(self._head) + gap + tail


class Channel:
    """A FIFO that processes in a sandbox write and only we read.

    Nobody may open it for reading (mode 0222), so what was written cannot be taken
    back. Our end is opened for both directions, so that it never sees an end of file.
    """

    def __init__(self, path: Path, sink: Callable[[bytes], None]) -> None:
        self.path = path
        self._sink = sink
        os.mkfifo(path, 0o600)
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        path.chmod(0o222)
        _widen(self._descriptor)

    async def pump(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._descriptor)
            if self.drain(PIPE_BYTES) < READ_BYTES:
                await trio.sleep(GATHER_SECONDS)
            else:
                await trio.lowlevel.checkpoint()

    def drain(self, limit: int = 1 << 24) -> int:
        """Take what is there, without waiting; how many bytes it was."""
        taken = 0
        with suppress(BlockingIOError):
            while taken < limit:
                data = os.read(self._descriptor, READ_BYTES)
                taken += len(data)
                self._sink(data)
        return taken

    def close(self) -> None:
        os.close(self._descriptor)
        self.path.unlink(missing_ok=True)


class _Run:
    """One process and what is known of it while it lives."""

    def __init__(self, patience: Patience, keep_bytes: int) -> None:
        self.patience = patience
        self.output = HeadTail(keep_bytes)
        self.began = trio.current_time()
        self.heard = self.began
        self.how = How.EXITED

    def verdict(
        self, pid: int, pulse: Callable[[], float] | None, stop: Callable[[int], bool] | None
    ) -> bool:
        """Whether it must end now; `how` then says why."""
        now = trio.current_time()
        heard = max(self.heard, pulse() if pulse is not None else self.heard)
        silent = self.patience.silent_seconds
        if stop is not None and stop(pid):
            self.how = How.STOPPED
        elif self.output.total > self.patience.output_bytes:
            self.how = How.OUTPUT_LIMIT
        elif now - self.began > self.patience.seconds:
            self.how = How.TIMEOUT
        elif silent is not None and now - heard > silent:
            self.how = How.NO_OUTPUT
        return self.how is not How.EXITED


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    patience: Patience,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    channels: Sequence[Channel] = (),
    pulse: Callable[[], float] | None = None,
    stop: Callable[[int], bool] | None = None,
    keep_bytes: int = 1 << 20,
    stdin: bytes = b"",
) -> Ended:
    """Run a process to its end, or to the end of our patience.

    ``pulse`` gives the trio time of the last sign of life other than output; ``stop``,
    asked now and then with the process's id, tells whether to end it for a reason of
    the caller's own. ``pass_fds`` are closed here once the child has them.
    """
    if shutil.which(argv[0], path=env.get("PATH")) is None:
        for descriptor in pass_fds:
            os.close(descriptor)
        raise InfraError(f"{argv[0]} does not start: there is no such program; install it")
    reader, writer = os.pipe()
    _widen(reader)
    given = _unnamed(stdin)
    try:
        process = subprocess.Popen(
            [*MORTAL, *argv],
            stdin=given,
            stdout=writer,
            stderr=writer,
            env=dict(env),
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
            umask=0o022,
        )
    except OSError as fault:
        os.close(reader)
        raise InfraError(
            f"{argv[0]} does not start ({fault.strerror}): see that it and its folder are there"
        ) from fault
    finally:
        os.close(writer)
        os.close(given)
        for descriptor in pass_fds:
            os.close(descriptor)
    run_ = _Run(patience, keep_bytes)
    try:
        async with trio.lowlevel.FdStream(reader) as stream, trio.open_nursery() as nursery:
            dead = trio.Event()
            ended = trio.Event()

            async def pump() -> None:
                while data := await stream.receive_some(PIPE_BYTES):
                    run_.output.feed(data)
                    run_.heard = trio.current_time()
                    if run_.output.total > patience.output_bytes:
                        run_.how = How.OUTPUT_LIMIT
                        _kill(process)
                        break
                    if len(data) < READ_BYTES:
                        with trio.move_on_after(GATHER_SECONDS):
                            await dead.wait()
                ended.set()

            async def watch() -> None:
                while not run_.verdict(process.pid, pulse, stop):
                    await trio.sleep(TICK_SECONDS)
                _kill(process)

            nursery.start_soon(pump)
            nursery.start_soon(watch)
            for channel in channels:
                nursery.start_soon(channel.pump)
            await _wait(process)
            dead.set()
            with trio.move_on_after(DRAIN_SECONDS):
                await ended.wait()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            _kill(process)
            await _wait(process)
        for channel in channels:
            channel.drain()
    return Ended(
        how=run_.how,
        code=process.returncode,
        output=run_.output.value,
        seconds=trio.current_time() - run_.began,
    )


def alive(pid: int) -> bool:
    """Whether there is a process with this id, whoever's it is."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _widen(pipe: int) -> None:
    # The kernel may refuse: what one user's pipes may hold is limited.
    with suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _unnamed(data: bytes) -> int:
    """A descriptor to read these bytes from: a file without a name, so that nobody blocks on it."""
    if not data:
        return os.open(os.devnull, os.O_RDONLY)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return os.dup(file.fileno())


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()


async def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait without a thread where the kernel has pidfds, else by looking now and then."""
    if process.poll() is not None:
        return
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError) as fault:
        if isinstance(fault, OSError) and fault.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        while process.poll() is None:
            await trio.sleep(0.02)
        return
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    process.wait()
