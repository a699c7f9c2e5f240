"""PonySwarm's reporter: the channel a job's test runner writes its events to.

Standard library only, Python 2.7 to 3.14 and PyPy: this runs under the job's own
interpreter, inside the sandbox. One JSON object a line, each short enough that the
kernel writes it whole (PIPE_BUF), to a FIFO that is read outside the sandbox: what
was written cannot be taken back, and what came before a crash stays. The first
runner of a process tree claims the channel by taking it out of the environment, so
that runs nested in a test report nothing.

PYTEST_DONT_REWRITE
"""

import binascii
import json
import os

VARIABLE = "PONYSWARM_REPORT"
# For the worker processes of a runner that shares its work out.
WORKERS = "PONYSWARM_REPORT_WORKERS"
LINE = 4000
ID_CHARACTERS = 400


class Channel(object):
    """Events of one runner, from `claim` to `finish`; of a worker of it, from `join` on."""

    def __init__(self, path, descriptor, session):
        self._path = path
        self._descriptor = descriptor
        self._process = os.getpid()
        self._session = session

    def begin(self, runner):
        self._send({"e": "begin", "r": runner})

    def share(self):
        """Let worker processes report for themselves."""
        os.environ[WORKERS] = self._path + "|" + self._session

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
            os.environ.pop(WORKERS, None)
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
    descriptor = opened(path)
    if descriptor is None:
        return None
    session = "%d-%s" % (os.getpid(), binascii.hexlify(os.urandom(4)).decode("ascii"))
    channel = Channel(path, descriptor, session)
    channel.begin(runner)
    return channel


def join():
    """In a worker process: its own end of the channel that its runner shares; else None."""
    path, bar, session = os.environ.get(WORKERS, "").partition("|")
    descriptor = opened(path) if bar else None
    return Channel(path, descriptor, session) if descriptor is not None else None


def opened(path):
    try:
        # Opening for reading too would be refused: nobody inside may read the FIFO.
        return os.open(path, os.O_WRONLY | os.O_APPEND) if path else None
    except OSError:
        return None


def bounded(name):
    """An id that fits a line: a long one keeps its start and a hash of the whole."""
    if isinstance(name, bytes):
        name = name.decode("utf-8", "replace")
    # A character takes at most twelve in JSON.
    if 12 * len(name) < LINE // 2:
        return name
    if len(name) <= ID_CHARACTERS and len(json.dumps(name)) < LINE // 2:
        return name
    import hashlib  # Loads OpenSSL: not for the few who need it.

    digest = hashlib.sha256(json.dumps(name).encode("ascii")).hexdigest()[:16]
    while len(json.dumps(name)) >= LINE // 2 or len(name) > ID_CHARACTERS:
        name = name[: min(ID_CHARACTERS, len(name) * 3 // 4)]
    return name + "~" + digest
