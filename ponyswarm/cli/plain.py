"""Log lines that strangers' text cannot spoil, as words or as JSON; sizes for people."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from ponyswarm.plain import harmless
from ponyswarm.status import NodeStatus, Room

__all__ = [
    "HarmlessFormatter",
    "JsonFormatter",
    "harmless",
    "refused",
    "resting",
    "room",
    "size",
    "start_logging",
]


# Libraries whose log says nothing to an owner.
NOISY = (
    "libp2p",
    "httpx",
    "httpcore",
    "filelock",
    "multiaddr",
)


class HarmlessFormatter(logging.Formatter):
    """Job titles, names and test ids come from strangers, and the log shows them."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = harmless(record.message).replace("\n", " ")
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for programs; control characters are escaped by the form."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            facts["exception"] = self.formatException(record.exc_info)
        return json.dumps(facts)


def start_logging(*, verbose: bool, level: int = logging.INFO, as_json: bool = False) -> None:
    """Plain lines on stderr: a time, a level where it matters, a sentence; or JSON."""
    handler = logging.StreamHandler(sys.stderr)
    text = HarmlessFormatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonFormatter() if as_json else text)
    # libp2p tells of much by the root logger, which none of ours uses.
    handler.addFilter(lambda record: record.name != "root")
    logging.basicConfig(level=logging.DEBUG if verbose else level, handlers=[handler], force=True)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.CRITICAL)


def room(one: Room) -> str:
    """What takes room, how much, and how much it may: ``blobs 12 MiB of 5.0 GiB``."""
    most = "" if one.budget is None else f" of {size(one.budget)}"
    return f"{one.name} {size(one.used)}{most}"


# What the words of refusals mean, by how they begin or end; the first that fits.
_REFUSALS = (
    ("bad-signature", "its author did not sign it so"),
    ("unauthorised-", "its key has no right to say it"),
    ("unknown-project", "of a project that is not kept here"),
    ("unknown-version", "of a later version"),
    ("flood", "one peer sent too much"),
    ("too-many-", "one peer or key asked for too much"),
    ("too-long", "longer than anything may be"),
    ("banned", "its peer is shut out for a while"),
    ("time-falls", "dated before the entry that it follows"),
    ("wrong-", "sent to where it does not belong"),
    ("bad-", "not in its proper form"),
    ("-full", "there is no room for it"),
    ("-too-large", "there is no room for it"),
    ("-error", "a peer broke the protocol"),
)


def refused(counts: Mapping[str, int], most: int | None = None) -> str:
    """What was refused, the most frequent first, and why: ``flood 12 (one peer sent too much)``."""
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    parts = []
    for word, count in order:
        fitting = (why for part, why in _REFUSALS if word.startswith(part) or word.endswith(part))
        why = next(fitting, "")
        parts.append(f"{word} {count:,}" + f" ({why})" * bool(why))
    return ", ".join(parts)


def resting(now: NodeStatus) -> str:
    """Why a node takes no jobs, and until when as far as that is known; empty while it does."""
    end = now.hold_until
    when = "" if end is None else time.strftime(", until %a %H:%M:%S", time.localtime(end))
    return f"{now.hold}{when}" if now.hold else ""


def size(count: float) -> str:
    """A size that a person can take in at a glance."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
