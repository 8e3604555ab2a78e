"""What a search returns."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.explanations import Explanation
from embedding_studio.domain.objects import JSON, Collection


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One result.

    Attributes:
        distance: smaller is nearer; that under which it was ranked.
        position: 1 is the top of the first page.
        personalised: whether clicks took part in its distance: the user's own, or shared ones of others.
        propensity: probability with which this slot shows this object, given what stands above it.
    """

    object_id: str
    distance: float
    payload: JSON
    position: int
    personalised: bool
    propensity: float
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class SearchPage:
    """One page of results.

    Attributes:
        session_id: the session that recorded the page; None if none did.
        next_page_offset: None on the last page.
        personalised: whether clicks bear on this query at all.
        collection: that was searched, whatever name it was asked by.
        is_sorted: whether any object has a value in the field of ``sort_by``; None where none was asked for.
    """

    results: tuple[SearchResult, ...]
    session_id: str | None
    next_page_offset: int | None
    personalised: bool
    collection: Collection
    is_sorted: bool | None = None


@dataclass(frozen=True, slots=True)
class RankedResult:
    """A candidate of another search, at its place for this user.

    Attributes:
        position: 1 is the top.
        given_position: where it stood among the candidates.
        distance_change: how much nearer (below 0) or further clicks brought it; 0 where none bears on it,
            and where its vectors are not known.
        personalised: whether clicks took part in its place.
    """

    object_id: str
    position: int
    given_position: int
    distance_change: float
    personalised: bool


@dataclass(frozen=True, slots=True)
class RankedPage:
    """The candidates of another search in the order for this user.

    Attributes:
        session_id: the session that recorded what is shown; None if none did.
        personalised: whether clicks bear on this query at all; if not, the order is the one given.
        unknown: ids that are not in the collection and came without vectors, in the order given.
    """

    results: tuple[RankedResult, ...]
    session_id: str | None
    personalised: bool
    unknown: tuple[str, ...]
    collection: Collection


@dataclass(frozen=True, slots=True, eq=False)
class MovedObject:
    """An object that the user has vectors of their own for, which count for this query.

    Attributes:
        gate: g in (0, 1]: the object is as similar as (1 - g) by its originals + g by these vectors.
        vectors: [P, D], the user's own.
    """

    object_id: str
    gate: float
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class BentQuery:
    """What clicks make of a query, for an engine that searches elsewhere.

    Attributes:
        queries: [Q, D], its vectors after the shift; the given ones where no click bears on it.
        moved: by object_id; empty for most queries.
        factors: object_id -> what the gap to its least possible distance is multiplied by; only what differs
            from 1 (docs/how-it-learns.md, eqs. 11 to 13).
        personalised: whether clicks bear on this query at all.
    """

    queries: NDArray[np.float32]
    moved: tuple[MovedObject, ...]
    factors: Mapping[str, float]
    personalised: bool
    collection: Collection
