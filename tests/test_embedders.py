import base64
import json
import logging
import socket
import struct
import threading
import time
import tracemalloc
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from numpy.testing import assert_allclose

from embedding_studio.embedders import EmbedderOptions, embed_texts, embedder_by_name, query_embedding
from embedding_studio.embedders.circuit_breaker import CircuitBreaker
from embedding_studio.embedders.names import is_called
from embedding_studio.embedders.openai_compatible import OpenAICompatibleEmbedder
from embedding_studio.embedders.sentence_transformers import SentenceTransformersEmbedder
from embedding_studio.errors import EmbedderUnavailableError, EmbeddingError, InvalidSettingError

KEY = "sk-a-very-secret-key"


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
        most_texts, most_characters: more are refused.
        write: makes a row of the answer of a place in the batch and a vector.
        hangs: whether nothing is answered till the end.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answering)
        self.answers = []
        self.requests = []
        self.most_texts = self.most_characters = 10**9
        self.too_many = (422, {"message": "batch size is too large"})
        self.write = lambda place, vector: {"object": "embedding", "index": place, "embedding": vector}
        self.ended = threading.Event()
        self.hangs = False

    def answer_to(self, texts):
        if len(texts) > self.most_texts:
            return self.too_many
        if max(map(len, texts)) > self.most_characters:
            return 413, {"message": "input must have less tokens"}
        rows = [self.write(place, [len(text), 1, place]) for place, text in enumerate(texts)]
        return 200, {"object": "list", "data": rows, "usage": {"total_tokens": 3}}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Answering(BaseHTTPRequestHandler):
    server: "Endpoint"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the client's word that it has the head

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        if self.server.hangs:
            self.server.ended.wait(30)
            return
        status, content = self.server.answer_to(body["input"])
        headers = {}
        if self.server.answers:
            status, headers, content = self.server.answers.pop(0)
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
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
        server.ended.set()
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
        ({"data": []}, "answered 0 embeddings, with other indices than the 1 text has"),
        ({"data": [{"index": 1, "embedding": [1, 2, 3]}]}, "with other indices"),
        ({"data": [{"index": 0, "embedding": []}]}, r"embeddings of \[0\] dimensions"),
        ({"data": [{"index": 0, "embedding": ["one"]}]}, "what is no list of embeddings"),
        ({"data": [{"index": 0, "embedding": [float("nan")]}]}, "what is no list of embeddings: .*NaN"),
        ({"data": [{"index": 0, "embedding": [1e39]}]}, "not finite"),
        ({"data": [{"index": 0, "embedding": [[1]]}]}, "what is no list of embeddings"),
        ({"data": [{"index": 0, "embedding": "no base64"}]}, "what is no list of embeddings"),
        ({"data": [{"index": "0", "embedding": [1]}]}, "what is no list of embeddings"),
        ({"data": 1}, "what is no list of embeddings"),
        (b"[" * 100_000, "what is no list of embeddings"),
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
        ("openai:tiny@http://127.0.0.1:11434/v1/", "openai:tiny"),
        ("openai:tiny@https://ann:secret@host/v1?key=secret", "openai:tiny"),
    ],
)
def test_a_model_is_called_the_same_wherever_it_stands(setting, name):
    assert embedder_by_name(setting).name == name
    assert is_called(name, setting.removesuffix("/"))


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("sentence-transformers:BAAI/bge", 'sentence-transformers:BAAI/bge with document prompt "passage: "'),
        ("openai:e5@http://host/v1", 'openai:e5 with document prompt "passage: "'),
    ],
)
def test_what_stands_before_each_text_is_part_of_the_name(setting, name):
    embedder = embedder_by_name(setting, options=EmbedderOptions(document_prompt="passage: "))

    assert embedder.name == name
    assert is_called(name, setting)


def test_none_is_no_embedder():
    assert embedder_by_name("none") is None


@pytest.mark.parametrize(
    "setting",
    [
        "",
        " ",
        "sentence-transformers:",
        "openai:tiny",
        "openai:@http://x",
        "openai:",
        "openai:@http://a:secret@x",
        "openai:tiny@ftp://a:secret@x",
        "openai:tiny@a:secret@x/v1",
    ],
)
def test_a_setting_that_names_no_embedder_is_refused(setting):
    with pytest.raises(InvalidSettingError, match="openai:MODEL@BASE_URL") as refused:
        embedder_by_name(setting)

    assert "secret" not in str(refused.value)


def test_an_address_that_is_none_is_refused_without_its_password():
    with pytest.raises(InvalidSettingError, match="write %40 for an @ in a password, %2F for a /") as refused:
        embedder_by_name("openai:tiny@https://ann:sec/ret@host/v1")

    assert "ret@" not in str(refused.value)


@pytest.mark.parametrize(
    "write",
    [
        lambda place, vector: {"embedding": vector} | ({"index": place} if place else {}),  # Gemini
        lambda _, vector: {"embedding": vector},
        lambda _, vector: {"embedding": vector, "index": None},
        lambda _, vector: {"embedding": vector, "index": 0},
        lambda place, vector: {
            "embedding": base64.b64encode(struct.pack("<3f", *vector)).decode(),
            "index": place,
        },
    ],
)
def test_vectors_are_taken_as_endpoints_write_them(endpoint, embedder, write):
    endpoint.write = write

    assert embedder.embed(["a", "bbb", "cc"])[:, 0].tolist() == [1, 3, 2]


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("most", [1, 10, 32])
def test_an_endpoint_that_takes_fewer_texts_at_once_is_sent_fewer(endpoint, embedder, status, most):
    endpoint.most_texts, endpoint.too_many = most, (status, {"error": "too many inputs"})
    texts = ["x" * n for n in range(1, 102)]
    done = []

    vectors = embedder.embed(texts, progress=done.append)
    before = len(endpoint.requests)
    embedder.embed(texts)

    assert vectors[:, 0].tolist() == list(range(1, 102))
    assert sum(done) == 101
    assert all(len(body["input"]) <= most for _, _, body in endpoint.requests[before:])  # it has learnt


def test_what_is_refused_though_it_is_one_is_an_error_and_no_lesson(endpoint, embedder):
    assert embedder.dimensions == 3
    endpoint.most_texts = 0

    with pytest.raises(EmbeddingError, match="refused with status 422"):
        embedder.embed(["a", "b"])

    endpoint.most_texts = 64
    embedder.embed(["x"] * 64)
    assert len(endpoint.requests[-1][2]["input"]) == 64


def test_texts_too_long_for_an_endpoint_are_split_into_shorter_parts(endpoint, embedder):
    endpoint.most_characters = 700
    text = " ".join(f"Sentence number {n} speaks of something else." for n in range(101))

    [parts, short] = embed_texts(embedder, [text, "short"])

    assert len(parts) == len(embedder.split(text)) > 7
    assert short[:, 0].tolist() == [5]
    assert max(map(len, embedder.split(text))) <= 500  # 2,000 halved twice


def test_a_query_too_long_for_an_endpoint_says_what_to_set_and_changes_nothing(endpoint, embedder):
    endpoint.most_characters = 700

    with pytest.raises(
        EmbeddingError, match="a text of 2000 characters: set EMBEDDER_PART_CHARACTERS to less"
    ):
        embed_texts(embedder, ["x" * 2000], embed=query_embedding(embedder, seconds=5))

    assert len(embedder.split("x" * 2000)) == 1


def test_the_settings_of_an_endpoint_are_what_it_is_sent(endpoint):
    options = EmbedderOptions(
        query_prompt="query: ", document_prompt="passage: ", dimensions=3, batch_size=2, part_characters=10
    )
    with OpenAICompatibleEmbedder(endpoint.url, "tiny", options=options) as embedder:
        embedder.embed(["a", "b", "c"])
        embedder.embed_queries(["d"])
        parts = embedder.split("one two three four")

    _, *sent = [body for _, _, body in endpoint.requests]
    assert [body["input"] for body in sent] == [["passage: a", "passage: b"], ["passage: c"], ["query: d"]]
    assert {body["dimensions"] for body in sent} == {3}
    assert max(map(len, parts)) <= 10


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("/openai/deployments/tiny?api-version=1", "/openai/deployments/tiny/embeddings?api-version=1"),
        ("/v1/?key=a%2Fb", "/v1/embeddings?key=a%2Fb"),
        ("/v1#part", "/v1/embeddings"),
        ("/a%2Fb/", "/a%2Fb/embeddings"),
    ],
)
def test_a_query_in_the_address_stays_behind_the_path(endpoint, base, path):
    address = endpoint.url.removesuffix("/v1") + base
    with OpenAICompatibleEmbedder(address, "tiny") as embedder:
        embedder.embed_queries(["a"])

    assert endpoint.requests[0][0] == path


def test_what_is_secret_in_an_address_is_neither_told_nor_logged(endpoint, caplog):
    address = endpoint.url.replace("http://", "http://ann:pa%40ssword@") + "?key=sec%2Fret&api-version=7"
    endpoint.answers = [(404, {}, {"error": "no /v1?key=sec%2Fret&api-version=7, sec/ret, pa@ssword"})]
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="httpx")  # which a command in this process may have silenced

    with (
        OpenAICompatibleEmbedder(address, "tiny", KEY) as embedder,
        pytest.raises(EmbeddingError, match="refused with status 404") as refused,
    ):
        embedder.embed_queries(["a"])

    assert any("HTTP Request" in line for line in caplog.messages)
    told = " ".join([str(refused.value), embedder.name, *caplog.messages])
    assert not [
        secret for secret in ("sec%2Fret", "sec/ret", "pa@ssword", "pa%40ssword", KEY) if secret in told
    ]
    assert "refused with status 404" in told


@pytest.mark.parametrize(
    ("behave", "told"),
    [
        (lambda server: setattr(server, "hangs", True), "did not answer in"),
        (lambda server: server.answers.extend([(429, {"Retry-After": "30"}, {})] * 9), "status 429"),
        (lambda server: server.answers.extend([(500, {}, {})] * 9), "status 500"),
    ],
    ids=["hangs", "is busy", "fails"],
)
def test_a_query_is_embedded_in_time_or_not_at_all(endpoint, behave, told):
    behave(endpoint)
    with OpenAICompatibleEmbedder(endpoint.url, "tiny", backoff_seconds=0.2) as embedder:
        started = time.monotonic()
        with pytest.raises(EmbedderUnavailableError, match=told):
            embedder.embed_queries(["a"], seconds=0.5)

        assert time.monotonic() - started < 0.5 + 5  # the rest is for a busy machine


def test_an_answer_that_comes_in_drops_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stop = threading.Event()

        def drip():
            connection, _ = listening.accept()
            with connection:
                while not stop.wait(0.05):
                    connection.send(b"H")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with OpenAICompatibleEmbedder(url, "tiny") as embedder:
            started = time.monotonic()
            with pytest.raises(EmbedderUnavailableError, match=r"did not answer in 0\.5 s"):
                embedder.embed_queries(["a"], seconds=0.5)
            assert time.monotonic() - started < 0.5 + 5
        stop.set()


def test_an_answer_of_any_length_takes_no_memory(endpoint, embedder):
    endpoint.answers = [(200, {}, b'{"data":[' + b"1," * 20_000_000 + b"1]}")]

    tracemalloc.start()
    with pytest.raises(EmbeddingError, match=r"answered with more than 1056768 bytes"):
        embedder.embed_queries(["abc"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 10_000_000  # of 40 MB sent, by this process too


def test_an_endpoint_that_fails_again_and_again_is_left_alone_for_a_while(endpoint):
    endpoint.answers = [(500, {}, {})] * 3
    with OpenAICompatibleEmbedder(endpoint.url, "tiny", attempts=1) as embedder:
        for _ in range(3):
            assert embedder.trouble is None
            with pytest.raises(EmbedderUnavailableError, match="refused with status 500"):
                embedder.embed_queries(["a"], seconds=5)
        with pytest.raises(EmbedderUnavailableError, match="it is tried again in 5 s") as refused:
            embedder.embed_queries(["a"], seconds=5)

        assert 0 < refused.value.retry_after_seconds <= 5
        assert len(endpoint.requests) == 3
        assert embedder.trouble == "the embedding endpoint does not answer"
        assert embedder.embed(["a"]).shape == (1, 3)  # whoever indexes has patience


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def called(breaker, becomes):
    """Return what becomes of a call: "done", "refused" by the breaker, or the name of its error."""
    try:
        with breaker.guarding():
            if becomes is not None:
                raise becomes
    except (EmbeddingError, RuntimeError) as error:
        return "refused" if error is not becomes else type(error).__name__
    return "done"


def down(retry_after_seconds=None):
    return EmbedderUnavailableError("down", retry_after_seconds=retry_after_seconds)


@pytest.mark.parametrize(
    ("story", "last"),
    [
        ([down(), down(), None, down(), down(), None], "done"),  # not in succession
        ([down(), down(), EmbeddingError("a bad text"), down(), down(), None], "done"),  # it did answer
        ([down(), down(), down(), None], "refused"),
        ([down(), down(), down(), 4.9, None], "refused"),
        ([down(), down(), down(), 5.1, None], "done"),
        ([down(), down(), down(30), 29.9, None], "refused"),  # as long as it asked for
        ([down(), down(), down(30), 30.1, None], "done"),
        ([down(), down(), down(9999), 60.1, None], "done"),  # within reason
        ([down(), down(), down(), 5.1, down(), None], "refused"),  # the probe failed
        ([down(), down(), down(), 5.1, None, down(), down(), None], "done"),  # the probe succeeded
    ],
)
def test_a_circuit_breaker_opens_and_closes(story, last):
    clock = Clock()
    breaker = CircuitBreaker("it", failures=3, open_seconds=5, clock=clock)

    *before, final = story
    for each in before:
        if isinstance(each, float):
            clock.now += each
        else:
            called(breaker, each)

    assert called(breaker, final) == last


def test_a_half_open_circuit_breaker_lets_one_call_through():
    clock = Clock()
    breaker = CircuitBreaker("it", failures=1, open_seconds=5, clock=clock)
    called(breaker, down())
    clock.now += 6

    with breaker.guarding():
        assert called(breaker, None) == "refused"
    assert called(breaker, None) == "done"


@pytest.fixture(scope="module")
def prompted_model(tmp_path_factory):
    """A model that tells queries from documents, as E5 and others do: a word each is its prompt."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    models = pytest.importorskip("sentence_transformers.models")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: place for place, word in enumerate(["[UNK]", "query:", "passage:", "red", "shoe"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    static = models.StaticEmbedding(tokenizer, embedding_dim=8)
    model = sentence_transformers.SentenceTransformer(
        modules=[static], prompts={"query": "query: ", "document": "passage: "}
    )
    folder = tmp_path_factory.mktemp("prompted")
    model.save(str(folder))
    return folder, model


def test_a_model_that_tells_queries_from_documents_is_used_as_it_says(prompted_model):
    folder, model = prompted_model
    embedder = SentenceTransformersEmbedder(str(folder))

    assert_allclose(embedder.embed(["red shoe"]), model.encode(["passage: red shoe"]), atol=1e-6)
    assert_allclose(embedder.embed_queries(["red"]), model.encode(["query: red"]), atol=1e-6)
    assert embedder.name == f'sentence-transformers:{folder} with document prompt "passage: "'


def test_what_a_model_says_of_prompts_can_be_said_otherwise(prompted_model):
    folder, model = prompted_model
    options = EmbedderOptions(query_prompt="red ", document_prompt="", dimensions=5)
    embedder = SentenceTransformersEmbedder(str(folder), options=options)

    assert_allclose(embedder.embed(["shoe"]), model.encode(["shoe"])[:, :5], atol=1e-6)
    assert_allclose(embedder.embed_queries(["shoe"]), model.encode(["red shoe"])[:, :5], atol=1e-6)
    assert embedder.name == f"sentence-transformers:{folder}"
    assert embedder.dimensions == 5


def test_a_model_whose_tokenizer_is_python_alone_splits_long_texts_too(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    models = pytest.importorskip("sentence_transformers.models")
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text(
        "".join(f"{word} 10\n" for word in ["red", "shoe", "r@@", "e@@", "d"])
    )
    (tmp_path / "bpe.codes").write_text("r e 10\nre d</w> 9\n")
    tokenizer = transformers.PhobertTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"))
    tokenizer.model_max_length = 32
    tokenizer.save_pretrained(str(tmp_path))
    size = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 16, "max_position_embeddings": 40}
    config = transformers.RobertaConfig(**size, num_hidden_layers=1, num_attention_heads=2)
    transformers.RobertaModel(config).save_pretrained(str(tmp_path))
    layers = [
        models.Transformer(str(tmp_path)),
        models.Pooling(16),
    ]
    sentence_transformers.SentenceTransformer(modules=layers).save(str(tmp_path / "model"))
    embedder = SentenceTransformersEmbedder(str(tmp_path / "model"))
    text = "red shoe. " * 100

    parts = embedder.split(text.strip())

    assert len(parts) > 3
    assert " ".join(parts) == text.strip()
    assert embedder.embed(parts).shape == (len(parts), 16)


def test_a_key_from_a_file_that_ends_in_a_line_break_is_taken(endpoint):
    with OpenAICompatibleEmbedder(endpoint.url, "tiny", "sk-secret\n") as embedder:
        assert embedder.embed_queries(["a"]).shape[0] == 1


@pytest.mark.parametrize("key", ["sk-sec\nret", "sk-secrét"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_told(endpoint, key):
    with pytest.raises(InvalidSettingError) as caught:
        OpenAICompatibleEmbedder(endpoint.url, "tiny", key)
    assert "sk-sec" not in str(caught.value)


def test_a_port_that_there_cannot_be_is_refused():
    with pytest.raises(InvalidSettingError, match="99999"):
        OpenAICompatibleEmbedder("http://127.0.0.1:99999/v1", "tiny")


def test_an_answer_that_cannot_be_unpacked_is_an_error_with_a_sentence(endpoint, embedder):
    endpoint.answers = [(200, {"Content-Encoding": "gzip"}, b"no gzip")]

    with pytest.raises(EmbeddingError, match="cannot be unpacked"):
        embedder.embed_queries(["a"])
