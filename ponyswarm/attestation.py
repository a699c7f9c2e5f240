"""A job's verdict as an in-toto `test-result` attestation in a DSSE envelope. Pure but the key.

What it attests is the signer's reading: that under the policy it names, the results in the
ledger give this verdict. Whoever wants the grounds takes proofs of the results themselves.
The formats are in-toto's Statement v1, test-result v0.1 and DSSE v1.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ponyswarm.errors import LocalError
from ponyswarm.keys import SecretKey, peer_id
from ponyswarm.ledger.verdicts import CONFIRMED, Verdict
from ponyswarm.messages import Announce
from ponyswarm.policy import ReaderPolicy

if TYPE_CHECKING:
    from ponyswarm.ledger.queries import CellRow, JobRow

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"


def statement(
    job: JobRow, announce: Announce, cells: Sequence[CellRow], policy: ReaderPolicy
) -> dict[str, object]:
    """The statement on a job whose every cell is confirmed; `LocalError` while one is not."""
    open_ = [cell for cell in cells if cell.finding.verdict not in CONFIRMED]
    if open_ or not cells:
        raise LocalError(
            f"{len(open_)} of {len(cells)} cells are not confirmed yet, and an attestation of "
            f"half a matrix would mislead: 'ponyswarm watch {job.id.hex()[:16]}' waits for them"
        )
    digest = {"sha256": announce.source.hex()}
    if len(announce.commit) in (40, 64):
        digest["gitCommit"] = announce.commit
    failed = [cell for cell in cells if cell.finding.verdict is Verdict.CONFIRMED_FAIL]
    return {
        "_type": STATEMENT,
        "subject": [{"name": announce.source_name, "digest": digest}],
        "predicateType": PREDICATE,
        "predicate": {
            "result": "FAILED" if failed else "PASSED",
            "configuration": [_configuration(job, cell) for cell in cells],
            "passedTests": [
                cell.place for cell in cells if cell.finding.verdict is Verdict.CONFIRMED_PASS
            ],
            "warnedTests": [],
            "failedTests": [
                f"{cell.place}: {test}" for cell in failed for test in _bad(cell) or ("",)
            ],
            # An extension, as the framework allows: who says so, and how many had to.
            "https://github.com/ponyswarm/ponyswarm/attestation/agreement/v1": {
                "job": job.id.hex(),
                "project": job.project.hex(),
                "announcer": peer_id(job.announcer),
                "agreeing": policy.agreeing,
                "counts": _counted(policy),
            },
        },
    }


def envelope(said: Mapping[str, object], key: SecretKey) -> str:
    """The statement signed by a key, as DSSE's JSON. The key id is our peer id."""
    payload = json.dumps(said, ensure_ascii=False, sort_keys=True).encode()
    signature = key.sign(pre_authentication(PAYLOAD_TYPE, payload))
    return (
        json.dumps(
            {
                "payloadType": PAYLOAD_TYPE,
                "payload": base64.b64encode(payload).decode(),
                "signatures": [
                    {
                        "keyid": peer_id(key.public),
                        "sig": base64.b64encode(signature).decode(),
                    }
                ],
            },
            indent=2,
        )
        + "\n"
    )


def pre_authentication(type_: str, payload: bytes) -> bytes:
    """DSSE's PAE: the bytes that are signed."""
    kind = type_.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _configuration(job: JobRow, cell: CellRow) -> dict[str, object]:
    finding = cell.finding
    return {
        "name": cell.place,
        "uri": f"ponyswarm:{job.id.hex()}/{cell.id.hex()}",
        "annotations": {
            "verdict": str(finding.verdict),
            "agree": finding.agree,
            "of": finding.of,
            "onRecord": finding.on_record,
            "tests": finding.tests,
            "volunteers": [peer_id(key) for key in finding.supporters],
            "environments": sorted(
                {row.environment for row in cell.results if row.author in finding.supporters}
            ),
        },
    }


def _bad(cell: CellRow) -> tuple[str, ...]:
    for row in cell.results:
        if row.author in cell.finding.supporters and row.result.bad:
            return row.result.bad
    return ()


def _counted(policy: ReaderPolicy) -> str | list[str]:
    if policy.keys is not None:
        return sorted(peer_id(key) for key in policy.keys)
    return "vouched" if policy.vouched_only else "all"
