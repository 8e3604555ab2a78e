"""What another system keeps already, or finds for us: attach, reconcile."""

from dataclasses import asdict
from typing import Annotated

import typer

from embedding_studio.cli.console import (
    AsJson,
    CollectionArgument,
    err,
    opened_context,
    print_value,
    tell,
)
from embedding_studio.domain.index import MetricType
from embedding_studio.errors import InvalidInputError, counted


def attach(
    collection: Annotated[
        str | None, typer.Argument(help="Name of the collection. Default: that of the table.")
    ] = None,
    *,
    table: Annotated[
        str,
        typer.Option(
            help="The table or view as in SQL, `products` or `shop.products`; or its name in another store."
        ),
    ],
    object_id: Annotated[
        str | None,
        typer.Option(
            "--id", help="Its column of ids. Default: id; Qdrant's ids of points, Milvus's primary key."
        ),
    ] = None,
    vector: Annotated[
        str | None,
        typer.Option(
            help="Its column of vectors. Default: embedding; the only one elsewhere, Qdrant's without a name."
        ),
    ] = None,
    payload: Annotated[
        list[str] | None,
        typer.Option(help="A column that filters and results see; may be given again. Default: all others."),
    ] = None,
    document: Annotated[
        str | None, typer.Option(help="A column of JSON that is the payload, instead of columns.")
    ] = None,
    metric: Annotated[
        MetricType | None,
        typer.Option(help="How vectors are compared. Default: as its index does, or cosine."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(help="The name in ATTACHED_STORES of where it is. Default: the database of all else."),
    ] = None,
) -> None:
    """Make a collection of what is in pgvector, Qdrant, Milvus or LanceDB: only read, and nothing is copied.

    Its own index finds what is near. What users do is kept beside it, and bends what they find.
    """
    from embedding_studio.storage.attached import ByCollection

    name = collection or table.rpartition(".")[2].strip('"')
    with opened_context() as context:
        known = context.attach(
            name,
            table,
            object_id=object_id,
            vector=vector,
            payload=payload or (),
            document=document,
            metric_type=metric,
            store=store,
        )
        objects = context.storage.objects
        if isinstance(objects, ByCollection) and (examined := objects.examined(known)) is not None:
            for advice in examined.advice:
                tell("warning", advice)
        number = objects.count(known)
    held = counted(number, "object", spec=",")
    err.print(f"There is a collection {known.name!r} of {held}: {known.kind()}.")


def reconcile(
    collection: CollectionArgument,
    *,
    take_over: Annotated[
        bool, typer.Option(help="Fill it from this database, which is a copy, or was restored or upgraded.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare a collection with the store that finds or keeps its objects, and mend what differs.

    Of one that is filled from here it counts objects that were missing there or stale, and points that were
    left over, and mends them there. Of one that is attached, which is only read, it counts objects that
    something was learnt from, and that changed or are gone: who met them is re-learnt.
    """
    from embedding_studio.storage.attached import ByCollection
    from embedding_studio.storage.attached import reconcile as compare

    with opened_context() as context:
        known = context.storage.collections.get(collection)
        objects = context.storage.objects
        if known.filled is not None and isinstance(objects, ByCollection):
            found = asdict(objects.filling.reconcile(known, takes_over=take_over))
        elif known.attached is not None:
            found = asdict(compare(context.storage, known))
        else:
            raise InvalidInputError(
                f"{known.name!r} is kept and found here alone: there is nothing to compare"
            )
    print_value(found, as_json=as_json)
