"""One sdist by name and version, from an index of either form, never with a wrong hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from exec_lab import served
from told import told

from ponyswarm.exec import index

DATA = b"an sdist"
DIGEST = hashlib.sha256(DATA).hexdigest()
PAGES = {
    "/json/my-project/": (
        "application/vnd.pypi.simple.v1+json",
        json.dumps(
            {
                "files": [
                    {"filename": "my_project-1.0-py3-none-any.whl", "url": "../../w", "hashes": {}},
                    {
                        "filename": "my_project-1.0.tar.gz",
                        "url": "../../files/my_project-1.0.tar.gz",
                        "hashes": {"sha256": DIGEST},
                    },
                ]
            }
        ).encode(),
    ),
    "/html/my-project/": (
        "text/html",
        f'<a href="/files/my_project-1.0.tar.gz#sha256={DIGEST}">my_project</a>'.encode(),
    ),
    "/files/my_project-1.0.tar.gz": ("application/gzip", DATA),
}


@pytest.fixture
def server() -> Iterator[str]:
    with served(PAGES) as address:
        yield address


@pytest.mark.parametrize("form", ["json", "html"])
def test_an_sdist_is_found_checked_and_kept(server: str, tmp_path: Path, form: str) -> None:
    found = index.fetch_sdist("My.Project", "1.0", DIGEST, tmp_path, index=f"{server}/{form}")
    assert found.name == "my_project-1.0.tar.gz"
    assert found.read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == [found.name]
    assert index.fetch_sdist("my-project", "1", None, tmp_path, index=f"{server}/{form}") == found


def test_another_hash_is_refused_and_nothing_kept(server: str, tmp_path: Path) -> None:
    with told("my_project-1.0.tar.gz has the hash …, not …: it was changed there or on the way"):
        index.fetch_sdist("my-project", "1.0", "0" * 64, tmp_path, index=f"{server}/json")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_said_so(server: str, tmp_path: Path) -> None:
    with told("the index has no sdist of my-project 2.0"):
        index.fetch_sdist("my-project", "2.0", None, tmp_path, index=f"{server}/json")
    with told(
        "the package index does not answer (Not Found): check the network, then try again",
        at="exec/index.py",
    ):
        index.fetch_sdist("other", "1.0", None, tmp_path, index=f"{server}/json")
    with told(
        "the package index is no http or https address: mend UV_DEFAULT_INDEX, or PIP_INDEX_URL, "
        "whichever is set"
    ):
        index.fetch_sdist("other", "1.0", None, tmp_path, index="file:///etc")
