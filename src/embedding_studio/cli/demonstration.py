"""The demo: a page where a person sits before a terminal, else the same story as tables."""

import json
import logging
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer

from embedding_studio.bootstrap import Context
from embedding_studio.cli.catalogue import store
from embedding_studio.cli.console import on_stop, opened_context, out, quiet
from embedding_studio.cli.serving import bound, url_of
from embedding_studio.demo.story import Demo
from embedding_studio.demo.subjects import SHOP, SUBJECTS, Subject
from embedding_studio.errors import EmbeddingStudioError
from embedding_studio.indexing import index_objects
from embedding_studio.settings import Settings, load_settings

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

OTHERS = 3
"""So many people must have clicked for it to bear on everybody, where the page turns that on."""

FOLDER = "demo"
"""Below ``DATA_DIR``."""

WITH_OTHERS = "/with-others"
"""Below it is the same service again, in which what others clicked counts."""

NICENESS = 5
FEW_TEXTS = 64
"""So many are embedded before it is looked whether to go on."""

REPLAYED = Path(__file__).parents[1] / "demo" / "replayed.json"


@dataclass
class Shown:
    """A subject, and how much of it can be searched."""

    subject: Subject
    done: int = 0
    total: int | None = None
    is_whole: bool = False
    trouble: str | None = None


@dataclass
class Stage:
    """What the page shows, as far as it is there.

    Attributes:
        objects: so much of the documentation is indexed.
    """

    context: Context
    objects: int
    shown: list[Shown] = field(default_factory=lambda: [Shown(each) for each in SUBJECTS])
    closing: threading.Event = field(default_factory=threading.Event)

    def state(self) -> dict[str, Any]:
        """Return what the page asks for, as JSON has it."""
        return {
            "subjects": [
                {
                    "collection": each.subject.collection,
                    "title": each.subject.title,
                    "scenes": [asdict(scene) for scene in each.subject.scenes],
                    "mistake_id": each.subject.mistake_id,
                    "done": each.done,
                    "total": each.total,
                    "is_whole": each.is_whole,
                    "trouble": each.trouble,
                }
                for each in self.shown
            ],
            "others": OTHERS,
            "has_console": self.context.settings.console,
            "replayed": json.loads(REPLAYED.read_text()),
        }

    def fill(self) -> None:
        """Index what is not whole yet, until the stage closes."""
        # A model of its own, whose threads are started by this one and have its priority.
        with Context(self.context.settings, storage=self.context.storage) as context:
            for each in self.shown:
                if each.is_whole:
                    continue
                try:
                    self._index(context, each)
                except EmbeddingStudioError as error:
                    each.trouble = str(error)
                    logger.warning("%s cannot be indexed: %s", each.subject.title, error)

    def _index(self, context: Context, shown: Shown) -> None:
        objects = list(shown.subject.read(self.objects))
        shown.total = len(objects)
        name = shown.subject.collection
        collection = context.collection(name)
        for start in range(0, len(objects), FEW_TEXTS):
            if self.closing.is_set():
                return
            few = objects[start : start + FEW_TEXTS]
            index_objects(context.storage, collection, few, context.embedder)
            shown.done += len(few)
        context.index_objects(
            name, objects
        )  # nothing is embedded again; it looks at the collection as a whole
        shown.is_whole = True


def demo(
    *,
    objects: Annotated[int, typer.Option(min=100, help="How much of the documentation to index.")] = 10_000,
    keep_serving: Annotated[
        bool | None,
        typer.Option(
            help="Serve the page; else print the story. Default: only in a terminal, and not where CI is set."
        ),
    ] = None,
) -> None:
    """Show the loop on a small shop and on the documentation of Python, as a page or as tables.

    What it stores is in a database of its own, below DATA_DIR: yours is not touched.
    """
    if keep_serving is None:
        keep_serving = sys.stdout.isatty() and not os.environ.get("CI")
    with (
        opened_context(_context) as context,
        bound(context.settings, None, None) as listening,
        quiet("embedding_studio"),  # the worker's lines cut the tables
    ):
        stage = Stage(context, objects)
        for each in stage.shown:
            if each.subject is SHOP or not keep_serving:
                texts = list(each.subject.read(objects))
                store(context, each.subject.collection, texts, len(texts))
                each.done, each.total, each.is_whole = len(texts), len(texts), True
        with serving(stage, listening):
            if keep_serving:
                _show_page(stage, url_of(listening))
            else:
                with httpx.Client(
                    base_url=url_of(listening), headers=_authorization(context.settings)
                ) as client:
                    for each in stage.shown:
                        Demo(client, out, each.subject).run()


def _context() -> Context:
    """Return a context over a database of the demo's own, whatever yours has under the same names."""
    settings = load_settings()
    own = {"database_url": None, "data_dir": settings.data_dir / FOLDER, "shared_min_users": 0}
    return Context(settings.model_copy(update=own))


def _show_page(stage: Stage, url: str) -> None:
    page = f"{url}/demo"
    out.print(f"\nOpen {page} in a browser; it serves until you press Ctrl-C.\n", soft_wrap=True)
    if stage.context.settings.admin_api_key is not None:
        out.print("It asks for the key in ADMIN_API_KEY.")
    if has_desktop():
        threading.Thread(target=open_page, args=(page,), daemon=True).start()
    filling = threading.Thread(target=_fill_behind, args=(stage,), name="filling", daemon=True)
    filling.start()
    on_stop(stage.closing.set)  # also where Ctrl-C is ignored, as of what a shell left in the background
    stage.closing.wait()
    filling.join()


def _fill_behind(stage: Stage) -> None:
    """Fill the stage in this thread, to which searches and clicks are preferred."""
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    stage.fill()


def has_desktop() -> bool:
    """Return whether a browser that is opened here is seen by whoever started this."""
    is_windowed = sys.platform in {"darwin", "win32"} or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    return is_windowed and not os.environ.get("SSH_CONNECTION")


def open_page(url: str) -> None:
    """Open a page in the browser of the desktop, if it has one."""
    with suppress(OSError, webbrowser.Error):
        webbrowser.open(url)


@contextmanager
def serving(stage: Stage, listening: socket.socket) -> Iterator[None]:
    """Serve as long as the block runs, in a thread of its own."""
    from embedding_studio.api.connections import server as server_of

    with staged(stage) as app:
        listening.listen()  # who comes before the server is up waits, instead of being refused
        server = server_of(app, stage.context.settings)
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        serving.start()
        try:
            yield
        finally:
            server.should_exit = True
            serving.join()


@contextmanager
def staged(stage: Stage) -> Iterator["FastAPI"]:
    """Yield the service with the page; and below ``WITH_OTHERS`` once more, with what others clicked."""
    from embedding_studio.api.app import create_app

    with _sharing(stage.context, OTHERS) as together:
        app = create_app(stage.context, background=together.worker().run, shown=["demo"])
        app.add_api_route("/demo-state", _state_of(stage), include_in_schema=False)
        app.mount(WITH_OTHERS, create_app(together))
        yield app


def _state_of(stage: Stage) -> Callable[[], Any]:
    async def state() -> dict[str, Any]:
        return stage.state()

    return state


def _sharing(context: Context, users: int) -> Context:
    """Return a context over the same storage, in which so many others must have clicked; 0: none counts."""
    settings = context.settings.model_copy(update={"shared_min_users": users})
    return Context(settings, storage=context.storage, embedder=context.embedder)


def _authorization(settings: Settings) -> dict[str, str]:
    key = settings.admin_api_key
    return {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
