"""What the demonstration is on: two collections, and searches in them that tell something."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from embedding_studio.catalogue import CatalogueText, read_python_documentation
from embedding_studio.demo.shop import read_shop


@dataclass(frozen=True, slots=True)
class Scene:
    """A query, what somebody who asks it may look for, and the same wish in other words."""

    query: str
    wished_id: str
    reworded: str


@dataclass(frozen=True, slots=True)
class Subject:
    """A collection that is shown.

    Attributes:
        read: yields what it holds, or so many of that.
        scenes: the first is the page's tour.
        mistake_id: what somebody may click by mistake in the first scene.
        unrelated: a query that no click on what is wished bears on.
    """

    collection: str
    title: str
    read: Callable[[int], Iterator[CatalogueText]]
    scenes: tuple[Scene, ...]
    mistake_id: str
    unrelated: str


SHOP = Subject(
    "shop",
    "Shop",
    lambda _: read_shop(),
    (
        Scene(
            "something warm for a rainy walk",
            "harbour-lined-raincoat",
            "warm clothes for walking in the rain",
        ),
        Scene("a present for a tea lover", "cast-iron-teapot", "gift for somebody who loves tea"),
        Scene("warm coat", "polar-parka", "a coat that keeps me warm"),
        Scene("outfit for a summer wedding", "garden-party-dress", "what to wear to a wedding in summer"),
        Scene("cosy evening on the sofa", "wool-blanket", "a cosy night on the couch"),
    ),
    mistake_id="picnic-blanket",
    unrelated="running shoes",
)

PYTHON = Subject(
    "python-documentation",
    "Python documentation",
    read_python_documentation,
    (
        Scene(
            "run a command and get its output", "subprocess.run", "execute a command and capture its output"
        ),
        Scene("remember the results of a function", "functools.cache", "remember what a function returned"),
        Scene("sort a list of dictionaries by a key", "sorted", "order a list of dictionaries by a key"),
        Scene("make an http request", "httpx.get", "send an http request"),
        Scene("generate a unique id", "uuid.uuid4", "create a unique identifier"),
        Scene(
            "find all files that match a pattern", "pathlib.Path.rglob", "list all files matching a pattern"
        ),
    ),
    mistake_id="sys.displayhook",
    unrelated="draw a progress bar in the terminal",
)

SUBJECTS = (SHOP, PYTHON)
"""What is wished stands between the third and the ninth place at the start (Python 3.11, MiniLM)."""
