"""State to results. Its door is ``SearchService``.

results   what a search returns       ranking  the lists from which a page is made, and why
mixing    which list fills a slot     service  one search from its query to its session
"""

from embedding_studio.domain.sessions import MAX_LIMIT, MAX_REACH, SearchRequest, SortBy
from embedding_studio.search.ranking import SORT_WINDOW
from embedding_studio.search.results import (
    Explanation,
    Influence,
    SearchPage,
    SearchResult,
    SharedInfluence,
)
from embedding_studio.search.service import GATE_THRESHOLD, SearchService

__all__ = [
    "GATE_THRESHOLD",
    "MAX_LIMIT",
    "MAX_REACH",
    "SORT_WINDOW",
    "Explanation",
    "Influence",
    "SearchPage",
    "SearchRequest",
    "SearchResult",
    "SearchService",
    "SharedInfluence",
    "SortBy",
]
