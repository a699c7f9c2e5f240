"""``/metrics``: what Prometheus may watch, in its own text format. Worked out when asked."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from ponyswarm.ledger import history
from ponyswarm.ledger.queries import Reader
from ponyswarm.plain import harmless
from ponyswarm.policy import ReaderPolicy
from ponyswarm.status import NodeStatus
from ponyswarm.web import words
from ponyswarm.web.site import Site

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PROJECTS = 50


def text(site: Site) -> bytes:
    """Everything as of now."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Now(site))
    return generate_latest(registry)


class _Now(Collector):
    def __init__(self, site: Site) -> None:
        self._site = site

    def collect(self) -> Iterable[Metric]:
        status = self._site.status()
        up = GaugeMetricFamily("ponyswarm_node_up", "Whether a node runs on this home.")
        up.add_metric([], int(status is not None))
        yield up
        if status is not None:
            yield from _of_node(status)
        if self._site.ledger.exists():
            with self._site.reading() as reader:
                yield from _of_ledger(self._site, reader)


def _of_node(status: NodeStatus) -> Iterable[Metric]:
    yield _gauge("ponyswarm_peers", "Peers that are connected.", len(status.peers))
    yield _gauge("ponyswarm_runs_under_way", "Runs under way here.", len(status.running))
    yield _gauge("ponyswarm_blob_bytes", "Bytes of files kept here.", status.blob_bytes)
    yield _counter("ponyswarm_runs", "Runs that ended here since the start.", status.runs)
    yield _counter("ponyswarm_tests", "Tests that ran here since the start.", status.tests)
    refused = CounterMetricFamily("ponyswarm_refused", "What was refused.", labels=["reason"])
    for reason, number in sorted(status.refused.items()):
        refused.add_metric([reason], number)
    yield refused
    offers = GaugeMetricFamily(
        "ponyswarm_offers", "Volunteers that offer to run a project's jobs.", labels=["project"]
    )
    for line in status.projects:
        offers.add_metric([line.project], line.volunteers)
    yield offers


def _of_ledger(site: Site, reader: Reader) -> Iterable[Metric]:
    held = history.size(reader)
    yield _gauge("ponyswarm_ledger_entries", "Entries in the ledger.", held.entries)
    yield _gauge("ponyswarm_ledger_authors", "Keys that published.", held.authors)
    jobs = GaugeMetricFamily("ponyswarm_jobs", "Jobs announced.", labels=["project", "name"])
    cells = GaugeMetricFamily(
        "ponyswarm_cells",
        "Cells of each project's latest job, by verdict.",
        labels=["project", "name", "verdict"],
    )
    announced = GaugeMetricFamily(
        "ponyswarm_latest_job_timestamp_seconds",
        "When each project's latest job was announced.",
        labels=["project", "name"],
    )
    counts = history.job_counts(reader)
    for project in history.project_ids(reader)[:PROJECTS]:
        for job in reader.jobs(project, most=1):
            labels = [project.hex(), harmless(job.project_name)]
            jobs.add_metric(labels, counts[project])
            announced.add_metric(labels, job.announced / 1000)
            rows = site.matrix(reader, job, ReaderPolicy(agreeing=job.redundancy))
            tally = words.tally(rows)
            for kind in words.KINDS:
                cells.add_metric([*labels, kind], tally.get(kind, 0))
    yield from (jobs, announced, cells)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(name, what, value=value)
