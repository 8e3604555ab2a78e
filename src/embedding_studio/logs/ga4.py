"""Google Analytics 4 as BigQuery exports it; it names no search, but users and items.

``event_timestamp`` is in microseconds, and ``event_params`` are a list of keys with a value of some type.
"""

from collections.abc import Sequence
from typing import Any

from embedding_studio.logs.entries import (
    Beside,
    Entry,
    Event,
    Row,
    Search,
    Shown,
    Unusable,
    first_of,
    id_of,
    objects_of,
    position_of,
    required_time,
    text_of,
    whole_of,
)

SEARCHES = ("view_search_results", "search")
POSITIONS = ("item_list_index", "index")
"""As BigQuery names it, where it is a text, and as it is sent."""
TYPES = {"select_item": "click", "view_item": "view", "add_to_cart": "add_to_cart", "purchase": "purchase"}


def speaks(row: Row) -> bool:
    return "event_name" in row and "event_timestamp" in row


def read(row: Row) -> Sequence[Entry]:
    name = row.get("event_name")
    if name not in (*SEARCHES, "view_item_list", *TYPES):
        raise Beside("an event about no search and no item")
    at = required_time(row, "event_timestamp")
    user_id = id_of(first_of(row, "user_id", "user_pseudo_id"))
    if user_id is None:
        raise Unusable(
            "an event without a user_id or user_pseudo_id, so the search that it belongs to is unknown"
        )
    if name in SEARCHES:
        if (query := text_of(_parameters(row).get("search_term"))) is None:
            raise Unusable("a search without a search_term")
        return [Search(at, query, user_id)]
    items = row.get("items")
    listed = [each for each in items if isinstance(each, dict)] if isinstance(items, list) else []
    if name == "view_item_list":
        in_order = sorted(listed, key=lambda item: _index(first_of(item, *POSITIONS)))
        return [Shown(at, user_id, objects_of(in_order, "item_id"))]
    events: list[Entry] = [
        Event(at, object_id, TYPES[name], user_id, meta=position_of(first_of(item, *POSITIONS)))
        for item in listed
        if (object_id := id_of(item.get("item_id"))) is not None
    ]
    if not events:
        raise Unusable("an event without a usable item_id")
    return events


def _parameters(row: Row) -> dict[str, Any]:
    """Return event_params by key, whatever the type of each value."""
    given = row.get("event_params")
    if isinstance(given, dict):
        return given
    parameters: dict[str, Any] = {}
    for each in given if isinstance(given, list) else ():
        if isinstance(each, dict) and isinstance(each.get("key"), str):
            value = each.get("value")
            parameters[each["key"]] = (
                first_of(value, "string_value", "int_value", "double_value")
                if isinstance(value, dict)
                else value
            )
    return parameters


def _index(given: object) -> float:
    """Return where an item stood; those that do not say come last, in their order."""
    index = whole_of(given)
    return float("inf") if index is None else index
