"""Random sequences of operations, put to the twin and to PostgreSQL; every answer must be the same."""

import contextlib

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject, PersonalState, QueryMemory
from embedding_studio.domain.sessions import (
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovementCreateSchema,
    SessionForImprovementStatus,
)
from embedding_studio.errors import EmbeddingStudioError
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import OrderOutcome

# Vectors that no metric ties by accident: equal distances are those of equal parts.
POOL = np.random.default_rng(5).normal(size=(6, 3)).astype(np.float32)
INDEXES = {
    "films": SearchIndexInfo(dimensions=3),
    "books": SearchIndexInfo(
        dimensions=3,
        metric_type=MetricType.EUCLID,
        metric_aggregation_type=MetricAggregationType.AVG,
    ),
    "songs": SearchIndexInfo(
        dimensions=3, metric_type=MetricType.DOT, metric_aggregation_type=MetricAggregationType.AVG
    ),
}
FILTERS = [
    None,
    PayloadFilter.parse({"query": {"term": {"field": "price", "value": 1}}}),
    PayloadFilter.parse({"query": {"must_not": [{"match": {"field": "title", "value": "red"}}]}}),
]

collections = st.sampled_from(sorted(INDEXES))
names = st.sampled_from([*sorted(INDEXES), "best", "unknown"])
object_ids = st.sampled_from(["a", "b", "c", "a_ann", "é"])
users = st.sampled_from(["ann", "bob", "5"])
session_ids = st.sampled_from([f"s{number}" for number in range(6)])
instants = st.integers(100, 103)
parts = st.sets(st.integers(0, len(POOL) - 1), min_size=1, max_size=3).map(lambda rows: POOL[sorted(rows)])
payloads = st.sampled_from([{}, {"price": 1}, {"price": True, "title": "Red"}, {"price": 1.0, "title": "a red shoe"}])
events = st.builds(
    SessionEvent,
    session_id=session_ids,
    object_id=object_ids,
    event_type=st.sampled_from(["click", "view", "purchase"]),
    created_at=instants,
    event_id=st.sampled_from(["", "e1", "e2"]),
)


def told(answer):
    """Return an answer without what may differ: clocks, tokens, and the last digits of distances."""
    match answer:
        case np.ndarray():
            return np.round(answer.astype(float), 5).tolist()
        case float():
            return round(answer, 4)
        case dict():
            return {key: told(value) for key, value in answer.items()}
        case list() | tuple():
            return [told(item) for item in answer]
        case _ if hasattr(answer, "model_dump"):
            return told({k: v for k, v in answer if k not in {"updated_at", "not_before"} | CLOCKS(answer)})
        case _ if hasattr(answer, "__slots__") and hasattr(answer, "__dataclass_fields__"):
            return {name: told(getattr(answer, name)) for name in answer.__dataclass_fields__ if name != "token"}
    return answer
