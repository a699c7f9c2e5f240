"""A home's folders, and what lies where."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from ponyswarm.errors import LocalError
from ponyswarm.home import Home

PATHS = [name for name, item in vars(Home).items() if isinstance(item, property)]


def test_one_folder_holds_everything(tmp_path):
    home = Home.locate(tmp_path / "home", {})
    for name in PATHS:
        assert getattr(home, name).is_relative_to(tmp_path / "home")
    assert home.ini == tmp_path / "home" / "ponyswarm.ini"
    assert home.ledger == tmp_path / "home" / "ledger.db"


def test_no_two_things_share_a_path_and_the_fence_is_away_from_the_journal(tmp_path):
    home = Home.under(tmp_path)
    assert len({getattr(home, name) for name in PATHS}) == len(PATHS)
    assert home.fence.parent != home.journal.parent


def test_the_option_goes_before_the_variable_and_that_before_the_platform(tmp_path):
    environ = {"PONYSWARM_HOME": str(tmp_path / "variable")}
    assert Home.locate(tmp_path / "option", environ).config_dir == tmp_path / "option"
    assert Home.locate(None, environ).config_dir == tmp_path / "variable"
    assert Home.locate(None, {"PONYSWARM_HOME": ""}) == Home.locate(None, {})


@pytest.mark.skipif(os.name != "posix" or os.uname().sysname != "Linux", reason="XDG folders")
def test_the_platform_folders(tmp_path, monkeypatch):
    for name in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    home = Home.locate(None, {})
    assert home.key == tmp_path / "config" / "ponyswarm" / "key"
    assert home.ledger == tmp_path / "data" / "ponyswarm" / "ledger.db"
    assert home.fence == tmp_path / "state" / "ponyswarm" / "fence"
    assert home.scratch == tmp_path / "cache" / "ponyswarm" / "scratch"


def test_a_relative_home_is_made_absolute_and_a_tilde_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Home.locate("here", {}).config_dir == tmp_path / "here"
    assert Home.locate("~/there", {}).config_dir == Path("~/there").expanduser()


def test_create_makes_closed_folders(tmp_path):
    home = Home.under(tmp_path / "a" / "b")
    home.create()
    home.create()
    for folder in (home.config_dir, home.state_dir, home.cache_dir):
        assert folder.is_dir()
        if os.name == "posix":
            assert folder.stat().st_mode & 0o077 == 0


def test_create_says_what_is_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match="--home DIR"):
        Home.under(tmp_path / "file" / "home").create()


def test_a_home_is_frozen(tmp_path):
    with pytest.raises(FrozenInstanceError):
        Home.under(tmp_path).data_dir = tmp_path
