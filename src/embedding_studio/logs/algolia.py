"""Algolia Insights: events, one a row, or the bodies of requests, ``{"events": [...]}``.

They name objects and the query by its id. What was searched is not in them: they belong to searches that are
recorded under this id.
"""

import re
from collections.abc import Sequence
from itertools import chain

from embedding_studio.logs.entries import (
    Beside,
    Entry,
    Event,
    Row,
    Unusable,
    first_of,
    id_of,
    position_of,
    required_time,
)

TYPES = {
    ("click", None): "click",
    ("view", None): "view",
    ("conversion", None): "conversion",
    ("conversion", "addToCart"): "add_to_cart",
    ("conversion", "purchase"): "purchase",
}
USER_TOKEN = re.compile(r"[a-zA-Z0-9_=/+-]{1,129}")
MAX_NAME_LENGTH = 64
MAX_OBJECTS = 20


def speaks(row: Row) -> bool:
    events = row.get("events")
    rows = events if isinstance(events, list) else [row]
    return any(isinstance(each, dict) and "eventType" in each and "userToken" in each for each in rows)


def read(row: Row) -> Sequence[Entry]:
    if isinstance(events := row.get("events"), list):
        if not all(isinstance(each, dict) for each in events):
            raise Unusable("events that are no JSON objects")
        return list(chain.from_iterable(map(read_event, events)))
    return read_event(row)


def read_event(row: Row) -> Sequence[Entry]:
    name = row.get("eventName")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_LENGTH:
        raise Unusable(f"eventName has 1 to {MAX_NAME_LENGTH} characters")
    kind, sort = row.get("eventType"), row.get("eventSubtype")
    event_type = TYPES.get((kind, sort)) if isinstance(kind, str) and isinstance(sort, str | None) else None
    if event_type is None:
        raise Unusable(
            "eventType is click, view or conversion; eventSubtype, of a conversion, addToCart or purchase"
        )
    token = first_of(row, "authenticatedUserToken", "userToken")
    if not isinstance(token, str) or not USER_TOKEN.fullmatch(token):
        raise Unusable("userToken has 1 to 129 letters, digits or characters of _=/+-")
    if "filters" in row and "objectIDs" not in row:
        raise Beside("an event about filters")
    objects, positions = row.get("objectIDs"), row.get("positions")
    if not isinstance(objects, list) or not 1 <= len(objects) <= MAX_OBJECTS:
        raise Unusable(f"objectIDs are a list of 1 to {MAX_OBJECTS} ids")
    ids = list(map(id_of, objects))
    if None in ids:
        raise Unusable("objectIDs are a list of ids")
    metas = list(map(position_of, positions)) if isinstance(positions, list) else [None] * len(ids)
    if positions is not None and (kind != "click" or len(metas) != len(ids) or None in metas):
        raise Unusable("positions belong to a click, count from 1 on, and are as many as objectIDs")
    at = required_time(row, "timestamp")
    query_id = id_of(row.get("queryID"))
    return [
        Event(at, object_id, event_type, token, query_id, meta=meta)
        for object_id, meta in zip(ids, metas, strict=True)
        if object_id is not None
    ]
