"""Small source archives, announced by the tests that need a job of a certain kind."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def archive(folder: Path, name: str, files: Mapping[str, str]) -> Path:
    """An sdist-like .tar.gz with these files under one top folder."""
    path = folder / f"{name}-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for file, text in {"PKG-INFO": f"Name: {name}\nVersion: 1.0\n", **files}.items():
            member = tarfile.TarInfo(f"{name}-1.0/{file}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def unittest_spec(folder: Path, python: str, redundancy: int = 1, timeout: int = 300) -> Path:
    """A spec that needs nothing but an interpreter."""
    path = folder / f"spec-{redundancy}-{timeout}.toml"
    path.write_text(
        f"""\
[tool.ponyswarm]
python = ["{python}"]
runner = "unittest"
redundancy = {redundancy}
timeout = {timeout}

[tool.ponyswarm.install]
project = false
""",
        "utf-8",
    )
    return path


PASSES = """\
import unittest


class Test(unittest.TestCase):
    def test_it(self):
        self.assertEqual(1 + 1, 2)
"""

SLEEPS = """\
import time
import unittest


class Test(unittest.TestCase):
    def test_sleep(self):
        time.sleep({seconds})
"""
