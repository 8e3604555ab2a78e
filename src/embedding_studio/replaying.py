"""A log, replayed against a collection that is there: each method in a storage of its own."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial

from embedding_studio.bootstrap import Context
from embedding_studio.domain.objects import CatalogueObject, Collection
from embedding_studio.embedders import embed_texts, query_embedding
from embedding_studio.embedders.names import mismatch
from embedding_studio.errors import EmbeddingError
from embedding_studio.evaluation.collection_folder import Progress
from embedding_studio.evaluation.methods import USERS_OF_SHARED
from embedding_studio.evaluation.replay_processes import OpenMethod
from embedding_studio.evaluation.replayed_methods import Counts, Plain, PlainSearch, Served
from embedding_studio.evaluation.session_log import SessionLog, log_of, read_session_log
from embedding_studio.search import SearchService
from embedding_studio.settings import Settings
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import Storage, Vectors

PAGE_OF_OBJECTS = 1_000
TEXTS_AT_ONCE = 256


class Replayed(StrEnum):
    """The methods that have a name."""

    PLAIN = "plain"
    DEFAULT = "default"
    SHARED = "shared"
    COUNTS = "counts"


class World:
    """A collection's objects, given to each method in a storage of its own; its users stay out."""

    def __init__(self, context: Context, collection: Collection) -> None:
        self._context = context
        self._collection = collection
        self._objects: list[CatalogueObject] = []
        while page := context.storage.objects.scroll(
            collection, after=self._objects[-1].object_id if self._objects else None, limit=PAGE_OF_OBJECTS
        ):
            self._objects += [CatalogueObject(each.object_id, each.parts) for each in page]
        self.object_ids = {each.object_id for each in self._objects}

    def plain(self) -> PlainSearch:
        storage, collection = _stored(self._context.settings, self._collection, self._objects)
        return PlainSearch(SearchService(storage), collection)

    def log(self, path: str | None) -> SessionLog:
        """Return the sessions of a file, or those that were recorded for the collection."""
        weights = self._context.settings.event_weights
        if path is not None:
            return read_session_log(path, known=self.object_ids, weights=weights)
        recorded = self._context.storage.clickstream.scan(collection=self._collection)
        return log_of(recorded, known=self.object_ids, weights=weights)

    def embedded(self, log: SessionLog, show: Progress) -> dict[str, Vectors]:
        """Return text -> [Q, D] of the queries that bring no vectors of the collection's size."""
        return _embedded(self._context, self._collection, log, show)

    @property
    def gate_threshold(self) -> float:
        own = self._collection.gate_threshold
        return self._context.settings.gate_threshold if own is None else own

    def methods(self, names: Sequence[Replayed]) -> dict[str, OpenMethod]:
        in_force = self._context.settings
        methods: dict[str, OpenMethod] = {}
        for name in names:
            if name is Replayed.PLAIN:
                methods[name.value] = Plain
            elif name is Replayed.COUNTS:
                methods[name.value] = Counts
            else:
                users = (in_force.shared_min_users or USERS_OF_SHARED) if name is Replayed.SHARED else 0
                methods[name.value] = self.served(_sharing(in_force, users))
        return methods

    def served(self, settings: Settings) -> OpenMethod:
        """Return what opens a method that serves and learns as a process with these settings would."""
        return partial(_served, settings, self._collection, self._objects)


def _served(settings: Settings, collection: Collection, objects: Sequence[CatalogueObject]) -> Served:
    storage, own = _stored(settings, collection, objects)
    parts = Context(settings, storage=storage, embedder=_NeverAsked(collection))
    is_shared = settings.shared_min_users > 0
    return Served(
        storage, own, parts.search, parts.improver(), is_shared=is_shared, own_past=parts.own_past_keeper()
    )


def _stored(
    settings: Settings, collection: Collection, objects: Sequence[CatalogueObject]
) -> tuple[Storage, Collection]:
    """Return a storage in memory with a collection like another."""
    storage = MemoryStorage(order_on=settings.learning_event_types)
    own = storage.collections.create(
        collection.name,
        collection.index,
        embedder=collection.embedder,
        gate_threshold=collection.gate_threshold,
    )
    storage.objects.upsert(own, objects)
    return storage, own


class _NeverAsked:
    """The embedder of a replayed method, to which all queries come embedded: no model is loaded again."""

    def __init__(self, collection: Collection) -> None:
        self.name = collection.embedder or "none"
        self.dimensions = collection.index.dimensions or 0

    def embed(
        self,
        texts: Sequence[str],
        *,
        progress: Callable[[int], None] | None = None,  # noqa: ARG002, the port's
    ) -> Vectors:
        raise EmbeddingError(f"{len(texts)} texts came to a replayed method without their vectors")

    def split(self, text: str) -> list[str]:
        return [text]


def _sharing(settings: Settings, shared_min_users: int) -> Settings:
    return settings.model_copy(update={"shared_min_users": shared_min_users})


def _embedded(
    context: Context, collection: Collection, log: SessionLog, show: Progress
) -> dict[str, Vectors]:
    """Return text -> [Q, D] of the queries that bring no vectors of the collection's size."""
    D = collection.index.dimensions
    texts = sorted(
        {
            session.query
            for session in log.sessions
            if session.query.strip()
            and (session.query_vectors is None or session.query_vectors.shape[-1] != D)
        }
    )
    embedder = context.embedder
    if not texts or embedder is None:
        return {}
    if not collection.is_embedded_by(embedder.name):
        raise EmbeddingError(mismatch(collection, embedder.name))
    embedded: dict[str, Vectors] = {}
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = texts[start : start + TEXTS_AT_ONCE]
        embedded.update(
            zip(batch, embed_texts(embedder, batch, embed=query_embedding(embedder)), strict=True)
        )
        show("embed queries", len(embedded), len(texts))
    return embedded
