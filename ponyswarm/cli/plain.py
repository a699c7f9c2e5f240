"""Plain log lines, which strangers' text cannot spoil."""

from __future__ import annotations

import logging
import sys

from ponyswarm.plain import harmless

__all__ = ["HarmlessFormatter", "harmless", "start_logging"]


class HarmlessFormatter(logging.Formatter):
    """Job titles, names and test ids come from strangers, and the log shows them."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = harmless(record.message).replace("\n", " ")
        return super().formatMessage(record)


def start_logging(*, verbose: bool, level: int = logging.INFO) -> None:
    """Plain lines on stderr: a time, a level where it matters, a sentence."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(HarmlessFormatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.DEBUG if verbose else level, handlers=[handler], force=True)
    for noisy in ("libp2p", "httpx", "httpcore", "filelock", "multiaddr"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
