"""State to results. Its door is ``SearchService``.

results   what a search returns       ranking  the lists from which a page is made, and why
mixing    which list fills a slot     service  one search from its query to its session
candidates    of another search, in the order for one user
"""

from embedding_studio.domain.explanations import Explanation, Influence, SharedInfluence, why
from embedding_studio.domain.sessions import MAX_LIMIT, MAX_REACH, SearchRequest, SortBy
from embedding_studio.search.ranking import SORT_WINDOW
from embedding_studio.search.results import (
    BentQuery,
    MovedObject,
    RankedPage,
    RankedResult,
    SearchPage,
    SearchResult,
)
from embedding_studio.search.service import (
    EXPLORATION_RATIO,
    GATE_THRESHOLD,
    QUERY_SECONDS,
    QUERY_SHIFT,
    SHARED_MIN_USERS,
    SearchService,
)

__all__ = [
    "EXPLORATION_RATIO",
    "GATE_THRESHOLD",
    "MAX_LIMIT",
    "MAX_REACH",
    "QUERY_SECONDS",
    "QUERY_SHIFT",
    "SHARED_MIN_USERS",
    "SORT_WINDOW",
    "BentQuery",
    "Explanation",
    "Influence",
    "MovedObject",
    "RankedPage",
    "RankedResult",
    "SearchPage",
    "SearchRequest",
    "SearchResult",
    "SearchService",
    "SharedInfluence",
    "SortBy",
    "why",
]
