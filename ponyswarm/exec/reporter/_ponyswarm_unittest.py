"""PonySwarm's reporter for unittest and what builds on it (Django's runner, plain suites).

Every runner ends in calling a suite with a result object. The outermost such call
claims the channel, and that one result object is watched, whatever class it is. When
Django shares a suite out to worker processes, each worker's own result is watched
instead: Django's parent hears late, by number, and on 3.12.1 of the wrong
tests. Subtests count with the test that holds them. Standard library only, Python 2.7
to 3.14.
"""

import os
import time
import traceback

import _ponyswarm_channel

RANK = ["passed", "skipped", "xfailed", "xpassed", "failed", "error"]


class Watch(object):
    """The events of one result object."""

    def __init__(self, channel, result):
        self.channel = channel
        self.running = {}
        for name in (
            "startTest",
            "stopTest",
            "addSuccess",
            "addFailure",
            "addError",
            "addSkip",
            "addExpectedFailure",
            "addUnexpectedSuccess",
            "addSubTest",
        ):
            original = getattr(result, name, None)
            if original is not None:
                setattr(result, name, self.wrapped(original, getattr(self, name)))

    @staticmethod
    def wrapped(original, notice):
        def method(*arguments, **named):
            try:
                notice(*arguments, **named)
            except Exception:
                # The test's own objects answer here (id, str); its result must not change by it.
                pass
            return original(*arguments, **named)

        return method

    def startTest(self, test):
        self.running[test.id()] = [time.time(), None, ""]
        self.channel.start(test.id())

    def stopTest(self, test):
        entry = self.running.pop(test.id(), None)
        if entry is not None:
            started, status, message = entry
            # Every outcome has its call, but a few libraries forget the one for success.
            self.channel.end(test.id(), status or "passed", time.time() - started, message)

    def outcome(self, test, status, message=""):
        entry = self.running.get(test.id())
        if entry is None:
            # A class or module fixture failed, or was skipped, outside any test.
            self.channel.end(test.id(), status, 0.0, message)
        elif entry[1] is None or RANK.index(status) > RANK.index(entry[1]):
            entry[1], entry[2] = status, message

    def addSuccess(self, test):
        self.outcome(test, "passed")

    def addFailure(self, test, err):
        self.outcome(test, "failed", described(err))

    def addError(self, test, err):
        self.outcome(test, "error", described(err))

    def addSkip(self, test, reason):
        holder = getattr(test, "test_case", None)
        if holder is not None and holder.id() in self.running:
            return  # A skipped subtest leaves its test as it is.
        self.outcome(test, "skipped", str(reason))

    def addExpectedFailure(self, test, err):
        self.outcome(test, "xfailed", described(err))

    def addUnexpectedSuccess(self, test):
        self.outcome(test, "xpassed")

    def addSubTest(self, test, subtest, err):
        if err is not None:
            failed = issubclass(err[0], test.failureException)
            self.outcome(
                test, "failed" if failed else "error", "%s\n%s" % (subtest, described(err))
            )


def described(err):
    try:
        # Django's parallel runner sends exceptions whose traceback is another object.
        return "".join(traceback.format_exception(*err))[-1500:]
    except Exception:
        # An exception's own __str__ may raise anything.
        return repr(err)[-1500:]


def is_remote(kind):
    """Whether a result class is that of Django's workers."""
    return any(
        base.__name__ == "RemoteTestResult" and base.__module__ == "django.test.runner"
        for base in getattr(kind, "__mro__", ())
    )


def is_shared_out(suite):
    """Whether Django's workers run this suite."""
    runner = getattr(suite, "runner_class", None)
    return hasattr(suite, "run_subsuite") and is_remote(getattr(runner, "resultclass", None))


def watch_worker(result):
    if getattr(result, "_ponyswarm", None) != os.getpid():
        result._ponyswarm = os.getpid()
        channel = _ponyswarm_channel.join()
        if channel is not None:
            Watch(channel, result)


def instrument(module):
    """Watch the outermost call of a suite."""
    base = module.BaseTestSuite
    if getattr(base, "_ponyswarm", False):
        return
    original = base.__call__

    def call(self, *arguments, **named):
        result = arguments[0] if arguments else named.get("result")
        if is_remote(type(result)):
            watch_worker(result)
            return original(self, *arguments, **named)
        channel = _ponyswarm_channel.claim("unittest") if result is not None else None
        if channel is None:
            if is_shared_out(self):
                # A run nested in a test: its workers are nobody's but its own.
                os.environ.pop(_ponyswarm_channel.WORKERS, None)
            return original(self, *arguments, **named)
        channel.collected(self.countTestCases())
        if is_shared_out(self):
            channel.share()
        else:
            Watch(channel, result)
        value = original(self, *arguments, **named)
        channel.finish(0 if result.wasSuccessful() else 1)
        return value

    base.__call__ = call
    base._ponyswarm = True
