"""Objects into collections. Its door is ``Indexer``.

indexer  find or make the collection, store, guard its gate    batches  a stream, embedded and stored
upkeep   what needs no embedding: read all, prune, payloads, the embedder's name
"""

from embedding_studio.indexing.batches import (
    BATCH_OBJECTS,
    BATCH_TEXTS,
    THREADS,
    IndexingReport,
    index_objects,
)
from embedding_studio.indexing.indexer import Indexer
from embedding_studio.indexing.upkeep import (
    PayloadsReport,
    every_object,
    prune,
    rename_embedder,
    update_payloads,
)

__all__ = [
    "BATCH_OBJECTS",
    "BATCH_TEXTS",
    "THREADS",
    "Indexer",
    "IndexingReport",
    "PayloadsReport",
    "every_object",
    "index_objects",
    "prune",
    "rename_embedder",
    "update_payloads",
]
