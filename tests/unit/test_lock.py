"""Locks are a stranger's text: only exact, hashed names pass, and mean one thing."""

from __future__ import annotations

import pytest

from ponyswarm.errors import PeerError
from ponyswarm.exec.environment import Pin, format_lock, parse_lock

A, B = "a" * 64, "b" * 64


def test_a_lock_has_one_form() -> None:
    text = (
        f"Zope.X==1.0 \\\n    --hash=sha256:{B} \\\n    --hash=sha256:{A}\n# note\n\na==2  # why\n"
    )
    with pytest.raises(PeerError, match="hashed"):
        parse_lock(text)
    pins = parse_lock(text.replace("a==2  # why", f"a==2 --hash=sha256:{A}  # why"))
    assert pins == (Pin("a", "2", (A,)), Pin("zope-x", "1.0", (A, B)))
    assert parse_lock(format_lock(pins)) == pins


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://example.org",
        "-r /etc/passwd",
        "-e .",
        "--find-links /",
        "./tree",
        f"a --hash=sha256:{A}",
        f"a>=1 --hash=sha256:{A}",
        f"a==1.* --hash=sha256:{A}",
        f"a==1,<2 --hash=sha256:{A}",
        f"a===1 --hash=sha256:{A}",
        f"a @ https://example.org/a.whl --hash=sha256:{A}",
        f"a==1 ; python_version < '4' --hash=sha256:{A}",
        f"a==1 --hash=md5:{A[:32]}",
        f"a==1 --hash=sha256:{A} --index-url=x",
        "a==1",
        f"a==1 --hash=sha256:{A}\nA==2 --hash=sha256:{A}",
    ],
)
def test_anything_else_is_refused(line: str) -> None:
    with pytest.raises(PeerError, match=r"^bad-lock"):
        parse_lock(line)
