"""One pass of learning: users whose state is stale in, their personal state out.

``fold.fold`` is the whole of what is learnt, as a function; this reads and writes around it.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import Collection, PersonalState
from embedding_studio.domain.sessions import (
    DEFAULT_EVENT_WEIGHTS,
    RecordedSession,
    SessionForImprovementStatus,
)
from embedding_studio.embedders import Embedder
from embedding_studio.embeddings.improvement.vectors_adjuster import VectorsAdjuster
from embedding_studio.embeddings.trust_region import MAX_ANGLE_DEGREES
from embedding_studio.errors import (
    AttachedUnavailableError,
    CollectionNotFoundError,
    EmbedderUnavailableError,
    EmbeddingError,
    SessionRefusedError,
    StorageUnavailableError,
)
from embedding_studio.feedback.fold import DONE, FAILED, REFUSED, attempt, detail_of, fold, outcome_of
from embedding_studio.feedback.inputs import embed_queries, objects_of
from embedding_studio.feedback.leases import Leases
from embedding_studio.feedback.robots import MOST_AN_HOUR, reason_to_quarantine
from embedding_studio.feedback.selection import (
    IRRELEVANT,
    NO_EVENTS,
    SessionFilter,
    SessionSelection,
    refusal_by,
)
from embedding_studio.feedback.time_limit import StoppedError, TimeLimited
from embedding_studio.storage.ports import (
    OrderOutcome,
    PassedOver,
    QueueEntry,
    Storage,
    Vectors,
)
from embedding_studio.telemetry.traces import span

logger = logging.getLogger(__name__)

MAX_SESSIONS_PER_USER = 200
LEASE_SECONDS: float = 60
MAX_ATTEMPTS = 5
BACKOFF_SECONDS: float = 1

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImprovementReport:
    """What one pass did.

    Attributes:
        orders: how many ended, or failed.
        users: how many were claimed; 0: nothing was due.
        learnt: orders that ended done.
        refused: session_id -> why nothing is learnt from it.
        failed: session_id -> what went wrong; tried again later unless its attempts are used up.
        given_up: users whose attempts are used up.
        delays: for each user who was learnt, the seconds from the mark that made their state stale to the
            commit of the new one.
    """

    orders: int = 0
    users: int = 0
    learnt: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    given_up: int = 0
    delays: Sequence[float] = ()
    seconds: float = 0.0


@dataclass(slots=True)
class _InHand:
    """The users in hand, and what became of them so far.

    Attributes:
        stop: once it is set, an adjuster has two seconds more.
        claimed_at: seconds of the monotonic clock.
    """

    token: str
    stop: threading.Event | None
    claimed_at: float
    given_up: int = 0
    delays: list[float] = field(default_factory=list)


class Improver:
    """Learns from what is due in a storage; several may do so at once, in any number of processes.

    Args:
        adjuster: gives the adjuster for a collection's index.
        embedder: for the queries of sessions registered without vectors.
        session_filter: says which sessions count.
        max_angle_degrees: the trust region, for adjusters that do not keep it themselves.
        max_sessions_per_user: only so many of a user's latest sessions count.
        lease_seconds: so long after its worker ended a user is claimed by another.
        backoff_seconds: wait before the second attempt; doubles each time.
        adjuster_seconds: so long the adjuster may take; a session for which it takes longer, alone, fails.
        is_shared: whether what users clicked is counted for others too, see ``SearchService``.
        quarantines: whether nothing is learnt from users whose sessions are a robot's (``robots``).
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
        max_sessions_per_user: int = MAX_SESSIONS_PER_USER,
        lease_seconds: float = LEASE_SECONDS,
        max_attempts: int = MAX_ATTEMPTS,
        backoff_seconds: float = BACKOFF_SECONDS,
        adjuster_seconds: float = 10.0,
        is_shared: bool = False,
        quarantines: bool = True,
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
        self._adjuster_seconds = adjuster_seconds
        self._is_shared = is_shared
        self._quarantines = quarantines
        self._leases = Leases(storage, lease_seconds)
        self._interrupted: list[str] = []
        """Tokens of passes that ended because the storage was away."""
        self._passed_over = PassedOver(
            irrelevant=IRRELEVANT,
            no_events=NO_EVENTS,
            too_old=f"the session is older than the last {max_sessions_per_user} of its user, "
            "which alone count",
        )

    def improve_once(
        self, *, users: int = 100, now: float | None = None, stop: threading.Event | None = None
    ) -> ImprovementReport:
        """Learn about at most ``users`` users whose state is stale, and return what became of their sessions.

        Args:
            stop: once it is set, an adjuster has two seconds more; then who is in hand is given back.

        Raises:
            StorageUnavailableError: the users in hand are given back by the next pass, and no attempt is
                counted; without one, their lease ends.
        """
        started = time.monotonic()
        self._give_back_interrupted()
        claim = self._storage.queue.claim(users=users, lease_seconds=self._lease_seconds, now=now)
        if claim is None:
            return ImprovementReport()
        in_hand = _InHand(claim.token, stop, time.monotonic())
        outcomes: list[OrderOutcome] = []
        with span("learn", users=len(claim.entries)), self._leases.renewed(claim.token):
            try:
                for name, entries in _grouped(claim.entries, lambda entry: entry.collection).items():
                    outcomes += self._learn_or_explain(name, entries, in_hand)
            except StoppedError:
                self._storage.queue.release(claim.token)
            except StorageUnavailableError:
                self._interrupted.append(claim.token)
                raise
        of_status = _grouped(outcomes, lambda outcome: outcome.status)
        return ImprovementReport(
            orders=len(outcomes),
            users=len({entry.user_id for entry in claim.entries}),
            learnt=len(of_status.get(DONE, ())),
            refused={each.session_id: each.detail or "" for each in of_status.get(REFUSED, ())},
            failed={each.session_id: each.detail or "" for each in of_status.get(FAILED, ())},
            given_up=in_hand.given_up,
            delays=in_hand.delays,
            seconds=time.monotonic() - started,
        )

    def _give_back_interrupted(self) -> None:
        """Give back whom the storage failed, now that it may answer again."""
        while self._interrupted:
            token = self._interrupted.pop()
            try:
                self._storage.queue.put_off(token, backoff_seconds=self._backoff_seconds)
            except StorageUnavailableError:
                self._interrupted.append(token)
                raise

    def _learn_or_explain(
        self, name: str, entries: Sequence[QueueEntry], in_hand: _InHand
    ) -> list[OrderOutcome]:
        """Return what became of the sessions of some users under one name."""
        if len(entries) == 1 and entries[0].attempts > self._max_attempts:
            return self._fail(
                in_hand, entries[0], "the worker ended while it learnt from this user, in every attempt"
            )
        try:
            learnt = attempt(partial(self._learn, name, entries, in_hand))
        except AttachedUnavailableError as error:  # the others are learnt meanwhile
            logger.warning("%d users of %s wait: %s", len(entries), name, error)
            return [
                outcome
                for each in entries
                for outcome in self._fail(in_hand, each, detail_of(error), is_outage=True)
            ]
        if not isinstance(learnt, Exception):
            return learnt
        if isinstance(learnt, CollectionNotFoundError):
            return [
                OrderOutcome(session_id, REFUSED, str(learnt))
                for entry in entries
                for session_id in self._storage.queue.refuse(in_hand.token, entry, str(learnt))
            ]
        logger.error("%d users could not be learnt for together", len(entries), exc_info=learnt)
        if len(entries) > 1:
            return [
                outcome for entry in entries for outcome in self._learn_or_explain(name, [entry], in_hand)
            ]
        return self._fail(
            in_hand, entries[0], detail_of(learnt), is_outage=isinstance(learnt, EmbedderUnavailableError)
        )

    def _fail(
        self,
        in_hand: _InHand,
        entry: QueueEntry,
        detail: str,
        *,
        sessions: Mapping[str, str] | None = None,
        is_outage: bool = False,
    ) -> list[OrderOutcome]:
        failed = self._storage.queue.fail(
            in_hand.token,
            entry,
            detail,
            sessions=sessions,
            max_attempts=self._max_attempts,
            backoff_seconds=self._backoff_seconds,
            is_outage=is_outage,
        )
        in_hand.given_up += entry.attempts >= self._max_attempts and not is_outage
        return [
            OrderOutcome(session_id, FAILED, (sessions or {}).get(session_id, detail))
            for session_id in failed
        ]

    def _learn(self, name: str, entries: Sequence[QueueEntry], in_hand: _InHand) -> list[OrderOutcome]:
        """Fold these users again."""
        collection = self._storage.collections.get(name)
        users = sorted(entry.user_id for entry in entries)
        recent = self._storage.clickstream.recent_sessions(collection, users, self._max_sessions_per_user)
        everything = (each.session for sessions in recent.values() for each in sessions)
        originals = self._storage.objects.originals(collection, objects_of(everything, self._event_weights))
        counted, outcomes = self._select(recent)
        robots = self._robots(collection, recent)
        if robots:
            counted = [each for each in counted if each.session.user_id not in robots]
            outcomes |= _refused(recent, robots)
        missing = self._texts_to_embed(collection, counted)
        embedded, reasons = embed_queries(self._embedder, missing) if self._embedder and missing else ({}, {})
        ready, unready = _with_vectors(counted, embedded, reasons)
        # Up to here and in the fold no writer is locked out. What changes meanwhile of what was read marks
        # the user, who is then no longer held.
        with span("fold", collection=collection.name, users=len(users)):
            folded = fold(
                ready,
                originals,
                TimeLimited(self._adjuster(collection.index), self._adjuster_seconds, in_hand.stop),
                collection.index,
                event_weights=self._event_weights,
                max_angle_degrees=self._max_angle_degrees,
                is_shared=self._is_shared,
            )
        outcomes |= unready | folded.outcomes
        waiting = _waiting_for_embedder(counted, reasons)
        of_user = {each.session.session_id: user for user, sessions in recent.items() for each in sessions}
        with self._storage.personal.learning(collection, users) as transaction:
            transaction.store_query_vectors(
                {
                    each.session.session_id: embedded[each.session.search_query]
                    for each in counted
                    if each.query_vectors is None and each.session.search_query in embedded
                }
            )
            held = transaction.held(in_hand.token)
            told = [outcome for key, outcome in outcomes.items() if of_user[key] in held]
            kept = self._kept(entries, told, of_user, {of_user[key] for key in waiting})
            transaction.replace_states(
                {user: folded.states.get(user, PersonalState()) for user in held - kept},
                {user: why for user, (why, is_found) in robots.items() if is_found and user in held - kept},
            )
            ended = transaction.complete(in_hand.token, told, self._passed_over)
        failed = {each.session_id: each.detail or "" for each in ended if each.status is FAILED}
        for each in entries:
            of_one = {key: why for key, why in failed.items() if of_user[key] == each.user_id}
            if of_one:
                self._fail(in_hand, each, "", sessions=of_one, is_outage=not waiting.isdisjoint(of_one))
            elif each.user_id in held:
                in_hand.delays.append(each.waited_seconds + time.monotonic() - in_hand.claimed_at)
        return ended

    def _kept(
        self,
        entries: Sequence[QueueEntry],
        outcomes: Iterable[OrderOutcome],
        of_user: Mapping[str, str],
        waiting: AbstractSet[str],
    ) -> set[str]:
        """Return the users for whom nothing went well, and who keep what they have until another try."""
        statuses: dict[str, set[SessionForImprovementStatus]] = defaultdict(set)
        for outcome in outcomes:
            statuses[of_user[outcome.session_id]].add(outcome.status)
        luckless = {user for user, found in statuses.items() if FAILED in found and DONE not in found}
        tried_again = {entry.user_id for entry in entries if entry.attempts < self._max_attempts} | waiting
        return luckless & tried_again

    def _select(
        self, recent: Mapping[str, Sequence[RecordedSession]]
    ) -> tuple[list[RecordedSession], dict[str, OrderOutcome]]:
        """Return the sessions that count, and what becomes of the others."""
        counted = []
        outcomes = {}
        for recorded in (recorded for sessions in recent.values() for recorded in sessions):
            reason: str | Exception | None
            try:
                reason = refusal_by(self._session_filter, recorded.session)
            except Exception as raised:  # noqa: BLE001, whatever a plugin does, the others are learnt
                reason = raised
            if reason is None:
                counted.append(recorded)
            else:
                error = SessionRefusedError(reason) if isinstance(reason, str) else reason
                outcomes[recorded.session.session_id] = outcome_of(recorded.session.session_id, error)
        return counted, outcomes

    def _robots(
        self, collection: Collection, recent: Mapping[str, Sequence[RecordedSession]]
    ) -> dict[str, tuple[str, bool]]:
        """Return user_id -> why nothing is learnt from them, and whether this was found, not decided."""
        decided = self._storage.quarantine.decisions(list(recent))
        full = [user for user, theirs in recent.items() if len(theirs) >= self._max_sessions_per_user]
        further = (
            self._storage.clickstream.latest_times(
                collection, full, self._max_sessions_per_user + MOST_AN_HOUR
            )
            if full and self._quarantines
            else {}
        )
        robots = {}
        for user, theirs in recent.items():
            decision = decided.get(user)
            if decision is not None and decision.is_quarantined:
                robots[user] = (decision.reason, False)
            elif self._quarantines:
                times = further.get(user) or [each.session.created_at for each in theirs]
                after = -1 if decision is None else decision.decided_at
                why = reason_to_quarantine(theirs, self._event_weights, times, after=after)
                if why is not None:
                    robots[user] = (why, True)
        return robots

    def _texts_to_embed(self, collection: Collection, counted: Iterable[RecordedSession]) -> set[str]:
        if self._embedder is None:
            return set()
        missing = {
            recorded.session.search_query
            for recorded in counted
            if recorded.query_vectors is None and recorded.session.search_query.strip()
        }
        # Asked last: to tell its name, an embedder may have to load its model.
        return missing if missing and collection.is_embedded_by(self._embedder.name) else set()


def _refused(
    recent: Mapping[str, Sequence[RecordedSession]], robots: Mapping[str, tuple[str, bool]]
) -> dict[str, OrderOutcome]:
    """Return what becomes of the sessions of users who are quarantined."""
    return {
        each.session.session_id: OrderOutcome(
            each.session.session_id,
            REFUSED,
            f"the user is quarantined ({why}); release them to learn from it",
        )
        for user, (why, _) in robots.items()
        for each in recent[user]
    }


def _waiting_for_embedder(
    counted: Iterable[RecordedSession], reasons: Mapping[str, EmbeddingError]
) -> set[str]:
    """Return the sessions that an embedder which is not there keeps from being learnt from."""
    return {
        each.session.session_id
        for each in counted
        if each.query_vectors is None
        and isinstance(reasons.get(each.session.search_query), EmbedderUnavailableError)
    }


def _with_vectors(
    counted: Sequence[RecordedSession],
    embedded: Mapping[str, Vectors],
    reasons: Mapping[str, EmbeddingError],
) -> tuple[list[RecordedSession], dict[str, OrderOutcome]]:
    """Return sessions with the vectors that had to be embedded, and what becomes of those that have none."""
    ready = []
    outcomes = {}
    for recorded in counted:
        session = recorded.session
        if recorded.query_vectors is None and session.search_query in reasons:
            error = EmbeddingError(f"the query could not be embedded: {reasons[session.search_query]}")
            outcomes[session.session_id] = outcome_of(session.session_id, error)
        elif recorded.query_vectors is None:
            ready.append(replace(recorded, query_vectors=embedded.get(session.search_query)))
        else:
            ready.append(recorded)
    return ready, outcomes


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
