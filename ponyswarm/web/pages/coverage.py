"""Coverage: which environments a project asks for, who can run them, and which nobody can.

What was run is in the ledger. Who could run what is known only from offers, which live in
the memory of a running node: without one, the page says so and goes by past runs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ponyswarm.ledger import history
from ponyswarm.ledger.queries import JobRow, Reader
from ponyswarm.offers import able, lacking
from ponyswarm.plain import harmless
from ponyswarm.policy import ReaderPolicy
from ponyswarm.status import OfferLine
from ponyswarm.web import words
from ponyswarm.web.pages.common import NotHere, hex_id
from ponyswarm.web.site import Site

JOBS = 5
MAX_NOBODY = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A Python with services, as a job asks for it. ``offers`` is None without a node."""

    python: str
    services: tuple[str, ...]
    cells: int
    ran: int
    offers: int | None
    kind: str
    word: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Nobody:
    """A cell that waits, and that no offer fits."""

    cell: str
    label: str
    job: str
    title: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """What one volunteer can run now."""

    peer: str
    tail: str
    interpreters: tuple[str, ...]
    services: tuple[str, ...]
    platform: str
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CoveragePage:
    project: str
    name: str
    node: bool
    job: str
    title: str
    needs: tuple[Need, ...]
    nobody: tuple[Nobody, ...]
    more_nobody: int
    offers: tuple[Offered, ...]


def coverage(site: Site, reader: Reader, text: str, now: int) -> CoveragePage:
    id_ = hex_id(text)
    state = reader.project(id_)
    if state is None:
        raise NotHere(
            f"the project {text[:16]}… is not in this ledger: 'ponyswarm follow add {text}' gets "
            "it, once a node runs"
        )
    status = site.status()
    offers = () if status is None else tuple(o for o in status.offers if o.project == text)
    known = status is not None and any(line.project == text for line in status.projects)
    jobs = history.latest_jobs(reader, JOBS, project=id_)
    open_jobs = [job for job in jobs if not job.withdrawn and job.expires > now]
    nobody: list[Nobody] = []
    for job in open_jobs or jobs[:1]:
        nobody += _nobody(site, reader, job, offers, known=known)
    return CoveragePage(
        project=id_.hex(),
        name=harmless(state.record.name),
        node=known,
        job=jobs[0].id.hex() if jobs else "",
        title=harmless(jobs[0].title) if jobs else "",
        needs=_needs(site, reader, jobs[0], offers, known=known) if jobs else (),
        nobody=tuple(nobody[:MAX_NOBODY]),
        more_nobody=max(0, len(nobody) - MAX_NOBODY),
        offers=tuple(
            Offered(
                peer=offer.peer,
                tail=offer.peer[-8:],
                interpreters=tuple(harmless(one) for one in offer.interpreters),
                services=tuple(harmless(one) for one in offer.services),
                platform=harmless(f"{offer.system} {offer.machine}"),
                slots=offer.slots,
            )
            for offer in offers
        ),
    )


def _needs(
    site: Site, reader: Reader, job: JobRow, offers: Sequence[OfferLine], *, known: bool
) -> tuple[Need, ...]:
    points = reader.points(job.id)
    rows = site.matrix(reader, job, ReaderPolicy(agreeing=job.redundancy))
    counted: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for row in rows:
        if row.id in points:
            point = points[row.id]
            tally = counted.setdefault((point.python, point.services), [0, 0])
            tally[0] += 1
            tally[1] += row.finding.of > 0
    found = []
    for (python, services), (cells, ran) in counted.items():
        can = sum(able(python, services, offer) for offer in offers) if known else None
        kind, word = _covered(cells, ran, can)
        found.append(
            Need(
                python=harmless(python),
                services=tuple(harmless(service) for service in services),
                cells=cells,
                ran=ran,
                offers=can,
                kind=kind,
                word=word,
            )
        )
    return tuple(found)


def _covered(cells: int, ran: int, offers: int | None) -> tuple[str, str]:
    if ran == cells:
        return "pass", "all ran"
    if offers:
        return "unconfirmed", "somebody can"
    if offers == 0:
        return "fail", "nobody can"
    return ("unconfirmed", "some ran") if ran else ("pending", "none ran")


def _nobody(
    site: Site, reader: Reader, job: JobRow, offers: Sequence[OfferLine], *, known: bool
) -> list[Nobody]:
    points = reader.points(job.id)
    rows = site.matrix(reader, job, ReaderPolicy(agreeing=job.redundancy))
    found = []
    for row in rows:
        point = points.get(row.id)
        if point is None or row.finding.of > 0:
            continue
        why = lacking(point, offers) if known else "not run yet"
        if not why:
            continue
        found.append(
            Nobody(
                cell=row.id.hex(),
                label=harmless(words.place(point)),
                job=job.id.hex(),
                title=harmless(job.title),
                why=why,
            )
        )
    return found
