"""What is done to a collection's objects without embedding: read all, prune, replace payloads."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import JSON, CatalogueObject, Collection
from embedding_studio.embedders import Embedder
from embedding_studio.embedders.names import mismatch_of_prompts, prompt_of
from embedding_studio.errors import ConflictError
from embedding_studio.indexing.batches import BATCH_OBJECTS
from embedding_studio.storage.ports import Storage

T = TypeVar("T")


def every_object(
    storage: Storage,
    collection: Collection,
    *,
    filter: PayloadFilter | None = None,  # noqa: A002, the port's name
) -> Iterator[CatalogueObject]:
    """Yield the objects of a collection by object_id, read page by page."""
    after: str | None = None
    while page := storage.objects.scroll(collection, after=after, limit=BATCH_OBJECTS, filter=filter):
        yield from page
        if len(page) < BATCH_OBJECTS:
            return
        after = page[-1].object_id


def prune(storage: Storage, collection: Collection, named: AbstractSet[str], *, dry_run: bool = False) -> int:
    """Remove the objects that are not ``named``; return how many they are.

    Args:
        dry_run: remove nothing.
    """
    others = (each.object_id for each in every_object(storage, collection) if each.object_id not in named)
    return sum(
        len(batch) if dry_run else storage.objects.delete(collection, batch)
        for batch in _sliced(others, BATCH_OBJECTS)
    )


@dataclass(frozen=True, slots=True)
class PayloadsReport:
    """How many payloads were replaced, and how many ids there is no object of."""

    updated: int
    unknown: int


def update_payloads(
    storage: Storage,
    collection: Collection,
    payloads: Iterable[tuple[str, JSON]],
    *,
    progress: Callable[[int], None] | None = None,
) -> PayloadsReport:
    """Replace the payloads of objects by id, batch by batch; nothing is embedded."""
    updated = unknown = 0
    for batch in _sliced(payloads, BATCH_OBJECTS):
        absent = len(storage.objects.update_payloads(collection, dict(batch)))
        updated += len(batch) - absent
        unknown += absent
        if progress is not None:
            progress(len(batch))
    return PayloadsReport(updated, unknown)


def rename_embedder(storage: Storage, collection: Collection, embedder: Embedder) -> Collection:
    """Return the collection, recorded as embedded by ``embedder``: the same model under another name.

    Raises:
        ConflictError: it cannot be the same.
    """
    D = collection.index.dimensions
    if embedder.dimensions != D:
        raise ConflictError(
            f"{embedder.name!r} makes vectors of {embedder.dimensions} dimensions, and the collection "
            f"{collection.name!r} has {D}: it is another model; index into a new collection"
        )
    if collection.embedder is not None and prompt_of(collection.embedder) != prompt_of(embedder.name):
        raise ConflictError(mismatch_of_prompts(collection, embedder.name))
    return storage.collections.rename_embedder(collection.name, embedder.name)


def _sliced(stream: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(stream)
    while batch := list(islice(rest, size)):
        yield batch
