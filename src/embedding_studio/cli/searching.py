"""Search, in a table that says why."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.table import Table

from embedding_studio.cli.console import (
    AsJson,
    InCollection,
    PayloadFilterOption,
    json_filter,
    out,
    payload_line,
    print_value,
)
from embedding_studio.cli.services import Service, Url, opened_service
from embedding_studio.client.answers import FoundObject, FoundPage
from embedding_studio.domain import DEFAULT_COLLECTION, DEFAULT_LIMIT
from embedding_studio.domain.explanations import Explanation, why
from embedding_studio.errors import AccessDeniedError


def search(
    query: Annotated[str, typer.Argument(help="A text, or a vector as a JSON list of numbers.")],
    *,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Personalise for this user.")] = None,
    collection: InCollection = DEFAULT_COLLECTION,
    limit: Annotated[int, typer.Option(min=1, help="Results on a page.")] = DEFAULT_LIMIT,
    offset: Annotated[int, typer.Option(min=0, help="Results to leave out at the top.")] = 0,
    max_distance: Annotated[float | None, typer.Option(help="Nothing further away.")] = None,
    where: PayloadFilterOption = None,
    explain: Annotated[bool, typer.Option(help="Say all that moved each result.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Search a collection, personalised where a user is given, and say what clicks moved."""
    asked = {
        "user_id": user,
        "collection": collection,
        "limit": limit,
        "offset": offset,
        "max_distance": max_distance,
    }
    with opened_service(url) as service:
        asked["filter"] = json_filter(where)
        page = _page(service, _vector_or_text(query), asked, explain=explain, for_people=not as_json)
    if as_json:
        print_value(page, as_json=True)
    else:
        out.print(_table(page, explain=explain))


def _page(
    service: Service, query: str | list[Any], asked: dict[str, Any], *, explain: bool, for_people: bool
) -> FoundPage:
    """Return a page, for people with explanations: as far as the key may read these."""
    if explain or not for_people:
        return service.search(query, explain=explain, **asked)
    try:
        return service.search(query, explain=True, **asked)
    except AccessDeniedError:
        return service.search(query, **asked)


def _table(page: FoundPage, *, explain: bool) -> Table:
    reasons = [_reason(each) for each in page.results]
    says_why = any(reasons)
    table = Table("#", "object", "distance")
    if says_why:
        table.add_column("why", ratio=2)
    table.add_column("payload", ratio=3, no_wrap=not explain, overflow="fold" if explain else "ellipsis")
    for result, reason in zip(page.results, reasons, strict=True):
        told = [payload_line(result.payload)]
        if explain and reason and result.explanation is not None:
            told.extend(_details(result.explanation))
        columns = (str(result.position), result.object_id, f"{result.distance:.4f}")
        table.add_row(*columns, *([reason] if says_why else []), "\n".join(told))
    return table


def _reason(result: FoundObject) -> str:
    """Return why a result is where it is, or only that it was moved, where the key may not read more."""
    if result.explanation is None:
        return "moved by clicks" if result.personalised else ""
    return why(result.object_id, result.explanation)


def _details(told: Explanation) -> Iterator[str]:
    yield (
        f"distance {told.base_distance:.4f} for anybody, {told.shifted_distance:.4f} by the shifted query, "
        f"{told.distance:.4f} now; own vectors count {told.gate:.0%}"
    )
    for each in told.influences:
        past = f"{each.search_query!r} ({', '.join(each.clicked_ids)})"
        yield f"{each.distance_change:+.4f} by {past}, which counts {each.gate:.0%}"
    if told.shared is not None:
        yield (
            f"{told.shared.distance_change:+.4f} by what {told.shared.users} others clicked, "
            f"which counts {told.shared.gate:.0%}"
        )


def _vector_or_text(query: str) -> str | list[Any]:
    """Return the vectors that a JSON list of numbers, or of such lists, is; any other text as it is."""
    if not query.lstrip().startswith("["):
        return query
    try:
        given = json.loads(query)
    except (ValueError, RecursionError):
        return query
    rows = given if all(isinstance(row, list) for row in given) else [given]
    numbers = [number for row in rows for number in row]
    is_vectors = bool(numbers) and all(type(number) in {int, float} for number in numbers)
    return given if is_vectors else query
