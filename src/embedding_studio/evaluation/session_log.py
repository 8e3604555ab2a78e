"""A log of searches and what was clicked, as it happened: one session a line, or a collection's own.

A line is ``{"session_id", "user_id", "query", "timestamp", "results", "clicks": [{"object_id", "t"}]}``;
``results``, the ids that were shown in their order, may be empty where that was not logged. What cannot be
used is left out and counted with a reason: no line is worth losing the others for.
"""

import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from embedding_studio.domain.sessions import DEFAULT_EVENT_WEIGHTS, RecordedSession
from embedding_studio.errors import InvalidInputError
from embedding_studio.logs.entries import FEWEST_MILLISECONDS, Unusable, id_of
from embedding_studio.logs.rows import read_rows
from embedding_studio.storage.ports import Vectors

LAST_MILLISECOND = 253_402_300_799_999
"""Of the year 9999."""


@dataclass(frozen=True, slots=True)
class LoggedClick:
    """What a user did with one object; ``at`` is UTC milliseconds."""

    object_id: str
    at: int
    event_type: str = "click"


@dataclass(frozen=True, slots=True, eq=False)
class LoggedSession:
    """One search as a log has it.

    Attributes:
        at: UTC milliseconds.
        shown: best first; empty where it was not logged.
        clicks: by time; none is before ``at``.
        query_vectors: [Q, D]; None: to be embedded.
        is_plain_request: whether nothing but the query decided: no filter, no sorting, no maximum distance.
    """

    session_id: str
    user_id: str
    query: str
    at: int
    shown: tuple[str, ...] = ()
    clicks: tuple[LoggedClick, ...] = ()
    query_vectors: Vectors | None = None
    is_plain_request: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class SessionLog:
    """What could be read.

    Attributes:
        sessions: by (at, session_id).
        left_out: reason -> how many sessions or clicks are not in ``sessions``.
        assumed: what the log does not say and is taken to be so -> how often.
        units: the unit in which times were given -> how many.
    """

    sessions: list[LoggedSession]
    left_out: Mapping[str, int]
    assumed: Mapping[str, int] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)

    def between(self, since: int | None, until: int | None) -> "SessionLog":
        """Return the searches from one millisecond on, and before another."""
        kept = [
            session
            for session in self.sessions
            if (since is None or session.at >= since) and (until is None or session.at < until)
        ]
        return SessionLog(kept, self.left_out, self.assumed, self.units)


def milliseconds(given: object) -> tuple[int, str] | None:
    """Return a time as UTC milliseconds, and the unit in which it was given; None if it is no time.

    >>> milliseconds(1317337009634), milliseconds("1317337009"), milliseconds("2011-09-29T22:56:49Z")
    ((1317337009634, 'milliseconds'), (1317337009000, 'seconds'), (1317337009000, 'ISO dates'))
    """
    if isinstance(given, str):
        try:
            return milliseconds(float(given) if "." in given else int(given))
        except ValueError:
            return _of_date(given)
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        return None
    unit, at = (
        ("milliseconds", given) if given >= FEWEST_MILLISECONDS else ("seconds", round(given * 1000, 3))
    )
    return (int(at), unit) if 0 <= at <= LAST_MILLISECOND else None


def given_time(name: str, given: str | None) -> int | None:
    """Return what an option says as UTC milliseconds.

    Raises:
        InvalidInputError: it is no time.
    """
    if given is None:
        return None
    if (read := milliseconds(given)) is None:
        raise InvalidInputError(
            f"{name} is {given!r}; give a date such as 2011-09-29 or 2011-09-29T22:56:49Z, or UTC seconds or "
            "milliseconds as the log has them"
        )
    return read[0]


def read_session_log(
    path: Path | str,
    *,
    known: Container[str],
    weights: Mapping[str, float] = DEFAULT_EVENT_WEIGHTS,
) -> SessionLog:
    """Return the sessions of a file of NDJSON, packed or not; ``-`` is the standard input.

    Args:
        known: ids of the objects that there are.
        weights: how much an event of each type says; ``event_type`` of a click is "click" where absent.

    Raises:
        InvalidDataError: there is no such file, or it cannot be opened.
    """
    reader = _Reader(known, weights)
    for _, row in read_rows(path):
        if isinstance(row, Unusable):
            reader.left_out[str(row)] += 1
        else:
            reader.take(row)
    return reader.log()


def log_of(
    recorded: Iterable[RecordedSession],
    *,
    known: Container[str],
    weights: Mapping[str, float] = DEFAULT_EVENT_WEIGHTS,
) -> SessionLog:
    """Return what was recorded for a collection as a log, under the same rules as a file."""
    reader = _Reader(known, weights)
    for each in recorded:
        session, request = each.session, each.session.request
        if session.is_irrelevant:
            reader.left_out["a session that was marked irrelevant"] += 1
            continue
        is_plain = request is None or (request.filter, request.sort_by, request.max_distance) == (None,) * 3
        reader.take(
            {
                "session_id": session.session_id,
                "user_id": session.user_id,
                "query": session.search_query,
                "timestamp": session.created_at,
                "results": [result.object_id for result in session.search_results],
                "clicks": [
                    {"object_id": event.object_id, "t": event.created_at, "event_type": event.event_type}
                    for event in session.events
                ],
            },
            each.query_vectors,
            is_plain_request=is_plain,
        )
    return reader.log()


class _Reader:
    """Takes sessions one by one, and counts what it leaves out."""

    def __init__(self, known: Container[str], weights: Mapping[str, float]) -> None:
        self.left_out: Counter[str] = Counter()
        self._assumed: Counter[str] = Counter()
        self._units: Counter[str] = Counter()
        self._known = known
        self._weights = weights
        self._sessions: dict[str, LoggedSession] = {}

    def log(self) -> SessionLog:
        ordered = sorted(self._sessions.values(), key=lambda session: (session.at, session.session_id))
        return SessionLog(ordered, dict(self.left_out), dict(self._assumed), dict(self._units))

    def take(
        self, row: Mapping[str, Any], query_vectors: Vectors | None = None, *, is_plain_request: bool = True
    ) -> None:
        try:
            session = self._session(row, query_vectors, is_plain_request=is_plain_request)
        except Unusable as reason:
            self.left_out[str(reason)] += 1
        else:
            self._sessions[session.session_id] = session

    def _session(
        self, row: Mapping[str, Any], query_vectors: Vectors | None, *, is_plain_request: bool
    ) -> LoggedSession:
        session_id = id_of(row.get("session_id"))
        if session_id is None:
            raise Unusable("a session without a usable session_id")
        if session_id in self._sessions:
            raise Unusable("a session whose session_id was there before")
        user_id = id_of(row.get("user_id"))
        if user_id is None:
            raise Unusable("a session without a user: no later searches could be changed by it")
        read = milliseconds(row.get("timestamp"))
        if read is None:
            raise Unusable("a session without a usable timestamp")
        at, unit = read
        query = row.get("query")
        if not isinstance(query, str) or (not query.strip() and query_vectors is None):
            raise Unusable("a session without a query")
        self._units[unit] += 1
        return LoggedSession(
            session_id=session_id,
            user_id=user_id,
            query=query,
            at=at,
            shown=tuple(dict.fromkeys(self._shown(row.get("results")))),
            clicks=tuple(sorted(self._clicks(row.get("clicks"), at), key=lambda each: each.at)),
            query_vectors=query_vectors,
            is_plain_request=is_plain_request,
        )

    def _shown(self, results: object) -> Iterator[str]:
        for result in results if isinstance(results, list) else []:
            object_id = id_of(result.get("object_id") if isinstance(result, dict) else result)
            if object_id is None:
                self.left_out["a result without a usable object_id"] += 1
            else:
                yield object_id

    def _clicks(self, clicks: object, searched_at: int) -> Iterator[LoggedClick]:
        for click in clicks if isinstance(clicks, list) else []:
            given = click if isinstance(click, dict) else {"object_id": click}
            object_id, kind = id_of(given.get("object_id")), given.get("event_type", "click")
            read = milliseconds(given.get("t"))
            if object_id is None or not isinstance(kind, str) or not kind:
                self.left_out["a click without a usable object_id and event_type"] += 1
            elif self._weights.get(kind, 0) <= 0:
                self.left_out["an event of a type that says nothing for its object"] += 1
            elif object_id not in self._known:
                self.left_out["a click on an object that the collection does not have"] += 1
            elif given.get("t") is not None and read is None:
                self.left_out["a click without a usable time"] += 1
            elif read is not None and read[0] < searched_at:
                self.left_out["a click before its search"] += 1
            else:
                if read is None:
                    self._assumed["a click without a time is one at the time of its search"] += 1
                yield LoggedClick(object_id, searched_at if read is None else read[0], kind)


def _of_date(given: str) -> tuple[int, str] | None:
    try:
        read = datetime.fromisoformat(given)
        at = (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return (round(at * 1000), "ISO dates") if at >= 0 else None
