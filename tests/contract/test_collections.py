"""Collections, the names that stand for them, and whom a change of either marks."""

import dataclasses

import pytest

from contract.conftest import (
    NOTHING,
    ODD_IDS,
    claimed,
    clicked,
    ids,
    index,
    learn,
    memory_of,
    search,
    settle,
    thing,
    told,
    vectors,
)
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import Attachment, OwnPast
from embedding_studio.errors import (
    CollectionNotFoundError,
    ConflictError,
    EmbeddingStudioError,
    InvalidInputError,
)


def test_a_collection_is_found_as_it_was_made(storage):
    info = SearchIndexInfo(
        dimensions=5,
        metric_type=MetricType.EUCLID,
        metric_aggregation_type=MetricAggregationType.AVG,
    )

    made = storage.collections.create("shoes", info, embedder="minilm", gate_threshold=0.7)

    assert (made.name, made.index, made.embedder, made.gate_threshold) == ("shoes", info, "minilm", 0.7)
    assert storage.collections.get("shoes") == made


@pytest.mark.parametrize("name", ["", "x" * 513, "a\0"])
def test_what_can_be_no_name_names_neither_a_collection_nor_an_alias(storage, name):
    storage.collections.create("shoes", index())

    with pytest.raises(InvalidInputError, match="the name of a collection"):
        storage.collections.create(name, index())
    with pytest.raises(InvalidInputError, match="the name of a collection"):
        storage.collections.get(name)
    with pytest.raises(InvalidInputError, match="an alias"):
        storage.collections.set_alias(name, "shoes")


def test_collections_are_listed_by_name(storage):
    made = {name: storage.collections.create(name, index()) for name in ("b", "c", "a")}

    assert storage.collections.list() == [made["a"], made["b"], made["c"]]


def test_the_same_collection_made_again_is_the_one_that_is_there(storage):
    first = storage.collections.create("shoes", index(), embedder="minilm", gate_threshold=0.7)
    storage.objects.upsert(first, [thing("a", [1, 0, 0])])

    again = storage.collections.create("shoes", index(), embedder="minilm", gate_threshold=0.7)

    assert again == first
    assert storage.objects.count(again) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"index": index(dimensions=4)},
        {"index": index(MetricType.DOT)},
        {"index": index(aggregation=MetricAggregationType.AVG)},
        {"embedder": "another"},
        {"embedder": None},
        {"gate_threshold": 0.5},
    ],
)
def test_a_name_is_not_given_to_a_collection_of_another_kind(storage, other):
    wanted = {"index": index(), "embedder": "minilm", "gate_threshold": 0.7}
    first = storage.collections.create("shoes", **wanted)

    with pytest.raises(ConflictError, match="shoes"):
        storage.collections.create("shoes", **(wanted | other))

    assert storage.collections.list() == [first]


def test_a_collection_keeps_the_gate_threshold_that_it_was_given_last(storage, films):
    storage.collections.set_alias("best", "films")

    changed = storage.collections.set_gate_threshold("best", 0.9)

    assert changed == dataclasses.replace(films, gate_threshold=0.9)
    assert storage.collections.get("films") == storage.collections.get("best") == changed
    assert storage.collections.list() == [changed]
    assert storage.collections.create("films", films.index) == changed


def test_a_gate_threshold_is_taken_back(storage, films):
    storage.collections.set_gate_threshold("films", 0.9)

    assert storage.collections.set_gate_threshold("films", None) == films
    assert storage.collections.get("films") == films


def test_a_gate_threshold_changes_nothing_else(storage, films):
    storage.collections.create("books", index(), gate_threshold=0.7)
    clicked(storage, "s1")
    settle(storage)

    storage.collections.set_gate_threshold("films", 0.9)

    assert storage.collections.get("books").gate_threshold == 0.7
    assert storage.objects.count(films) == 3  # what one had in hand before is of use still
    assert claimed(storage) == []


def test_an_embedder_is_renamed_and_what_hashes_were_made_with_is_kept(storage):
    made = storage.collections.create("shoes", index(), embedder="minilm", gate_threshold=0.7)
    storage.collections.create("hats", index(), embedder="minilm")
    storage.collections.set_alias("best", "shoes")

    renamed = storage.collections.rename_embedder("best", "MiniLM")
    again = storage.collections.rename_embedder("shoes", "mini")

    assert renamed == dataclasses.replace(made, embedder="MiniLM", hashed_as="minilm")
    assert again == dataclasses.replace(made, embedder="mini", hashed_as="minilm")
    assert storage.collections.get("shoes") == again
    assert storage.collections.list() == [storage.collections.get("hats"), again]
    assert storage.collections.get("hats").embedder == "minilm"
    assert storage.collections.create("shoes", index(), embedder="mini") == again
    with pytest.raises(ConflictError, match="shoes"):
        storage.collections.create("shoes", index(), embedder="minilm")


def test_the_embedder_of_nothing_is_not_renamed(storage):
    with pytest.raises(CollectionNotFoundError, match="films"):
        storage.collections.rename_embedder("films", "mini")


def test_what_is_tuned_of_nothing_is_not_set(storage):
    with pytest.raises(CollectionNotFoundError, match="films"):
        storage.collections.set_gate_threshold("films", 0.9)
    with pytest.raises(CollectionNotFoundError, match="films"):
        storage.collections.set_own_past("films", OwnPast())


def test_a_collection_keeps_how_much_the_own_past_counts_and_can_take_it_back(storage, films):
    storage.collections.set_alias("best", "films")
    storage.collections.create("books", index())
    past = OwnPast(repeated_soon=0.0, repeated_later=0.25, near_soon=0.5, near_later=1.0)

    changed = storage.collections.set_own_past("best", past)

    assert changed == dataclasses.replace(films, own_past=past)
    assert storage.collections.get("films") == storage.collections.get("best") == changed
    assert storage.collections.list() == [storage.collections.get("books"), changed]
    assert storage.collections.get("books").own_past is None
    assert storage.collections.create("films", films.index) == changed
    assert storage.collections.set_own_past("films", None) == films == storage.collections.get("films")


def test_a_collection_of_unknown_dimensions_is_refused(storage):
    with pytest.raises(InvalidInputError, match="dimensions"):
        storage.collections.create("shoes", SearchIndexInfo())


def test_an_unknown_name_is_not_found(storage):
    with pytest.raises(CollectionNotFoundError, match="shoes"):
        storage.collections.get("shoes")


@pytest.mark.parametrize("name", ODD_IDS)
def test_a_collection_may_have_any_name(storage, name):
    made = storage.collections.create(name, index())
    storage.objects.upsert(made, [thing("a", [1, 0, 0])])

    assert storage.collections.get(name) == made
    assert ids(storage.objects.nearest(made, vectors([1, 0, 0]), 5)) == ["a"]


def test_an_alias_stands_for_a_collection_until_it_moves(storage, films):
    books = storage.collections.create("books", index())

    storage.collections.set_alias("best", "films")
    first = storage.collections.get("best")
    storage.collections.set_alias("best", "books")

    assert first == films
    assert storage.collections.get("best") == books
    assert storage.collections.aliases() == {"best": "books"}


def test_an_alias_of_an_alias_stands_for_the_collection(storage, films):
    storage.collections.set_alias("best", "films")

    storage.collections.set_alias("favourite", "best")

    assert storage.collections.aliases() == {"best": "films", "favourite": "films"}


def test_an_alias_of_nothing_is_refused(storage):
    with pytest.raises(CollectionNotFoundError, match="films"):
        storage.collections.set_alias("best", "films")

    assert storage.collections.aliases() == {}


def test_a_name_is_a_collection_or_an_alias_never_both(storage, films):
    storage.collections.create("books", index())
    storage.collections.set_alias("best", "films")

    with pytest.raises(ConflictError, match="best"):
        storage.collections.create("best", index())
    with pytest.raises(ConflictError, match="books"):
        storage.collections.set_alias("books", "films")

    assert storage.collections.aliases() == {"best": "films"}


def test_moving_an_alias_has_its_users_folded_where_it_goes_and_where_it_leaves(storage, films):
    storage.collections.create("books", index())
    storage.collections.set_alias("best", "films")
    clicked(storage, "s1", "ann", collection="best")
    clicked(storage, "s2", "bob", collection="best")
    clicked(storage, "s3", "cat", collection="films")
    search(storage, "s4", "dan", collection="best")
    settle(storage)

    storage.collections.set_alias("best", "books")

    claim = storage.queue.claim(users=10, lease_seconds=60)
    assert claim is not None
    assert sorted((entry.collection, entry.user_id) for entry in claim.entries) == [
        ("best", "ann"),
        ("best", "bob"),
        ("films", "ann"),
        ("films", "bob"),
    ]


def test_dropping_an_alias_has_its_users_folded_where_it_stood(storage, films):
    storage.collections.set_alias("best", "films")
    clicked(storage, "s1", "ann", collection="best")
    clicked(storage, "s2", "bob", collection="films")
    settle(storage)

    storage.collections.drop_alias("best")

    assert storage.collections.aliases() == {}
    assert claimed(storage) == ["ann"]
    with pytest.raises(CollectionNotFoundError, match="no alias 'best'"):
        storage.collections.drop_alias("best")
    with pytest.raises(CollectionNotFoundError, match="no alias 'films'"):
        storage.collections.drop_alias("films")
    assert storage.collections.get("films") == films


def test_setting_an_alias_to_where_it_stands_folds_nobody_elsewhere(storage, films):
    storage.collections.set_alias("best", "films")
    clicked(storage, "s1", "ann", collection="best")
    settle(storage)

    storage.collections.set_alias("best", "films")

    assert claimed(storage) == ["ann"]


def test_everyone_who_has_an_order_in_a_collection_gets_one_anew(storage, films):
    storage.collections.create("books", index())
    storage.collections.set_alias("best", "films")
    clicked(storage, "s1", "ann", collection="best")
    clicked(storage, "s2", "bob", collection="films")
    clicked(storage, "s3", "bob", collection="films")
    clicked(storage, "s4", "cat", collection="books")
    search(storage, "s5", "dan", collection="films")
    settle(storage)

    assert storage.collections.order_for_everyone("films") == 2

    assert claimed(storage) == ["ann", "bob"]


def test_a_dropped_collection_takes_its_objects_personal_state_and_aliases_along(storage, films):
    storage.collections.set_alias("best", "films")
    learn(storage, films, memories=[memory_of("s1")], moved={"b": [[0, 1, 1]]})

    storage.collections.drop("films")
    again = storage.collections.create("films", index())

    assert storage.collections.aliases() == {}
    assert again.collection_id != films.collection_id
    assert storage.objects.count(again) == 0
    assert told(storage.personal.state(again, "ann")) == NOTHING


def test_sessions_outlive_their_collection(storage, films):
    session = search(storage, "s1")

    storage.collections.drop("films")

    assert storage.clickstream.get_session("s1") == session


def test_an_alias_is_not_dropped_as_a_collection(storage, films):
    storage.collections.set_alias("best", "films")

    with pytest.raises(EmbeddingStudioError, match="best"):
        storage.collections.drop("best")

    assert storage.collections.get("best") == films


def test_what_was_dropped_is_not_found(storage, films):
    storage.collections.drop("films")

    with pytest.raises(CollectionNotFoundError):
        storage.collections.get("films")
    with pytest.raises(CollectionNotFoundError):
        storage.collections.drop("films")
    with pytest.raises(CollectionNotFoundError):
        storage.objects.count(films)
    with pytest.raises(CollectionNotFoundError):
        storage.objects.scroll(films)
    with pytest.raises(CollectionNotFoundError):
        storage.objects.update_payloads(films, {"a": {}})
    with pytest.raises(CollectionNotFoundError):
        storage.objects.nearest(films, vectors([1, 0, 0]), 1)
    with pytest.raises(CollectionNotFoundError):
        storage.objects.upsert(films, [thing("a", [1, 0, 0])])
    with pytest.raises(CollectionNotFoundError):
        storage.personal.state(films, "ann")


def test_where_a_collection_is_attached_is_kept_and_told_in_a_conflict(storage):
    place = Attachment("table", 'shop."Films"', "shop", "sku", "vector", ("title", "year"), None)
    created = storage.collections.create("films", index(), attached=place)

    assert storage.collections.get("films").attached == created.attached == place
    assert storage.collections.create("films", index(), attached=place) == created
    with pytest.raises(ConflictError, match=r'attached to the table shop\."Films" of shop; asked for is'):
        storage.collections.create("films", index())
