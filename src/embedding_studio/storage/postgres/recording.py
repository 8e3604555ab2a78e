"""Sessions into PostgreSQL: recorded once, and continued where they show more."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from psycopg import Cursor

from embedding_studio.domain.sessions import (
    FurtherPage,
    RecordedSession,
    SearchResultItem,
    Session,
    SessionDisposition,
    SessionEvent,
)
from embedding_studio.errors import ConflictError, SessionNotFoundError
from embedding_studio.storage.postgres.collections import find_collection, names_by_alias
from embedding_studio.storage.postgres.database import Connection, GoneError, text_array
from embedding_studio.storage.postgres.schema import SESSION_LOCK
from embedding_studio.storage.postgres.sessions import (
    FIRST_OF_SHOWN,
    Row,
    as_rows,
    difference,
    event_of,
    longer_row,
    session_row,
)
from embedding_studio.storage.postgres.sql import statements

_SQL = statements("clickstream.sql")


def insert_awaited(
    connection: Connection, recorded: Sequence[RecordedSession]
) -> tuple[set[str], list[SessionEvent]]:
    """Record sessions of different ids; return the ids of those that are new, and what waited for them."""
    session_ids = text_array([each.session.session_id for each in recorded])
    with connection.pipeline():  # no events begin to wait for these sessions until the commit
        connection.execute(_SQL["share_ids"], {"lock_class": SESSION_LOCK, "session_ids": session_ids})
        inserted = ask_insert(connection, recorded)
    new = {session_id for (session_id,) in inserted}
    if not new:
        return new, []
    return new, [
        event_of(row) for row in connection.execute(_SQL["join_waiting"], {"session_ids": text_array([*new])})
    ]


def ask_insert(
    connection: Connection, recorded: Sequence[RecordedSession], *, is_all: bool = False
) -> Cursor[Row]:
    """Record sessions of different ids with what they show; the answer are the ids of those that are new.

    Args:
        is_all: whether nothing else is done in this transaction: not those for which events wait.
    """
    given = {"sessions": as_rows(map(session_row, recorded)), "is_all": is_all, "lock_class": SESSION_LOCK}
    return connection.execute(_SQL["insert_sessions"], given)


def continue_recorded(
    connection: Connection, sessions: Sequence[Session]
) -> tuple[list[SessionDisposition], list[str]]:
    """Add to what sessions that are recorded already have shown.

    Returns:
        One disposition each, in order, and the ids of those that show something new.
    """
    if not sessions:
        return [], []
    rows = known_rows(connection, sessions)
    differences = [difference(rows[session.session_id], session) for session in sessions]
    names = (
        names_by_alias(connection) if any(each and each[0] == "collection" for each in differences) else {}
    )
    is_same = [
        each is None or _is_of_name(each, session, names)
        for session, each in zip(sessions, differences, strict=True)
    ]
    shown: dict[str, list[SearchResultItem]] = defaultdict(list)
    pages: dict[str, list[FurtherPage]] = defaultdict(list)
    for session, same in zip(sessions, is_same, strict=True):
        if same:
            shown[session.session_id] += session.search_results
            pages[session.session_id] += session.as_further_pages()
    became = [SessionDisposition.CONTINUED if same else SessionDisposition.TAKEN for same in is_same]
    return became, show_new(connection, rows, shown, pages)


def known_rows(connection: Connection, sessions: Sequence[Session]) -> dict[str, Row]:
    """Return the rows of sessions, as ``stored_rows`` does.

    Raises:
        CollectionNotFoundError: one is not stored, and its collection does not exist.
        GoneError: one is not stored, for its user was forgotten just now.
    """
    rows = stored_rows(connection, [session.session_id for session in sessions])
    for session in sessions:
        if session.session_id not in rows:
            find_collection(connection, session.collection)
            raise GoneError(f"session {session.session_id!r} was removed just now; send it again")
    return rows


def stored_rows(connection: Connection, session_ids: Sequence[str]) -> dict[str, Row]:
    """Return the rows of sessions by id."""
    rows = connection.execute(_SQL["get_sessions"], {"session_ids": list(session_ids)}, binary=True)
    return {row[0]: row for row in rows}


def show_new(
    connection: Connection,
    rows: Mapping[str, Row],
    shown: Mapping[str, Sequence[SearchResultItem]],
    pages: Mapping[str, Sequence[FurtherPage]],
) -> list[str]:
    """Add what sessions show for the first time, by session_id; return which show something new.

    Of these the users are to be marked who have orders, for what was passed over is learnt from too. A page
    shown again teaches nothing.

    Args:
        rows: of the sessions, as they were just now.
        pages: session_id -> on which pages they are shown, as far as that is known.
    """
    longer = [
        session_id
        for session_id, results in shown.items()
        if not {result.object_id for result in results} <= set(rows[session_id][FIRST_OF_SHOWN])
    ]
    if not longer:
        return []
    with connection.pipeline():
        locked = connection.execute(_SQL["lock_sessions"], {"session_ids": longer})
        now = connection.execute(_SQL["get_sessions"], {"session_ids": longer}, binary=True)
    locked.fetchall()
    added = (longer_row(row, shown[row[0]], pages[row[0]]) for row in now)
    connection.execute(_SQL["show"], {"shown": as_rows(added)})
    return longer


def not_found(session_id: str) -> SessionNotFoundError:
    return SessionNotFoundError(f"session {session_id!r} was never registered; register it first")


def require_same(row: Row, session: Session) -> None:
    found = difference(row, session)
    if found is not None:
        what, value = found
        raise ConflictError(
            f"session {session.session_id!r} has {what} {value!r} already, not "
            f"{getattr(session, what)!r}; give each search a session_id of its own"
        )


def _is_of_name(found: tuple[str, str | None], session: Session, names: Mapping[str, str]) -> bool:
    """Return whether all that differs is the name for one collection, which has aliases."""
    what, ours = found
    return (
        what == "collection" and len({names.get(str(each), each) for each in (ours, session.collection)}) == 1
    )
