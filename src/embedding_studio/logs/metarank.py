"""Metarank's JSON Lines: rankings, whose field ``query`` was searched, and interactions with their items."""

from collections.abc import Sequence

from embedding_studio.logs.entries import (
    Beside,
    Entry,
    Event,
    Row,
    Search,
    Unusable,
    first_of,
    id_of,
    objects_of,
    required_time,
    text_of,
    type_of,
)

KINDS = ("ranking", "interaction", "item", "user")


def speaks(row: Row) -> bool:
    return row.get("event") in KINDS and "timestamp" in row


def read(row: Row) -> Sequence[Entry]:
    match row.get("event"):
        case "ranking":
            return [_search(row)]
        case "interaction":
            return [_event(row)]
        case "item" | "user":
            raise Beside("what is known of an item or a user")
    raise Unusable("a row whose event is no ranking and no interaction")


def _search(row: Row) -> Search:
    search_id = id_of(row.get("id"))
    if search_id is None:
        raise Unusable("a ranking without a usable id")
    fields = row.get("fields")
    named = {
        each.get("name"): each.get("value")
        for each in (fields if isinstance(fields, list) else ())
        if isinstance(each, dict) and isinstance(each.get("name"), str)
    }
    if (query := text_of(named.get("query"))) is None:
        raise Unusable("a ranking without a field `query`: what was searched is unknown")
    user_id = id_of(first_of(row, "user", "session"))
    at = required_time(row, "timestamp")
    return Search(at, query, user_id, search_id, objects_of(row.get("items"), "id"))


def _event(row: Row) -> Event:
    object_id, event_type = id_of(row.get("item")), type_of(row.get("type"))
    if object_id is None or event_type is None:
        raise Unusable("an interaction without a usable item and type")
    return Event(
        at=required_time(row, "timestamp"),
        object_id=object_id,
        event_type=event_type,
        user_id=id_of(first_of(row, "user", "session")),
        search_id=id_of(row.get("ranking")),
        event_id=id_of(row.get("id")) or "",
    )
