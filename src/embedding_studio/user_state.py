"""What is learnt about a user, as people ask for it: which objects moved how far, and a map of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.objects import JSON, Collection, PersonalState
from embedding_studio.storage.ports import Storage, Vectors

MAPPED_QUERIES = 12
NEIGHBOURS = 12
"""A map has the latest queries of a user, so many of the nearest objects to each, and what moved."""
MOST_MAPPED = 200

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Moved:
    """An object that the user has vectors of their own for.

    Attributes:
        degrees: the angle in [0, 180] between the original and the user's vector of the part that moved most.
    """

    object_id: str
    degrees: float
    payload: JSON


@dataclass(frozen=True, slots=True)
class MapPoint:
    """A query or an object, where it stands on the map.

    Attributes:
        identity: the session_id of a query, the object_id of an object.
        label: the text of a query; of an object its id.
        after: where the user's own vector stands; None where it is not moved.
        clicked: whether the user clicked it for one of the queries on the map.
    """

    kind: Literal["query", "object"]
    identity: str
    label: str
    before: Point
    after: Point | None = None
    clicked: bool = False


@dataclass(frozen=True, slots=True)
class VectorMap:
    """Vectors in two dimensions: the first two principal components of the originals and queries on it.

    Attributes:
        explained: share of their variance that the two have, in [0, 1].
    """

    points: tuple[MapPoint, ...]
    explained: float


def moved_objects(storage: Storage, collection: Collection, state: PersonalState) -> list[Moved]:
    """Return what a user's vectors moved, furthest first, as far as the catalogue still has it."""
    objects = storage.objects.get(collection, sorted(state.vectors))
    moved = [
        Moved(each.object_id, _degrees(each.parts, state.vectors[each.object_id]), each.payload)
        for each in objects
        if each.parts.shape == state.vectors[each.object_id].shape
    ]
    return sorted(moved, key=lambda each: (-each.degrees, each.object_id))


def map_of(storage: Storage, collection: Collection, state: PersonalState) -> VectorMap:
    """Return a map of a user's latest queries, what stands near them, and where the user's own vectors stand.

    Objects of several parts stand at the mean of their parts; under cosine all vectors have length 1.
    """
    memories = state.memories[-MAPPED_QUERIES:]
    near = [
        neighbour.object_id
        for memory in memories
        for neighbour in storage.objects.nearest(collection, np.atleast_2d(memory.query), NEIGHBOURS)
    ]
    clicked = {object_id for memory in memories for object_id in memory.clicked_ids}
    wanted = list(dict.fromkeys([*sorted(clicked), *sorted(state.vectors), *near]))[:MOST_MAPPED]
    originals = storage.objects.originals(collection, wanted)
    placed = [each for each in wanted if each in originals]
    is_cosine = collection.index.metric_type.value == "cosine"
    before = [_middle(memory.query, is_cosine=is_cosine) for memory in memories]
    before += [_middle(originals[each], is_cosine=is_cosine) for each in placed]
    if not before:
        return VectorMap((), 0.0)
    centre, axes, explained = _plane(np.array(before))
    flat = (np.array(before) - centre) @ axes.T
    after = _after(placed, state.vectors, centre, axes, is_cosine=is_cosine)
    queries = [
        MapPoint("query", memory.session_id, memory.search_query, _point(at))
        for memory, at in zip(memories, flat, strict=False)
    ]
    objects = [
        MapPoint("object", each, each, _point(at), after.get(each), each in clicked)
        for each, at in zip(placed, flat[len(memories) :], strict=True)
    ]
    return VectorMap((*queries, *objects), explained)


def _degrees(originals: Vectors, moved: Vectors) -> float:
    pairs = [(row / (np.linalg.norm(row) or 1.0)) for row in (*originals, *moved)]
    unit = np.array(pairs, np.float64).reshape(2, *originals.shape)
    # By the chord, for the arc cosine of what is near 1 loses half of its digits.
    chords = np.linalg.norm(unit[0] - unit[1], axis=1)
    return float(np.degrees(2 * np.arcsin(np.clip(chords / 2, 0, 1))).max())


def _middle(parts: Vectors, *, is_cosine: bool) -> NDArray[np.float64]:
    """Return where an object of parts [P, D], or a query [D], stands: [D]."""
    rows = np.atleast_2d(parts).astype(np.float64)
    if is_cosine:
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(norms > 0, norms, 1)
    mean: NDArray[np.float64] = rows.mean(axis=0)
    return mean


def _plane(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return the mean [D], two axes [2, D] and the share of the variance that they have.

    An axis points to where its greatest part is positive, so that a map does not turn over by itself.
    """
    centre = vectors.mean(axis=0)
    _, lengths, axes = np.linalg.svd(vectors - centre, full_matrices=False)
    kept = np.zeros((2, vectors.shape[1]))
    kept[: len(axes[:2])] = axes[:2]
    furthest = np.take_along_axis(kept, np.abs(kept).argmax(axis=1, keepdims=True), axis=1)
    kept *= np.where(furthest < 0, -1, 1)
    total = float((lengths**2).sum())
    return centre, kept, float((lengths[:2] ** 2).sum()) / total if total else 0.0


def _after(
    placed: list[str],
    vectors: Mapping[str, Vectors],
    centre: NDArray[np.float64],
    axes: NDArray[np.float64],
    *,
    is_cosine: bool,
) -> dict[str, Point]:
    return {
        each: _point((_middle(vectors[each], is_cosine=is_cosine) - centre) @ axes.T)
        for each in placed
        if each in vectors
    }


def _point(at: NDArray[np.float64]) -> Point:
    return float(at[0]), float(at[1])
