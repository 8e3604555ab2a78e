"""What a service answers, under the names of its OpenAPI document.

What a newer service says beside is left out; what an older one does not say is None, or empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from embedding_studio.domain import DEFAULT_COLLECTION
from embedding_studio.domain.explanations import Explanation, Influence, SharedInfluence

JSON = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FoundObject:
    """One result of a search.

    Attributes:
        distance: smaller is nearer, under every metric.
        position: 1 is the top of the first page.
        personalised: whether clicks took part in its distance: the user's own, or shared ones of others.
        explanation: None where none was asked for.
    """

    object_id: str
    distance: float
    payload: JSON
    position: int
    personalised: bool
    explanation: Explanation | None = None

    @classmethod
    def read(cls, told: JSON) -> "FoundObject":
        given = told.get("explanation")
        return _known(cls, told, explanation=None if given is None else _explanation(given))


@dataclass(frozen=True, slots=True)
class FoundPage:
    """One page of results.

    Attributes:
        session_id: the session that recorded the page, which clicks on it name; None if none did.
        next_page_offset: None on the last page.
        personalised: whether clicks bear on this query at all.
        is_sorted: whether any object has a value in the field of ``sort_by``; None where none was asked for.
    """

    results: tuple[FoundObject, ...]
    session_id: str | None
    next_page_offset: int | None
    personalised: bool
    metric_type: str = "cosine"
    metric_aggregation_type: str = "min"
    is_sorted: bool | None = None

    @classmethod
    def read(cls, told: JSON) -> "FoundPage":
        return _known(cls, told, results=tuple(map(FoundObject.read, told["search_results"])))


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate of another search, at its place for this user.

    Attributes:
        position: 1 is the top.
        given_position: where it stood among the candidates.
        distance_change: by clicks; below 0 is nearer.
    """

    object_id: str
    position: int
    given_position: int
    distance_change: float
    personalised: bool


@dataclass(frozen=True, slots=True)
class RankedAnswer:
    """The candidates of another search in the order for this user.

    Attributes:
        unknown: ids that are not in the collection and came without vectors; these keep their places.
    """

    results: tuple[Ranked, ...]
    session_id: str | None
    personalised: bool
    unknown: tuple[str, ...]

    @classmethod
    def read(cls, told: JSON) -> "RankedAnswer":
        results = tuple(_known(Ranked, each) for each in told["results"])
        return _known(cls, told, results=results, unknown=tuple(told["unknown"]))


@dataclass(frozen=True, slots=True)
class Moved:
    """An object that the user has vectors of their own for.

    Attributes:
        gate: g: it is as similar as (1 - g) by its originals + g by these vectors.
    """

    object_id: str
    gate: float
    vectors: list[list[float]]


@dataclass(frozen=True, slots=True)
class BentAnswer:
    """What clicks make of a query.

    Attributes:
        factors: object_id -> what its distance is multiplied by; of objects not listed, 1.
    """

    query_vectors: list[list[float]]
    personalised: bool
    moved: tuple[Moved, ...]
    factors: Mapping[str, float]

    @classmethod
    def read(cls, told: JSON) -> "BentAnswer":
        factors = {each["object_id"]: each["factor"] for each in told["factors"]}
        moved = tuple(_known(Moved, each) for each in told["moved"])
        return _known(cls, told, moved=moved, factors=factors)


@dataclass(frozen=True, slots=True)
class Indexed:
    """What became of objects; their number is the sum.

    Attributes:
        indexed: stored with new vectors.
        updated: stored with a new payload; the text is the same, and so are its vectors.
        unchanged: there already, text and payload.
    """

    indexed: int = 0
    updated: int = 0
    unchanged: int = 0

    @classmethod
    def read(cls, told: JSON) -> "Indexed":
        return _known(cls, told)

    def __add__(self, other: "Indexed") -> "Indexed":
        return Indexed(
            self.indexed + other.indexed, self.updated + other.updated, self.unchanged + other.unchanged
        )


@dataclass(frozen=True, slots=True)
class PayloadsReplaced:
    """How many payloads were replaced, and the ids of which there is no object."""

    updated: int = 0
    unknown: tuple[str, ...] = ()

    @classmethod
    def read(cls, told: JSON) -> "PayloadsReplaced":
        return _known(cls, told, unknown=tuple(told["unknown"]))

    def __add__(self, other: "PayloadsReplaced") -> "PayloadsReplaced":
        return PayloadsReplaced(self.updated + other.updated, self.unknown + other.unknown)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object; ``vectors`` has one for each part, and is None where they were not asked for."""

    object_id: str
    payload: JSON
    vectors: list[list[float]] | None = None


@dataclass(frozen=True, slots=True)
class ScrolledPage:
    objects: tuple[StoredObject, ...]
    next_after: str | None = None

    @classmethod
    def read(cls, told: JSON) -> "ScrolledPage":
        return _known(cls, told, objects=stored_objects(told))


@dataclass(frozen=True, slots=True)
class EventReceipt:
    """What became of an event.

    Attributes:
        created_at: UTC seconds.
        disposition: accepted, duplicate, conflict, waiting, unknown_session, too_early, unknown_type or
            unknown_object. ``duplicate`` is also the answer to a retry of what came the first time.
        session_id: of an event that was pushed with those of other sessions.
    """

    event_id: str
    object_id: str
    event_type: str
    created_at: int
    disposition: str
    session_id: str | None = None

    @classmethod
    def read(cls, told: JSON) -> "EventReceipt":
        return _known(cls, told)


@dataclass(frozen=True, slots=True)
class SessionReceipt:
    """What became of a session (recorded, continued or taken), and of each event that came with it."""

    session_id: str
    created_at: int
    disposition: str
    events: tuple[EventReceipt, ...]

    @classmethod
    def read(cls, told: JSON) -> "SessionReceipt":
        return _known(cls, told, events=tuple(map(EventReceipt.read, told["events"])))


@dataclass(frozen=True, slots=True)
class SearchResultItem:
    """One result as it was shown.

    Attributes:
        rank: the distance under which it was ranked, if known.
        position: 1 is the top.
        propensity: probability with which this object was served in this slot.
    """

    object_id: str
    rank: float | None = None
    meta: JSON | None = None
    position: int | None = None
    personalised: bool = False
    propensity: float = 1.0


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """Something a user did with one object."""

    session_id: str
    object_id: str
    event_type: str
    created_at: int
    event_id: str
    meta: JSON | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """One query, the results shown for it by position, and its events by time.

    Attributes:
        request: of the search that recorded it; None where another system searched.
        pages: the further ones that showed something new: ``request``, ``created_at`` and ``object_ids``.
    """

    session_id: str
    search_query: str = ""
    user_id: str | None = None
    created_at: int = 0
    collection: str = DEFAULT_COLLECTION
    search_results: tuple[SearchResultItem, ...] = ()
    search_meta: JSON | None = None
    request: JSON | None = None
    pages: tuple[JSON, ...] = ()
    is_irrelevant: bool = False
    events: tuple[SessionEvent, ...] = ()

    @classmethod
    def read(cls, told: JSON) -> "Session":
        results = tuple(_known(SearchResultItem, each) for each in told["search_results"])
        events = tuple(_known(SessionEvent, each) for each in told["events"])
        return _known(cls, told, search_results=results, events=events, pages=tuple(told.get("pages", ())))


@dataclass(frozen=True, slots=True)
class SessionForImprovement:
    """An order: a session waiting to be learnt from, or what became of it.

    Attributes:
        status: pending, processing, done, failed or refused.
        detail: why it was refused or failed.
        created_at, updated_at: UTC seconds.
    """

    session_id: str
    user_id: str | None
    collection: str
    status: str
    priority: int = 0
    attempts: int = 0
    detail: str | None = None
    created_at: int = 0
    updated_at: int = 0
    not_before: float = 0.0

    @classmethod
    def read(cls, told: JSON) -> "SessionForImprovement":
        return _known(cls, told)


@dataclass(frozen=True, slots=True)
class OrdersPage:
    orders: tuple[SessionForImprovement, ...]
    next_page_offset: int | None = None

    @classmethod
    def read(cls, told: JSON) -> "OrdersPage":
        return _known(cls, told, orders=tuple(map(SessionForImprovement.read, told["orders"])))


@dataclass(frozen=True, slots=True)
class SearchIndexInfo:
    """Metric, aggregation and size of a collection's vectors."""

    dimensions: int | None = None
    metric_type: str = "cosine"
    metric_aggregation_type: str = "min"


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection.

    Attributes:
        embedder: that made its vectors from texts; None where callers bring vectors.
        gate_threshold: cosine below which a past query is not near; None: the service's setting.
        own_past: how much a user's past queries count, as learnt from the log; None: in full.
        objects: how many it holds; None: another system keeps them, and does not say just now.
        attached: where they are, if another system keeps them; nothing is written there.
        filled: what finds them, if another system does, which is filled with them.
    """

    name: str
    index: SearchIndexInfo
    embedder: str | None = None
    gate_threshold: float | None = None
    own_past: Mapping[str, float] | None = None
    aliases: tuple[str, ...] = ()
    objects: int | None = 0
    attached: str | None = None
    filled: str | None = None

    @classmethod
    def read(cls, told: JSON) -> "CollectionInfo":
        return _known(cls, told, index=_known(SearchIndexInfo, told["index"]), aliases=tuple(told["aliases"]))


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was removed of a user.

    Attributes:
        sessions: how many there were.
        removed: how many rows of each table that has rows of users.
        not_reached: where something may be left.
    """

    sessions: int
    removed: Mapping[str, int] = field(default_factory=dict)
    not_reached: tuple[str, ...] = ()

    @classmethod
    def read(cls, told: JSON) -> "Forgotten":
        return _known(cls, told, not_reached=tuple(told["not_reached"]))


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a service can serve searches and events; it is true where it can.

    Attributes:
        parts: how each part fares, ``ok`` or a sentence.
    """

    is_ready: bool
    parts: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.is_ready

    @property
    def failing(self) -> tuple[str, ...]:
        """What does not work, even if the rest is served."""
        return tuple(told for told in self.parts.values() if told != "ok")


def stored_objects(told: JSON) -> tuple[StoredObject, ...]:
    return tuple(_known(StoredObject, each) for each in told["objects"])


def _known(kind: type[T], told: JSON, **read: Any) -> T:
    """Return a value of a dataclass from what is given of its fields; ``read`` ones are made already."""
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in told.items() if name in names} | read)


def _explanation(told: JSON) -> Explanation:
    influences = tuple(
        _known(Influence, each, clicked_ids=tuple(each["clicked_ids"])) for each in told["influences"]
    )
    shared = told.get("shared")
    return _known(
        Explanation,
        told,
        influences=influences,
        shared=None if shared is None else _known(SharedInfluence, shared),
    )
