"""Sessions and events in PostgreSQL."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any

from psycopg import sql

from embedding_studio.domain.objects import Collection
from embedding_studio.domain.sessions import (
    TAKEN_BACK,
    EventDisposition,
    FurtherPage,
    RecordedSession,
    Recording,
    SearchResultItem,
    Session,
    SessionDisposition,
    SessionEvent,
    check_kind,
)
from embedding_studio.storage.ports import (
    WAITING_SECONDS,
    Removed,
    SessionOwner,
    Vectors,
    require_shown,
)
from embedding_studio.storage.postgres.collections import (
    list_collections,
    lock_names,
    names_of,
)
from embedding_studio.storage.postgres.database import (
    Connection,
    Database,
    only_row,
)
from embedding_studio.storage.postgres.events import (
    completed,
    of_unknown_sessions,
    push,
    push_early,
    with_orders,
)
from embedding_studio.storage.postgres.orders import place
from embedding_studio.storage.postgres.quarantine import forget
from embedding_studio.storage.postgres.queue import mark_learnt
from embedding_studio.storage.postgres.recording import (
    ask_insert,
    continue_recorded,
    insert_awaited,
    known_rows,
    not_found,
    require_same,
    show_new,
    stored_rows,
)
from embedding_studio.storage.postgres.schema import SESSION_LOCK, USER_LOCK
from embedding_studio.storage.postgres.sessions import (
    Row,
    built_session,
    event_of,
    packed_query,
    results_of,
    unpacked_query,
)
from embedding_studio.storage.postgres.sql import in_schema, statements
from embedding_studio.storage.postgres.votes import ask_voted, replace_votes

PAGE = 500
"""Sessions read at once."""
NEVER = 2**63 - 1
LAST_ID = "\U0010ffff"
"""After every session_id, in the order of its UTF-8 bytes."""

_SQL = statements("clickstream.sql")


class PostgresClickstream:
    def __init__(self, database: Database, order_on: Container[str], waiting_events: int) -> None:
        self._database = database
        self._order_on = order_on
        self._waiting_events = waiting_events

    def record(self, sessions: Sequence[RecordedSession]) -> list[Recording]:
        first: dict[str, RecordedSession] = {}
        for each in sessions:
            first.setdefault(each.session.session_id, each)

        def work(connection: Connection) -> list[Recording]:
            new, waited = insert_awaited(connection, list(first.values()))
            is_new = [key in new and first[key] is each for key, each in zip(keys, sessions, strict=True)]
            known = [each.session for each, fresh in zip(sessions, is_new, strict=True) if not fresh]
            added, longer = continue_recorded(connection, known)
            continued = iter(added)
            dispositions = [SessionDisposition.RECORDED if fresh else next(continued) for fresh in is_new]
            events = [
                () if became is SessionDisposition.TAKEN else each.session.events
                for each, became in zip(sessions, dispositions, strict=True)
            ]
            pushed = [*chain.from_iterable(events), *waited]
            told = iter(push(connection, pushed, self._order_on, longer))
            return [
                Recording(became, tuple(islice(told, len(theirs))))
                for became, theirs in zip(dispositions, events, strict=True)
            ]

        keys = [each.session.session_id for each in sessions]
        if len(sessions) == 1 and self._insert_alone(sessions[0]):
            return [Recording(SessionDisposition.RECORDED)]
        return self._database.write(work)

    def register_session(
        self, session: Session, query_vectors: Vectors | None = None, *, sender: str = ""
    ) -> bool:
        check_kind(session, Session, "the session")
        recorded = RecordedSession(session, query_vectors, sender)

        def work(connection: Connection) -> bool:
            new, waited = insert_awaited(connection, [recorded])
            if not new:
                row = known_rows(connection, [session])[session.session_id]
                require_same(row, session)
                there = results_of(row)
                require_shown(session, {result.object_id: result.position for result in there})
                return False
            push(connection, [*session.events, *waited], self._order_on)
            return True

        return self._insert_alone(recorded) or self._database.write(work)

    def append_results(
        self, session_id: str, results: Sequence[SearchResultItem], page: FurtherPage | None = None
    ) -> None:
        def work(connection: Connection) -> None:
            rows = stored_rows(connection, [session_id])
            if session_id not in rows:
                raise not_found(session_id)
            mark_learnt(connection, show_new(connection, rows, {session_id: results}, {session_id: pages}))

        pages = [] if page is None else [page]
        self._database.write(work)

    def push_events(
        self, events: Sequence[SessionEvent], *, may_wait: bool = True, sender: str = ""
    ) -> list[EventDisposition]:
        for number, each in enumerate(events):
            check_kind(each, SessionEvent, f"event {number}")
        became = self._database.write(lambda connection: push(connection, events, self._order_on))
        early = of_unknown_sessions(events, became)
        if not (early and may_wait and self._waiting_events):
            return became
        push_now = partial(
            push_early,
            events=early,
            order_on=self._order_on,
            most_waiting=self._waiting_events,
            sender=sender,
        )
        return completed(became, self._database.write(push_now))

    def waiting_events(self) -> int:
        number, _ = self._database.read(
            lambda connection: only_row(connection.execute(_SQL["count_waiting"], {"sender": ""}))
        )
        return int(number)

    def drop_waiting(self, now: float) -> int:
        given = {"now": now, "seconds": WAITING_SECONDS}
        return self._database.write(
            lambda connection: connection.execute(_SQL["drop_waiting"], given).rowcount, alone=True
        )

    def owners(self, session_ids: Iterable[str]) -> dict[str, SessionOwner]:
        given = {"session_ids": list(session_ids)}
        rows = self._database.read(lambda connection: connection.execute(_SQL["owners"], given).fetchall())
        return {session_id: SessionOwner(user_id, collection) for session_id, user_id, collection in rows}

    def get_session(self, session_id: str) -> Session:
        def work(connection: Connection) -> Session:
            row = connection.execute(
                _SQL["get_sessions"], {"session_ids": [session_id]}, binary=True
            ).fetchone()
            if row is None:
                raise not_found(session_id)
            return built_session(row, _events_of(connection, [session_id]).get(session_id, ()))

        return self._database.read(work)

    def scan(
        self,
        *,
        collection: Collection | None = None,
        user_id: str | None = None,
        since: int | None = None,
        until: int | None = None,
    ) -> Iterator[RecordedSession]:
        given = {"user_id": user_id, "until": NEVER if until is None else until, "limit": PAGE}
        at, session_id = -1 if since is None else since - 1, LAST_ID
        names = (
            None
            if collection is None
            else self._database.read(lambda connection: names_of(connection, collection))
        )
        while True:
            page = self._database.read(
                partial(
                    _page,
                    given=given | {"collections": names, "after_at": at, "after_id": session_id},
                )
            )
            yield from page
            if len(page) < PAGE:
                return
            at, session_id = page[-1].session.created_at, page[-1].session.session_id

    def latest(
        self,
        *,
        collection: Collection | None = None,
        user_id: str | None = None,
        before: tuple[int, str] | None = None,
        limit: int,
    ) -> list[Session]:
        def work(connection: Connection) -> list[Session]:
            names = None if collection is None else names_of(connection, collection)
            # Never prepared: which index is used depends on the values.
            rows = connection.execute(
                _SQL["latest"], given | {"collections": names}, prepare=False, binary=True
            ).fetchall()
            events = _events_of(connection, [row[0] for row in rows])
            return [built_session(row, events.get(row[0], ())) for row in rows]

        at, session_id = before or (NEVER, LAST_ID)
        given = {"user_id": user_id, "before_at": at, "before_id": session_id, "limit": limit}
        return self._database.read(work)

    def recent_queries(self, collection: Collection, limit: int) -> list[Vectors]:
        def work(connection: Connection) -> list[Vectors]:
            given = {
                "collections": names_of(connection, collection),
                "collection_id": collection.collection_id,
                "dimensions": collection.index.dimensions,
                "limit": limit,
            }
            rows = connection.execute(_SQL["recent_queries"], given, binary=True).fetchall()
            return [unpacked_query(query_vectors, dimensions) for query_vectors, dimensions in rows]

        return self._database.read(work)

    def recent_sessions(
        self, collection: Collection, user_ids: Sequence[str], limit_per_user: int
    ) -> dict[str, list[RecordedSession]]:
        def work(connection: Connection) -> dict[str, list[RecordedSession]]:
            given = {
                "user_ids": list(set(user_ids)),
                "collections": names_of(connection, collection),
                "limit_per_user": limit_per_user,
            }
            rows = connection.execute(_SQL["recent_sessions"], given, binary=True).fetchall()
            recent: dict[str, list[RecordedSession]] = {user_id: [] for user_id in user_ids}
            for each in _recorded(connection, rows):
                fits = each.query_vectors is not None and each.query_vectors.shape[1] == index.dimensions
                recent[each.session.user_id or ""].append(each if fits else replace(each, query_vectors=None))
            return recent

        index = collection.index

        return self._database.read(work)

    def latest_times(
        self, collection: Collection, user_ids: Sequence[str], limit_per_user: int
    ) -> dict[str, list[int]]:
        def work(connection: Connection) -> dict[str, list[int]]:
            given = {
                "user_ids": list(set(user_ids)),
                "collections": names_of(connection, collection),
                "limit_per_user": limit_per_user,
            }
            times: dict[str, list[int]] = {user_id: [] for user_id in user_ids}
            for user_id, at in connection.execute(_SQL["latest_times"], given):
                times[user_id].append(at)
            return times

        return self._database.read(work)

    def mark_irrelevant(self, session_id: str) -> None:
        given = {"session_ids": [session_id]}

        def work(connection: Connection) -> None:
            if connection.execute(_SQL["lock_sessions"], given).rowcount == 0:
                raise not_found(session_id)
            connection.execute(_SQL["mark_irrelevant"], given)
            if with_orders(connection, [session_id]):
                place(connection, [session_id])

        self._database.write(work)

    def disregard(self, sender: str) -> int:
        def work(connection: Connection, after: str) -> list[str]:
            given = {"sender": sender, "after": after, "limit": PAGE}
            page = [session_id for (session_id,) in connection.execute(_SQL["lock_of_sender"], given)]
            connection.execute(_SQL["mark_irrelevant"], {"session_ids": page})
            if ordered := with_orders(connection, page):
                place(connection, ordered)
            return page

        number, after = 0, ""
        while page := self._database.write(partial(work, after=after), is_upkeep=True):
            number, after = number + len(page), page[-1]
        return number

    def take_back(self, session_id: str, object_id: str) -> int:
        given = {"session_id": session_id, "object_id": object_id, "taken_back": TAKEN_BACK}

        def work(connection: Connection) -> int:
            connection.execute(_SQL["lock_ids"], {"lock_class": SESSION_LOCK, "session_ids": [session_id]})
            dropped = connection.execute(_SQL["drop_waiting_of"], given).rowcount
            locked = connection.execute(_SQL["lock_sessions"], {"session_ids": [session_id]}).rowcount
            if not locked and not dropped:
                raise not_found(session_id)
            taken = dropped + connection.execute(_SQL["take_back"], given).rowcount
            if taken and with_orders(connection, [session_id]):
                place(connection, [session_id])
            return taken

        return self._database.write(work)

    def remove_before(self, before: int, *, limit: int) -> Removed:
        def work(connection: Connection) -> Removed:
            rows = connection.execute(_SQL["lock_oldest"], {"before": before, "limit": limit}).fetchall()
            given = {"session_ids": [session_id for (session_id,) in rows]}
            mark_learnt(connection, given["session_ids"])
            (events,) = only_row(connection.execute(_SQL["count_events"], given))
            return Removed(connection.execute(_SQL["remove_sessions"], given).rowcount, events)

        return self._database.write(work, is_upkeep=True)

    def forget_user(self, user_id: str) -> dict[str, int]:
        given = {"user_id": user_id}

        def work(connection: Connection) -> dict[str, int]:
            lock_names(connection)
            lock_users(connection, [user_id])
            connection.execute(_SQL["lock_sessions_of_user"], given)
            collections = list_collections(connection)
            removed = _rows_of_user(connection, collections, user_id)
            for collection in collections:
                connection.execute(
                    in_schema("clickstream.sql", "forget_state", collection.collection_id), given
                )
                voted = ask_voted(connection, collection, [user_id])
                replace_votes(connection, collection, {user_id: ()}, voted)
            forget(connection, user_id)
            connection.execute(_SQL["forget_entries"], given)
            connection.execute(_SQL["forget_sessions"], given)
            return removed

        return self._database.write(work)

    def _insert_alone(self, recorded: RecordedSession) -> bool:
        """Record a new session that brings no events, and for which none wait; return whether it is one."""

        def work(connection: Connection) -> bool:
            return ask_insert(connection, [recorded], is_all=True).fetchone() is not None

        # Alone it is a transaction, without the round trips of one.
        return not recorded.session.events and self._database.write(work, alone=True)


def _rows_of_user(connection: Connection, collections: Sequence[Collection], user_id: str) -> dict[str, int]:
    """Return how many rows each table has that are a user's, or of their sessions."""
    schemas = ["embedding_studio", *(f"collection_{each.collection_id}" for each in collections)]
    removed: dict[str, int] = {}
    for schema, table, names_user in connection.execute(
        _SQL["tables_of_users"], {"schemas": schemas}
    ).fetchall():
        count = _SQL["count_of_user" if names_user else "count_of_sessions"]
        statement = count.format(table=sql.Identifier(schema, table))
        (number,) = only_row(connection.execute(statement, {"user_id": user_id}))
        removed[table] = removed.get(table, 0) + number
    return removed


def lock_users(connection: Connection, user_ids: Sequence[str]) -> None:
    """Keep everybody else from changing what is learnt about these users till the commit."""
    connection.execute(_SQL["lock_users"], {"lock_class": USER_LOCK, "user_ids": list(user_ids)})


def keep_query_vectors(connection: Connection, vectors: Mapping[str, Vectors]) -> None:
    """Keep query vectors, [Q, D] by session id."""
    if not vectors:
        return
    columns = [packed_query(parts) for parts in vectors.values()]
    given = {
        "session_ids": list(vectors),
        "query_vectors": [column["query_vectors"] for column in columns],
        "query_dimensions": [column["query_dimensions"] for column in columns],
    }
    connection.execute(_SQL["store_query_vectors"], given)


def _events_of(connection: Connection, session_ids: Sequence[str]) -> dict[str, tuple[SessionEvent, ...]]:
    """Return events by time, under the id of their session."""
    rows = connection.execute(_SQL["events"], {"session_ids": list(session_ids)}, binary=True)
    return {key: tuple(map(event_of, theirs)) for key, theirs in groupby(rows, itemgetter(0))}


def _page(connection: Connection, given: dict[str, Any]) -> list[RecordedSession]:
    # Never prepared: which index is used depends on the values.
    rows = connection.execute(_SQL["scan"], given, prepare=False, binary=True).fetchall()
    return _recorded(connection, rows)


def _recorded(connection: Connection, rows: Sequence[Row]) -> list[RecordedSession]:
    """Return sessions, whole, of their rows, with the sender and the columns of the query's vectors last."""
    events = _events_of(connection, [row[0] for row in rows])
    return [
        RecordedSession(
            built_session(tuple(fields), events.get(fields[0], ())),
            None if query_vectors is None else unpacked_query(query_vectors, dimensions),
            sender or "",
        )
        for *fields, sender, query_vectors, dimensions in rows
    ]
