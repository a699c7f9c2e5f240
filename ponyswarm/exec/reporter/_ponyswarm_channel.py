"""PonySwarm's reporter: the channel a job's test runner writes its events to.

Standard library only, Python 2.7 to 3.14 and PyPy: this runs under the job's own
interpreter, inside the sandbox. One JSON object a line, each short enough that the
kernel writes it whole (PIPE_BUF), to a FIFO that is read outside the sandbox: what
was written cannot be taken back, and what came before a crash stays. The first
runner of a process tree claims the channel by taking it out of the environment, so
that runs nested in a test report nothing.

PYTEST_DONT_REWRITE
"""

import hashlib
import json
import os

VARIABLE = "PONYSWARM_REPORT"
LINE = 4000
ID_CHARACTERS = 400


class Channel(object):
    """Events of one runner, from `claim` to `finish`."""

    def __init__(self, path, descriptor, runner):
        self._path = path
        self._descriptor = descriptor
        self._process = os.getpid()
        self._session = "%d-%s" % (self._process, hashlib.sha256(os.urandom(8)).hexdigest()[:8])
        self._send({"e": "begin", "r": runner})

    def collected(self, count):
        self._send({"e": "collected", "n": count})

    def start(self, name):
        self._send({"e": "start", "id": bounded(name)})

    def end(self, name, status, seconds=0.0, message=""):
        self._send(
            {"e": "end", "id": bounded(name), "st": status, "t": round(seconds, 6), "m": message}
        )

    def finish(self, code):
        self._send({"e": "finish", "code": code})
        if os.getpid() == self._process:
            os.close(self._descriptor)
            os.environ[VARIABLE] = self._path
        self._process = -1

    def _send(self, event):
        # A forked child has this object too, but the test is its parent's.
        if os.getpid() != self._process:
            return
        event["s"] = self._session
        line = json.dumps(event)
        while len(line) > LINE and event.get("m"):
            event["m"] = event["m"][: len(event["m"]) // 2]
            line = json.dumps(event)
        try:
            os.write(self._descriptor, (line + "\n").encode("ascii"))
        except OSError:
            pass


def claim(runner):
    """The channel, for the first who asks; None for everyone after, and outside PonySwarm."""
    path = os.environ.pop(VARIABLE, None)
    if not path:
        return None
    try:
        # Opening for reading too would be refused: nobody inside may read the FIFO.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    except OSError:
        return None
    return Channel(path, descriptor, runner)


def bounded(name):
    """An id that fits a line: a long one keeps its start and a hash of the whole."""
    if isinstance(name, bytes):
        name = name.decode("utf-8", "replace")
    if len(name) <= ID_CHARACTERS and len(json.dumps(name)) < LINE // 2:
        return name
    digest = hashlib.sha256(json.dumps(name).encode("ascii")).hexdigest()[:16]
    while len(json.dumps(name)) >= LINE // 2 or len(name) > ID_CHARACTERS:
        name = name[: min(ID_CHARACTERS, len(name) * 3 // 4)]
    return name + "~" + digest
