"""How to check it all yourself: the commands, with ids from this very ledger."""

from __future__ import annotations

from dataclasses import dataclass

from ponyswarm.ledger import history
from ponyswarm.ledger.queries import Reader
from ponyswarm.plain import harmless
from ponyswarm.web.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyPage:
    entries: int
    ledger: str
    project: str
    name: str
    job: str
    cell: str


def verify(site: Site, reader: Reader) -> VerifyPage:
    """With the latest job's ids in the examples; "" where there is none yet."""
    jobs = history.latest_jobs(reader, 1)
    cells = (
        reader.select("SELECT cell FROM cell WHERE job = ? LIMIT 1", (jobs[0].id,)) if jobs else []
    )
    return VerifyPage(
        entries=history.size(reader).entries,
        ledger=str(site.ledger),
        project=jobs[0].project.hex() if jobs else "",
        name=harmless(jobs[0].project_name) if jobs else "",
        job=jobs[0].id.hex() if jobs else "",
        cell=cells[0][0].hex() if cells else "",
    )
