"""The sandbox: what a job may see, use and reach, as values that become a bubblewrap command.

Inside there are the system's read-only programs and libraries, one interpreter, an
environment, and sized scratch that vanishes; a network of its own with nothing but
loopback; no process, key, variable or file of the node. A job never runs as uid 0:
an ordinary user's sandbox is a user namespace in which nobody can make another; a
root node's job gets an unprivileged id of its own per slot, because such an id could
not traverse root's folders to set up its mounts. What no namespace bounds is refused
by `seccomp` and limited by `cgroup`. `probe` runs one and says what holds; without it
the node refuses to run. Called by `executor`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import trio

from ponyswarm.errors import InfraError
from ponyswarm.exec import cgroup, process, seccomp
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.process import Channel, Ended, Patience

if TYPE_CHECKING:
    import psutil

MIB = 1 << 20
FIRST_ID = 64_000
INSIDE_ID = 1_000
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# Of /etc only what programs need to work at all, and what says nothing of this machine.
ETC_FILES = (
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/protocols",
    "/etc/services",
)
_numbers = itertools.count()
# Joins the groups named before "--", then becomes bubblewrap.
JOIN = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 126; shift; done; shift; exec "$@"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may use of this machine."""

    memory_bytes: int = 2048 * MIB
    processes: int = 512
    scratch_bytes: int = 2048 * MIB
    output_bytes: int = 64 * MIB
    seconds: float = 3600.0
    silent_seconds: float = 600.0
    open_files: int = 4096
    cpu_weight: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Holds:
    """What the sandbox of this machine is, found by running one."""

    bubblewrap: str
    version: str
    root: bool
    memory: str
    processes: str
    groups: cgroup.Groups | None = None

    @property
    def name(self) -> str:
        """For the outcome's environment."""
        return f"bubblewrap {self.version}"

    @property
    def description(self) -> str:
        who = "as root, jobs get an id of their own" if self.root else "as an ordinary user"
        return f"{self.name} ({who}); memory by {self.memory}, processes by {self.processes}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Why there is no sandbox here, and one line to copy that may help."""

    why: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Confined:
    """How a sandboxed command ended, and which limits it ran into."""

    ended: Ended
    killed_for_memory: bool
    refused_processes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A sandbox to be: each method gives a new one with something added."""

    holds: Holds
    limits: Limits
    slot: int = 0
    name: str = "run"
    read_only: tuple[tuple[str, str], ...] = ()
    writable: tuple[tuple[str, str], ...] = ()
    scratch: tuple[tuple[str, int], ...] = ()
    folders: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    def with_read_only(self, host: Path | str, inside: str) -> Sandbox:
        return replace(self, read_only=(*self.read_only, (str(host), inside)))

    def with_writable(self, host: Path, inside: str) -> Sandbox:
        """For a server's socket alone: a job gets nothing of this machine to write."""
        return replace(self, writable=(*self.writable, (str(host), inside)))

    def with_scratch(self, inside: str, size: int) -> Sandbox:
        return replace(self, scratch=(*self.scratch, (inside, size)))

    def with_folder(self, inside: str) -> Sandbox:
        return replace(self, folders=(*self.folders, inside))

    def with_environment(self, environment: Mapping[str, str]) -> Sandbox:
        return replace(self, environment={**self.environment, **environment})

    def with_interpreter(self, interpreter: Installed) -> Sandbox:
        """Bind an interpreter's prefix at its own path, unless it is the system's."""
        real = str(Path(interpreter.path).parent.parent)
        box = self
        for prefix in {interpreter.prefix: None, real: None}:
            if prefix != "/usr" and not prefix.startswith("/usr/"):
                box = box.with_read_only(prefix, prefix)
        return box

    @property
    def identity(self) -> int:
        return FIRST_ID + self.slot if self.holds.root else INSIDE_ID

    async def run(
        self,
        argv: Sequence[str],
        *,
        patience: Patience,
        channels: Sequence[Channel] = (),
        pulse: Callable[[], float] | None = None,
        stop: Callable[[int], bool] | None = None,
        keep_bytes: int = MIB,
    ) -> Confined:
        """Run a command in it; everything that it started is dead when this returns."""
        group = self._group()
        hungry = False

        def stopped(pid: int) -> bool:
            nonlocal hungry
            if group is None:
                # A limit per process alone would let many processes take it all.
                hungry = _memory(pid) > self.limits.memory_bytes
            return hungry or (stop is not None and stop(pid))

        try:
            command, descriptors = self._command(argv, channels)
            if group is not None:
                command = ["/bin/sh", "-c", JOIN, "sh", *group.joins, "--", *command]
            ended = await process.run(
                command,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                patience=patience,
                pass_fds=descriptors,
                channels=channels,
                pulse=pulse,
                stop=stopped,
                keep_bytes=keep_bytes,
            )
            return Confined(
                ended=ended,
                killed_for_memory=hungry or (group is not None and group.killed_for_memory() > 0),
                refused_processes=group is not None and group.refused_processes() > 0,
            )
        finally:
            if group is not None:
                with trio.CancelScope(shield=True):
                    await group.remove()

    async def export(
        self,
        argv: Sequence[str],
        archive: Path,
        channel: Path,
        seconds: float,
        most_bytes: int,
    ) -> Confined:
        """Run a command in it and keep in ``archive`` what it writes to its channel.

        Raises the `OSError` with which ``archive`` cannot be written.
        """
        room = most_bytes
        faults: list[OSError] = []
        with archive.open("wb") as file:

            def keep(data: bytes) -> None:
                nonlocal room
                room -= len(data)
                if room >= 0 and not faults:
                    try:
                        file.write(data)
                    except OSError as fault:
                        faults.append(fault)

            pipe = Channel(channel, keep)
            try:
                confined = await self.run(
                    argv,
                    patience=Patience(seconds=seconds, output_bytes=self.limits.output_bytes),
                    channels=[pipe],
                    stop=lambda _: room < 0 or bool(faults),
                )
            finally:
                pipe.close()
        if faults:
            raise faults[0]
        return confined

    def _group(self) -> cgroup.Group | None:
        if self.holds.groups is None:
            return None
        try:
            return cgroup.make(
                self.holds.groups,
                f"{self.name}-{os.getpid()}-{next(_numbers)}",
                # Scratch is memory too; a full one shall give "disk full", not a kill.
                memory_bytes=self.limits.memory_bytes + self.limits.scratch_bytes,
                processes=self.limits.processes,
                cpu_weight=self.limits.cpu_weight,
            )
        except OSError as fault:
            raise InfraError(
                f"no control group for the job ({fault.strerror}): 'ponyswarm doctor' says what "
                "limits there are"
            ) from fault

    def _command(
        self, argv: Sequence[str], channels: Sequence[Channel]
    ) -> tuple[list[str], list[int]]:
        descriptors: list[int] = []

        def data(content: bytes) -> str:
            descriptor = os.memfd_create("ponyswarm")
            descriptors.append(descriptor)
            os.write(descriptor, content)
            os.lseek(descriptor, 0, os.SEEK_SET)
            return str(descriptor)

        options = self._namespaces()
        for folder in SYSTEM_FOLDERS:
            if os.path.islink(folder):
                options += ["--symlink", os.readlink(folder), folder]
            elif os.path.isdir(folder):
                options += ["--ro-bind", folder, folder]
        options += ["--perms", "0755", "--dir", "/etc"]
        for path in ETC_FILES:
            options += [*_parents(path), "--ro-bind-try", path, path]
        for path, text in self._etc().items():
            options += ["--perms", "0444", "--file", data(text.encode()), path]
        options += ["--symlink", "/usr/share/zoneinfo/UTC", "/etc/localtime"]
        options += ["--proc", "/proc", "--dev", "/dev"]
        small = min(256 * MIB, max(MIB, self.limits.scratch_bytes // 4))
        scratch = (("/dev/shm", small), ("/tmp", self.limits.scratch_bytes // 2))  # noqa: S108
        for folder, size in (*scratch, *self.scratch):
            options += [
                *_parents(folder),
                "--perms",
                "1777",
                "--size",
                str(size),
                "--tmpfs",
                folder,
            ]
        options += [*_parents("/var/tmp"), "--symlink", "/tmp", "/var/tmp"]  # noqa: S108
        for folder in self.folders:
            options += [*_parents(folder), "--perms", "1777", "--dir", folder]
        for host, inside in self.read_only:
            options += [*_parents(inside), "--ro-bind", host, inside]
        for host, inside in self.writable:
            options += [*_parents(inside), "--bind", host, inside]
        for channel in channels:
            inside = f"/channels/{channel.path.name}"
            options += [*_parents(inside), "--ro-bind", str(channel.path), inside]
        # Both are file systems in memory without a limit, an ordinary user's own.
        options += ["--remount-ro", "/dev", "--remount-ro", "/"]
        options += ["--seccomp", data(seccomp.program()), "--chdir", "/"]
        for name, value in self.environment.items():
            options += ["--setenv", name, value]
        arguments = data(b"".join(os.fsencode(option) + b"\0" for option in options))
        command = [self.holds.bubblewrap, "--args", arguments, "--", *self._drop(), *argv]
        return command, descriptors

    def _namespaces(self) -> list[str]:
        options = [
            "--unshare-pid",
            "--unshare-net",
            "--unshare-ipc",
            "--unshare-uts",
            "--unshare-cgroup-try",
            "--hostname",
            "ponyswarm",
            "--die-with-parent",
            "--new-session",
            "--clearenv",
            "--cap-drop",
            "ALL",
        ]
        if self.holds.root:
            return [
                *options,
                "--cap-add",
                "CAP_SETUID",
                "--cap-add",
                "CAP_SETGID",
                "--cap-add",
                "CAP_SETPCAP",
            ]
        identity = str(self.identity)
        return [
            *("--unshare-user", "--disable-userns", "--uid", identity, "--gid", identity),
            *options,
        ]

    def _drop(self) -> list[str]:
        """The steps between bubblewrap and the command: the last privileges go, limits come."""
        identity = self.identity
        steps: list[str] = []
        if self.holds.root:
            steps += [
                *("/usr/bin/setpriv", f"--reuid={identity}", f"--regid={identity}"),
                *("--clear-groups", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"),
                "--bounding-set=-all",
            ]
        steps += [
            *("/usr/bin/prlimit", "--core=0", f"--nofile={self.limits.open_files}"),
            *(f"--nproc={self._user_processes}", f"--fsize={self.limits.scratch_bytes}"),
        ]
        if self.holds.groups is None:
            # Address space is not memory: programs reserve more than they use.
            steps.append(f"--as={2 * self.limits.memory_bytes + 1024 * MIB}")
        return [*steps, "--"]

    @property
    def _user_processes(self) -> int:
        """The kernel counts this limit for a user over all of the machine, so where a control
        group counts the run's own, other runs of the same id must not use it up.
        """
        return self.limits.processes * (1 if self.holds.groups is None else 16)

    def _etc(self) -> dict[str, str]:
        identity = self.identity
        return {
            "/etc/passwd": f"pony:x:{identity}:{identity}:pony:/project/home:/bin/sh\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
            "/etc/group": f"pony:x:{identity}:\nnogroup:x:65534:\n",
            "/etc/hosts": "127.0.0.1 localhost ponyswarm\n::1 localhost\n",
            "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n"
            "services: files\nprotocols: files\n",
            "/etc/hostname": "ponyswarm\n",
        }


def _memory(pid: int) -> int:
    """The private memory of a process and all below it, in bytes."""
    import psutil

    try:
        top = psutil.Process(pid)
        tree = [top, *top.children(recursive=True)]
    except psutil.Error:
        return 0
    return sum(_private(one) for one in tree)


def _private(one: psutil.Process) -> int:
    """Memory of one process; what forks share counts once, where the kernel tells."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1]) * 1024
    import psutil

    with suppress(psutil.Error):
        usage = one.memory_info()
        return max(0, int(usage.rss - usage.shared))
    return 0


def _parents(path: str) -> list[str]:
    """Make the folders above a path, open to all: else bubblewrap copies the host's modes."""
    options: list[str] = []
    for folder in reversed(PurePosixPath(path).parents):
        if str(folder) not in ("/", "/dev", "/proc", "/usr") and folder.parts[1] != "usr":
            options += ["--perms", "0755", "--dir", str(folder)]
    return options


async def probe(limits: Limits | None = None) -> Holds | Missing:
    """Run a sandbox and say what holds here, or why none does and what may help."""
    if sys.platform != "linux":
        return Missing(
            why="jobs run in a sandbox that only Linux has",
            remedy="run the node in a Linux virtual machine (on Windows: wsl --install)",
        )
    bubblewrap = shutil.which("bwrap", path="/usr/bin:/bin:/usr/local/bin")
    if bubblewrap is None:
        return Missing(why="bubblewrap is missing", remedy="sudo apt-get install bubblewrap")
    for tool in ("setpriv", "prlimit"):
        if not os.path.exists(f"/usr/bin/{tool}"):
            return Missing(why=f"{tool} is missing", remedy="sudo apt-get install util-linux")
    try:
        seccomp.program()
    except InfraError as fault:
        return Missing(why=str(fault), remedy=seccomp.REMEDY)
    root = os.geteuid() == 0
    groups = cgroup.find()
    holds = Holds(
        bubblewrap=bubblewrap,
        version=await _version(bubblewrap),
        root=root,
        groups=groups,
        memory=f"cgroup v{groups.version}" if groups else "a limit per process",
        processes=f"cgroup v{groups.version}" if groups else "a limit per user",
    )
    sandbox = Sandbox(holds=holds, limits=limits or Limits(), name="probe")
    try:
        confined = await sandbox.run(
            ["/bin/sh", "-c", PROBE], patience=Patience(seconds=20.0, output_bytes=MIB)
        )
    except InfraError as fault:
        return Missing(why=str(fault), remedy="ponyswarm doctor")
    output = confined.ended.output.decode("utf-8", "replace").strip()
    if confined.ended.good and output.endswith("confined"):
        return holds
    return _explained(output)


# Every line must hold, as the job's user sees it.
PROBE = """\
set -eu
test "$(id -u)" != 0
test ! -w / && test ! -w /usr && test ! -w /etc && test ! -w /dev
grep -q '^CapEff:.0000000000000000$' /proc/self/status
grep -q '^CapBnd:.0000000000000000$' /proc/self/status
grep -q '^NoNewPrivs:.1$' /proc/self/status
grep -q '^Seccomp:.2$' /proc/self/status
test "$(grep -c : /proc/net/dev)" = 1
! (echo 1 > /proc/sys/kernel/sysrq) 2>/dev/null
! (echo 0 > /proc/sys/kernel/core_pattern) 2>/dev/null
! unshare -U true 2>/dev/null
echo confined
"""


async def _version(bubblewrap: str) -> str:
    ended = await process.run(
        [bubblewrap, "--version"], env={}, patience=Patience(seconds=10.0, output_bytes=4096)
    )
    words = ended.output.decode("utf-8", "replace").split()
    return words[-1] if ended.good and words else "unknown"


def _explained(output: str) -> Missing:
    """A remedy for what is usually wrong."""
    why = f"bubblewrap does not confine here: {output[-300:] or 'no output'}"
    with suppress(OSError):
        if Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").read_text()[0] == "1":
            return Missing(
                why=f"{why} (AppArmor keeps ordinary users from making namespaces)",
                remedy="sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
            )
    with suppress(OSError):
        if Path("/proc/sys/kernel/unprivileged_userns_clone").read_text()[0] == "0":
            return Missing(
                why=f"{why} (this kernel keeps ordinary users from making namespaces)",
                remedy="sudo sysctl kernel.unprivileged_userns_clone=1",
            )
    if "disable-userns" in output or "Unknown option" in output:
        return Missing(
            why=f"{why} (bubblewrap 0.8 or newer is needed)",
            remedy="sudo apt-get install bubblewrap",
        )
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        return Missing(
            why=f"{why} (a container keeps its processes from making namespaces)",
            remedy="docker run --privileged …, or run the node outside a container",
        )
    return Missing(why=why, remedy="bwrap --unshare-all --ro-bind / / true")
