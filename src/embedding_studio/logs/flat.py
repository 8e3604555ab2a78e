"""Any table whose columns say who searched what, and did what with which object, and when.

A row with an object is an event, any other is a search. A column is found by our name for it, or by the name
that ``columns`` gives.
"""

from collections.abc import Mapping, Sequence

import orjson

from embedding_studio.errors import InvalidInputError
from embedding_studio.logs.entries import (
    Dialect,
    Entry,
    Event,
    Row,
    Search,
    Unusable,
    id_of,
    objects_of,
    position_of,
    required_time,
    text_of,
    type_of,
)

FIELDS = {
    "query": "what was searched",
    "user": "who",
    "time": "when",
    "object": "the object that something was done with; without one the row is a search",
    "type": "what was done: click if there is none",
    "search": "the id of the search",
    "results": "what was shown, best first: a JSON list, or ids with commas between",
    "position": "where the object stood, from 1 on",
    "event": "the id of the event",
}
"""What a column can hold."""


def mapping(given: str | None) -> dict[str, str]:
    """Return the column of each field, as ``query=search_term,user=visitor`` says.

    Raises:
        InvalidInputError: it names a field that there is not.
    """
    columns = {field: field for field in FIELDS}
    for each in given.split(",") if given else ():
        field, equals, column = each.partition("=")
        if not equals or not column.strip() or field.strip() not in FIELDS:
            raise InvalidInputError(
                f"the mapping has {each.strip()!r}; write FIELD=COLUMN, where FIELD is one of "
                f"{', '.join(FIELDS)}"
            )
        columns[field.strip()] = column.strip()
    return columns


def speaks(row: Row, columns: Mapping[str, str]) -> bool:
    return columns["time"] in row and (columns["query"] in row or columns["object"] in row)


def reader(columns: Mapping[str, str]) -> Dialect:
    """Return the dialect of a table with these columns."""
    in_query, in_object, in_user = columns["query"], columns["object"], columns["user"]

    def read(row: Row) -> Sequence[Entry]:
        at = required_time(row, columns["time"])
        query, named = text_of(row.get(in_query)), row.get(in_object)
        user_id, search_id = id_of(row.get(in_user)), id_of(row.get(columns["search"]))
        shown = _shown(row.get(columns["results"]))
        if named in (None, ""):
            if query is None:
                raise Unusable(f"a row without a query ({in_query}) and without an object ({in_object})")
            return [Search(at, query, user_id, search_id, shown)]
        object_id, kind = id_of(named), row.get(columns["type"])
        event_type = "click" if kind in (None, "") else type_of(str(kind))
        if object_id is None or event_type is None:
            raise Unusable("a row without a usable object or type")
        event = Event(
            at=at,
            object_id=object_id,
            event_type=event_type,
            user_id=user_id,
            search_id=search_id,
            query=query,
            event_id=id_of(row.get(columns["event"])) or "",
            meta=position_of(row.get(columns["position"])),
        )
        return (
            [event] if not shown or query is None else [Search(at, query, user_id, search_id, shown), event]
        )

    return read


def _shown(given: object) -> tuple[str, ...]:
    if given in (None, ""):
        return ()
    if isinstance(given, str):
        if given.startswith("["):
            try:
                given = orjson.loads(given)
            except orjson.JSONDecodeError:
                raise Unusable("a row whose results are no JSON list") from None
        else:
            given = [each.strip() for each in given.split(",")]
    return objects_of(given)
