"""``project``, ``vouch`` and ``key rotate`` as people type them, on several homes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ponyswarm import keys
from ponyswarm.cli import main
from ponyswarm.home import Home
from ponyswarm.ledger.queries import Reader
from ponyswarm.ledger.store import Store

FAR = 1 << 52


class People:
    """Homes of several people, whose ledgers are brought together by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def say(self, who: str, *words: str, code: int = 0) -> str:
        found = CliRunner().invoke(main, ["--home", str(self.folder / who), *words])
        assert found.exit_code == code, found.output
        return found.output

    def ask(self, who: str, *words: str, code: int = 0) -> dict:
        found = json.loads(self.say(who, *words, "--json", code=code))
        return found[0] if isinstance(found, list) else found

    def key(self, who: str) -> str:
        home = Home.under(self.folder / who)
        if not home.key.exists():
            self.say(who, "key", "new")
        return keys.peer_id(keys.load(home.key).public)

    def meet(self, *names: str) -> None:
        """Everybody gets what the others have."""
        ledgers = [Home.under(self.folder / name).ledger for name in names]
        found = {}
        for path in filter(Path.exists, ledgers):
            with Reader(path) as reader:
                # Arrivals of one home are in an order that another can take them in.
                rows = sorted(reader.log(most=1000), key=lambda row: row.arrival)
                found |= {row.id: reader.entry(row.id) for row in rows}
        for path in ledgers:
            store = Store(path)
            for _ in range(2):
                for entry in found.values():
                    store.append(entry, FAR)
            store.close()


@pytest.fixture
def people(tmp_path: Path) -> People:
    return People(tmp_path)


def test_one_root_changes_the_record_alone(people):
    people.key("ada")
    people.say("ada", "project", "create", "demo", "--redundancy", "3")
    friend = people.key("bob")
    assert "may announce" in people.say("ada", "project", "add-maintainer", "demo", friend)
    assert people.ask("ada", "project", "show", "demo")["announcers"] == [friend]
    assert "already" in people.say("ada", "project", "add-maintainer", "demo", friend, code=2)
    gone = people.ask("ada", "project", "remove", "demo", friend)
    assert gone["in_force"]
    shown = people.ask("ada", "project", "show", "demo")
    assert (shown["announcers"], shown["redundancy"]) == ([], 3)
    people.say("ada", "project", "set", "demo", "--counts", "vouched", "--cross-check", "blind")
    shown = people.ask("ada", "project", "show", "demo")
    assert (shown["counts"], shown["mode"]) == ("vouched", "blind")
    assert "of vouched keys only" in people.say("ada", "project", "show", "demo")


def test_two_of_three_roots_change_the_record_together(people):
    ada, bob, eve, friend = (people.key(name) for name in ("ada", "bob", "eve", "friend"))
    roots = ("--root", bob, "--root", eve, "--threshold", "2")
    people.say("ada", "project", "create", "demo", *roots)
    said = people.say("ada", "project", "add-maintainer", "demo", friend)
    assert "1 more of its roots" in said
    assert "ponyswarm project approve demo" in said
    (open_,) = people.ask("ada", "project", "show", "demo")["proposals"]
    assert open_["changes"] == [f"announcer {friend} added"]
    assert open_["agreed"] == [ada]
    people.meet("ada", "bob", "eve")
    done = people.ask("bob", "project", "approve", "demo", open_["proposal"][:10])
    assert done["in_force"]
    people.meet("ada", "bob", "eve")
    for who in ("ada", "bob", "eve"):
        shown = people.ask(who, "project", "show", "demo")
        assert shown["announcers"] == [friend], who
        assert shown["proposals"] == []
    assert "no proposal" in people.say("eve", "project", "approve", "demo", code=2)


def test_a_proposal_that_was_overtaken_says_so(people):
    people.key("ada")
    bob, one, two = (people.key(name) for name in ("bob", "one", "two"))
    people.say("ada", "project", "create", "demo", "--root", bob, "--threshold", "2")
    first = people.ask("ada", "project", "add-maintainer", "demo", one)["proposal"]
    second = people.ask("ada", "project", "add-maintainer", "demo", two)["proposal"]
    assert "2 proposals" in people.say("ada", "project", "approve", "demo", code=2)
    people.meet("ada", "bob")
    people.say("bob", "project", "approve", "demo", first)
    assert "changed since" in people.say("bob", "project", "approve", "demo", second, code=2)
    assert "no force" in people.say("bob", "project", "show", "demo")


def test_who_has_no_right_is_told_whom_to_ask(people):
    people.key("ada")
    people.say("ada", "project", "create", "demo")
    eve = people.key("eve")
    people.meet("ada", "eve")
    said = people.say("eve", "project", "add-maintainer", "demo", eve, code=2)
    assert "does not allow this to your key" in said
    assert "only root" in people.say("ada", "project", "remove", "demo", people.key("ada"), code=2)
    said = people.say("ada", "project", "set", "demo", "--threshold", "2", code=2)
    assert "cannot be reached" in said
    assert "a key looks like" in people.say("ada", "project", "revoke", "demo", "nonsense", code=2)
    late = ("project", "revoke", "demo", eve, "--since", "yesterday")
    assert "is not a time" in people.say("ada", *late, code=2)


def test_a_revoked_key_is_shown_with_the_time_it_ended(people):
    people.key("ada")
    people.say("ada", "project", "create", "demo")
    eve = people.key("eve")
    said = people.ask("ada", "project", "revoke", "demo", eve, "--since", "2026-01-01T00:00+00:00")
    assert people.ask("ada", "project", "show", "demo")["revoked"] == {eve: said["since"]}
    assert "ended" in people.say("ada", "project", "show", "demo")


def test_a_rotated_key_keeps_its_rights_and_vouches(people):
    people.key("ada")
    people.say("ada", "project", "create", "demo")
    old = people.key("bob")
    people.say("ada", "project", "add-maintainer", "demo", old)
    people.say("ada", "vouch", "demo", old, "bob of demo")
    people.meet("ada", "bob")
    done = people.ask("bob", "key", "rotate")
    new = people.key("bob")
    assert (done["key"], done["before"]) == (new, old)
    assert keys.peer_id(keys.load(Path(done["kept"])).public) == old
    shown = people.ask("bob", "project", "show", "demo")
    assert shown["successors"] == {old: new}
    assert old in shown["revoked"]
    # The new key may do what the old one might.
    people.say("bob", "vouch", "demo", people.key("eve"), "eve")
    people.meet("ada", "bob")
    assert people.ask("ada", "project", "show", "demo")["operators"][people.key("eve")] == "eve"
    assert "goes on from" in people.say("ada", "project", "show", "demo")


def test_a_rotation_that_was_cut_short_goes_on_with_the_same_key(people):
    people.key("ada")
    people.say("ada", "project", "create", "demo")
    home = Home.under(people.folder / "ada")
    fresh = home.key.with_name("key.next")
    keys.save(fresh, keys.SecretKey.generate())
    promised = keys.peer_id(keys.load(fresh).public)
    assert people.ask("ada", "key", "rotate")["key"] == promised
    assert not fresh.exists()
    people.say("ada", "project", "set", "demo", "--url", "https://example.org")
    assert people.ask("ada", "project", "show", "demo")["url"] == "https://example.org"
