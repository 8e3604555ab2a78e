"""Pages in Debian's Chromium against the real service: PostgreSQL, HTTP, and the worker inside.

``open_page`` opens pages of a browser without a past. What goes wrong in one of them is in ``troubles``, and
fails the test at its end; a test that expects trouble asserts it and clears the list. ``service`` is over a
small catalogue, ``serve`` starts one with other settings, ``site`` serves a page from elsewhere.
"""

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    expect,
    sync_playwright,
)

from conftest import listening_socket, new_database
from embedding_studio.api.app import create_app
from embedding_studio.api.connections import server
from embedding_studio.bootstrap import Context
from embedding_studio.catalogue import CatalogueText
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.embedders import Embedder
from embedding_studio.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
IMAGES = DOCS / "images"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",  # root has none
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
]
SECONDS = 60
"""So long a page may take for what a test waits for."""

CATALOGUE = {
    "parka": "A warm winter parka with a fur hood",
    "anorak": "A light anorak against wind and rain",
    "coat": "A long wool coat for cold days",
    "raincoat": "A yellow raincoat that keeps you dry",
    "sweater": "A thick knitted sweater of merino wool",
    "scarf": "A soft scarf and matching mittens",
    "sandals": "Leather sandals for the beach",
    "boots": "Insulated boots for snow and ice",
    "kettle": "An electric kettle that boils a litre in three minutes",
    "lamp": "A desk lamp with a warm light",
}
"""What ``service`` is over."""


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is absent: apt-get install -y --no-install-recommends chromium")
    expect.set_options(timeout=SECONDS * 1_000)
    # Its event loop is the main thread's as long as it runs; no test outside this package has it.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def troubles() -> Iterator[list[str]]:
    """Return what went wrong in pages so far: errors on the console, uncaught ones, requests that failed."""
    found: list[str] = []
    yield found
    assert not found


@pytest.fixture
def open_browser(browser: Browser, troubles: list[str]) -> Iterator[Callable[..., BrowserContext]]:
    """Return what opens a browser without a past, with options such as ``color_scheme`` and ``viewport``."""

    def said(message: ConsoleMessage) -> None:
        if message.type == "error":
            troubles.append(message.text)

    def failed(request: Request) -> None:
        troubles.append(f"{request.method} {request.url}: {request.failure}")

    with ExitStack() as opened:

        def open_one(**options: Any) -> BrowserContext:
            context = browser.new_context(**options)
            opened.callback(context.close)
            context.set_default_timeout(SECONDS * 1_000)
            context.on("console", said)
            context.on("weberror", lambda uncaught: troubles.append(str(uncaught.error)))
            context.on("requestfailed", failed)
            return context

        yield open_one
        at_the_end = len(troubles)
        opened.close()
        del troubles[at_the_end:]  # what closing breaks off, as of a page that goes on looking


@pytest.fixture
def open_page(open_browser: Callable[..., BrowserContext]) -> Callable[..., Page]:
    """Return what opens a page in a browser of its own."""

    def open_one(**options: Any) -> Page:
        return open_browser(**options).new_page()

    return open_one


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page()


def meanwhile(page: Page, condition: Callable[[], Any]) -> Any:
    """Return what a condition says, once it says something; what the page asks for is answered meanwhile."""
    deadline = time.monotonic() + SECONDS
    while not (seen := condition()):
        assert time.monotonic() < deadline, f"not within {SECONDS} s"
        page.wait_for_timeout(20)
    return seen


def keep_screenshot(page: Page, name: str, *, full_page: bool = True) -> None:
    """Write ``docs/images/NAME.png`` of a page where KEEP_SCREENSHOTS=1 is set."""
    if os.environ.get("KEEP_SCREENSHOTS") == "1":
        taken = Image.open(BytesIO(page.screenshot(full_page=full_page, animations="disabled")))
        few_colours = taken.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)  # a third of the bytes
        few_colours.save(IMAGES / f"{name}.png", optimize=True)


def axe_findings(page: Page) -> list[str]:
    """Return what axe finds wrong with a page for those who cannot see it, or use no mouse."""
    return [
        f"{found['id']}: {found['help']}: {', '.join(str(node['target']) for node in found['nodes'])}"
        for found in Axe().run(page).response["violations"]
    ]


@pytest.fixture(scope="package")
def embedder() -> Embedder:
    """Return the default embedder, loaded once for all services."""
    with Context(Settings(_env_file=None)) as context:
        assert context.embedder is not None
        return context.embedder


@pytest.fixture(scope="package")
def catalogue_url(postgres_server: str, embedder: Embedder) -> Iterator[str]:
    """Return the URL of a database with ``CATALOGUE`` in its default collection."""
    with new_database(postgres_server) as url:
        with Context(Settings(_env_file=None, database_url=url), embedder=embedder) as context:
            objects = [
                CatalogueText(object_id, text, {"title": object_id, "text": text})
                for object_id, text in CATALOGUE.items()
            ]
            context.index_objects(DEFAULT_COLLECTION, objects)
        yield url


@pytest.fixture
def database_url(postgres_server: str, catalogue_url: str) -> Iterator[str]:
    """Return the URL of a copy of that database."""
    with new_database(postgres_server, urlsplit(catalogue_url).path.lstrip("/")) as url:
        yield url


@dataclass
class Service:
    """A service that runs in this process.

    Attributes:
        port: the same after ``stop`` and ``start``.
    """

    context: Context
    port: int = 0
    _running: ExitStack = field(default_factory=ExitStack)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        listening = self._running.enter_context(listening_socket(self.port))
        self.port = listening.getsockname()[1]
        app = create_app(self.context, background=self.context.worker().run)
        uvicorn_server: uvicorn.Server = server(app, self.context.settings)
        thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listening]})
        thread.start()
        self._running.callback(thread.join)
        self._running.callback(setattr, uvicorn_server, "should_exit", True)

    def stop(self) -> None:
        self._running.close()


@contextmanager
def _served(embedder: Embedder, **settings: Any) -> Iterator[Service]:
    with Context(Settings(_env_file=None, **settings), embedder=embedder) as context:
        service = Service(context)
        service.start()
        try:
            yield service
        finally:
            service.stop()


@pytest.fixture
def serve(embedder: Embedder, database_url: str) -> Iterator[Callable[..., Service]]:
    """Return what starts a service with settings of a test's own, over a copy of the catalogue."""
    with ExitStack() as opened:

        def start_one(**settings: Any) -> Service:
            given = {"database_url": database_url} | settings
            return opened.enter_context(_served(embedder, **given))

        yield start_one


@pytest.fixture
def service(serve: Callable[..., Service]) -> Service:
    return serve()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing of requests."""


@contextmanager
def folder_served(folder: Path) -> Iterator[str]:
    """Serve the files of a folder from a port of their own; yield the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[[dict[str, str]], str]]:
    """Return what writes files, by name, and says where they are served: a site that is not the service."""
    folder = tmp_path / "site"
    folder.mkdir()
    with folder_served(folder) as url:

        def site_of(files: dict[str, str]) -> str:
            for name, content in files.items():
                (folder / name).write_text(content)
            return url

        yield site_of


def sample_of(page: str, mark: str, *, service: str, key: str) -> str:
    """Return the HTML in a page of the documentation in which ``mark`` stands, for a service and a key."""
    blocks = re.findall(r"```html\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    (sample,) = [block for block in blocks if mark in block]
    sample = sample.replace("https://search.example", service).replace("KEY", key)
    icon = '<!doctype html><html lang="en"><title>Shop</title><link rel="icon" href="data:,">'
    return icon + sample.removeprefix("<!doctype html>")
