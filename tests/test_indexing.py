import itertools

import numpy as np
import pytest

from embedding_studio.catalogue import CatalogueText
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.embedders import Embedder
from embedding_studio.errors import ConflictError, EmbeddingError
from embedding_studio.indexing import IndexingReport, index_texts
from embedding_studio.storage.memory import MemoryStorage


class VowelEmbedder:
    """A text's vector counts its vowels, a part ends at a semicolon; it knows what it embedded.

    Attributes:
        fails_on: a text at which it breaks, as a service that goes away does.
    """

    dimensions = 5
    fails_on = None

    def __init__(self, name="vowels"):
        self.name = name
        self.embedded = []

    def embed(self, texts, *, progress=None):  # noqa: ARG002, the port has it
        if self.fails_on in texts:
            raise EmbeddingError("gone")
        self.embedded += texts
        return np.array([[text.count(vowel) for vowel in "aeiou"] for text in texts], dtype=np.float32)

    def split(self, text):
        return text.split(";")


@pytest.fixture
def storage():
    return MemoryStorage()


@pytest.fixture
def collection(storage):
    return storage.collections.create("films", SearchIndexInfo(dimensions=5), embedder="vowels")


@pytest.fixture
def embedder() -> Embedder:
    return VowelEmbedder()


def outcome(report: IndexingReport):
    assert report.seconds >= 0
    return (report.indexed, report.updated, report.unchanged, report.empty)


def test_texts_become_objects_with_their_parts_and_payload(storage, collection, embedder):
    texts = [CatalogueText("a", "banana", {"n": 1}), CatalogueText("b", "one;queue;tea")]

    report = index_texts(storage, collection, texts, embedder)

    a, b = storage.objects.get(collection, ["a", "b"])
    assert outcome(report) == (2, 0, 0, 0)
    assert (a.parts.tolist(), a.payload) == ([[3, 0, 0, 0, 0]], {"n": 1})
    assert b.parts.tolist() == [[0, 1, 0, 1, 0], [0, 2, 0, 0, 2], [1, 1, 0, 0, 0]]


def test_indexing_again_embeds_nothing(storage, collection, embedder):
    texts = [CatalogueText(str(n), "a" * (n + 1), {"n": n}) for n in range(7)]
    index_texts(storage, collection, texts, embedder, batch_objects=3)
    embedder.embedded.clear()

    report = index_texts(storage, collection, texts, embedder, batch_objects=3)

    assert outcome(report) == (0, 0, 7, 0)
    assert embedder.embedded == []


def test_only_what_changed_is_embedded_anew(storage, collection, embedder):
    index_texts(
        storage, collection, [CatalogueText("a", "ant", {"n": 1}), CatalogueText("b", "bee")], embedder
    )
    embedder.embedded.clear()

    report = index_texts(
        storage,
        collection,
        [CatalogueText("a", "ant", {"n": 2}), CatalogueText("b", "beetle"), CatalogueText("c", "crow")],
        embedder,
    )

    assert outcome(report) == (2, 1, 0, 0)
    assert embedder.embedded == ["beetle", "crow"]
    (a,) = storage.objects.get(collection, ["a"])
    assert (a.parts.tolist(), a.payload) == ([[1, 0, 0, 0, 0]], {"n": 2})


def test_the_order_of_a_payloads_keys_is_no_change(storage, collection, embedder):
    index_texts(storage, collection, [CatalogueText("a", "ant", {"x": 1, "y": [2]})], embedder)

    report = index_texts(storage, collection, [CatalogueText("a", "ant", {"y": [2], "x": 1})], embedder)

    assert outcome(report) == (0, 0, 1, 0)


def test_texts_without_a_word_are_left_out_and_counted(storage, collection, embedder):
    texts = [CatalogueText("a", " \n"), CatalogueText("b", "bee"), CatalogueText("c", "")]

    report = index_texts(storage, collection, texts, embedder)

    assert outcome(report) == (1, 0, 0, 2)
    assert storage.objects.count(collection) == 1


def test_of_two_texts_with_one_id_the_last_counts(storage, collection, embedder):
    report = index_texts(
        storage, collection, [CatalogueText("a", "ant"), CatalogueText("a", "bee")], embedder
    )

    (a,) = storage.objects.get(collection, ["a"])
    assert a.parts.tolist() == [[0, 2, 0, 0, 0]]
    assert sum(outcome(report)) == 2


def test_nothing_to_index_is_no_error(storage, collection, embedder):
    assert outcome(index_texts(storage, collection, [], embedder)) == (0, 0, 0, 0)


def test_progress_counts_every_text_once_as_batches_are_stored(storage, collection, embedder):
    seen = []

    index_texts(
        storage,
        collection,
        (CatalogueText(str(n), "" if n == 3 else "a") for n in range(7)),
        embedder,
        progress=lambda done: seen.append((done, storage.objects.count(collection))),
        batch_objects=3,
    )

    assert seen == [(3, 3), (3, 5), (1, 6)]


def test_a_stream_is_read_only_as_far_as_it_is_stored(storage, collection, embedder):
    endless = (CatalogueText(str(n), "a") for n in itertools.count())
    embedder.split = lambda text: [text]

    class EnoughError(Exception):
        pass

    def stop(_):
        raise EnoughError

    with pytest.raises(EnoughError):
        index_texts(storage, collection, endless, embedder, progress=stop, batch_objects=3)

    assert storage.objects.count(collection) == 3


def test_what_was_stored_before_a_failure_is_not_embedded_again(storage, collection, embedder):
    texts = [CatalogueText(str(n), "a" * (n + 1)) for n in range(7)]
    embedder.fails_on = "aaaaa"
    with pytest.raises(EmbeddingError, match="gone"):
        index_texts(storage, collection, texts, embedder, batch_objects=3)
    embedder.fails_on = None
    embedder.embedded.clear()

    report = index_texts(storage, collection, texts, embedder, batch_objects=3)

    assert outcome(report) == (4, 0, 3, 0)
    assert embedder.embedded == ["aaaa", "aaaaa", "aaaaaa", "aaaaaaa"]


def test_a_collection_takes_the_vectors_of_one_embedder_only(storage, collection):
    with pytest.raises(ConflictError, match="holds vectors of 'vowels', and those of 'consonants'"):
        index_texts(storage, collection, [CatalogueText("a", "ant")], VowelEmbedder("consonants"))
