"""An address that takes JSON: with a deadline, attempts, a bound on answers, and secrets out of sight."""

import asyncio
import email.utils
import json
import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import Any, Self
from urllib.parse import unquote_plus

import httpx

from embedding_studio.embedders.names import without_secrets
from embedding_studio.errors import EmbedderUnavailableError, EmbeddingError, InvalidSettingError, counted

ATTEMPTS = 5
BACKOFF_SECONDS = 0.5
TIMEOUT_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 60.0
LAST_PORT = 65_535
LARGEST_REFUSAL_BYTES = 65_536
SHORTEST_SECRET = 4
"""Shorter values are no secrets, and stand in many answers by chance."""


class EndpointRefusedError(EmbeddingError):
    """The endpoint will not do it; asking again gives the same.

    Attributes:
        status: of HTTP.
        said: the beginning of its answer.
    """

    def __init__(self, message: str, *, status: int, said: str) -> None:
        super().__init__(message)
        self.status = status
        self.said = said


class Endpoint:
    """Asks ``BASE_URL/embeddings``. Safe to use from several threads.

    Requests run in an event loop of their own, whose thread starts with the first. Only so is a deadline one
    for all that a request may wait for (names, several addresses, an answer that comes in drops), and ends at
    once what is given up: a timeout of a socket begins again with each address and each drop.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        attempts: int = ATTEMPTS,
        backoff_seconds: float = BACKOFF_SECONDS,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Name an endpoint.

        Args:
            base_url: what stands before ``/embeddings``; a query in it stays behind the path.
            model: is named in messages.
            attempts: at least 1; how often a request is sent before it counts as failed. Sent again is
                what met a lost connection, status 429 or 5xx.
            backoff_seconds: before the second attempt, doubled before each further one, unless the
                server says how long to wait (``Retry-After``); at most 60 s either way.
            timeout_seconds: for one attempt as a whole.

        Raises:
            InvalidSettingError: it is no URL.
        """
        self.told = f"the embedding endpoint {without_secrets(base_url)}, model {model!r},"
        try:
            base = httpx.URL(base_url)
        except httpx.InvalidURL as error:
            raise InvalidSettingError(
                f"{self.told} has no address that can be asked; write %40 for an @ in a password, %2F for a /"
            ) from error
        if base.port is not None and base.port > LAST_PORT:
            raise InvalidSettingError(f"{self.told} has the port {base.port}; the last is {LAST_PORT}")
        api_key = api_key and api_key.strip()  # a file with a key in it ends in a line break
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise InvalidSettingError(f"{self.told} has a key that no header can hold; is it the right one?")
        path, _, query = base.raw_path.partition(b"?")
        path = path.rstrip(b"/") + b"/embeddings"
        self._url = base.copy_with(raw_path=path + b"?" + query if query else path, fragment=None)
        self._secrets = _secrets_of(base, query.decode(), api_key)
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if api_key and "api-version" in base.params:  # Azure's way
            self._headers["api-key"] = api_key
        elif api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._attempts = attempts
        self._backoff_seconds = backoff_seconds
        self._timeout_seconds = timeout_seconds
        self._requests = _Requests()
        self._log_filter = _HiddenQuery(self._url)
        logging.getLogger("httpx").addFilter(self._log_filter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back; whoever keeps the endpoint for the life of a process need not."""
        logging.getLogger("httpx").removeFilter(self._log_filter)
        self._requests.close()

    def post(
        self,
        body: dict[str, object],
        *,
        most_bytes: int,
        until: float = math.inf,
        texts: Sequence[str] = (),
    ) -> bytes:
        """Return the first answer that is one.

        Args:
            texts: of the body, which no error repeats if the answer does.
            most_bytes: of an answer; what is longer is not read.
            until: on the monotonic clock, when the caller leaves.

        Raises:
            EmbedderUnavailableError: no attempt was answered, or none in time.
            EndpointRefusedError: the request was refused.
            EmbeddingError: the answer is too long.
        """
        content = json.dumps(body).encode()
        for attempt in range(1, self._attempts + 1):
            try:
                return self._attempt(content, most_bytes, until, attempt, texts)
            except EmbedderUnavailableError as error:
                told_seconds = error.retry_after_seconds
                backoff_seconds = self._backoff_seconds * 2 ** (attempt - 1)
                wait_seconds = backoff_seconds if told_seconds is None else told_seconds
                wait_seconds = min(wait_seconds, LONGEST_WAIT_SECONDS)
                if attempt == self._attempts or time.monotonic() + wait_seconds >= until:
                    raise
            time.sleep(wait_seconds)
        raise AssertionError("the last attempt returns or raises")

    def _attempt(
        self, content: bytes, most_bytes: int, until: float, attempt: int, texts: Sequence[str]
    ) -> bytes:
        seconds = min(self._timeout_seconds, until - time.monotonic())
        try:
            response, answer = self._requests.post(self._url, content, self._headers, most_bytes, seconds)
        except TimeoutError as error:
            raise EmbedderUnavailableError(f"{self.told} did not answer in {seconds:.3g} s") from error
        except httpx.TransportError as error:
            tried = f"in {counted(attempt, 'attempt')}"
            raise EmbedderUnavailableError(
                f"{self.told} cannot be reached {tried}: {self._masked(str(error))}"
            ) from error
        except httpx.DecodingError as error:
            raise EmbeddingError(f"{self.told} answered what cannot be unpacked: {error}") from error
        said = self.excerpt(answer, texts)
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
            raise EmbedderUnavailableError(
                f"{self.told} refused with status {response.status_code}: {said}",
                retry_after_seconds=_retry_after_seconds(response),
            )
        if not response.is_success:
            raise EndpointRefusedError(
                f"{self.told} refused with status {response.status_code}: {said}",
                status=response.status_code,
                said=said,
            )
        if len(answer) > most_bytes:
            raise EmbeddingError(
                f"{self.told} answered with more than {most_bytes} bytes, more than such vectors take: {said}"
            )
        return answer

    def excerpt(self, answer: bytes, texts: Sequence[str]) -> str:
        """Return the beginning of what the server says, without secrets and texts, should it repeat them."""
        said = self._masked(_on_one_line(answer[:LARGEST_REFUSAL_BYTES].decode(errors="replace")))
        for text in sorted(map(_on_one_line, texts), key=len, reverse=True):
            if len(text) >= SHORTEST_SECRET:
                for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
                    said = said.replace(form, "***")
        return said[:200]

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


class _Requests:
    """An HTTP client in an event loop in a thread."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._started: tuple[asyncio.AbstractEventLoop, httpx.AsyncClient, threading.Thread] | None = None

    def post(
        self, url: httpx.URL, content: bytes, headers: dict[str, str], most_bytes: int, seconds: float
    ) -> tuple[httpx.Response, bytes]:
        """Return the answer, cut behind ``most_bytes``.

        Raises:
            TimeoutError: there is no whole answer after so many seconds.
            httpx.TransportError: the connection failed.
        """
        with self._starting:
            loop, client, _ = self._started = self._started or self._start()

        async def ask() -> tuple[httpx.Response, bytes]:
            answer = bytearray()
            async with (
                asyncio.timeout(seconds),
                client.stream("POST", url, content=content, headers=headers) as response,
            ):
                async for piece in response.aiter_bytes():
                    answer += piece
                    if len(answer) > most_bytes:
                        break
            return response, bytes(answer)

        return asyncio.run_coroutine_threadsafe(ask(), loop).result()

    def _start(self) -> tuple[asyncio.AbstractEventLoop, httpx.AsyncClient, threading.Thread]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="embedder", daemon=True)
        thread.start()
        return loop, httpx.AsyncClient(timeout=None), thread  # noqa: S113, the deadline is for all of it

    def close(self) -> None:
        with self._starting:
            started, self._started = self._started, None
        if started is not None:
            loop, client, thread = started
            asyncio.run_coroutine_threadsafe(client.aclose(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


class _HiddenQuery(logging.Filter):
    """Takes secrets from the URL of an endpoint where httpx logs its requests."""

    def __init__(self, url: httpx.URL) -> None:
        super().__init__()
        self._url = url

    def filter(self, record: logging.LogRecord) -> bool:
        args: Any = record.args
        if isinstance(args, tuple) and self._url in args:
            shown = without_secrets(str(self._url))
            record.args = tuple(shown if each == self._url else each for each in args)
        return True


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _secrets_of(url: httpx.URL, query: str, api_key: str | None) -> list[str]:
    """Return what is never to be repeated, the longest first: what holds another goes before it."""
    told = [api_key, query, url.username, url.password, url.userinfo.decode()]
    for pair in query.split("&"):
        value = pair.partition("=")[2]
        told += [value, unquote_plus(value)]
    return sorted({each for each in told if each and len(each) >= SHORTEST_SECRET}, key=len, reverse=True)


def _retry_after_seconds(response: httpx.Response) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which may be a number or a date; None without one."""
    told = response.headers.get("Retry-After", "")
    if told.isdecimal():
        return float(told)
    try:
        until = email.utils.parsedate_to_datetime(told)
    except ValueError:
        return None
    return max(0.0, until.timestamp() - time.time())
