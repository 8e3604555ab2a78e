"""Numbers about the service for Prometheus; no label ever names a user, a query or an object."""

from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from embedding_studio.domain.sessions import (
    DEFAULT_EVENT_WEIGHTS,
    EventDisposition,
    SessionEvent,
    SessionForImprovementStatus,
)
from embedding_studio.storage.ports import CodesInfo

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

OTHER = "other"
"""Stands for every type of event that the settings do not name, so that callers cannot make up labels."""

SEARCH_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

COUNT_SECONDS = 60
"""To count the objects of a collection takes the longer the more there are, so not every scrape does."""


class Metrics:
    """The numbers of one app.

    Args:
        event_types: those that have a label of their own.
    """

    def __init__(self, event_types: Iterable[str] = DEFAULT_EVENT_WEIGHTS) -> None:
        self._event_types = frozenset(event_types)
        self.searched: set[str] = set()
        """The collections that this process has searched, whose codes it therefore holds."""
        self._registry = CollectorRegistry()
        self._search_seconds = Histogram(
            "embedding_studio_search_duration_seconds",
            "From the arrival of a search to its answer; only those answered with 200.",
            buckets=SEARCH_SECONDS,
            registry=self._registry,
        )
        self._searches = Counter(
            "embedding_studio_search_requests",
            "Searches by HTTP status, and whether what was learnt about the user took part.",
            ["status", "personalised"],
            registry=self._registry,
        )
        self._explored_slots = Counter(
            "embedding_studio_exploration_slots",
            "Result slots that were open to exploration (probability below 1).",
            registry=self._registry,
        )
        self._events = Counter(
            "embedding_studio_events",
            "Events received, by type and by what became of them.",
            ["kind", "disposition"],
            registry=self._registry,
        )
        self._orders = Gauge(
            "embedding_studio_orders",
            "Improvement orders by status; absent while storage does not answer.",
            ["status"],
            registry=self._registry,
        )

        self._objects = Gauge(
            "embedding_studio_collection_objects",
            "Objects of each collection, as counted at most a minute ago.",
            ["collection"],
            registry=self._registry,
        )
        self._codes_bytes = Gauge(
            "embedding_studio_codes_bytes",
            "Memory of this process for the codes of each collection that it has searched.",
            ["collection"],
            registry=self._registry,
        )
        self._recall_margin = Gauge(
            "embedding_studio_recall_margin",
            "How cautiously each collection that this process has searched by codes is searched, in standard "
            "errors; absent where all are compared.",
            ["collection"],
            registry=self._registry,
        )
        self._counted: AbstractSet[str] = frozenset()
        self._counted_at = 0.0

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

    def count_search(self, status: int, seconds: float, *, personalised: bool, explored_slots: int) -> None:
        self._searches.labels(str(status), str(personalised).lower()).inc()
        self._explored_slots.inc(explored_slots)
        if status == HTTPStatus.OK:
            self._search_seconds.observe(seconds)

    def count_events(self, events: Iterable[SessionEvent], dispositions: Iterable[EventDisposition]) -> None:
        kinds = (event.event_type if event.event_type in self._event_types else OTHER for event in events)
        for (kind, disposition), number in Tally(zip(kinds, dispositions, strict=True)).items():
            self._events.labels(kind, disposition.value).inc(number)

    def set_orders(self, counts: Mapping[SessionForImprovementStatus, int]) -> None:
        _set(self._orders, {status.value: number for status, number in counts.items()})

    def exposition(self) -> bytes:
        """Return the text that Prometheus reads, of type ``CONTENT_TYPE_LATEST``."""
        return generate_latest(self._registry)


def _set(gauge: Gauge, values: Mapping[str, float]) -> None:
    """Let a gauge have these labels and no others."""
    gauge.clear()
    for label, value in values.items():
        gauge.labels(label).set(value)
