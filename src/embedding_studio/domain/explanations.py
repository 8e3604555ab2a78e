"""Why a result stands where it does, as numbers and as a sentence."""

from collections.abc import Iterator
from dataclasses import dataclass


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


LEAST_SHARE = 0.01
"""A past query is named if it alone changed the distance by this share of it, or more."""

MOST_NAMED = 3
"""So many objects that were clicked are named."""


def why(object_id: str, explanation: Explanation | None) -> str:
    """Return in a sentence why a result stands where it does; empty where that is its place for anybody.

    >>> past = Influence("s1", "warm coat", 1_760_000_000, 0.9, ("coat-1",), -0.2)
    >>> why("coat-1", Explanation(0.6, 0.5, 0.4, 0.9, (past,)))
    "you clicked it for 'warm coat'"
    >>> why("coat-2", Explanation(0.6, 0.5, 0.4, 0.0, (past,)))
    "nearer by what you clicked for 'warm coat' (coat-1)"
    >>> why("hat", Explanation(0.6, 0.6, 0.3, 0.0, (), SharedInfluence(3, 0.9, 0.5, -0.3)))
    'others clicked it (3 searched for this)'
    >>> why("hat", Explanation(0.6, 0.6, 0.6, 0.0, ()))
    ''
    """
    if explanation is None:
        return ""
    return "; ".join(_reasons(object_id, explanation))


def _reasons(object_id: str, explanation: Explanation) -> Iterator[str]:
    least = LEAST_SHARE * abs(explanation.base_distance)
    past = [each for each in explanation.influences if object_id in each.clicked_ids]
    if past:
        yield f"you clicked it for {_asked(past[0])}"
    else:
        moved = [each for each in explanation.influences if abs(each.distance_change) > least]
        if moved:
            most = max(moved, key=lambda each: abs(each.distance_change))
            way = _way(most.distance_change)
            yield f"{way} by what you clicked for {_asked(most)} ({_named(most)})"
    shared = explanation.shared
    if shared is not None and shared.factor < 1:
        yield f"others clicked it ({shared.users} searched for this)"
    elif shared is not None and abs(shared.distance_change) > least:
        yield f"{_way(shared.distance_change)} by what others clicked ({shared.users} searched for this)"


def _asked(influence: Influence) -> str:
    return repr(influence.search_query) if influence.search_query else "an earlier search"


def _way(distance_change: float) -> str:
    return "nearer" if distance_change < 0 else "further away"


def _named(influence: Influence) -> str:
    more = len(influence.clicked_ids) - MOST_NAMED
    named = ", ".join(influence.clicked_ids[:MOST_NAMED])
    return f"{named} and {more} more" if more > 0 else named
