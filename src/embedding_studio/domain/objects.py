"""Collections, the objects in them, and what a user has moved."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.storable import check_id, faults, json_value
from embedding_studio.errors import ConflictError, InvalidInputError, shown

JSON = dict[str, Any]

TEXT_HASH_LENGTH = 32
"""So many characters of a content hash tell of the text alone; what follows, of the payload."""


@dataclass(frozen=True, slots=True)
class OwnPast:
    """How much a user's past queries count in a collection, in [0, 1], by what is asked and how long ago.

    Attributes:
        repeated_soon, repeated_later: for the same query, within a day, and after that.
        near_soon, near_later: for another query that is near.
    """

    repeated_soon: float = 1.0
    repeated_later: float = 1.0
    near_soon: float = 1.0
    near_later: float = 1.0


_STORED = {"qdrant": "Qdrant's collection", "lancedb": "LanceDB's table", "milvus": "Milvus's collection"}


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where another system keeps the objects of a collection, or finds them where they are kept here.

    Attributes:
        kind: of store: ``table`` of PostgreSQL, ``qdrant``, ``lancedb`` or ``milvus``.
        source: what it is called there: ``schema.table``, quoted where that is needed; or a collection.
        store: the name of its address in ATTACHED_STORES; None: the database in which all else is kept.
        object_id, vector: the columns of these; of Qdrant the field of the payload and the name of the
            vector, empty where a point has one without a name, and its own id is the object's.
        payload: the columns that make the payload.
        document: the column of JSON that is the payload instead.
        owner: of what is filled, the database that fills it; empty: this one.
    """

    kind: str
    source: str
    store: str | None = None
    object_id: str = ""
    vector: str = ""
    payload: tuple[str, ...] = ()
    document: str | None = None
    owner: str = ""

    def __str__(self) -> str:
        """Return it in words.

        >>> str(Attachment("table", "public.products", store="shop"))
        'the table public.products of shop'
        """
        what = _STORED.get(self.kind, "the table")
        return f"{what} {self.source}" + ("" if self.store is None else f" of {self.store}")


@dataclass(frozen=True, slots=True)
class Collection:
    """Objects embedded by one model, compared under one metric.

    Attributes:
        collection_id: the storage's own number; names can move (aliases), this cannot.
        index: its ``dimensions`` are known.
        embedder: the name by which its texts were embedded; None where callers bring vectors.
        gate_threshold: cosine in [0, 1) below which a remembered query is not near; None: the setting.
        own_past: as learnt from its log; None: nothing was, and all of a user's past counts in full.
        hashed_as: the embedder's name in content hashes, where it has been renamed since; None: ``embedder``.
        attached: where its objects are, if another system keeps them.
        filled: where another engine finds what is near, if one does; what is kept here is written there, too.
    """

    collection_id: int
    name: str
    index: SearchIndexInfo
    embedder: str | None = None
    gate_threshold: float | None = None
    own_past: OwnPast | None = None
    hashed_as: str | None = None
    attached: Attachment | None = None
    filled: Attachment | None = None

    def is_embedded_by(self, embedder: str) -> bool:
        """Return whether the vectors of the embedder of this name can be compared with the collection's.

        Where callers bring vectors this is unknown, and taken to be so.
        """
        return self.embedder in (None, embedder)

    def conflict(self, wanted: "Collection") -> ConflictError:
        """Return what is said where another collection of this name is asked for."""
        return ConflictError(
            f"collection {self.name!r} exists as {self.kind()}; asked for is {wanted.kind()}: "
            "drop it first, or choose another name"
        )

    def kind(self) -> str:
        """Return in words what its vectors are and how they are compared."""
        index = self.index
        compared = f"{index.metric_type.value}/{index.metric_aggregation_type.value}"
        vectors = f"embedded by {self.embedder!r}" if self.embedder else "brought by callers"
        threshold = "" if self.gate_threshold is None else f", gate_threshold {self.gate_threshold:g}"
        place = "" if self.attached is None else f", attached to {self.attached}"
        place += "" if self.filled is None else f", found by {self.filled}"
        return f"{compared} of {index.dimensions} dimensions, {vectors}{threshold}{place}"


@dataclass(frozen=True, slots=True, eq=False)
class CatalogueObject:
    """What is searched for.

    Attributes:
        parts: [P, D] float32, the vectors that the embedding model gave, in order of ``part_no``.
        content_hash: of the text that was embedded, then of the payload; equal beginnings
            (``TEXT_HASH_LENGTH``) need no new embedding. None where the vectors were brought.
    """

    object_id: str
    parts: NDArray[np.float32]
    payload: JSON = field(default_factory=dict)
    content_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An object near a query; ``distance`` is of the whole object, smaller is nearer."""

    object_id: str
    distance: float
    payload: JSON


@dataclass(frozen=True, slots=True, eq=False)
class QueryMemory:
    """A past query of one user and what was clicked for it.

    Attributes:
        query: [D] float32, the mean over the query's parts.
        clicked_mean: [D] float32, the weighted mean of the *original* vectors clicked.
        clicked_ids: the objects clicked, sorted.
        moved_ids: the objects whose personal vectors this session moved, sorted.
        likeness: how like the query each of ``clicked_ids`` is, in [0, 1]; empty: all are fully so.
    """

    session_id: str
    search_query: str
    created_at: int
    query: NDArray[np.float32]
    clicked_mean: NDArray[np.float32]
    clicked_ids: tuple[str, ...]
    moved_ids: tuple[str, ...]
    likeness: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class SeenObject:
    """What one user did with one object when they asked one query, on average over the times they did.

    Attributes:
        clicks: in [0, 1], how often it was clicked.
        looks: in [0, 1], how often it was looked at for where it stood; 0 where it is not known where.
    """

    object_id: str
    clicks: float
    looks: float


@dataclass(frozen=True, slots=True, eq=False)
class SharedVote:
    """What one user says for one query, to be counted with what others say.

    Attributes:
        query_key: equal for queries that are the same text, whitespace and case apart, and have the same
            direction. A hex digest, which the caller makes.
        query: [D] float32, the mean over the query's parts.
        clicked_mean: [D] float32, the mean of the user's clicked means for that query.
        created_at: UTC seconds of the user's latest session with it.
        seen: the objects that were clicked or shown (``fold.MOST_SEEN`` at most), by object_id.
    """

    query_key: str
    query: NDArray[np.float32]
    clicked_mean: NDArray[np.float32]
    created_at: int
    seen: tuple[SeenObject, ...] = ()


@dataclass(frozen=True, slots=True)
class SharedObject:
    """What several users did with one object when they asked one query.

    Attributes:
        users: how many of them clicked it; may be 0.
        clicks, looks: sums over them of ``SeenObject``'s, each less the older it is.
    """

    object_id: str
    users: int
    clicks: float
    looks: float


@dataclass(frozen=True, slots=True, eq=False)
class SharedMemory:
    """What several users clicked for one query; it names no user.

    Attributes:
        query: [D] float32.
        clicked_mean: [D] float32, the mean over the users counted, each once.
        users: how many of them are counted here, at least one.
        seen: the objects that they clicked or were shown, by object_id.
    """

    query: NDArray[np.float32]
    clicked_mean: NDArray[np.float32]
    users: int
    seen: tuple[SharedObject, ...] = ()


@dataclass(frozen=True, slots=True)
class NearMemories:
    """What is remembered for queries near to one.

    Attributes:
        own: what the user did, in order of time.
        shared: what others did, nearest query first.
        read: what the storage knows besides, for ``Personal.nearest``.
        is_checked: False: all of this was so a while ago; whether it still is, ``Personal.nearest`` checks.
    """

    own: list[QueryMemory]
    shared: list[SharedMemory]
    read: object = None
    is_checked: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class PersonalState:
    """All that is learnt about one user in one collection; replaced as a whole, never edited.

    Attributes:
        memories: in order of time.
        vectors: object_id -> [P, D] float32, only for objects that moved.
        votes: what may be shared with others, without a name; one a ``query_key``, and sorted by it.
    """

    memories: tuple[QueryMemory, ...] = ()
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    votes: tuple[SharedVote, ...] = ()


def personal_id(object_id: str, user_id: str) -> str:
    """Return the name of a personal copy, for people; storage keys it by the pair.

    >>> personal_id("o1", "5")
    'o1_5'
    """
    return f"{object_id}_{user_id}"


def payload_as_json(object_id: str, payload: JSON) -> str:
    """Return an object's payload as it is stored.

    What Python has and JSON has not is written as Parquet's: a time as ISO 8601 text, a decimal as a number.

    Raises:
        InvalidInputError: it, or the object's id, is nothing that a database can store.
    """
    check_id(object_id, "the id of an object")
    if not isinstance(payload, Mapping):
        raise InvalidInputError(
            f"the payload of object {object_id!r} is {shown(payload)}; give a dict, as of a JSON object"
        )
    try:
        text = _quickly_as_json(payload) or json.dumps(
            payload, allow_nan=False, ensure_ascii=False, default=json_value
        )
        text.encode()
        is_sound = "\\u0000" not in text or not _NUL.search(text)
    except (ValueError, TypeError, RecursionError):
        is_sound = False
    if not is_sound:
        raise InvalidInputError(_unstorable(object_id, payload))
    return text


def _quickly_as_json(payload: Mapping[str, Any]) -> str | None:
    """Return a payload as JSON, or None where the slower writer has to look at it.

    A writer holds up all threads; this one takes a tenth of the time. It writes null for what is no number.
    """
    try:
        told = orjson.dumps(payload, default=json_value, option=PASSED_ON)
    except TypeError:  # a number of more than 64 bits, half a surrogate pair, a key that is no text
        return None
    return None if b"null" in told else told.decode()


def _unstorable(object_id: str, payload: Mapping[str, Any]) -> str:
    try:
        fault = next(faults(payload, "payload"), "payload holds a number of more digits than can be written")
    except RecursionError:
        fault = "payload is nested too deep, or holds itself"
    return f"object {object_id!r} cannot be stored: {fault}"


PASSED_ON = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
)
"""What ``json_value`` is to look at."""

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""In JSON, where a backslash that is meant as such stands twice."""
