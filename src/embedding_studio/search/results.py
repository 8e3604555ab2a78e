"""What a search returns, and why it stands where it does."""

from dataclasses import dataclass

from embedding_studio.domain.objects import JSON, Collection


@dataclass(frozen=True, slots=True)
class Influence:
    """A past query that bears on this one.

    Attributes:
        gate: in (0, 1]; 1 is the same query.
        clicked_ids: what was clicked for it.
        distance_change: how far this past query alone would have moved the result; below 0 is nearer.
            Several do not add up: they share one shift, and the widest gate counts.
    """

    session_id: str
    search_query: str
    created_at: int
    gate: float
    clicked_ids: tuple[str, ...]
    distance_change: float


@dataclass(frozen=True, slots=True)
class SharedInfluence:
    """What other users clicked for near queries; who they are is not known here.

    Attributes:
        users: how many of them.
        gate: in (0, 2), how much it all counts, where 1 is the same query asked by the user before.
        factor: what the result's distance was multiplied by for what they did with it; below 1 where they
            clicked it more often than may be expected where it stood.
        distance_change: how far this alone would have moved the result; below 0 is nearer.
    """

    users: int
    gate: float
    factor: float
    distance_change: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a result stands where it does.

    Attributes:
        base_distance: from the query as given to the original.
        shifted_distance: from the shifted query to the original.
        distance: from the shifted query to original and personal vectors, blended by ``gate``, and multiplied
            by the factor of ``shared``.
        gate: in [0, 1], how much the object's personal vectors count; 0 without any.
        influences: the user's own past queries, widest gate first.
        shared: None where nothing of others bears on the query.
    """

    base_distance: float
    shifted_distance: float
    distance: float
    gate: float
    influences: tuple[Influence, ...]
    shared: SharedInfluence | None = None


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
