import datetime as dt
import itertools
import math
import threading
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from embedding_studio.catalogue import CatalogueText
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.embedders import Embedder
from embedding_studio.errors import (
    ConflictError,
    EmbeddingError,
    InvalidDataError,
    InvalidInputError,
    InvalidVectorsError,
)
from embedding_studio.indexing import (
    Indexer,
    IndexingReport,
    every_object,
    index_objects,
    prune,
    rename_embedder,
    update_payloads,
)
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

    report = index_objects(storage, collection, texts, embedder)

    a, b = storage.objects.get(collection, ["a", "b"])
    assert outcome(report) == (2, 0, 0, 0)
    assert (a.parts.tolist(), a.payload) == ([[3, 0, 0, 0, 0]], {"n": 1})
    assert b.parts.tolist() == [[0, 1, 0, 1, 0], [0, 2, 0, 0, 2], [1, 1, 0, 0, 0]]


def test_indexing_again_embeds_nothing(storage, collection, embedder):
    texts = [CatalogueText(str(n), "a" * (n + 1), {"n": n}) for n in range(7)]
    index_objects(storage, collection, texts, embedder, batch_texts=3)
    embedder.embedded.clear()

    report = index_objects(storage, collection, texts, embedder, batch_texts=3)

    assert outcome(report) == (0, 0, 7, 0)
    assert embedder.embedded == []


def test_only_what_changed_is_embedded_anew(storage, collection, embedder):
    index_objects(
        storage, collection, [CatalogueText("a", "ant", {"n": 1}), CatalogueText("b", "bee")], embedder
    )
    embedder.embedded.clear()

    report = index_objects(
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
    index_objects(storage, collection, [CatalogueText("a", "ant", {"x": 1, "y": [2]})], embedder)

    report = index_objects(storage, collection, [CatalogueText("a", "ant", {"y": [2], "x": 1})], embedder)

    assert outcome(report) == (0, 0, 1, 0)


def test_texts_without_a_word_are_left_out_and_counted(storage, collection, embedder):
    texts = [CatalogueText("a", " \n"), CatalogueText("b", "bee"), CatalogueText("c", "")]

    report = index_objects(storage, collection, texts, embedder)

    assert outcome(report) == (1, 0, 0, 2)
    assert storage.objects.count(collection) == 1


def test_of_two_texts_with_one_id_the_last_counts(storage, collection, embedder):
    report = index_objects(
        storage, collection, [CatalogueText("a", "ant"), CatalogueText("a", "bee")], embedder
    )

    (a,) = storage.objects.get(collection, ["a"])
    assert a.parts.tolist() == [[0, 2, 0, 0, 0]]
    assert sum(outcome(report)) == 2


def test_nothing_to_index_is_no_error(storage, collection, embedder):
    assert outcome(index_objects(storage, collection, [], embedder)) == (0, 0, 0, 0)


def test_progress_counts_every_text_once_as_batches_are_stored(storage, collection, embedder):
    seen = []

    index_objects(
        storage,
        collection,
        (CatalogueText(str(n), "" if n == 3 else "a") for n in range(7)),
        embedder,
        progress=lambda done: seen.append((done, storage.objects.count(collection))),
        batch_texts=3,
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
        index_objects(storage, collection, endless, embedder, progress=stop, batch_texts=3)

    assert storage.objects.count(collection) == 3


def test_what_was_stored_before_a_failure_is_not_embedded_again(storage, collection, embedder):
    texts = [CatalogueText(str(n), "a" * (n + 1)) for n in range(7)]
    embedder.fails_on = "aaaaa"
    with pytest.raises(EmbeddingError, match="gone"):
        index_objects(storage, collection, texts, embedder, batch_texts=3)
    embedder.fails_on = None
    embedder.embedded.clear()

    report = index_objects(storage, collection, texts, embedder, batch_texts=3)

    assert outcome(report) == (4, 0, 3, 0)
    assert embedder.embedded == ["aaaa", "aaaaa", "aaaaaa", "aaaaaaa"]


def test_a_collection_takes_the_vectors_of_one_embedder_only(storage, collection):
    with pytest.raises(ConflictError, match="by 'vowels', and the embedder here is 'consonants'"):
        index_objects(storage, collection, [CatalogueText("a", "ant")], VowelEmbedder("consonants"))


class Size(Enum):
    SMALL = "s"


PLAIN = [
    (dt.datetime(2024, 1, 5, 9, 30, tzinfo=dt.UTC), "2024-01-05T09:30:00+00:00"),
    (dt.date(2024, 1, 5), "2024-01-05"),
    (dt.time(9, 30), "09:30:00"),
    (Decimal("9.50"), 9.5),
    (np.float32(9.5), 9.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (np.datetime64("2024-01-05"), "2024-01-05"),
    (np.datetime64("NaT"), None),
    (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    ((1, "x"), [1, "x"]),
    (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    (MappingProxyType({"n": Decimal(1)}), {"n": 1.0}),
    (10**400, 10**400),
    (np.str_("x"), "x"),
    (Size.SMALL, "s"),
    ([None, 0.1, -0.0, 1e22, 2**63, "null", "\\u0000"], [None, 0.1, -0.0, 1e22, 2**63, "null", "\\u0000"]),
]


@pytest.mark.parametrize(("given", "stored"), PLAIN)
def test_what_python_has_and_json_has_not_is_stored_as_parquets_is(
    storage, collection, embedder, given, stored
):
    report = index_objects(storage, collection, [CatalogueText("a", "a", {"x": [given]})], embedder)
    again = index_objects(storage, collection, [CatalogueText("a", "a", {"x": [stored]})], embedder)
    storage.objects.upsert(collection, [brought("b", 0, 0, 0, 0, 1, x=given)])

    assert (outcome(report), outcome(again)) == ((1, 0, 0, 0), (0, 0, 1, 0))
    [a, b] = storage.objects.get(collection, ["a", "b"])
    assert (a.payload, b.payload) == ({"x": [stored]}, {"x": stored})


def text_of(object_id: Any, text: Any, payload: Any = None):
    return CatalogueText(object_id, text, {} if payload is None else payload)


def looped():
    loop = {}
    loop["self"] = loop
    return loop


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (text_of("sku-1", "a", {"x": [1, math.nan]}), "payload['x'][1] is nan"),
        (text_of("sku-1", "a", {"x": [None, math.nan]}), "payload['x'][1] is nan"),
        (text_of("sku-1", "a", {"x": np.float64("inf")}), "payload['x'] is inf"),
        (text_of("sku-1", "a", {"x": Decimal("nan")}), "payload['x'] is nan"),
        (text_of("sku-1", "a", {"x": {"y": {1, 2}}}), "payload['x']['y']: a set has no place in JSON"),
        (text_of("sku-1", "a", {"x": b"y"}), "payload['x']: a bytes has no place in JSON"),
        (text_of("sku-1", "a", {("x", 1): 2}), "payload has the key ('x', 1), a tuple"),
        (text_of("sku-1", "a", {"x": "a\0b"}), "payload['x']: a text may not hold the character NUL"),
        (text_of("sku-1", "a", {"x": "\ud83d"}), "payload['x']: a text may not hold half a surrogate"),
        (text_of("sku-1", "a", {"\0": 1}), "the key '\\x00' of payload: a text may not hold"),
        (text_of("sku-1", "a", {"x": 10**5_000}), "a number of more digits than can be written"),
        (text_of("sku-1", "a", looped()), "payload is nested too deep, or holds itself"),
        (text_of("sku-1", "a", [("x", 1)]), "the payload of object 'sku-1' is [('x', 1)]; give a dict"),
        (text_of("sku-1", None), "the text of object 'sku-1' is None, a NoneType"),
        (text_of("sku-1", "half \ud83d"), "the text of object 'sku-1' cannot be embedded: "),
        (text_of("", "a"), "the id of an object is empty"),
        (text_of("x" * 600, "a"), "the id of an object has 600 bytes"),
        (text_of("\U0001f642" * 129, "a"), "the id of an object has 516 bytes"),
        (text_of(17, "a"), "the id of an object is 17, a int; give a text, such as '17'"),
        (text_of("a\0b", "a"), "the id of an object holds the character NUL"),
        (CatalogueObject("", np.ones((1, 5), dtype=np.float32)), "the id of an object is empty"),
        (
            CatalogueObject("sku-1", np.ones((1, 5), dtype=np.float32), {"x": math.nan}),
            "object 'sku-1' cannot be stored",
        ),
    ],
)
def test_what_cannot_be_stored_is_named_before_anything_is_embedded(
    storage, collection, embedder, wrong, said
):
    with pytest.raises(InvalidInputError) as refused:
        index_objects(storage, collection, [CatalogueText("sound", "a"), wrong], embedder)

    assert said in str(refused.value)
    assert len(str(refused.value)) < 300
    assert list(every_object(storage, collection)) == []


@pytest.mark.parametrize("given", [{"object_id": "b", "text": "bee"}, ("b", "bee"), "b", None])
def test_what_is_no_object_is_refused_with_its_place_and_what_to_give(storage, collection, embedder, given):
    indexer = Indexer(storage, embedder, guards_gates=False)

    with pytest.raises(
        InvalidInputError, match=r"object 1 of those to index is .*; give a CatalogueText, or"
    ):
        indexer.index_objects(collection.name, [CatalogueText("a", "ant"), given])


def test_the_same_model_under_another_name_embeds_nothing_again(storage, collection, embedder):
    texts = [CatalogueText("a", "ant"), CatalogueText("b", "bee")]
    index_objects(storage, collection, texts, embedder)
    moved = VowelEmbedder("vowels elsewhere")

    renamed = rename_embedder(storage, collection, moved)
    report = index_objects(storage, renamed, [*texts, CatalogueText("c", "cow")], moved)

    assert renamed == storage.collections.get("films")
    assert renamed.embedder == "vowels elsewhere"
    assert outcome(report) == (1, 0, 2, 0)
    assert moved.embedded == ["cow"]
    assert outcome(index_objects(storage, renamed, [CatalogueText("c", "cow")], moved)) == (0, 0, 1, 0)


@pytest.mark.parametrize(
    ("name", "dimensions", "told"),
    [
        ("vowels elsewhere", 4, "makes vectors of 4 dimensions, and the collection 'films' has 5"),
        (
            'vowels with document prompt "passage: "',
            5,
            'puts something else before each text; set EMBEDDER_DOCUMENT_PROMPT="" to go on as',
        ),
    ],
)
def test_what_cannot_be_the_same_model_takes_no_collection_over(storage, collection, name, dimensions, told):
    other = VowelEmbedder(name)
    other.dimensions = dimensions

    with pytest.raises(ConflictError, match=told):
        rename_embedder(storage, collection, other)

    assert storage.collections.get("films") == collection


def test_a_model_of_too_many_dimensions_is_told_before_anything_is_embedded(storage, embedder):
    embedder.dimensions = 4096
    told = "vectors of 'vowels' have 4096 dimensions, and a collection has at most 4000"

    with pytest.raises(InvalidVectorsError, match=told):
        Indexer(storage, embedder).index_objects("films", [CatalogueText("a", "ant")])

    assert embedder.embedded == []
    assert storage.collections.list() == []


def brought(object_id, *vector, **payload):
    return CatalogueObject(object_id, np.array([vector], dtype=np.float32), payload)


def letters(count, *, start=0):
    return [CatalogueText(f"{number:03}", "a" * (number + 1)) for number in range(start, start + count)]


def first_vowels(storage, collection):
    return {each.object_id: int(each.parts[0, 0]) for each in every_object(storage, collection)}


def test_vectors_are_stored_as_they_come_in_batches(storage, collection):
    seen = []

    report = index_objects(
        storage,
        collection,
        (brought(str(number), 1, 0, 0, 0, number) for number in range(7)),
        None,
        progress=lambda done: seen.append((done, storage.objects.count(collection))),
        batch_objects=3,
    )

    assert outcome(report) == (7, 0, 0, 0)
    assert seen == [(3, 3), (3, 6), (1, 7)]


def test_a_batch_may_hold_texts_and_vectors(storage, collection, embedder):
    mixed = [brought("v", 1, 2, 3, 4, 5), CatalogueText("t", "bee"), CatalogueText("e", ""), *letters(5)]

    report = index_objects(storage, collection, mixed, embedder, batch_texts=3)

    assert outcome(report) == (7, 0, 0, 1)
    assert storage.objects.get(collection, ["v"])[0].parts.tolist() == [[1, 2, 3, 4, 5]]


class MeetingEmbedder(VowelEmbedder):
    """Embeds nothing before so many threads have come to embed something."""

    def __init__(self, threads):
        super().__init__()
        self._together = threading.Barrier(threads)

    def embed(self, texts, *, progress=None):
        self._together.wait(timeout=30)
        return super().embed(texts, progress=progress)


def test_several_batches_are_embedded_at_once_and_stored_in_their_order(storage, collection):
    seen = []

    report = index_objects(
        storage,
        collection,
        letters(24),
        MeetingEmbedder(4),
        threads=4,
        batch_texts=3,
        progress=lambda _: seen.append(max(first_vowels(storage, collection).values())),
    )

    assert outcome(report) == (24, 0, 0, 0)
    assert seen == [3, 6, 9, 12, 15, 18, 21, 24]
    assert first_vowels(storage, collection) == {f"{number:03}": number + 1 for number in range(24)}


@pytest.mark.parametrize("threads", [1, 4])
def test_with_any_number_of_threads_the_batches_before_a_failure_are_stored_and_none_after(
    storage, collection, embedder, threads
):
    embedder.fails_on = "a" * 8

    with pytest.raises(EmbeddingError, match="gone"):
        index_objects(storage, collection, letters(24), embedder, threads=threads, batch_texts=3)

    assert sorted(first_vowels(storage, collection).values()) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("threads", [1, 4])
def test_what_was_read_before_a_row_that_cannot_be_read_is_stored(storage, collection, embedder, threads):
    def rows():
        yield from letters(7)
        raise InvalidDataError("line 8")

    with pytest.raises(InvalidDataError, match="line 8"):
        index_objects(storage, collection, rows(), embedder, threads=threads, batch_texts=3)

    assert sorted(first_vowels(storage, collection).values()) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("threads", [1, 4])
def test_of_two_texts_with_one_id_in_different_batches_the_last_counts(
    storage, collection, embedder, threads
):
    index_objects(storage, collection, [CatalogueText("a", "ant")], embedder)
    texts = [CatalogueText("a", "aaa"), CatalogueText("b", "bee"), CatalogueText("a", "ant")]

    index_objects(storage, collection, texts, embedder, threads=threads, batch_texts=1)

    assert first_vowels(storage, collection)["a"] == 1


def test_after_its_payload_was_updated_an_object_is_indexed_without_embedding(storage, collection, embedder):
    texts = [CatalogueText("a", "ant", {"n": 1}), CatalogueText("b", "bee", {"n": 1})]
    index_objects(storage, collection, texts, embedder)
    embedder.embedded.clear()

    replaced = update_payloads(storage, collection, [("a", {"n": 2}), ("unknown", {})])
    then = [each.payload for each in every_object(storage, collection)]
    report = index_objects(storage, collection, texts, embedder)

    assert (replaced.updated, replaced.unknown) == (1, 1)
    assert then == [{"n": 2}, {"n": 1}]
    assert outcome(report) == (0, 1, 1, 0)
    assert embedder.embedded == []
    assert [each.payload for each in every_object(storage, collection)] == [{"n": 1}, {"n": 1}]


def test_pruning_leaves_what_is_named_alone(storage, collection):
    index_objects(storage, collection, [brought(f"{n:04}", 1, 0, 0, 0, n) for n in range(2500)], None)
    named = {f"{n:04}" for n in range(0, 2500, 2)} | {"never stored"}

    would_go = prune(storage, collection, named, dry_run=True)
    before = storage.objects.count(collection)
    gone = prune(storage, collection, named)

    assert (would_go, before, gone) == (1250, 2500, 1250)
    assert {each.object_id for each in every_object(storage, collection)} == named - {"never stored"}
