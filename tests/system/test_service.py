"""`ponyswarm service` with a real systemd: a user's manager in namespaces of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ponyswarm import background

SYSTEMD = next((one for one in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
                if Path(one).exists()), "")  # fmt: skip
TOOLS = all(shutil.which(name) for name in ("systemctl", "unshare", "mount"))

# A manager for the user alone, as at a login. It and all that it starts end with the PID
# namespace; /run is its own, so that a systemd of this machine hears nothing of it.
MANAGER = """
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
mkdir -m 700 /run/user
export XDG_RUNTIME_DIR=/run/user
{systemd} --user --log-level=warning --log-target=console &
until systemctl --user is-system-running --wait >/dev/null; do sleep 0.2; done
"""
EVENING = """
{ponyswarm} init --yes --listen /ip4/127.0.0.1/tcp/0
{ponyswarm} service install
systemctl --user is-enabled {unit}
until {ponyswarm} status | grep listens; do sleep 0.5; systemctl --user is-active {unit}; done
systemctl --user show -P MainPID {unit}
{ponyswarm} service remove
systemctl --user is-active {unit} || echo and stopped
{ponyswarm} status
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not (SYSTEMD and TOOLS and os.geteuid() == 0), reason="needs root and systemd")
def test_systemd_starts_the_node_that_was_installed_and_forgets_the_one_removed(
    tmp_path: Path,
) -> None:
    ponyswarm = f"{sys.executable} -m ponyswarm --home {tmp_path}/'its home'"
    script = (MANAGER + EVENING).format(systemd=SYSTEMD, ponyswarm=ponyswarm, unit=background.UNIT)
    done = subprocess.run(
        ["unshare", "-mpf", "--mount-proc", "--kill-child", "bash", "-ec", script],
        capture_output=True,
        text=True,
        timeout=280,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "inactive\nand stopped" in done.stdout
    assert "No node runs on this home" in done.stdout
    assert not list((tmp_path / ".config").rglob(background.UNIT))
