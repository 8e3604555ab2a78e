"""What every request passes on its way in, and every answer on its way out."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedding_studio.api.problems import problem_response
from embedding_studio.telemetry.metrics import ServiceMetrics

logger = logging.getLogger(__name__)

HARMLESS_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestIds:
    """Give each request an id, the caller's own if it is harmless, and send it back in ``X-Request-ID``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if HARMLESS_ID.fullmatch(given) else str(uuid.uuid4())
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class BodyLimit:
    """Refuse a body that is too large, announced or not, before anything reads it."""

    def __init__(self, app: ASGIApp, max_request_bytes: int) -> None:
        self.app = app
        self.max_request_bytes = max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        too_large = announced.isdecimal() and int(announced) > self.max_request_bytes
        body = bytearray()
        more = not too_large
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            too_large = len(body) > self.max_request_bytes
            more = message.get("more_body", False) and not too_large
        if too_large:
            refusal = problem_response(
                scope,
                413,
                f"a request may have {self.max_request_bytes} bytes; send less at once",
                kind="request too large",
            )
            await refusal(scope, receive, send)
            return
        whole: Message | None = {"type": "http.request", "body": bytes(body), "more_body": False}

        async def receive_whole() -> Message:
            nonlocal whole
            message, whole = whole, None
            return message if message is not None else await receive()

        await self.app(scope, receive_whole, send)


class Answers:
    """Answer a request that failed for a reason nobody foresaw, and count what was answered to searches."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics, search_path: str) -> None:
        self.app = app
        self.metrics = metrics
        self.search_path = search_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0
        started = time.perf_counter()

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note_status)
        except Exception:
            if status:
                raise
            request_id = scope["state"]["request_id"]
            logger.exception("request %s failed: %s %r", request_id, scope["method"], scope["path"])
            sorry = problem_response(
                scope, 500, f"the service failed; its log says why under request id {request_id}"
            )
            await sorry(scope, receive, note_status)
        finally:
            if status and scope["path"] == self.search_path:
                self.metrics.count_search(
                    status,
                    time.perf_counter() - started,
                    personalised=scope["state"].get("personalised", False),
                    explored_slots=scope["state"].get("explored_slots", 0),
                )
