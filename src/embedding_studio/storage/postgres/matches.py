"""What matches filters, remembered for as long as no object changes."""

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from embedding_studio.storage.postgres.database import Connection, server_of
from embedding_studio.storage.postgres.plans import Question

Numbers = NDArray[np.int64]

REMEMBERED_FILTERS = 64
REMEMBERED_MATCHES = 4_000_000
"""For so many filters it is remembered what matches (as long as no object changes), together at most so many
objects."""


class Matches:
    """What matches the filters for which this had to be found. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[int, str], tuple[str, int, Numbers]] = OrderedDict()

    def are_known(self, question: Question) -> bool:
        """Return whether what matches had to be found before."""
        with self._lock:
            return _key(question) in self._found

    def find(self, connection: Connection, question: Question, revision: int) -> Numbers:
        """Return the numbers of all objects that match, sorted, as of a revision or a later one."""
        with self._lock:
            *known, numbers = self._found.get(_key(question), ("", -1, None))
        if numbers is not None and known == [server_of(connection), revision]:
            return numbers
        matching = question.matching(connection)
        with self._lock:
            self._found.pop(_key(question), None)
            self._found[_key(question)] = server_of(connection), revision, matching
            while (
                len(self._found) > REMEMBERED_FILTERS
                or sum(len(numbers) for *_, numbers in self._found.values()) > REMEMBERED_MATCHES
            ):
                self._found.popitem(last=False)
        return matching


def _key(question: Question) -> tuple[int, str]:
    return (
        question.collection.collection_id,
        "" if question.filter is None else question.filter.model_dump_json(),
    )
