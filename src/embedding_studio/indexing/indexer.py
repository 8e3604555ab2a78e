"""From a name and objects to a collection that holds them."""

from collections.abc import Callable, Iterable, Iterator

from embedding_studio.catalogue import CatalogueText
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject, Collection
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.domain.storable import check_id
from embedding_studio.embedders import Embedder
from embedding_studio.errors import CollectionNotFoundError, InvalidInputError, shown
from embedding_studio.indexing.batches import THREADS, IndexingReport, index_objects
from embedding_studio.storage.attached import create_collection
from embedding_studio.storage.attached.objects import refuse_writing
from embedding_studio.storage.ports import Storage
from embedding_studio.tuning import SAMPLED_OBJECTS, guard_gate


class Indexer:
    """Brings objects into the collections of a storage. Safe to use from several threads.

    Args:
        embedder: of texts, and of collections that are made; None where callers bring vectors.
        index: metric and aggregation of collections that are made.
        threads: so many batches of texts are embedded at once.
        guards_gates: whether a collection gets a threshold of its own where its objects show that it
            needs one (``tuning.guard_gate``).
    """

    def __init__(
        self,
        storage: Storage,
        embedder: Embedder | None = None,
        *,
        index: SearchIndexInfo | None = None,
        threads: int = THREADS,
        guards_gates: bool = True,
    ) -> None:
        self._storage = storage
        self._embedder = embedder
        self._index = index or SearchIndexInfo()
        self._threads = threads
        self._guards_gates = guards_gates

    def collection(
        self,
        name: str = DEFAULT_COLLECTION,
        *,
        index: SearchIndexInfo | None = None,
        fill: str | None = None,
    ) -> Collection:
        """Return the collection of this name, made for the embedder if there is none.

        Args:
            index: metric and aggregation of a new one; the indexer's if absent.
            fill: the name of a store that is to find its objects; None: they are found here, or as they were.

        Raises:
            CollectionNotFoundError: there is none, and neither ``index`` nor an embedder says its size.
            ConflictError: it exists and is of another kind than ``index`` asks for.
        """
        if index is None:
            try:
                there = self._storage.collections.get(name)
                if fill is None:
                    return there
                index = there.index
            except CollectionNotFoundError:
                index = self._index
        if index.dimensions is None:
            if self._embedder is None:
                raise CollectionNotFoundError(
                    f"there is no collection {name!r}, and without an embedder its size is unknown: "
                    "create it with its dimensions, or set EMBEDDER"
                )
            whose = f"the vectors of {self._embedder.name!r}"
            index = index.of_size(self._embedder.dimensions, whose)
        embedder = self._embedder.name if self._embedder else None
        return create_collection(self._storage, name, index, embedder=embedder, fill=fill)

    def index_objects(
        self,
        name: str,
        objects: Iterable[CatalogueText | CatalogueObject],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> IndexingReport:
        """Store texts, which are embedded where they are new, and objects that bring their vectors.

        They are stored in batches, as they come: a stream may be longer than memory is large, and what
        was stored before a failure stays.

        Args:
            name: of the collection; made for the embedder if there is none.
            progress: called with the number of objects newly done.

        Raises:
            EmbeddingError: there is a text and no embedder, or it failed.
            ConflictError: there is a text, and the collection holds the vectors of another embedder; or its
                objects are kept by another system.
            InvalidInputError: there is something that is neither, or vectors that do not fit.
        """
        collection = self.collection(name)
        if collection.attached is not None:
            refuse_writing(collection)  # before anything is embedded
        some_ids: list[str] = []
        report = index_objects(
            self._storage,
            collection,
            _sampled(objects, some_ids),
            self._embedder,
            progress=progress,
            threads=self._threads,
        )
        if self._guards_gates:
            guard_gate(self._storage, collection, some_ids)
        return report


def _sampled(
    objects: Iterable[CatalogueText | CatalogueObject], ids: list[str]
) -> Iterator[CatalogueText | CatalogueObject]:
    """Yield the objects, and leave evenly spaced ids in ``ids``: all of a few, 200 to 400 of many."""
    step = 1
    for number, each in enumerate(objects):
        if not isinstance(each, CatalogueText | CatalogueObject):
            raise InvalidInputError(
                f"object {number} of those to index is {shown(each)}, a {type(each).__name__}; "
                "give a CatalogueText, or a CatalogueObject if you bring its vectors"
            )
        check_id(each.object_id, f"the id of object {number} of those to index")
        if number % step == 0:
            ids.append(each.object_id)
            if len(ids) == 2 * SAMPLED_OBJECTS:
                del ids[1::2]
                step *= 2
        yield each
