"""Whatever a job does, it ends typed, within its limits, and the next run is good."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import psutil
import pytest
import trio
from exec_lab import (
    FIRST,
    MIB,
    REPOSITORY,
    SECOND,
    SMALL,
    as_ordinary_user,
    executor,
    holds,
    in_trio,
    module,
    run,
)

from ponyswarm.exec.outcome import Outcome
from ponyswarm.exec.sandbox import Limits
from ponyswarm.messages import FileTemplate, Reason, Status


def quick(**changes: float) -> Limits:
    values = {name: getattr(SMALL, name) for name in SMALL.__slots__}
    return Limits(**{**values, **changes})


def statuses(outcome: Outcome) -> dict[str, str]:
    return {test.id: test.status.value for test in outcome.tests}


async def still_good(folder: Path) -> None:
    """The machine is as it was: a good run gives what it gives, and nothing is left."""
    outcome = await run(folder, module("pass"))
    assert (outcome.state, outcome.detail) == ("completed", "")
    assert statuses(outcome) == {FIRST: "passed", SECOND: "passed"}
    assert list((folder / "scratch").iterdir()) == []
    groups = holds().groups
    if groups is not None:
        mark = executor(folder)._mark
        assert [path for parent in groups.parents for path in parent.glob(f"*{mark}*")] == []


@in_trio
async def test_every_status_of_unittest_is_told_apart(tmp_path: Path) -> None:
    outcome = await run(
        tmp_path,
        "import unittest\n"
        "class T(unittest.TestCase):\n"
        "    def test_pass(self): pass\n"
        "    def test_fail(self): self.fail('no')\n"
        "    def test_error(self): 1 / 0\n"
        "    def test_skip(self): self.skipTest('why')\n"
        "    @unittest.expectedFailure\n"
        "    def test_xfail(self): self.fail()\n"
        "    @unittest.expectedFailure\n"
        "    def test_xpass(self): pass\n"
        "    def test_sub(self):\n"
        "        for i in range(3):\n"
        "            with self.subTest(i=i): self.assertNotEqual(i, 1)\n"
        "class Broken(unittest.TestCase):\n"
        "    @classmethod\n"
        "    def setUpClass(cls): raise OSError('gone')\n"
        "    def test_never(self): pass\n",
    )
    assert outcome.state == "completed"
    assert statuses(outcome) == {
        "setUpClass (test_it.Broken)": "error",
        "test_it.T.test_error": "error",
        "test_it.T.test_fail": "failed",
        "test_it.T.test_pass": "passed",
        "test_it.T.test_skip": "skipped",
        "test_it.T.test_sub": "failed",
        "test_it.T.test_xfail": "xfailed",
        "test_it.T.test_xpass": "xpassed",
    }
    assert [test.id for test in outcome.tests] == sorted(test.id for test in outcome.tests)
    assert outcome.environment is not None
    assert len(outcome.environment.packages) == 32


@in_trio
async def test_a_job_that_sleeps_forever_is_ended_and_its_test_named(tmp_path: Path) -> None:
    limits = quick(silent_seconds=2.0)
    outcome = await run(tmp_path, module("time.sleep(10000)"), limits=limits)
    assert outcome.reason is Reason.NO_OUTPUT
    assert outcome.culprit == SECOND
    assert statuses(outcome) == {FIRST: "passed"}
    assert outcome.seconds < 15
    await still_good(tmp_path)


@in_trio
async def test_a_job_that_talks_forever_runs_into_its_time_limit(tmp_path: Path) -> None:
    body = module("while True:\n    print('.', flush=True)\n    time.sleep(0.05)")
    outcome = await run(tmp_path, body, timeout=2)
    assert (outcome.reason, outcome.culprit) == (Reason.TIMEOUT, SECOND)
    assert "2 seconds, the job's timeout" in outcome.detail
    outcome = await run(tmp_path, body, timeout=90, limits=quick(seconds=2))
    assert outcome.reason is Reason.TIMEOUT
    assert "the most that a run may take here" in outcome.detail
    assert outcome.seconds < 15
    await still_good(tmp_path)


@in_trio
async def test_a_job_that_forks_without_end_is_held(tmp_path: Path) -> None:
    body = module("while True:\n    try:\n        os.fork()\n    except OSError:\n        pass")
    before = len(psutil.pids())
    peak = 0

    async def look() -> None:
        nonlocal peak
        while True:
            peak = max(peak, len(psutil.pids()))
            await trio.sleep(0.2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        outcome = await run(tmp_path, body, timeout=4)
        nursery.cancel_scope.cancel()
    assert outcome.state == "broken"
    assert outcome.reason in (Reason.TIMEOUT, Reason.SANDBOX, Reason.CRASHED)
    assert peak - before < SMALL.processes + 60
    await still_good(tmp_path)


@in_trio
async def test_a_fork_that_is_refused_breaks_the_run_instead_of_the_test(tmp_path: Path) -> None:
    outcome = await run(
        tmp_path, module("for _ in range(100):\n    subprocess.Popen(['sleep', '20'])")
    )
    if holds().groups is None:
        assert outcome.state == "completed"  # Only a group counts what it refused.
    else:
        assert outcome.reason is Reason.SANDBOX
        assert "64 processes" in outcome.detail
    await still_good(tmp_path)


@pytest.mark.parametrize("place", [".", "/tmp", "/dev/shm"])
@in_trio
async def test_a_job_that_fills_its_disk_is_told_apart_from_a_failure(
    tmp_path: Path, place: str
) -> None:
    body = (
        f"number = 0\nwhile True:\n    with open('{place}/%d' % number, 'wb') as file:\n"
        "        file.write(bytes(1 << 20))\n    number += 1"
    )
    outcome = await run(tmp_path, module(body))
    assert outcome.reason is Reason.DISK_FULL
    assert statuses(outcome)[FIRST] == "passed"
    await still_good(tmp_path)


@in_trio
async def test_a_job_that_prints_a_gigabyte_is_cut_off(tmp_path: Path) -> None:
    body = module("for _ in range(1024):\n    os.write(1, b'x' * (1 << 20))")
    outcome = await run(tmp_path, body)
    assert outcome.reason is Reason.CRASHED
    assert "printed more than 4 MiB" in outcome.detail
    assert len(outcome.log) < 2 * MIB
    await still_good(tmp_path)


@in_trio
async def test_a_job_that_eats_memory_is_told_apart_from_a_failure(tmp_path: Path) -> None:
    body = module("hoard = []\nwhile True:\n    hoard.append(os.urandom(1 << 20) * 16)")
    outcome = await run(tmp_path, body)
    assert outcome.reason is Reason.OUT_OF_MEMORY
    await still_good(tmp_path)


@in_trio
async def test_a_job_reaches_no_network_but_its_own_loopback(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        body = module(
            f"for address in (('127.0.0.1', {port}), ('192.0.2.1', 80), ('1.1.1.1', 53)):\n"
            "    with self.assertRaises(OSError):\n"
            "        socket.create_connection(address, timeout=3)\n"
            "with self.assertRaises(OSError):\n"
            "    socket.getaddrinfo('example.org', 80)\n"
            "server = socket.create_server(('127.0.0.1', 0))\n"
            "socket.create_connection(server.getsockname()).close()"
        )
        outcome = await run(tmp_path, body)
        assert statuses(outcome) == {FIRST: "passed", SECOND: "passed"}, outcome.log.decode()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@in_trio
async def test_a_job_sees_no_secret_of_the_node(tmp_path: Path) -> None:
    secret = tmp_path / "home" / "key"
    secret.parent.mkdir()
    secret.write_text("SECRET-" + "4711")
    os.environ["PONYSWARM_TEST_SECRET"] = "SECRET-" + "4711"
    try:
        body = module(
            f"for path in ({str(secret)!r}, '/etc/shadow', {str(Path.home() / '.profile')!r},\n"
            f"             {str(REPOSITORY)!r}):\n"
            "    self.assertFalse(os.access(path, os.R_OK), path)\n"
            "needle = b'SECRET-' + b'4711'\n"
            "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
            "    for name in ('environ', 'cmdline'):\n"
            "        try:\n"
            "            with open('/proc/%s/%s' % (pid, name), 'rb') as file:\n"
            "                self.assertNotIn(needle, file.read(), pid + name)\n"
            "        except OSError:\n"
            "            pass\n"
            "self.assertLess(max(int(p) for p in os.listdir('/proc') if p.isdigit()), 100)\n"
            "fds = {os.readlink('/proc/self/fd/' + fd) for fd in os.listdir('/proc/self/fd')\n"
            "       if os.path.exists('/proc/self/fd/' + fd)}\n"
            "known = ('pipe:', '/dev/null', '/proc/', '/channels/report')\n"
            "self.assertEqual([fd for fd in fds if not fd.startswith(known)], [])\n"
            "self.assertNotEqual(os.getuid(), 0)"
        )
        outcome = await run(tmp_path, body)
    finally:
        del os.environ["PONYSWARM_TEST_SECRET"]
    assert statuses(outcome) == {FIRST: "passed", SECOND: "passed"}, outcome.log.decode()


@in_trio
async def test_a_daemon_dies_with_its_run(tmp_path: Path) -> None:
    mark = f"86{os.getpid() % 1000:03d}.25"
    body = module(
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        for fd in range(256):\n"
        "            try: os.close(fd)\n"
        "            except OSError: pass\n"
        f"        os.execv('/bin/sleep', ['sleep', '{mark}'])\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    outcome = await run(tmp_path, body)
    assert statuses(outcome) == {FIRST: "passed", SECOND: "passed"}, outcome.log.decode()
    assert not [one for one in psutil.process_iter(["cmdline"]) if mark in str(one.info["cmdline"])]
    await still_good(tmp_path)


@in_trio
async def test_a_job_that_exits_well_too_early_is_not_believed(tmp_path: Path) -> None:
    outcome = await run(tmp_path, module("os._exit(0)"))
    assert (outcome.reason, outcome.culprit) == (Reason.CRASHED, SECOND)
    assert statuses(outcome) == {FIRST: "passed"}
    await still_good(tmp_path)


@in_trio
async def test_a_segmentation_fault_keeps_what_came_before(tmp_path: Path) -> None:
    outcome = await run(tmp_path, module("import ctypes\nctypes.string_at(0)"))
    assert (outcome.reason, outcome.culprit) == (Reason.CRASHED, SECOND)
    assert outcome.detail == "killed by signal 11"
    assert statuses(outcome) == {FIRST: "passed"}
    await still_good(tmp_path)


@in_trio
async def test_a_job_that_kills_all_it_can_see_is_broken(tmp_path: Path) -> None:
    outcome = await run(tmp_path, module("os.kill(-1, signal.SIGKILL)\ntime.sleep(1)\nos._exit(9)"))
    assert outcome.reason is Reason.CRASHED
    await still_good(tmp_path)


@in_trio
async def test_shared_folders_cannot_be_written(tmp_path: Path) -> None:
    body = module(
        "import sysconfig\n"
        "for folder in ('/', '/env', '/env/bin', sysconfig.get_path('purelib'), '/source',\n"
        "               '/dev', '/project/report', '/overlay', '/usr', '/etc', sys.base_prefix):\n"
        "    with self.assertRaises(OSError, msg=folder):\n"
        "        open(folder + '/planted', 'w')\n"
        "with self.assertRaises(OSError):\n"
        "    os.chmod('/env', 0o777)\n"
        "with self.assertRaises(OSError):\n"
        "    open('/proc/sys/kernel/core_pattern', 'w')\n"
        "for call in (lambda: os.chroot('/'), lambda: os.setuid(0)):\n"
        "    with self.assertRaises(OSError):\n"
        "        call()\n"
        "self.assertNotEqual(subprocess.call(['unshare', '-U', 'true'], stderr=-3), 0)\n"
        "self.assertNotEqual(subprocess.call(['mount', '-t', 'tmpfs', 'x', '/mnt'], stderr=-3), 0)"
    )
    outcome = await run(tmp_path, body)
    assert statuses(outcome) == {FIRST: "passed", SECOND: "passed"}, outcome.log.decode()


@in_trio
async def test_what_was_reported_cannot_be_taken_back(tmp_path: Path) -> None:
    body = module(
        "for path in ('/channels/report', '/proc/self/fd/3', '/proc/%d/fd/3' % os.getppid()):\n"
        "    with self.assertRaises(OSError, msg=path):\n"
        "        os.open(path, os.O_RDONLY | os.O_NONBLOCK)\n"
        "for change in (os.unlink, lambda path: os.chmod(path, 0o666),\n"
        "               lambda path: os.truncate(path, 0)):\n"
        "    with self.assertRaises(OSError):\n"
        "        change('/channels/report')\n"
        "with open('/channels/report', 'wb', buffering=0) as file:\n"
        '    forged = b\'{"e":"end","s":"else","id":"x","st":"passed"}\'\n'
        "    file.write(b'not json\\n' + b'[' * 5000 + b'\\n' + forged + b'\\n')\n"
        "    file.write(b'x' * 3000000 + b'\\n')\n"
        "self.fail('honestly')",
        before="self.fail('first')",
    )
    outcome = await run(tmp_path, body)
    assert statuses(outcome) == {FIRST: "failed", SECOND: "failed"}, outcome.log.decode()
    await still_good(tmp_path)


@in_trio
async def test_a_flood_of_events_is_cut_off(tmp_path: Path) -> None:
    body = module(
        "import _ponyswarm_channel, json, gc\n"
        "channel = next(o for o in gc.get_objects() if type(o).__name__ == 'Channel')\n"
        "number = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    channel.end('t%d' % number, 'passed')"
    )
    outcome = await run(tmp_path, body, limits=quick(seconds=60.0))
    assert outcome.reason is Reason.CRASHED
    assert "200000 tests" in outcome.detail
    assert len(outcome.tests) == 200_000


@in_trio
async def test_a_run_inside_a_test_reports_nothing(tmp_path: Path) -> None:
    body = module(
        "class Inner(unittest.TestCase):\n"
        "    def test_inner(self): self.fail()\n"
        "unittest.TextTestRunner().run(unittest.TestSuite([Inner('test_inner')]))\n"
        "subprocess.call([sys.executable, '-m', 'unittest', 'test_it.Jobs.test_a_first'])"
    )
    outcome = await run(tmp_path, body)
    assert statuses(outcome) == {FIRST: "passed", SECOND: "passed"}


@in_trio
async def test_the_command_runner_gives_one_test(tmp_path: Path) -> None:
    good = await run(tmp_path, "", runner="command", command=("sh", "-c", "exit 0"))
    bad = await run(tmp_path, "", runner="command", command=("sh", "-c", "exit 3"))
    lost = await run(tmp_path, "", runner="command", command=("no-such-program",))
    assert [(t.id, t.status) for t in good.tests] == [("command", Status.PASSED)]
    assert [(t.id, t.status) for t in bad.tests] == [("command", Status.FAILED)]
    assert [(t.id, t.status) for t in lost.tests] == [("command", Status.FAILED)]
    assert {o.state for o in (good, bad, lost)} == {"completed"}


@in_trio
async def test_env_and_files_are_applied(tmp_path: Path) -> None:
    body = module(
        "self.assertEqual(os.environ['GREETING'], 'hello')\n"
        "self.assertEqual(open('conf/settings.txt').read(), 'a = 1')\n"
        "self.assertEqual(os.environ['HOME'], '/project/home')\n"
        "self.assertEqual(os.getcwd(), '/project/src')\n"
        "open('written', 'w').close()\n"
        "self.assertEqual(time.tzname[0], 'UTC')"
    )
    file = FileTemplate(path="conf/settings.txt", content="a = 1")
    outcome = await run(tmp_path, body, env={"GREETING": "hello"}, files=(file,))
    assert statuses(outcome) == {FIRST: "passed", SECOND: "passed"}, outcome.log.decode()


@in_trio
async def test_a_placeholder_of_an_absent_service_breaks_the_run(tmp_path: Path) -> None:
    outcome = await run(tmp_path, module("pass"), env={"URL": "{postgresql.url}"})
    assert outcome.reason is Reason.SERVICE
    assert "{postgresql.url}" in outcome.detail


@in_trio
async def test_a_file_outside_the_tree_is_refused(tmp_path: Path) -> None:
    file = FileTemplate(path="../../planted", content="x")
    outcome = await run(tmp_path, module("pass"), files=(file,))
    assert outcome.reason is Reason.SOURCE
    assert list((tmp_path / "scratch").iterdir()) == []


@in_trio
async def test_cancellation_leaves_nothing(tmp_path: Path) -> None:
    mark = f"87{os.getpid() % 1000:03d}.25"
    seen = trio.Event()

    async def job() -> None:
        body = module(f"subprocess.call(['sleep', '{mark}'])")
        await run(
            tmp_path, body, progress=lambda p: seen.set() if p.current == SECOND or p.done else None
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(job)
        await seen.wait()
        nursery.cancel_scope.cancel()
    assert not [one for one in psutil.process_iter(["cmdline"]) if mark in str(one.info["cmdline"])]
    await still_good(tmp_path)


@in_trio
async def test_two_runs_at_once_do_not_meet(tmp_path: Path) -> None:
    began = time.monotonic()
    async with trio.open_nursery() as nursery:
        for name in ("one", "two"):
            nursery.start_soon(still_good, tmp_path / name)
    assert time.monotonic() - began < 30


@in_trio
async def test_a_sweep_removes_what_a_killed_node_left(tmp_path: Path) -> None:
    one = executor(tmp_path)
    (tmp_path / "scratch" / "run-1-1").mkdir()
    partial = tmp_path / "cache" / "environments" / "abc.partial-999999999"
    partial.mkdir(parents=True)
    one.sweep()
    assert not partial.exists()
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user")
def test_all_of_this_holds_for_an_ordinary_user() -> None:
    as_ordinary_user(Path(__file__))
