"""What a collection learns from its log for all users: its gate, and how much a user's own past counts.

Both are read by each search and by nothing else: what is folded for a user does not depend on them. So
nothing has to be re-learnt, and the next search of every process uses what was stored.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile

import numpy as np

from embedding_studio.domain.objects import JSON, Collection, OwnPast
from embedding_studio.embeddings.own_past import Returns, returns_of
from embedding_studio.embeddings.personal import gate_threshold_of, query_mean
from embedding_studio.errors import CollectionNotFoundError, EmbeddingStudioError, InvalidInputError, counted
from embedding_studio.storage.ports import Storage

logger = logging.getLogger(__name__)

ENOUGH_QUERIES = 100
LATEST_QUERIES = 2_000
"""Two million pairs: more would move the threshold in its fourth digit."""

LATEST_MEMORIES = 10_000
"""Of users who came back; 30 MB at 384 dimensions."""

FIT_EVERY_SECONDS = 86_400

ENOUGH_OBJECTS = 100
SAMPLED_OBJECTS = 200

CROWDED = 0.9
"""A threshold fitted to objects that lies above it tells of a model to which all texts are alike: half of the
pairs have a cosine above 2 / 3. Catalogues of one kind of thing stay below it with other models."""

NARROWEST_GUARD = 0.95
"""Objects that are variants of one another would close the gate altogether; E5 comes to .945."""


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


@dataclass(frozen=True, slots=True)
class TunedPast:
    """How the weights of a user's own past change in a collection.

    Attributes:
        before, after: None: in full.
        returns: what ``after`` was computed from.
        is_stored: whether searches use it from now on.
    """

    collection: str
    before: OwnPast | None
    after: OwnPast | None
    returns: Returns
    is_stored: bool


def tune(storage: Storage, name: str, *, dry_run: bool = False) -> tuple[TunedGate, TunedPast]:
    """Fit a collection to its log: the gate, and with it how much a user's own past counts."""
    gate = tune_gate(storage, name, dry_run=dry_run)
    threshold = gate.after or 0.0  # that of a gate that was fitted is never absent
    return gate, tune_own_past(storage, name, gate_threshold=threshold, dry_run=dry_run)


def as_json(gate: TunedGate, past: TunedPast) -> JSON:
    """Return what was tuned as one object: the gate's fields, and the own past under its name."""
    own_past = {
        "before": past.before and asdict(past.before),
        "after": past.after and asdict(past.after),
        "searches": past.returns.searches,
        "again": past.returns.again,
    }
    return asdict(gate) | {"own_past": own_past}


def tune_own_past(
    storage: Storage,
    name: str,
    *,
    gate_threshold: float,
    dry_run: bool = False,
    is_over: Callable[[], bool] = lambda: False,
) -> TunedPast:
    """Fit how much a user's own past counts to what users came back for, and store it with the collection.

    Args:
        name: of the collection, or an alias.
        gate_threshold: of the gate by which searches are near to past queries.
        dry_run: store nothing.
        is_over: asked between users; once it is, nothing is stored.

    Raises:
        CollectionNotFoundError: nothing has this name.
    """
    collection = storage.collections.get(name)
    users = storage.personal.latest_memories(collection, LATEST_MEMORIES)
    returns = returns_of(collection.index, takewhile(lambda _: not is_over(), users), gate_threshold)
    before, fitted = collection.own_past, returns.weights()
    changes = fitted != (before or OwnPast())
    if changes and not dry_run and not is_over():
        storage.collections.set_own_past(collection.name, fitted)
    return TunedPast(collection.name, before, fitted if changes else before, returns, not dry_run)


def reset_own_past(storage: Storage, name: str, *, dry_run: bool = False) -> TunedPast:
    """Let all of a user's own past count in full.

    Raises:
        CollectionNotFoundError: nothing has this name.
    """
    collection = storage.collections.get(name)
    if not dry_run:
        storage.collections.set_own_past(collection.name, None)
    return TunedPast(collection.name, collection.own_past, None, Returns(), not dry_run)


class OwnPastKeeper:
    """Fits how much a user's own past counts in every collection, once a day.

    Args:
        gate_threshold: in collections that have none of their own.
    """

    def __init__(self, storage: Storage, *, gate_threshold: float) -> None:
        self._storage = storage
        self._gate_threshold = gate_threshold
        self._fitted_at: int | None = None

    def is_due(self, now: int) -> bool:
        """Return whether a day has gone by; ``now`` is in UTC seconds."""
        return self._fitted_at is None or now - self._fitted_at >= FIT_EVERY_SECONDS

    def fit(self, now: int, is_over: Callable[[], bool] = lambda: False) -> None:
        """Fit all collections, until ``is_over``."""
        self._fitted_at = now
        for collection in self._storage.collections.list():
            if is_over():
                return
            own = collection.gate_threshold
            threshold = self._gate_threshold if own is None else own
            try:
                tuned = tune_own_past(
                    self._storage, collection.name, gate_threshold=threshold, is_over=is_over
                )
            except CollectionNotFoundError:
                continue  # dropped since
            except EmbeddingStudioError as error:  # the others are fitted all the same
                logger.warning("how much the past counts in %r was not fitted: %s", collection.name, error)
                continue
            if tuned.before != tuned.after:
                logger.info("a user's own past counts for %s in %r", tuned.after, collection.name)


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
            f"the sessions of {collection.name!r} hold "
            f"{counted(len(queries), 'different query', 'different queries')} with vectors, and fitting the "
            f"gate needs {ENOUGH_QUERIES}; record more searches (create_session), or set "
            "GATE_THRESHOLD"
        )
    means = np.stack([query_mean(collection.index, parts) for parts in queries])
    threshold = round(gate_threshold_of(collection.index, means), 4)
    if not dry_run:
        storage.collections.set_gate_threshold(collection.name, threshold)
    return TunedGate(collection.name, collection.gate_threshold, threshold, len(queries), not dry_run)


def guard_gate(storage: Storage, collection: Collection, object_ids: Sequence[str]) -> Collection:
    """Return the collection, with its gate fitted to its objects if these say that it must be narrow.

    Some embedding models find all texts alike: to E5 the median cosine of two queries is about .82. A gate
    of .75 is open to everything then, and every search is bent by every other. Until there are queries to
    fit the gate to (``tune_gate``), objects tell. A threshold that a collection has stays.

    Args:
        object_ids: of objects just stored; looked at if there are a hundred, and these differ.
    """
    if collection.gate_threshold is not None or len(object_ids) < ENOUGH_OBJECTS:
        return collection
    sampled = object_ids[:: max(1, len(object_ids) // SAMPLED_OBJECTS)][:SAMPLED_OBJECTS]
    objects = storage.objects.get(collection, sampled)
    means = [query_mean(collection.index, each.parts) for each in objects]
    if len({mean.tobytes() for mean in means if mean.any()}) < ENOUGH_OBJECTS:
        return collection
    threshold = round(min(gate_threshold_of(collection.index, np.stack(means)), NARROWEST_GUARD), 4)
    if threshold <= CROWDED or storage.collections.get(collection.name).gate_threshold is not None:
        return collection
    storage.collections.set_gate_threshold(collection.name, threshold)
    logger.warning(
        "the objects of %r are all alike to their embedding model, so its gate is set to %s; once %d "
        "different queries are recorded, `embedding-studio tune %s` fits it to these",
        collection.name, threshold, ENOUGH_QUERIES, collection.name,
    )  # fmt: skip
    return replace(collection, gate_threshold=threshold)


def reset_gate(storage: Storage, name: str, *, dry_run: bool = False) -> TunedGate:
    """Let the gate of a collection be as wide as the setting says.

    Raises:
        CollectionNotFoundError: nothing has this name.
    """
    collection = storage.collections.get(name)
    if not dry_run:
        storage.collections.set_gate_threshold(collection.name, None)
    return TunedGate(collection.name, collection.gate_threshold, None, 0, not dry_run)
