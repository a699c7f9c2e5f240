"""Dependencies that exist only as sdists: found, read and put in place, running nothing of them.

A maintainer names each with its version (``install.from_source``). Resolving still refuses
every build: uv is shown a stand-in wheel that holds nothing but what the sdist itself says
it needs, and the lock then pins the sdist. `environment` builds it in the sandbox, offline,
as it builds a project. Called by `resolve` and `environment`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from ponyswarm.errors import InfraError, LocalError, PeerError
from ponyswarm.exec import index, source
from ponyswarm.exec.bytecode import site_packages


@dataclass(frozen=True, slots=True)
class Sdist:
    """One that was fetched: canonical name, version, SHA-256 in hexadecimal, unpacked source."""

    name: str
    version: str
    sha256: str
    tree: Path


async def fetch(name: str, version: str, sha256: str | None, folder: Path) -> Sdist:
    """Download into a folder and unpack there; without a hash the index's own is believed.

    Raises `LocalError` when there is none or it is damaged, `InfraError` without an index.
    """
    fetched = partial(index.fetch_sdist, name, version, sha256, folder / "archives")
    try:
        # Who cancels need not wait for the index; the folder is swept in any case.
        archive = await trio.to_thread.run_sync(  # type: ignore[call-arg]
            fetched, abandon_on_cancel=True
        )
    except LocalError as fault:
        raise LocalError(f"{fault}: correct its name or version in install.from_source") from fault
    except InfraError as fault:
        raise InfraError(f"install.from_source, {name}: {fault}; check name and network") from fault
    try:
        tree = await trio.to_thread.run_sync(source.unpack, archive, folder / f"{name}-source")
    except PeerError as fault:
        raise LocalError(f"the sdist of {name} {version} is damaged: {fault}") from fault
    digest = await trio.to_thread.run_sync(_hash, archive)
    return Sdist(name, version, digest, tree)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_stand_in(sdist: Sdist, requires: tuple[str, ...], folder: Path) -> None:
    """A wheel for uv to resolve with: an sdist's name, version and needs, and no file of it."""
    stem = f"{sdist.name.replace('-', '_')}-{sdist.version}"
    lines = ["Metadata-Version: 2.1", f"Name: {sdist.name}", f"Version: {sdist.version}"]
    lines += [f"Requires-Dist: {' '.join(text.split())}" for text in requires]
    tags = ["Tag: py2-none-any", "Tag: py3-none-any"]
    with zipfile.ZipFile(folder / f"{stem}-py2.py3-none-any.whl", "w") as wheel:
        for name, text in {
            "METADATA": lines,
            "WHEEL": ["Wheel-Version: 1.0", "Root-Is-Purelib: true", *tags],
            "RECORD": [],
        }.items():
            wheel.writestr(f"{stem}.dist-info/{name}", "".join(f"{line}\n" for line in text))


def place(built: Path, environment: Path) -> None:
    """Copy what was built into a folder to where an environment has it.

    Raises `PeerError` ("installed-files") for what no wheel could hold, or for a file in the
    way of the environment's own: the build that left it there is a stranger's.
    """
    packages = site_packages(environment)[0]
    for root, folders, files in os.walk(built):
        inside = Path(root).relative_to(built)
        folders[:] = [name for name in folders if name != "__pycache__"]
        scripts = inside.parts[:1] == ("bin",)
        target = environment / inside if scripts else packages / inside
        for name in (*folders, *files):
            path = Path(root, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise PeerError("installed-files", f"neither file nor folder: {inside / name}")
            taken = os.path.lexists(target / name)
            wrong = taken and (target / name).is_dir() != path.is_dir()
            if wrong or (scripts and taken) or name.startswith("_ponyswarm"):
                raise PeerError("installed-files", f"its place is taken: {inside / name}")
        target.mkdir(exist_ok=True)
        for name in files:
            _copy(Path(root, name), target / name, scripts)


def _copy(path: Path, target: Path, script: bool) -> None:
    # Another package's file of the same name gives way, as with any installer.
    target.unlink(missing_ok=True)
    shutil.copy2(path, target, follow_symlinks=False)
    if not script:
        return
    head, newline, rest = path.read_bytes().partition(b"\n")
    if head.startswith(b"#!") and b"python" in head:
        # uv names the Python that ran it.
        target.write_bytes(b"#!/env/bin/python" + newline + rest)
    target.chmod(0o755)
