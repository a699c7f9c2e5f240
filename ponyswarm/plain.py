"""Text of strangers, made harmless to show: on a terminal, in a log line, on a page."""

from __future__ import annotations

import re

# Marks that reorder what follows: a name could be made to look like another.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# What terminals act on: CSI and OSC sequences, and the short escapes.
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,2000}(?:\x07|\x1b\\)?|[ -/]*[0-~])"
)


def harmless(text: str) -> str:
    """The text without control characters (but line feeds and tabs) and bidi marks."""
    return "\n".join(map(_harmless_line, text.split("\n")))


def _harmless_line(line: str) -> str:
    # Most lines of a long output take this way, which costs a hundredth of the other.
    if line.isascii() and line.replace("\t", " ").isprintable():
        return line
    return "".join(
        char if char == "\t" or (char.isprintable() and char not in _BIDI) else "\ufffd"
        for char in line
    )


def uncoloured(text: str) -> str:
    """The text without the sequences that colour and move on a terminal, then harmless."""
    text = text.replace("\r\n", "\n")
    return harmless(_ESCAPES.sub("", text) if "\x1b" in text else text)
