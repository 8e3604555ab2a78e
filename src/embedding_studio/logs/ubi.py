"""OpenSearch User Behavior Insights 1.3.0: rows of ``ubi_queries`` and of ``ubi_events``, mixed or apart.

Its published schema refuses its own samples, so what is in use is read: three spellings of the ids that were
found, times in ISO 8601 or since 1970, documents as they are dumped from an index (``_source``). A user is
``user_id``, or else ``client_id``.
"""

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
    position_of,
    required_time,
    text_of,
    type_of,
)

HITS = ("query_response_hit_ids", "query_response_object_ids", "query_response_objects_ids")


def speaks(row: Row) -> bool:
    row = _document(row)
    return "action_name" in row or ("user_query" in row and ("query_id" in row or "client_id" in row))


def read(row: Row) -> Sequence[Entry]:
    row = _document(row)
    user_id = id_of(first_of(row, "user_id", "client_id"))
    search_id = id_of(row.get("query_id"))
    if "action_name" not in row:
        if (query := text_of(row.get("user_query"))) is None:
            raise Unusable("a query without a user_query")
        hits = first_of(row, *HITS)
        shown = objects_of([each.strip() for each in hits.split(",")] if isinstance(hits, str) else hits)
        return [Search(required_time(row, "timestamp"), query, user_id, search_id, shown)]
    event_type = type_of(row["action_name"])
    if event_type is None:
        raise Unusable("an event without a usable action_name")
    attributes = _inside(row, "event_attributes")
    named = _inside(attributes, "object").get("object_id")
    if named in (None, ""):
        raise Beside("an event about no object")
    if (object_id := id_of(named)) is None:
        raise Unusable("an event without a usable object_id")
    return [
        Event(
            at=required_time(row, "timestamp"),
            object_id=object_id,
            event_type=event_type,
            user_id=user_id,
            search_id=search_id,
            query=text_of(row.get("user_query")),
            meta=position_of(_inside(attributes, "position").get("ordinal")),
        )
    ]


def _document(row: Row) -> Row:
    source = row.get("_source")
    return source if isinstance(source, dict) else row


def _inside(row: Row, key: str) -> Row:
    value = row.get(key)
    return value if isinstance(value, dict) else {}
