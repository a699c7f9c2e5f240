"""Pages that run: the commands of README and docs, typed as written into one shell a page.

A fenced block is run when its language is ``sh`` (commands, each of which must succeed) or
``console`` (commands after ``$ ``, with the output that must follow; ``…`` stands for any
text within a line, a line that is only ``…`` for any lines). A word after the language says
more: ``stays`` runs a command that does not end, such as a node, until the page is over.

What cannot run here says so where readers see it: the paragraph before the block is in
italics and begins "Not run by the tests:", with the reason. A comment at the top of a page,
``<!-- begins: NAME -->``, names what a reader is supposed to have (`GIVEN`).
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
SECONDS = 90.0
STAYS_SECONDS = 40.0
NOT_RUN = "Not run by the tests:"
LANGUAGES = ("sh", "console", "bash", "shell")


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a page, and what it must print; None: anything."""

    page: str
    line: int
    command: str
    output: str | None
    stays: bool = False
    may_fail: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A page's steps, what it begins with, and the blocks that are not run, with reasons."""

    name: str
    begins: str
    steps: tuple[Step, ...]
    not_run: tuple[tuple[int, str], ...]


def all_pages() -> list[Path]:
    names = ["README.md", "CONTRIBUTING.md"]
    pages = [ROOT / name for name in names] + sorted((ROOT / "docs").rglob("*.md"))
    return [page for page in pages if "adr" not in page.parts]


def read(path: Path) -> Page:
    """Parse a page. `ValueError` names the line of a block that cannot be understood."""
    text = path.read_text("utf-8")
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    begins = re.search(r"<!-- begins: ([a-z ]+) -->", text)
    steps: list[Step] = []
    not_run = []
    before = ""
    for token in MarkdownIt("commonmark").parse(text):
        if token.type == "inline":
            before = token.content
        elif token.type == "fence":
            language, *words = token.info.split() or [""]
            line = (token.map or [0])[0] + 2
            reason = re.fullmatch(rf"\*{NOT_RUN}\s+(.{{10,}})\*", before, re.DOTALL)
            before = ""
            if language not in LANGUAGES:
                continue
            if language in ("bash", "shell") or set(words) - {"stays"}:
                raise ValueError(f"{name}:{line}: write 'sh' or 'console', with 'stays' or nothing")
            if reason:
                not_run.append((line, " ".join(reason[1].split())))
                continue
            parse = _console if language == "console" else _commands
            steps += parse(name, line, token.content, stays="stays" in words)
    return Page(name, begins[1] if begins else "", tuple(steps), tuple(not_run))


def _commands(page: str, line: int, text: str, *, stays: bool) -> Iterator[Step]:
    """The complete commands of a script: lines are joined until the shell is content."""
    command = ""
    first = line
    for number, one in enumerate(text.splitlines(), line):
        command, first = (f"{command}\n{one}", first) if command else (one, number)
        if not command.strip() or command.strip().startswith("#"):
            command = ""
        elif _is_complete(command):
            yield Step(page, first, command, None, stays)
            command = ""
    if command:
        raise ValueError(f"{page}:{first}: not a complete command: {command!r}")


def _is_complete(command: str) -> bool:
    done = subprocess.run(["bash", "-n"], input=command, capture_output=True, text=True)
    return done.returncode == 0 and "here-document" not in done.stderr and command[-1] != "\\"


def _console(page: str, line: int, text: str, *, stays: bool) -> Iterator[Step]:
    found: list[tuple[int, list[str], list[str]]] = []
    for number, one in enumerate(text.splitlines(), line):
        if one.startswith("$ "):
            found.append((number, [one[2:]], []))
        elif not found:
            raise ValueError(f"{page}:{number}: a console block begins with '$ '")
        elif one.startswith("> ") and not found[-1][2]:
            found[-1][1].append(one[2:])
        else:
            found[-1][2].append(one)
    for index, (number, command, output) in enumerate(found):
        following = found[index + 1][1][0] if index + 1 < len(found) else ""
        yield Step(
            page,
            number,
            "\n".join(command),
            "\n".join(output),
            stays,
            may_fail=following == "echo $?",
        )


def matches(wanted: str, printed: str, *, begins: bool = False) -> bool:
    """Whether output is as shown; ``begins``: it may go on after that."""
    pattern = ""
    for line in wanted.strip("\n").splitlines():
        if line.strip() == "…":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            parts = (re.escape(part) for part in line.rstrip().split("…"))
            pattern += "[^\n]*?".join(parts) + r"[ \t]*\n"
    printed = "".join(f"{line}\n" for line in printed.strip("\n").splitlines())
    match = re.match if begins else re.fullmatch
    return match(pattern, printed) is not None


class Shell:
    """One bash for a page, in a home and a folder of its own."""

    def __init__(self, folder: Path, extra: dict[str, str]) -> None:
        self.folder = folder
        home = folder / "home"
        work = folder / "work"
        home.mkdir(parents=True)
        work.mkdir()
        self.environment = {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "COLUMNS": "100",
            "TMPDIR": str(folder),
            "GIT_AUTHOR_NAME": "you",
            "GIT_AUTHOR_EMAIL": "you@example.org",
            "GIT_COMMITTER_NAME": "you",
            "GIT_COMMITTER_EMAIL": "you@example.org",
            # Tests share a machine: nothing may listen where others could reach it.
            "PONYSWARM_INIT_LISTEN": "/ip4/127.0.0.1/tcp/0",
            "PONYSWARM_WEB_PORT": "0",
            # Where packages come from is the machine's affair.
            **{k: v for k, v in os.environ.items() if k.startswith(("UV_", "PIP_", "SSL_"))},
            **extra,
        }
        self.work = work
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=work,
            env=self.environment,
            start_new_session=True,
        )
        self._stuck = False
        self._staying: list[tuple[Step, int, Path]] = []
        self._count = 0

    def run(self, step: Step) -> None:
        """Type one command and judge what comes of it; `AssertionError` shows where and why."""
        if step.stays:
            self._start(step)
            return
        code, printed = self.type(step.command)
        where = f"{step.page}:{step.line}: {step.command}"
        assert code == 0 or step.may_fail, f"{where}\nended with {code}:\n{printed}"
        if step.output is not None:
            assert matches(step.output, printed), (
                f"{where}\nshould print:\n{step.output}\nprinted:\n{printed}"
            )

    def type(self, command: str, seconds: float = SECONDS) -> tuple[int, str]:
        """(exit code, everything printed) of a command; the next sees its ``$?``."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._count += 1
        script = self.folder / f"command-{self._count}"
        script.write_text(command + "\n", "utf-8")
        mark = f"done-{os.getpid()}-{self._count}"
        line = (
            f'text=$(cat {script}); (exit ${{code:-0}}); {{ eval "$text"; }} </dev/null; code=$?; '
            f"printf '\\n%s %d\\n' {mark} $code\n"
        )
        self._bash.stdin.write(line.encode())
        self._bash.stdin.flush()
        printed = b""
        deadline = time.monotonic() + seconds
        pattern = re.compile(rb"\n" + mark.encode() + rb" (\d+)\n")
        while not (ended := pattern.search(printed)):
            left = deadline - time.monotonic()
            text = printed.decode("utf-8", "replace")
            self._stuck = left <= 0
            assert left > 0, f"{command!r} did not end in {seconds:g} s; it printed:\n{text}"
            if select.select([self._bash.stdout], [], [], min(left, 1.0))[0]:
                data = os.read(self._bash.stdout.fileno(), 65536)
                assert data, f"the shell ended at {command!r}:\n{text}"
                printed += data
        return int(ended[1]), printed[: ended.start()].decode("utf-8", "replace")

    def _start(self, step: Step) -> None:
        log = self.folder / f"stays-{len(self._staying)}"
        code, printed = self.type(f"(exec {step.command}) >{log} 2>&1 & echo $!")
        assert code == 0, printed
        pid = int(printed.split()[-1])
        log.touch()
        self._staying.append((step, pid, log))
        deadline = time.monotonic() + STAYS_SECONDS
        # Whatever it is, it says something once it is there.
        while not matches(step.output or "…\n…", text := log.read_text("utf-8"), begins=True) or (
            not text
        ):
            assert time.monotonic() < deadline, (
                f"{step.page}:{step.line}: {step.command}\nshould print:\n{step.output}\n"
                f"printed:\n{log.read_text('utf-8')}"
            )
            time.sleep(0.2)

    def close(self) -> None:
        """End what stays, in good order, then the shell and whatever it left."""
        try:
            for step, pid, log in () if self._stuck else reversed(self._staying):
                self.type(f"kill -TERM {pid}")
                code, _ = self.type(f"wait {pid}", 20)
                text = log.read_text("utf-8")
                assert code == 0, f"{step.page}:{step.line} ended with {code}:\n{text}"
                assert "Traceback" not in text, f"{step.page}:{step.line}:\n{text}"
        finally:
            if self._bash.poll() is None:
                os.killpg(self._bash.pid, signal.SIGKILL)
            self._bash.wait()
            for stream in (self._bash.stdin, self._bash.stdout):
                if stream is not None:
                    stream.close()


Given = Callable[[Shell], None]
