"""Where settings meet implementations: a ``Context`` holds one process's parts, each made on first use."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from embedding_studio.catalogue import CatalogueText
from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.domain.objects import Attachment, CatalogueObject, Collection
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.embedders import Embedder, embedder_by_name
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.embeddings.improvement.vectors_adjuster import VectorsAdjuster
from embedding_studio.embeddings.trust_region import MAX_ANGLE_DEGREES
from embedding_studio.errors import (
    CollectionNotFoundError,
    ConflictError,
    InvalidInputError,
    PluginError,
    shown,
)
from embedding_studio.feedback.improve import Improver
from embedding_studio.feedback.selection import SessionSelection
from embedding_studio.feedback.worker import Worker
from embedding_studio.indexing import Indexer, IndexingReport
from embedding_studio.plugins import Plugin, PluginDefaults, load_plugin
from embedding_studio.retention import Retention
from embedding_studio.search import SearchService
from embedding_studio.settings import Settings, load_settings
from embedding_studio.storage.attached import ByCollection
from embedding_studio.storage.embedded.server import EmbeddedServer
from embedding_studio.storage.ports import Clickstream, Orders, Storage
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.storage.postgres.backup import back_up, restore
from embedding_studio.telemetry.listener import listening
from embedding_studio.telemetry.metrics import Metrics
from embedding_studio.telemetry.siblings import Siblings
from embedding_studio.tuning import OwnPastKeeper

if TYPE_CHECKING:
    part = cached_property
else:

    class part(cached_property):  # noqa: N801, it stands where cached_property would
        """The part that was given, or one made on first use, by one thread while others wait."""

        def __get__(self, context: "Context", owner: "type[Context] | None" = None) -> object:
            name = self.attrname
            with context.making:
                if name not in vars(context):
                    if name in context.given:
                        vars(context)[name] = context.given[name]
                    else:
                        made = super().__get__(context, owner)
                        context.made.callback(context.close_part, name, made)
                return vars(context)[name]


class Context:
    """The parts of one process.

    ``from embedding_studio import context`` is one that reads the environment. Make another for
    other settings, or with parts of your own: these stay open on ``close``, while what the context made
    is closed, the last first, and is made again if it is asked for again.

    Args:
        plugin: a class, used instead of the one that would be found.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        storage: Storage | None = None,
        embedder: Embedder | None = None,
        plugin: type | None = None,
        search: SearchService | None = None,
        indexer: Indexer | None = None,
        improver: Improver | None = None,
    ) -> None:
        parts = {
            "settings": settings,
            "storage": storage,
            "embedder": embedder,
            "search": search,
            "indexer": indexer,
        }
        self.given = {name: each for name, each in parts.items() if each is not None}
        self.made = ExitStack()
        self.making = threading.RLock()
        self._given_plugin = plugin
        self._given_improver = improver
        # Not ``making``: who makes the storage waits for the pool's threads.
        self._starting = threading.Lock()

    @property
    def stores_by_settings(self) -> bool:
        """Whether its storage is the one that another process finds by the settings."""
        return "storage" not in self.given

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @part
    def settings(self) -> Settings:
        return load_settings()

    @part
    def plugin(self) -> Plugin:
        settings = self.settings
        key = settings.embedder_api_key
        return load_plugin(
            PluginDefaults(
                search_index_info=SearchIndexInfo(),
                vectors_adjuster=self._adjuster_by_settings,
                embedder=lambda: embedder_by_name(
                    settings.embedder,
                    api_key=key.get_secret_value() if key else None,
                    options=settings.embedder_options,
                ),
                session_filter=SessionSelection(
                    min_session_seconds=settings.min_session_seconds,
                    max_clicks=settings.max_session_clicks,
                    event_weights=settings.event_weights,
                ),
            ),
            settings.plugins_path,
            self._given_plugin,
        )

    @part
    def storage(self) -> Storage:
        """The database, started where it is embedded, with its schema up to date."""
        return self.open_storage()

    @part
    def metrics(self) -> Metrics:
        """The numbers of this process, into which its service and its worker record."""
        return Metrics(self.settings.event_weights)

    @part
    def embedder(self) -> Embedder | None:
        given = self.plugin.get_embedder()
        if given is not None and not hasattr(given, "embed"):
            raise PluginError(
                f"get_embedder of the plugin {type(self.plugin).__name__} returned {shown(given)}; give an "
                "embedder (name, dimensions, embed, split), or None"
            )
        return given

    @part
    def search(self) -> SearchService:
        settings = self.settings
        return SearchService(
            self.storage,
            embedder=self.embedder,
            gate_threshold=settings.gate_threshold,
            query_shift=settings.query_shift,
            exploration_ratio=settings.exploration_ratio,
            shared_min_users=settings.shared_min_users,
            query_seconds=settings.embedder_query_seconds,
            settings=settings.fingerprint(),
        )

    @part
    def indexer(self) -> Indexer:
        settings = self.settings
        return Indexer(
            self.storage,
            self.embedder,
            index=self.plugin.get_search_index_info(),
            threads=settings.index_threads,
            guards_gates="gate_threshold" not in settings.model_fields_set,
        )

    @property
    def clickstream_dao(self) -> Clickstream:
        """Sessions and events, by the name that the reference page uses."""
        return self.storage.clickstream

    @property
    def sessions_for_improvement(self) -> Orders:
        """Orders, by the name that the reference page uses."""
        return self.storage.orders

    def own_past_keeper(self) -> OwnPastKeeper | None:
        """Return what fits how much a user's own past counts, where the settings want that."""
        settings = self.settings
        if not settings.learn_own_past:
            return None
        return OwnPastKeeper(self.storage, gate_threshold=settings.gate_threshold)

    def improver(self) -> Improver:
        """Return one pass of learning as the settings and the plugin want it, or the one that was given."""
        if self._given_improver is not None:
            return self._given_improver
        settings = self.settings
        if settings.adjuster == "torch":  # without it the start fails, and not each session
            self._adjuster_by_settings(SearchIndexInfo())
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
            quarantines=settings.quarantine,
        )

    def worker(self) -> Worker:
        settings = self.settings
        return Worker(
            self.improver(),
            self.storage,
            interval_seconds=settings.improvement_seconds_interval,
            users_per_batch=settings.users_per_batch,
            wake_on_click=settings.improve_on_click,
            metrics=self.metrics.worker,
            own_past=self.own_past_keeper(),
            retention=None if (days := settings.retention_days) is None else Retention(self.storage, days),
        )

    @contextmanager
    def telling_metrics(self) -> Iterator[str | None]:
        """Tell the numbers of this process over HTTP as long as the block runs, if the settings want it.

        Yields:
            The URL; None: they are not served.

        Raises:
            InvalidSettingError: they cannot be served there; the message says what to do.
        """
        settings = self.settings
        if settings.worker_metrics_port is None:
            yield None
            return
        storage, key = self.storage, settings.admin_api_key
        with listening(
            lambda: self.metrics.exposition(storage),
            host=settings.host,
            port=settings.worker_metrics_port,
            key=key.get_secret_value() if key else None,
        ) as url:
            yield url

    @contextmanager
    def telling_siblings(self, siblings: Siblings) -> Iterator[str]:
        """Tell the numbers of this process to its siblings as long as the block runs, and know theirs.

        Yields:
            The URL.
        """
        storage = self.storage
        self.metrics.siblings = siblings
        own = partial(self.metrics.own_exposition, storage)
        with listening(own, host="127.0.0.1", port=0, key=siblings.token) as url:
            yield url

    def adjuster_for(self, index: SearchIndexInfo) -> VectorsAdjuster:
        """Return the plugin's adjuster where it is made for such an index, else the one by settings."""
        own = self.plugin.get_search_index_info()
        fits = (own.metric_type, own.metric_aggregation_type) == (
            index.metric_type,
            index.metric_aggregation_type,
        )
        return self.plugin.get_vectors_adjuster() if fits else self._adjuster_by_settings(index)

    def collection(
        self,
        name: str = DEFAULT_COLLECTION,
        *,
        index: SearchIndexInfo | None = None,
        fill: str | None = None,
    ) -> Collection:
        """Return the collection of this name, made for the embedder of this process if there is none.

        Args:
            index: metric and aggregation of a new one; the plugin's if absent.
            fill: the name in ATTACHED_STORES of the store that is to find its objects; they are written there
                besides. None: they are found here, or as they were.

        Raises:
            CollectionNotFoundError: there is none, and neither ``index`` nor an embedder says its size.
            ConflictError: it exists and is of another kind than ``index`` or ``fill`` asks for.
        """
        return self.indexer.collection(name, index=index, fill=fill)

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
        return self.indexer.index_objects(name, objects, progress=progress)

    def attach(
        self,
        name: str,
        source: str,
        *,
        object_id: str | None = None,
        vector: str | None = None,
        payload: Sequence[str] = (),
        document: str | None = None,
        metric_type: MetricType | None = None,
        store: str | None = None,
    ) -> Collection:
        """Return a collection of what another system keeps already; it is only read, and nothing is copied.

        Args:
            name: of the collection.
            source: a table or view, ``schema.table`` or what the search path finds; LanceDB's table; or
                a collection of Qdrant or Milvus.
            object_id, vector: the columns of these, ``id`` and ``embedding`` if absent; a row is an object of
                one part. Of LanceDB ``id``, of Milvus the primary key, and the only one of vectors. Of Qdrant
                the field of the payload, and the name of the vector; absent: the ids of the points, and the
                vector without a name.
            payload: columns that filters and results see; none: all but those of vectors.
            document: a column of JSON that is the payload instead.
            metric_type: None: that of the only index of the vectors, or cosine.
            store: the name in ATTACHED_STORES of the store in which it is; None: the database of all else.

        Raises:
            InvalidInputError: it cannot be attached; the message says what to do.
            ConflictError: there is a collection of this name that is something else.
            AttachedUnavailableError: the store does not answer.
        """
        if payload and document is not None:
            raise InvalidInputError("the payload is columns, or one document; give only one of the two")
        wanted = Attachment("", source, store, object_id or "", vector or "", tuple(payload), document)
        objects = self.storage.objects
        if not isinstance(objects, ByCollection):
            raise ConflictError("this storage has a base index of its own; attach to one of PostgreSQL")
        attached, index = objects.found(wanted, metric_type)
        with suppress(CollectionNotFoundError):  # of the same table, compared otherwise, it stays as it is
            there = self.storage.collections.get(name)
            if there.attached == attached and metric_type is None:
                return there
        return self.storage.collections.create(name, index, attached=attached)

    def open_storage(self) -> Storage:
        """Open the database of the settings once more; for the caller to close."""
        return PostgresStorage(
            self._address(),
            order_on=self._ordering_event_types(),
            recall_target=self.settings.recall_target,
            pool_size=self.settings.pool_size,
            statement_seconds=self.settings.statement_seconds,
            lock_seconds=self.settings.lock_seconds,
            waiting_events=self.settings.waiting_events,
            read_url=None if (read := self.settings.database_read_url) is None else read.get_secret_value(),
            tell_replica=self._count_replica,
            attached_stores={
                name: address.get_secret_value() for name, address in self.settings.attached_stores.items()
            },
        )

    def back_up(self, path: str | Path) -> str:
        """Write a backup of the database of the settings; return which it is. All goes on meanwhile.

        Args:
            path: ``-`` is standard output.
        """
        return back_up(self._located(), path)

    def restore(self, path: str | Path, *, replace: bool = False) -> str:
        """Make the database of the settings what it was at a backup, and bring its tables up to date.

        Args:
            path: ``-`` is standard input.
            replace: drop what is there.

        Returns:
            Which database it is.
        """
        restored = restore(self._located(), path, replace=replace)
        self.storage.ping()
        return restored

    def _count_replica(self, outcome: str) -> None:
        self.metrics.service.count_replica(outcome)

    def _address(self) -> str | Callable[[], str]:
        given = self.settings.database_url
        return partial(self._start, self._server) if given is None else given.get_secret_value()

    def _located(self) -> str:
        address = self._address()
        return address() if callable(address) else address

    @part
    def _server(self) -> EmbeddedServer:
        """The embedded server, which stops with its last user."""
        server = EmbeddedServer(self.settings.data_dir)
        self.made.callback(server.stop)
        return server

    def give_up(self) -> None:
        """Let nothing of this context wait any longer for a database that is away, as it is to be closed."""
        self._give_up_starting()
        if self.stores_by_settings and (storage := vars(self).get("storage")) is not None:
            storage.give_up()

    def _give_up_starting(self) -> None:
        if (server := vars(self).get("_server")) is not None:
            server.give_up()

    def _start(self, server: EmbeddedServer) -> str:
        """Return the URL of the server, which runs now even if somebody killed it."""
        with self._starting:
            return server.start()

    def close(self) -> None:
        """Close what this context made, the last first; what was given stays open."""
        self._give_up_starting()
        self.made.close()

    def close_part(self, name: str, made: object) -> None:
        """Close a part, if it can be closed; it is made again if it is asked for."""
        if vars(self).get(name) is made:
            del vars(self)[name]
        if callable(close := getattr(made, "close", None)):
            close()

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
