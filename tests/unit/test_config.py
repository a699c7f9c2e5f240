"""ponyswarm.ini: what is read from it, what is refused, and edits that keep the comments."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponyswarm import config
from ponyswarm.errors import LocalError

A, B, C = (bytes([n]) * 32 for n in (0xAA, 0xBB, 0xCC))
PEER = "/ip4/192.0.2.7/tcp/7797/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


def test_an_empty_file_means_the_defaults():
    assert config.parse("") == config.Settings()


def test_the_template_says_what_holds_without_it():
    assert config.parse(config.template()) == config.Settings()


def test_every_key_is_in_the_template():
    text = config.template()
    for section, keys in config._KEYS.items():
        body = text.split(f"[{section}]")[1].split("\n[")[0]
        for key in keys:
            assert f"\n{key} =" in body


def test_the_templates_commented_services_can_be_used():
    text = (
        config.template().replace("\n# postgresql", "\npostgresql").replace("\n# maria", "\nmaria")
    )
    services = config.parse(text.replace("\n# redis", "\nredis")).services
    assert set(services) == {"postgresql", "mariadb", "redis"}
    assert services["postgresql"].options["host"] == "/run/postgresql"
    assert services["postgresql"].password_file is not None
    assert services["mariadb"].password_env == "PONYSWARM_MARIADB_PASSWORD"


def test_the_template_takes_what_init_found():
    text = config.template(
        listen="/ip6/::/tcp/1",
        slots=3,
        memory=512 << 20,
        interpreters={"cpython-3.12.1": "/a b/py"},
    )
    settings = config.parse(text)
    assert settings.listen == ("/ip6/::/tcp/1",)
    assert settings.slots == 3
    assert settings.limits.memory == 512 << 20
    assert settings.interpreters == {"cpython-3.12.1": Path("/a b/py")}


def test_a_full_file():
    settings = config.parse(f"""
        [node]
        listen = /ip4/127.0.0.1/tcp/0
            /ip6/::1/tcp/7797
        slots = 4
        [limits]
        memory = 1.5 GiB
        disk = 500 MB
        time = 1 h 30 min
        silence = 90
        [trust]
        projects =
            {A.hex()}  # Django
            # between
            {B.hex().upper()}
        [follow]
        projects = {A.hex()}, {C.hex()}
        [network]
        peers =
            {PEER}
            /dnsaddr/bootstrap.example.org
        bootstrap = no
    """.replace("\n        ", "\n"))  # fmt: skip
    assert settings.listen == ("/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/7797")
    assert (settings.slots, settings.bootstrap) == (4, False)
    assert settings.limits.memory == 3 << 29
    assert settings.limits.disk == 500_000_000
    assert (settings.limits.time, settings.limits.silence) == (5400, 90)
    assert settings.trusted == {A, B}
    assert settings.followed == {A, B, C}
    assert settings.peers == (PEER, "/dnsaddr/bootstrap.example.org")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[nod]\n", ("[nod]", "did you mean 'node'?")),
        ("[zebra]\n", ("[zebra]", "it can be node,")),
        ("[node]\nslot = 2", ("[node]", "'slot'", "did you mean 'slots'?")),
        ("[node]\nslots = many", ("[node] slots = 'many'", "whole number from 1 to 1024")),
        ("[node]\nslots = 0", ("slots = '0'",)),
        ("[node]\nlisten = 0.0.0.0:7797", ("[node] listen", "/ip4/0.0.0.0/tcp/7797")),
        ("[node]\nlisten = /ip4/1.2.3.4/tcp/70000", ("listen",)),
        ("[node]\nlisten = /ip6/1.2.3.4/tcp/7", ("listen",)),
        ("[limits]\nmemory = 2", ("[limits] memory = '2'", "'2 GiB'")),
        ("[limits]\nmemory = 1 KiB", ("too little", "64 MiB")),
        ("[limits]\nmemory = -1 GiB", ("no size",)),
        ("[limits]\ntime = soon", ("[limits] time = 'soon'", "'30 min'")),
        ("[limits]\ntime = 3 moons", ("'moons'", "write s, min, h or d")),
        ("[network]\nbootstrap = maybe", ("[network] bootstrap = 'maybe'", "yes or no")),
        ("[trust]\nprojects = abc123", ("[trust] projects", "6 digits", "64")),
        ("[trust]\nprojects = Django", ("'Django'", "64 hexadecimal digits")),
        ("[network]\npeers = example.org", ("[network] peers", "no peer address")),
        ("[network]\npeers = /ip4/1.2.3.4/tcp/1", ("which peer",)),
        ("[network]\npeers = /ip4/1.2.3.4/tcp/1/p2p/Qm", ("[network] peers", "12D3KooW")),
        ("[interpreters]\nmine = python3", ("[interpreters] mine", "full path")),
        ("[services]\npostgresql.password = x", ("password_file", "password_env", "no secret")),
        ("[services]\npostgresql.prot = 1", ("did you mean 'port'?",)),
        ("[services]\npostgresql = perhaps", ("yes or no",)),
        ("[services]\nredis.host =", ("redis.host is empty",)),
        ("[services]\na.password_env = A\na.password_file = b", ("keep one",)),
        ("[services]\nPost Gres = yes", ("no service's name",)),
        ("slots = 2", ("no ini file",)),
        ("[node]\nslots = 1\nslots = 2", ("no ini file", "already exists")),
        ("[node]\n[node]\n", ("no ini file",)),
    ],
)  # fmt: skip
def test_a_fault_says_where_what_and_what_to_do(text, words):
    with pytest.raises(LocalError) as caught:
        config.parse(text, "my.ini")
    assert "my.ini" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_secret_is_not_repeated_in_the_error():
    with pytest.raises(LocalError) as caught:
        config.parse("[services]\nmariadb.password = hunter2\n")
    assert "hunter2" not in str(caught.value)


def test_a_service_that_is_off_is_not_there():
    assert not config.parse("[services]\nredis = no\nredis.port = 1\n").services


def test_percent_signs_and_colons_are_plain_text():
    settings = config.parse("[interpreters]\nwin = /c:/%PY%/python\n")
    assert settings.interpreters == {"win": Path("/c:/%PY%/python")}


def test_a_file_that_is_missing_or_no_text(tmp_path):
    with pytest.raises(LocalError, match="ponyswarm init"):
        config.load(tmp_path / "ponyswarm.ini")
    (tmp_path / "latin").write_bytes(b"[node]\n# caf\xe9\n")
    with pytest.raises(LocalError, match="UTF-8"):
        config.load(tmp_path / "latin")
    with pytest.raises(LocalError, match="cannot be read"):
        config.load(tmp_path)
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbf[node]\nslots = 2\n")
    assert config.load(tmp_path / "bom").slots == 2


@pytest.mark.parametrize(
    ("text", "size"),
    [("2 GiB", 2 << 30), ("500 MB", 500_000_000), ("1.5G", 3 << 29), ("64kib", 65536), ("7 B", 7)],
)
def test_sizes(text, size):
    assert config.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30 min", 1800), ("90", 90), ("90 s", 90), ("2 days", 172_800), ("1h30min", 5400),
     ("1 hour, 5 seconds", 3605), ("0.5 h", 1800)],
)  # fmt: skip
def test_durations(text, seconds):
    assert config.parse_duration(text) == seconds


@given(st.integers(0, 1 << 49))
def test_sizes_are_written_as_they_are_read(size):
    assert config.parse_size(config.format_size(size)) == size


@given(st.text())
def test_any_text_is_settings_or_a_local_error(text):
    with contextlib.suppress(LocalError):
        config.parse(text)


@given(st.text(), st.sampled_from(["slots", "listen"]))
def test_any_value_is_a_setting_or_a_local_error(text, key):
    with contextlib.suppress(LocalError):
        config.parse(f"[node]\n{key} = {text}")


@pytest.mark.parametrize("parse", [config.parse_size, config.parse_duration, config.check_listen])
@given(text=st.text())
def test_values_fail_in_one_way(parse, text):
    with contextlib.suppress(ValueError):
        parse(text)


# --- edits ---------------------------------------------------------------------------------


@pytest.fixture
def ini(tmp_path):
    path = tmp_path / "ponyswarm.ini"
    config.write(path, config.template())
    return path


def test_adding_and_removing_gives_the_same_file_back(ini):
    before = ini.read_text()
    assert config.add_project(ini, "trust", A, "Django")
    assert config.add_project(ini, "trust", B)
    assert not config.add_project(ini, "trust", A, "again")
    assert config.projects(ini, "trust") == [(A, "Django"), (B, "")]
    assert config.load(ini).trusted == {A, B}
    assert config.remove_project(ini, "trust", A)
    assert not config.remove_project(ini, "trust", A)
    assert config.projects(ini, "trust") == [(B, "")]
    assert config.remove_project(ini, "trust", B)
    assert ini.read_text() == before


def test_an_edit_changes_its_own_line_only(ini):
    before = ini.read_text().splitlines()
    config.add_project(ini, "follow", C, "a note # with a mark\nand a line")
    after = ini.read_text().splitlines()
    new = [line for line in after if line not in before]
    assert new == [f"    {C.hex()}  # a note # with a mark and a line"]
    assert [line for line in after if line not in new] == before


def test_an_owners_way_of_writing_is_kept(tmp_path):
    path = tmp_path / "my.ini"
    path.write_text(
        f"; mine\n[trust]\nprojects =\n    # friends\n    {A.hex()}, {B.hex()}  # two\n"
        "\n# last words\n[node]\nslots = 2\n"
    )
    config.add_project(path, "trust", C)
    config.remove_project(path, "trust", A)
    assert path.read_text() == (
        f"; mine\n[trust]\nprojects =\n    # friends\n    {B.hex()}  # two\n    {C.hex()}\n"
        "\n# last words\n[node]\nslots = 2\n"
    )


@pytest.mark.parametrize("text", ["", "[node]\nslots = 2\n", "[trust]\n", "[trust]\nprojects ="])
def test_a_section_or_key_that_is_missing_is_added(tmp_path, text):
    path = tmp_path / "my.ini"
    path.write_text(text)
    assert config.add_project(path, "trust", A)
    assert config.load(path).trusted == {A}
    assert text.strip() in path.read_text()
    assert config.remove_project(path, "trust", A)
    assert config.load(path).trusted == set()


def test_a_broken_file_is_not_edited(tmp_path):
    path = tmp_path / "my.ini"
    path.write_text("[node]\nslots = many\n")
    with pytest.raises(LocalError, match="slots"):
        config.add_project(path, "trust", A)
    assert path.read_text() == "[node]\nslots = many\n"


@pytest.mark.skipif(os.name != "posix", reason="modes and links")
def test_a_written_file_is_closed_and_a_link_stays_one(tmp_path):
    real = tmp_path / "dotfiles" / "real.ini"
    link = tmp_path / "ponyswarm.ini"
    link.symlink_to(real)
    config.write(link, config.template())
    real.chmod(0o644)
    config.add_project(link, "trust", A)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    assert sorted(item.name for item in real.parent.iterdir()) == ["real.ini"]


def test_a_file_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match="cannot be written"):
        config.write(tmp_path / "file" / "my.ini", "")


def test_a_volunteers_limits_are_read_and_faults_say_what_to_write():
    text = "[volunteer]\nhours = mon-fri 19:00-08:00\nload = 0.5\nbattery = yes\nfloor = 5 GiB\n"
    wishes = config.parse(text).volunteer
    assert (len(wishes.hours), wishes.load, wishes.battery) == (1, 0.5, True)
    assert wishes.floor == 5 << 30
    assert config.parse("").volunteer.hours == ()
    for line, said in (("hours = late", "22:00-07:00"), ("load = much", "such as 0.5")):
        with pytest.raises(LocalError, match=said):
            config.parse(f"[volunteer]\n{line}\n")
