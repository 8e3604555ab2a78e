"""Which objects are nearest: what is asked of codes, what of the database (``plans``), and when.

A small collection is compared as a whole. In a large one, codes say which objects are likely to be the
nearest (``embeddings/codes``), and these are compared; then whatever else may still be nearer than the last
of them that is wanted. Where too few of the likeliest match a filter, the database says which objects match
at all, and only the codes of these are asked. Where codes cannot tell enough apart, all is compared. A list
is short only if no more objects match.

For what a user has copies of, it is asked first how near these are; codes bound how near the originals are,
and so, by the gates, both together. Then they stand in line with all others.

Of objects whose distances are to be multiplied, codes say which may come near after that, once their numbers
are known from an earlier answer; only these are compared.
"""

import math
import statistics
import threading
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from psycopg.errors import UndefinedTable
from psycopg.pq import TransactionStatus

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import Collection, Neighbour
from embedding_studio.embeddings.code_columns import are_among
from embedding_studio.embeddings.codes import Ranking
from embedding_studio.storage.elsewhere import the_nearest
from embedding_studio.storage.ports import NOTHING_NAMED, Vectors
from embedding_studio.storage.postgres.codes import CodesOfCollection, State
from embedding_studio.storage.postgres.database import (
    BehindError,
    Connection,
    one_moment,
    only_row,
    server_of,
)
from embedding_studio.storage.postgres.matches import Matches
from embedding_studio.storage.postgres.plans import (
    NONE_RANKED,
    Answer,
    Copies,
    Moved,
    Plan,
    Question,
    smallest,
)
from embedding_studio.storage.postgres.sql import in_schema, statements
from embedding_studio.storage.postgres.users import TakenForGranted

FEWEST = 16
"""Codes are asked for at least so many objects: a few more cost nothing, and save a second question."""
FILTERED = 4
"""A filter is asked first of the likeliest of so many times the objects wanted."""
MOST_FILTERED = 2000
"""Where more must be asked whether they match, it is faster to find all that match."""
MOST_COMPARED = 0.25
"""Where a larger share of all parts must be compared one by one, to compare all in their order is as fast."""
FEW = 1000
"""So many that match are compared without asking their codes."""
ATTEMPTS = 4
"""So often codes are brought up to date when originals change while they are asked."""
_SQL = statements("nearest.sql")

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]


class NearestSearch:
    """Finds neighbours; keeps a copy of the codes of each collection that it searched.

    Args:
        recall_target: in (0, 1], the share of the nearest that is to be found where a collection's own margin
            was not measured; 1 compares all, always.
    """

    def __init__(self, recall_target: float) -> None:
        self._recall_target = recall_target
        self.margin = margin_for(recall_target)
        self._codes: dict[int, tuple[str, CodesOfCollection]] = {}
        self._lock = threading.Lock()
        self._matches = Matches()

    def __call__(
        self,
        connection: Connection,
        collection: Collection,
        queries: Vectors,
        limit: int,
        *,
        payload_filter: PayloadFilter | None,
        moved: Moved | None = None,
        margin: float | None = None,
        taken: TakenForGranted | None = None,
        named: Mapping[str, float] = NOTHING_NAMED,
    ) -> list[Neighbour]:
        """Return the nearest; one round trip where nothing changed since the last search.

        Args:
            margin: in standard errors, instead of the collection's; infinite: compare all.
            named: as of ``Personal.nearest``.

        Raises:
            OutdatedError: what was taken for granted is so no longer.
        """
        question = Question(
            collection, queries, max(limit, 1), payload_filter, moved, taken=taken, named=named
        )
        try:
            found = self._answered(connection, question, margin)
            return found if limit > 0 else the_nearest(found, 0, named)
        except UndefinedTable:
            self._codes.pop(collection.collection_id, None)  # it was dropped
            raise

    def _answered(self, connection: Connection, question: Question, margin: float | None) -> list[Neighbour]:
        if margin != math.inf:
            at = _moment_of(connection, question)
            for _ in range(ATTEMPTS):
                answer = self._by_codes(connection, question, margin, at)
                if answer is None:
                    break
                if not answer.is_old:
                    return answer.neighbours
        answer = self._exact(connection, question)
        if self._recall_target < 1:  # a collection that was small may have codes by now, for the next search
            codes = self._codes_of(connection, question.collection)
            codes.state(connection, at_least=answer.revision)
        return answer.neighbours

    def among(
        self,
        connection: Connection,
        collection: Collection,
        queries: Vectors,
        limit: int,
        candidates: Numbers,
        *,
        payload_filter: PayloadFilter | None,
        moved: Moved | None = None,
        taken: TakenForGranted | None = None,
        named: Mapping[str, float] = NOTHING_NAMED,
    ) -> tuple[list[Neighbour], int]:
        """Return the nearest of some objects and all that were moved, and the revision of the originals."""
        question = Question(
            collection, queries, max(limit, 1), payload_filter, moved, taken=taken, named=named
        )
        copies = question.copies(connection)
        plan = question.chosen(
            np.union1d(candidates, copies.object_nos), copies, is_filtered=payload_filter is not None
        )
        answer = self._ask(connection, question, plan, copies)
        return answer.neighbours, answer.revision

    def state(self, connection: Connection, collection: Collection) -> State:
        """Return the codes of a collection, up to date."""
        revision, *_ = only_row(
            connection.execute(in_schema("codes.sql", "revision", collection.collection_id))
        )
        return self._codes_of(connection, collection).state(connection, at_least=revision)

    def _codes_of(self, connection: Connection, collection: Collection) -> CodesOfCollection:
        """Return the codes of a collection; those of another server are dropped."""
        server = server_of(connection)
        with self._lock:
            kept = self._codes.get(collection.collection_id)
            if kept is None or kept[0] != server:
                kept = self._codes[collection.collection_id] = server, CodesOfCollection(collection)
        return kept[1]

    def _by_codes(
        self, connection: Connection, question: Question, margin: float | None, at: int | None
    ) -> Answer | None:
        """Return an answer from codes, which may be old; None where codes do not help.

        Args:
            at: the revision of all that is read.

        Raises:
            BehindError: the codes are newer. What matches a filter is remembered by their revision.
        """
        if margin is None and self._recall_target == 1:
            return None
        codes = self._codes_of(connection, question.collection)
        state = codes.state(connection, at_least=at or 0)
        if at is not None and state.revision > at:
            raise BehindError
        if margin is None:
            margin = self.margin if state.margin is None else state.margin
        answer = self._asked_of(connection, question, codes, state, margin)
        if answer is not None and answer.named_nos:
            codes.note(answer.named_nos)
        if answer is not None and answer.revision != state.revision:
            codes.state(connection, at_least=answer.revision)
            return replace(answer, is_old=True)
        return answer

    def _asked_of(
        self,
        connection: Connection,
        question: Question,
        codes: CodesOfCollection,
        state: State,
        margin: float,
    ) -> Answer | None:
        """Return what codes and, for what they say is likely, the database answer."""
        if (view := state.view) is None:
            return None
        copies = question.copies(connection)
        if len(copies):  # who searched before may know some that have gone
            copies = copies.at(view.has(copies.object_nos))
        among: Numbers | None = None
        if question.condition is not None:
            if not self._matches.are_known(question):
                ranking = view.ranking(question.compared, margin)
                count = max(FEWEST, FILTERED * question.limit + len(question.named))
                answer = self._compared(
                    connection, question, ranking, copies, count, most=MOST_FILTERED, is_filtered=True
                )
                if answer is not None:
                    return answer
            among = self._matches.find(connection, question, state.revision)
            if len(among) <= FEW:
                return self._ask(connection, question, question.chosen(among, copies), copies)
            copies = copies.at(np.isin(copies.object_nos, among))
        ranking = view.ranking(question.compared, margin, among)
        ranked = question.rank_named(codes.numbers, ranking, copies)
        count, most = max(FEWEST, question.reach - len(ranked)), int(MOST_COMPARED * len(view))
        return self._compared(
            connection, question, ranking, copies, count, most=most, is_filtered=False, ranked=ranked
        )

    def _compared(
        self,
        connection: Connection,
        question: Question,
        ranking: Ranking,
        copies: Copies,
        count: int,
        *,
        most: int,
        is_filtered: bool,
        ranked: AbstractSet[str] = NONE_RANKED,
    ) -> Answer | None:
        """Return what is nearest among the likeliest and whatever else may be nearer.

        Args:
            count: of objects that are asked for first.
            most: None is returned where more must be compared.
            is_filtered: whether a filter is to be asked of them; then None also where too few match.
            ranked: those that are named and stand in the ranking where they come to.
        """
        offset, wanted = question.geometry.offset, question.reach - len(ranked)
        least, largest = copies.bounds(ranking, question.geometry)
        if len(copies):
            ranking.leave_out(copies.object_nos)
        reach = smallest(largest, wanted)
        likeliest = ranking.likeliest(count, reach - offset)
        if len(likeliest) > most:
            return None
        if reach == math.inf:
            reach = smallest(least, wanted)
        compared = _united(likeliest, copies.object_nos[least <= reach])
        plan = question.chosen(compared, copies, is_filtered=is_filtered, ranked=ranked)
        answer = self._ask(connection, question, plan, copies)
        farthest = question.farthest(answer.neighbours)
        is_full = farthest < math.inf
        if is_filtered and not is_full:
            return None
        # One that is not full has all there is, unless some went meanwhile, which its revision tells.
        others = copies.object_nos[least <= farthest]
        if is_full:
            others = _united(ranking.within(farthest - offset), others)
        others = others[~are_among(others, compared)]
        if question.named:
            others = others[~are_among(others, np.sort(answer.object_nos))]
        if not len(others):
            return answer
        if len(others) > most:
            return None
        plan = question.chosen(others, copies, is_filtered=is_filtered, ranked=ranked)
        return question.joined(answer, self._ask(connection, question, plan, copies))

    def _exact(self, connection: Connection, question: Question) -> Answer:
        """Return what is nearest, with all compared."""
        copies = question.copies(connection)
        if not len(copies) and not question.named:
            return self._ask(connection, question, question.exact(copies), copies)
        is_filtered = question.condition is not None
        # Of one moment, else what changes meanwhile would be missed by both.
        with connection.pipeline(), one_moment(connection):
            connection.execute(_SQL["settings"])
            others = question.send(connection, question.exact(copies))
            moved = question.send(
                connection, question.chosen(copies.object_nos, copies, is_filtered=is_filtered)
            )
        answer = question.answer(connection, moved, copies)
        return question.joined(answer, question.answer(connection, others, copies))

    def _ask(self, connection: Connection, question: Question, plan: Plan, copies: Copies) -> Answer:
        """Return what a plan brings, in one round trip."""
        if plan.needs_snapshot:
            with connection.pipeline(), one_moment(connection):
                connection.execute(_SQL["settings"])
                found = question.send(connection, plan)
        else:
            found = question.send(connection, plan)
        return question.answer(connection, found, copies)


def _moment_of(connection: Connection, question: Question) -> int | None:
    """Return the revision of all that is read, where that is of one moment; None where it may change."""
    if connection.info.transaction_status == TransactionStatus.IDLE:
        return None
    revision: int
    revision, *_ = only_row(connection.execute(question.revision))
    return revision


def margin_for(recall_target: float) -> float:
    """Return so many standard errors as an estimate stays within with a probability.

    An object at the very edge of a list is missed as often as its estimate is worse than that; others less.
    """
    return statistics.NormalDist().inv_cdf((1 + min(recall_target, 0.999999)) / 2)


def _united(numbers: Numbers, others: Numbers) -> Numbers:
    """Return sorted numbers and others, each once."""
    if not len(others) or not len(numbers):
        return numbers if len(numbers) else others
    return np.union1d(numbers, others)
