"""The package index: where it is, what uv is told of it, and one sdist by name and hash.

Honours what a person set for pip or uv (environment or ``pip config``); the public
index otherwise. `fetch_sdist` never runs anything of a package: unlike ``pip
download``, which runs setup.py.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import InvalidSdistFilename, canonicalize_name, parse_sdist_filename
from packaging.version import Version

from ponyswarm.errors import InfraError, LocalError

if TYPE_CHECKING:
    import urllib.request

MAX_PAGE = 64 << 20
MAX_SDIST = 512 << 20
SECONDS = 60
# What uv may know of this machine: how to reach the index, nothing more.
PASSED_ON = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "SSL_CLIENT_CERT",
    "NETRC",
    "UV_INDEX",
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_NATIVE_TLS",
    "UV_SYSTEM_CERTS",
    "UV_HTTP_TIMEOUT",
    "UV_KEYRING_PROVIDER",
    "UV_INSECURE_HOST",
]

# Of these, the ones that choose which index it is.
CHOOSING = [name for name in PASSED_ON if "INDEX" in name or "LINKS" in name]
CHOOSING.append("PIP_INDEX_URL")


def environment() -> dict[str, str]:
    """The environment for uv's networked steps."""
    given = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & set(given) and (named := _named()):
        given["UV_DEFAULT_INDEX"] = named
    return given


@lru_cache(maxsize=1)
def url() -> str:
    """The index in use: the owner's, or where the packaging tools themselves look by default."""
    if named := _named():
        return named
    from distlib.index import DEFAULT_INDEX

    return str(urllib.parse.urljoin(DEFAULT_INDEX, "/simple")).rstrip("/")


@lru_cache(maxsize=1)
def _named() -> str:
    """The index that environment or pip's settings name, or ""."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if value := os.environ.get(name, "").strip():
            # uv lets an index be named: name=url.
            return re.sub(r"^[\w.-]+=(?=[a-z+]+://)", "", value).rstrip("/")
    return _pip_setting().rstrip("/")


def _pip_setting() -> str:
    """``global.index-url`` of pip's files, of which later ones win."""
    found = ""
    for path in _pip_files():
        parser = configparser.ConfigParser(interpolation=None)
        with suppress(OSError, UnicodeDecodeError, configparser.Error):
            parser.read_string(path.expanduser().read_text("utf-8"))
            found = parser.get("global", "index-url", fallback=found)
    return found.strip()


def _pip_files() -> Iterator[Path]:
    chosen = os.environ.get("PIP_CONFIG_FILE", "")
    if chosen == os.devnull:
        return
    folders = os.environ.get("XDG_CONFIG_DIRS", "") or "/etc/xdg"
    yield from (Path(folder, "pip", "pip.conf") for folder in folders.split(os.pathsep))
    yield Path("/etc/pip.conf")
    yield Path("~/.pip/pip.conf")
    yield Path(os.environ.get("XDG_CONFIG_HOME", "") or "~/.config", "pip", "pip.conf")
    yield Path(sys.prefix, "pip.conf")
    if chosen:
        yield Path(chosen)


def latest_sdist(name: str) -> str:
    """The latest version that has an sdist, a pre-release only where there is nothing else; ""
    without any. Blocks, and raises `InfraError` without an index."""
    found = set()
    for filename, _, _ in _files(f"{url()}/{canonicalize_name(name)}/"):
        with suppress(InvalidSdistFilename):
            found.add(parse_sdist_filename(filename)[1])
    final = [version for version in found if not version.is_prerelease]
    return str(max(final or found)) if found else ""


def fetch_sdist(
    name: str, version: str, sha256: str | None, into: Path, *, index: str | None = None
) -> Path:
    """Fetch the sdist of a version, checked by its hash (given, else the index's own).

    Keeps it in ``into`` and takes it from there the next time. Blocks: call it in a thread.
    """
    base = (index or url()).rstrip("/")
    page = f"{base}/{canonicalize_name(name)}/"
    for found, address, published in _files(page):
        try:
            project, found_version = parse_sdist_filename(found)
        except InvalidSdistFilename:
            continue
        if project != canonicalize_name(name) or found_version != Version(version):
            continue
        digest = sha256 or published
        if not digest:
            raise LocalError(f"the index gives no hash for {found}, so it cannot be checked")
        target = into / Path(found).name
        if not (target.exists() and _hash(target.read_bytes()) == digest):
            data = _get(address, MAX_SDIST)[0]
            if _hash(data) != digest:
                raise InfraError(
                    f"{found} has the hash {_hash(data)}, not {digest}: it was changed there or "
                    "on the way"
                )
            into.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{os.getpid()}.part")
            partial.write_bytes(data)
            partial.replace(target)
        return target
    raise LocalError(f"the index has no sdist of {name} {version}")


def _files(page: str) -> Iterator[tuple[str, str, str]]:
    """(filename, url, sha256 or "") of a project's page, JSON (PEP 691) or HTML (PEP 503)."""
    data, content_type = _get(page, MAX_PAGE)
    if "json" in content_type:
        try:
            files = [
                (str(file["filename"]), str(file["url"]), file.get("hashes", {}).get("sha256", ""))
                for file in json.loads(data)["files"]
            ]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as fault:
            raise InfraError(
                f"the package index sent a damaged page ({fault}): try again, or check its address"
            ) from fault
        for filename, url, digest in files:
            yield filename, urllib.parse.urljoin(page, url), digest
        return
    for link in re.findall(r'(?i)<a\s[^>]*href="([^"]+)"', data.decode("utf-8", "replace")):
        address = urllib.parse.urljoin(page, unescape(link))
        parts = urllib.parse.urlsplit(address)
        filename = urllib.parse.unquote(parts.path.rsplit("/", 1)[-1])
        digest = parts.fragment.removeprefix("sha256=") if "sha256=" in parts.fragment else ""
        yield filename, address.partition("#")[0], digest


def _get(address: str, limit: int) -> tuple[bytes, str]:
    # Seldom needed, and slow to import.
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        raise LocalError(
            "the package index is no http or https address: mend UV_DEFAULT_INDEX, or "
            "PIP_INDEX_URL, whichever is set"
        )
    request = urllib.request.Request(  # noqa: S310
        address,
        headers={
            "Accept": "application/vnd.pypi.simple.v1+json, text/html;q=0.5, */*;q=0.1",
            "User-Agent": "ponyswarm",
        },
    )
    _authorize(request)
    context = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or None)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS, context=context) as answer:  # noqa: S310
            data = answer.read(limit + 1)
            content_type = answer.headers.get("Content-Type", "")
    except (urllib.error.URLError, http.client.HTTPException, OSError) as fault:
        reason = getattr(fault, "reason", fault)
        raise InfraError(
            f"the package index does not answer ({reason}): check the network, then try again"
        ) from fault
    if len(data) > limit:
        raise InfraError(f"the package index sent more than {limit} bytes: check its address")
    return data, content_type


def _authorize(request: urllib.request.Request) -> None:
    """Move a password in the address to where it belongs."""
    parts = urllib.parse.urlsplit(request.full_url)
    if parts.username is None:
        return
    import base64

    pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    request.add_header("Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
    host = parts.hostname or ""
    bare = parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host)
    request.full_url = bare.geturl()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
