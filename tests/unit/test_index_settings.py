"""Which package index is in use: the owner's choice, however it was told to other tools."""

from __future__ import annotations

import pytest

from ponyswarm.exec import index


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    for name in (*index.CHOOSING, "XDG_CONFIG_DIRS", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "xdg"))
    index._named.cache_clear()
    index.url.cache_clear()
    yield
    index._named.cache_clear()
    index.url.cache_clear()


def pip_conf(path, address):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[global]\ntimeout = 60\nindex-url = {address}/simple/\n")
    return path


def test_pips_own_files_name_the_index_and_the_nearest_wins(tmp_path, monkeypatch):
    pip_conf(tmp_path / "xdg" / "pip" / "pip.conf", "https://site.example")
    pip_conf(tmp_path / "config" / "pip" / "pip.conf", "https://user.example")
    assert index.url() == "https://user.example/simple"
    assert index.environment()["UV_DEFAULT_INDEX"] == "https://user.example/simple"
    index._named.cache_clear()
    chosen = pip_conf(tmp_path / "other.conf", "https://chosen.example")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(chosen))
    assert index.environment()["UV_DEFAULT_INDEX"] == "https://chosen.example/simple"


def test_the_environment_wins_over_files(tmp_path, monkeypatch):
    pip_conf(tmp_path / "config" / "pip" / "pip.conf", "https://user.example")
    monkeypatch.setenv("PIP_INDEX_URL", "https://environment.example/simple")
    assert index.url() == "https://environment.example/simple"


def test_a_damaged_file_and_none_leave_uv_its_own_default(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_pip_files", lambda: iter([tmp_path / "pip.conf"]))
    (tmp_path / "pip.conf").write_bytes(b"\xff[global")
    assert "UV_DEFAULT_INDEX" not in index.environment()
    assert index.url().startswith("https://")
