"""How a service is asked: address, key, and when a request is sent again. Nothing is sent here."""

import json
import random
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from embedding_studio.client.calls import Call
from embedding_studio.client.failures import failure, unreadable
from embedding_studio.domain import DEFAULT_COLLECTION
from embedding_studio.errors import InvalidInputError, shown

T = TypeVar("T")

TIMEOUT_SECONDS = 10.0
RETRIES = 3
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 5.0
"""Before a request is sent again, a wait is drawn between 0 and the first, doubled with each attempt."""

BUSY = frozenset({429, 502, 503, 504})
"""Statuses that may be another a moment later."""

NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""After which the service has surely done nothing."""

PROBLEM = "application/problem+json"

Outcome = httpx.Response | httpx.RequestError


@dataclass(frozen=True)
class Service:
    """One service, and on whose behalf it is asked.

    Attributes:
        url: where it is, maybe under a path. A name and password in it are taken out, and sent as
            ``Authorization: Basic``: so nothing that shows the address shows them.
        api_key: sent as ``Authorization: Bearer``.
        user_token: who the user is, signed; sent as ``X-User-Token``.
        collection: that is meant where a request names none.
        timeout: seconds for each attempt; a wait that the service asks for may be as long.
        retries: so often a request is sent again.

    Raises:
        InvalidInputError: one of these cannot be.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    user_token: str | None = field(default=None, repr=False)
    collection: str = DEFAULT_COLLECTION
    timeout: float = TIMEOUT_SECONDS
    retries: int = RETRIES
    rng: random.Random = field(default_factory=random.Random, repr=False)
    auth: tuple[str, str] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        url, auth = _address(self.url)
        object.__setattr__(self, "url", url)
        object.__setattr__(self, "auth", auth)
        if self.retries < 0 or not self.timeout > 0:
            raise InvalidInputError(
                f"retries is {self.retries} and timeout {self.timeout}; give 0 or more retries, and seconds"
            )
        for name, secret in (("api_key", self.api_key), ("user_token", self.user_token)):
            if secret is not None and not (secret and secret.isprintable() and " " not in secret):
                raise InvalidInputError(f"{name} is empty, or holds what no header may, such as a line's end")

    def options(self) -> dict[str, Any]:
        """Return what httpx needs to know; no certificates are loaded where none is looked at."""
        is_secure = self.url.startswith("https:")
        return {
            "timeout": self.timeout,
            "headers": self._headers(),
            "auth": self.auth,
            "verify": ssl.create_default_context() if is_secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        }

    def request(self, call: Call[Any]) -> dict[str, Any]:
        """Return a request, as httpx builds one.

        Raises:
            InvalidInputError: what is to be sent is nothing that JSON has, or that an address can hold.
        """
        try:
            url = httpx.URL(self.url + call.path, params=call.parameters)
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise InvalidInputError(f"what is asked for cannot stand in an address: {error}") from error
        request: dict[str, Any] = {"method": call.method, "url": url}
        if call.body is None:
            return request
        body = {"collection": self.collection, **call.body} if call.names_collection else call.body
        content = encoded(body)
        return request | {"content": content, "headers": {"Content-Type": "application/json"}}

    def wait(self, call: Call[Any], attempt: int, outcome: Outcome) -> float | None:
        """Return after how many seconds to send a request again; None: what came is the outcome.

        Args:
            attempt: 0 for the first.
        """
        if attempt >= self.retries:
            return None
        if isinstance(outcome, httpx.RequestError):
            may = isinstance(outcome, NOT_SENT) or call.is_repeatable
            after = 0.0
        else:
            may = outcome.status_code in BUSY and not call.is_question
            may &= call.is_repeatable or outcome.status_code == 429  # which is said before anything is done
            may &= not (outcome.status_code == 502 and _is_problem(outcome))  # an embedder's, and no proxy's
            after = _retry_after(outcome)
        if not may or after > self.timeout:
            return None
        return after + self.rng.uniform(0, min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt))

    def read(self, call: Call[T], answer: httpx.Response) -> T:
        """Return what an answer says.

        Raises:
            EmbeddingStudioError: it is no success, or makes no sense.
        """
        is_no = call.is_question and answer.status_code == 503 and _is_problem(answer)
        if not (answer.is_success or is_no):
            raise failure(answer)
        with self.readable(answer):
            return call.read(None if answer.status_code == 204 else json.loads(answer.content))

    @contextmanager
    def readable(self, answer: httpx.Response) -> Iterator[None]:
        """Let an answer that makes no sense be the service's error."""
        try:
            yield
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise unreadable(self.url, answer) from error

    def _headers(self) -> dict[str, str | bytes]:
        headers: dict[str, str | bytes] = {"User-Agent": "embedding-studio"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}".encode()
        if self.user_token is not None:
            headers["X-User-Token"] = self.user_token.encode()
        return headers


def _address(given: str) -> tuple[str, tuple[str, str] | None]:
    """Return an address without what it says of whoever asks, and the name and password that it held.

    Raises:
        InvalidInputError: it is no address of a service; what may be a password is not shown.
    """
    try:
        url = httpx.URL(given)
    except (httpx.InvalidURL, UnicodeEncodeError):
        url = httpx.URL()
    if not re.match("https?://", given) or not url.host:
        told = shown(re.sub(r"^(\w+://)?.*@", r"\1…@", given, flags=re.DOTALL))
        raise InvalidInputError(f"the address of a service is {told}; give one such as http://localhost:8000")
    if "?" in given or "#" in given:
        raise InvalidInputError(
            "the address of a service has a query or fragment, from its ? or # on; leave it out, as in "
            "http://localhost:8000/path"
        )
    auth = (url.username, url.password) if url.userinfo else None
    return re.sub("^(https?://)[^/]*@", r"\1", given).rstrip("/"), auth


def encoded(value: Any) -> bytes:
    """Return JSON in UTF-8.

    Raises:
        InvalidInputError: JSON has not what is in it.
    """
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInputError(f"what is to be sent is nothing that JSON has: {error}") from error


def _is_problem(answer: httpx.Response) -> bool:
    """Return whether it is the service itself that says what is wrong, and no proxy before it."""
    said: str = answer.headers.get("content-type", "")
    return said.startswith(PROBLEM)


def _retry_after(answer: httpx.Response) -> float:
    """Return how many seconds a service asks to wait: it says a number, or a date."""
    said = answer.headers.get("retry-after", "0")
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
