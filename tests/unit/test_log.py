"""What a node's log shows: its own lines, harmless, and not the chatter of what it uses."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from ponyswarm.cli.plain import start_logging


@pytest.fixture
def kept() -> Iterator[None]:
    """The root logger as it was, afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_only_named_loggers_are_shown_and_strangers_text_is_harmless(
    kept: None, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging(verbose=True)
    logging.getLogger("ponyswarm").debug("a job: %s", "\x1b[2Jred\nI a line of its own")
    # As libp2p does.
    logging.getLogger().info("a stream was reset")
    said = capsys.readouterr().err
    assert "a stream was reset" not in said
    assert "\x1b" not in said
    assert said.count("\n") == 1
