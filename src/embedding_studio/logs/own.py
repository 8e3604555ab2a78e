"""Our own sessions, a line each, as ``embedding-studio export --sessions`` writes and ``replay`` reads them.

``{"session_id", "user_id", "query", "timestamp", "results": [...], "clicks": [{"object_id", "t"}]}``: a
result is an id, or an object with what else is known of it; so is a click; its ``event_type`` may be absent.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from embedding_studio.domain.sessions import (
    FurtherPage,
    RecordedSession,
    SearchRequest,
    SearchResultItem,
    Session,
    listed,
    not_ahead,
    trusted,
)
from embedding_studio.domain.storable import are_ids, as_json, check_json, check_text, is_id
from embedding_studio.files import replaced
from embedding_studio.logs.entries import (
    Entry,
    Event,
    Row,
    Unusable,
    id_of,
    position_of,
    required_time,
    seconds_of,
    type_of,
)

_PAGES: TypeAdapter[tuple[FurtherPage, ...]] = TypeAdapter(tuple[FurtherPage, ...])


def speaks(row: Row) -> bool:
    return "session_id" in row and ("results" in row or "clicks" in row)


def read(row: Row) -> Sequence[Entry]:
    session_id = id_of(row.get("session_id"))
    if session_id is None:
        raise Unusable("a session without a usable session_id")
    at = required_time(row, "timestamp")
    user_id = id_of(row.get("user_id"))
    vectors = _vectors(row.get("query_vectors"))
    query = _text(row.get("query"))
    request = _json(row.get("request"))
    try:
        session = trusted(
            Session,
            session_id=session_id,
            search_query=query,
            user_id=user_id,
            created_at=not_ahead(at, before=1),
            search_results=_results(row.get("results")),
            search_meta=_json(row.get("search_meta")),
            request=None if request is None else _request(request),
            pages=_pages(row.get("pages")),
            is_irrelevant=row.get("is_irrelevant") is True,
        )
    except ValidationError as error:
        raise Unusable(f"a session whose {error.errors()[0]['loc'][0]} is not as it should be") from error
    clicks = row.get("clicks")
    return [
        RecordedSession(session, vectors),
        *(_event(each, session) for each in (clicks if isinstance(clicks, list) else ())),
    ]


def write_sessions(path: str | Path, sessions: Iterable[RecordedSession], *, vectors: bool) -> int:
    """Write a file whole or not at all, in place of one that is there; return the number of sessions.

    Args:
        path: ends in .jsonl or .ndjson, also .gz; ``-`` is standard output.
        vectors: whether the vectors of queries are written too; of those without a text they always are.

    Raises:
        InvalidDataError: the file cannot be written.
    """
    number = 0
    with replaced(path) as file:
        for each in sessions:
            file.write(as_json(session_row(each, vectors=vectors)) + b"\n")
            number += 1
    return number


def session_row(recorded: RecordedSession, *, vectors: bool) -> Row:
    """Return a session as a line of the file tells it."""
    session = recorded.session
    row: dict[str, Any] = {
        "session_id": session.session_id,
        "user_id": session.user_id,
        "query": session.search_query,
        "timestamp": session.created_at,
        "results": [each.model_dump(exclude_defaults=True) for each in session.search_results],
        "clicks": [
            {"object_id": each.object_id, "t": each.created_at}
            | ({} if each.event_type == "click" else {"event_type": each.event_type})
            | {"event_id": each.event_id}
            | ({} if each.meta is None else {"meta": each.meta})
            for each in session.events
        ],
    }
    row |= session.model_dump(include={"search_meta", "request"}, exclude_none=True)
    if session.pages:
        row["pages"] = [page.model_dump(exclude_none=True) for page in session.pages]
    if session.is_irrelevant:
        row["is_irrelevant"] = True
    if recorded.query_vectors is not None and (vectors or not session.search_query):
        row["query_vectors"] = recorded.query_vectors
    return row


def _results(given: object) -> tuple[SearchResultItem, ...]:
    if not isinstance(given, list) or not given:
        return ()
    if are_ids(given) and len(set(given)) == len(given):  # as nearly always
        return listed(given)
    shown: dict[str, SearchResultItem] = {}
    for number, each in enumerate(given, start=1):
        if is_id(each):
            if each not in shown:
                shown[each] = trusted(SearchResultItem, object_id=each, position=number)
            continue
        row = {"position": number} | (each if isinstance(each, dict) else {"object_id": each})
        if (object_id := id_of(row.get("object_id"))) is None:
            raise Unusable("a session with a result without a usable object_id")
        if (position := position_of(row["position"])) is None:
            raise Unusable("a session with a result at no usable position")
        read = row | {**position, "object_id": object_id, "meta": _json(row.get("meta"))}
        shown.setdefault(object_id, SearchResultItem.model_validate(read, strict=True))
    return tuple(shown.values())


def _event(given: object, session: Session) -> Event:
    row: Row = given if isinstance(given, dict) else {"object_id": given}
    object_id, event_type = id_of(row.get("object_id")), type_of(row.get("event_type", "click"))
    at = session.created_at if row.get("t") is None else seconds_of(row["t"])
    if object_id is None or event_type is None or at is None:
        raise Unusable("a session with a click without a usable object_id, event_type or time (t)")
    return Event(
        at=at,
        object_id=object_id,
        event_type=event_type,
        user_id=session.user_id,
        search_id=session.session_id,
        event_id=id_of(row.get("event_id")) or "",
        meta=_json(row.get("meta")),
    )


def _text(given: object) -> str:
    try:
        if isinstance(given, str):
            return check_text(given)
    except ValueError:
        pass
    raise Unusable("a session without a usable query")


def _json(given: object) -> dict[str, Any] | None:
    try:
        if given is None or isinstance(given, dict):
            return None if given is None else check_json(given)
    except ValueError:
        pass
    raise Unusable("a session with a meta or request that is no JSON object that can be stored")


def _request(given: dict[str, Any]) -> SearchRequest:
    """Return a request; strictly, for a text may stand for a number that is not finite."""
    return SearchRequest.model_validate_json(orjson.dumps(given), strict=True)


def _pages(given: object) -> tuple[FurtherPage, ...]:
    """Return what is known of the pages after the first; strictly, as of a request."""
    if given is None:
        return ()
    try:
        return _PAGES.validate_json(orjson.dumps(check_json({"pages": given})["pages"]), strict=True)
    except ValueError as error:
        raise Unusable("a session whose pages are not as they should be") from error


def _vectors(given: object) -> NDArray[np.float32] | None:
    if given is None:
        return None
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused below
            vectors = np.atleast_2d(np.array(given, dtype=np.float32))
    except (ValueError, TypeError):
        raise Unusable("a session whose query_vectors are no lists of numbers") from None
    if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise Unusable("a session whose query_vectors are no lists of numbers")
    return vectors
