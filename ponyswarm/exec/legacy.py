"""Python 2.7: what today's tools no longer do for it, done by old ones that are kept apart.

uv still resolves for it and unpacks its wheels, but neither makes an environment nor builds
with it: a virtualenv release that does lives in an environment of its own, pinned by hash in
``legacy.txt``, and a project is built by the last pip for 2.7, inside the sandbox as ever.
Called by `environment` and `resolve`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from ponyswarm.exec import process, source
from ponyswarm.exec.interpreters import Installed
from ponyswarm.exec.outcome import Broken
from ponyswarm.exec.process import Ended, Patience
from ponyswarm.messages import Reason

UvRun = Callable[[list[str]], Awaitable[Ended]]

PINS = Path(__file__).with_name("legacy.txt")
CREATE_SECONDS = 120.0
# Beside what a project's build asks for itself.
BUILD_TOOLS = ("pip",)
BUILD = """\
set -eu
cp -R --preserve=mode,timestamps,links /source /project/src
cd /project/src
/env/bin/python -m pip --disable-pip-version-check --no-cache-dir install --no-index --no-deps \
    --no-build-isolation --target /project/install .
tar -c -f - -C /project/install . > /channels/installed
"""


def needed(interpreter: Installed) -> bool:
    return interpreter.version.startswith("2.")


def target(interpreter: Installed) -> list[str]:
    """How uv is told to resolve and install for it, from a Python that uv can run."""
    return ["--python", sys.executable, "--python-version", interpreter.version]


async def create(uv_run: UvRun, tools: Path, folder: Path, interpreter: Installed) -> None:
    """Make an empty environment. Raises `Broken` (install)."""
    python = await _virtualenv(uv_run, tools)
    ended = await process.run(
        [
            *(str(python), "-I", "-m", "virtualenv", str(folder), "--python", interpreter.path),
            *("--no-seed", "--activators", "", "--no-periodic-update", "--no-vcs-ignore"),
            *("--app-data", str(tools / "app-data")),
        ],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tools), "VIRTUALENV_CONFIG_FILE": os.devnull},
        patience=Patience(seconds=CREATE_SECONDS),
    )
    if not ended.good:
        detail = f"no environment for Python {interpreter.version}"
        raise Broken(Reason.INSTALL, detail, ended.output)


async def _virtualenv(uv_run: UvRun, tools: Path) -> Path:
    """The Python of the environment in which the old virtualenv is, made when it is not there."""
    place = tools / f"virtualenv-{_version()}"
    python = place / "bin" / "python"
    if python.exists():
        return python
    partial = place.with_name(f"{place.name}.partial-{os.getpid()}")
    tools.mkdir(parents=True, exist_ok=True)
    try:
        for arguments in (
            ["venv", "--quiet", "--relocatable", "--python", sys.executable, str(partial)],
            [
                *("pip", "install", "--quiet", "--python", str(partial / "bin" / "python")),
                *("--require-hashes", "--no-build", "--no-config", "-r", str(PINS)),
            ],
        ):
            ended = await uv_run(arguments)
            if not ended.good:
                detail = "the old virtualenv for Python 2.7 cannot be installed"
                raise Broken(Reason.INSTALL, detail, ended.output)
        if not place.exists():
            partial.rename(place)
    finally:
        source.remove(partial)
    return python


def _version() -> str:
    return PINS.read_text().partition("virtualenv==")[2].split()[0]
