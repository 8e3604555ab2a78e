"""What every request passes on its way in, and every answer on its way out."""

import asyncio
import logging
import re
import time
import uuid

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedding_studio.api.access_log import route_of
from embedding_studio.api.problems import problem_response
from embedding_studio.storage.waiting import WAITER, Waiter
from embedding_studio.telemetry.metrics import ServiceMetrics

logger = logging.getLogger(__name__)

TOO_LARGE = "request too large"

MOST_LARGE_BODIES = 16
"""As many bytes as so many of the largest bodies are held at once."""

WATCHED_AFTER_SECONDS = 0.2
"""A request that takes longer is watched: has its caller gone?"""

SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Where an answer has none of its own."""

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


class HeadRequests:
    """Answer HEAD as GET is answered, without the body: monitors and load balancers ask so."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        asked = {**scope, "method": "GET"}
        await self.app(asked, receive, send_without_body)
        scope["endpoint"] = asked.get("endpoint")


class SafeHeaders:
    """Tell browsers to guess no types, frame no page, load nothing from elsewhere, and keep no answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                safe = [header for header in SAFE_HEADERS if header[0] not in own]
                message["headers"] = [*message["headers"], *safe]
            await send(message)

        await self.app(scope, receive, send_safely if scope["type"] == "http" else send)


class BodyLimit:
    """Refuse a body that is too large, announced or not, and any where too much is held of others.

    Nothing is read here: a body is read once its sender's key has been looked at.
    """

    def __init__(self, app: ASGIApp, max_request_bytes: int) -> None:
        self.app = app
        self.max_request_bytes = max_request_bytes
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > self.max_request_bytes:
            await problem_response(scope, 413, self._refusal, kind=TOO_LARGE)(scope, receive, send)
            return
        read = 0

        async def receive_within_limits() -> Message:
            nonlocal read
            message = await receive()
            more = len(message.get("body", b""))
            read += more
            self._held += more
            if read > self.max_request_bytes:
                raise HTTPException(413, self._refusal)
            if self._held > self.max_request_bytes * MOST_LARGE_BODIES:
                raise HTTPException(503, "too many large requests at once", headers={"Retry-After": "1"})
            return message

        try:
            await self.app(scope, receive_within_limits, send)
        finally:
            self._held -= read

    @property
    def _refusal(self) -> str:
        return f"a request may have {self.max_request_bytes} bytes; send less at once"


class HangUps:
    """Let storage stop reading for a caller who has gone; what is being written is written all the same."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        waiter = Waiter()
        is_read = asyncio.Event()
        if scope["method"] == "GET":
            is_read.set()

        async def receive_and_note() -> Message:
            message = await receive()
            if not message.get("more_body", False):
                is_read.set()
            return message

        loop = asyncio.get_running_loop()
        watching: list[asyncio.Task[None]] = []
        timer = loop.call_later(
            WATCHED_AFTER_SECONDS,
            lambda: watching.append(loop.create_task(_watch(waiter, receive, is_read))),
        )
        token = WAITER.set(waiter)
        try:
            await self.app(scope, receive_and_note, send)
        finally:
            WAITER.reset(token)
            timer.cancel()
            for task in watching:
                task.cancel()


async def _watch(waiter: Waiter, receive: Receive, is_read: asyncio.Event) -> None:
    await is_read.wait()  # what comes before is the body's
    while (await receive())["type"] != "http.disconnect":
        pass
    await anyio.to_thread.run_sync(waiter.go, limiter=anyio.CapacityLimiter(1))


class Answers:
    """Answer a request that failed unforeseen, and count what was answered to searches."""

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
        except ClientDisconnect:
            return  # in the middle of the body: no caller waits for an answer
        except Exception:
            if status:
                raise
            request_id = scope["state"]["request_id"]
            logger.exception("request %s failed: %s %s", request_id, scope["method"], route_of(scope))
            sorry = problem_response(
                scope, 500, f"the service failed; its log says why under request id {request_id}"
            )
            await sorry(scope, receive, note_status)
        finally:
            if status and scope["path"] == scope.get("root_path", "") + self.search_path:
                self.metrics.count_search(
                    status,
                    time.perf_counter() - started,
                    personalised=scope["state"].get("personalised", False),
                    explored_slots=scope["state"].get("explored_slots", 0),
                )
