"""What can learn from a user's sessions, each behind the same three verbs: serve, learn, rank."""

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.domain.sessions import SearchResultItem, Session, SessionEvent
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.embeddings.improvement.vectors_adjuster import VectorsAdjuster
from embedding_studio.embeddings.similarity import distances, similarities
from embedding_studio.embeddings.trust_region import MAX_ANGLE_DEGREES
from embedding_studio.errors import EmbeddingStudioError, InvalidInputError
from embedding_studio.evaluation.collection_folder import JudgedCollection, JudgedQuery
from embedding_studio.evaluation.reference import reference_update
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import GATE_THRESHOLD, QUERY_SHIFT, SHARED_MIN_USERS, SearchService
from embedding_studio.storage.ports import Storage
from embedding_studio.tuning import guard_gate

Vectors = NDArray[np.float32]
Ranked = tuple[str, float]
"""An object's id and distance."""

PAGE = 10
SECONDS_BETWEEN_SESSIONS = 86_400
SECONDS_TO_CLICK = 20
USERS_OF_SHARED = 3


@dataclass(frozen=True, slots=True, eq=False)
class ServedSession:
    """What a user was shown and clicked.

    Attributes:
        number: of the user's session, from 0.
        clicked: in the order shown; at least one.
    """

    user_id: str
    number: int
    query: JudgedQuery
    shown: tuple[str, ...]
    clicked: tuple[str, ...]


class Method(Protocol):
    """Serves users and learns from what they click. It is opened on a storage and collection of its own."""

    def serve(self, user_id: str, query: JudgedQuery, number: int) -> list[str]:
        """Return the ten results that a user is shown in their session of this number."""
        ...

    def learn(self, sessions: Sequence[ServedSession]) -> None:
        """Take in one session each of some users."""
        ...

    def rank(self, user_id: str | None, query: JudgedQuery) -> list[Ranked]:
        """Return the ten nearest objects for a user, nearest first; plain search for None."""
        ...

    def close(self) -> None:
        """Leave nothing in the storage."""
        ...


class Product:
    """The product as it serves users: ``SearchService`` before the clicks, ``Improver`` after them.

    Collection, users and sessions bear a name of this run alone, so that any storage will do.

    Args:
        gate_threshold: None: as the product has it, narrowed where the items say so (``guard_gate``).
        query_shift, shared_min_users: as in ``SearchService``.
        max_angle_degrees: as in ``Improver``; the adjuster keeps its own.
    """

    def __init__(
        self,
        storage: Storage,
        collection: JudgedCollection,
        *,
        adjuster: Callable[[SearchIndexInfo], VectorsAdjuster] = PassiveAggressiveAdjuster,
        gate_threshold: float | None = None,
        query_shift: float = QUERY_SHIFT,
        max_angle_degrees: float = MAX_ANGLE_DEGREES,
        shared_min_users: int = SHARED_MIN_USERS,
    ) -> None:
        self._run = uuid.uuid4().hex
        self._users: set[str] = set()
        self._storage = storage
        self._collection = storage.collections.create(f"evaluation-{self._run}", collection.index)
        storage.objects.upsert(
            self._collection,
            [
                CatalogueObject(item_id, parts)
                for item_id, parts in zip(collection.item_ids, collection.parts, strict=True)
            ],
        )
        if gate_threshold is None:
            guard_gate(storage, self._collection, collection.item_ids)
        self._search = SearchService(
            storage,
            gate_threshold=GATE_THRESHOLD if gate_threshold is None else gate_threshold,
            query_shift=query_shift,
            shared_min_users=shared_min_users,
        )
        self._improver = Improver(
            storage,
            adjuster,
            max_angle_degrees=max_angle_degrees,
            adjuster_seconds=math.inf,  # no other waits behind it, and who waits for figures can stop it
            is_shared=shared_min_users > 0,
        )

    def serve(self, user_id: str, query: JudgedQuery, number: int) -> list[str]:
        page = self._search.search(
            query.vector,
            collection=self._collection.name,
            user_id=self._name(user_id),
            limit=PAGE,
            create_session=True,
            session_id=self._session_id(user_id, number),
            now=_started_at(number),
        )
        return [result.object_id for result in page.results]

    def learn(self, sessions: Sequence[ServedSession]) -> None:
        self._storage.clickstream.push_events(
            [event for session in sessions for event in self._clicks(session)]
        )
        while (report := self._improver.improve_once()).users:
            if report.failed or report.refused:
                session_id, reason = next(iter({**report.failed, **report.refused}.items()))
                raise EmbeddingStudioError(
                    f"session {session_id!r} of the evaluation was not learnt: {reason}"
                )

    def rank(self, user_id: str | None, query: JudgedQuery) -> list[Ranked]:
        page = self._search.search(
            query.vector,
            collection=self._collection.name,
            user_id=None if user_id is None else self._name(user_id),
            limit=PAGE,
        )
        return [(result.object_id, result.distance) for result in page.results]

    def close(self) -> None:
        for name in self._users:
            self._storage.clickstream.forget_user(name)
        self._storage.collections.drop(self._collection.name)

    def _name(self, user_id: str) -> str:
        name = f"{self._run}-{user_id}"
        self._users.add(name)
        return name

    def _session_id(self, user_id: str, number: int) -> str:
        return f"{self._name(user_id)}-{number:04d}"

    def _clicks(self, session: ServedSession) -> list[SessionEvent]:
        return [
            SessionEvent(
                session_id=self._session_id(session.user_id, session.number),
                object_id=object_id,
                created_at=_started_at(session.number) + SECONDS_TO_CLICK,
            )
            for object_id in session.clicked
        ]


class UngatedCopies(Product):
    """The same learning, served without gate and shift: a moved object counts moved for every query."""

    def __init__(
        self,
        storage: Storage,
        collection: JudgedCollection,
        *,
        adjuster: Callable[[SearchIndexInfo], VectorsAdjuster] = PassiveAggressiveAdjuster,
    ) -> None:
        super().__init__(storage, collection, adjuster=adjuster, query_shift=0.0)
        self._catalogue = Catalogue(collection)

    def serve(self, user_id: str, query: JudgedQuery, number: int) -> list[str]:
        shown = [object_id for object_id, _ in self.rank(user_id, query)]
        session = Session(
            session_id=self._session_id(user_id, number),
            search_query=query.text,
            user_id=self._name(user_id),
            created_at=_started_at(number),
            collection=self._collection.name,
            search_results=tuple(SearchResultItem(object_id=object_id) for object_id in shown),
        )
        self._storage.clickstream.register_session(session, query.vector[None, :])
        return shown

    def rank(self, user_id: str | None, query: JudgedQuery) -> list[Ranked]:
        if user_id is None:
            return self._catalogue.nearest(query, {})
        state = self._storage.personal.state(self._collection, self._name(user_id))
        return self._catalogue.nearest(query, state.vectors)


class Reference:
    """The reference page's formula, each session starting from the copies that the last one left.

    For cosine alone: for inner products the page scales by the smallest and the largest number of the
    batch, so that a user's vectors would depend on who else is in it.

    Raises:
        InvalidInputError: the collection has another metric.
    """

    def __init__(self, storage: Storage, collection: JudgedCollection) -> None:  # noqa: ARG002, opened like the others
        if collection.metric is not MetricType.COSINE:
            raise InvalidInputError(
                f"the reference formula is given for cosine, not for {collection.metric}; "
                "leave out the method 'reference', or evaluate with the metric cosine"
            )
        self._catalogue = Catalogue(collection)
        self._copies: dict[str, dict[str, Vectors]] = {}

    def serve(self, user_id: str, query: JudgedQuery, number: int) -> list[str]:  # noqa: ARG002, keeps no log
        return [object_id for object_id, _ in self.rank(user_id, query)]

    def learn(self, sessions: Sequence[ServedSession]) -> None:
        contrasting = [session for session in sessions if len(session.clicked) < len(session.shown)]
        if not contrasting:
            return
        moved = reference_update(
            np.stack([session.query.vector for session in contrasting]),
            [
                [self._parts(session.user_id, object_id) for object_id in session.shown]
                for session in contrasting
            ],
            [[object_id in session.clicked for object_id in session.shown] for session in contrasting],
        )
        for session, vectors in zip(contrasting, moved, strict=True):
            self._copies.setdefault(session.user_id, {}).update(zip(session.shown, vectors, strict=True))

    def rank(self, user_id: str | None, query: JudgedQuery) -> list[Ranked]:
        return self._catalogue.nearest(query, self._copies.get(user_id or "", {}))

    def close(self) -> None:
        """Do nothing: all that was learnt is this object's own."""

    def _parts(self, user_id: str, object_id: str) -> Vectors:
        mine = self._copies.get(user_id, {}).get(object_id)
        return self._catalogue.parts_of(object_id) if mine is None else mine


class Catalogue:
    """All objects, scored for somebody whose copies replace originals whatever is asked."""

    def __init__(self, collection: JudgedCollection) -> None:
        order = sorted(range(len(collection.item_ids)), key=lambda row: collection.item_ids[row])
        self._index = collection.index
        self._ids = [collection.item_ids[row] for row in order]
        self._rows = {object_id: row for row, object_id in enumerate(self._ids)}
        self._each = [collection.parts[row] for row in order]
        self._parts = np.concatenate(self._each)
        self._starts = np.cumsum([0, *map(len, self._each)][:-1])

    def parts_of(self, object_id: str) -> Vectors:
        return self._each[self._rows[object_id]]

    def nearest(self, query: JudgedQuery, copies: Mapping[str, Vectors]) -> list[Ranked]:
        """Return the ten nearest by (distance, object_id)."""
        queries = query.vector[None, :]
        alike = similarities(self._index, queries, self._parts, self._starts)
        if copies:
            rows = [self._rows[object_id] for object_id in copies]
            starts = np.cumsum([0, *map(len, copies.values())][:-1])
            alike[rows] = similarities(self._index, queries, np.concatenate(list(copies.values())), starts)
        found = distances(self._index, alike)
        nearest = np.argsort(found, kind="stable")[:PAGE]
        return [(self._ids[row], float(found[row])) for row in nearest]


def torch_based(storage: Storage, collection: JudgedCollection) -> Method:
    from embedding_studio.embeddings.improvement.torch_based_adjuster import TorchBasedAdjuster

    return Product(storage, collection, adjuster=TorchBasedAdjuster)


def shared(storage: Storage, collection: JudgedCollection) -> Method:
    return Product(storage, collection, shared_min_users=USERS_OF_SHARED)


OpenMethod = Callable[[Storage, JudgedCollection], Method]

METHODS: Mapping[str, OpenMethod] = {
    "reference": Reference,
    "torch": torch_based,
    "copies": UngatedCopies,
    "default": Product,
    "shared": shared,
}
"""Method by name, as ``evaluate`` takes them."""

PLAIN = "plain"
"""Search that learns nothing: the baseline, unless a method is named as such."""

DESCRIPTIONS: Mapping[str, str] = {
    "reference": "reference formula: AdamW, every skip a full negative, no bound, copies for every query",
    "torch": "TorchBasedAdjuster with gate and query shift",
    "copies": "PassiveAggressiveAdjuster, copies for every query, no gate, no shift",
    "default": "PassiveAggressiveAdjuster with gate and query shift, as served by default",
    "shared": f"default, and what {USERS_OF_SHARED} others or more clicked for near queries",
}


def methods_by_name(names: Sequence[str]) -> dict[str, OpenMethod]:
    """Return the methods of these names, in this order.

    Raises:
        InvalidInputError: there is none of some name, or no name at all.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        wrong = f"there is no method {unknown[0]!r} to evaluate" if unknown else "no method is named"
        raise InvalidInputError(f"{wrong}; choose from {', '.join(METHODS)}")
    return {name: METHODS[name] for name in names}


def _started_at(number: int) -> int:
    return SECONDS_BETWEEN_SESSIONS * (number + 1)
