"""Search, bent for each user by what was clicked for near queries (docs/how-it-learns.md).

Axes: Q parts of a query · D dimensions.
"""

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
from numpy.typing import ArrayLike

from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.limits import MAX_QUERY_LENGTH, MAX_QUERY_PARTS
from embedding_studio.domain.objects import Collection, NearMemories
from embedding_studio.domain.sessions import (
    DEFAULT_COLLECTION,
    MAX_REACH,
    FurtherPage,
    RecordedSession,
    SearchOptions,
    SearchRequest,
    SearchResultItem,
    Session,
    SessionDisposition,
)
from embedding_studio.domain.storable import check_id, check_text
from embedding_studio.embedders import Embedder, embed_texts, query_embedding
from embedding_studio.embedders.names import mismatch
from embedding_studio.embeddings.bend import Bend
from embedding_studio.embeddings.personal import query_mean
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.errors import (
    CollectionNotFoundError,
    ConflictError,
    EmbeddingError,
    InvalidInputError,
    InvalidVectorsError,
    counted,
)
from embedding_studio.search.candidates import check_candidates, ranked_candidates, vectors_brought
from embedding_studio.search.mixing import Slot, slots_of
from embedding_studio.search.ranking import Lists, as_for_anybody
from embedding_studio.search.results import BentQuery, MovedObject, RankedPage, SearchPage, SearchResult
from embedding_studio.storage.ports import OutdatedError, Storage, Vectors
from embedding_studio.telemetry.traces import span

GATE_THRESHOLD = 0.75
"""Measured best with all-MiniLM-L6-v2; for other models see ``tuning``."""

QUERY_SHIFT = 1.0
EXPLORATION_RATIO = 0.0
SHARED_MIN_USERS = 0
QUERY_SECONDS = 8.0
"""What a person who waits for results may forgive."""


class SearchService:
    """Searches a storage. Safe to use from several threads.

    Args:
        embedder: for queries that are texts.
        gate_threshold: cosine above which a remembered query bears on a new one, where the collection
            has none of its own.
        query_shift: how far a query moves towards what was clicked for near ones; 0 turns it off.
        exploration_ratio: share of a personalised page's slots that show the plain search's next result.
        shared_min_users: from so many other users on, what they clicked for near queries shifts a query
            too, of anonymous users as well; 0: what one user clicked bears on no other user.
        query_seconds: so long an embedder may take for a query that is a text, if it can be hurried.
        settings: their fingerprint, recorded with each search.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        embedder: Embedder | None = None,
        gate_threshold: float = GATE_THRESHOLD,
        query_shift: float = QUERY_SHIFT,
        exploration_ratio: float = EXPLORATION_RATIO,
        shared_min_users: int = SHARED_MIN_USERS,
        query_seconds: float = QUERY_SECONDS,
        settings: str = "",
    ) -> None:
        self._storage = storage
        self._embedder = embedder
        self._gate_threshold = gate_threshold
        self._query_shift = query_shift
        self._exploration_ratio = exploration_ratio
        self._query_seconds = query_seconds
        self._settings = settings
        self._shared_by = shared_min_users if query_shift > 0 else 0  # what is shared is a shift

    def search(
        self,
        query: str | ArrayLike,
        request: SearchRequest | None = None,
        *,
        collection: str = DEFAULT_COLLECTION,
        user_id: str | None = None,
        explain: bool = False,
        create_session: bool = False,
        session_id: str | None = None,
        sender: str = "",
        rng: np.random.Generator | None = None,
        now: int | None = None,
        **options: Unpack[SearchOptions],
    ) -> SearchPage:
        """Return one page of what is nearest to a query, for this user.

        Args:
            query: a text, or vectors [D] or [Q, D].
            request: what is asked for beside the query, such as that of a recorded session.
            user_id: None: the user is unknown, and nothing is learnt; the search is plain, or bent by what
                others clicked where that is shared.
            create_session: record query and page under ``session_id``, or under a new id.
            session_id: with an offset, a session recorded before: the page is added to it, and shows
                nothing that an earlier one showed, even if the user's clicks changed the order since.
            sender: by which key it comes; recorded with the session.
            rng: where exploration is drawn from; by default from the session's id, so that its pages
                fit together, else from entropy.
            now: UTC seconds of the search; default: the clock.
            **options: ``limit``, ``offset``, ``max_distance``, ``filter``, ``sort_by`` and
                ``exploration_ratio`` as in ``SearchRequest``, instead of those of ``request``.

        Raises:
            InvalidInputError: an argument is out of bounds, or the query's vectors cannot be used.
            EmbeddingError: the query is a text that cannot be embedded.
            EmbedderUnavailableError: nor could any other be just now.
            CollectionNotFoundError, SessionNotFoundError: no such collection, or session to continue.
            ConflictError: the session to record in is one of another user, query or collection.
        """
        request = self._resolved((request or SearchRequest()).having(**options))
        wanted = request.payload_filter
        _check_ids(user_id, session_id)
        now = utc_timestamp() if now is None else now
        asked = self._asked(collection, query, user_id, now, is_checked_later=True)
        text, offset = asked.text, request.offset
        continued = session_id if offset > 0 else None
        shown = self._shown_before(continued, offset, user_id, text, collection) if continued else set()
        if create_session:
            session_id = session_id or str(uuid.uuid4())

        def found(asked: _Asked) -> SearchPage:
            lists = asked.lists(self._storage, user_id, request, wanted)
            return _page(lists, shown, rng, session_id, explain=explain)

        try:
            page = found(asked)
        except (OutdatedError, CollectionNotFoundError):
            if asked.near.is_checked:
                raise
            asked = self._asked(collection, query, user_id, now, earlier=asked)
            page = found(asked)
        if continued:
            served = _served(page.results)
            object_ids = tuple(result.object_id for result in served)
            further = FurtherPage(request=request, created_at=now, object_ids=object_ids)
            self._storage.clickstream.append_results(continued, served, further)
        elif session_id is not None and create_session:
            session = Session(
                session_id=session_id,
                search_query=text,
                user_id=user_id,
                created_at=now,
                collection=collection,
                search_results=_served(page.results),
                request=request,
            )
            with span("record session"):
                self._record(RecordedSession(session, asked.queries, sender))
        return replace(page, session_id=session_id if create_session else continued)

    __call__ = search

    def rank_again(self, recorded: RecordedSession, page: int = 0, *, explain: bool = False) -> SearchPage:
        """Return a page of a recorded session as it is ranked now; nothing is recorded.

        It is the page that was shown, if what is learnt and indexed, and the settings, are what they were.

        Args:
            recorded: the vectors of its query are compared, or if it has none its text is embedded.
            page: 0 is the first, k is that of ``Session.pages[k - 1]``. Where exploration was drawn from an
                ``rng`` that was given, another draw takes its place.

        Raises:
            InvalidInputError: the session has no such page, or another system ranked it.
            EmbeddingError, EmbedderUnavailableError, CollectionNotFoundError: as ``search``.
        """
        session = recorded.session
        if session.request is None or not 0 <= page <= len(session.pages):
            recorded_pages = len(session.pages) + (session.request is not None)
            raise InvalidInputError(
                f"page {page} of the session {session.session_id!r} was not recorded with its request, "
                f"but {counted(recorded_pages, 'page was', 'pages were')}"
            )
        shown_by = session.pages[page - 1] if page else None
        request = self._resolved(shown_by.request if shown_by else session.request)
        now = shown_by.created_at if shown_by else session.created_at
        query = session.search_query if recorded.query_vectors is None else recorded.query_vectors
        asked = self._asked(session.collection, query, session.user_id, now)
        lists = asked.lists(self._storage, session.user_id, request, request.payload_filter)
        shown = session.shown_before(request.offset, page) if page else set()
        return _page(lists, shown, None, session.session_id, explain=explain)

    def rank(
        self,
        query: str | ArrayLike,
        candidates: Sequence[str],
        *,
        vectors: Mapping[str, ArrayLike] | None = None,
        limit: int | None = None,
        collection: str = DEFAULT_COLLECTION,
        user_id: str | None = None,
        create_session: bool = False,
        session_id: str | None = None,
        sender: str = "",
        now: int | None = None,
    ) -> RankedPage:
        """Return what another search found in the order for this user (``candidates``, eq. 15).

        Where no click bears on the query the order stays as it is.

        Args:
            query: a text, or vectors [D] or [Q, D].
            candidates: ids, the best first; at most ``MAX_CANDIDATES``, each once.
            vectors: object_id -> [D] or [P, D], of candidates that the collection does not have, or
                instead of what it has. A candidate without any stays at its place.
            limit: so many are returned, and recorded as shown; None: all.
            create_session: record query and results under ``session_id``, or under a new id.
            user_id, sender, now: as for ``search``.

        Raises:
            InvalidInputError: an argument is out of bounds, or vectors cannot be used.
            EmbeddingError, EmbedderUnavailableError, CollectionNotFoundError, ConflictError: as ``search``.
        """
        check_candidates(candidates, limit)
        _check_ids(user_id, session_id)
        now = utc_timestamp() if now is None else now
        asked = self._asked(collection, query, user_id, now)
        brought = vectors_brought(asked.collection.index, candidates, vectors or {})
        results, unknown = ranked_candidates(asked.lists(self._storage, user_id), candidates, brought)
        results = results[:limit]
        if create_session:
            session_id = session_id or str(uuid.uuid4())
            session = Session(
                session_id=session_id,
                search_query=asked.text,
                user_id=user_id,
                created_at=now,
                collection=collection,
                search_results=tuple(
                    SearchResultItem(
                        object_id=each.object_id, position=each.position, personalised=each.personalised
                    )
                    for each in results
                ),
            )
            self._record(RecordedSession(session, asked.queries, sender))
        recorded = session_id if create_session else None
        return RankedPage(results, recorded, asked.bend is not None, unknown, asked.collection)

    def bent(
        self,
        query: str | ArrayLike,
        *,
        collection: str = DEFAULT_COLLECTION,
        user_id: str | None = None,
        now: int | None = None,
    ) -> BentQuery:
        """Return what clicks make of a query, for an engine that searches elsewhere; nothing is recorded.

        Raises:
            As ``rank``, but for ConflictError.
        """
        _check_ids(user_id)
        asked = self._asked(collection, query, user_id, utc_timestamp() if now is None else now)
        known, bend = asked.collection, asked.bend
        if bend is None:
            return BentQuery(asked.queries, (), {}, personalised=False, collection=known)
        gate_of, copies = bend.object_gates(), asked.lists(self._storage, user_id).own_vectors(bend)
        return BentQuery(
            bend.shifted(known.index, asked.queries),
            tuple(MovedObject(name, gate_of[name], copies[name]) for name in sorted(copies)),
            dict(sorted(bend.object_factors().items())),
            personalised=True,
            collection=known,
        )

    def _resolved(self, request: SearchRequest) -> SearchRequest:
        """Return a request as it is recorded: in bounds, under the settings of this service."""
        ratio = self._exploration_ratio if request.exploration_ratio is None else request.exploration_ratio
        resolved = request.model_copy(update={"exploration_ratio": ratio, "settings": self._settings})
        resolved.check()
        return resolved

    def _parts_of(self, collection: Collection, query: str | ArrayLike) -> tuple[str, Vectors]:
        """Return the text of a query ("" without one) and its vectors [Q, D]."""
        if not isinstance(query, str):
            return "", _few(check_vectors(collection.index, query, "the query"))
        if not query.strip():
            raise InvalidInputError("the query is empty; give a text, or the query's vectors")
        if len(query) > MAX_QUERY_LENGTH:
            raise InvalidInputError(
                f"the query has {len(query):,} characters; at most {MAX_QUERY_LENGTH:,} are searched for"
            )
        try:
            check_text(query)
        except ValueError as error:
            raise InvalidInputError(f"the query cannot be searched for: {error}") from error
        if self._embedder is None:
            raise EmbeddingError(
                "there is no embedder for the text of the query; search with vectors, or set EMBEDDER"
            )
        if not collection.is_embedded_by(self._embedder.name):
            raise InvalidInputError(mismatch(collection, self._embedder.name))
        embed = query_embedding(self._embedder, seconds=self._query_seconds)
        with span("embed query"):
            [vectors] = embed_texts(self._embedder, [query], embed=embed)
        if collection.embedder is None and vectors.shape[-1] != collection.index.dimensions:
            raise InvalidInputError(
                f"the collection {collection.name!r} has vectors of {collection.index.dimensions} dimensions "
                f"that callers brought, and the embedder makes {vectors.shape[-1]}: search it with vectors"
            )
        try:
            checked = check_vectors(collection.index, vectors, "the query")
        except InvalidVectorsError as error:  # not the caller's fault, who gave a text
            raise EmbeddingError(
                f"the embedder {self._embedder.name!r} gave what is no vector for the query: {error}"
            ) from error
        return query, _few(checked)

    def _asked(
        self,
        name: str,
        query: str | ArrayLike,
        user_id: str | None,
        now: int,
        *,
        is_checked_later: bool = False,
        earlier: "_Asked | None" = None,
    ) -> "_Asked":
        """Return a query as its collection takes it, with what memories do to it.

        The collection is taken for what it was when it was last looked at, and who reads memories says
        whether it still is.

        Args:
            is_checked_later: so are memories, and only ``Lists.ranked`` says whether they still are.
            earlier: what turned out to be old.
        """
        collections = self._storage.collections
        with span("look up collection"):
            seen = collections.seen(name)
        try:
            return self._bent(
                seen,
                query,
                user_id,
                now,
                seen_as=name,
                is_checked_later=is_checked_later,
                earlier=earlier,
            )
        except OutdatedError:
            known = collections.get(name)
        except (CollectionNotFoundError, InvalidInputError, EmbeddingError):
            known = collections.get(name)
            if known == seen:
                raise
        return self._bent(known, query, user_id, now, earlier=earlier)

    def _bent(
        self,
        collection: Collection,
        query: str | ArrayLike,
        user_id: str | None,
        now: int,
        *,
        seen_as: str | None = None,
        is_checked_later: bool = False,
        earlier: "_Asked | None" = None,
    ) -> "_Asked":
        if earlier is not None and _embed_alike(earlier.collection, collection):
            text, queries = earlier.text, earlier.queries
        else:
            text, queries = self._parts_of(collection, query)
        index = collection.index
        threshold = self._gate_threshold if collection.gate_threshold is None else collection.gate_threshold
        mean = query_mean(index, queries)
        with span("read what was learnt", collection=collection.name):
            near = self._storage.personal.near_memories(
                collection,
                user_id,
                mean,
                threshold,
                shared_by=self._shared_by,
                seen_as=seen_as,
                is_checked_later=is_checked_later,
            )
        bend = Bend.of(
            index,
            mean,
            near,
            threshold=threshold,
            strength=self._query_shift,
            min_users=self._shared_by,
            own_past=collection.own_past,
            now=now,
        )
        return _Asked(collection, text, queries, bend, near)

    def _record(self, recorded: RecordedSession) -> None:
        [became] = self._storage.clickstream.record([recorded])
        if became.disposition is SessionDisposition.TAKEN:
            raise ConflictError(
                f"the session {recorded.session.session_id!r} is of another user, query or collection; "
                "give each search a session_id of its own"
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
        return session.shown_before(offset)


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A query as its collection takes it.

    Attributes:
        queries: [Q, D].
        bend: what memories do to it; None where the search is the plain one.
        near: the memories.
    """

    collection: Collection
    text: str
    queries: Vectors
    bend: Bend | None
    near: NearMemories

    def lists(
        self,
        storage: Storage,
        user_id: str | None,
        request: SearchRequest | None = None,
        wanted: PayloadFilter | None = None,
    ) -> Lists:
        request = request or SearchRequest()
        return Lists(storage, self.collection, self.queries, request, wanted, user_id, self.bend, self.near)


def _embed_alike(one: Collection, other: Collection) -> bool:
    """Return whether a query has the same vectors in both."""
    return (one.index, one.embedder) == (other.index, other.embedder)


def _check_ids(user_id: str | None, session_id: str | None = None) -> None:
    for name, given in (("user_id", user_id), ("session_id", session_id)):
        if given is not None:
            check_id(given, name)


def _few(vectors: Vectors) -> Vectors:
    if len(vectors) > MAX_QUERY_PARTS:
        raise InvalidInputError(
            f"the query has {len(vectors)} parts; at most {MAX_QUERY_PARTS} are compared, so make it shorter"
        )
    return vectors


def _page(
    lists: Lists,
    shown: AbstractSet[str],
    rng: np.random.Generator | None,
    session_id: str | None,
    *,
    explain: bool,
) -> SearchPage:
    """Return a page that no session records.

    Args:
        shown: what earlier pages showed.
        rng, session_id: as of ``SearchService.search``.
    """
    offset, limit = lists.request.offset, lists.request.limit
    with span("find the nearest", collection=lists.collection.name):
        slots, is_sorted = _slots(lists, shown, rng, session_id)
    more = len(slots) > limit and offset + 2 * limit <= MAX_REACH
    return SearchPage(
        results=_results(lists, slots[:limit], offset, explain=explain),
        session_id=None,
        next_page_offset=offset + limit if more else None,
        personalised=lists.bend is not None,
        collection=lists.collection,
        is_sorted=is_sorted,
    )


def _slots(
    lists: Lists, shown: AbstractSet[str], rng: np.random.Generator | None, session_id: str | None
) -> tuple[list[Slot], bool | None]:
    """Return the slots of a page, and one more where there is a further page; and ``SearchPage.is_sorted``.

    Args:
        shown: what earlier pages showed.
    """
    request = lists.request
    ratio = request.exploration_ratio or 0.0
    reach = max(request.offset, len(shown)) + request.limit + 1
    is_sorted = None
    if request.sort_by:
        ranked, is_sorted = lists.sorted_by(request.sort_by)
    else:
        ranked = lists.ranked(reach)
    explored = lists.plain(reach) if lists.bend and ratio > 0 and not request.sort_by else []
    if explored:
        draws = (rng or _rng_of(session_id)).random(reach)[len(shown) :]
        slots = list(slots_of(ranked, explored, shown, draws, ratio))
    else:
        left = [(each, True, 1.0) for each in ranked if each.object_id not in shown]
        slots = left[: reach - len(shown)]
    return slots[max(0, request.offset - len(shown)) :], is_sorted


def _results(lists: Lists, slots: Sequence[Slot], offset: int, *, explain: bool) -> tuple[SearchResult, ...]:
    explained = lists.explanations([found for found, own, _ in slots if own]) if explain else {}
    return tuple(
        SearchResult(
            object_id=found.object_id,
            distance=found.distance,
            payload=found.payload,
            position=position,
            personalised=lists.bend is not None and own,
            propensity=propensity,
            explanation=explained.get(found.object_id, as_for_anybody(found)) if explain else None,
        )
        for position, (found, own, propensity) in enumerate(slots, start=offset + 1)
    )


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


def _rng_of(session_id: str | None) -> np.random.Generator:
    if session_id is None:
        return np.random.default_rng()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(session_id.encode()).digest()[:16]))
