"""Segment's tracks by its e-commerce specification: they name users and products, and no search."""

from collections.abc import Sequence

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
    type_of,
)

TYPES = {
    "Product Clicked": "click",
    "Product Viewed": "view",
    "Product Added": "add_to_cart",
    "Order Completed": "purchase",
}
CALLS = ("track", "page", "identify")
LISTS = ("Product List Viewed", "Product List Filtered")
TIMES = ("timestamp", "originalTimestamp", "sentAt", "receivedAt")


def speaks(row: Row) -> bool:
    return row.get("type") in CALLS and ("messageId" in row or "anonymousId" in row)


def read(row: Row) -> Sequence[Entry]:
    if row.get("type") != "track":
        raise Beside("a call that tracks nothing (page, identify, ...)")
    properties, name = row.get("properties"), row.get("event")
    if not isinstance(properties, dict) or not isinstance(name, str):
        raise Unusable("a track without an event and its properties")
    at = required_time(row, *TIMES)
    user_id = id_of(first_of(row, "userId", "anonymousId"))
    if user_id is None:
        raise Unusable("a track without a userId or anonymousId, so the search that it belongs to is unknown")
    if name == "Products Searched":
        if (query := text_of(properties.get("query"))) is None:
            raise Unusable("Products Searched without a query")
        return [Search(at, query, user_id)]
    products = objects_of(properties.get("products") or [properties], "product_id", "sku", "id")
    if name in LISTS:
        return [Shown(at, user_id, products)]
    event_type = TYPES.get(name) or type_of(name)
    if not products or event_type is None:
        raise Beside("a track about no product")
    message_id = id_of(row.get("messageId"))
    meta = position_of(properties.get("position"))
    return [
        Event(
            at,
            product,
            event_type,
            user_id,
            event_id=id_of(f"{message_id}/{product}") or "" if message_id else "",
            meta=meta,
        )
        for product in products
    ]
