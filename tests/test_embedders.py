import gzip
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from embedding_studio.embedders import embedder_by_name
from embedding_studio.embedders.openai_compatible import OpenAICompatibleEmbedder
from embedding_studio.embedders.sentence_transformers import SentenceTransformersEmbedder
from embedding_studio.errors import EmbeddingError, InvalidSettingError

CRANFIELD = Path("/work/shared/data/cranfield")
KEY = "sk-a-very-secret-key"


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("sentence_transformers")
    return SentenceTransformersEmbedder("all-MiniLM-L6-v2")


def test_the_packaged_model_is_loaded_without_a_network_and_without_a_word(monkeypatch, capfd):
    pytest.importorskip("sentence_transformers")

    def refuse(*address):
        raise AssertionError(f"a connection to {address} was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    embedder = SentenceTransformersEmbedder("sentence-transformers/all-MiniLM-L6-v2")

    assert embedder.dimensions == 384
    assert embedder.embed(["How do I read a file?"]).shape == (1, 384)
    assert capfd.readouterr() == ("", "")


def test_the_packaged_model_gives_the_cosines_that_it_gave(minilm):
    file, same, weather = minilm.embed(
        ["How do I read a file?", "open a file for reading", "the weather is nice"]
    )

    assert file.dtype == np.float32
    assert_allclose(np.linalg.norm([file, same, weather], axis=1), 1, atol=1e-5)
    # sentence-transformers 6.2.0, torch 2.13.0, float32 on an AMD EPYC
    assert_allclose([file @ same, file @ weather, same @ weather], [0.82950, 0.01096, 0.04541], atol=1e-4)


@pytest.mark.skipif(not CRANFIELD.is_dir(), reason="the measured collections are not on this machine")
def test_the_packaged_model_agrees_with_the_vectors_of_a_measured_collection(minilm):
    rows = np.load(CRANFIELD / "items.f16.npy")[:7].astype(np.float32)
    with gzip.open(CRANFIELD / "items.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(next(file))["text"] for _ in rows]

    vectors = minilm.embed(texts)

    assert_allclose((vectors * rows).sum(axis=1), 1, atol=1e-3)  # they are kept in float16


def test_vectors_stand_in_the_order_of_the_texts_whatever_their_length(minilm):
    texts = ["word " * (1 + 7 * n % 31) + str(n) for n in range(37)]

    together = minilm.embed(texts)
    alone = np.concatenate([minilm.embed([text]) for text in texts])

    assert_allclose(together, alone, atol=1e-5)


def test_progress_counts_every_text_once(minilm):
    done = []

    minilm.embed(["a text"] * 37, progress=done.append)

    assert sum(done) == 37
    assert len(done) > 1


def test_no_texts_give_no_vectors(minilm):
    assert minilm.embed([]).shape == (0, 384)


def test_threads_may_share_an_embedder(minilm):
    texts = [f"{'long ' * (n % 5)} text number {n}" for n in range(11)]
    expected = minilm.embed(texts)

    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(minilm.embed, [texts] * 7))

    for vectors in found:
        assert_allclose(vectors, expected, atol=1e-5)


def test_a_long_text_is_split_so_that_the_model_reads_all_of_it(minilm):
    text = " ".join(f"Sentence number {n} speaks of something else." for n in range(101))

    parts = minilm.split(text)

    assert len(parts) == 4
    assert " ".join(parts) == text
    tokenizer = minilm._load().model.tokenizer
    assert max(len(tokenizer(part)["input_ids"]) for part in parts) <= 256  # with the two that frame a text


def test_a_short_text_is_one_part_as_it_stands(minilm):
    assert minilm.split(" a short text\n") == [" a short text\n"]
    assert minilm.split("") == [""]
    assert minilm.split(" " * 1001) == [" " * 1001]


def test_a_folder_without_a_model_is_one_clear_error(tmp_path):
    pytest.importorskip("sentence_transformers")
    embedder = SentenceTransformersEmbedder(str(tmp_path))

    with pytest.raises(EmbeddingError, match="cannot be loaded"):
        embedder.embed(["a text"])


class Endpoint(ThreadingHTTPServer):
    """Speaks OpenAI's protocol: the vector of a text is (its length, 1, its place in the batch).

    Attributes:
        answers: what to say instead, one for each request while there are any: status, headers, body.
        requests: (path, authorization, body) of each.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answering)
        self.answers = []
        self.requests = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Answering(BaseHTTPRequestHandler):
    server: "Endpoint"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        rows = [
            {"object": "embedding", "index": place, "embedding": [len(text), 1, place]}
            for place, text in enumerate(body["input"])
        ]
        answer = (200, {}, {"object": "list", "data": rows[::-1], "usage": {"total_tokens": 3}})
        status, headers, content = self.server.answers.pop(0) if self.server.answers else answer
        payload = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(payload))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def embedder(endpoint):
    with OpenAICompatibleEmbedder(
        endpoint.url + "/", "tiny", KEY, attempts=3, backoff_seconds=0.001
    ) as embedder:
        yield embedder


def test_an_endpoint_is_asked_in_batches_and_answers_are_ordered_by_index(endpoint, embedder):
    texts = ["x" * n for n in range(1, 102)]
    done = []

    vectors = embedder.embed(texts, progress=done.append)

    assert vectors.dtype == np.float32
    assert vectors[:, 0].tolist() == list(range(1, 102))
    assert done == [64, 37]
    assert [len(body["input"]) for _, _, body in endpoint.requests[-2:]] == [64, 37]
    path, authorization, body = endpoint.requests[-1]
    assert (path, authorization, body["model"]) == ("/v1/embeddings", f"Bearer {KEY}", "tiny")


def test_an_endpoint_tells_its_dimensions_once(endpoint, embedder):
    assert embedder.dimensions == 3
    assert embedder.dimensions == 3
    assert embedder.embed([]).shape == (0, 3)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (429, {"Retry-After": "0"}),
        (429, {"Retry-After": formatdate(0, usegmt=True)}),
        (429, {"Retry-After": "soon"}),
        (500, {}),
        (503, {}),
    ],
)
def test_a_busy_endpoint_is_asked_again(endpoint, embedder, status, headers):
    endpoint.answers = [(status, headers, {"error": "busy"})] * 2

    assert embedder.embed(["abc"])[0, 0] == 3
    assert len(endpoint.requests) == 4  # two refused, then the dimensions, then the text


def test_an_endpoint_that_stays_busy_is_given_up_after_the_last_attempt(endpoint, embedder):
    endpoint.answers = [(503, {}, {"error": "overloaded"})] * 5

    with pytest.raises(EmbeddingError, match=r"refused with status 503: .*overloaded"):
        embedder.embed(["abc"])

    assert len(endpoint.requests) == 3


def test_a_refused_key_is_told_at_once_and_never_repeated(endpoint, embedder):
    endpoint.answers = [(401, {}, {"error": f"incorrect key {KEY}"})]

    with pytest.raises(EmbeddingError, match=r"status 401: .*incorrect key \*\*\*") as caught:
        embedder.embed(["abc"])

    assert len(endpoint.requests) == 1
    assert KEY not in str(caught.value)
    assert KEY not in embedder.name


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"data": []}, "answered 0 embeddings, with other indices than the 1 texts have"),
        ({"data": [{"index": 1, "embedding": [1, 2, 3]}]}, "with other indices"),
        ({"data": [{"index": 0, "embedding": []}]}, r"embeddings of \[0\] dimensions"),
        ({"data": [{"index": 0, "embedding": ["one"]}]}, "what is no list of embeddings"),
        ({"data": [{"index": 0, "embedding": [float("nan")]}]}, "not finite"),
        ({"error": "no such model"}, "what is no list of embeddings: .*no such model"),
    ],
)
def test_an_answer_that_is_no_vector_is_an_error(endpoint, embedder, answer, told):
    endpoint.answers = [(200, {}, answer)]

    with pytest.raises(EmbeddingError, match=told):
        embedder.embed(["abc"])


def test_an_endpoint_may_not_change_its_dimensions(endpoint, embedder):
    assert embedder.dimensions == 3
    endpoint.answers = [(200, {}, {"data": [{"index": 0, "embedding": [1, 2]}]})]

    with pytest.raises(EmbeddingError, match=r"embeddings of \[2\] dimensions where 3 were expected"):
        embedder.embed(["abc"])


def test_an_endpoint_that_is_not_there_is_an_error_with_its_address():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            OpenAICompatibleEmbedder(url, "tiny", attempts=2, backoff_seconds=0.001) as embedder,
            pytest.raises(EmbeddingError, match=rf"{url}.*cannot be reached in 2 attempts"),
        ):
            embedder.embed(["abc"])


def test_a_long_text_for_an_endpoint_is_split_by_characters(embedder):
    text = " ".join(f"Sentence number {n} speaks of something else." for n in range(101))

    parts = embedder.split(text)

    assert " ".join(parts) == text
    assert max(map(len, parts)) <= 2000
    assert embedder.split("") == [""]


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("all-MiniLM-L6-v2", "sentence-transformers:all-MiniLM-L6-v2"),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers:all-MiniLM-L6-v2"),
        ("sentence-transformers:all-MiniLM-L6-v2", "sentence-transformers:all-MiniLM-L6-v2"),
        ("sentence-transformers:BAAI/bge-small-en", "sentence-transformers:BAAI/bge-small-en"),
        ("/models/own", "sentence-transformers:/models/own"),
        ("openai:tiny@http://127.0.0.1:11434/v1/", "openai:tiny@http://127.0.0.1:11434/v1"),
    ],
)
def test_an_embedder_is_found_by_its_setting_and_again_by_its_name(setting, name):
    embedder = embedder_by_name(setting)

    assert embedder.name == name
    assert embedder_by_name(embedder.name).name == name


def test_none_is_no_embedder():
    assert embedder_by_name("none") is None


@pytest.mark.parametrize(
    "setting", ["", " ", "sentence-transformers:", "openai:tiny", "openai:@http://x", "openai:"]
)
def test_a_setting_that_names_no_embedder_is_refused(setting):
    with pytest.raises(InvalidSettingError, match="openai:MODEL@BASE_URL"):
        embedder_by_name(setting)
