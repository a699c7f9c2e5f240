"""From a project on disk to an announcement: pack its source, read its spec, pin its locks.

Nothing of the project runs here. `cli.announce` signs what `prepare` gives and hands it
to peers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ponyswarm.codec import encode_locks
from ponyswarm.errors import LocalError, PeerError
from ponyswarm.exec import source
from ponyswarm.exec.environment import Environments
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.resolve import resolve
from ponyswarm.matrix import cells
from ponyswarm.messages import Cell, Lock, Spec
from ponyswarm.runs import describe_cell
from ponyswarm.spec import from_pyproject
from ponyswarm.volunteer import choose_interpreter, minor_version

MAX_SOURCE = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A source archive and what it is called."""

    data: bytes
    name: str
    title: str
    commit: str
    spec: Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """The locks blob, and the interpreters' names for which no lock could be made here."""

    data: bytes
    count: int
    without: tuple[str, ...]


def pack(path: Path, *, commit: str, spec_file: Path | None) -> Packed:
    """Read a git checkout at a commit, or an sdist; `LocalError` says what is missing."""
    if path.is_dir():
        if not (path / ".git").exists():
            raise LocalError(
                f"{path} is no git checkout: announce a checkout or an sdist (.tar.gz)"
            )
        data, commit_id = source.pack(path, commit)
        name = f"{path.resolve().name}.tar.gz"
    else:
        data, commit_id = path.read_bytes(), ""
        name = path.name
    if len(data) > MAX_SOURCE:
        raise LocalError(f"the source is {len(data)} bytes, and {MAX_SOURCE} is the most")
    with tempfile.TemporaryDirectory(prefix="ponyswarm-announce-") as folder:
        tree = _unpacked(data, name, Path(folder))
        called = source.named(tree)
        if spec_file is not None:
            spec = from_pyproject(spec_file.read_text("utf-8"), spec_file.name)
        else:
            text = source.read_text(tree, "pyproject.toml")
            if text is None:
                raise LocalError(
                    f"{path} has no pyproject.toml: add one with a [tool.ponyswarm] table, or "
                    "name a file that has one by --spec"
                )
            spec = from_pyproject(text)
    title = " ".join(part for part in (called.name or path.stem, called.version) if part)
    return Packed(data=data, name=name[:100], title=title, commit=commit_id, spec=spec)


def _unpacked(data: bytes, name: str, folder: Path) -> Path:
    archive = folder / "source"
    archive.write_bytes(data)
    try:
        return source.unpack(archive, folder / "tree")
    except PeerError as fault:
        raise LocalError(f"{name} is not a source archive that can be used: {fault}") from fault


async def lock(
    packed: Packed,
    installed: Sequence[Installed],
    *,
    before: int,
    cache: Path,
    progress: Callable[[int, int, str], None],
) -> Locked:
    """Pin what each cell installs, for the interpreters of this machine.

    A cell whose Python is not here gets no lock: its volunteers resolve for themselves, as
    of the announcement's time. Raises `LocalError` when a cell cannot be resolved at all.
    """
    wanted: dict[tuple[str, str, tuple[tuple[str, str], ...]], tuple[Cell, Installed]] = {}
    without: dict[str, None] = {}
    for cell in cells(packed.spec):
        found = choose_interpreter(cell.python, installed)
        if found is None:
            without[cell.python] = None
        else:
            key = (found.implementation, minor_version(found), cell.factors)
            wanted.setdefault(key, (cell, found))
    locks: list[Lock] = []
    with tempfile.TemporaryDirectory(prefix="ponyswarm-announce-") as folder:
        tree = _unpacked(packed.data, packed.name, Path(folder))
        environments = Environments(cache)
        for done, (cell, found) in enumerate(wanted.values()):
            progress(done, len(wanted), describe_cell(cell))
            locks.append(
                await resolve(
                    environments,
                    tree=tree,
                    spec=packed.spec,
                    cell=cell,
                    interpreter=found,
                    resolve_before=before,
                )
            )
    return Locked(data=encode_locks(locks), count=len(locks), without=tuple(without))
