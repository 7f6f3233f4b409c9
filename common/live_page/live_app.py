"""Web application of the live page on loopback."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from common.live_page.viewers import Viewers, Watched

LOOPBACK = "127.0.0.1"
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class OwnHostOnly:
    """Filter of requests that name another host.

    A page of a stranger could give its own name this machine's address, and then read what is here.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in (LOOPBACK, "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 to a request for another host."""
        if scope["type"] == "http" and Request(scope).headers.get("host", "").lower() not in self._hosts:
            await PlainTextResponse("This page is for this machine alone.", 403)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def live_app(watched: Watched, *, token: str, port: int) -> Starlette:
    """Return the application that shows a page below the path of a token.

    Args:
        watched: What the page shows.
        token: Secret of 43 characters, which is a part of the page's address.
        port: TCP port that it is served at.
    """
    viewers = Viewers(watched)

    def is_known(request: Request) -> bool:
        # The comparison takes as long for a wrong token as for a right one.
        return secrets.compare_digest(request.path_params["token"].encode(), token.encode())

    async def page(request: Request) -> Response:
        if not is_known(request):
            return PlainTextResponse("Not found", 404)
        await viewers.refresh()
        return HTMLResponse(viewers.html, headers=_HEADERS)

    async def events(request: Request) -> Response:
        if not is_known(request):
            return PlainTextResponse("Not found", 404)
        return StreamingResponse(viewers.versions(), media_type="text/event-stream", headers=_HEADERS)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        looking = asyncio.create_task(viewers.keep_fresh())
        yield
        looking.cancel()

    return Starlette(
        routes=[Route("/{token}/", page), Route("/{token}/events", events)],
        middleware=[Middleware(OwnHostOnly, port=port)],
        lifespan=lifespan,
    )
