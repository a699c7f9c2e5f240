"""Runs one cell: from a verified source archive to one status per test, in the sandbox.

The steps: unpack, environment (the only network), build inside, tests inside, judge.
What a job did is always an `Outcome`, typed and within its limits; only cancellation
and faults of this program leave `Executor.run`. Everything of a run is torn down when
it returns, and `sweep` removes at start what a killed node left. Called by the node
and by ``ponyswarm run``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import trio
from msgspec import structs

from ponyswarm import matrix
from ponyswarm.errors import InfraError, LocalError, PeerError, PonySwarmError
from ponyswarm.exec import cgroup, eviction, process, provisioning, source
from ponyswarm.exec.bytecode import TestBytecode
from ponyswarm.exec.environment import REPORT_FOLDER, Environments, Hold, installed
from ponyswarm.exec.eviction import DiskFull
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.judging import judge
from ponyswarm.exec.outcome import Broken, Outcome, Progress, TestOutcome
from ponyswarm.exec.process import Channel, HeadTail, Patience
from ponyswarm.exec.provisioning import Given, Services
from ponyswarm.exec.report import Report
from ponyswarm.exec.resolve import resolve
from ponyswarm.exec.runners import RUNNERS, Runner
from ponyswarm.exec.sandbox import Confined, Holds, Limits, Sandbox
from ponyswarm.exec.together import together
from ponyswarm.messages import (
    Cell,
    Environment,
    FileTemplate,
    Lock,
    Reason,
    Spec,
)

log = logging.getLogger("ponyswarm")

LOG_BYTES = 1 << 20
TIDY_SECONDS = 300.0
REPORT_CHANNEL = "/channels/report"
SITE = "/project/site"

# What is the same on every volunteer's machine.
FIXED = {
    "HOME": "/project/home",
    "USER": "pony",
    "LOGNAME": "pony",
    "TMPDIR": "/tmp",  # noqa: S108
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "PONYSWARM": "1",
}

ENTRY = """\
echo '{"e":"entered"}' > /channels/report
if [ -n "${PONYSWARM_FORWARD:-}" ]; then
    /env/bin/python -E -S /project/report/_ponyswarm_forward.py $PONYSWARM_FORWARD || exit 125
    unset PONYSWARM_FORWARD
fi
cp -R --preserve=mode,timestamps,links /source /project/src &&
cp -R /bytecode/. /project/src && cp -R /overlay/. /project/src &&
cd /project/src && { "$@"; code=$?; } || code=${code:-125}
stat -f -c '{"e":"space","free":%a,"size":%b}' /project /tmp /dev/shm > /channels/report
exit "$code"
"""


@dataclass(slots=True)
class _Run:
    """What is known of a run so far: enough for an outcome whenever it breaks."""

    began: float
    progress: Callable[[Progress], None]
    log: HeadTail = field(default_factory=lambda: HeadTail(LOG_BYTES))
    environment: Environment | None = None
    report: Report | None = None

    def step(self, name: str) -> None:
        self.progress(Progress(step=name))
        self.log.feed(f"--- {name}\n".encode())

    def outcome(
        self, reason: Reason | None, detail: str, tests: tuple[TestOutcome, ...]
    ) -> Outcome:
        culprit = self.report.culprit if reason is not None and self.report else ""
        return Outcome(
            state="completed" if reason is None else "broken",
            reason=reason,
            detail=detail[:500],
            tests=tests,
            environment=self.environment,
            log=self.log.value[: LOG_BYTES + 100],
            seconds=trio.current_time() - self.began,
            culprit=culprit,
        )


class Executor:
    """Runs cells on this machine; one object a node, any number of runs at once.

    ``cache`` keeps environments, below ``cache_bytes``, and may be deleted at any time when
    idle; ``scratch`` holds what lives as long as a run. Two runs at once need different slots.
    """

    def __init__(
        self,
        *,
        cache: Path,
        scratch: Path,
        limits: Limits,
        sandbox: Holds,
        services: Services | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self._cache = cache
        self._scratch = scratch
        self._limits = limits
        self._holds = sandbox
        self._services = services
        self._cache_bytes = cache_bytes
        self._counter = 0
        self._mark = hashlib.sha256(os.fsencode(scratch.absolute())).hexdigest()[:8]
        self._unpacking: dict[str, trio.Lock] = {}
        self._tests_bytecode = TestBytecode(cache / "bytecode")
        self.environments = Environments(cache)
        for folder in (cache, scratch):
            folder.mkdir(parents=True, exist_ok=True)

    def sweep(self) -> None:
        """Remove leftovers of a killed node: its scratch, control groups, half-made caches."""
        for path in self._scratch.iterdir():
            source.remove(path)
        for path in (self._cache / "sources").glob("*.partial-*"):
            pid = path.name.rpartition("-")[2]
            if pid == str(os.getpid()) or not process.alive(int(pid) if pid.isdecimal() else 0):
                source.remove(path)
        self.environments.sweep()
        eviction.sweep(self._cache)
        if self._holds.groups is not None:
            cgroup.sweep(self._holds.groups, self._mark)

    async def run(
        self,
        *,
        source: Path,
        source_hash: bytes,
        spec: Spec,
        cell: Cell,
        interpreter: Installed,
        lock: Lock | None,
        resolve_before: int,
        slot: int = 0,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> Outcome:
        """Run a cell; whatever the job does comes back as an `Outcome`.

        Raises `DiskFull` where this machine's disk is, even without all that can be evicted.
        """
        run = _Run(began=trio.current_time(), progress=progress)
        cell_run = partial(
            self._run, run, source, source_hash, spec, cell, interpreter, lock, resolve_before, slot
        )
        try:
            outcome = await self._with_room(cell_run)
        except Broken as broken:
            run.log.feed(broken.log)
            tests = run.report.tests if run.report is not None else ()
            outcome = run.outcome(broken.reason, broken.detail, tests)
        except DiskFull:
            raise
        except InfraError as fault:
            outcome = run.outcome(Reason.SANDBOX, str(fault), ())
        await self._tidy()
        return outcome

    async def _with_room(self, cell_run: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """Run, and once more if the disk was full and something could be evicted."""
        try:
            try:
                return await cell_run()
            except OSError as fault:
                await self._make_room(fault)
                return await cell_run()
        except OSError as fault:
            if fault.errno not in eviction.FULL:
                raise
            raise DiskFull(self._cache) from fault

    async def _make_room(self, fault: OSError) -> None:
        """On a full disk, evict all that no run uses; any other fault is raised again."""
        if fault.errno not in eviction.FULL:
            raise fault
        log.warning("the disk is full; removing what no run uses from %s", self._cache)
        await trio.to_thread.run_sync(eviction.evict, self._cache, 0, time.time())

    async def _tidy(self) -> None:
        """Keep the cache within its limit; looked at now and then, whichever process runs."""
        if self._cache_bytes is None or not _is_time(self._cache / "tidied"):
            return
        try:
            wheels = await trio.to_thread.run_sync(eviction.size_of, self.environments.uv_cache)
            if wheels > self._cache_bytes // 2:
                # uv waits for its own runs under way, ours among them.
                await self.environments.uv_run(["cache", "clean"], TIDY_SECONDS)
            kept = await trio.to_thread.run_sync(eviction.kept, self._cache)
            room = max(0, self._cache_bytes - kept)
            done = await trio.to_thread.run_sync(eviction.evict, self._cache, room, time.time())
        except (OSError, PonySwarmError) as fault:
            # No reason to lose the outcome of the run that was just made.
            log.warning("the cache could not be tidied: %s", fault)
            return
        if done.items:
            log.info(
                "removed %d unused items, %d MiB, from the cache", done.items, done.freed >> 20
            )

    async def lock(
        self, *, tree: Path, spec: Spec, cell: Cell, interpreter: Installed, resolve_before: int
    ) -> Lock:
        """The lock of a cell for this machine, as `resolve`."""
        return await resolve(
            self.environments,
            tree=tree,
            spec=spec,
            cell=cell,
            interpreter=interpreter,
            resolve_before=resolve_before,
        )

    async def _run(
        self,
        run: _Run,
        archive: Path,
        source_hash: bytes,
        spec: Spec,
        cell: Cell,
        interpreter: Installed,
        lock: Lock | None,
        resolve_before: int,
        slot: int,
    ) -> Outcome:
        with eviction.holding() as hold:
            run.step("unpack")
            tree = await self.tree(archive, source_hash, hold)
            provisioning.check_placeholders(spec)
            self._check_services(cell)
            runner = RUNNERS.get(spec.runner)
            if runner is None:
                raise Broken(Reason.INSTALL, f"this node does not know the runner {spec.runner!r}")
            if lock is None:
                run.step("resolve")
                lock = await self._resolved(tree, spec, cell, interpreter, resolve_before)
            with self._folder() as folder:
                base = Sandbox(
                    holds=self._holds,
                    limits=self._limits,
                    slot=slot,
                    name=f"{self._mark}-{folder.name}",
                )
                base = (
                    base.with_interpreter(interpreter)
                    .with_scratch("/project", self._limits.scratch_bytes)
                    .with_folder("/project/home")
                    .with_environment(FIXED)
                )
                channels = _made(folder / "build")
                made = partial(
                    self.environments.environment,
                    interpreter=interpreter,
                    sandbox=base,
                    channels=channels,
                    step=run.step,
                    hold=hold,
                )
                sdists = _sdists(spec)
                if sdists:
                    build = await made(lock.build)
                    environment = await made(
                        lock.requirements, from_source=sdists, build_environment=build
                    )
                    builds = [build] if spec.install.project else []
                else:
                    wanted = [lock.requirements, *([lock.build] if spec.install.project else [])]
                    environment, *builds = await together([partial(made, text) for text in wanted])
                site: Path | None = None
                for build in builds:
                    run.step("build")
                    site = await self.environments.project(
                        base,
                        tree=tree,
                        source_hash=source_hash,
                        build_environment=build,
                        interpreter=interpreter,
                        settings={
                            **_version_settings(tree),
                            **provisioning.of_cell(cell).plain(spec.env),
                        },
                        channels=channels,
                        hold=hold,
                    )
                packages = installed(environment, *([site] if site is not None else []))
                run.log.feed(f"installed: {' '.join(packages)}\n".encode())
                run.environment = self._described(interpreter, packages)
                async with self._provisioned(run, cell, slot, interpreter) as given:
                    forwards = given.forwards(provisioning.texts_of(spec).values())
                    spec = given.filled(spec)
                    compiled = _made(folder / "bytecode")
                    run.step("compile")
                    await self.environments.compile(base, environment, interpreter, channels)
                    if spec.runner == "pytest":
                        await self._tests_bytecode.gather(
                            base,
                            tree=tree,
                            command=spec.command,
                            environment=environment,
                            interpreter=interpreter,
                            channels=channels,
                            into=compiled,
                            hold=hold,
                        )
                    run.step("test")
                    box = (
                        given.bound(base)
                        .with_read_only(environment, "/env")
                        .with_read_only(tree, "/source")
                        .with_read_only(compiled, "/bytecode")
                        .with_read_only(_overlay(folder, spec.files), "/overlay")
                        .with_read_only(_reporter(folder), REPORT_FOLDER)
                        .with_environment(self._variables(spec.env, runner))
                    )
                    if forwards:
                        box = box.with_environment({"PONYSWARM_FORWARD": " ".join(forwards)})
                    if site is not None:
                        box = box.with_read_only(site, SITE)
                    try:
                        confined = await self._test(run, box, spec, runner, folder)
                        if given.trouble:
                            raise Broken(Reason.SERVICE, given.trouble)
                    finally:
                        run.step("clean up")
        assert run.report is not None
        judged = judge(
            run.report,
            confined,
            spec=spec,
            runner=runner,
            limits=self._limits,
            grouped=self._holds.groups is not None,
        )
        return run.outcome(*judged)

    async def tree(self, archive: Path, source_hash: bytes, hold: Hold = lambda _: None) -> Path:
        """The unpacked source, kept by its hash, read-only to every job. Raises `Broken`."""
        target = self._cache / "sources" / source_hash.hex()
        hold(target)
        async with self._unpacking.setdefault(target.name, trio.Lock()):
            if not target.exists():
                partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
                source.remove(partial)
                try:
                    await trio.to_thread.run_sync(source.unpack, archive, partial)
                    if not target.exists():
                        partial.rename(target)
                except PeerError as fault:
                    raise Broken(Reason.SOURCE, str(fault)) from fault
                except OSError as fault:
                    if fault.errno in eviction.FULL:
                        raise
                    raise Broken(Reason.SOURCE, f"the archive cannot be read: {fault}") from fault
                finally:
                    source.remove(partial)
        return source.top(target)

    def _check_services(self, cell: Cell) -> None:
        """End early what would end for want of a service."""
        for service in cell.services:
            if self._services is None:
                raise Broken(Reason.SERVICE, f"{service} is wanted, and no service is offered here")
            if self._services.offer(service) is None:
                raise Broken(Reason.SERVICE, self._services.why_not(service))

    @asynccontextmanager
    async def _provisioned(
        self, run: _Run, cell: Cell, slot: int, interpreter: Installed
    ) -> AsyncIterator[Given]:
        """What the cell's services give this run; taken away when it ends."""
        if self._services is None or not cell.services:
            yield provisioning.of_cell(cell)
            return
        run.step("services")
        async with self._services.provisioned(cell, slot=slot, interpreter=interpreter) as given:
            if run.environment is not None:
                run.environment = structs.replace(run.environment, services=given.versions)
            yield given

    async def _resolved(
        self, tree: Path, spec: Spec, cell: Cell, interpreter: Installed, resolve_before: int
    ) -> Lock:
        try:
            return await self.lock(
                tree=tree,
                spec=spec,
                cell=cell,
                interpreter=interpreter,
                resolve_before=resolve_before,
            )
        except PeerError as fault:
            raise Broken(Reason.SOURCE, str(fault)) from fault
        except (LocalError, InfraError) as fault:
            raise Broken(Reason.INSTALL, str(fault)) from fault

    async def _test(
        self, run: _Run, box: Sandbox, spec: Spec, runner: Runner, folder: Path
    ) -> Confined:
        report = run.report = Report(trio.current_time)
        shown = 0

        def feed(data: bytes) -> None:
            nonlocal shown
            report.feed(data)
            if report.done != shown:
                shown = report.done
                run.progress(
                    Progress(
                        step="test",
                        done=report.done,
                        total=report.collected or None,
                        current=report.culprit,
                    )
                )

        channel = Channel(_made(folder / "test") / "report", feed)
        try:
            confined = await box.run(
                ["/bin/sh", "-c", ENTRY, "sh", *runner.argv(spec)],
                patience=Patience(
                    seconds=min(self._limits.seconds, spec.timeout),
                    silent_seconds=self._limits.silent_seconds,
                    output_bytes=self._limits.output_bytes,
                ),
                channels=[channel],
                pulse=lambda: report.heard,
                stop=lambda _: bool(report.overflow),
                keep_bytes=LOG_BYTES // 2,
            )
        finally:
            channel.close()
        run.log.feed(confined.ended.output)
        return confined

    @staticmethod
    def _variables(settings: Mapping[str, str], runner: Runner) -> dict[str, str]:
        return {
            **settings,
            **runner.environment(settings),
            "PATH": f"{SITE}/bin:/env/bin:/usr/bin:/bin",
            "VIRTUAL_ENV": "/env",
            "PONYSWARM_REPORT": REPORT_CHANNEL,
        }

    def _described(self, interpreter: Installed, packages: tuple[str, ...]) -> Environment:
        try:
            release = platform.freedesktop_os_release().get("PRETTY_NAME", "")
        except OSError:
            release = platform.release()
        return Environment(
            implementation=interpreter.implementation,
            version=interpreter.version,
            build=interpreter.build[:500],
            system=platform.system().lower(),
            release=release[:500],
            machine=platform.machine(),
            libc="-".join(part for part in platform.libc_ver() if part),
            packages=hashlib.sha256("\n".join(packages).encode()).digest(),
            sandbox=self._holds.name,
        )

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """A folder of this run, open to nobody else, gone afterwards."""
        self._counter += 1
        folder = self._scratch / f"run-{os.getpid()}-{self._counter}"
        folder.mkdir(mode=0o700, parents=True)
        try:
            yield folder
        finally:
            source.remove(folder)


def _is_time(stamp: Path) -> bool:
    """Whether the file was not touched for a while; touches it then."""
    try:
        if 0 <= time.time() - stamp.stat().st_mtime < TIDY_SECONDS:
            return False
    except OSError:
        pass
    with suppress(OSError):
        stamp.touch()
    return True


def _overlay(folder: Path, files: Sequence[FileTemplate]) -> Path:
    """The job's ``[[files]]``, to be copied over the source inside the sandbox."""
    overlay = _made(folder / "overlay")
    for name, content in ((file.path, file.content) for file in files):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
            raise Broken(Reason.SOURCE, f"a file outside the source tree: {name[:100]!r}")
        target = overlay / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            target.write_text(content, "utf-8")
            target.chmod(0o644)
        except OSError as fault:
            raise Broken(Reason.SOURCE, f"{name[:100]!r} cannot be written: {fault}") from fault
    for root, folders, _ in os.walk(overlay):
        for name in folders:
            Path(root, name).chmod(0o755)
    return overlay


def _reporter(folder: Path) -> Path:
    """A copy of the reporter that the job's own id can read, wherever we are installed."""
    target = _made(folder / "reporter")
    for path in (Path(__file__).parent / "reporter").glob("_ponyswarm_*.py"):
        shutil.copyfile(path, target / path.name)
        (target / path.name).chmod(0o644)
    return target


def _made(folder: Path) -> Path:
    folder.mkdir()
    folder.chmod(0o755)
    return folder


def _sdists(spec: Spec) -> frozenset[str]:
    """Names of the dependencies that are built from their sdists. Raises `Broken`."""
    try:
        return frozenset(matrix.source_pins(spec))
    except LocalError as fault:
        raise Broken(Reason.INSTALL, f"install.from_source: {fault}") from fault


def _version_settings(tree: Path) -> dict[str, str]:
    """A git tree has neither metadata nor history: tell those who would ask git."""
    if source.metadata(tree) is not None:
        return {}
    version = source.named(tree).version or "0.0.0"
    return {"SETUPTOOLS_SCM_PRETEND_VERSION": version, "PBR_VERSION": version}
