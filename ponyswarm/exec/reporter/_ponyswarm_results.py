"""PonySwarm's reporter for any command that writes JUnit XML or TAP.

``python _ponyswarm_results.py REPORT COMMAND...`` runs the command and reports what it
says of its tests: TAP line by line while it runs (from its output when REPORT is ``-``),
JUnit XML when it has ended, as far as a broken file goes. Here, and not outside the
sandbox, because the files are the job's own. Standard library only, Python 2.7 to 3.14.
"""

import glob
import os
import re
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree

import _ponyswarm_channel

POINT = re.compile(r"(not )?ok\b\s*(\d+)?\s*(?:-\s*)?(.*)")
DIRECTIVE = re.compile(r"(?<!\\)#\s*(skip|todo)\S*\s*(.*)", re.I)
PLAN = re.compile(r"1\.\.(\d+)\s*(?:#\s*(.*))?")
POLL = 0.1
MESSAGE = 1500


class Tap(object):
    """One stream of TAP. Indented lines are subtests, which count with their test."""

    def __init__(self, channel, prefix=""):
        self.channel = channel
        self.prefix = prefix
        self.planned = None
        self.seen = 0
        self.open = None
        self.details = None

    def line(self, text):
        text = text.rstrip("\r\n")
        if self.details is not None and text.strip() != "...":
            self.details.append(text)
            return
        if text.strip() == "---" and self.open:
            self.details = []
        elif text.strip() == "..." and self.open:
            self.open[2] = "\n".join(self.details or [])[:MESSAGE] or self.open[2]
            self.details = None
        elif text.startswith("#") and self.open and self.open[1] == "failed":
            self.open[2] = (self.open[2] + "\n" + text.lstrip("# "))[:MESSAGE]
        elif text.startswith("Bail out!"):
            self.flush()
            self.channel.end(self.prefix + "Bail out!", "error", 0.0, text[9:].strip())
            self.planned = None
        elif PLAN.match(text):
            self.planned = int(PLAN.match(text).group(1))
            if not self.seen:
                self.channel.collected(self.planned)
        elif POINT.match(text):
            self.point(*POINT.match(text).groups())

    def point(self, bad, number, rest):
        self.flush()
        self.seen += 1
        directive = DIRECTIVE.search(rest)
        word = directive.group(1).lower() if directive else ""
        name = (rest[: directive.start()] if directive else rest).strip()
        if word == "todo":
            status = "xfailed" if bad else "xpassed"
        elif word == "skip":
            status = "skipped"
        else:
            status = "failed" if bad else "passed"
        name = name or "test %s" % (number or self.seen)
        self.open = [name, status, directive.group(2) if directive else ""]

    def flush(self):
        if self.open:
            name, status, message = self.open
            self.open = self.details = None
            self.channel.end(self.prefix + name, status, 0.0, message)

    def finish(self):
        self.flush()
        if self.planned is not None and self.planned != self.seen:
            message = "%d tests were planned and %d came" % (self.planned, self.seen)
            self.channel.end(self.prefix + "the plan", "error", 0.0, message)


class Files(object):
    """The files that a pattern names, TAP followed as they grow."""

    def __init__(self, channel, pattern):
        self.channel = channel
        self.pattern = pattern
        self.taps = {}
        for path in self.paths():
            os.unlink(path)  # An old report says nothing of this run.

    def paths(self):
        return sorted(glob.glob(self.pattern))

    def prefix(self, path):
        return path + "::" if glob.has_magic(self.pattern) else ""

    def follow(self, last=False):
        for path in self.paths():
            if is_xml(path):
                continue
            if path not in self.taps:
                self.taps[path] = [Tap(self.channel, self.prefix(path)), 0]
            tap, offset = self.taps[path]
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read()
            end = len(data) if last else data.rfind(b"\n") + 1
            self.taps[path][1] = offset + end
            for line in data[:end].decode("utf-8", "replace").splitlines():
                tap.line(line)

    def finish(self):
        self.follow(last=True)
        for path in sorted(self.taps):
            self.taps[path][0].finish()
        for path in self.paths():
            if is_xml(path):
                read_junit(self.channel, path, self.prefix(path))


def is_xml(path):
    with open(path, "rb") as file:
        return file.read(200).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def read_junit(channel, path, prefix):
    """Every test case as far as the file can be read; where it breaks is an error."""
    try:
        for _, case in ElementTree.iterparse(path):  # noqa: S314 - in the sandbox
            if local(case) == "testcase":
                place, name = case.get("classname") or "", case.get("name") or "?"
                status, message = status_of(case)
                try:
                    seconds = float((case.get("time") or "0").replace(",", ""))
                except ValueError:
                    seconds = 0.0
                full = place + "." + name if place else name
                channel.end(prefix + full, status, seconds, message)
                case.clear()
    except (ElementTree.ParseError, ValueError) as fault:
        channel.end(prefix + "the report", "error", 0.0, "%s: %s" % (path, fault))


def status_of(case):
    for child in case:
        name = local(child)
        message = "\n".join(
            text.strip() for text in (child.get("message"), child.text) if text and text.strip()
        )[-MESSAGE:]
        if name == "failure":
            return "failed", message
        if name == "error":
            return "error", message
        if name == "skipped":
            return ("xfailed" if "xfail" in (child.get("type") or "") else "skipped"), message
    return "passed", ""


def local(element):
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def from_output(channel, command):
    """Run a command and read TAP from its output, passing it on."""
    tap = Tap(channel)
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    out = getattr(sys.stdout, "buffer", sys.stdout)
    for line in iter(process.stdout.readline, b""):
        out.write(line)
        out.flush()
        tap.line(line.decode("utf-8", "replace"))
    code = process.wait()
    tap.finish()
    return code


def from_files(channel, pattern, command):
    """Run a command and read the files that it writes."""
    files = Files(channel, pattern)
    done = threading.Event()

    def follow():
        while not done.wait(POLL):
            files.follow()

    thread = threading.Thread(target=follow)
    process = subprocess.Popen(command)
    thread.start()
    code = process.wait()
    done.set()
    thread.join()
    files.finish()
    return code


def main(report, command):
    channel = _ponyswarm_channel.claim("command")
    try:
        if channel is None:
            return subprocess.call(command)
        code = (
            from_output(channel, command) if report == "-" else from_files(channel, report, command)
        )
    except OSError as fault:
        sys.stderr.write("%s does not start: %s\n" % (command[0], fault))
        return 127
    channel.finish(code)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
