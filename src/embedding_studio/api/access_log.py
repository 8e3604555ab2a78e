"""What is reported of each request: a line in the log, and a span; by its route, never by its path."""

import logging
import time
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedding_studio.telemetry.logs import REQUEST_ID
from embedding_studio.telemetry.traces import request_span

logger = logging.getLogger(__name__)

UNKNOWN = "(no route)"
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds: no line says that they were answered, and none is traced."""


class AccessLog:
    """Log what was answered to each request, and make it a span."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        token = REQUEST_ID.set(scope["state"]["request_id"])
        try:
            if scope["path"] in PROBES:
                await self._answered(scope, receive, send)
            else:
                await self._traced(scope, receive, send)
        finally:
            REQUEST_ID.reset(token)

    async def _traced(self, scope: Scope, receive: Receive, send: Send) -> None:
        with request_span(scope["method"], Headers(scope=scope)) as span:
            status = await self._answered(scope, receive, send)
            if span is None:
                return
            route = route_of(scope)
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.route", route)
            span.set_attribute("embedding_studio.request_id", scope["state"]["request_id"])
            if status:
                span.set_attribute("http.response.status_code", status)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Return with which status; 0: it was not, for its client has gone."""
        status = 0
        started = time.perf_counter()

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note_status)
        finally:
            if status >= 400 or scope["path"] not in PROBES:
                _log(scope, status, time.perf_counter() - started)
        return status


def _log(scope: Scope, status: int, seconds: float) -> None:
    told = {
        "method": scope["method"],
        "route": route_of(scope),
        "status": status or None,
        "ms": round(seconds * 1000, 1),
    }
    answered = status or "not answered, the client has gone,"
    logger.info("%s %s %s in %s ms", told["method"], told["route"], answered, told["ms"], extra=told)


def route_of(scope: Scope) -> str:
    """Return the template of the path of a request that met its route, such as ``/users/{user_id}``."""
    endpoint = scope.get("endpoint")
    known: dict[Any, str] = scope["app"].state.templates if "app" in scope else {}
    return known.get(endpoint, UNKNOWN)


def templates(prefix: str, router: APIRouter) -> dict[Any, str]:
    """Return for each endpoint of a router the template of its path."""
    return {
        route.endpoint: prefix + route.path_format for route in router.routes if isinstance(route, APIRoute)
    }
