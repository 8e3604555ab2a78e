"""Where settings meet implementations: a ``Context`` holds one process's parts, each made on first use."""

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Self

from embedding_studio.catalogue import CatalogueText
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject, Collection
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.embedders import Embedder, embedder_by_name
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.embeddings.improvement.vectors_adjuster import VectorsAdjuster
from embedding_studio.embeddings.trust_region import MAX_ANGLE_DEGREES
from embedding_studio.errors import CollectionNotFoundError, InvalidInputError
from embedding_studio.feedback.improve import Improver
from embedding_studio.feedback.selection import SessionSelection
from embedding_studio.feedback.worker import Worker
from embedding_studio.indexing import IndexingReport, index_objects
from embedding_studio.plugins import Plugin, PluginDefaults, load_plugin
from embedding_studio.search import SearchService
from embedding_studio.settings import Settings, load_settings
from embedding_studio.storage.embedded.server import EmbeddedServer
from embedding_studio.storage.ports import Clickstream, Orders, Storage
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.tuning import SAMPLED_OBJECTS, guard_gate

if TYPE_CHECKING:
    made_once = cached_property
else:

    class made_once(cached_property):  # noqa: N801, it stands where cached_property would
        """Made on first use, by one thread while others wait; since Python 3.12 the library does not wait."""

        def __get__(self, context: "Context", owner: "type[Context] | None" = None) -> object:
            with context.making:
                return super().__get__(context, owner)


class Context:
    """The parts of one process.

    ``from embedding_studio import context`` is one that reads the environment. Make another for
    other settings, with an embedder of your own, or over a storage that is open already and then stays
    open on ``close``.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        storage: Storage | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        self._given_settings = settings
        self._given_storage = storage
        self._given_embedder = embedder
        self.making = threading.RLock()
        self._starting = threading.Lock()  # not the same: the pool's threads wait for it
        self._server: EmbeddedServer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @made_once
    def settings(self) -> Settings:
        return self._given_settings or load_settings()

    @made_once
    def plugin(self) -> Plugin:
        settings = self.settings
        key = settings.embedder_api_key
        return load_plugin(
            PluginDefaults(
                search_index_info=SearchIndexInfo(),
                vectors_adjuster=self._adjuster_by_settings,
                embedder=lambda: embedder_by_name(
                    settings.embedder, api_key=key.get_secret_value() if key else None
                ),
                session_filter=SessionSelection(
                    min_session_seconds=settings.min_session_seconds,
                    max_clicks=settings.max_session_clicks,
                    event_weights=settings.event_weights,
                ),
            ),
            settings.plugins_path,
        )

    @made_once
    def storage(self) -> Storage:
        """The database, started where it is embedded, with its schema up to date."""
        return self._given_storage or self.open_storage()

    @made_once
    def embedder(self) -> Embedder | None:
        return self._given_embedder or self.plugin.get_embedder()

    @made_once
    def search(self) -> SearchService:
        settings = self.settings
        return SearchService(
            self.storage,
            embedder=self.embedder,
            gate_threshold=settings.gate_threshold,
            query_shift=settings.query_shift,
            exploration_ratio=settings.exploration_ratio,
            shared_min_users=settings.shared_min_users,
            settings=settings.fingerprint(),
        )

    @property
    def clickstream_dao(self) -> Clickstream:
        """Sessions and events, by the name that the reference page uses."""
        return self.storage.clickstream

    @property
    def sessions_for_improvement(self) -> Orders:
        """Orders, by the name that the reference page uses."""
        return self.storage.orders

    def improver(self) -> Improver:
        """Return one pass of learning as the settings and the plugin want it."""
        settings = self.settings
        return Improver(
            self.storage,
            self.adjuster_for,
            embedder=self.embedder,
            session_filter=self.plugin.get_session_filter(),
            event_weights=settings.event_weights,
            max_angle_degrees=settings.max_angle_degrees or MAX_ANGLE_DEGREES,
            max_sessions_per_user=settings.max_sessions_per_user,
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
            backoff_seconds=settings.backoff_seconds,
            is_shared=settings.shared_min_users > 0,
        )

    def worker(self) -> Worker:
        settings = self.settings
        return Worker(
            self.improver(),
            self.storage,
            interval_seconds=settings.improvement_seconds_interval,
            users_per_batch=settings.users_per_batch,
            wake_on_click=settings.improve_on_click,
        )

    def adjuster_for(self, index: SearchIndexInfo) -> VectorsAdjuster:
        """Return the plugin's adjuster where it is made for such an index, else the one by settings."""
        own = self.plugin.get_search_index_info()
        fits = (own.metric_type, own.metric_aggregation_type) == (
            index.metric_type,
            index.metric_aggregation_type,
        )
        return self.plugin.get_vectors_adjuster() if fits else self._adjuster_by_settings(index)

    def collection(
        self, name: str = DEFAULT_COLLECTION, *, index: SearchIndexInfo | None = None
    ) -> Collection:
        """Return the collection of this name, made for the embedder of this process if there is none.

        Args:
            index: metric and aggregation of a new one; the plugin's if absent.

        Raises:
            CollectionNotFoundError: there is none, and neither ``index`` nor an embedder says its size.
            ConflictError: it exists and is of another kind than ``index`` asks for.
        """
        try:
            existing = self.storage.collections.get(name)
        except CollectionNotFoundError:
            existing = None
        if existing is not None and index is None:
            return existing
        wanted = index or self.plugin.get_search_index_info()
        if wanted.dimensions is None:
            if self.embedder is None:
                raise CollectionNotFoundError(
                    f"there is no collection {name!r}, and without an embedder its size is unknown: "
                    "create it with its dimensions, or set EMBEDDER"
                )
            wanted = wanted.model_copy(update={"dimensions": self.embedder.dimensions})
        return self.storage.collections.create(
            name, wanted, embedder=self.embedder.name if self.embedder else None
        )

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
            name: of the collection; made for this process's embedder if there is none.
            progress: called with the number of objects newly done.

        Raises:
            EmbeddingError: there is a text and no embedder, or it failed.
            InvalidInputError: there is something that is neither, or vectors that do not fit.
        """
        collection = self.collection(name)
        some_ids: list[str] = []
        report = index_objects(
            self.storage,
            collection,
            _sampled(objects, some_ids),
            self.embedder,
            progress=progress,
            threads=self.settings.index_threads,
        )
        if "gate_threshold" not in self.settings.model_fields_set:
            guard_gate(self.storage, collection, some_ids)
        return report

    def open_storage(self) -> Storage:
        """Open the database of the settings once more; for the caller to close."""
        given = self.settings.database_url
        return PostgresStorage(
            given.get_secret_value() if given is not None else self._start_server,
            order_on=self._ordering_event_types(),
            recall_target=self.settings.recall_target,
            pool_size=self.settings.pool_size,
        )

    def _start_server(self) -> str:
        """Return the URL of the embedded server, which runs now even if somebody killed it."""
        with self._starting:
            self._server = self._server or EmbeddedServer(self.settings.data_dir)
            return self._server.start()

    def close(self) -> None:
        """Close what this context opened; the embedded server stops with its last user."""
        opened = self.__dict__.pop("storage", None)
        self.__dict__.pop("search", None)
        if opened is not None and opened is not self._given_storage:
            opened.close()
        if self._server is not None:
            self._server.stop()

    def _adjuster_by_settings(self, index: SearchIndexInfo) -> VectorsAdjuster:
        settings = self.settings
        if settings.adjuster == "torch":
            from embedding_studio.embeddings.improvement.torch_based_adjuster import TorchBasedAdjuster

            kind: type[TorchBasedAdjuster | PassiveAggressiveAdjuster] = TorchBasedAdjuster
        else:
            kind = PassiveAggressiveAdjuster
        return kind(
            index,
            settings.adjustment_rate,
            settings.num_iterations,
            settings.softmin_temperature,
            **(
                {}
                if settings.max_angle_degrees is None
                else {"max_angle_degrees": settings.max_angle_degrees}
            ),
        )

    def _ordering_event_types(self) -> frozenset[str]:
        return self.settings.learning_event_types if self.settings.improve_on_click else frozenset()


def _sampled(
    objects: Iterable[CatalogueText | CatalogueObject], ids: list[str]
) -> Iterator[CatalogueText | CatalogueObject]:
    """Yield the objects, and leave evenly spaced ids in ``ids``: all of a few, 200 to 400 of many."""
    step = 1
    for number, each in enumerate(objects):
        if not isinstance(each, CatalogueText | CatalogueObject):
            raise InvalidInputError(
                f"object {number} of those to index is {repr(each)[:80]}, a {type(each).__name__}; "
                "give a CatalogueText, or a CatalogueObject if you bring its vectors"
            )
        if number % step == 0:
            ids.append(each.object_id)
            if len(ids) == 2 * SAMPLED_OBJECTS:
                del ids[1::2]
                step *= 2
        yield each
