"""One pass of learning: claimed orders in, users' personal state out.

``fold`` is the whole of what is learnt, as a function; ``Improver`` reads and writes around it.
Axes: Q parts of a query · C clicked objects · P parts of an object · D dimensions.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import TypeVar

import numpy as np

from embedding_studio.domain.improvement import ImprovementInput
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import Collection, PersonalState, QueryMemory
from embedding_studio.domain.sessions import (
    DEFAULT_EVENT_WEIGHTS,
    RecordedSession,
    SessionForImprovement,
    SessionForImprovementStatus,
)
from embedding_studio.embedders import Embedder
from embedding_studio.embeddings.improvement.vectors_adjuster import VectorsAdjuster
from embedding_studio.embeddings.personal import clicked_mean, query_mean
from embedding_studio.embeddings.trust_region import into_trust_region
from embedding_studio.errors import (
    CollectionNotFoundError,
    EmbeddingError,
    EmbeddingStudioError,
    InvalidInputError,
    SessionNotFoundError,
    SessionRefusedError,
    StorageUnavailableError,
)
from embedding_studio.feedback.inputs import embed_queries, improvement_input, objects_of
from embedding_studio.feedback.selection import ANONYMOUS, SessionFilter, SessionSelection, refusal_by
from embedding_studio.storage.ports import Claim, LearningTransaction, OrderOutcome, Storage, Vectors

logger = logging.getLogger(__name__)

_MAX_DETAIL_LENGTH = 2000

DONE = SessionForImprovementStatus.DONE
REFUSED = SessionForImprovementStatus.REFUSED
FAILED = SessionForImprovementStatus.FAILED

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Folded:
    """What sessions come to.

    Attributes:
        states: user_id -> state, for every user of whom there was a session.
        outcomes: session_id -> done, refused or failed; what failed may go well another time.
    """

    states: dict[str, PersonalState]
    outcomes: dict[str, OrderOutcome]


def fold(
    recorded: Iterable[RecordedSession],
    originals: Mapping[str, Vectors],
    adjuster: VectorsAdjuster,
    index: SearchIndexInfo,
    *,
    event_weights: Mapping[str, float] = DEFAULT_EVENT_WEIGHTS,
    max_angle_degrees: float | None = 20.0,
) -> Folded:
    """Return the state of each user whose sessions these are, from the originals on.

    It depends on nothing else: the order of ``recorded`` and the other users in it change nothing.

    Args:
        recorded: sessions with events; folded in order of (created_at, session_id).
        originals: object_id -> [P, D] of all objects that the sessions show; one that is missing
            no longer exists.
        max_angle_degrees: the trust region, held here too, whatever the adjuster does; None: no bound.
    """
    of_user: dict[str, list[tuple[RecordedSession, ImprovementInput]]] = defaultdict(list)
    states: dict[str, PersonalState] = {}
    outcomes: dict[str, OrderOutcome] = {}
    for each in sorted(recorded, key=lambda each: (each.session.created_at, each.session.session_id)):
        session = each.session
        if session.user_id is None:
            outcomes[session.session_id] = OrderOutcome(session.session_id, REFUSED, ANONYMOUS)
            continue
        try:
            states.setdefault(session.user_id, PersonalState())
            of_user[session.user_id].append((each, improvement_input(each, originals, index, event_weights)))
        except SessionRefusedError as error:
            outcomes[session.session_id] = _outcome_of(session.session_id, error)

    adjusted = _adjust(
        adjuster, [[given for _, given in sessions if _has_contrast(given)] for sessions in of_user.values()]
    )
    vectors: dict[str, dict[str, Vectors]] = {}
    for user_id, sessions in of_user.items():
        vectors[user_id] = {}
        memories = []
        for each, given in sessions:
            after = adjusted.get(given.session_id, given)
            if isinstance(after, Exception):
                outcomes[given.session_id] = _outcome_of(given.session_id, after)
                continue
            moved = _moved(after, vectors[user_id], originals)
            vectors[user_id].update(moved)
            memories.append(_memory(each, given, moved, index))
            outcomes[given.session_id] = OrderOutcome(given.session_id, DONE, _remark(given, moved))
        states[user_id] = PersonalState(tuple(memories))
    for user_id, bounded in _bounded(vectors, originals, index, max_angle_degrees).items():
        states[user_id] = PersonalState(states[user_id].memories, bounded)
    return Folded(states, outcomes)


@dataclass(frozen=True, slots=True)
class ImprovementReport:
    """What one pass did.

    Attributes:
        orders: how many were claimed; 0: nothing was due.
        learnt: orders that ended done.
        refused: session_id -> why nothing is learnt from it.
        failed: session_id -> what went wrong; tried again later unless its attempts are used up.
    """

    orders: int = 0
    users: int = 0
    learnt: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class Improver:
    """Learns from what is due in a storage; several may do so at once, in any number of processes.

    Args:
        adjuster: gives the adjuster for a collection's index.
        embedder: for the queries of sessions registered without vectors.
        session_filter: says which sessions count.
        max_angle_degrees: the trust region, for adjusters that do not keep it themselves.
        max_sessions_per_user: only so many of a user's latest sessions count.
        lease_seconds: for so long no other worker claims the same orders.
        backoff_seconds: wait before the second attempt of an order; doubles each time.
    """

    def __init__(
        self,
        storage: Storage,
        adjuster: Callable[[SearchIndexInfo], VectorsAdjuster],
        *,
        embedder: Embedder | None = None,
        session_filter: SessionFilter | None = None,
        event_weights: Mapping[str, float] = DEFAULT_EVENT_WEIGHTS,
        max_angle_degrees: float = 20.0,
        max_sessions_per_user: int = 200,
        lease_seconds: float = 60.0,
        max_attempts: int = 5,
        backoff_seconds: float = 1.0,
    ) -> None:
        self._storage = storage
        self._adjuster = adjuster
        self._embedder = embedder
        self._session_filter = session_filter or SessionSelection(event_weights=event_weights)
        self._event_weights = event_weights
        self._max_angle_degrees = max_angle_degrees
        self._max_sessions_per_user = max_sessions_per_user
        self._lease_seconds = lease_seconds
        self._max_attempts = max_attempts
        self._backoff_seconds = backoff_seconds

    def improve_once(self, *, users: int = 100, now: float | None = None) -> ImprovementReport:
        """Learn from the due orders of at most ``users`` users, and return what became of them.

        Raises:
            StorageUnavailableError: orders in hand are due again when their lease ends.
        """
        started = time.monotonic()
        claim = self._storage.orders.claim(users=users, lease_seconds=self._lease_seconds, now=now)
        if claim is None:
            return ImprovementReport()
        outcomes: dict[str, OrderOutcome] = {}
        for name, orders in _grouped(claim.orders, lambda order: order.collection).items():
            outcomes.update(self._learn_or_explain(name, orders, claim.token))
        for order in claim.orders:  # after all others ended, since what is given back may be claimed at once
            outcome = outcomes[order.session_id]
            if outcome.status is FAILED:
                self._storage.orders.fail(
                    Claim(claim.token, (order,)),
                    outcome.detail or "",
                    max_attempts=self._max_attempts,
                    backoff_seconds=self._backoff_seconds,
                )
        return ImprovementReport(
            orders=len(claim.orders),
            users=len({order.user_id for order in claim.orders} - {None}),
            learnt=sum(outcome.status is DONE for outcome in outcomes.values()),
            refused={key: each.detail or "" for key, each in outcomes.items() if each.status is REFUSED},
            failed={key: each.detail or "" for key, each in outcomes.items() if each.status is FAILED},
            seconds=time.monotonic() - started,
        )

    def _learn_or_explain(
        self, name: str, orders: Sequence[SessionForImprovement], token: str
    ) -> dict[str, OrderOutcome]:
        """Return what became of the orders of one collection; those that did not fail have ended."""
        outcomes: dict[str, OrderOutcome] = {}
        anonymous = [order for order in orders if order.user_id is None]
        orders = [order for order in orders if order.user_id is not None]
        if anonymous:
            outcomes = self._refuse(anonymous, token, ANONYMOUS)
        if not orders:
            return outcomes
        learnt = _attempt(partial(self._learn, name, orders, token))
        if not isinstance(learnt, Exception):
            return outcomes | learnt
        if isinstance(learnt, CollectionNotFoundError):
            return outcomes | self._refuse(orders, token, str(learnt))
        of_user = _grouped(orders, lambda order: order.user_id)
        logger.error("%d users could not be learnt for together", len(of_user), exc_info=learnt)
        if len(of_user) > 1:
            for of_one in of_user.values():
                outcomes |= self._learn_or_explain(name, of_one, token)
            return outcomes
        return outcomes | {order.session_id: _outcome_of(order.session_id, learnt) for order in orders}

    def _learn(
        self, name: str, orders: Sequence[SessionForImprovement], token: str
    ) -> dict[str, OrderOutcome]:
        """Fold the users of these orders anew."""
        collection = self._storage.collections.get(name)
        users = sorted({order.user_id for order in orders if order.user_id is not None})
        reasons: dict[str, str] = {}
        embedded: dict[str, Vectors] = {}
        while True:
            with self._storage.personal.learning(collection, users) as transaction:
                recent = transaction.recent_sessions(self._max_sessions_per_user)
                counted, outcomes = self._select(recent)
                missing = self._texts_to_embed(collection, counted) - embedded.keys() - reasons.keys()
                if not missing:
                    outcomes |= self._replace_states(
                        transaction,
                        collection,
                        users=users,
                        counted=counted,
                        embedded=embedded,
                        reasons=reasons,
                    )
                    transaction.complete(token, _ended(orders, outcomes))
                    break
            assert self._embedder is not None  # noqa: S101, else no text would be missing
            # Between two transactions, where a slow embedder locks nobody out.
            newly_embedded, newly_refused = embed_queries(self._embedder, missing)
            embedded |= newly_embedded
            reasons |= newly_refused
        for order in orders:
            if order.session_id not in outcomes:
                outcomes |= self._refuse([order], token, self._why_absent(order.session_id))
        return {order.session_id: outcomes[order.session_id] for order in orders}

    def _select(
        self, recent: Mapping[str, Sequence[RecordedSession]]
    ) -> tuple[list[RecordedSession], dict[str, OrderOutcome]]:
        """Return the sessions that count, and what becomes of the others."""
        counted = []
        outcomes = {}
        for recorded in (recorded for sessions in recent.values() for recorded in sessions):
            reason = _attempt(partial(refusal_by, self._session_filter, recorded.session))
            if reason is None:
                counted.append(recorded)
            else:
                error = SessionRefusedError(reason) if isinstance(reason, str) else reason
                outcomes[recorded.session.session_id] = _outcome_of(recorded.session.session_id, error)
        return counted, outcomes

    def _texts_to_embed(self, collection: Collection, counted: Iterable[RecordedSession]) -> set[str]:
        if self._embedder is None or collection.embedder not in (None, self._embedder.name):
            return set()
        return {
            recorded.session.search_query
            for recorded in counted
            if recorded.query_vectors is None and recorded.session.search_query.strip()
        }

    def _replace_states(
        self,
        transaction: LearningTransaction,
        collection: Collection,
        *,
        users: Sequence[str],
        counted: Sequence[RecordedSession],
        embedded: Mapping[str, Vectors],
        reasons: Mapping[str, str],
    ) -> dict[str, OrderOutcome]:
        outcomes = {}
        ready = []
        newly_embedded = {}
        for recorded in counted:
            session = recorded.session
            if recorded.query_vectors is not None:
                ready.append(recorded)
            elif session.search_query in reasons:
                error = EmbeddingError(f"the query could not be embedded: {reasons[session.search_query]}")
                outcomes[session.session_id] = _outcome_of(session.session_id, error)
            else:
                vectors = embedded.get(session.search_query)
                ready.append(replace(recorded, query_vectors=vectors))
                if vectors is not None:
                    newly_embedded[session.session_id] = vectors
        folded = fold(
            ready,
            transaction.originals(objects_of((each.session for each in ready), self._event_weights)),
            self._adjuster(collection.index),
            collection.index,
            event_weights=self._event_weights,
            max_angle_degrees=self._max_angle_degrees,
        )
        if newly_embedded:
            transaction.store_query_vectors(newly_embedded)
        transaction.replace_states(
            {user_id: folded.states.get(user_id, PersonalState()) for user_id in users}
        )
        return outcomes | folded.outcomes

    def _refuse(
        self, orders: Sequence[SessionForImprovement], token: str, reason: str
    ) -> dict[str, OrderOutcome]:
        outcomes = {order.session_id: OrderOutcome(order.session_id, REFUSED, reason) for order in orders}
        self._storage.orders.complete(token, list(outcomes.values()))
        return outcomes

    def _why_absent(self, session_id: str) -> str:
        """Return why a session with an order is not among its user's recent ones."""
        try:
            session = self._storage.clickstream.get_session(session_id)
        except SessionNotFoundError:
            return "the session no longer exists"
        return SessionSelection(event_weights=self._event_weights).refusal(session) or (
            f"the session is older than the last {self._max_sessions_per_user} of its user, which alone count"
        )


def _adjust(
    adjuster: VectorsAdjuster, of_user: Sequence[Sequence[ImprovementInput]]
) -> dict[str, ImprovementInput | Exception]:
    """Return each session as adjusted, or what went wrong with it.

    All in one call; if that fails, each user alone; if that fails, without the sessions that fail alone.
    """
    inputs = [given for of_one in of_user for given in of_one]
    if not inputs:
        return {}
    together = _attempt(partial(_adjusted, adjuster, inputs))
    if not isinstance(together, Exception):
        return {after.session_id: after for after in together}
    logger.error("%d sessions could not be adjusted together", len(inputs), exc_info=together)
    if len(of_user) > 1:
        return {key: after for of_one in of_user for key, after in _adjust(adjuster, [of_one]).items()}
    alone = {given.session_id: _attempt(partial(_adjusted, adjuster, [given])) for given in inputs}
    culprits = {key: after for key, after in alone.items() if isinstance(after, Exception)}
    sound = [given for given in inputs if given.session_id not in culprits]
    if culprits and sound:
        return {**culprits, **_adjust(adjuster, [sound])}
    return {given.session_id: culprits.get(given.session_id, together) for given in inputs}


def _adjusted(adjuster: VectorsAdjuster, inputs: list[ImprovementInput]) -> list[ImprovementInput]:
    """Return what the adjuster makes of the inputs, once it is seen to keep its promise."""
    adjusted = adjuster.adjust_vectors(inputs)
    moved = []
    if len(adjusted) != len(inputs):
        raise EmbeddingStudioError(f"the adjuster gave back {len(adjusted)} sessions for {len(inputs)}")
    for given, after in zip(inputs, adjusted, strict=True):
        elements = given.clicked_elements + given.non_clicked_elements
        elements_after = after.clicked_elements + after.non_clicked_elements
        if given.session_id != after.session_id or len(elements) != len(elements_after):
            raise EmbeddingStudioError(f"the adjuster gave back other sessions than {given.session_id!r}")
        for element, element_after in zip(elements, elements_after, strict=True):
            if element.id != element_after.id or element.vector.shape != element_after.vector.shape:
                raise EmbeddingStudioError(f"the adjuster gave back another object than {element.id!r}")
            if element_after.vector is not element.vector:
                moved.append(element_after.vector)
    if moved and not np.isfinite(np.concatenate(moved)).all():
        raise EmbeddingStudioError("the adjuster gave back vectors that are not finite")
    return adjusted


def _has_contrast(given: ImprovementInput) -> bool:
    return bool(given.clicked_elements and given.non_clicked_elements)


def _moved(
    after: ImprovementInput, before: Mapping[str, Vectors], originals: Mapping[str, Vectors]
) -> dict[str, Vectors]:
    """Return object_id -> vectors [P, D] of the objects that one session changed."""
    moved = {}
    for element in (*after.clicked_elements, *after.non_clicked_elements):
        was = before.get(element.id)
        if was is None:
            was = originals[element.id]
        if element.vector is not was and (element.vector != was).any():
            moved[element.id] = element.vector
    return moved


def _memory(
    recorded: RecordedSession, given: ImprovementInput, moved: Iterable[str], index: SearchIndexInfo
) -> QueryMemory:
    queries = given.query.vector
    clicked = given.clicked_elements
    return QueryMemory(
        session_id=given.session_id,
        search_query=recorded.session.search_query,
        created_at=recorded.session.created_at,
        query=query_mean(index, queries),
        clicked_mean=clicked_mean(
            index,
            queries,
            [element.vector for element in clicked],
            [element.weight for element in clicked],
        ),
        clicked_ids=tuple(sorted(element.id for element in clicked)),
        moved_ids=tuple(sorted(moved)),
    )


def _remark(given: ImprovementInput, moved: Mapping[str, Vectors]) -> str | None:
    if moved:
        return None
    if given.non_clicked_elements:
        return "remembered; nothing had to move: what was clicked stands clear of what was passed over"
    return "remembered; nothing moved: there was no result passed over to compare with"


def _bounded(
    vectors: Mapping[str, Mapping[str, Vectors]],
    originals: Mapping[str, Vectors],
    index: SearchIndexInfo,
    max_angle_degrees: float | None,
) -> dict[str, dict[str, Vectors]]:
    """Return user_id -> object_id -> [P, D] within the trust region, where it differs from the original."""
    flat = [
        (user_id, object_id, personal)
        for user_id, of_user in vectors.items()
        for object_id, personal in of_user.items()
    ]
    bounded: dict[str, dict[str, Vectors]] = {}
    if not flat:
        return bounded
    moved = np.concatenate([personal for _, _, personal in flat])
    before = np.concatenate([originals[object_id] for _, object_id, _ in flat])
    if max_angle_degrees is not None:
        moved = into_trust_region(index, before, moved, max_angle_degrees)
    ends = list(accumulate(len(personal) for _, _, personal in flat))
    differs = np.logical_or.reduceat((moved != before).any(axis=1), [0, *ends[:-1]]).tolist()
    for (user_id, object_id, personal), end, is_personal in zip(flat, ends, differs, strict=True):
        if is_personal:
            bounded.setdefault(user_id, {})[object_id] = moved[end - len(personal) : end]
    return bounded


def _ended(
    orders: Iterable[SessionForImprovement], outcomes: Mapping[str, OrderOutcome]
) -> list[OrderOutcome]:
    found = (outcomes.get(order.session_id) for order in orders)
    return [outcome for outcome in found if outcome is not None and outcome.status is not FAILED]


def _outcome_of(session_id: str, error: Exception) -> OrderOutcome:
    """Return what becomes of a session on an error: refused if it lies in the session, else failed."""
    if isinstance(error, SessionRefusedError | InvalidInputError):
        return OrderOutcome(session_id, REFUSED, _cut(str(error)))
    detail = str(error) if isinstance(error, EmbeddingStudioError) else f"{type(error).__name__}: {error}"
    logger.error("session %s could not be learnt from: %s", session_id, detail)
    return OrderOutcome(session_id, FAILED, _cut(detail))


def _cut(detail: str) -> str:
    return detail[:_MAX_DETAIL_LENGTH]


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _attempt(work: Callable[[], T]) -> T | Exception:
    """Return what ``work`` returns, or the exception it raised; a storage that is away is for the worker."""
    try:
        return work()
    except StorageUnavailableError:
        raise
    except Exception as error:  # noqa: BLE001, whatever a plugin or one session does, the others are learnt
        return error
