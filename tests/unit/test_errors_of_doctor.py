"""What `ponyswarm doctor` says of whatever is not well, and the line to copy that it gives."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from told import shown

from ponyswarm import config
from ponyswarm.cli import doctor
from ponyswarm.exec.sandbox import Holds
from ponyswarm.exec.services.service import Offer, Options
from ponyswarm.home import Home

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc/sys is Linux's")


def said(checks: Iterable[doctor.Check]) -> list[str]:
    return [" → ".join(filter(None, (check.what, check.remedy))) for check in checks]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home.under(tmp_path / "home")
    made.create()
    return made


# --- the home ---------------------------------------------------------------------------------


def test_a_home_that_was_never_set_up(tmp_path: Path) -> None:
    home = Home.under(tmp_path / "none")
    shown("… is missing: this home is not set up → ponyswarm init", *said(doctor._home(home)))
    shown("there is none → ponyswarm init", *said(doctor._key(home)))
    shown("there are none → ponyswarm init", *said(doctor._settings(home)[1]))


@linux
def test_a_home_that_cannot_be_written(home: Home) -> None:
    sealed = replace(home, cache_dir=Path("/proc/sys"))  # Not even root may write there.
    shown(
        "/proc/sys cannot be written → chown -R … /proc/sys",
        *said(doctor._home(sealed)),
    )


def test_a_home_that_is_open_to_others(home: Home) -> None:
    home.config_dir.chmod(0o755)
    shown("… is open to other users → chmod 700 …", *said(doctor._home(home)))


def test_files_that_are_open_to_others(home: Home) -> None:
    home.key.write_text("11" * 32)
    home.key.chmod(0o644)
    shown("other users can read … → chmod 600 …", *said(doctor._key(home)))
    config.write(home.ini, config.template())
    home.ini.chmod(0o662)
    shown("other users can change … → chmod 600 …", *said(doctor._settings(home)[1]))


def test_settings_that_trust_nobody(home: Home) -> None:
    config.write(home.ini, config.template())
    shown(
        "…; no project is trusted, so nothing will run here → ponyswarm trust add PROJECT_ID",
        *said(doctor._settings(home)[1]),
    )


# --- running jobs -----------------------------------------------------------------------------


def test_limits_without_control_groups() -> None:
    holds = Holds(
        bubblewrap="/usr/bin/bwrap", version="0.8", root=True, memory="rlimit", processes="watch"
    )
    shown(
        "memory by rlimit, processes by watch: no control group is delegated, so a watch over the "
        "sum must do → systemd-run --user --scope -p Delegate=yes ponyswarm node",
        *said(doctor._sandbox(holds)),
    )


def uv(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> list[str]:
    """What is said of a package uv whose program is this."""
    program = folder / "uv"
    if text is not None:
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setattr("uv.find_uv_bin", lambda: str(program))
    return said([trio.run(doctor._uv)])


def test_a_uv_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown(
        "… does not start: there is no such program; install it → python3 bootstrap.py setup",
        *uv(tmp_path, monkeypatch, None),
    )
    shown(
        "… does not run (exit code 3: broken) → python3 bootstrap.py setup",
        *uv(tmp_path, monkeypatch, "echo broken; exit 3"),
    )


def test_pythons_that_are_not_here(tmp_path: Path) -> None:
    def interpreters(path: str) -> list[str]:
        settings = config.Settings(interpreters={"mine": Path(path)})
        return said(trio.run(doctor._interpreters, settings))

    shown(
        "there is no Python that jobs could use → uv python install 3.12",
        *interpreters(str(tmp_path / "none")),
    )
    shown(
        "…: not here, jobs that ask for them are left to others → uv python install …",
        *interpreters(sys.executable),
    )


def test_services_that_are_not_offered_or_do_not_work() -> None:
    found = Offer(name="redis", version="7.0", how="started for each job")
    service = partial(doctor._service, "redis", found)
    shown(
        "7.0, started for each job: could be offered → write 'redis = yes' under [services] in "
        "ponyswarm.ini",
        *said([service({}, {})]),
    )
    shown(
        "7.0, started for each job, but: it does not start",
        *said([service({"redis": Options()}, {"redis": "it does not start"})]),
    )


# --- the machine ------------------------------------------------------------------------------


def test_too_little_room(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK", 1 << 62)
    checks = said(doctor._room(home, config.Settings(slots=100_000)))
    shown("… GiB free for caches, and 1 GiB is the least → df -h …", *checks)
    shown(
        "… GiB, of which runs may take … → lower 'slots', or 'memory' and 'disk' under [limits] in "
        "ponyswarm.ini",
        *checks,
    )


def test_a_port_that_is_taken(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        shown(
            "/ip4/127.0.0.1/tcp/…: Address already in use → ss -ltnp 'sport = :…'",
            *said(doctor._ports(home, config.Settings(listen=(address,)))),
        )


def test_a_program_to_notify_that_cannot_be_run(tmp_path: Path) -> None:
    program = tmp_path / "tell"
    program.touch()
    shown(
        "… is no program that can be run → chmod +x …",
        *said(doctor._notify(config.Settings(notify=f"{program} --loud"))),
    )
    shown(
        "there is no program … → set 'command' under [notify] in ponyswarm.ini to one that is here",
        *said(doctor._notify(config.Settings(notify=f"{tmp_path}/none"))),
    )


def test_what_only_a_running_node_knows(home: Home) -> None:
    shown(
        "whether others can reach this machine is found out by a running node → ponyswarm node",
        *said(doctor._reach(home)),
    )
