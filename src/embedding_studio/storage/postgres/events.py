"""Events into PostgreSQL, and what becomes of each."""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence

from embedding_studio.domain.sessions import CLOCK_SECONDS, EventDisposition, SessionEvent
from embedding_studio.domain.storable import as_json
from embedding_studio.storage.ports import WAITING_SECONDS, EventContent, admit, room_of
from embedding_studio.storage.postgres.database import Connection, only_row, text_array
from embedding_studio.storage.postgres.orders import place
from embedding_studio.storage.postgres.queue import mark_learnt
from embedding_studio.storage.postgres.schema import SESSION_LOCK
from embedding_studio.storage.postgres.sessions import Row, as_rows
from embedding_studio.storage.postgres.sql import statements

_SQL = statements("clickstream.sql")


def push(
    connection: Connection,
    events: Sequence[SessionEvent],
    order_on: Container[str],
    longer: Sequence[str] = (),
) -> list[EventDisposition]:
    """Record events, and place orders.

    Args:
        longer: sessions that show something new; who has orders for them is marked in the same statement as
            those who clicked, for rows of the queue are locked in one order.
    """
    if not events:
        mark_learnt(connection, longer)
        return []
    first: dict[tuple[str, str], SessionEvent] = {}
    for event in events:
        first.setdefault((event.session_id, event.event_id), event)
    given = {
        "known_ids": text_array(sorted({session_id for session_id, _ in first})),
        "session_ids": text_array([session_id for session_id, _ in first]),
        "event_ids": text_array([event_id for _, event_id in first]),
        "object_ids": text_array([event.object_id for event in first.values()]),
        "event_types": text_array([event.event_type for event in first.values()]),
        "created_ats": text_array([str(event.created_at) for event in first.values()]),
        "metas": text_array(
            ["" if event.meta is None else as_json(event.meta).decode() for event in first.values()]
        ),
    }
    found = dict(zip(first, connection.execute(_SQL["push"], given, binary=True).fetchall(), strict=True))
    touched = {
        session_id
        for (session_id, event_id), (_, is_new, *_) in found.items()
        if is_new and first[session_id, event_id].event_type in order_on
    }
    if touched:
        place(connection, sorted(touched), also=with_orders(connection, longer))
    else:
        mark_learnt(connection, longer)
    return _dispositions(events, first, found)


def push_early(
    connection: Connection,
    events: Sequence[SessionEvent],
    order_on: Container[str],
    *,
    most_waiting: int,
    sender: str,
) -> list[EventDisposition]:
    """Record events of sessions that were not recorded just now; let those wait that still are not."""
    session_ids = list({event.session_id for event in events})
    connection.execute(_SQL["lock_ids"], {"lock_class": SESSION_LOCK, "session_ids": session_ids})
    became = push(connection, events, order_on)
    with connection.pipeline():
        connection.execute(_SQL["drop_waiting"], {"now": None, "seconds": WAITING_SECONDS})
        there = connection.execute(_SQL["waiting"], {"session_ids": session_ids})
        counted = connection.execute(_SQL["count_waiting"], {"sender": sender})
    waiting: dict[str, dict[str, EventContent]] = defaultdict(dict)
    for session_id, event_id, *content in there:
        waiting[session_id][event_id] = content[0], content[1]
    number, held = only_row(counted)
    room = room_of(sender, free=most_waiting - number, held=held)
    told, admitted = admit(of_unknown_sessions(events, became), waiting, room)
    if admitted:
        given = {"events": as_rows(map(vars, admitted)), "sender": sender}
        connection.execute(_SQL["let_wait"], given)
    return completed(became, told)


def with_orders(connection: Connection, session_ids: Sequence[str]) -> list[str]:
    """Return those sessions that have orders."""
    if not session_ids:
        return []
    found = connection.execute(_SQL["ordered"], {"session_ids": list(session_ids)})
    return [session_id for (session_id,) in found]


def _dispositions(
    events: Sequence[SessionEvent],
    first: Mapping[tuple[str, str], SessionEvent],
    found: Mapping[tuple[str, str], Row],
) -> list[EventDisposition]:
    """Return what became of events, by what the statement ``push`` tells of the first of each id."""
    became = []
    told = set()
    for event in events:
        key = event.session_id, event.event_id
        is_known, is_new, is_shown, searched_at, stored = found[key]
        is_repeated = key in told
        told.add(key)
        if not is_known:
            became.append(EventDisposition.UNKNOWN_SESSION)
        elif is_repeated or not is_new:
            there = stored or [first[key].object_id, first[key].event_type]
            is_equal = there == [event.object_id, event.event_type]
            became.append(EventDisposition.DUPLICATE if is_equal else EventDisposition.CONFLICT)
        elif event.created_at < searched_at - CLOCK_SECONDS:
            became.append(EventDisposition.TOO_EARLY)
        else:
            became.append(EventDisposition.ACCEPTED if is_shown else EventDisposition.UNKNOWN_OBJECT)
    return became


def of_unknown_sessions(
    events: Sequence[SessionEvent], became: Sequence[EventDisposition]
) -> list[SessionEvent]:
    """Return those events whose sessions are not recorded."""
    unknown = EventDisposition.UNKNOWN_SESSION
    return [event for event, each in zip(events, became, strict=True) if each is unknown]


def completed(
    became: Sequence[EventDisposition], of_unknown: Sequence[EventDisposition]
) -> list[EventDisposition]:
    """Return what became of events, with what became of those whose sessions are not recorded."""
    told = iter(of_unknown)
    return [next(told) if each is EventDisposition.UNKNOWN_SESSION else each for each in became]
