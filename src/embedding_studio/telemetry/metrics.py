"""What is counted; no label ever names a user, a query or an object."""

import logging
import threading
import time
from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import cached_property
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from embedding_studio.domain.sessions import (
    DEFAULT_EVENT_WEIGHTS,
    EventDisposition,
    SessionEvent,
    SessionForImprovementStatus,
)
from embedding_studio.errors import CollectionNotFoundError, StorageError
from embedding_studio.storage.attached import backlog_of, count_if_known
from embedding_studio.storage.attached.filling import Backlog
from embedding_studio.storage.ports import CodesInfo, QueueInfo, Storage
from embedding_studio.telemetry.siblings import Siblings, of_all

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "ServiceMetrics", "WorkerMetrics", "metrics_markdown"]

logger = logging.getLogger(__name__)

OTHER = "other"
"""Stands for every type of event that the settings do not name, so that callers cannot make up labels."""

SEARCH_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
PASS_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
DELAY_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60, 300, 1800, 7200, 86400)

REFUSALS = ("no_key", "unknown_key", "scope", "collection", "user_token", "user", "rate")

COUNT_SECONDS = 60
"""To count the objects of a collection takes the longer the more there are, so not every scrape does."""


class ServiceMetrics:
    """What the HTTP service counts, and what it knows of collections.

    Args:
        event_types: those that have a label of their own.
    """

    def __init__(
        self,
        event_types: Iterable[str] = DEFAULT_EVENT_WEIGHTS,
        *,
        registry: CollectorRegistry | None = None,
    ) -> None:
        registry = registry or CollectorRegistry()
        self._event_types = frozenset(event_types)
        self.searched: set[str] = set()
        """The collections that this process has searched, whose codes it therefore holds."""
        self._search_seconds = Histogram(
            "embedding_studio_search_duration_seconds",
            "From the arrival of a search to its answer; only those answered with 200.",
            buckets=SEARCH_SECONDS,
            registry=registry,
        )
        self._searches = Counter(
            "embedding_studio_search_requests",
            "Searches by HTTP status, and whether what was learnt about the user took part.",
            ["status", "personalised"],
            registry=registry,
        )
        self._explored_slots = Counter(
            "embedding_studio_exploration_slots",
            "Result slots that were open to exploration (probability below 1).",
            registry=registry,
        )
        self._events = Counter(
            "embedding_studio_events",
            "Events received, by type and by what became of them.",
            ["kind", "disposition"],
            registry=registry,
        )
        self._refused = Counter(
            "embedding_studio_refused_requests",
            "Requests refused for who sent them: no key or an unknown one, a key without the scope or for "
            "another collection, a token that says nothing or is another user's, too many at once.",
            ["reason"],
            registry=registry,
        )
        for reason in REFUSALS:
            self._refused.labels(reason)  # so that the first one is seen as a change
        self._replica = Counter(
            "embedding_studio_replica_searches",
            "Looks for the nearest, by what the replica was to them, where there is one: used; or behind or "
            "away, so that the database looked.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("used", "behind", "away"):
            self._replica.labels(outcome)  # likewise
        self._objects = Gauge(
            "embedding_studio_collection_objects",
            "Objects of each collection, as counted at most a minute ago.",
            ["collection"],
            registry=registry,
        )
        self._codes_bytes = Gauge(
            "embedding_studio_codes_bytes",
            "Memory of this process for the codes of each collection that it has searched.",
            ["collection"],
            registry=registry,
        )
        self._recall_margin = Gauge(
            "embedding_studio_recall_margin",
            "How cautiously each collection that this process has searched by codes is searched, in standard "
            "errors; absent where all are compared.",
            ["collection"],
            registry=registry,
        )
        self._counted: AbstractSet[str] = frozenset()
        self._counted_at = 0.0

    def count_search(self, status: int, seconds: float, *, personalised: bool, explored_slots: int) -> None:
        self._searches.labels(str(status), str(personalised).lower()).inc()
        self._explored_slots.inc(explored_slots)
        if status == HTTPStatus.OK:
            self._search_seconds.observe(seconds)

    def count_refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def count_replica(self, outcome: str) -> None:
        self._replica.labels(outcome).inc()

    def count_events(self, events: Iterable[SessionEvent], dispositions: Iterable[EventDisposition]) -> None:
        kinds = (event.event_type if event.event_type in self._event_types else OTHER for event in events)
        for (kind, disposition), number in Tally(zip(kinds, dispositions, strict=True)).items():
            self._events.labels(kind, disposition.value).inc(number)

    def ask(self, storage: Storage, now: float) -> None:
        """Look at the collections; this process holds the codes of those alone that it has searched.

        Raises:
            CollectionNotFoundError: one is dropped meanwhile.
            StorageError: it does not answer.
        """
        collections = storage.collections.list()
        if not self.are_counted({each.name for each in collections}, now):
            counts = {each.name: count_if_known(storage, each) for each in collections}
            self.set_objects({name: count for name, count in counts.items() if count is not None}, now)
            self._counted = set(counts)  # what does not answer is not asked by each scrape
        searched = [each for each in collections if each.name in self.searched]
        self.set_codes({each.name: storage.objects.codes(each) for each in searched})

    def are_counted(self, collections: AbstractSet[str], now: float) -> bool:
        """Return whether just these collections were counted, less than ``COUNT_SECONDS`` ago."""
        return collections == self._counted and now < self._counted_at + COUNT_SECONDS

    def set_objects(self, counts: Mapping[str, int], now: float) -> None:
        self._counted, self._counted_at = set(counts), now
        _set(self._objects, counts)

    def set_codes(self, codes: Mapping[str, CodesInfo]) -> None:
        _set(self._codes_bytes, {name: each.bytes_in_memory for name, each in codes.items()})
        margins = {name: each.margin for name, each in codes.items() if each.parts}
        _set(self._recall_margin, {name: each for name, each in margins.items() if each is not None})


class WorkerMetrics:
    """What a worker counts: of each pass that had somebody to learn about, what became of them."""

    def __init__(self, *, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self._passes = Counter(
            "embedding_studio_learning_passes",
            "Passes that had somebody to learn about and were completed, and those that failed, as when "
            "storage does not answer.",
            ["outcome"],
            registry=registry,
        )
        self._pass_seconds = Histogram(
            "embedding_studio_learning_pass_duration_seconds",
            "From the claim of some users to the end of the pass, of those that were completed.",
            buckets=PASS_SECONDS,
            registry=registry,
        )
        self._users = Counter(
            "embedding_studio_learning_users",
            "Users by what became of them: learnt, or given up, for their attempts are used up. One who is "
            "tried again is not counted yet.",
            ["outcome"],
            registry=registry,
        )
        self._sessions = Counter(
            "embedding_studio_learning_sessions",
            "Sessions by what became of their orders: done, refused or failed; one that is tried again fails "
            "once for each attempt.",
            ["outcome"],
            registry=registry,
        )
        self._delays = Histogram(
            "embedding_studio_learning_delay_seconds",
            "From the click, or whatever made the state of a user stale, to the commit of the new state.",
            buckets=DELAY_SECONDS,
            registry=registry,
        )
        self._attached = Counter(
            "embedding_studio_attached_originals",
            "Objects of attached collections that something was learnt from, and whose original changed or "
            "is gone since: copies of it are left out, and who met it is re-learnt.",
            ["became"],
            registry=registry,
        )
        for counter, outcomes in (
            (self._attached, ("changed", "gone")),
            (self._passes, ("completed", "failed")),
            (self._users, ("learnt", "given_up")),
            (self._sessions, ("done", "refused", "failed")),
        ):
            for outcome in outcomes:
                counter.labels(outcome)  # so that the first one is seen as a change

    def count_pass(
        self, *, seconds: float, done: int, refused: int, failed: int, given_up: int, delays: Iterable[float]
    ) -> None:
        """Count a pass that was completed; see ``feedback.improve.ImprovementReport``."""
        self._passes.labels("completed").inc()
        self._pass_seconds.observe(seconds)
        for outcome, number in {"done": done, "refused": refused, "failed": failed}.items():
            self._sessions.labels(outcome).inc(number)
        self._users.labels("given_up").inc(given_up)
        for delay in delays:
            self._users.labels("learnt").inc()
            self._delays.observe(delay)

    def count_originals(self, *, changed: int, gone: int) -> None:
        """Count what was found to have changed in attached stores."""
        self._attached.labels("changed").inc(changed)
        self._attached.labels("gone").inc(gone)

    def count_failed_pass(self) -> None:
        self._passes.labels("failed").inc()


class Metrics:
    """All numbers of one process: those about storage, and those of what runs in it, from its first use on.

    Args:
        event_types: those that have a label of their own.
    """

    def __init__(self, event_types: Iterable[str] = DEFAULT_EVENT_WEIGHTS) -> None:
        self.siblings: Siblings | None = None
        """The other processes of the service, whose numbers are exposed beside those of this one."""
        self._event_types = frozenset(event_types)
        self._registry = CollectorRegistry()
        self._asking = threading.Lock()  # two scrapes at once would see what the other has half set
        self._orders = Gauge(
            "embedding_studio_orders",
            "Improvement orders by status; absent while storage does not answer.",
            ["status"],
            registry=self._registry,
        )
        self._queue_users = Gauge(
            "embedding_studio_queue_users",
            "Users to learn about: waiting, or held by a worker; absent while storage does not answer.",
            ["state"],
            registry=self._registry,
        )
        self._queue_seconds = Gauge(
            "embedding_studio_queue_oldest_seconds",
            "For how long the user has been in the queue who came first, waiting or held; 0 "
            "while it is empty, not a number while storage does not answer.",
            registry=self._registry,
        )

        self._outbox_objects = Gauge(
            "embedding_studio_outbox_objects",
            "Objects that the engine that finds a collection lacks: waiting to be sent, or refused by it at "
            "least once.",
            ["collection", "state"],
            registry=self._registry,
        )
        self._outbox_seconds = Gauge(
            "embedding_studio_outbox_oldest_seconds",
            "For how long a change waits to be sent to the engine that finds a collection; 0: none does.",
            ["collection"],
            registry=self._registry,
        )
        self._engines_away = Gauge(
            "embedding_studio_engine_away",
            "1 where the engine that finds a collection did not answer this process last, so that all is "
            "compared by each search, else 0.",
            ["collection"],
            registry=self._registry,
        )
        self._quarantined = Gauge(
            "embedding_studio_quarantined_users",
            "Users from whom nothing is learnt; not a number while storage does not answer.",
            registry=self._registry,
        )
        self._waiting_events = Gauge(
            "embedding_studio_waiting_events",
            "Events whose sessions are not recorded yet; not a number while storage does not answer.",
            registry=self._registry,
        )
        self._of_storage = frozenset(each.name for each in self._registry.collect())

    @cached_property
    def service(self) -> ServiceMetrics:
        return ServiceMetrics(self._event_types, registry=self._registry)

    @cached_property
    def worker(self) -> WorkerMetrics:
        return WorkerMetrics(registry=self._registry)

    def exposition(self, storage: Storage) -> bytes:
        """Return the text that Prometheus reads, of type ``CONTENT_TYPE_LATEST``; of all processes.

        Storage is asked for its numbers; while it does not answer, they are absent.
        """
        own = self.own_exposition(storage)
        if self.siblings is None:
            return own
        told = {self.siblings.name: own.decode()} | self.siblings.told()
        return of_all(told, once=self._of_storage)

    def own_exposition(self, storage: Storage) -> bytes:
        """Return the same of this process alone."""
        with self._asking:
            self._ask(storage, time.monotonic())
            return generate_latest(self._registry)

    def _ask(self, storage: Storage, now: float) -> None:
        service = self.__dict__.get("service")
        try:
            self._set_orders(storage.orders.counts())
            self._set_queue(storage.queue.info())
            self._quarantined.set(storage.quarantine.count())
            self._waiting_events.set(storage.clickstream.waiting_events())
            self._set_outbox(backlog_of(storage))
            if service is not None:
                service.ask(storage, now)
        except (StorageError, CollectionNotFoundError):  # a collection may be dropped meanwhile
            logger.exception("storage cannot be asked for its numbers")
            self._set_orders({})
            self._set_queue(None)
            self._quarantined.set(float("nan"))
            self._waiting_events.set(float("nan"))
            self._set_outbox([])
            if service is not None:
                service.set_objects({}, now)
                service.set_codes({})

    def _set_orders(self, counts: Mapping[SessionForImprovementStatus, int]) -> None:
        _set(self._orders, {status.value: number for status, number in counts.items()})

    def _set_outbox(self, backlog: Iterable[Backlog]) -> None:
        for gauge in (self._outbox_objects, self._outbox_seconds, self._engines_away):
            gauge.clear()
        for each in backlog:
            self._outbox_objects.labels(each.collection, "refused").set(each.refused)
            self._outbox_objects.labels(each.collection, "waiting").set(each.objects - each.refused)
            self._outbox_seconds.labels(each.collection).set(each.oldest_seconds)
            self._engines_away.labels(each.collection).set(each.away is not None)

    def _set_queue(self, queue: QueueInfo | None) -> None:
        _set(self._queue_users, {} if queue is None else {"waiting": queue.waiting, "held": queue.held})
        self._queue_seconds.set(float("nan") if queue is None else queue.oldest_seconds)


def metrics_markdown() -> str:
    """Return the table of all numbers for ``docs/metrics.md``."""
    rows = ["| number | kind | exposed by | meaning |", "|---|---|---|---|"]
    for teller, registry in (
        ("both", Metrics()._registry),  # noqa: SLF001, of this file
        ("service", CollectorRegistry()),
        ("worker", CollectorRegistry()),
    ):
        if teller == "service":
            ServiceMetrics(registry=registry)
        elif teller == "worker":
            WorkerMetrics(registry=registry)
        for metric in registry.collect():
            name = metric.name + "_total" * (metric.type == "counter")
            rows.append(f"| `{name}` | {metric.type} | {teller} | {metric.documentation} |")
    return "\n".join(rows)


def _set(gauge: Gauge, values: Mapping[str, float]) -> None:
    """Let a gauge have these labels and no others."""
    gauge.clear()
    for label, value in values.items():
        gauge.labels(label).set(value)
