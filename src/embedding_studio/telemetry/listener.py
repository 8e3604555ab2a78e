"""Tells the numbers of a process over HTTP, where there is no service that does: ``GET /metrics`` alone."""

import hmac
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address

from embedding_studio.errors import InvalidSettingError
from embedding_studio.telemetry.metrics import CONTENT_TYPE_LATEST

logger = logging.getLogger(__name__)

REQUEST_SECONDS = 10
"""After which a caller who does not finish a request is hung up on."""

STOP_SECONDS = 0.1
"""So late it is noticed that the listener is to end."""


@contextmanager
def listening(
    exposition: Callable[[], bytes], *, host: str, port: int, key: str | None = None
) -> Iterator[str]:
    """Tell what ``exposition`` returns as long as the block runs, in daemon threads; yield the URL.

    Args:
        port: 0 takes a free one.
        key: is asked for as ``Authorization: Bearer KEY``; without one only this machine is listened to.

    Raises:
        InvalidSettingError: the port is taken, the host is not of this machine, or it needs a key.
    """
    if key is None and not is_loopback(host):
        raise InvalidSettingError(
            f"without a key a worker tells its numbers to this machine only, not on {host}: "
            "set ADMIN_API_KEY, or HOST=127.0.0.1"
        )
    try:
        server = _Server(exposition, host, port, key)
    except OSError as error:
        raise InvalidSettingError(
            f"a worker cannot tell its numbers on {host}:{port} ({error.strerror}); choose another "
            "WORKER_METRICS_PORT for each worker of this machine, or 0 for a free one"
        ) from error
    answering = threading.Thread(
        target=server.serve_forever, args=(STOP_SECONDS,), name="metrics", daemon=True
    )
    with server:
        answering.start()
        try:
            yield server.url
        finally:
            server.shutdown()


class _Server(socketserver.ThreadingTCPServer):
    # Not http.server's, which looks up the name of the host first, and that may take seconds.
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, exposition: Callable[[], bytes], host: str, port: int, key: str | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.exposition = exposition
        self.key = key
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        host, port = self.socket.getsockname()[:2]
        return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"

    def handle_error(self, *_: object) -> None:
        logger.warning(
            "somebody who asked for the numbers got no answer",
            exc_info=True,  # noqa: LOG014, it is called where an exception is handled
        )


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_SECONDS

    def handle(self) -> None:
        """Answer, unless the whole of the request takes too long to come: each read has its own timeout."""
        hanging_up = threading.Timer(REQUEST_SECONDS, self._hang_up)
        hanging_up.daemon = True
        hanging_up.start()
        try:
            super().handle()
        finally:
            hanging_up.cancel()

    def _hang_up(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self._answer(HTTPStatus.NOT_FOUND, b"there is /metrics alone\n")
        elif not self._may_read():
            self._answer(HTTPStatus.UNAUTHORIZED, b"send `Authorization: Bearer ADMIN_API_KEY`\n")
        else:
            self._answer(HTTPStatus.OK, self.server.exposition(), CONTENT_TYPE_LATEST)

    def log_message(self, *_: object) -> None:
        """Say nothing: a scrape every few seconds is no news."""

    def _may_read(self) -> bool:
        """Compare in a time that does not tell how much of the key was right."""
        given = self.headers.get("Authorization", "").encode("latin-1")
        return self.server.key is None or hmac.compare_digest(given, f"Bearer {self.server.key}".encode())

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status is HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", 'Bearer realm="embedding-studio"')
        self.end_headers()
        self.wfile.write(body)


def is_loopback(host: str) -> bool:
    """Return whether a host is reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
