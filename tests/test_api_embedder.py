"""The service while an embedder fails, and nothing else does."""

import socket
import threading
import time

import httpx
import numpy as np
import pytest

from embedding_studio import Context, SearchIndexInfo, load_settings
from embedding_studio.api.app import create_app
from embedding_studio.storage.memory import MemoryStorage
from test_api_service import EVENTS, SEARCH, serving


@pytest.fixture
def hanging():
    """The address of an endpoint that takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def test_nothing_but_texts_waits_for_an_endpoint_that_hangs(hanging):
    settings = load_settings(embedder=f"openai:tiny@{hanging}", embedder_query_seconds=6)
    storage = MemoryStorage()
    storage.collections.create("films", SearchIndexInfo(dimensions=3), embedder="openai:tiny")
    text = {"search_query": "red", "collection": "films"}
    answers = []
    with Context(settings, storage=storage) as context, serving(create_app(context)) as client:

        def search():
            answers.append(client.post(SEARCH, json=text))

        def leave():
            with pytest.raises(httpx.ReadTimeout):
                client.post(SEARCH, json=text, timeout=0.5)

        searching = [threading.Thread(target=work) for work in [search] * 45 + [leave] * 15]
        for thread in searching:
            thread.start()
        time.sleep(1)
        others = [
            client.post(SEARCH, json={"search_query": [1, 0, 0], "collection": "films"}),
            client.post(EVENTS, json={"session_id": "s", "events": [{"object_id": "a"}]}),
            client.get("/healthz"),
            client.get("/readyz"),
        ]
        answered_first = not answers
        for thread in searching:
            thread.join()
        refused = client.post(SEARCH, json=text)
        ready = client.get("/readyz")

    assert [each.status_code for each in others] == [200] * 4
    assert answered_first  # while those who search by text wait 6 s
    assert {each.status_code for each in [*answers, refused]} == {503}
    assert 1 <= int(refused.headers["retry-after"]) <= 5
    assert refused.elapsed.total_seconds() < 5
    assert refused.json()["type"] == "urn:embedding-studio:embedder-unavailable"
    assert "texts cannot be embedded just now" in refused.json()["detail"]
    assert ready.status_code == 200
    assert ready.json()["failing"] == ["texts cannot be searched: the embedding endpoint does not answer"]


class Broken:
    """An embedder that gives what is no vector."""

    name = "broken"
    dimensions = 3

    def __init__(self, numbers):
        self.numbers = numbers

    def embed(self, texts, **_):
        return np.array([self.numbers] * len(texts), dtype=np.float32)

    def split(self, text):
        return [text]


@pytest.mark.parametrize("numbers", [[0, 0, 0], [float("nan"), 0, 0], [1, 2]])
def test_what_is_no_vector_is_not_blamed_on_who_sent_a_text(numbers):
    storage = MemoryStorage()
    storage.collections.create("films", SearchIndexInfo(dimensions=3), embedder="broken")
    context = Context(load_settings(), storage=storage, embedder=Broken(numbers))

    with serving(create_app(context)) as client:
        answer = client.post(SEARCH, json={"search_query": "red", "collection": "films"})

    assert answer.status_code == 502
    assert "texts cannot be embedded just now" in answer.json()["detail"]
