"""No message can be added that nothing provokes: the source's places against the tests' claims.

A test that claims a place proves, when it runs, that the text came from there (see `told`).
`EXCUSED` are those that nobody can be shown. `unproven.txt` lists what was there before the
proof was asked for, and may only become shorter.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from told import SHOWN, Site, claimed, sites, told

from ponyswarm.cli import project
from ponyswarm.errors import LocalError

# Where a message begins as it stands in the source, and why no test provokes it.
EXCUSED = {
    "exec/sandbox.py probe: jobs run in a sandbox that only Linux": "it needs another system",
    "ledger/store.py Store._open_feed": "SQLite gives no row id only where it is broken",
    "node.py Node.network": "an invariant: nothing uses a node before its network is open",
}
UNPROVEN = Path(__file__).with_name("unproven.txt").read_text("utf-8").splitlines()


def excuse(site: Site) -> str | None:
    """What excuses a place; texts that only pass on another's have nothing to prove."""
    if site.kind in SHOWN and site.weight < 4:
        return "it passes on what another place says"
    return next((why for start, why in EXCUSED.items() if str(site).startswith(start)), None)


def test_every_message_is_provoked_by_a_test() -> None:
    proved = claimed()
    bare = [str(site) for site in sites() if site not in proved and excuse(site) is None]
    new = sorted(set(bare) - set(UNPROVEN))
    assert not new, "nothing provokes\n  " + "\n  ".join(new)
    done = sorted(set(UNPROVEN) - set(bare))
    assert not done, "these are provoked now, or gone:\n  " + "\n  ".join(done)


def test_every_excuse_is_still_needed() -> None:
    for start in EXCUSED:
        excused = [site for site in sites() if str(site).startswith(start)]
        assert excused, f"no place begins so: {start}"
        assert not claimed() & set(excused), f"a test provokes it: {start}"


# --- the proof itself --------------------------------------------------------------------------


def test_a_text_proves_nothing_of_a_place_that_did_not_say_it() -> None:
    said = "'x' is not a time: write it as 2026-11-27T20:00"
    with pytest.raises(AssertionError, match=r"_millis.*\s+did not say it"), told(said):
        raise LocalError(said)


def test_a_place_proves_nothing_of_another_text() -> None:
    with pytest.raises(AssertionError, match="wanted: 'y' is"):  # noqa: SIM117
        with told("'y' is not a time: write it as 2026-11-27T20:00"):
            project._millis("x")


def test_a_block_that_ends_well_proves_nothing() -> None:
    with pytest.raises(AssertionError, match="nothing was wrong"), told("a key is wrong"):
        pass
