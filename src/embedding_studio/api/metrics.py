"""Numbers about the service for Prometheus; no label ever names a user, a query or an object."""

from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from embedding_studio.domain.sessions import (
    DEFAULT_EVENT_WEIGHTS,
    EventDisposition,
    SessionEvent,
    SessionForImprovementStatus,
)

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

OTHER = "other"
"""Stands for every type of event that the settings do not name, so that callers cannot make up labels."""

SEARCH_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """The numbers of one app.

    Args:
        event_types: those that have a label of their own.
    """

    def __init__(self, event_types: Iterable[str] = DEFAULT_EVENT_WEIGHTS) -> None:
        self._event_types = frozenset(event_types)
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
        self._orders.clear()
        for status, number in counts.items():
            self._orders.labels(status.value).set(number)

    def exposition(self) -> bytes:
        """Return the text that Prometheus reads, of type ``CONTENT_TYPE_LATEST``."""
        return generate_latest(self._registry)
