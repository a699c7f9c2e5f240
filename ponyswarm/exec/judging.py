"""What the end of a run means: completed, or broken and why. Pure, from reports and how it ended.

The order matters: a limit that was run into explains what came of it, and so is named
before a test that failed by it. Called by `executor`.
"""

from __future__ import annotations

from ponyswarm.exec.outcome import TestOutcome
from ponyswarm.exec.process import How
from ponyswarm.exec.report import Report
from ponyswarm.exec.runners import Runner
from ponyswarm.exec.sandbox import Confined, Limits
from ponyswarm.messages import BAD_STATUSES, Reason, Spec, Status

COMMAND = "command"

# The reason of a broken run or None, the detail for a person, and the tests.
Judged = tuple[Reason | None, str, tuple[TestOutcome, ...]]


def judge(
    report: Report,
    confined: Confined,
    *,
    spec: Spec,
    runner: Runner,
    limits: Limits,
    grouped: bool,
) -> Judged:
    """Judge a run whose sandbox has ended. ``grouped``: a control group bounded its memory."""
    ended, tests = confined.ended, report.tests
    whole = ended.how is How.EXITED and not ended.signal
    why = runner.judge(report, ended.code) if whole else ""
    alone = spec.runner == COMMAND and not spec.report
    if alone:
        status = Status.PASSED if ended.code == 0 else Status.FAILED
        message = f"exit status {ended.code}" if ended.code else ""
        command = TestOutcome(id=COMMAND, status=status, seconds=ended.seconds, message=message)
        tests = (command,) if whole else ()
    good = whole and not why and ended.code == 0

    def broken(reason: Reason, detail: str) -> Judged:
        return reason, detail, tests

    starved = not grouped and any("MemoryError" in test.message for test in tests)
    if confined.killed_for_memory or starved:
        allowed = limits.memory_bytes >> 20
        return broken(Reason.OUT_OF_MEMORY, f"more memory than the {allowed} MiB allowed here")
    if report.full and not good:
        allowed = limits.scratch_bytes >> 20
        return broken(Reason.DISK_FULL, f"the scratch space of {allowed} MiB was full")
    match ended.how:
        case How.TIMEOUT:
            return broken(Reason.TIMEOUT, _too_long(limits.seconds, spec.timeout))
        case How.NO_OUTPUT:
            silent = int(limits.silent_seconds)
            return broken(Reason.NO_OUTPUT, f"neither output nor test for {silent} seconds")
        case How.OUTPUT_LIMIT:
            allowed = limits.output_bytes >> 20
            return broken(Reason.CRASHED, f"printed more than {allowed} MiB")
        case How.STOPPED:
            return broken(Reason.CRASHED, report.overflow)
    if not report.entered:
        said = ended.output.decode("utf-8", "replace").strip()[-300:]
        return broken(Reason.SANDBOX, f"the sandbox did not start: {said}")
    if confined.refused_processes and not good:
        detail = f"it wanted more than the {limits.processes} processes allowed here"
        return broken(Reason.SANDBOX, detail)
    if ended.signal:
        return broken(Reason.CRASHED, f"killed by signal {ended.signal}")
    if why:
        return broken(Reason.CRASHED, why)
    if ended.code and not alone and not _explains(tests):
        # A coverage threshold, say: no test is bad and yet the command is.
        message = f"exit status {ended.code} although no test failed"
        command = TestOutcome(id=COMMAND, status=Status.FAILED, message=message)
        tests = tuple(sorted((*tests, command), key=lambda test: test.id))
    return None, "", tests


def _too_long(limit: float, timeout: int) -> str:
    """Whose time was over: the job's own, or that of the machine it ran on."""
    if timeout <= limit:
        return f"not done after {timeout} seconds, the job's timeout"
    return f"not done after {int(limit)} seconds, the most that a run may take here"


def _explains(tests: tuple[TestOutcome, ...]) -> bool:
    return any(test.status in BAD_STATUSES or test.status is Status.XPASSED for test in tests)
