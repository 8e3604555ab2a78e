"""Sessions and events in PostgreSQL."""

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from psycopg.types.json import Jsonb

from embedding_studio.domain.objects import Collection
from embedding_studio.domain.sessions import (
    EventDisposition,
    RecordedSession,
    SearchRequest,
    SearchResultItem,
    Session,
    SessionEvent,
)
from embedding_studio.errors import ConflictError, SessionNotFoundError
from embedding_studio.storage.ports import Vectors
from embedding_studio.storage.postgres.collections import (
    find_collection,
    list_collections,
    lock_names,
    names_of,
)
from embedding_studio.storage.postgres.database import Connection, Database, only_row
from embedding_studio.storage.postgres.folds import mark_learnt
from embedding_studio.storage.postgres.orders import place
from embedding_studio.storage.postgres.schema import USER_LOCK
from embedding_studio.storage.postgres.sql import in_schema, statements
from embedding_studio.storage.postgres.votes import ask_voted, replace_votes

Row = tuple[Any, ...]

_SQL = statements("clickstream.sql")
_SESSION_FIELDS = frozenset(Session.model_fields)
_RESULT_FIELDS = frozenset(SearchResultItem.model_fields)
_EVENT_FIELDS = frozenset(SessionEvent.model_fields)


class PostgresClickstream:
    def __init__(self, database: Database, order_on: Container[str]) -> None:
        self._database = database
        self._order_on = order_on

    def register_session(self, session: Session, query_vectors: Vectors | None = None) -> bool:
        given = {
            "session_id": session.session_id,
            "user_id": session.user_id,
            "search_query": session.search_query,
            "collection": session.collection,
            "created_at": session.created_at,
            "is_irrelevant": session.is_irrelevant,
            "search_meta": _json(session.search_meta),
            "request": _json(session.request.model_dump() if session.request else None),
            **packed(query_vectors),
            **_new_results({}, session.search_results),
        }

        def work(connection: Connection) -> bool:
            (is_new,) = only_row(connection.execute(_SQL["insert_session"], given))
            if not is_new:
                find_collection(connection, session.collection)
                _require_same(_session_row(connection, session.session_id), session)
                return False
            _push(connection, session.events, self._order_on)
            return True

        # A statement alone is a transaction, and saves the round trips of one.
        return self._database.write(work, alone=not session.events)

    def append_results(self, session_id: str, results: Sequence[SearchResultItem]) -> None:
        def positions(connection: Connection) -> dict[str, int]:
            shown = connection.execute(_SQL["results"], {"session_ids": [session_id]}).fetchall()
            return {row[1]: row[4] for row in shown}

        def work(connection: Connection) -> None:
            before = positions(connection)
            if before and not _new_results(before, results)["object_ids"]:
                return  # a page shown again teaches nothing
            mark_learnt(connection, session_id)
            if connection.execute(_SQL["lock_session"], {"session_id": session_id}).rowcount == 0:
                raise _not_found(session_id)
            _show(connection, session_id, positions(connection), results)

        self._database.write(work)

    def push_events(self, events: Sequence[SessionEvent]) -> list[EventDisposition]:
        return self._database.write(lambda connection: _push(connection, events, self._order_on))

    def get_session(self, session_id: str) -> Session:
        def work(connection: Connection) -> Session:
            row = _session_row(connection, session_id)
            results, events = load_results_and_events(connection, [session_id])
            return built_session(row, results.get(session_id, ()), events.get(session_id, ()))

        return self._database.read(work)

    def recent_queries(self, collection: Collection, limit: int) -> list[Vectors]:
        def work(connection: Connection) -> list[Vectors]:
            given = {
                "collections": names_of(connection, collection),
                "dimensions": collection.index.dimensions,
                "limit": limit,
            }
            rows = connection.execute(_SQL["recent_queries"], given, binary=True).fetchall()
            return [unpacked(query_vectors, dimensions) for query_vectors, dimensions in rows]

        return self._database.read(work)

    def recent_sessions(
        self, collection: Collection, user_ids: Sequence[str], limit_per_user: int
    ) -> dict[str, list[RecordedSession]]:
        def work(connection: Connection) -> dict[str, list[RecordedSession]]:
            given = {
                "user_ids": list(set(user_ids)),
                "collections": names_of(connection, collection),
                "limit_per_user": limit_per_user,
            }
            rows = connection.execute(_SQL["recent_sessions"], given, binary=True).fetchall()
            results, events = load_results_and_events(connection, [row[0] for row in rows])
            recent: dict[str, list[RecordedSession]] = {user_id: [] for user_id in user_ids}
            for *fields, query_vectors, dimensions in rows:
                session = built_session(tuple(fields), results.get(fields[0], ()), events.get(fields[0], ()))
                fits = dimensions == collection.index.dimensions
                vectors = unpacked(query_vectors, dimensions) if fits else None
                recent[fields[2]].append(RecordedSession(session, vectors))
            return recent

        return self._database.read(work)

    def mark_irrelevant(self, session_id: str) -> None:
        given = {"session_id": session_id}

        def work(connection: Connection) -> None:
            if connection.execute(_SQL["has_order"], given).rowcount:
                place(connection, [session_id])
            if connection.execute(_SQL["mark_irrelevant"], given).rowcount == 0:
                raise _not_found(session_id)

        self._database.write(work)

    def forget_user(self, user_id: str) -> int:
        given = {"user_id": user_id}

        def work(connection: Connection) -> int:
            lock_names(connection)
            lock_users(connection, [user_id])
            for collection in list_collections(connection):
                connection.execute(
                    in_schema("clickstream.sql", "forget_state", collection.collection_id), given
                )
                voted = ask_voted(connection, collection, [user_id])
                replace_votes(connection, collection, {user_id: ()}, voted)
            connection.execute(_SQL["forget_folds"], given)
            return connection.execute(_SQL["forget_sessions"], given).rowcount

        return self._database.write(work)


def lock_users(connection: Connection, user_ids: Sequence[str]) -> None:
    """Keep everybody else from changing what is learnt about these users till the commit."""
    connection.execute(_SQL["lock_users"], {"lock_class": USER_LOCK, "user_ids": list(user_ids)})


def keep_query_vectors(connection: Connection, vectors: Mapping[str, Vectors]) -> None:
    """Keep query vectors, [Q, D] by session id."""
    if not vectors:
        return
    columns = [packed(parts) for parts in vectors.values()]
    given = {
        "session_ids": list(vectors),
        "query_vectors": [column["query_vectors"] for column in columns],
        "query_dimensions": [column["query_dimensions"] for column in columns],
    }
    connection.execute(_SQL["store_query_vectors"], given)


def packed(vectors: Vectors | None) -> dict[str, Any]:
    """Return query vectors as columns."""
    if vectors is None:
        return {"query_vectors": None, "query_dimensions": None}
    parts = np.atleast_2d(np.asarray(vectors, dtype="<f4"))
    return {"query_vectors": parts.tobytes(), "query_dimensions": parts.shape[1]}


def unpacked(query_vectors: bytes, dimensions: int) -> Vectors:
    """Return query vectors, [Q, D] float32, from their columns."""
    return np.frombuffer(query_vectors, dtype="<f4").reshape(-1, dimensions).astype(np.float32)


def load_results_and_events(
    connection: Connection, session_ids: Sequence[str]
) -> tuple[dict[str, tuple[SearchResultItem, ...]], dict[str, tuple[SessionEvent, ...]]]:
    """Return results by position and events by time, each under the id of its session."""
    given = {"session_ids": list(session_ids)}
    with connection.pipeline():
        results = connection.execute(_SQL["results"], given, binary=True)
        events = connection.execute(_SQL["events"], given, binary=True)
    return (
        {key: tuple(map(_result, rows)) for key, rows in groupby(results.fetchall(), itemgetter(0))},
        {key: tuple(map(_event, rows)) for key, rows in groupby(events.fetchall(), itemgetter(0))},
    )


# What was validated on its way in is not validated again on its way out: that would take most of the
# time of loading.


def built_session(
    row: Row, results: tuple[SearchResultItem, ...], events: tuple[SessionEvent, ...]
) -> Session:
    session_id, search_query, user_id, created_at, collection, search_meta, request, is_irrelevant = row
    return Session.model_construct(
        _fields_set=set(_SESSION_FIELDS),
        session_id=session_id,
        search_query=search_query,
        user_id=user_id,
        created_at=created_at,
        collection=collection,
        search_results=results,
        search_meta=search_meta,
        request=None if request is None else SearchRequest.model_validate(request),
        is_irrelevant=is_irrelevant,
        events=events,
    )


def _result(row: Row) -> SearchResultItem:
    _, object_id, distance, meta, position, personalised, propensity = row
    return SearchResultItem.model_construct(
        _fields_set=set(_RESULT_FIELDS),
        object_id=object_id,
        rank=distance,
        meta=meta,
        position=position,
        personalised=personalised,
        propensity=propensity,
    )


def _event(row: Row) -> SessionEvent:
    session_id, object_id, event_type, created_at, event_id, meta = row
    return SessionEvent.model_construct(
        _fields_set=set(_EVENT_FIELDS),
        session_id=session_id,
        object_id=object_id,
        event_type=event_type,
        created_at=created_at,
        event_id=event_id,
        meta=meta,
    )


def _show(
    connection: Connection, session_id: str, positions: dict[str, int], results: Iterable[SearchResultItem]
) -> None:
    """Store what is shown for the first time."""
    given = {"session_id": session_id, **_new_results(positions, results)}
    if given["object_ids"]:
        connection.execute(_SQL["insert_results"], given)


def _new_results(positions: dict[str, int], results: Iterable[SearchResultItem]) -> dict[str, list[Any]]:
    """Return what is shown for the first time; what has no position comes after all that has one so far."""
    last = max(positions.values(), default=0)
    new: dict[str, tuple[int, SearchResultItem]] = {}
    for result in results:
        if result.object_id not in positions and result.object_id not in new:
            position = result.position or last + 1
            new[result.object_id] = position, result
            last = max(last, position)
    return {
        "object_ids": list(new),
        "positions": [position for position, _ in new.values()],
        "distances": [result.rank for _, result in new.values()],
        "personalised": [result.personalised for _, result in new.values()],
        "propensities": [result.propensity for _, result in new.values()],
        "metas": [_json(result.meta) for _, result in new.values()],
    }


def _push(
    connection: Connection, events: Sequence[SessionEvent], order_on: Container[str]
) -> list[EventDisposition]:
    if not events:
        return []
    given = {
        "session_ids": [event.session_id for event in events],
        "event_ids": [event.event_id for event in events],
        "object_ids": [event.object_id for event in events],
        "event_types": [event.event_type for event in events],
        "created_ats": [event.created_at for event in events],
        "metas": [_json(event.meta) for event in events],
    }
    rows = connection.execute(_SQL["push"], given).fetchall()
    touched = {
        event.session_id
        for event, (_, is_new, _) in zip(events, rows, strict=True)
        if is_new and event.event_type in order_on
    }
    if touched:
        place(connection, sorted(touched))
    return [_disposition(*row) for row in rows]


def _disposition(is_known: bool, is_new: bool, is_shown: bool) -> EventDisposition:  # noqa: FBT001, columns
    if not is_known:
        return EventDisposition.UNKNOWN_SESSION
    if not is_new:
        return EventDisposition.DUPLICATE
    return EventDisposition.ACCEPTED if is_shown else EventDisposition.UNKNOWN_OBJECT


def _session_row(connection: Connection, session_id: str) -> Row:
    row = connection.execute(_SQL["get_session"], {"session_id": session_id}).fetchone()
    if row is None:
        raise _not_found(session_id)
    return row


def _not_found(session_id: str) -> SessionNotFoundError:
    return SessionNotFoundError(f"session {session_id!r} was never registered; register it first")


def _require_same(row: Row, session: Session) -> None:
    _, search_query, user_id, _, collection, *_ = row
    recorded = {"user_id": user_id, "search_query": search_query, "collection": collection}
    for what, value in recorded.items():
        if value != getattr(session, what):
            raise ConflictError(
                f"session {session.session_id!r} has {what} {value!r} already, not "
                f"{getattr(session, what)!r}; give each search a session_id of its own"
            )


def _json(value: dict[str, Any] | None) -> Jsonb | None:
    return None if value is None else Jsonb(value)
