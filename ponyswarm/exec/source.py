"""Source archives: unpacked safely, made reproducibly, and what they are called.

An archive is a stranger's: names that leave the folder, devices, bombs by size, by
count or by depth, all raise `PeerError` ("source") before they cost more than the
limits below. Nothing of a project is ever run here. Called by `executor`, `resolve`,
`environment` (an installed project comes out of its sandbox as a tar), and by who
announces a job.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import stat
import subprocess
import tarfile
import tomllib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from ponyswarm.errors import LocalError, PeerError

if TYPE_CHECKING:
    from email.message import Message

MAX_BYTES = 1 << 30
MAX_MEMBERS = 200_000
MAX_PATH = 1_000
MAX_DEPTH = 60
METADATA_BYTES = 4 << 20
HEADER_BYTES = 1 << 18
HEADER_TYPES = (b"L", b"K", b"x", b"g", b"X")
# Wheels cannot hold times before 1980; the first second of 2000 is as good as any.
FIXED_TIME = 946_684_800


@dataclass(frozen=True, slots=True)
class Named:
    """What a source tree says it is; "" where only running its code would tell."""

    name: str
    version: str


def unpack(archive: Path, into: Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """Unpack a .tar.gz (any tar) or .zip into a new folder; the project's own folder in it.

    An archive with one top folder, as every sdist has, gives that folder.
    """
    into.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive) and not _is_tar(archive):
            _unpack_zip(archive, into, max_bytes)
        else:
            _unpack_tar(archive, into, max_bytes)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, ValueError) as fault:
        raise PeerError("source", f"not a sound archive: {fault}") from fault
    except NotImplementedError as fault:
        raise PeerError("source", f"an archive of an unknown kind: {fault}") from fault
    except (gzip.BadGzipFile, FileExistsError, NotADirectoryError, IsADirectoryError) as fault:
        raise PeerError("source", f"not a sound archive: {fault}") from fault
    for folder in [into, *(path for path in into.rglob("*") if path.is_dir())]:
        if not folder.is_symlink():
            folder.chmod(0o755)
    if not any(into.iterdir()):
        raise PeerError("source", "the archive is empty")
    return top(into)


def top(folder: Path) -> Path:
    """The project's own folder of an unpacked archive: its one top folder, or all of it."""
    entries = list(folder.iterdir())
    if len(entries) == 1 and entries[0].is_dir() and not entries[0].is_symlink():
        return entries[0]
    return folder


class _Budget:
    """What an archive may still cost."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = max_bytes
        self.members = MAX_MEMBERS

    def member(self, name: str, size: int) -> None:
        self.members -= 1
        if self.members < 0:
            raise PeerError("source", f"more than {MAX_MEMBERS} files")
        path = PurePosixPath(name)
        if "\0" in name or "\\" in name or path.is_absolute() or ".." in path.parts:
            raise PeerError("source", f"a name that leaves the folder: {name[:100]!r}")
        if len(name) > MAX_PATH or len(path.parts) > MAX_DEPTH:
            raise PeerError("source", f"a name too long or too deep: {name[:100]!r}…")
        self.spend(size)

    def spend(self, size: int) -> None:
        self.bytes -= size
        if self.bytes < 0 or size < 0:
            raise PeerError("source", "larger than allowed once unpacked")


def _is_tar(archive: Path) -> bool:
    with archive.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _unpack_tar(archive: Path, into: Path, max_bytes: int) -> None:
    # By hand: tarfile's own filters are missing from the 3.11 of some distributions.
    budget = _Budget(max_bytes)
    with tarfile.open(archive, "r|*", tarinfo=_Member) as tar:
        for member in tar:
            budget.member(member.name, member.size)
            target = into / member.name
            if target == into:
                continue
            _make_parents(into, target)
            if member.isdir():
                _make_parents(into, target / "x")
            elif member.issym():
                _check_link(member.name, member.linkname)
                target.symlink_to(member.linkname)
            elif member.islnk():
                _link(into, member.linkname, target)
            elif member.isreg():
                _write(tar.extractfile(member), target, member.mode)
                if 0 < member.mtime < 1 << 33:
                    os.utime(target, (member.mtime, member.mtime))
            else:
                raise PeerError("source", f"neither file, folder nor link: {member.name[:100]!r}")


def _make_parents(into: Path, target: Path) -> None:
    """Make the folders above a target; a link among them would lead elsewhere."""
    for folder in reversed(target.relative_to(into).parents):
        place = into / folder
        if place.is_symlink():
            raise PeerError("source", f"a file below a link: {str(target.name)[:100]!r}")
        place.mkdir(exist_ok=True)


def _check_link(name: str, to: str) -> None:
    path = os.path.normpath(os.path.join(os.path.dirname(name), to))
    if os.path.isabs(to) or path == ".." or path.startswith("../") or len(to) > MAX_PATH:
        raise PeerError("source", f"a link that leaves the folder: {name[:100]!r}")


def _link(into: Path, to: str, target: Path) -> None:
    """A hard link names an earlier file of the archive."""
    _Budget(0).member(to, 0)
    original = into / to
    _make_parents(into, original)
    if original.is_symlink() or not original.is_file():
        raise PeerError("source", f"a hard link to nothing: {to[:100]!r}")
    os.link(original, target)


def _write(source: IO[bytes] | None, target: Path, mode: int) -> None:
    """Readable by the job's own id, writable by nobody else, and never set-uid."""
    assert source is not None
    with target.open("xb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    target.chmod(0o755 if mode & stat.S_IXUSR else 0o644)


class _Member(tarfile.TarInfo):
    """tarfile reads long names and extended headers into memory, whatever their size."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size > HEADER_BYTES and self.type in HEADER_TYPES:
            raise tarfile.ReadError("a header of absurd size")
        parsed: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return parsed


def _unpack_zip(archive: Path, into: Path, max_bytes: int) -> None:
    budget = _Budget(max_bytes)
    with zipfile.ZipFile(archive) as zip_:
        for member in zip_.infolist():
            budget.member(member.filename, 0)
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise PeerError("source", f"neither file nor folder: {member.filename[:100]!r}")
            target = into / member.filename
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            _make_parents(into, target)
            with zip_.open(member) as source, target.open("xb") as file:
                # The size in the directory is only a claim.
                while chunk := source.read(1 << 20):
                    budget.spend(len(chunk))
                    file.write(chunk)
            target.chmod(0o755 if mode & stat.S_IXUSR else 0o644)


def remove(folder: Path) -> None:
    """Remove a tree whatever modes a stranger gave its folders."""

    def unlock(function: object, path: str, _fault: object) -> None:
        os.chmod(os.path.dirname(path), 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, 0o700)
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)

    if folder.exists():
        shutil.rmtree(folder, onerror=unlock)


# --- making one ------------------------------------------------------------------------


def pack(repository: Path, commit: str = "HEAD") -> tuple[bytes, str]:
    """A reproducible .tar.gz of what git tracks at a commit, and the commit's full id.

    Not ``git archive``: that leaves out, by ``export-ignore``, the tests of many
    projects. Submodules are left out.
    """
    try:
        resolved = _git(
            repository, "rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}"
        )
    except LocalError as fault:
        raise LocalError(
            f"there is no commit {commit!r} in {repository}: 'git log' shows those there are, and "
            "'git commit' makes a first one"
        ) from fault
    id_ = resolved.decode().strip()
    listing = _git(repository, "ls-tree", "-r", "-z", "--full-tree", id_)
    entries = sorted(_entries(listing))
    if not entries:
        raise LocalError(
            f"git tracks no file at {commit} in {repository}: 'git add' and 'git commit' some"
        )
    ids = "".join(f"{object_}\n" for _, _, object_ in entries).encode()
    blobs = io.BytesIO(_git(repository, "cat-file", "--batch", stdin=ids))
    return _archive((path, mode, _blob(blobs)) for path, mode, _ in entries), id_


def head(repository: Path) -> str:
    """The commit that is checked out; "" in a repository that has none yet."""
    try:
        return _git(repository, "rev-parse", "--verify", "HEAD").decode().strip()
    except LocalError:
        return ""


@dataclass(frozen=True, slots=True)
class WorkingTree:
    """A packed working tree, and the files that git does not track and so are not in it."""

    data: bytes
    left_out: tuple[str, ...]


def pack_working_tree(repository: Path) -> WorkingTree:
    """A reproducible .tar.gz of the files that git tracks, as they are on disk now.

    Changes that are not committed are in it; files never added to git are not, since
    nothing tells them from caches, builds and secrets.
    """
    tracked: dict[str, None] = {}
    for line in _git(repository, "ls-files", "-z", "--stage").split(b"\0"):
        if line:
            tracked.setdefault(os.fsdecode(line.partition(b"\t")[2]))
    others = _git(repository, "ls-files", "-z", "--others", "--exclude-standard").split(b"\0")
    files = [file for path in sorted(tracked) for file in _on_disk(repository, path)]
    if not files:
        raise LocalError(f"git tracks no file in {repository}: 'git add' some")
    return WorkingTree(_archive(iter(files)), tuple(os.fsdecode(name) for name in others if name))


def _on_disk(repository: Path, path: str) -> Iterator[tuple[str, str, bytes]]:
    """(path, git mode, data) of a tracked file; nothing of one deleted, or of a submodule."""
    place = repository / path
    try:
        mode = place.lstat().st_mode
        if stat.S_ISLNK(mode):
            yield path, "120000", os.fsencode(place.readlink())
        elif stat.S_ISREG(mode):
            yield path, "100755" if mode & stat.S_IXUSR else "100644", place.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as fault:
        raise LocalError(
            f"{place} cannot be read: {fault.strerror}; check who owns it, or 'git rm' it"
        ) from fault


def _archive(files: Iterator[tuple[str, str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0, filename="") as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path, mode, data in files:
            tar.addfile(*_member(path, mode, data))
    return buffer.getvalue()


def _entries(listing: bytes) -> Iterator[tuple[str, str, str]]:
    for line in listing.split(b"\0"):
        if line:
            facts, _, path = line.partition(b"\t")
            mode, kind, object_ = facts.decode().split()
            if kind == "blob":
                yield os.fsdecode(path), mode, object_


def _blob(stream: IO[bytes]) -> bytes:
    size = int(stream.readline().split()[2])
    data = stream.read(size)
    stream.read(1)
    return data


def _member(path: str, mode: str, data: bytes) -> tuple[tarfile.TarInfo, IO[bytes] | None]:
    member = tarfile.TarInfo(f"source/{path}")
    member.mtime = FIXED_TIME
    if mode == "120000":
        member.type = tarfile.SYMTYPE
        member.linkname = os.fsdecode(data)
        member.mode = 0o777
        return member, None
    member.mode = 0o755 if mode == "100755" else 0o644
    member.size = len(data)
    return member, io.BytesIO(data)


def _git(repository: Path, *arguments: str, stdin: bytes | None = None) -> bytes:
    try:
        done = subprocess.run(
            ["git", "-C", str(repository), *arguments],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        why = getattr(fault, "strerror", None) or "no answer within two minutes"
        raise LocalError(f"git does not run ({why}): install git, then try again") from fault
    if done.returncode != 0:
        why = done.stderr.decode("utf-8", "replace").strip()
        raise LocalError(f"git {arguments[0]} failed in {repository}: {why}")
    return done.stdout


# --- what it is called -----------------------------------------------------------------


def metadata(tree: Path) -> Message | None:
    """The core metadata of an sdist, or None for a tree that has none."""
    data = _read(tree, "PKG-INFO")
    if data is None:
        return None
    return _message(data)


@lru_cache(maxsize=8)
def _message(data: bytes) -> Message:
    from email.parser import BytesParser

    return BytesParser().parsebytes(data)


def pyproject(tree: Path) -> dict[str, object]:
    """pyproject.toml as a map, {} when there is none; `PeerError` when it is damaged."""
    data = _read(tree, "pyproject.toml")
    if data is None:
        return {}
    try:
        return _toml(data)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise PeerError("source", f"pyproject.toml cannot be read: {fault}") from fault


@lru_cache(maxsize=8)
def _toml(data: bytes) -> dict[str, object]:
    """Asked for many times a run, and slow to parse."""
    return tomllib.loads(data.decode("utf-8"))


def table(value: object, *names: str) -> dict[str, object]:
    """A nested table of parsed TOML, {} where something else stands."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def named(tree: Path) -> Named:
    """Name and version from what is written: metadata, pyproject.toml, setup.cfg, setup.py."""
    found = metadata(tree)
    project = table(pyproject(tree), "project")
    poetry = table(pyproject(tree), "tool", "poetry")
    written = _setup_texts(tree)

    def fact(name: str) -> str:
        places = (found.get(name) if found else None, project.get(name), poetry.get(name))
        for value in (*places, written.get(name)):
            if isinstance(value, str) and value and value != "UNKNOWN":
                return value.strip()[:100]
        return ""

    return Named(fact("name"), fact("version"))


def _setup_texts(tree: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for file, pattern in (
        ("setup.py", rb"\b(name|version)\s*=\s*[\"']([^\"']+)[\"']"),
        ("setup.cfg", rb"(?m)^(name|version)\s*=\s*([^\s:]+)\s*$"),
    ):
        for match in re.finditer(pattern, _read(tree, file) or b""):
            texts.setdefault(match[1].decode(), match[2].decode("utf-8", "replace"))
    return texts


def read_text(tree: Path, name: str) -> str | None:
    data = _read(tree, name)
    return data.decode("utf-8", "replace") if data is not None else None


def _read(tree: Path, name: str) -> bytes | None:
    path = tree / name
    # A link was proved to stay in the tree, but metadata has no reason to be one.
    if path.is_symlink() or not path.is_file() or path.stat().st_size > METADATA_BYTES:
        return None
    return path.read_bytes()
