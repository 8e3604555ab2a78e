"""One pass of learning: claimed orders in, users' personal state out.

``state.fold`` is the whole of what is learnt, as a function; this reads and writes around it.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import Collection, PersonalState
from embedding_studio.domain.sessions import (
    DEFAULT_EVENT_WEIGHTS,
    RecordedSession,
    SessionForImprovement,
    SessionForImprovementCreateSchema,
)
from embedding_studio.embedders import Embedder
from embedding_studio.embeddings.improvement.vectors_adjuster import VectorsAdjuster
from embedding_studio.embeddings.trust_region import MAX_ANGLE_DEGREES
from embedding_studio.errors import (
    CollectionNotFoundError,
    EmbeddingError,
    SessionNotFoundError,
    SessionRefusedError,
)
from embedding_studio.feedback.inputs import embed_queries, objects_of
from embedding_studio.feedback.selection import ANONYMOUS, SessionFilter, SessionSelection, refusal_by
from embedding_studio.feedback.state import DONE, FAILED, REFUSED, attempt, fold, outcome_of
from embedding_studio.storage.ports import Claim, LearningTransaction, OrderOutcome, Storage, Vectors

logger = logging.getLogger(__name__)

K = TypeVar("K")
T = TypeVar("T")


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
        is_shared: whether what users clicked is counted for others too, see ``SearchService``.
    """

    def __init__(
        self,
        storage: Storage,
        adjuster: Callable[[SearchIndexInfo], VectorsAdjuster],
        *,
        embedder: Embedder | None = None,
        session_filter: SessionFilter | None = None,
        event_weights: Mapping[str, float] = DEFAULT_EVENT_WEIGHTS,
        max_angle_degrees: float = MAX_ANGLE_DEGREES,
        max_sessions_per_user: int = 200,
        lease_seconds: float = 60.0,
        max_attempts: int = 5,
        backoff_seconds: float = 1.0,
        is_shared: bool = False,
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
        self._is_shared = is_shared

    def improve_once(self, *, users: int = 100, now: float | None = None) -> ImprovementReport:
        """Learn from the due orders of at most ``users`` users, and return what became of them.

        Raises:
            StorageUnavailableError: orders in hand are due again when their lease ends.
        """
        started = time.monotonic()
        claim = self._storage.orders.claim(users=users, lease_seconds=self._lease_seconds, now=now)
        if claim is None:
            return ImprovementReport()
        outcomes, orders = self._without_those_that_end_workers(claim)
        # What was tried before may have ended its worker: then one by one, so that the others are learnt.
        alone = any(order.attempts > 1 for order in orders)
        groups = _grouped(orders, lambda order: (order.collection, order.user_id if alone else None))
        for (name, _), together in groups.items():
            outcomes |= self._learn_or_explain(name, together, claim.token)
        for order in orders:  # after all others ended, since what is given back may be claimed at once
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

    def _without_those_that_end_workers(
        self, claim: Claim
    ) -> tuple[dict[str, OrderOutcome], list[SessionForImprovement]]:
        """Give up on the user whose orders no worker survived, and return the orders that are left to learn.

        Claims that were tried before are learnt user by user in their order, so the first that is left
        of those whose attempts are used up is the one; those behind it start anew.
        """
        spent = [order for order in claim.orders if order.attempts > self._max_attempts]
        left = [order for order in claim.orders if order.attempts <= self._max_attempts]
        given_up = [order for order in spent if order.user_id == spent[0].user_id]
        outcomes = {}
        if given_up:
            detail = "the worker ended while it learnt from this user, in every attempt"
            outcomes = {each.session_id: OrderOutcome(each.session_id, FAILED, detail) for each in given_up}
            self._storage.orders.fail(
                Claim(claim.token, tuple(given_up)),
                detail,
                max_attempts=self._max_attempts,
                backoff_seconds=self._backoff_seconds,
            )
        for order in spent:
            if order not in given_up:
                schema = SessionForImprovementCreateSchema(session_id=order.session_id)
                self._storage.orders.create(schema)
        return outcomes, left

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
        learnt = attempt(partial(self._learn, name, orders, token))
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
        return outcomes | {order.session_id: outcome_of(order.session_id, learnt) for order in orders}

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
            reason = attempt(partial(refusal_by, self._session_filter, recorded.session))
            if reason is None:
                counted.append(recorded)
            else:
                error = SessionRefusedError(reason) if isinstance(reason, str) else reason
                outcomes[recorded.session.session_id] = outcome_of(recorded.session.session_id, error)
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
                outcomes[session.session_id] = outcome_of(session.session_id, error)
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
            is_shared=self._is_shared,
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


def _ended(
    orders: Iterable[SessionForImprovement], outcomes: Mapping[str, OrderOutcome]
) -> list[OrderOutcome]:
    found = (outcomes.get(order.session_id) for order in orders)
    return [outcome for outcome in found if outcome is not None and outcome.status is not FAILED]


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
