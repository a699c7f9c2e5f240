"""From a project on disk to an announcement: pack its source, read its spec, pin its locks.

Nothing of the project runs here. `cli.sending` signs a job made
of it and hands it to peers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from ponyswarm.spec import from_pyproject, has_table
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
    note: str = ""
    """What the person should know of it, such as a table that is not committed yet."""
    left_out: tuple[str, ...] = ()
    """Files of a working tree that git does not track."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """The locks blob, and the interpreters' names for which no lock could be made here."""

    data: bytes
    count: int
    without: tuple[str, ...]


def pack(path: Path, *, commit: str, spec_file: Path | None) -> Packed:
    """Read a git repository at a commit, or an sdist; `LocalError` says what is missing."""
    if path.is_dir():
        _check_repository(path)
        data, commit_id = source.pack(path, commit)
    else:
        data, commit_id = path.read_bytes(), ""
    return _packed(path, data, commit_id, spec_file)


def pack_working_tree(path: Path, *, spec_file: Path | None) -> Packed:
    """Read a git checkout as it is on disk; its ``commit`` is empty, since it is of none."""
    _check_repository(path)
    tree = source.pack_working_tree(path)
    return replace(_packed(path, tree.data, "", spec_file), left_out=tree.left_out)


def _check_repository(path: Path) -> None:
    bare = (path / "HEAD").is_file() and (path / "objects").is_dir()
    if not (path / ".git").exists() and not bare:
        raise LocalError(
            f"{path} is no git checkout: announce a checkout ('git init' makes one) or an sdist "
            "(.tar.gz)"
        )


def _packed(path: Path, data: bytes, commit: str, spec_file: Path | None) -> Packed:
    called = path.resolve().name.removesuffix(".git")
    name = f"{called}.tar.gz" if path.is_dir() else path.name
    if len(data) > MAX_SOURCE:
        raise LocalError(
            f"the source is {len(data)} bytes, and {MAX_SOURCE} is the most: take large files "
            "out of what git tracks, or announce an sdist without them"
        )
    note = ""
    with tempfile.TemporaryDirectory(prefix="ponyswarm-announce-") as folder:
        tree = _unpacked(data, name, Path(folder))
        try:
            named = source.named(tree)
        except PeerError as fault:
            raise LocalError(f"{path}: {fault.detail}; mend that file, then try again") from fault
        if spec_file is not None:
            spec = from_pyproject(spec_file.read_text("utf-8"), spec_file.name)
        else:
            text = source.read_text(tree, "pyproject.toml")
            if not has_table(text) and has_table(on_disk := _on_disk(path)):
                text = on_disk
                note = (
                    "[tool.ponyswarm] is not committed yet: the table in the working tree is "
                    "used; commit pyproject.toml"
                )
            if text is None:
                raise LocalError(
                    f"{path} has no pyproject.toml: 'ponyswarm init-project --write' makes one "
                    "with a [tool.ponyswarm] table; or name a file that has one by --spec"
                )
            spec = from_pyproject(text)
    title = " ".join(part for part in (named.name or called, named.version) if part)
    return Packed(data=data, name=name[:100], title=title, commit=commit, spec=spec, note=note)


def _on_disk(path: Path) -> str | None:
    try:
        return (path / "pyproject.toml").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _unpacked(data: bytes, name: str, folder: Path) -> Path:
    archive = folder / "source"
    archive.write_bytes(data)
    try:
        return source.unpack(archive, folder / "tree")
    except PeerError as fault:
        raise LocalError(
            f"{name} is not a source archive that can be used ({fault.detail}): announce a git "
            "checkout or an sdist as 'python -m build --sdist' makes it"
        ) from fault


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
