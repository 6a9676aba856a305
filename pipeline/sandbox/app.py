"""The sandbox's paths. Everything is plain ASGI: see `wire` for the reason."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.routing import Mount, Route, Router, WebSocketRoute

from pipeline.sandbox.digits import Digits
from pipeline.sandbox.iam import Denied, authenticate, document
from pipeline.sandbox.infer import DIRECT, Service, World
from pipeline.sandbox.iris import Iris
from pipeline.sandbox.mindspore import MindSpore
from pipeline.sandbox.replies import Refusal, not_allowed, reply
from pipeline.sandbox.servables import SERVABLES
from pipeline.sandbox.sockets import Pictures, Sockets, refuse
from pipeline.sandbox.streams import Streaming
from pipeline.sandbox.text import Text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from pipeline.sandbox.options import Options


class Endpoint:
    """A path that takes one method and answers with what a function makes of the request."""

    def __init__(self, method: str, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._method = method
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] != self._method:
            await not_allowed(self._method)(scope, receive, send)
            return
        with suppress(ClientDisconnect):
            response = await self._answer(Request(scope, receive))
            await response(scope, receive, send)


def build(options: Options) -> ASGIApp:
    """Return the application.

    Raises:
        JobError: the fault schedule cannot be read.

    """
    world = World(options)
    iris = Service(world, Iris(wrapped=True))
    services = [
        Route("/v1/infers/iris", iris),
        Route("/v1/infers/iris/predictions/iris", iris),
        Route("/v1/infers/iris-xgb", Service(world, Iris(wrapped=False))),
        Route("/v1/infers/digits", Service(world, Digits())),
        Route("/v1/infers/text", Streaming(world, Text())),
        WebSocketRoute("/v1/ws/iris", Sockets(world, Iris(wrapped=True))),
        WebSocketRoute("/v1/ws/digits", Sockets(world, Pictures())),
    ]
    routes = [
        *services,
        *(Route(f"/{first}/{{rest:path}}", MindSpore(world, SERVABLES)) for first in ("model", "version")),
        Mount(DIRECT, Router(services, redirect_slashes=False, default=_unknown)),
        Route("/v3/auth/tokens", Endpoint("GET", _validation_endpoint(world)), methods=["GET"]),
        Route("/v3/auth/tokens", Endpoint("POST", _token_endpoint(world))),
        Route("/stats", Endpoint("GET", _stats_endpoint(world))),
        Route("/healthz", Endpoint("GET", _healthz)),
    ]
    router = Router(routes, redirect_slashes=False, default=_unknown)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Cancelled means that the server stops; the connection is gone already, and nobody waits for a word.
        with suppress(asyncio.CancelledError):
            await router(scope, receive, send)

    return app


def _token_endpoint(world: World) -> Callable[[Request], Awaitable[Response]]:
    async def issue(request: Request) -> Response:
        try:
            project = authenticate(await request.body())
        except Denied as denied:
            return reply(denied.body, denied.status)
        catalog = not request.query_params.get("nocatalog")
        content = document(datetime.now(UTC), world.tokens.seconds, project=project, catalog=catalog)
        response = reply(content, 201)
        response.headers["X-Subject-Token"] = world.tokens.issue(project=project)
        return response

    return issue


def _validation_endpoint(world: World) -> Callable[[Request], Awaitable[Response]]:
    """Tell other nodes of the service, as IAM does, whether a token is good; whoever asks needs one that is."""

    async def tell(request: Request) -> Response:
        asking, told = (
            world.tokens.scope(request.headers.get(name, "")) for name in ("X-Auth-Token", "X-Subject-Token")
        )
        if asking is None:
            return reply(Denied(401, "Unauthorized", "Unauthorized.").body, 401)
        if told is None:
            return reply(Denied(404, "Not Found", "Could not find token.").body, 404)
        return reply(document(datetime.now(UTC), world.tokens.seconds, project=told, catalog=False))

    return tell


def _stats_endpoint(world: World) -> Callable[[Request], Awaitable[Response]]:
    async def stats(request: Request) -> Response:
        content: dict[str, Any] = {"tokens_issued": world.tokens.issued, **world.stats.snapshot()}
        if request.query_params.get("requests") and world.options.record:
            content["last_requests"] = list(world.recorded)  # bodies in base64
        return reply(content)

    return stats


async def _healthz(_request: Request) -> Response:
    return reply({"status": "ok"})


async def _unknown(scope: Scope, receive: Receive, send: Send) -> None:
    refusal = Refusal("404 APIG.0101")
    if scope["type"] == "websocket":
        await receive()  # it wants to connect
        await refuse(refusal, scope, receive, send)
    else:
        await refusal.response()(scope, receive, send)
