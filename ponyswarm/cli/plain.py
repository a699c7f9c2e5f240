"""Text of strangers, made harmless for a terminal."""

from __future__ import annotations

import logging

# Marks that reorder what follows: a name could be made to look like another.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def harmless(text: str) -> str:
    """The text without control characters (but line feeds and tabs) and bidi marks."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char in "\n\t" or (char.isprintable() and char not in _BIDI) else "�"
        for char in text
    )


class HarmlessFormatter(logging.Formatter):
    """Job titles, names and test ids come from strangers, and the log shows them."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = harmless(record.message).replace("\n", " ")
        return super().formatMessage(record)
