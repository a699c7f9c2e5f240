"""The site as an ASGI application: addresses to pages, pages to HTML or JSON.

A page is worked out in a thread, a few at a time, so that a slow question holds up neither
the event loop nor a node beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection
from importlib import resources
from typing import Any

import msgspec
import trio
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

import ponyswarm
from ponyswarm import badge
from ponyswarm.errors import LocalError
from ponyswarm.ledger.queries import Reader
from ponyswarm.policy import ReaderPolicy
from ponyswarm.web import metrics, words
from ponyswarm.web.guard import Guard
from ponyswarm.web.pages import (
    cell,
    coverage,
    front,
    job,
    project,
    run,
    search,
    test,
    verify,
    volunteer,
)
from ponyswarm.web.pages.common import NotHere, hex_id
from ponyswarm.web.site import Site

log = logging.getLogger("ponyswarm")

AT_ONCE = 4
# Open pages that are told of news; a browser opens one stream a tab.
MAX_STREAMS = 100
# Seconds: news is told at most so often; and a sign of life, to notice dead connections.
TOGETHER = 0.5
HEARTBEAT = 15.0
CHANGED = b"event: change\ndata:\n\n"

# Works a page out: (site, reader, request) -> a frozen value.
Ask = Callable[[Site, Reader, Request], Any]


def now_ms() -> int:
    return int(time.time() * 1000)


def number(request: Request, name: str, most: int) -> int | None:
    """A positive number in the query; None when there is none."""
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) <= most else None


def _policy(request: Request) -> dict[str, Any]:
    return {
        "policy": request.query_params.get("policy", "all") or "all",
        "agreeing": number(request, "k", 20),
    }


# Address -> (template, how it is asked). Each is also there with .json at its end.
PAGES: dict[str, tuple[str, Ask]] = {
    "/": ("front.html", lambda s, r, q: front.front(s, r, now_ms())),
    "/project/{id}": (
        "project.html",
        lambda s, r, q: project.project(
            s, r, q.path_params["id"], before=number(q, "before", 1 << 53), now=now_ms()
        ),
    ),
    "/project/{id}/test": (
        "test.html",
        lambda s, r, q: test.test(s, r, q.path_params["id"], q.query_params.get("id", "")),
    ),
    "/project/{id}/coverage": (
        "coverage.html",
        lambda s, r, q: coverage.coverage(s, r, q.path_params["id"], now_ms()),
    ),
    "/job/{id}": (
        "job.html",
        lambda s, r, q: job.job(s, r, q.path_params["id"], **_policy(q), now=now_ms()),
    ),
    "/cell/{id}": (
        "cell.html",
        lambda s, r, q: cell.cell(s, r, q.path_params["id"], **_policy(q), now=now_ms()),
    ),
    "/run/{id}": ("run.html", lambda s, r, q: run.run(s, r, q.path_params["id"])),
    "/volunteers": ("volunteers.html", lambda s, r, q: volunteer.volunteers(s, r)),
    "/volunteer/{id}": (
        "volunteer.html",
        lambda s, r, q: volunteer.volunteer(s, r, q.path_params["id"], now=now_ms()),
    ),
    "/search": (
        "search.html",
        lambda s, r, q: search.search(s, r, q.query_params.get("q", ""), now_ms()),
    ),
    "/verify": ("verify.html", lambda s, r, q: verify.verify(s, r)),
}

STATIC = {"style.css": "text/css", "live.js": "text/javascript", "icon.svg": "image/svg+xml"}


def application(site: Site, *, names: Collection[str] = ()) -> Starlette:
    """The site as an application; ``names`` are hosts it answers to beside loopback's."""
    pages = _Pages(site)
    routes = []
    for path, (template, ask) in PAGES.items():
        as_json = "/index.json" if path == "/" else f"{path}.json"
        routes += [Route(as_json, pages.json(ask)), Route(path, pages.html(template, ask))]
    routes = [
        Route("/run/{id}/log.txt", pages.log),
        Route("/badge/{id}.svg", pages.badge),
        Route("/badge/{id}/{commit}.svg", pages.badge),
        Route("/metrics", pages.metrics),
        Route("/events", pages.events),
        Route("/static/{name}", pages.static),
        # Paths that end in .json are tried before those that take anything.
        *routes,
    ]
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(Guard, names=names),
            Middleware(GZipMiddleware, minimum_size=1000, compresslevel=5),
        ],
        exception_handlers={HTTPException: pages.refused, Exception: pages.broken},
    )


class _Pages:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._limit = trio.CapacityLimiter(AT_ONCE)
        self._files = {
            name: resources.files("ponyswarm.web").joinpath("static", name).read_bytes()
            for name in STATIC
        }
        self._templates = _templates(self._files)

    # --- pages ---------------------------------------------------------------------------

    def html(self, template: str, ask: Ask) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            return await self._answer(request, lambda: self._html(template, ask, request))

        return endpoint

    def json(self, ask: Ask) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            return await self._answer(request, lambda: self._json(ask, request))

        return endpoint

    async def _answer(self, request: Request, work: Callable[[], Response]) -> Response:
        """Do the work in a thread; what may go wrong becomes a page of its own."""
        try:
            # It only reads: whoever stops the site need not wait for it. (The stubs that
            # libp2p brings for trio are older than the argument.)
            return await trio.to_thread.run_sync(  # type: ignore[call-arg]
                work, limiter=self._limit, abandon_on_cancel=True
            )
        except (NotHere, LocalError) as fault:
            return self._fault(request, 404, "Not here", str(fault))
        except sqlite3.OperationalError as fault:
            if "interrupted" not in str(fault):
                raise
            return self._fault(
                request,
                503,
                "That took too long",
                "The ledger has more about this than can be worked out for a page. Narrow the "
                "question, or ask by 'ponyswarm sql', which takes longer questions.",
            )

    def _ask(self, ask: Ask, request: Request) -> object:
        if request.url.path in ("/", "/index.json") and not self._site.ledger.exists():
            return front.empty(self._site)
        with self._site.reading() as reader:
            return ask(self._site, reader, request)

    def _html(self, template: str, ask: Ask, request: Request) -> Response:
        # Read before the ledger is: what arrives meanwhile is news to this page.
        turn = self._site.tail.turn
        return self._render(request, template, page=self._ask(ask, request), turn=turn)

    def _json(self, ask: Ask, request: Request) -> Response:
        data = msgspec.json.format(msgspec.json.encode(self._ask(ask, request)))
        return Response(data, media_type="application/json")

    def _render(
        self, request: Request, template: str, status_code: int = 200, **values: object
    ) -> Response:
        query = f"?{request.url.query}" if request.url.query else ""
        path = request.url.path
        text = self._templates.get_template(template).render(
            **values,
            json=("/index.json" if path == "/" else f"{path}.json") + query,
            path=path,
            now=now_ms(),
        )
        return Response(text, status_code=status_code, media_type="text/html")

    def _fault(self, request: Request, code: int, title: str, text: str) -> Response:
        if request.url.path.endswith(".json"):
            return Response(
                msgspec.json.encode({"error": text}), code, media_type="application/json"
            )
        return self._render(request, "fault.html", code, title=title, text=text)

    async def refused(self, request: Request, fault: Exception) -> Response:
        assert isinstance(fault, HTTPException)
        return self._fault(
            request,
            fault.status_code,
            "Not here",
            f"There is no page at {request.url.path[:200]}: the front page leads to all there are.",
        )

    async def broken(self, request: Request, fault: Exception) -> Response:
        log.error("the page %s failed: a fault of PonySwarm itself", request.url.path)
        return self._fault(
            request,
            500,
            "A fault of PonySwarm",
            "This page could not be made; the terminal where the site runs shows why. "
            "'ponyswarm fsck' says whether the ledger is sound.",
        )

    # --- what is no page --------------------------------------------------------------------

    async def log(self, request: Request) -> Response:
        def work() -> Response:
            with self._site.reading() as reader:
                text = run.log(self._site, reader, request.path_params["id"])
            return PlainTextResponse(text)

        return await self._answer(request, work)

    async def badge(self, request: Request) -> Response:
        """A project's latest job, or a commit's, as an image for other pages to show."""

        def work() -> Response:
            commit = request.path_params.get("commit")
            with self._site.reading() as reader:
                project = reader.find_project(request.path_params["id"])
                found = reader.find_job(project, None, commit)
                policy = ReaderPolicy(agreeing=number(request, "k", 20) or found.redundancy)
                drawn = badge.svg(self._site.matrix(reader, found, policy))
            headers = {"Cross-Origin-Resource-Policy": "cross-origin"}
            return Response(drawn, media_type="image/svg+xml", headers=headers)

        return await self._answer(request, work)

    async def metrics(self, request: Request) -> Response:
        def work() -> Response:
            return Response(metrics.text(self._site), media_type=metrics.CONTENT_TYPE)

        return await self._answer(request, work)

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._files:
            raise HTTPException(404)
        # Pages name them with a part of their hash: a changed file has another address.
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(self._files[name], media_type=STATIC[name], headers=headers)

    async def events(self, request: Request) -> Response:
        """Tells an open page that something about its topic changed, as server-sent events."""
        text = request.query_params.get("topic", "")
        try:
            topic = hex_id(text) if text else None
        except NotHere as fault:
            return PlainTextResponse(str(fault), 400)
        since = number(request, "since", 1 << 53)
        if self._site.tail.listeners >= MAX_STREAMS:
            return PlainTextResponse("too many open pages\n", 503, {"Retry-After": "30"})
        return StreamingResponse(self._news(topic, since), media_type="text/event-stream")

    async def _news(self, topic: bytes | None, since: int | None) -> AsyncIterator[bytes]:
        async with self._site.tail.changes() as changes:
            yield b"retry: 3000\n\n"
            if since is not None and since != self._site.tail.turn:
                yield CHANGED  # Something arrived between the page and this stream.
            while True:
                told = False
                with trio.move_on_after(HEARTBEAT):
                    try:
                        told = (await changes.receive()).concerns(topic)
                    except trio.EndOfChannel:
                        return
                if told:
                    # Let what comes together be told together.
                    await trio.sleep(TOGETHER)
                    with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
                        while True:
                            changes.receive_nowait()
                yield CHANGED if told else b":\n\n"


def _templates(files: dict[str, bytes]) -> Environment:
    environment = Environment(
        loader=PackageLoader("ponyswarm.web"),
        # Every file is HTML: strangers' text is escaped wherever it goes.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        static={
            name: f"/static/{name}?{hashlib.sha256(data).hexdigest()[:12]}"
            for name, data in files.items()
        },
        kinds=words.KINDS,
        meanings=words.MEANINGS,
        on_record=words.ON_RECORD,
        version=ponyswarm.__version__,
        run_kinds=volunteer.KINDS,
        run_meanings=volunteer.MEANINGS,
        test_looks=test.LOOKS,
    )
    environment.filters.update(
        moment=words.moment, iso=words.iso, duration=words.duration, bytes=words.size
    )
    return environment
