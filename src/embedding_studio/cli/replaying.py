"""What would a log have been with other settings? replay."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from embedding_studio.bootstrap import Context
from embedding_studio.cli.console import (
    InCollection,
    check_writable,
    opened_context,
    out,
    shown_progress,
    tell,
)
from embedding_studio.domain.objects import CatalogueObject, Collection
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.embedders import embed_texts, query_embedding
from embedding_studio.embedders.names import told_apart
from embedding_studio.errors import EmbeddingError, InvalidDataError, InvalidInputError
from embedding_studio.evaluation.collection_folder import Progress
from embedding_studio.evaluation.methods import USERS_OF_SHARED
from embedding_studio.evaluation.replay import replay as replay_log
from embedding_studio.evaluation.replay_processes import OpenMethod
from embedding_studio.evaluation.replay_report import beside, replay_html, replay_markdown, replay_table
from embedding_studio.evaluation.replayed_methods import Counts, Plain, PlainSearch, Served
from embedding_studio.evaluation.session_log import SessionLog, given_time, log_of, read_session_log
from embedding_studio.search import SearchService
from embedding_studio.settings import Settings, load_settings
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import Storage, Vectors

PAGE_OF_OBJECTS = 1_000
TEXTS_AT_ONCE = 256


class Replayed(StrEnum):
    """What ``replay --method`` takes."""

    PLAIN = "plain"
    DEFAULT = "default"
    SHARED = "shared"
    COUNTS = "counts"


def replay(
    log: Annotated[
        str | None,
        typer.Argument(
            help="NDJSON, gzipped or not, a session a line; - is the standard input."
            " Default: what was recorded for the collection.",
        ),
    ] = None,
    *,
    collection: InCollection = DEFAULT_COLLECTION,
    method: Annotated[
        list[Replayed] | None,
        typer.Option(
            help="May be repeated: plain; default: the settings in force without sharing; shared: with it;"
            " counts: what was clicked most for the same query, then plain. Default: all."
        ),
    ] = None,
    with_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--with", help="A method of other settings: NAME=VALUE, several with spaces. May be repeated."
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="Searches from this time on: a date, or as the log has it.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Searches before this time.")] = None,
    measure_from: Annotated[
        str | None, typer.Option(help="What was searched before is learnt, and not measured.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="So many methods at once. Default: as many as there are processors."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with a picture here.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write a page here, such as docs/on-a-real-log.md.")
    ] = None,
    about: Annotated[
        Path | None, typer.Option(help="A text for these pages that says what log this is.")
    ] = None,
) -> None:
    """Rank the searches of a log anew, each at its own time by each method, and compare with plain search."""
    check_writable(json_file, html, markdown)
    with opened_context() as context, shown_progress() as show:
        first, last = given_time("--from", since), given_time("--until", until)
        told = _read(about) if about else ""
        measured_from = given_time("--measure-from", measure_from)
        wanted = method or ([] if with_settings else list(Replayed))
        changed = {given: _changed_settings(given) for given in with_settings or ()}
        known = context.storage.collections.get(collection)
        world = _World(context, known)
        chosen = world.log(log).between(first, last)
        query_vectors = _embedded(context, known, chosen, show)
        methods = world.methods(wanted) | {name: world.served(settings) for name, settings in changed.items()}
        threshold = context.settings.gate_threshold if known.gate_threshold is None else known.gate_threshold
        found = replay_log(
            chosen,
            methods,
            plain=world.plain(),
            index=known.index,
            gate_threshold=threshold,
            query_vectors=query_vectors,
            measure_from=measured_from,
            seed=seed,
            processes=processes or os.cpu_count() or 1,
            progress=show,
        )
    out.print(replay_table(found, known.name))
    for each in beside(found):
        kind, _, rest = each.partition(": ")
        tell(kind, rest, style="bold yellow" if kind == "warning" else "")
    command = shlex.join(["embedding-studio", *sys.argv[1:]])
    if html is not None:
        html.write_text(replay_html(found, known.name, command, told))
    if markdown is not None:
        markdown.write_text(replay_markdown(found, known.name, command, told))
    if json_file is not None:
        json_file.write_text(json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n")


def _read(about: Path) -> str:
    try:
        return about.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDataError(f"--about is {about}, which cannot be read: {error}") from error


class _World:
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


def _changed_settings(given: str) -> Settings:
    """Return the settings in force with those of ``--with`` in their place."""
    changed: dict[str, object] = {}
    for each in given.split():
        name, equals, value = each.partition("=")
        if not equals or name.lower() not in Settings.model_fields:
            raise InvalidInputError(
                f"--with is {given!r}, where {each!r} names no setting; write NAME=VALUE as "
                "`embedding-studio settings` lists them"
            )
        changed[name.lower()] = json.loads(value) if value.startswith("{") else value
    return load_settings(**changed)


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
        raise EmbeddingError(told_apart(collection, embedder.name))
    embedded: dict[str, Vectors] = {}
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = texts[start : start + TEXTS_AT_ONCE]
        embedded.update(
            zip(batch, embed_texts(embedder, batch, embed=query_embedding(embedder)), strict=True)
        )
        show("embed queries", len(embedded), len(texts))
    return embedded
