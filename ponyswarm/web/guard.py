"""What stands before every page: who may ask, what a browser may do with the answer.

A page on another site can make a visitor's browser ask this machine, and by giving its own
name a loopback address (DNS rebinding) even read the answer. So only requests that name a
host which is ours are served. The headers let a page load nothing that is not ours and run
no script but the one file: should hostile text ever get past the templates, it is still text.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

POLICY = "; ".join(
    [
        "default-src 'none'",
        "style-src 'self'",
        "script-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def host_name(header: str) -> str:
    """The name in a Host header, without the port; "" when it is nonsense."""
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return ""


class Guard:
    """Refuses foreign hosts and anything but reading; adds `HEADERS` and the time it took."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = LOOPBACK | {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, worked = time.perf_counter(), time.process_time()

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
                headers.setdefault("Cache-Control", "no-cache")
                took = 1000 * (time.perf_counter() - began)
                cpu = 1000 * (time.process_time() - worked)
                headers["Server-Timing"] = f"page;dur={took:.1f}, processor;dur={cpu:.1f}"
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        name = host_name(Headers(scope=scope).get("host", ""))
        if name not in self._names:
            return PlainTextResponse(
                "This PonySwarm site answers only to the names it knows. Open it as "
                "http://localhost:PORT/, or start it with --name HOST if it should answer to "
                "another name.\n",
                status_code=421,
            )
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse(
                "This site is for reading only.\n", status_code=405, headers={"Allow": "GET, HEAD"}
            )
        return None
