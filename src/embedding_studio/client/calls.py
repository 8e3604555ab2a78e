"""What a client can ask: each function makes the request, and says how its answer is read.

Nothing is sent here, so the same functions serve ``Client`` and ``AsyncClient``. What is recorded gets its
id here, before the first attempt: a request that is sent again is then known to be the same.
"""

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar
from urllib.parse import quote

from embedding_studio.client import answers
from embedding_studio.client.answers import JSON
from embedding_studio.domain import DEFAULT_LIMIT
from embedding_studio.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from embedding_studio.catalogue import CatalogueText
    from embedding_studio.domain.objects import CatalogueObject

T = TypeVar("T")

API = "/api/v1"

DOTS = re.compile(r"(\.|%(25)*2E){1,2}", re.IGNORECASE)
"""Ids that would be ways to other folders in a path, and those that look like them once they are encoded."""

MOST_OBJECTS = 1_000
"""So many ids or payloads the service takes at once."""

MOST_EVENTS = 500
"""So many events, or sessions and events, are sent at once."""

MOST_SESSIONS = 100
PAGE_SIZE = 100

ObjectGiven: TypeAlias = "Mapping[str, Any] | CatalogueText | CatalogueObject"
EventGiven: TypeAlias = str | Mapping[str, Any]
"""The id of an object that was clicked, or the fields of an event."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and how its answer is read.

    Attributes:
        read: makes a value of the answer's JSON; None where there is none.
        is_repeatable: whether it may be done twice: the second time changes nothing, and says the same, or
            that it is there already. What removes something is not: of that, the second time tells nothing.
        names_collection: whether the body names a collection: the client's own, where it names none.
        is_question: whether "no" is an answer to it, under the status 503, and no failure.
    """

    method: str
    path: str
    read: Callable[[Any], T]
    body: JSON | None = None
    parameters: Mapping[str, str | int] | None = None
    is_repeatable: bool = True
    names_collection: bool = False
    is_question: bool = False


def search(
    query: "str | ArrayLike",
    *,
    user_id: str | None = None,
    limit: int = DEFAULT_LIMIT,
    offset: int = 0,
    max_distance: float | None = None,
    filter: Mapping[str, Any] | None = None,  # noqa: A002, the field's name in the request
    sort_by: tuple[str, Literal["asc", "desc"]] | None = None,
    create_session: bool = False,
    session_id: str | None = None,
    explain: bool = False,
    exploration_ratio: float | None = None,
    collection: str | None = None,
) -> Call[answers.FoundPage]:
    """Return what is nearest to a query, for this user.

    Args:
        query: a text, or the query's vector, or the vectors of its parts.
        user_id: None: the user is unknown.
        filter: as docs/filters.md has it.
        sort_by: a payload field, and the direction.
        create_session: record the query and what is shown for it, under ``session_id`` or a new id.
        session_id: with an offset, the session to continue.
        explain: say what moved each result; needs an admin key.

    Raises:
        InvalidInputError, CollectionNotFoundError, SessionNotFoundError, ConflictError, EmbeddingError,
            AccessDeniedError, ServiceError: as their names say; so for every other method.
    """
    return _posted_in(
        collection,
        "/embeddings/similarity-search",
        answers.FoundPage.read,
        {
            "search_query": _plain(query),
            "user_id": user_id,
            "limit": limit,
            "offset": offset,
            "max_distance": max_distance,
            "filter": filter,
            "sort_by": None if sort_by is None else {"field": sort_by[0], "order": sort_by[1]},
            "create_session": create_session,
            "session_id": _session_id(session_id, create_session=create_session),
            "explain": explain,
            "exploration_ratio": exploration_ratio,
        },
    )


def rank(
    query: "str | ArrayLike",
    candidates: Iterable[str | Mapping[str, Any]],
    *,
    user_id: str | None = None,
    limit: int | None = None,
    create_session: bool = False,
    session_id: str | None = None,
    collection: str | None = None,
) -> Call[answers.RankedAnswer]:
    """Return what another search found in the order for this user.

    Args:
        candidates: the best first; ids, or mappings with ``object_id`` and ``vectors``.
        limit: so many are returned, and recorded as shown; None: all.
    """
    return _posted_in(
        collection,
        "/embeddings/rank",
        answers.RankedAnswer.read,
        {
            "search_query": _plain(query),
            "candidates": [_candidate(each) for each in candidates],
            "user_id": user_id,
            "limit": limit,
            "create_session": create_session,
            "session_id": _session_id(session_id, create_session=create_session),
        },
    )


def bend(
    query: "str | ArrayLike", *, user_id: str | None = None, collection: str | None = None
) -> Call[answers.BentAnswer]:
    """Return what clicks make of a query, for an engine that searches elsewhere; needs an admin key."""
    body = {"search_query": _plain(query), "user_id": user_id}
    return _posted_in(collection, "/embeddings/bend", answers.BentAnswer.read, body)


def click(
    session_id: str | None,
    object_id: str,
    *,
    event_type: str = "click",
    event_id: str | None = None,
    created_at: int | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Call[answers.EventReceipt]:
    """Record that a user did something with one result, and return what became of it.

    Args:
        session_id: of the page, as a search with ``create_session`` returned it.
        event_type: click, add_to_cart, purchase, or another that EVENT_WEIGHTS has.
        event_id: None: a new one, so that two clicks are two, and one that is sent again is one.
        created_at: UTC seconds; None: when it arrives.
    """
    event = {
        "object_id": object_id,
        "event_type": event_type,
        "event_id": event_id,
        "created_at": created_at,
        "meta": meta,
    }
    pushed = push_events(session_id, [event])
    return Call(pushed.method, pushed.path, lambda told: pushed.read(told)[0], pushed.body)


def push_events(
    session_id: str | None, events: Iterable[EventGiven]
) -> Call[tuple[answers.EventReceipt, ...]]:
    if session_id is None:
        raise InvalidInputError(
            "the page was not recorded, so nothing can be clicked on it; create_session does"
        )
    body = {"session_id": session_id, "events": [_event(each) for each in events]}
    return _posted("/clickstream/session/events", _receipts, body)


def push_events_of_sessions(events: Iterable[Mapping[str, Any]]) -> Call[tuple[answers.EventReceipt, ...]]:
    return _posted("/clickstream/events", _receipts, {"events": [_event(each) for each in events]})


def register_session(
    query: str,
    results: Iterable[str | Mapping[str, Any]],
    *,
    user_id: str | None = None,
    session_id: str | None = None,
    created_at: int | None = None,
    query_vectors: "ArrayLike | None" = None,
    search_meta: Mapping[str, Any] | None = None,
    collection: str | None = None,
) -> Call[answers.Session]:
    """Record a search that another system did, and what it showed; the answer has its ``session_id``.

    Args:
        results: in the order shown: ids, or mappings with ``object_id``, ``rank``, ``meta``, ``position``.
        created_at: UTC seconds; None: when it arrives.
    """
    return _posted_in(
        collection,
        "/clickstream/session",
        answers.Session.read,
        {
            "session_id": _session_id(session_id, create_session=True),
            "search_query": query,
            "search_results": [_named(each) for each in results],
            "search_meta": search_meta,
            "user_id": user_id,
            "created_at": created_at,
            "query_vectors": None if query_vectors is None else _plain(query_vectors),
        },
    )


def record_sessions(
    sessions: Iterable[Mapping[str, Any]], *, collection: str
) -> Call[tuple[answers.SessionReceipt, ...]]:
    told = [
        {"collection": collection, **each, "events": [_event(event) for event in each.get("events", ())]}
        for each in sessions
    ]
    return _posted(
        "/clickstream/sessions",
        lambda answer: tuple(map(answers.SessionReceipt.read, answer["sessions"])),
        {"sessions": told},
    )


def session(session_id: str) -> Call[answers.Session]:
    """Return a session with its results by position and its events by time; needs an admin key."""
    parameters = {"session_id": session_id}
    return Call("GET", f"{API}/clickstream/session", answers.Session.read, parameters=parameters)


def mark_irrelevant(session_id: str) -> Call[None]:
    """Let a session no longer count; what was learnt from it is unlearnt."""
    return _posted("/clickstream/session/irrelevant", _nothing, {"session_id": session_id})


def take_back(session_id: str, object_id: str) -> Call[int]:
    """Let what a user did with one result no longer count; return how many events that were.

    A second time there are none.
    """
    return Call(
        "DELETE",
        f"{API}/clickstream/session/events",
        itemgetter("taken_back"),
        parameters={"session_id": session_id, "object_id": object_id},
        is_repeatable=False,
    )


def upsert(objects: Iterable[JSON], *, collection: str | None = None) -> Call[answers.Indexed]:
    body = {"items": list(objects)}
    return _posted_in(collection, "/embeddings/upsert", answers.Indexed.read, body)


def update_payloads(
    payloads: Mapping[str, Mapping[str, Any]], *, collection: str | None = None
) -> Call[answers.PayloadsReplaced]:
    told = [{"object_id": object_id, "payload": payload} for object_id, payload in payloads.items()]
    return _posted_in(collection, "/embeddings/payloads", answers.PayloadsReplaced.read, {"payloads": told})


def delete(object_ids: Iterable[str], *, collection: str | None = None) -> Call[int]:
    body = {"object_ids": list(object_ids)}
    call = _posted_in(collection, "/embeddings/delete", itemgetter("deleted"), body)
    return replace(call, is_repeatable=False)


def get(
    object_ids: Iterable[str], *, collection: str | None = None
) -> Call[tuple[answers.StoredObject, ...]]:
    body = {"object_ids": list(object_ids)}
    return _posted_in(collection, "/embeddings/objects", answers.stored_objects, body)


def scrolled(
    after: str | None,
    *,
    filter: Mapping[str, Any] | None = None,  # noqa: A002, as above
    with_vectors: bool = False,
    page_size: int = PAGE_SIZE,
    collection: str | None = None,
) -> Call[answers.ScrolledPage]:
    body = {"after": after, "limit": page_size, "filter": filter, "with_vectors": with_vectors}
    return _posted_in(collection, "/embeddings/scroll", answers.ScrolledPage.read, body)


def collections() -> Call[tuple[answers.CollectionInfo, ...]]:
    """Return all collections by name, or those that the key is for."""

    def read(told: JSON) -> tuple[answers.CollectionInfo, ...]:
        return tuple(map(answers.CollectionInfo.read, told["collections"]))

    return Call("GET", f"{API}/collections", read)


def collection(name: str) -> Call[answers.CollectionInfo]:
    """Return the collection that a name or alias stands for."""
    return Call("GET", f"{API}/collections/{_in_path(name)}", answers.CollectionInfo.read)


def create_collection(
    name: str,
    *,
    dimensions: int | None = None,
    metric_type: str = "cosine",
    metric_aggregation_type: str = "min",
    embedder: str | None = None,
    gate_threshold: float | None = None,
    fill: str | None = None,
) -> Call[answers.CollectionInfo]:
    """Create a collection; one of the same name and kind is left as it is.

    Args:
        dimensions: of the vectors that callers bring; None with an embedder.
        embedder: the service's own, by its name, which then embeds texts.
        fill: the service's name for a store that finds its objects, and is filled with them.
    """
    index = {
        "dimensions": dimensions,
        "metric_type": metric_type,
        "metric_aggregation_type": metric_aggregation_type,
    }
    body = {
        "name": name,
        "index": index,
        "embedder": embedder,
        "gate_threshold": gate_threshold,
        "fill": fill,
    }
    return _posted("/collections", answers.CollectionInfo.read, body)


def drop_collection(name: str) -> Call[None]:
    """Remove a collection with its objects and all that was learnt in it; sessions stay."""
    return _deleted(f"/collections/{_in_path(name)}")


def set_alias(alias: str, collection: str) -> Call[None]:
    """Let an alias stand for a collection from now on; what was learnt under it is re-learnt there."""
    path = f"{API}/collections/aliases/{_in_path(alias)}"
    return Call("PUT", path, _nothing, {"collection": collection})


def drop_alias(alias: str) -> Call[None]:
    """Let an alias stand for nothing; what was learnt under it is unlearnt."""
    return _deleted(f"/collections/aliases/{_in_path(alias)}")


def forget_user(user_id: str) -> Call[answers.Forgotten]:
    """Remove all that is known of a user in every collection; needs an admin key."""
    path = f"{API}/users/{_in_path(user_id)}"
    return Call("DELETE", path, answers.Forgotten.read, is_repeatable=False)


def exported_user(user_id: str) -> Call[None]:
    return Call("GET", f"{API}/users/{_in_path(user_id)}/export", _nothing)


def listed_orders(status: str | None, offset: int, page_size: int) -> Call[answers.OrdersPage]:
    parameters: dict[str, str | int] = {"offset": offset, "limit": page_size}
    if status is not None:
        parameters["status"] = status
    return Call("GET", f"{API}/improvement/orders", answers.OrdersPage.read, parameters=parameters)


def order(session_id: str) -> Call[answers.SessionForImprovement]:
    """Return the order of a session, with its attempts and why it was refused or failed."""
    path = f"{API}/improvement/orders/{_in_path(session_id)}"
    return Call("GET", path, answers.SessionForImprovement.read)


def order_counts() -> Call[dict[str, int]]:
    """Return how many orders stand in each status."""
    return Call("GET", f"{API}/improvement/summary", itemgetter("orders"))


def retry_order(session_id: str) -> Call[answers.SessionForImprovement]:
    """Place an order again, whatever became of it."""
    return _posted(
        f"/improvement/orders/{_in_path(session_id)}/retry", answers.SessionForImprovement.read, None
    )


def cancel_order(session_id: str) -> Call[None]:
    """Remove an order that is pending, failed or refused; its session counts no longer."""
    return _deleted(f"/improvement/orders/{_in_path(session_id)}")


def ready() -> Call[answers.Readiness]:
    """Return whether the service can serve searches and events, and how each part fares; needs no key."""

    def read(told: JSON) -> answers.Readiness:
        return answers.Readiness(told["status"] == "ready", told["parts"])

    return Call("GET", "/readyz", read, is_question=True)


def batches(
    given: Iterable[T], most: int, weight: Callable[[T], int] = lambda _: 1, most_weight: int | None = None
) -> Iterator[tuple[int, list[T]]]:
    """Yield where each batch begins, and the batch: at most ``most`` of them, and so heavy.

    >>> list(batches("abcde", 2))
    [(0, ['a', 'b']), (2, ['c', 'd']), (4, ['e'])]
    >>> list(batches([1, 5, 2], 9, weight=lambda each: each, most_weight=6))
    [(0, [1, 5]), (2, [2])]
    """
    batch: list[T] = []
    start, held = 0, 0
    for each in given:
        more = weight(each)
        if batch and (len(batch) == most or (most_weight is not None and held + more > most_weight)):
            yield start, batch
            start, batch, held = start + len(batch), [], 0
        batch.append(each)
        held += more
    if batch:
        yield start, batch


def item(given: ObjectGiven) -> JSON:
    """Return an object as it is sent, from a mapping or from what the library takes."""
    if isinstance(given, Mapping):
        told = dict(given)
        if told.get("vectors") is not None:
            told["vectors"] = _plain(told["vectors"])
        return told
    told = {"object_id": given.object_id, "payload": given.payload}
    parts = getattr(given, "parts", None)
    return told | ({"text": getattr(given, "text", None)} if parts is None else {"vectors": _plain(parts)})


def _posted(path: str, read: Callable[[Any], T], body: JSON | None) -> Call[T]:
    """Return a request that may be sent again; what is None in its body is left to the service."""
    told = None if body is None else {name: value for name, value in body.items() if value is not None}
    return Call("POST", API + path, read, told)


def _posted_in(collection: str | None, path: str, read: Callable[[Any], T], body: JSON) -> Call[T]:
    """Return a request on a collection; None: the one that the client is for."""
    return replace(_posted(path, read, {**body, "collection": collection}), names_collection=True)


def _deleted(path: str) -> Call[None]:
    """Return a request that is answered otherwise the second time: it is not there any more."""
    return Call("DELETE", API + path, _nothing, is_repeatable=False)


def _nothing(_: Any) -> None:
    return None


def _receipts(told: JSON) -> tuple[answers.EventReceipt, ...]:
    return tuple(map(answers.EventReceipt.read, told["events"]))


def _session_id(given: str | None, *, create_session: bool) -> str | None:
    return str(uuid.uuid4()) if given is None and create_session else given


def _named(given: str | Mapping[str, Any]) -> JSON:
    return {"object_id": given} if isinstance(given, str) else dict(given)


def _candidate(given: str | Mapping[str, Any]) -> JSON:
    told = _named(given)
    if told.get("vectors") is not None:
        told["vectors"] = _plain(told["vectors"])
    return told


def _event(given: EventGiven) -> JSON:
    told = {name: value for name, value in _named(given).items() if value is not None}
    return {"event_id": str(uuid.uuid4())} | told


def _plain(given: Any) -> Any:
    """Return what JSON has for a text, or for vectors in whatever they are kept."""
    return given.tolist() if hasattr(given, "tolist") else given


def _in_path(given: str) -> str:
    """Return an id as a step of a path, as ``api/fields.py`` reads it.

    >>> _in_path("a/b"), _in_path(".."), _in_path("%2E")
    ('a%2Fb', '%252E%252E', '%25252E')
    """
    if not isinstance(given, str) or not given:
        raise InvalidInputError(f"an id or name is {shown(given)}; give a text of at least one character")
    if DOTS.fullmatch(given):
        given = given.replace("%", "%25").replace(".", "%2E")
    try:
        return quote(given, safe="")
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"an id or name is {shown(given)}, which is no text: {error.reason}"
        ) from error
