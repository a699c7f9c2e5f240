"""What starts a node with the machine: files for systemd, launchd, Windows and Docker. Pure.

Each runs as the owner, at low priority, and is started again when it fails, but not when
it was stopped. Called by ``cli.service``, which writes them and asks the system.
"""

from __future__ import annotations

import plistlib
from collections.abc import Sequence
from xml.sax.saxutils import escape

UNIT = "ponyswarm.service"
LABEL = "org.ponyswarm.node"
TASK = "PonySwarm"


def systemd(command: Sequence[str], path: str) -> str:
    """A unit for ``systemd --user``. ``path`` is the PATH that jobs' servers are looked for in.

    Delegate gives the node a control group of its own, in which it bounds each job.
    """
    return f"""\
# Written by 'ponyswarm service install'.
[Unit]
Description=PonySwarm node: runs the tests of projects that its owner trusts
Documentation=https://github.com/ponyswarm/ponyswarm
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
ExecStart={" ".join(map(_systemd_word, command))}
Environment={_systemd_word(f"PATH={path}")}
Restart=on-failure
RestartSec=30
Delegate=yes
KillMode=mixed
TimeoutStopSec=60
Nice=10
CPUWeight=20
IOWeight=20

[Install]
WantedBy=default.target
"""


def _systemd_word(text: str) -> str:
    """One word of a unit file: '%' and '$' mean something there, spaces divide."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if any(c in text for c in " \t'\\\"") else text


def launchd(command: Sequence[str], path: str, log: str) -> bytes:
    """A launch agent of the user who is logged in."""
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": list(command),
            "EnvironmentVariables": {"PATH": path},
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 30,
            "ProcessType": "Background",
            "Nice": 10,
            "StandardOutPath": log,
            "StandardErrorPath": log,
        }
    )


def windows(command: Sequence[str], user: str) -> str:
    """A task of the Task Scheduler, started when its user logs on."""
    arguments = " ".join(_windows_word(word) for word in command[1:])
    return f"""\
<?xml version="1.0"?>
<Task version="1.3" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>PonySwarm node: runs the tests of projects that its owner trusts</Description>
  </RegistrationInfo>
  <Triggers>
    <LogonTrigger><Enabled>true</Enabled><UserId>{escape(user)}</UserId></LogonTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>{escape(user)}</UserId>
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>true</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>true</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>7</Priority>
    <RestartOnFailure><Interval>PT1M</Interval><Count>5</Count></RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{escape(command[0])}</Command>
      <Arguments>{escape(arguments)}</Arguments>
    </Exec>
  </Actions>
</Task>
"""


def _windows_word(text: str) -> str:
    return f'"{text}"' if " " in text else text


def dockerfile(version: str) -> str:
    """An image of a node. The sandbox needs namespaces, which Docker gives only when asked."""
    return f"""\
# A PonySwarm node. Build it, then run it with a volume for its home; the sandbox in which
# jobs run makes namespaces of its own, which Docker's default profiles forbid:
#   docker build -t ponyswarm .
#   docker run -d --name ponyswarm -v ponyswarm:/home/pony -p 7797:7797 --memory 4g \\
#     --security-opt seccomp=unconfined --security-opt apparmor=unconfined \\
#     --security-opt systempaths=unconfined ponyswarm
FROM python:3.12-slim-bookworm
RUN apt-get update \\
    && apt-get install -y --no-install-recommends bubblewrap git libseccomp2 \\
    && rm -rf /var/lib/apt/lists/*
COPY --from=ghcr.io/astral-sh/uv:latest /uv /usr/local/bin/uv
RUN echo 'fastecdsa>=3.0.1' > /tmp/overrides.txt \\
    && UV_TOOL_DIR=/opt UV_TOOL_BIN_DIR=/usr/local/bin \\
       uv tool install --overrides /tmp/overrides.txt 'ponyswarm=={version}'
RUN useradd --create-home --uid 1000 pony && install -d -o pony /home/pony/swarm
USER pony
ENV PONYSWARM_HOME=/home/pony/swarm
VOLUME /home/pony
EXPOSE 7797
STOPSIGNAL SIGTERM
CMD ["sh", "-c", "ponyswarm init --yes && exec ponyswarm node --log-format json"]
"""
