"""What is published: a wheel and an sdist that hold everything and install as a tool."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from ponyswarm import __version__
from ponyswarm.exec.environment import uv_binary

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def uv(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [uv_binary(), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, **environ},
    )
    if done.returncode and "No route" in done.stderr + "dns error" * 0:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this checkout and the wheel made from it."""
    out = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--out-dir", str(out), str(ROOT))
    return out


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", *folders],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).exists()}


def test_the_wheel_holds_every_file_of_the_package_the_peers_and_the_manual(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert tracked("ponyswarm") <= names
    assert "ponyswarm/bootstrap_peers.txt" in names
    assert f"ponyswarm-{__version__}.data/data/share/man/man1/ponyswarm.1" in names
    assert not [name for name in names if name.startswith(("tests/", "bench/"))]


def test_the_sdist_holds_what_git_tracks(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    missing = {name for name in tracked() if not Path(name).name.startswith(".git")} - names
    assert not missing
    assert not [name for name in names if ".venv" in name or "node_modules" in name]


def test_the_wheel_installs_as_a_tool_of_its_own(built: Path, tmp_path: Path) -> None:
    """As docs/installing.md says: with the override, and without a compiler."""
    (wheel,) = built.glob("*.whl")
    overrides = tmp_path / "overrides.txt"
    document = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    overrides.write_text("\n".join(document["tool"]["uv"]["override-dependencies"]) + "\n")
    assert overrides.read_text().strip() in (ROOT / "docs" / "installing.md").read_text("utf-8")
    places = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    uv(
        *("tool", "install", "--quiet", "--python", sys.executable),
        *("--overrides", str(overrides), str(wheel)),
        CC="/bin/false",
        **places,
    )
    command = str(tmp_path / "bin" / "ponyswarm")

    def types(*words: str) -> str:
        return subprocess.run(
            [command, "--home", str(tmp_path / "home"), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        ).stdout

    assert types("--version") == f"ponyswarm {__version__}\n"
    assert "announce" in types("--help")
    assert "settings" in types("init", "--yes", "--listen", "/ip4/127.0.0.1/tcp/0")
    assert "offers" in types("node", "--dry-run")
    assert list((tmp_path / "tools").rglob("share/man/man1/ponyswarm.1"))
