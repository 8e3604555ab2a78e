"""Search, bent for each user by what was clicked for near queries (docs/how-it-learns.md).

Axes: Q parts of a query · D dimensions · J remembered queries · R results.
"""

import hashlib
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import JSON, Collection, Neighbour, QueryMemory
from embedding_studio.domain.sessions import (
    DEFAULT_COLLECTION,
    MAX_ID_LENGTH,
    SearchRequest,
    SearchResultItem,
    Session,
)
from embedding_studio.embedders import Embedder
from embedding_studio.embeddings.bend import Bend
from embedding_studio.embeddings.personal import blend, query_mean
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.embeddings.similarity import distances, similarities_of
from embedding_studio.errors import ConflictError, EmbeddingError, InvalidInputError
from embedding_studio.storage.ports import Storage, Vectors

SortBy = tuple[str, Literal["ascending", "descending"]]

GATE_THRESHOLD = 0.75
"""Measured best with all-MiniLM-L6-v2; for other models see ``tuning``."""

MAX_LIMIT = 1_000
MAX_REACH = 10_000
"""Results beyond this position are not served: whoever needs more reads the collection."""

SORT_WINDOW = 1_000
"""So many of the nearest are sorted by a payload field where no ``max_distance`` says how many."""


@dataclass(frozen=True, slots=True)
class Influence:
    """A past query that bears on this one.

    Attributes:
        gate: in (0, 1]; 1 is the same query.
        clicked_ids: what was clicked for it.
        distance_change: how far this past query alone would have moved the result; below 0 is nearer.
            Several do not add up: they share one shift, and the widest gate counts.
    """

    session_id: str
    search_query: str
    created_at: int
    gate: float
    clicked_ids: tuple[str, ...]
    distance_change: float


@dataclass(frozen=True, slots=True)
class SharedInfluence:
    """What other users clicked for near queries; who they are is not known here.

    Attributes:
        users: how many of them.
        gate: in (0, 2), how much it all counts, where 1 is the same query asked by the user before.
        distance_change: how far this alone would have moved the result; below 0 is nearer.
    """

    users: int
    gate: float
    distance_change: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a result stands where it does.

    Attributes:
        base_distance: from the query as given to the original.
        shifted_distance: from the shifted query to the original.
        distance: from the shifted query to original and personal vectors, blended by ``gate``.
        gate: in [0, 1], how much the object's personal vectors count; 0 without any.
        influences: the user's own past queries, widest gate first.
        shared: None where nothing of others bears on the query.
    """

    base_distance: float
    shifted_distance: float
    distance: float
    gate: float
    influences: tuple[Influence, ...]
    shared: SharedInfluence | None = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One result.

    Attributes:
        distance: smaller is nearer; that under which it was ranked.
        position: 1 is the top of the first page.
        personalised: whether clicks took part in its distance: the user's own, or shared ones of others.
        propensity: probability with which this slot shows this object, given what stands above it.
    """

    object_id: str
    distance: float
    payload: JSON
    position: int
    personalised: bool
    propensity: float
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class SearchPage:
    """One page of results.

    Attributes:
        session_id: the session that recorded the page; None if none did.
        next_page_offset: None on the last page.
        personalised: whether clicks bear on this query at all.
        collection: that was searched, whatever name it was asked by.
    """

    results: tuple[SearchResult, ...]
    session_id: str | None
    next_page_offset: int | None
    personalised: bool
    collection: Collection


class SearchService:
    """Searches a storage. Safe to use from several threads.

    Args:
        embedder: for queries that are texts.
        gate_threshold: cosine above which a remembered query bears on a new one, where the collection
            has none of its own.
        query_shift: how far a query moves towards what was clicked for near ones; 0 turns it off.
        exploration_ratio: share of a personalised page's slots that show the plain search's next result.
        shared_min_users: from so many other users on, what they clicked for near queries shifts a query
            too, of anonymous users as well; 0: what one user clicked bears on nobody else.
        settings: their fingerprint, recorded with each search.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        embedder: Embedder | None = None,
        gate_threshold: float = GATE_THRESHOLD,
        query_shift: float = 1.0,
        exploration_ratio: float = 0.0,
        shared_min_users: int = 0,
        settings: str = "",
    ) -> None:
        self._storage = storage
        self._embedder = embedder
        self._gate_threshold = gate_threshold
        self._query_shift = query_shift
        self._exploration_ratio = exploration_ratio
        self._settings = settings
        self._shared_by = shared_min_users if query_shift > 0 else 0  # what is shared is a shift

    def search(
        self,
        query: str | ArrayLike,
        *,
        collection: str = DEFAULT_COLLECTION,
        user_id: str | None = None,
        limit: int = 10,
        offset: int = 0,
        max_distance: float | None = None,
        filter: PayloadFilter | None = None,  # noqa: A002, the field's name in the documented request
        sort_by: SortBy | None = None,
        explain: bool = False,
        exploration_ratio: float | None = None,
        create_session: bool = False,
        session_id: str | None = None,
        rng: np.random.Generator | None = None,
        now: int | None = None,
    ) -> SearchPage:
        """Return one page of what is nearest to a query, for this user.

        Args:
            query: a text, or vectors [D] or [Q, D].
            user_id: None: nobody is known, and nothing is learnt; the search is plain, or bent by what
                others clicked where that is shared.
            max_distance: inclusive; of the distance that results are ranked by.
            sort_by: payload field (a dot steps into an object) and direction: reorders all within
                ``max_distance``, or the nearest ``SORT_WINDOW``. Numbers stand before texts, objects
                without a value last, equal ones by distance. Such a page does not explore.
            create_session: record query and page under ``session_id``, or under a new id.
            session_id: with an offset, a session recorded before: the page is added to it, and shows
                nothing that an earlier one showed, even if the user's clicks changed the order since.
            rng: where exploration is drawn from; by default from the session's id, so that its pages
                fit together, else from entropy.
            now: UTC seconds of the search; default: the clock.

        Raises:
            InvalidInputError: an argument is out of bounds, or the query's vectors cannot be used.
            EmbeddingError: the query is a text that cannot be embedded as the collection was.
            CollectionNotFoundError, SessionNotFoundError: no such collection, or session to continue.
            ConflictError: the session to record in is one of another user, query or collection.
        """
        ratio = self._exploration_ratio if exploration_ratio is None else exploration_ratio
        _check_bounds(limit, offset, max_distance, ratio, sort_by)
        _check_id("user_id", user_id)
        _check_id("session_id", session_id)
        known = self._storage.collections.get(collection)
        text, queries = self._parts_of(known, query)
        shown: set[str] = set()
        named = session_id is not None
        continues = named and offset > 0
        if session_id is not None and offset > 0:
            shown = self._shown_before(session_id, offset, user_id, text, collection)
        elif create_session:
            session_id = session_id or str(uuid.uuid4())

        bend = self._bend(known, user_id, queries)
        lists = _Lists(self._storage, known, queries, filter, max_distance, user_id, bend)
        reach = offset + limit + 1
        ranked = lists.sorted_by(sort_by) if sort_by else lists.ranked(reach)
        explored = lists.plain(reach) if bend and ratio > 0 and not sort_by else []
        draws = (rng or _rng_of(session_id)).random(reach) if explored else np.ones(reach)
        slots = list(_slots(ranked, explored, shown, draws[len(shown) :], ratio))
        slots = slots[max(0, offset - len(shown)) :]

        page = slots[:limit]
        explained = lists.explanations([found for found, own, _ in page if own]) if explain else {}
        results = tuple(
            SearchResult(
                object_id=found.object_id,
                distance=found.distance,
                payload=found.payload,
                position=position,
                personalised=bend is not None and own,
                propensity=propensity,
                explanation=explained.get(found.object_id, _as_for_anybody(found)) if explain else None,
            )
            for position, (found, own, propensity) in enumerate(page, start=offset + 1)
        )
        recorded_in = session_id if create_session or offset > 0 else None
        if recorded_in is not None and continues:
            self._storage.clickstream.append_results(recorded_in, _served(results))
        elif recorded_in is not None:
            session = Session(
                session_id=recorded_in,
                search_query=text,
                user_id=user_id,
                created_at=utc_timestamp() if now is None else now,
                collection=collection,
                search_results=_served(results),
                request=SearchRequest(
                    limit=limit,
                    offset=offset,
                    max_distance=max_distance,
                    filter=None if filter is None else filter.model_dump(mode="json", exclude_unset=True),
                    sort_by=sort_by,
                    exploration_ratio=ratio,
                    settings=self._settings,
                ),
            )
            is_new = self._storage.clickstream.register_session(session, queries)
            if not is_new:  # it stays as it is, and may have shown less
                self._storage.clickstream.append_results(recorded_in, session.search_results)
        more = len(slots) > limit and offset + 2 * limit <= MAX_REACH
        following = offset + limit if more else None
        return SearchPage(results, recorded_in, following, bend is not None, known)

    __call__ = search

    def _parts_of(self, collection: Collection, query: str | ArrayLike) -> tuple[str, Vectors]:
        """Return the text of a query ("" without one) and its vectors [Q, D]."""
        if not isinstance(query, str):
            return "", check_vectors(collection.index, query, "the query")
        if not query.strip():
            raise InvalidInputError("the query is empty; give a text, or the query's vectors")
        if self._embedder is None:
            raise EmbeddingError(
                "there is no embedder for the text of the query; search with vectors, or set EMBEDDER"
            )
        if collection.embedder not in (None, self._embedder.name):
            raise InvalidInputError(
                f"the collection {collection.name!r} was embedded by {collection.embedder!r}, this service "
                f"embeds by {self._embedder.name!r}; set EMBEDDER to the first, or index the collection anew"
            )
        vectors = self._embedder.embed(self._embedder.split(query))
        return query, check_vectors(collection.index, vectors, "the query")

    def _bend(self, collection: Collection, user_id: str | None, queries: Vectors) -> Bend | None:
        """Return what memories do to a query; None where the search is the plain one."""
        if user_id is None and self._shared_by == 0:
            return None
        index = collection.index
        threshold = self._gate_threshold if collection.gate_threshold is None else collection.gate_threshold
        mean = query_mean(index, queries)
        near = self._storage.personal.near_memories(
            collection, user_id, mean, threshold, shared_by=self._shared_by
        )
        return Bend.of(
            index,
            mean,
            near,
            threshold=threshold,
            strength=self._query_shift,
            min_users=self._shared_by,
        )

    def _shown_before(
        self, session_id: str, offset: int, user_id: str | None, text: str, collection: str
    ) -> set[str]:
        """Return what a session showed on the pages before this one."""
        session = self._storage.clickstream.get_session(session_id)
        if (session.user_id, session.search_query, session.collection) != (user_id, text, collection):
            raise ConflictError(
                f"the session {session_id!r} is of another user, query or collection; "
                "a further page needs those of the first"
            )
        return {
            result.object_id
            for result in session.search_results
            if result.position is not None and result.position <= offset
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Lists:
    """The lists from which one page is made, and why they are as they are.

    Attributes:
        queries: [Q, D], as given.
        bend: None where the plain list is the only one.
    """

    storage: Storage
    collection: Collection
    queries: Vectors
    filter: PayloadFilter | None
    max_distance: float | None
    user_id: str | None
    bend: Bend | None

    def plain(self, count: int) -> list[Neighbour]:
        """Return the ``count`` nearest for anybody."""
        return self.storage.objects.nearest(
            self.collection, self.queries, count, filter=self.filter, max_distance=self.max_distance
        )

    def ranked(self, count: int) -> list[Neighbour]:
        """Return the ``count`` nearest for this user, each object once, by (distance, object_id)."""
        if self.bend is None:
            return self.plain(count)
        index = self.collection.index
        shifted = self.bend.shifted(index, self.queries)
        gate_of = self.bend.object_gates()
        if self.user_id is None or not gate_of:
            return self.storage.objects.nearest(
                self.collection, shifted, count, filter=self.filter, max_distance=self.max_distance
            )
        found = self.storage.personal.nearest(
            self.collection, self.user_id, shifted, count, gate_of, filter=self.filter
        )
        return [each for each in found if self.max_distance is None or each.distance <= self.max_distance]

    def sorted_by(self, sort_by: SortBy) -> list[Neighbour]:
        """Return all within ``max_distance``, or the nearest ``SORT_WINDOW``, by a payload field."""
        count = SORT_WINDOW
        found = self.ranked(count)
        while self.max_distance is not None and len(found) == count < MAX_REACH:
            count = min(4 * count, MAX_REACH)
            found = self.ranked(count)
        name, direction = sort_by
        valued = [(_sort_key(each.payload, name), each) for each in found]
        present = [(key, each) for key, each in valued if key is not None]
        present.sort(key=lambda pair: pair[0], reverse=direction == "descending")
        return [each for _, each in present] + [each for key, each in valued if key is None]

    def explanations(self, results: Sequence[Neighbour]) -> dict[str, Explanation]:
        """Return object_id -> why it stands where it does, for results of ``ranked`` that are bent."""
        if self.bend is None:
            return {}
        index = self.collection.index
        ids = [each.object_id for each in results]
        originals = {each.object_id: each.parts for each in self.storage.objects.get(self.collection, ids)}
        gate_of = self.bend.object_gates()
        moved = [object_id for object_id in ids if object_id in gate_of]
        copies = (
            self.storage.personal.copies(self.collection, self.user_id, moved)
            if self.user_id and moved
            else {}
        )
        there = [each for each in results if each.object_id in originals]  # the others are gone by now
        if not there:
            return {}
        original = [originals[each.object_id] for each in there]
        personal = [copies.get(each.object_id, originals[each.object_id]) for each in there]

        def distances_by(bend: Bend) -> NDArray[np.float64]:
            gate_of = bend.object_gates()
            shifted = bend.shifted(index, self.queries)
            blended = blend(
                similarities_of(index, shifted, original),
                similarities_of(index, shifted, personal),
                np.array([gate_of.get(each.object_id, 0.0) for each in there]),
            )
            return distances(index, blended)

        base = distances(index, similarities_of(index, self.queries, original))
        shifted = distances(index, similarities_of(index, self.bend.shifted(index, self.queries), original))
        changes = [distances_by(self.bend.alone(j)) - base for j in range(len(self.bend.memories))]
        widest_first = np.argsort(-self.bend.gates, kind="stable").tolist()
        shared = self.bend.shared
        shared_changes = distances_by(self.bend.shared_alone()) - base if shared else base
        return {
            each.object_id: Explanation(
                base_distance=float(base[r]),
                shifted_distance=float(shifted[r]),
                distance=each.distance,
                gate=gate_of[each.object_id] if each.object_id in copies else 0.0,
                influences=tuple(
                    _influence(self.bend.memories[j], float(self.bend.gates[j]), float(changes[j][r]))
                    for j in widest_first
                ),
                shared=SharedInfluence(shared.users, shared.gate, float(shared_changes[r]))
                if shared
                else None,
            )
            for r, each in enumerate(there)
        }


def _slots(
    ranked: Sequence[Neighbour],
    plain: Sequence[Neighbour],
    shown: Iterable[str],
    draws: Iterable[float],
    ratio: float,
) -> Iterator[tuple[Neighbour, bool, float]]:
    """Yield for each draw what its slot shows, whether that is of the user's own list, and how probably.

    With probability ``ratio`` a slot shows what comes next in the plain list, else what comes next in
    the user's own; no object twice, and when one list is at its end the other goes on.
    """
    taken = set(shown)
    i = k = 0
    for draw in draws:
        while i < len(ranked) and ranked[i].object_id in taken:
            i += 1
        while k < len(plain) and plain[k].object_id in taken:
            k += 1
        own = ranked[i] if i < len(ranked) else None
        other = plain[k] if k < len(plain) else None
        if other is None or (own is not None and own.object_id == other.object_id):
            if own is None:
                return
            slot = own, True, 1.0
        elif own is None:
            slot = other, False, 1.0
        else:
            slot = (other, False, ratio) if draw < ratio else (own, True, 1.0 - ratio)
        taken.add(slot[0].object_id)
        yield slot


def _served(results: Iterable[SearchResult]) -> tuple[SearchResultItem, ...]:
    return tuple(
        SearchResultItem(
            object_id=result.object_id,
            rank=result.distance,
            position=result.position,
            personalised=result.personalised,
            propensity=result.propensity,
        )
        for result in results
    )


def _as_for_anybody(found: Neighbour) -> Explanation:
    return Explanation(found.distance, found.distance, found.distance, gate=0.0, influences=())


def _influence(memory: QueryMemory, gate: float, distance_change: float) -> Influence:
    return Influence(
        memory.session_id, memory.search_query, memory.created_at, gate, memory.clicked_ids, distance_change
    )


def _sort_key(payload: JSON, name: str) -> tuple[int, float | str] | None:
    """Return what a payload is sorted by: numbers before texts; None where there is neither."""
    value: object = payload
    for step in name.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    if isinstance(value, str):
        return (1, value)
    return (0, value) if isinstance(value, int | float) and not math.isnan(value) else None


def _rng_of(session_id: str | None) -> np.random.Generator:
    if session_id is None:
        return np.random.default_rng()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(session_id.encode()).digest()[:16]))


def _check_bounds(
    limit: int, offset: int, max_distance: float | None, ratio: float, sort_by: SortBy | None
) -> None:
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidInputError(f"limit is {limit}; ask for 1 to {MAX_LIMIT} results")
    if offset < 0 or offset + limit > MAX_REACH:
        raise InvalidInputError(
            f"offset is {offset} and limit {limit}; pages lie between 0 and {MAX_REACH}, "
            "so narrow the search by a filter or max_distance"
        )
    if max_distance is not None and not math.isfinite(max_distance):
        raise InvalidInputError(f"max_distance is {max_distance}; give a finite number, or leave it out")
    if not 0 <= ratio <= 1:
        raise InvalidInputError(f"exploration_ratio is {ratio}; give a share from 0 to 1")
    if sort_by is not None and (
        len(sort_by) != 2 or not sort_by[0] or sort_by[1] not in {"ascending", "descending"}
    ):
        raise InvalidInputError(f"sort_by is {sort_by}; give a payload field and 'ascending' or 'descending'")


def _check_id(name: str, given: str | None) -> None:
    if given is not None and not 1 <= len(given) <= MAX_ID_LENGTH:
        raise InvalidInputError(
            f"{name} has {len(given)} characters; give 1 to {MAX_ID_LENGTH}, or leave it out"
        )
