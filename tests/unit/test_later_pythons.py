"""What later Pythons refuse, found under any of them."""

from __future__ import annotations

import re
from pathlib import Path

import ponyswarm


def test_no_statement_numbers_its_parameters() -> None:
    """Python 3.12 warns of ``?1`` beside a sequence, and 3.14 raises."""
    modules = list(Path(ponyswarm.__file__).parent.rglob("*.py"))
    assert len(modules) > 100
    numbered = [path for path in modules if re.search(r"[ (=]\?\d", path.read_text("utf-8"))]
    assert not numbered
