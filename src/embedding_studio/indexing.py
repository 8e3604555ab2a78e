"""Catalogue texts into a collection. Axes: P parts · D dimensions."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from embedding_studio.catalogue import CatalogueText
from embedding_studio.domain.objects import JSON, TEXT_HASH_LENGTH, CatalogueObject, Collection
from embedding_studio.embedders import Embedder
from embedding_studio.errors import ConflictError
from embedding_studio.storage.ports import Storage

BATCH_OBJECTS = 256


@dataclass(frozen=True, slots=True)
class IndexingReport:
    """What became of the texts of a catalogue; their number is the sum of the first four.

    Attributes:
        indexed: embedded and stored.
        updated: stored with a new payload and the vectors they had, since the text is the same.
        unchanged: there already, text and payload.
        empty: left out, since there is no text to embed.
    """

    indexed: int
    updated: int
    unchanged: int
    empty: int
    seconds: float


def index_texts(
    storage: Storage,
    collection: Collection,
    texts: Iterable[CatalogueText],
    embedder: Embedder,
    *,
    progress: Callable[[int], None] | None = None,
    batch_objects: int = BATCH_OBJECTS,
) -> IndexingReport:
    """Store the texts as objects, embedding only what is new; what is stored already costs a look.

    Each batch is stored at once, so an indexing that was stopped goes on where it was when it is run
    again. Of several texts with one id in a batch the last counts. Objects that the texts no longer
    name stay.

    Args:
        collection: its vectors come from this embedder.
        texts: may be a stream; long ones become several parts.
        progress: called with the number of texts newly done.

    Raises:
        ConflictError: the collection holds the vectors of another embedder.
        EmbeddingError: the embedder failed; the batches before are stored.
    """
    if collection.embedder is not None and collection.embedder != embedder.name:
        raise ConflictError(
            f"the collection {collection.name!r} holds vectors of {collection.embedder!r}, and those of "
            f"{embedder.name!r} cannot be compared with them; index into another collection"
        )
    started = time.monotonic()
    done = dict.fromkeys(("indexed", "updated", "unchanged", "empty"), 0)
    for batch in _batches(texts, batch_objects):
        for outcome, count in _index_batch(storage, collection, batch, embedder).items():
            done[outcome] += count
        if progress is not None:
            progress(len(batch))
    return IndexingReport(**done, seconds=time.monotonic() - started)


def _index_batch(
    storage: Storage, collection: Collection, batch: Sequence[CatalogueText], embedder: Embedder
) -> dict[str, int]:
    wanted = {text.object_id: text for text in batch if text.text.strip()}
    hashes = {object_id: _ContentHash.of(text, embedder) for object_id, text in wanted.items()}
    stored = storage.objects.content_hashes(collection, list(wanted))
    unchanged = {object_id for object_id, content in hashes.items() if stored.get(object_id) == str(content)}
    same_text = [
        object_id
        for object_id, content in hashes.items()
        if object_id not in unchanged and stored.get(object_id, "").startswith(content.text)
    ]
    parts = {known.object_id: known.parts for known in storage.objects.get(collection, same_text)}
    updated = len(parts)
    new = [
        text for object_id, text in wanted.items() if object_id not in unchanged and object_id not in parts
    ]
    parts |= _embed(new, embedder)
    if parts:
        storage.objects.upsert(
            collection,
            [
                CatalogueObject(object_id, vectors, wanted[object_id].payload, str(hashes[object_id]))
                for object_id, vectors in parts.items()
            ],
        )
    empty = sum(1 for text in batch if not text.text.strip())
    return {
        "indexed": len(new),
        "updated": updated,
        "unchanged": len(batch) - empty - len(new) - updated,
        "empty": empty,
    }


def _embed(texts: Sequence[CatalogueText], embedder: Embedder) -> dict[str, NDArray[np.float32]]:
    """Return object_id -> [P, D]."""
    split = [embedder.split(text.text) for text in texts]
    vectors = embedder.embed([part for parts in split for part in parts]) if split else None
    embedded: dict[str, NDArray[np.float32]] = {}
    start = 0
    for text, parts in zip(texts, split, strict=True):
        assert vectors is not None  # noqa: S101, there is a text
        embedded[text.object_id] = vectors[start : start + len(parts)]
        start += len(parts)
    return embedded


@dataclass(frozen=True, slots=True)
class _ContentHash:
    """What tells whether an object must be embedded (its text) or only stored (its payload) anew."""

    text: str
    payload: str

    @classmethod
    def of(cls, text: CatalogueText, embedder: Embedder) -> "_ContentHash":
        return cls(_digest([embedder.name, text.text]), _digest(text.payload))

    def __str__(self) -> str:
        return self.text + self.payload


def _digest(value: JSON | list[str]) -> str:
    told = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:TEXT_HASH_LENGTH]


def _batches(texts: Iterable[CatalogueText], size: int) -> Iterator[list[CatalogueText]]:
    stream = iter(texts)
    while batch := list(islice(stream, size)):
        yield batch
