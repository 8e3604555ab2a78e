"""The gate, fitted to what a collection is asked.

The threshold is read by each search and by nothing else: what is folded for a user does not depend on it.
So nothing has to be learnt anew, and the next search of every process uses what was stored.
"""

from dataclasses import dataclass

import numpy as np

from embedding_studio.embeddings.personal import gate_threshold_of, query_mean
from embedding_studio.errors import InvalidInputError
from embedding_studio.storage.ports import Storage

ENOUGH_QUERIES = 100
LATEST_QUERIES = 2_000
"""Two million pairs: more would move the threshold in its fourth digit."""


@dataclass(frozen=True, slots=True)
class TunedGate:
    """How the threshold of a collection's gate changes.

    Attributes:
        collection: its name, also where an alias was given.
        before, after: None is the setting ``GATE_THRESHOLD``.
        queries: from how many different ones ``after`` was computed.
        is_stored: whether searches use it from now on.
    """

    collection: str
    before: float | None
    after: float | None
    queries: int
    is_stored: bool


def tune_gate(storage: Storage, name: str, *, dry_run: bool = False) -> TunedGate:
    """Fit the gate of a collection to its latest different queries, and store the threshold with it.

    Args:
        name: of the collection, or an alias.
        dry_run: store nothing.

    Raises:
        CollectionNotFoundError: nothing has this name.
        InvalidInputError: there are too few queries to tell.
    """
    collection = storage.collections.get(name)
    queries = storage.clickstream.recent_queries(collection, LATEST_QUERIES)
    if len(queries) < ENOUGH_QUERIES:
        raise InvalidInputError(
            f"the sessions of {collection.name!r} hold {len(queries)} different queries with vectors, and "
            f"fitting the gate needs {ENOUGH_QUERIES}; record more searches (create_session), or set "
            "GATE_THRESHOLD"
        )
    means = np.stack([query_mean(collection.index, parts) for parts in queries])
    threshold = round(gate_threshold_of(collection.index, means), 4)
    if not dry_run:
        storage.collections.set_gate_threshold(collection.name, threshold)
    return TunedGate(collection.name, collection.gate_threshold, threshold, len(queries), not dry_run)


def reset_gate(storage: Storage, name: str, *, dry_run: bool = False) -> TunedGate:
    """Let the gate of a collection be as wide as the setting says.

    Raises:
        CollectionNotFoundError: nothing has this name.
    """
    collection = storage.collections.get(name)
    if not dry_run:
        storage.collections.set_gate_threshold(collection.name, None)
    return TunedGate(collection.name, collection.gate_threshold, None, 0, not dry_run)
