"""The server that carries the service: how long a client may take to ask, and how many may be connected."""

import asyncio
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from embedding_studio.settings import Settings

try:
    import resource
except ImportError:  # not on Windows, which has no such limit
    resource = None  # type: ignore[assignment]

MOST_ACCEPTED_AT_ONCE = 4
"""Connections in one go: before there is room made for them, and what they sent is read."""
MOST_TO_BE_ACCEPTED = 4096
"""Connections that the system keeps until then; beyond, a client tries again after a second."""

SECONDS_TO_END = 10
"""At SIGTERM, for requests under way; a database that is away would keep them for longer."""

SECONDS_TO_READ = 0.1
"""Before that, for what connections that were just accepted have sent."""

MOST_HELD_BYTES = 65_536
"""Of an answer: more is sent as it is written, so that whoever writes it waits for a slow client."""

LATE = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain\r\nconnection: close\r\n"
    b"content-length: 41\r\n\r\n"
    b"the request did not arrive whole in time\n"
)


def server(app: FastAPI, settings: Settings) -> "Server":
    """Return the server of an app, for it to be run."""
    most = _most_connections(settings)
    protocol = partial(Connection, seconds=settings.request_seconds, most=most)
    return Server(
        uvicorn.Config(
            app,
            http=protocol,  # type: ignore[arg-type]  # whatever makes one
            loop="asyncio",  # whatever else is installed: ``backlog`` means what is said here
            ws="none",
            root_path=settings.root_path,
            backlog=MOST_ACCEPTED_AT_ONCE,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SECONDS_TO_END,
        )
    )


class Server(uvicorn.Server):
    """A server that accepts few connections in one go, and lets many wait for it."""

    when_started: Callable[[], object] | None = None
    """Called once it answers."""
    when_to_end: Callable[[], object] | None = None
    """Called at once when it is told to end; uvicorn hands the signal on only after its own end."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self.when_to_end is not None:
            self.when_to_end()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(MOST_TO_BE_ACCEPTED)  # for asyncio both are one number
        if self.when_started is not None:
            self.when_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End once what was accepted is read: uvicorn would hang up on whoever has not been heard yet."""
        for each in self.servers:
            each.close()
        await asyncio.sleep(SECONDS_TO_READ)
        await super().shutdown(sockets)


class Connection(H11Protocol):
    """A connection whose client has so many seconds for each request.

    Where there are too many, the one is closed that has waited longest for its client; the new one where all
    are being served.
    """

    def __init__(self, *args: object, seconds: float, most: int, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._seconds = seconds
        self._most = most
        self._deadline: asyncio.TimerHandle | None = None
        self.waits_since: float | None = None
        """Since when it waits for its client, in seconds of ``time.monotonic``; None: it does not."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._written = Written(transport, self.loop)
        super().connection_made(self._written)  # type: ignore[arg-type]  # as much of one as is used
        if len(self.connections) > self._most:
            self._make_room()
        self._wait_for_client()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state in {h11.IDLE, h11.SEND_BODY}:
            self._wait_for_client()
        else:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        self._written.flush()
        super().on_response_complete()
        if self.waits_since is None:
            self.waits_since = time.monotonic()  # for the next request; ``timeout_keep_alive`` ends that

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def _wait_for_client(self) -> None:
        if self._deadline is None:
            self.waits_since = time.monotonic()
            self._deadline = self.loop.call_later(self._seconds, self._close_late)

    def _stop_waiting(self) -> None:
        self.waits_since = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close_late(self) -> None:
        if self.conn.their_state is h11.SEND_BODY and not self.cycle.response_started:
            self.transport.write(LATE)
            self.transport.close()
        else:
            self.transport.abort()

    def _make_room(self) -> None:
        waiting = [each for each in self.connections if isinstance(each, Connection) and each.waits_since]
        oldest = min(waiting, key=lambda each: each.waits_since or 0, default=self)
        self.connections.discard(oldest)
        oldest.transport.abort()


class Written:
    """A transport that sends the head of an answer together with what is written at once after it.

    Else the client is woken for the head alone, and the system is called twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._held_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > MOST_HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._held:
            together = b"".join(self._held)
            self._held, self._held_bytes = [], 0
            if not self._transport.is_closing():
                self._transport.write(together)

    def close(self) -> None:
        self.flush()
        self._transport.close()


def _most_connections(settings: Settings) -> int:
    files = -1 if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return min(settings.max_connections, sys.maxsize if files < 0 else files // 2)
