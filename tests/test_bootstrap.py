import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from embedding_studio import CatalogueText, Context, PassiveAggressiveAdjuster, SearchIndexInfo, load_settings
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.errors import ConflictError, EmbeddingError, InvalidInputError
from embedding_studio.feedback.improve import Improver
from embedding_studio.indexing import BATCH_TEXTS, Indexer
from embedding_studio.search import SearchService
from embedding_studio.storage.memory import MemoryStorage
from test_indexing import MeetingEmbedder

HERE = CatalogueObject("brought", np.array([[1, 0]], dtype=np.float32))


@pytest.fixture
def context(memory):
    with Context(load_settings(embedder="none"), storage=memory) as context:
        yield context


def test_a_context_that_was_closed_opens_again(postgres_url):
    context = Context(load_settings(embedder="none", database_url=postgres_url))
    context.collection(index=SearchIndexInfo(dimensions=2))
    context.index_objects("default", [HERE])
    context.search.search([1, 0])
    context.close()

    with context:
        found = context.search.search([1, 0]).results

    assert [each.object_id for each in found] == ["brought"]


def test_a_storage_that_was_given_stays_open(memory):
    with Context(load_settings(embedder="none"), storage=memory) as context:
        assert context.storage is memory

    assert memory.collections.list() == []


class TwoWords:
    """An embedder of two dimensions: how often a text says "up", and "down"."""

    name, dimensions = "two words", 2

    def embed(self, texts, *, progress=None):  # noqa: ARG002, a part of the port
        return np.array([[1e-3 + text.count("up"), text.count("down")] for text in texts], dtype=np.float32)

    def split(self, text):
        return [text]


def test_an_embedder_may_be_given_and_a_search_be_called(memory):
    with Context(storage=memory, embedder=TwoWords()) as context:
        context.index_objects("default", [CatalogueText("a", "up"), CatalogueText("b", "down")])

        found = context.search("down down", limit=1)

        assert [each.object_id for each in found.results] == ["b"]
        assert context.search.search("down down", limit=1) == found
        assert context.collection().embedder == "two words"


class Closing:
    """Notes that it is closed, and lets everything else be done by what it stands before."""

    def __init__(self, name, part, closed):
        self.told, self.part, self.closed = name, part, closed

    def __getattr__(self, name):
        return getattr(self.part, name)

    def close(self):
        self.closed.append(self.told)


def test_what_a_context_made_is_closed_the_last_first(monkeypatch, memory):
    closed = []
    storage, embedder = Closing("storage", memory, closed), Closing("embedder", TwoWords(), closed)
    monkeypatch.setattr(Context, "open_storage", lambda _: storage)

    class MyPlugin:
        def get_embedder(self):
            return embedder

    with Context(load_settings(embedder="none"), plugin=MyPlugin) as context:
        context.index_objects("default", [CatalogueText("a", "up")])
        searching = context.search
    assert closed == ["embedder", "storage"]

    assert context.search is not searching
    assert context.search("up").results[0].object_id == "a"
    context.close()
    assert closed == ["embedder", "storage"] * 2


def test_a_part_that_cannot_be_closed_keeps_no_other_open(monkeypatch, memory):
    closed = []

    class Stuck(TwoWords):
        def close(self):
            raise OSError("it hangs")

    class MyPlugin:
        def get_embedder(self):
            return Stuck()

    monkeypatch.setattr(Context, "open_storage", lambda _: Closing("storage", memory, closed))
    context = Context(load_settings(embedder="none"), plugin=MyPlugin)
    context.index_objects("default", [CatalogueText("a", "up")])

    with pytest.raises(OSError, match="it hangs"):
        context.close()

    assert closed == ["storage"]


def test_parts_that_were_given_are_used_and_stay_open(memory):
    closed = []
    storage: Any = Closing("storage", memory, closed)
    embedder = Closing("embedder", TwoWords(), closed)
    given: dict[str, Any] = {
        "search": SearchService(storage, embedder=embedder),
        "indexer": Indexer(storage, embedder, guards_gates=False),
        "improver": Improver(storage, PassiveAggressiveAdjuster),
    }

    with Context(load_settings(embedder="none"), storage=storage, embedder=embedder, **given) as context:
        context.index_objects("default", [CatalogueText("a", "up"), CatalogueText("b", "down")])
        assert context.search("down", limit=1).results[0].object_id == "b"
        parts = {"search": context.search, "indexer": context.indexer, "improver": context.improver()}

    assert parts == given
    assert closed == []


def test_a_plugin_that_is_given_is_completed_by_the_settings(memory):
    class MyPlugin:
        def get_search_index_info(self):
            return SearchIndexInfo(metric_type="dot", dimensions=2)

    with Context(load_settings(embedder="none"), storage=memory, plugin=MyPlugin) as context:
        assert context.collection().index.metric_type == "dot"
        assert context.embedder is None


def test_threads_that_come_at_once_share_one_of_each_part(monkeypatch):
    opened: list[MemoryStorage] = []
    together = threading.Barrier(5)
    seen = []

    def open_storage(self):
        opened.append(MemoryStorage())
        return opened[-1]

    def look():
        together.wait()
        seen.append(shared.storage)

    monkeypatch.setattr(Context, "open_storage", open_storage)
    shared = Context(load_settings(embedder="none"))
    threads = [threading.Thread(target=look) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(opened) == 1
    assert seen == opened * 5


def test_nothing_is_stored_where_a_text_cannot_be_embedded(context):
    context.collection(index=SearchIndexInfo(dimensions=2))

    with pytest.raises(EmbeddingError, match="no embedder for texts"):
        context.index_objects("default", [HERE, CatalogueText("text", "words")])

    assert context.storage.objects.count(context.collection()) == 0


def test_nothing_is_stored_in_a_collection_of_another_embedder(memory):
    memory.collections.create("other", SearchIndexInfo(dimensions=2), embedder="another model")
    context = Context(load_settings(), storage=memory)

    with pytest.raises(ConflictError, match="another model"):
        context.index_objects("other", [HERE, CatalogueText("text", "words")])

    assert memory.objects.count(memory.collections.get("other")) == 0


def test_what_is_neither_a_text_nor_an_object_is_refused_by_its_place(context):
    context.collection(index=SearchIndexInfo(dimensions=2))

    with pytest.raises(
        InvalidInputError, match=r"object 1 .* is \{'id': 'a'\}, a dict; give a CatalogueText"
    ):
        context.index_objects("default", [HERE, {"id": "a"}])


def test_a_stream_is_stored_while_it_is_read(context):
    collection = context.collection(index=SearchIndexInfo(dimensions=2))
    stored_at = []

    def stream():
        for number in range(10_000):
            stored_at.append(context.storage.objects.count(collection))
            yield CatalogueObject(str(number), np.array([[1, number]], dtype=np.float32))

    report = context.index_objects("default", stream())

    assert report.indexed == 10_000
    assert max(number - stored for number, stored in enumerate(stored_at)) <= 3_000


def test_so_many_batches_are_embedded_at_once_as_the_setting_says(memory):
    context = Context(load_settings(embedder="none", index_threads=2), storage=memory)
    context.embedder = MeetingEmbedder(2)
    texts = [CatalogueText(str(number), "a") for number in range(2 * BATCH_TEXTS)]

    assert context.index_objects("default", texts).indexed == 512


def test_the_gate_is_guarded_by_a_sample_of_a_stream(context):
    collection = context.collection(index=SearchIndexInfo(dimensions=2))
    alike = (
        CatalogueObject(str(number), np.array([[1, number * 1e-6]], dtype=np.float32))
        for number in range(2_345)
    )

    context.index_objects("default", alike)

    assert context.storage.collections.get(collection.name).gate_threshold == 0.95


def test_an_embedded_server_that_was_started_again_ends_with_the_process():
    with tempfile.TemporaryDirectory(prefix="embedding-studio-bootstrap-") as folder:
        Path(folder).chmod(0o755)  # as root the server runs as somebody else, who must get in
        program = (
            "import pathlib, sys\n"
            "from embedding_studio.storage.embedded.server import EmbeddedServer\n"
            "server = EmbeddedServer(pathlib.Path(sys.argv[1]))\n"
            "server.start()\n"
            "server.stop()\n"
            "print(server.start())\n"
        )

        ran = subprocess.run(
            [sys.executable, "-c", program, f"{folder}/data"], capture_output=True, text=True, check=True
        )

        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(ran.stdout.strip())
