"""``ponyswarm doctor``: every fault is named beside a line that mends it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ponyswarm import config
from ponyswarm.cli import main
from ponyswarm.cli.doctor import CURRENT
from ponyswarm.exec.interpreters import discover
from ponyswarm.volunteer import choose_interpreter


def doctor(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--home", str(home), "doctor", *arguments])


def checks(home: Path, *arguments: str) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    result = doctor(home, "--json", *arguments)
    data = json.loads(result.stdout)
    bad = any(check["state"] == "bad" for check in data["checks"])
    assert (data["good"], result.exit_code) == ((False, 2) if bad else (True, 0))
    for check in data["checks"]:
        found.setdefault(check["name"], []).append(check)
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listen = f"/ip4/127.0.0.1/tcp/{port}"
    runner = CliRunner()
    result = runner.invoke(main, ["--home", str(folder), "init", "--yes", "--listen", listen])
    assert result.exit_code == 0, result.output
    return folder


def offer(home: Path, *lines: str) -> None:
    path = home / "ponyswarm.ini"
    config.write(
        path, path.read_text().replace("[services]\n", "\n".join(["[services]", *lines, ""]))
    )


def test_a_home_that_is_not_there_is_what_to_begin_with(tmp_path: Path) -> None:
    found = checks(tmp_path / "none", "--quick")
    for name in ("home", "key", "settings"):
        assert (found[name][0]["state"], found[name][0]["remedy"]) == ("bad", "ponyswarm init")


def test_a_new_home_is_good_and_says_what_could_be_offered(home: Path) -> None:
    found = checks(home, "--quick")
    assert not any(check["state"] == "bad" for one in found.values() for check in one)
    assert found["settings"][0]["remedy"] == "ponyswarm trust add PROJECT_ID"
    assert found["sqlite"][0]["state"] == "good"
    assert found["postgresql"][0]["state"] == "not offered"
    assert found["postgresql"][0]["remedy"]
    assert {"sandbox", "limits", "uv", "interpreter", "disk", "memory", "port"} <= set(found)
    absent = [one for one in CURRENT if choose_interpreter(one, discover()) is None]
    told = [check for check in found["interpreter"] if check["state"] == "not offered"]
    assert [check["remedy"] for check in told] == (
        [f"uv python install {' '.join(absent)}"] if absent else []
    )


def test_what_others_could_read_or_change_is_named_with_its_remedy(home: Path) -> None:
    (home / "key").chmod(0o644)
    (home / "ponyswarm.ini").chmod(0o622)
    home.chmod(0o755)
    found = checks(home, "--quick")
    assert found["key"][0]["remedy"] == f"chmod 600 {home / 'key'}"
    assert found["settings"][0]["remedy"] == f"chmod 600 {home / 'ponyswarm.ini'}"
    assert found["home"][0]["remedy"] == f"chmod 700 {home}"


def test_an_offered_service_that_does_not_work_says_why(home: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    offer(
        home,
        *("postgresql = yes", "postgresql.bin = /nowhere", "redis = yes", "redis.host = /run/x"),
        *("mssql = yes", f"mssql.password_file = {secret}"),
    )
    found = checks(home, "--quick")
    assert "/nowhere has no postgres" in found["postgresql"][0]["what"]
    assert found["redis"][0]["remedy"] == "remove redis.host, and one is started for each job"
    assert found["mssql"][0]["remedy"] == f"chmod 600 {secret}"
    assert "mssql.host" in found["mssql"][1]["what"]
    offer(home, "frobnicator = yes")
    assert "frobnicator" in checks(home, "--quick")["services"][0]["what"]


def test_an_offered_service_is_really_used(home: Path) -> None:
    offer(home, "redis = yes")
    found = checks(home)
    if found["redis"][0]["what"].startswith("redis-server is not installed"):
        pytest.skip("redis is not here")
    assert (found["redis"][0]["state"], found["sqlite"][0]["state"]) == ("good", "good")
    assert found["redis"][0]["what"].endswith("tried")


def test_a_port_that_is_taken_is_named(home: Path) -> None:
    listen = config.load(home / "ponyswarm.ini").listen[0]
    port = int(listen.rpartition("/")[2])
    with socket.create_server(("127.0.0.1", port)):
        found = checks(home, "--quick")
    assert found["port"][0]["state"] == "bad"
    assert str(port) in found["port"][0]["remedy"]


def test_people_get_a_line_a_check_and_an_arrow_before_what_to_copy(home: Path) -> None:
    (home / "key").chmod(0o644)
    shown = doctor(home, "--quick").stdout
    assert f"→ chmod 600 {home / 'key'}\n" in shown
    assert shown.splitlines()[-1] == "1 to mend: the lines after an arrow help"
