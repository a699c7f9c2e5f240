"""PonySwarm's reporter for pytest, loaded by ``PYTEST_ADDOPTS=-p _ponyswarm_pytest``.

Reports from the process that prints, so under xdist from the controller. Standard
library only; the hooks it uses exist since pytest 3. The marker on the next line
keeps pytest from a warning that suites with ``filterwarnings = error`` die of.

PYTEST_DONT_REWRITE
"""

import os

import _ponyswarm_channel

OPTION = "-p _ponyswarm_pytest"
RANK = ["passed", "skipped", "xfailed", "xpassed", "failed", "error"]


class Reporter(object):
    """The events of one pytest session."""

    def __init__(self, channel):
        self.channel = channel
        self.tests = {}

    def pytest_collection_finish(self, session):
        self.channel.collected(len(session.items))

    def pytest_collectreport(self, report):
        if report.outcome == "failed":
            self.channel.end(report.nodeid or "collection", "error", 0.0, text(report))
        elif report.outcome == "skipped":
            self.channel.end(report.nodeid, "skipped", 0.0, text(report))

    def pytest_runtest_logstart(self, nodeid, location):
        self.tests[nodeid] = ["passed", 0.0, ""]
        self.channel.start(nodeid)

    def pytest_runtest_logreport(self, report):
        if report.when == "???":
            # xdist: the worker that ran this test died.
            self.tests.pop(report.nodeid, None)
            self.channel.end(report.nodeid, "failed", 0.0, text(report))
            return
        entry = self.tests.setdefault(report.nodeid, ["passed", 0.0, ""])
        entry[1] += getattr(report, "duration", 0.0)
        status = status_of(report)
        if status is not None and RANK.index(status) > RANK.index(entry[0]):
            entry[0], entry[2] = status, text(report) if status != "passed" else ""

    def pytest_runtest_logfinish(self, nodeid, location):
        entry = self.tests.pop(nodeid, None)
        if entry is not None:
            self.channel.end(nodeid, *entry)

    def pytest_sessionfinish(self, session, exitstatus):
        for nodeid in sorted(self.tests):
            self.channel.end(nodeid, *self.tests[nodeid])
        self.tests.clear()
        self.status = int(exitstatus)

    def pytest_unconfigure(self, config):
        self.channel.finish(getattr(self, "status", 3))


def status_of(report):
    expected = hasattr(report, "wasxfail")
    if type(report).__name__.lower() == "subtestreport" and report.outcome != "failed":
        return None  # A subtest counts with the test that holds it.
    if report.outcome == "failed":
        return "failed" if report.when == "call" else "error"
    if report.outcome == "skipped":
        return "xfailed" if expected else "skipped"
    if report.outcome == "passed" and report.when == "call" and expected:
        return "xpassed"
    return None


def text(report):
    """A few lines for a person; never compared."""
    longrepr = getattr(report, "longrepr", None)
    if not longrepr:
        return ""
    try:
        if isinstance(longrepr, tuple):
            return str(longrepr[-1])[-1500:]
        return str(longrepr)[-1500:]
    except Exception:
        # A plugin's own representation may raise anything; a message is only for people.
        return ""


def pytest_configure(config):
    if hasattr(config, "workerinput") or hasattr(config, "slaveinput"):
        return
    channel = _ponyswarm_channel.claim("pytest")
    if channel is None:
        return
    # A pytest that a test starts shall see the environment that its author saw.
    if os.environ.get("PYTEST_ADDOPTS", "").strip() == OPTION:
        del os.environ["PYTEST_ADDOPTS"]
    config.pluginmanager.register(Reporter(channel), "_ponyswarm_reporter")
