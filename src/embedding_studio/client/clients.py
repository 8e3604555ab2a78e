"""``Client`` and ``AsyncClient``: the same methods, made of ``calls``, over two thin transports."""

import inspect
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from embedding_studio.client import answers, calls
from embedding_studio.client.calls import (
    MOST_EVENTS,
    MOST_OBJECTS,
    MOST_SESSIONS,
    PAGE_SIZE,
    Call,
    EventGiven,
    ObjectGiven,
    batches,
)
from embedding_studio.client.failures import failure, unreachable
from embedding_studio.client.service import RETRIES, TIMEOUT_SECONDS, Outcome, Service, encoded
from embedding_studio.domain import DEFAULT_COLLECTION
from embedding_studio.errors import EmbeddingStudioError, counted

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M")

BATCH = 64
"""Objects in one request: their texts are embedded while it waits."""

BATCH_BYTES = 1_000_000
"""A service takes twice as much by default."""


def _method(make: Callable[P, Call[T]]) -> "Callable[Concatenate[Client, P], T]":
    def method(self: "Client", /, *args: P.args, **options: P.kwargs) -> T:
        return self._answer(make(*args, **options))

    return _named_as(make, method)


def _async_method(make: Callable[P, Call[T]]) -> "Callable[Concatenate[AsyncClient, P], Awaitable[T]]":
    async def method(self: "AsyncClient", /, *args: P.args, **options: P.kwargs) -> T:
        return await self._answer(make(*args, **options))

    return _named_as(make, method)


def _named_as(make: Callable[..., Any], method: M) -> M:
    """Let ``help`` show a method as the function that it was made of, with ``self`` before its parameters."""
    given = inspect.signature(make)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    told = {
        "__name__": make.__name__,
        "__doc__": make.__doc__,
        "__signature__": given.replace(
            parameters=[this, *given.parameters.values()], return_annotation=given.empty
        ),
    }
    for name, value in told.items():
        setattr(method, name, value)
    return method


class Client:
    """Asks a service of Embedding Studio over HTTP. It may be used from several threads; close it at the end.

    A request is sent again where that changes nothing: after a broken connection, or where the service is
    busy, when it says. What failed for good is raised as the error that the library itself would raise.

    Args:
        url: of the service.
        api_key: with the scope of what is asked.
        user_token: who the user is, signed, for a key that needs it.
        collection: that is meant where a call names none.
        timeout: seconds for each attempt.
        retries: so often a request is sent again.
        transport: of httpx, instead of the network.

    Raises:
        InvalidInputError: an argument cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        user_token: str | None = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._service = Service(url, api_key, user_token, collection, timeout, retries)
        self._http = httpx.Client(transport=transport, **self._service.options())
        self._sleep = time.sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    search = _method(calls.search)
    rank = _method(calls.rank)
    bend = _method(calls.bend)
    click = _method(calls.click)
    register_session = _method(calls.register_session)
    session = _method(calls.session)
    mark_irrelevant = _method(calls.mark_irrelevant)
    take_back = _method(calls.take_back)
    collections = _method(calls.collections)
    collection = _method(calls.collection)
    create_collection = _method(calls.create_collection)
    drop_collection = _method(calls.drop_collection)
    set_alias = _method(calls.set_alias)
    drop_alias = _method(calls.drop_alias)
    forget_user = _method(calls.forget_user)
    order = _method(calls.order)
    order_counts = _method(calls.order_counts)
    retry_order = _method(calls.retry_order)
    cancel_order = _method(calls.cancel_order)
    ready = _method(calls.ready)

    def push_events(
        self, session_id: str | None, events: Iterable[EventGiven]
    ) -> tuple[answers.EventReceipt, ...]:
        """Record what a user did in one session, and return what became of each event.

        Args:
            events: ids of objects that were clicked, or mappings with ``object_id``, and ``event_type``,
                ``event_id``, ``created_at`` and ``meta`` as of ``click``.
        """
        pushed = (
            self._answer(calls.push_events(session_id, batch)) for _, batch in batches(events, MOST_EVENTS)
        )
        return tuple(receipt for receipts in pushed for receipt in receipts)

    def push_events_of_sessions(
        self, events: Iterable[Mapping[str, Any]]
    ) -> tuple[answers.EventReceipt, ...]:
        """Record what users did in several sessions: each event has a ``session_id`` too."""
        pushed = (
            self._answer(calls.push_events_of_sessions(batch)) for _, batch in batches(events, MOST_EVENTS)
        )
        return tuple(receipt for receipts in pushed for receipt in receipts)

    def record_sessions(self, sessions: Iterable[Mapping[str, Any]]) -> tuple[answers.SessionReceipt, ...]:
        """Record many searches of another system with what they showed and what was done.

        Args:
            sessions: mappings as ``POST /api/v1/clickstream/sessions`` takes them.
        """
        recorded = (
            self._answer(calls.record_sessions(batch, collection=self._service.collection))
            for _, batch in batches(sessions, MOST_SESSIONS, _number_of_events, MOST_EVENTS)
        )
        return tuple(receipt for receipts in recorded for receipt in receipts)

    def upsert(
        self, objects: Iterable[ObjectGiven], *, batch_size: int = BATCH, collection: str | None = None
    ) -> answers.Indexed:
        """Store objects, replacing those of equal id, some at a time.

        Args:
            objects: mappings with ``object_id``, ``text`` or ``vectors``, and ``payload``; or
                ``CatalogueText`` and ``CatalogueObject``.

        Raises:
            InvalidInputError: one is refused. Nothing of its batch is stored, what came before is; a note
                of the error says how much.
        """
        total = answers.Indexed()
        for start, batch in batches(map(calls.item, objects), batch_size, _size, BATCH_BYTES):
            with _placed(start, len(batch)):
                total += self._answer(calls.upsert(batch, collection=collection))
        return total

    def update_payloads(
        self, payloads: Mapping[str, Mapping[str, Any]], *, collection: str | None = None
    ) -> answers.PayloadsReplaced:
        """Replace the payloads of objects, by id, each as a whole; vectors stay."""
        total = answers.PayloadsReplaced()
        for start, batch in batches(payloads.items(), MOST_OBJECTS, _size, BATCH_BYTES):
            with _placed(start, len(batch)):
                total += self._answer(calls.update_payloads(dict(batch), collection=collection))
        return total

    def delete(self, object_ids: Iterable[str], *, collection: str | None = None) -> int:
        """Remove objects, and all that was learnt about them; return how many were there."""
        return sum(
            self._answer(calls.delete(batch, collection=collection))
            for _, batch in batches(object_ids, MOST_OBJECTS)
        )

    def get(self, object_ids: Iterable[str], *, collection: str | None = None) -> list[answers.StoredObject]:
        """Return objects with their vectors: those that exist, in the order asked for."""
        return [
            found
            for _, batch in batches(object_ids, MOST_OBJECTS)
            for found in self._answer(calls.get(batch, collection=collection))
        ]

    def scroll(
        self,
        *,
        filter: Mapping[str, Any] | None = None,  # noqa: A002, the field's name in the request
        with_vectors: bool = False,
        page_size: int = PAGE_SIZE,
        collection: str | None = None,
    ) -> Iterator[answers.StoredObject]:
        """Yield the objects of a collection by id, whatever it holds, a page at a time."""
        after: str | None = None
        while True:
            page = self._answer(
                calls.scrolled(
                    after,
                    filter=filter,
                    with_vectors=with_vectors,
                    page_size=page_size,
                    collection=collection,
                )
            )
            yield from page.objects
            after = page.next_after
            if after is None:
                return

    def orders(
        self, status: str | None = None, *, page_size: int = PAGE_SIZE
    ) -> Iterator[answers.SessionForImprovement]:
        """Yield orders, latest change first: pending, processing, done, failed or refused ones, or all."""
        offset: int | None = 0
        while offset is not None:
            page = self._answer(calls.listed_orders(status, offset, page_size))
            yield from page.orders
            offset = page.next_page_offset

    def export_user(self, user_id: str) -> Iterator[dict[str, Any]]:
        """Yield all that is kept about a user, a row at a time, each with its ``kind``; for an admin key."""
        answer = self._sent(calls.exported_user(user_id), is_stream=True)
        try:
            for line in answer.iter_lines():
                with self._service.readable(answer):
                    row = json.loads(line)
                yield row
        except httpx.RequestError as error:
            raise unreachable(self._service.url, error) from error
        finally:
            answer.close()

    def _answer(self, call: Call[T]) -> T:
        return self._service.read(call, self._sent(call))

    def _sent(self, call: Call[Any], *, is_stream: bool = False) -> httpx.Response:
        """Return the answer of the last attempt: read, but for a stream that is a success."""
        request = self._service.request(call)
        for attempt in itertools.count():
            outcome: Outcome
            try:
                outcome = self._http.send(self._http.build_request(**request), stream=True)
                if not (is_stream and outcome.is_success):
                    outcome.read()
            except httpx.RequestError as error:
                outcome = error
            wait = self._service.wait(call, attempt, outcome)
            if wait is None:
                break
            self._sleep(wait)
        return _came(self._service, outcome, is_stream=is_stream)


class AsyncClient:
    """``Client`` for ``async`` code: the same methods, each awaited; what yields is read by ``async for``.

    Raises:
        InvalidInputError: an argument cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        user_token: str | None = None,
        collection: str = DEFAULT_COLLECTION,
        timeout: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._service = Service(url, api_key, user_token, collection, timeout, retries)
        self._http = httpx.AsyncClient(transport=transport, **self._service.options())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    search = _async_method(calls.search)
    rank = _async_method(calls.rank)
    bend = _async_method(calls.bend)
    click = _async_method(calls.click)
    register_session = _async_method(calls.register_session)
    session = _async_method(calls.session)
    mark_irrelevant = _async_method(calls.mark_irrelevant)
    take_back = _async_method(calls.take_back)
    collections = _async_method(calls.collections)
    collection = _async_method(calls.collection)
    create_collection = _async_method(calls.create_collection)
    drop_collection = _async_method(calls.drop_collection)
    set_alias = _async_method(calls.set_alias)
    drop_alias = _async_method(calls.drop_alias)
    forget_user = _async_method(calls.forget_user)
    order = _async_method(calls.order)
    order_counts = _async_method(calls.order_counts)
    retry_order = _async_method(calls.retry_order)
    cancel_order = _async_method(calls.cancel_order)
    ready = _async_method(calls.ready)

    async def push_events(
        self, session_id: str | None, events: Iterable[EventGiven]
    ) -> tuple[answers.EventReceipt, ...]:
        """Record what a user did in one session, and return what became of each event.

        Args:
            events: ids of objects that were clicked, or mappings with ``object_id``, and ``event_type``,
                ``event_id``, ``created_at`` and ``meta`` as of ``click``.
        """
        pushed = [
            await self._answer(calls.push_events(session_id, batch))
            for _, batch in batches(events, MOST_EVENTS)
        ]
        return tuple(receipt for receipts in pushed for receipt in receipts)

    async def push_events_of_sessions(
        self, events: Iterable[Mapping[str, Any]]
    ) -> tuple[answers.EventReceipt, ...]:
        """Record what users did in several sessions: each event has a ``session_id`` too."""
        pushed = [
            await self._answer(calls.push_events_of_sessions(batch))
            for _, batch in batches(events, MOST_EVENTS)
        ]
        return tuple(receipt for receipts in pushed for receipt in receipts)

    async def record_sessions(
        self, sessions: Iterable[Mapping[str, Any]]
    ) -> tuple[answers.SessionReceipt, ...]:
        """Record many searches of another system with what they showed and what was done.

        Args:
            sessions: mappings as ``POST /api/v1/clickstream/sessions`` takes them.
        """
        recorded = [
            await self._answer(calls.record_sessions(batch, collection=self._service.collection))
            for _, batch in batches(sessions, MOST_SESSIONS, _number_of_events, MOST_EVENTS)
        ]
        return tuple(receipt for receipts in recorded for receipt in receipts)

    async def upsert(
        self, objects: Iterable[ObjectGiven], *, batch_size: int = BATCH, collection: str | None = None
    ) -> answers.Indexed:
        """Store objects, replacing those of equal id, some at a time.

        Args:
            objects: mappings with ``object_id``, ``text`` or ``vectors``, and ``payload``; or
                ``CatalogueText`` and ``CatalogueObject``.

        Raises:
            InvalidInputError: one is refused. Nothing of its batch is stored, what came before is; a note
                of the error says how much.
        """
        total = answers.Indexed()
        for start, batch in batches(map(calls.item, objects), batch_size, _size, BATCH_BYTES):
            with _placed(start, len(batch)):
                total += await self._answer(calls.upsert(batch, collection=collection))
        return total

    async def update_payloads(
        self, payloads: Mapping[str, Mapping[str, Any]], *, collection: str | None = None
    ) -> answers.PayloadsReplaced:
        """Replace the payloads of objects, by id, each as a whole; vectors stay."""
        total = answers.PayloadsReplaced()
        for start, batch in batches(payloads.items(), MOST_OBJECTS, _size, BATCH_BYTES):
            with _placed(start, len(batch)):
                total += await self._answer(calls.update_payloads(dict(batch), collection=collection))
        return total

    async def delete(self, object_ids: Iterable[str], *, collection: str | None = None) -> int:
        """Remove objects, and all that was learnt about them; return how many were there."""
        deleted = [
            await self._answer(calls.delete(batch, collection=collection))
            for _, batch in batches(object_ids, MOST_OBJECTS)
        ]
        return sum(deleted)

    async def get(
        self, object_ids: Iterable[str], *, collection: str | None = None
    ) -> list[answers.StoredObject]:
        """Return objects with their vectors: those that exist, in the order asked for."""
        return [
            found
            for _, batch in batches(object_ids, MOST_OBJECTS)
            for found in await self._answer(calls.get(batch, collection=collection))
        ]

    async def scroll(
        self,
        *,
        filter: Mapping[str, Any] | None = None,  # noqa: A002, the field's name in the request
        with_vectors: bool = False,
        page_size: int = PAGE_SIZE,
        collection: str | None = None,
    ) -> AsyncIterator[answers.StoredObject]:
        """Yield the objects of a collection by id, whatever it holds, a page at a time."""
        after: str | None = None
        while True:
            page = await self._answer(
                calls.scrolled(
                    after,
                    filter=filter,
                    with_vectors=with_vectors,
                    page_size=page_size,
                    collection=collection,
                )
            )
            for each in page.objects:
                yield each
            after = page.next_after
            if after is None:
                return

    async def orders(
        self, status: str | None = None, *, page_size: int = PAGE_SIZE
    ) -> AsyncIterator[answers.SessionForImprovement]:
        """Yield orders, latest change first: pending, processing, done, failed or refused ones, or all."""
        offset: int | None = 0
        while offset is not None:
            page = await self._answer(calls.listed_orders(status, offset, page_size))
            for each in page.orders:
                yield each
            offset = page.next_page_offset

    async def export_user(self, user_id: str) -> AsyncIterator[dict[str, Any]]:
        """Yield all that is kept about a user, a row at a time, each with its ``kind``; for an admin key."""
        answer = await self._sent(calls.exported_user(user_id), is_stream=True)
        try:
            async for line in answer.aiter_lines():
                with self._service.readable(answer):
                    row = json.loads(line)
                yield row
        except httpx.RequestError as error:
            raise unreachable(self._service.url, error) from error
        finally:
            await answer.aclose()

    async def _answer(self, call: Call[T]) -> T:
        return self._service.read(call, await self._sent(call))

    async def _sent(self, call: Call[Any], *, is_stream: bool = False) -> httpx.Response:
        """Return the answer of the last attempt: read, but for a stream that is a success."""
        import anyio  # not for ``Client``

        request = self._service.request(call)
        for attempt in itertools.count():
            outcome: Outcome
            try:
                outcome = await self._http.send(self._http.build_request(**request), stream=True)
                if not (is_stream and outcome.is_success):
                    await outcome.aread()
            except httpx.RequestError as error:
                outcome = error
            wait = self._service.wait(call, attempt, outcome)
            if wait is None:
                break
            await anyio.sleep(wait)
        return _came(self._service, outcome, is_stream=is_stream)


@contextmanager
def _placed(start: int, number: int) -> Iterator[None]:
    """Let an error say of which objects it is, of those that were given."""
    try:
        yield
    except EmbeddingStudioError as error:
        error.add_note(f"in the {counted(number, 'object')} from number {start} on; those before are stored")
        raise


def _came(service: Service, outcome: Outcome, *, is_stream: bool) -> httpx.Response:
    if isinstance(outcome, httpx.RequestError):
        raise unreachable(service.url, outcome) from outcome
    if is_stream and not outcome.is_success:
        raise failure(outcome)
    return outcome


def _number_of_events(session: Mapping[str, Any]) -> int:
    return 1 + len(session.get("events", ()))


def _size(given: Any) -> int:
    return len(encoded(given))
