"""A log as steps, the same for every method: who searched what, and what had been clicked by then.

Axes: Q parts of a query · D dimensions.
"""

import heapq
import itertools
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.embeddings.personal import query_mean
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.errors import InvalidVectorsError
from embedding_studio.evaluation.collection_folder import Progress
from embedding_studio.evaluation.replayed_methods import Click, PlainSearch, Search
from embedding_studio.evaluation.session_log import LoggedSession, SessionLog
from embedding_studio.storage.ports import Vectors

HEAD_FROM = 50
TAIL_BELOW = 5
SHOWN = 10
"""Of so many results of plain search it is counted how many a method keeps."""

SLICE_MEANINGS: Mapping[str, str] = {
    "all": "all measured searches",
    "past": "of users who clicked something in an earlier session",
    "repeated": "of these: the same query again, but for capitals and spaces",
    "near": "of these: another query, nearer than the gate to an earlier one of the user",
    "new": "of these: a query that is near to none of the user's",
    "head": f"queries that were asked {HEAD_FROM} times or more before, by anyone",
    "torso": f"queries that were asked {TAIL_BELOW} to {HEAD_FROM - 1} times before",
    "tail": f"queries that were asked fewer than {TAIL_BELOW} times before",
}
"""A slice that is not here is a month."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One search at its own time.

    Attributes:
        due: clicks made before its second began, and not before the search before it.
        clicked: what was clicked after it, each object once.
        slices: to which it belongs; empty where it is not measured.
    """

    due: tuple[Click, ...]
    search: Search
    clicked: tuple[str, ...]
    slices: tuple[str, ...]


@dataclass(slots=True)
class Steps:
    """What a log comes to.

    Attributes:
        left_out: reason -> how many sessions or clicks.
        before: searches that are learnt and not measured, for the measuring begins later.
        shown: of how many measured searches the log says what was shown.
        first: at how many of these the first result was clicked.
    """

    each: list[Step] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    before: int = 0
    shown: int = 0
    first: int = 0

    @property
    def measured(self) -> list[Step]:
        return [step for step in self.each if step.slices]


def steps_of(
    log: SessionLog,
    *,
    plain: PlainSearch,
    index: SearchIndexInfo,
    gate_threshold: float,
    query_vectors: Mapping[str, Vectors],
    measure_from: int | None,
    progress: Progress | None = None,
) -> Steps:
    """Return the steps of a log; the arguments are those of ``replay``."""
    steps = Steps(left_out=Counter(log.left_out))
    past = _Past(index, gate_threshold)
    coming: list[tuple[int, int, Click]] = []
    ordinals = itertools.count()
    for number, session in enumerate(log.sessions, start=1):
        if progress and (number % 100 == 0 or number == len(log.sessions)):
            progress("plain search", number, len(log.sessions))
        search = _search_of(session, index, query_vectors, plain)
        if search is None:
            steps.left_out["a session whose query has no usable vectors"] += 1
            continue
        due = []
        while coming and coming[0][0] // 1000 < search.at:
            due.append(heapq.heappop(coming)[2])
        past.learn(due)
        clicked = tuple(dict.fromkeys(click.object_id for click in session.clicks))
        slices: tuple[str, ...] = ()
        if measure_from is not None and session.at < measure_from:
            steps.before += 1
        elif reason := _why_unmeasured(session):
            steps.left_out[reason] += 1
        else:
            slices = past.slices_of(search)
            steps.shown += bool(session.shown)
            steps.first += bool(session.shown) and session.shown[0] in clicked
        past.asked[search.key] += 1
        steps.each.append(Step(tuple(due), search, clicked, slices))
        for click in session.clicks:
            made = Click(search, session.shown, click.object_id, click.event_type, click.at // 1000)
            heapq.heappush(coming, (click.at, next(ordinals), made))
    return steps


def query_key(text: str, vectors: Vectors) -> str:
    """Return what is the same for the same query: its text without capitals and spaces, or its vectors.

    >>> query_key("  Call of  DUTY ", np.zeros((1, 3)))
    'call of duty'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()) or vectors.tobytes().hex()


class _Past:
    """What was asked and clicked so far, to say to which slices a search belongs."""

    def __init__(self, index: SearchIndexInfo, gate_threshold: float) -> None:
        self._index = index
        self._gate_threshold = gate_threshold
        self._of_user: dict[str, dict[str, Search]] = defaultdict(dict)
        self.asked: Counter[str] = Counter()

    def learn(self, clicks: Sequence[Click]) -> None:
        for click in clicks:
            self._of_user[click.search.user_id][click.search.key] = click.search

    def slices_of(self, search: Search) -> tuple[str, ...]:
        times = self.asked[search.key]
        by_times = "head" if times >= HEAD_FROM else "torso" if times >= TAIL_BELOW else "tail"
        month = datetime.fromtimestamp(search.at, UTC).strftime("%Y-%m")
        mine = self._of_user.get(search.user_id)
        if not mine:
            return "all", by_times, month
        if search.key in mine:
            return "all", "past", "repeated", by_times, month
        alike = np.stack([self._direction(each) for each in mine.values()]) @ self._direction(search)
        return "all", "past", "near" if alike.max() > self._gate_threshold else "new", by_times, month

    def _direction(self, search: Search) -> Vectors:
        mean = query_mean(self._index, search.vectors)
        length = float(np.linalg.norm(mean))
        return (mean / (length or 1.0)).astype(np.float32)


def _search_of(
    session: LoggedSession,
    index: SearchIndexInfo,
    query_vectors: Mapping[str, Vectors],
    plain: PlainSearch,
) -> Search | None:
    given = session.query_vectors
    if given is None or given.shape[-1] != index.dimensions:
        given = query_vectors.get(session.query)
    if given is None:
        return None
    try:
        vectors = check_vectors(index, given, "the query")
    except InvalidVectorsError:
        return None
    return Search(
        session.session_id,
        session.user_id,
        session.query,
        query_key(session.query, vectors),
        vectors,
        session.at // 1000,
        plain.best(vectors),
    )


def _why_unmeasured(session: LoggedSession) -> str | None:
    if not session.clicks:
        return "not measured: a search after which nothing was clicked"
    if not session.is_plain_request:
        return "not measured: a search with a filter, a sorting or a maximum distance"
    return None
