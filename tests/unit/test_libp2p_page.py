"""docs/libp2p.md names fences and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "libp2p.md").read_text("utf-8")
TESTS = "".join(
    (ROOT / "tests" / "system" / name).read_text("utf-8")
    for name in ("test_hardening.py", "test_relay.py")
)
CODE = "".join(path.read_text("utf-8") for path in ROOT.glob("ponyswarm/p2p/hardening/*.py"))
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| what a stranger"))
]


def test_each_fence_of_the_page_is_one_of_the_code() -> None:
    fences = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[1])}
    assert fences
    assert not [name for name in fences if not re.search(rf"(class|def) {name}\b", CODE)]


def test_each_test_that_the_page_names_exists() -> None:
    named = {name for row in ROWS for cell in row[2:4] for name in re.findall(r"`(\w+)`", cell)}
    assert len(named) >= 15
    assert not [name for name in named if f"def {name}(" not in TESTS]


def test_each_fault_has_a_test_of_its_fence() -> None:
    assert all(re.search(r"`test_\w+`", row[3]) for row in ROWS)
