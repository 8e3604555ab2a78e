"""Sessions and events as rows, and back; no statement is run here.

What was validated on its way in is not validated again on its way out: that would take most of the time of
loading.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import count, repeat
from typing import Any

import numpy as np

from embedding_studio.domain.sessions import (
    FurtherPage,
    RecordedSession,
    SearchRequest,
    SearchResultItem,
    Session,
    SessionEvent,
    pages_with,
    trusted,
)
from embedding_studio.domain.storable import as_json
from embedding_studio.storage.ports import Vectors

Row = tuple[Any, ...]
FIRST_OF_SHOWN = 9
"""The columns from here on in the row of a session are what it showed."""


def packed_query(vectors: Vectors | None) -> dict[str, Any]:
    """Return query vectors as columns."""
    if vectors is None:
        return {"query_vectors": None, "query_dimensions": None}
    parts = np.atleast_2d(np.asarray(vectors, dtype="<f4"))
    return {"query_vectors": parts.tobytes(), "query_dimensions": parts.shape[1]}


def unpacked_query(query_vectors: bytes, dimensions: int) -> Vectors:
    """Return query vectors, [Q, D] float32, from their columns."""
    return np.frombuffer(query_vectors, dtype="<f4").reshape(-1, dimensions).astype(np.float32)


def built_session(row: Row, events: tuple[SessionEvent, ...]) -> Session:
    *fields, request, _, is_irrelevant = row[:FIRST_OF_SHOWN]
    session_id, search_query, user_id, created_at, collection, search_meta = fields
    return trusted(
        Session,
        session_id=session_id,
        search_query=search_query,
        user_id=user_id,
        created_at=created_at,
        collection=collection,
        search_results=results_of(row),
        search_meta=search_meta,
        request=None if request is None else SearchRequest.model_validate(request),
        pages=pages_of(row),
        is_irrelevant=is_irrelevant,
        events=events,
    )


def pages_of(row: Row) -> tuple[FurtherPage, ...]:
    """Return what is kept of the pages after the first, of a session's row."""
    return tuple(
        trusted(
            FurtherPage,
            request=SearchRequest.model_validate(page["request"]),
            created_at=page["created_at"],
            object_ids=tuple(page["object_ids"]),
        )
        for page in row[FIRST_OF_SHOWN - 2] or ()
    )


def results_of(row: Row) -> tuple[SearchResultItem, ...]:
    """Return what a session showed, of its row."""
    shown, positions, distances, personalised, propensities, metas = row[FIRST_OF_SHOWN:]
    return tuple(
        trusted(
            SearchResultItem,
            object_id=object_id,
            rank=distance,
            meta=meta,
            position=position,
            personalised=is_personalised,
            propensity=propensity,
        )
        for object_id, position, distance, is_personalised, propensity, meta in zip(
            shown,
            positions or count(1),
            distances or repeat(None),
            personalised or repeat(False),
            propensities or repeat(1.0),
            metas or repeat(None),
            strict=False,
        )
    )


def columns_of(results: Sequence[SearchResultItem]) -> dict[str, Any]:
    """Return the columns of what a session showed, best first; absent: None."""
    in_order = [*range(1, len(results) + 1)]
    positions = [each.position for each in results]
    ordered = results
    if positions != in_order:
        ordered = sorted(results, key=lambda each: (each.position or 0, each.object_id.encode()))
        positions = [each.position for each in ordered]
    return {
        "shown": [each.object_id for each in ordered],
        "positions": None if positions == in_order else positions,
        "distances": _unless([each.rank for each in ordered], None),
        "personalised": _unless([each.personalised for each in ordered], False),
        "propensities": _unless([each.propensity for each in ordered], 1.0),
        "metas": _unless([each.meta for each in ordered], None),
    }


def _unless(values: list[Any], usual: object) -> list[Any] | None:
    """Return values; None where all are as usual."""
    return None if values.count(usual) == len(values) else values


def event_of(row: Row) -> SessionEvent:
    session_id, object_id, event_type, created_at, event_id, meta = row
    return trusted(
        SessionEvent,
        session_id=session_id,
        object_id=object_id,
        event_type=event_type,
        created_at=created_at,
        event_id=event_id,
        meta=meta,
    )


def session_row(recorded: RecordedSession) -> dict[str, Any]:
    session = recorded.session
    row = {
        "session_id": session.session_id,
        "user_id": session.user_id,
        "search_query": session.search_query,
        "collection": session.collection,
        "created_at": session.created_at,
        "is_irrelevant": session.is_irrelevant,
        **columns_of(with_new((), session.search_results)),
    }
    if session.search_meta is not None:
        row["search_meta"] = session.search_meta
    if session.request is not None:
        row["request"] = session.request.model_dump()
    if session.pages:
        row["pages"] = [page.model_dump() for page in session.pages]
    if recorded.sender:
        row["sender"] = recorded.sender
    if recorded.query_vectors is not None:
        packed = packed_query(recorded.query_vectors)
        row |= packed | {"query_vectors": "\\x" + packed["query_vectors"].hex()}
    return row


def longer_row(row: Row, shown: Sequence[SearchResultItem], pages: Sequence[FurtherPage]) -> dict[str, Any]:
    """Return the columns of a session that shows more than its row says."""
    results = with_new(results_of(row), shown)
    new = {result.object_id for result in results}.difference(row[FIRST_OF_SHOWN])
    kept = [page.model_dump() for page in pages_with(pages_of(row), pages, new)]
    return {"session_id": row[0], "pages": kept or None} | columns_of(results)


def _is_whole(shown: Sequence[SearchResultItem]) -> bool:
    """Return whether each object is there once, at a position, as it nearly always is."""
    objects = {each.object_id for each in shown}
    return len(objects) == len(shown) and None not in [each.position for each in shown]


def with_new(before: Sequence[SearchResultItem], shown: Sequence[SearchResultItem]) -> list[SearchResultItem]:
    """Return results with those shown for the first time; what has no position comes after all so far."""
    if not before and _is_whole(shown):
        return [*shown]
    results = {result.object_id: result for result in before}
    last = max((result.position or 0 for result in before), default=0)
    for result in shown:
        if result.object_id not in results:
            position = result.position or last + 1
            results[result.object_id] = (
                result if result.position else result.model_copy(update={"position": position})
            )
            last = max(last, position)
    return list(results.values())


def as_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as one JSON document, which takes a tenth of the time that an array a column does."""
    return as_json(list(rows)).decode()


def difference(row: Row, session: Session) -> tuple[str, str | None] | None:
    """Return in what a stored session is another than one of the same id, and what it has there."""
    _, search_query, user_id, _, collection, *_ = row
    recorded = {"user_id": user_id, "search_query": search_query, "collection": collection}
    for what, value in recorded.items():
        if value != getattr(session, what):
            return what, value
    return None
