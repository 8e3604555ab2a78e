"""Objects into a collection: texts are embedded, vectors stored as brought."""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from embedding_studio.catalogue import CatalogueText
from embedding_studio.domain.objects import (
    JSON,
    TEXT_HASH_LENGTH,
    CatalogueObject,
    Collection,
    payload_as_json,
)
from embedding_studio.domain.storable import check_text
from embedding_studio.embedders import Embedder, embed_texts
from embedding_studio.embedders.names import mismatch
from embedding_studio.errors import ConflictError, EmbeddingError, InvalidInputError, shown
from embedding_studio.storage.ports import Storage

BATCH_TEXTS = 256
BATCH_OBJECTS = 1000
"""So many texts, or so many objects, are stored at once: no transaction is long, and little is lost."""

THREADS = 1

Batch = list[CatalogueText | CatalogueObject]


@dataclass(frozen=True, slots=True)
class IndexingReport:
    """What became of the objects; their number is the sum of the first four.

    Attributes:
        indexed: stored with vectors that are new, or brought.
        updated: stored with a new payload and the vectors they had, since the text is the same.
        unchanged: there already, text and payload.
        empty: left out, since there is no text to embed.
    """

    indexed: int
    updated: int
    unchanged: int
    empty: int
    seconds: float


def index_objects(
    storage: Storage,
    collection: Collection,
    objects: Iterable[CatalogueText | CatalogueObject],
    embedder: Embedder | None,
    *,
    progress: Callable[[int], None] | None = None,
    threads: int = THREADS,
    batch_texts: int = BATCH_TEXTS,
    batch_objects: int = BATCH_OBJECTS,
) -> IndexingReport:
    """Store objects, embedding only texts that are new; what is stored already costs a look.

    Batches are stored one by one in their order, so an indexing that was stopped goes on where it was
    when it is run again. Of several texts with one id the last counts. Objects that are no longer named
    stay.

    Args:
        collection: its vectors come from this embedder.
        objects: may be a stream, which is read a few batches ahead; long texts become several parts.
        embedder: None where every object brings its vectors.
        progress: called with the number of objects newly done.
        threads: so many batches are embedded at once, while another is stored.

    Raises:
        ConflictError: there is a text, and the collection holds the vectors of another embedder.
        EmbeddingError: there is a text and no embedder, or it failed.
        InvalidVectorsError: vectors do not fit the collection.

    Whatever is raised, the batches before are stored.
    """
    started = time.monotonic()
    done = dict.fromkeys(("indexed", "updated", "unchanged", "empty"), 0)
    prepare = partial(_prepare, storage, collection, embedder)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="indexing")
    try:
        for ready in _prepared(pool, prepare, _batches(objects, batch_texts, batch_objects), threads):
            if ready.objects:
                storage.objects.upsert(collection, ready.objects)
            for outcome, count in ready.outcomes.items():
                done[outcome] += count
            if progress is not None:
                progress(sum(ready.outcomes.values()))
    finally:
        pool.shutdown(cancel_futures=True)
    return IndexingReport(**done, seconds=time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is to be stored of a batch, and what became of each of its objects."""

    objects: list[CatalogueObject]
    outcomes: dict[str, int]


def _prepared(
    pool: ThreadPoolExecutor, prepare: Callable[[Batch], _Prepared], batches: Iterator[Batch], threads: int
) -> Iterator[_Prepared]:
    """Yield batches in their order, each prepared while those before it are stored.

    A batch that names an object of one before it waits until that one is stored: it must see it.
    """
    waiting: deque[tuple[set[str], Future[_Prepared]]] = deque()
    while True:
        try:
            batch = next(batches, None)
        except Exception:  # a row that cannot be read: what was read before it is stored
            while waiting:
                yield waiting.popleft()[1].result()
            raise
        ids = {each.object_id for each in batch or ()}
        while waiting and (
            batch is None or len(waiting) > threads or any(ids & earlier for earlier, _ in waiting)
        ):
            yield waiting.popleft()[1].result()
        if batch is None:
            return
        waiting.append((ids, pool.submit(prepare, batch)))


def _prepare(storage: Storage, collection: Collection, embedder: Embedder | None, batch: Batch) -> _Prepared:
    brought = [each for each in batch if isinstance(each, CatalogueObject)]
    texts = [_storable(each) for each in batch if isinstance(each, CatalogueText)]
    if not texts:
        return _Prepared(brought, {"indexed": len(brought)})
    if embedder is None:
        raise EmbeddingError("there is no embedder for texts; bring vectors, or set EMBEDDER")
    if not collection.is_embedded_by(embedder.name):
        raise ConflictError(mismatch(collection, embedder.name))
    name = collection.hashed_as or collection.embedder or embedder.name
    wanted = {text.object_id: text for text in texts if text.text.strip()}
    hashes = {object_id: _ContentHash.of(text, name) for object_id, text in wanted.items()}
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
    embedded = embed_texts(embedder, [text.text for text in new])
    parts |= {text.object_id: vectors for text, vectors in zip(new, embedded, strict=True)}
    prepared = [
        CatalogueObject(object_id, vectors, wanted[object_id].payload, str(hashes[object_id]))
        for object_id, vectors in parts.items()
    ]
    empty = sum(1 for text in texts if not text.text.strip())
    return _Prepared(
        prepared + brought,
        {
            "indexed": len(new) + len(brought),
            "updated": updated,
            "unchanged": len(texts) - empty - len(new) - updated,
            "empty": empty,
        },
    )


def _storable(given: CatalogueText) -> CatalogueText:
    """Return a text with its payload as it is stored.

    Raises:
        InvalidInputError: it cannot be, or the text not be embedded; the message names the object.
    """
    payload: JSON = json.loads(payload_as_json(given.object_id, given.payload))
    what = f"the text of object {given.object_id!r}"
    if not isinstance(given.text, str):
        raise InvalidInputError(f"{what} is {shown(given.text)}, a {type(given.text).__name__}; give a str")
    try:
        check_text(given.text)
    except ValueError as error:
        raise InvalidInputError(f"{what} cannot be embedded: {error}") from error
    return replace(given, payload=payload)


@dataclass(frozen=True, slots=True)
class _ContentHash:
    """What tells whether an object must be embedded (its text) or only stored (its payload) again."""

    text: str
    payload: str

    @classmethod
    def of(cls, text: CatalogueText, embedder: str) -> "_ContentHash":
        return cls(_digest([embedder, text.text]), _digest(text.payload))

    def __str__(self) -> str:
        return self.text + self.payload


def _digest(value: JSON | list[str]) -> str:
    told = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:TEXT_HASH_LENGTH]


def _batches(
    objects: Iterable[CatalogueText | CatalogueObject], most_texts: int, most_objects: int
) -> Iterator[Batch]:
    batch: Batch = []
    texts = 0
    for each in objects:
        batch.append(each)
        texts += isinstance(each, CatalogueText)
        if texts == most_texts or len(batch) == most_objects:
            yield batch
            batch, texts = [], 0
    if batch:
        yield batch
