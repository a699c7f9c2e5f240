"""The real suites of ``examples/``, through ``ponyswarm run`` and through real nodes.

Each case is a ``[tool.ponyswarm]`` file and an entry of ``examples/cases.toml``, which says
where its source comes from and what each of its cells should give. Through a node means: a
maintainer's home announces it, a volunteer's node in a home of its own runs it, and the
counts are those that ``ponyswarm results --json`` prints in the maintainer's home. Both
ways must give one outcome digest. ``--write`` puts what was seen into the table of
``docs/cases.md``. `tests/system/test_cases.py` runs the same functions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from ponyswarm import config
from ponyswarm.demo import Member, Swarm, minor, open_swarm
from ponyswarm.errors import PonySwarmError
from ponyswarm.exec import index
from ponyswarm.exec.interpreters import Installed, discover
from ponyswarm.ledger.queries import Reader

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "cases.md"
BEGIN, END = "<!-- python -m bench.cases -->\n", "<!-- end -->\n"
COLUMNS = (
    *("case", "cell", "outcome", "tests, s", "before, s", "digest"),
    *("through a node, s", "its digest", "seen"),
)
SERVICES = ("postgresql", "postgis", "mariadb", "redis", "memcached")
STATUSES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
NODE_SECONDS = 4 * 3600
# On a machine whose owner is at work, too.
READY_SECONDS = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One suite, and what is known of it.

    ``seen`` are the counts of every cell but those that ``differs`` names, by words that
    they have in their name ("3.6", "mariadb"); ``bad`` says of each test that does not
    pass why, ``flaky`` of those that may or may not. ``ci`` cases run with every run of
    the tests, that way.
    """

    name: str
    source: str
    version: str
    sha256: str
    seen: Mapping[str, int]
    differs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    bad: Mapping[str, str] = field(default_factory=dict)
    flaky: Mapping[str, str] = field(default_factory=dict)
    pythons: tuple[str, ...] = ("3.12",)
    ci: str = ""

    @property
    def spec(self) -> Path:
        return EXAMPLES / self.name / "ponyswarm.toml"

    def sdist(self, folder: Path) -> Path:
        """Its source, fetched from the index once and checked by its hash."""
        return index.fetch_sdist(self.source, self.version, self.sha256, folder)

    def expected(self, cell: str) -> Mapping[str, int]:
        words = set(cell.split())
        fitting = [key for key in self.differs if set(key.split()) <= words]
        best = max(fitting, key=lambda key: len(key.split()), default=None)
        return self.seen if best is None else self.differs[best]

    def wrong(self, ran: Ran) -> str:
        """In what a cell that was run is not as it should be; "" when it is."""
        if ran.state != "completed":
            return f"{self.name} {ran.cell}: broken, {ran.detail}"
        counts, wanted = Counter(ran.counts), Counter(self.expected(ran.cell))
        unlucky = len(set(ran.bad) & set(self.flaky))
        counts.update(passed=unlucky, failed=-unlucky)
        unexplained = sorted(set(ran.bad) - set(self.bad) - set(self.flaky))
        if counts != wanted:
            named = f"; nothing explains {unexplained}" if unexplained else ""
            return f"{self.name} {ran.cell}: {dict(ran.counts)}, expected {dict(wanted)}{named}"
        return f"{self.name} {ran.cell}: nothing explains {unexplained}" if unexplained else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What one cell gave, one way. Seconds: of the tests, and of all before them."""

    cell: str
    state: str
    detail: str = ""
    counts: Mapping[str, int]
    bad: tuple[str, ...]
    digest: str
    seconds: float = 0.0
    before: float = 0.0


def load(path: Path = EXAMPLES / "cases.toml") -> dict[str, Case]:
    """The cases by name."""
    cases = {}
    for name, facts in tomllib.loads(path.read_text("utf-8")).items():
        facts["pythons"] = tuple(facts.get("pythons", ("3.12",)))
        cases[name] = Case(name=name, **facts)
    return cases


def interpreters(case: Case) -> dict[str, Installed]:
    """The latest interpreter here for each Python that a case is run with."""
    by_name: dict[str, Installed] = {}
    for one in sorted(discover(), key=lambda one: tuple(map(int, one.version.split(".")[:3]))):
        if not one.free_threaded:
            by_name[minor(one)] = one
            if one.implementation == "pypy":
                by_name["pypy3"] = one
    return {name: by_name[name] for name in case.pythons if name in by_name}


def name_of(cell: Mapping[str, object]) -> str:
    """A cell's name from its JSON: Python, services, factors."""
    services, factors = cell["services"], cell["factors"]
    assert isinstance(services, list)
    assert isinstance(factors, dict)
    return " ".join([str(cell["python"]), *services, *(f"{k}={v}" for k, v in factors.items())])


# --- through ``ponyswarm run`` ----------------------------------------------------------------


def through_run(case: Case, home: Path, *, at_once: int = 1) -> list[Ran]:
    """Run a case's matrix with ``ponyswarm run`` on this home."""
    command = [sys.executable, "-m", "ponyswarm", "--home", str(home), "run"]
    command += [str(case.sdist(home / "sdists")), "--spec", str(case.spec), "--json"]
    command += ["-j", str(at_once), *(word for p in case.pythons for word in ("--python", p))]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"{case.name} was not run: {done.stderr[-2000:]}") from None
    return [_ran(cell) for cell in told["cells"] if cell["state"] != "not run"]


def _ran(cell: Mapping[str, object]) -> Ran:
    steps, bad = cell["steps"], cell["bad"]
    assert isinstance(steps, dict)
    assert isinstance(bad, list)
    tests = float(steps.get("test", 0.0))
    return Ran(
        cell=name_of(cell),
        state=str(cell["state"]),
        detail=f"{cell['reason']}: {cell['detail']} {cell['culprit']}",
        counts=cell["counts"],  # type: ignore[arg-type]
        bad=tuple(test["id"] for test in bad),
        digest=str(cell["digest"]),
        seconds=tests,
        before=sum(steps.values()) - tests,
    )


# --- through real nodes -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Nodes:
    """A maintainer, whose node runs nothing, and a volunteer who offers all that is here."""

    swarm: Swarm
    maintainer: Member
    volunteer: Member

    def run(self, case: Case) -> Iterator[Ran]:
        """Announce a case, and read each cell's result from the ledger as it comes."""
        announced = time.monotonic()
        sdist = str(case.sdist(self.swarm.root / "sdists"))
        said = self.swarm.command(
            self.maintainer,
            *("announce", sdist, "-p", "cases", "--spec", str(case.spec), "--json"),
        )
        job = json.loads(said)["job"]
        done: set[str] = set()
        pythons = interpreters(case)
        held = wanted = 0
        while len(done) < wanted or not wanted:
            if time.monotonic() - announced > NODE_SECONDS:
                raise RuntimeError(f"{case.name} did not end in {NODE_SECONDS} s")
            time.sleep(1)
            self.swarm.check(self.volunteer)
            # A command a second would take more of the CPU than a suite's own share.
            with Reader(self.maintainer.home.ledger) as ledger:
                before, held = held, ledger.count()
            if before == held:
                continue
            told = self._told(job)
            wanted = sum(cell["python"] in pythons for cell in told)
            for ran in _results(told):
                if ran.cell not in done:
                    done.add(ran.cell)
                    yield ran

    def _told(self, job: str) -> list[dict[str, object]]:
        said = subprocess.run(
            [
                *(sys.executable, "-m", "ponyswarm", "--home", str(self.maintainer.folder)),
                *("results", "cases", "--job", job, "--json"),
            ],
            capture_output=True,
            text=True,
        )
        # 1 and 3 are verdicts, and two keys would be needed for a confirmed one.
        return json.loads(said.stdout)["cells"] if said.returncode in (0, 1, 3) else []


def _results(told: Sequence[Mapping[str, object]]) -> Iterator[Ran]:
    """The cells of a job that were run, as ``results --json`` tells of them."""
    for cell in told:
        broken, bad = cell["broken"], cell["bad"]
        assert isinstance(bad, list)
        if cell["digest"] or broken:
            yield Ran(
                cell=name_of(cell),
                state="completed" if cell["digest"] else "broken",
                detail=str(broken),
                counts=cell["counts"],  # type: ignore[arg-type]
                bad=tuple(bad),
                digest=str(cell["digest"]),
                seconds=float(cell["seconds"]),  # type: ignore[arg-type]
            )


@contextmanager
def open_nodes(pythons: Sequence[Installed]) -> Iterator[Nodes]:
    """Start the two nodes, in homes of their own."""
    with open_swarm(lambda text: None) as swarm:
        swarm.patience = READY_SECONDS
        maintainer = swarm.member("maintainer", pythons[:1])
        volunteer = swarm.member("volunteer", pythons)
        offer_all(volunteer)
        made = swarm.command(maintainer, "project", "create", "cases", "--json")
        swarm.command(volunteer, "trust", "add", json.loads(made)["project"])
        swarm.start(maintainer, [], "--read-only")
        swarm.start(volunteer, [swarm.address(maintainer)])
        swarm.wait_for(maintainer, lambda now: any(p.volunteers for p in now.projects))
        yield Nodes(swarm, maintainer, volunteer)


def offer_all(member: Member) -> None:
    """Let a member offer whatever is installed here, and weigh runs as ``ponyswarm run`` does."""
    text = member.home.ini.read_text("utf-8")
    lines = "".join(f"{name} = yes\n" for name in SERVICES)
    text = text.replace("[services]\n", f"[services]\n{lines}")
    config.write(member.home.ini, text.replace("cpu_weight = 50\n", "cpu_weight = 100\n"))


# --- the table --------------------------------------------------------------------------------


Row = tuple[str, ...]


def row(case: Case, by_run: Ran | None, by_node: Ran | None) -> Row:
    """A row of the table; the columns of a way that was not gone are empty."""
    ran = by_run or by_node
    assert ran is not None
    return (
        f"{case.source} {case.version}" + f" ({case.name})" * (case.name != case.source),
        ran.cell,
        outcome(ran),
        "" if by_run is None else f"{by_run.seconds:.1f}",
        "" if by_run is None else f"{by_run.before:.1f}",
        "" if by_run is None else f"`{by_run.digest[:8]}`",
        "" if by_node is None else f"{by_node.seconds:.1f}",
        "" if by_node is None else f"`{by_node.digest[:8]}`",
        datetime.now(UTC).date().isoformat(),
    )


def line(columns: Sequence[str]) -> str:
    return "| " + " | ".join(columns) + " |\n"


def outcome(ran: Ran) -> str:
    if ran.state != "completed":
        return f"broken, {ran.detail}"
    return ", ".join(f"{ran.counts[name]:,} {name}" for name in STATUSES if ran.counts.get(name))


def write(one: Row, page: Path = PAGE) -> Row:
    """Put a row into the page's table in place of that of its case and cell; as it is then.

    What a row leaves empty stays as it was.
    """
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    held = {}
    for text in table.splitlines()[2:]:
        columns = tuple(part.strip() for part in text.strip("|").split(" | "))
        held[columns[:2]] = columns
    old = held.get(one[:2], ("",) * len(COLUMNS))
    merged = held[one[:2]] = tuple(new or kept for new, kept in zip(one, old, strict=True))
    lines = [line(COLUMNS), line(["---"] * len(COLUMNS)), *map(line, held.values())]
    page.write_text(before + BEGIN + "".join(lines) + END + after, "utf-8")
    return merged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="cases of examples/cases.toml (default: all)")
    parser.add_argument("--home", type=Path, help="of 'ponyswarm run', kept (default: a new one)")
    parser.add_argument("--way", choices=["both", "run", "node"], default="both")
    parser.add_argument("--python", action="append", help="only of these (default: the case's)")
    parser.add_argument("--write", action="store_true", help="update docs/cases.md")
    chosen = parser.parse_args()
    cases = load()
    picked = [cases[name] for name in chosen.names] or list(cases.values())
    if chosen.python:
        picked = [replace(case, pythons=tuple(chosen.python)) for case in picked]
    faults: list[str] = []
    digests: dict[tuple[str, ...], str] = {}

    def keep(case: Case, ran: Ran, way: str) -> None:
        """Print a row, and write it at once: what ends us later loses none of it."""
        one = row(case, ran if way == "run" else None, ran if way == "node" else None)
        print(line(one), end="", flush=True)
        if chosen.write:
            one = write(one)
        digest = f"`{ran.digest[:8]}`"
        other = digests.setdefault(one[:2], one[5] or one[7])
        if other != digest:
            faults.append(f"{case.name} {ran.cell}: {other} by run, {digest} through a node")
        if wrong := case.wrong(ran):
            faults.append(wrong)

    with ExitStack() as stack:
        home = chosen.home or Path(stack.enter_context(tempfile.TemporaryDirectory("", "cases-")))
        print(line(COLUMNS), end="", flush=True)
        for case in picked:
            try:
                if chosen.way != "node":
                    for ran in through_run(case, home):
                        keep(case, ran, "run")
                if chosen.way != "run":
                    with open_nodes(list(interpreters(case).values())) as nodes:
                        for ran in nodes.run(case):
                            keep(case, ran, "node")
            except (RuntimeError, PonySwarmError) as fault:
                faults.append(f"{case.name}: {fault}")
    sys.exit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
