"""The gate fitted to a log. Axes: N queries · D dimensions."""

from typing import Any

import numpy as np
import pytest

from embedding_studio import Context, SearchIndexInfo, Session, load_settings
from embedding_studio.domain.objects import CatalogueObject, PersonalState, QueryMemory
from embedding_studio.embeddings.personal import gate_threshold_of
from embedding_studio.errors import CollectionNotFoundError, InvalidInputError
from embedding_studio.tuning import (
    ENOUGH_OBJECTS,
    ENOUGH_QUERIES,
    NARROWEST_GUARD,
    TunedGate,
    guard_gate,
    reset_gate,
    tune_gate,
)

D = 5
INDEX = SearchIndexInfo(dimensions=D)
FITTED: Any = pytest.approx(0.925, abs=0.01)
"""Random directions are at right angles in the median; their common part makes the cosine 3 / 4."""


def asked(count=ENOUGH_QUERIES):
    """Return queries [N, D] as of a model whose vectors all have much in common."""
    directions = np.random.default_rng(3).normal(size=(count, D - 1))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.hstack([directions, np.full((count, 1), np.sqrt(3))]).astype(np.float32)


def record(storage, queries, collection="films"):
    for number, query in enumerate(queries):
        session = Session(
            session_id=f"{collection}-{number}",
            search_query=f"query {number}",
            created_at=number,
            collection=collection,
        )
        storage.clickstream.register_session(session, query[None])


def learnt(storage, collection, query):
    """Let a user's memory of one query draw every search within the gate towards an object."""
    target = np.array([[0, 0, 0, 1, 0]], dtype=np.float32)
    storage.objects.upsert(collection, [CatalogueObject("target", target)])
    memory = QueryMemory("films-0", "query 0", 0, query, target[0], ("target",), ())
    with storage.personal.learning(collection, ["ann"]) as transaction:
        transaction.replace_states({"ann": PersonalState((memory,))})


def test_a_fitted_gate_is_stored_with_its_collection(storage):
    films = storage.collections.create("films", INDEX)
    record(storage, asked())

    tuned = tune_gate(storage, "films")

    assert tuned == TunedGate("films", None, FITTED, ENOUGH_QUERIES, is_stored=True)
    assert tuned.after == pytest.approx(gate_threshold_of(INDEX, asked()), abs=5e-5)  # four digits are told
    assert storage.collections.get("films").gate_threshold == tuned.after
    assert films.gate_threshold is None


def load(storage, vectors, **settings):
    context = Context(load_settings(embedder="none", **settings), storage=storage)
    storage.collections.create("films", INDEX)
    objects = [CatalogueObject(f"o{number}", vector[None]) for number, vector in enumerate(vectors)]
    context.index_objects("films", objects)
    return storage.collections.get("films").gate_threshold


def test_objects_that_are_all_alike_to_their_model_narrow_the_gate_before_anybody_searches(storage):
    assert load(storage, asked(ENOUGH_OBJECTS)) == FITTED


def test_objects_that_differ_leave_the_gate_as_the_setting_has_it(storage):
    different = np.random.default_rng(4).normal(size=(ENOUGH_OBJECTS, D)).astype(np.float32)

    assert load(storage, different) is None


def test_a_few_objects_tell_nothing_of_the_gate(storage):
    assert load(storage, asked(ENOUGH_OBJECTS - 1)) is None


def test_a_gate_that_somebody_set_stays_whatever_the_objects_are(storage):
    assert load(storage, asked(ENOUGH_OBJECTS), gate_threshold=0.75) is None


def test_a_gate_that_a_collection_has_is_not_fitted_to_objects(storage):
    storage.collections.create("films", INDEX)
    storage.collections.set_gate_threshold("films", 0.8)

    assert load(storage, asked(ENOUGH_OBJECTS)) == 0.8


def test_a_gate_that_is_set_while_objects_are_loaded_stays(storage):
    films = storage.collections.create("films", INDEX)
    objects = [CatalogueObject(f"o{number}", vector[None]) for number, vector in enumerate(asked())]
    storage.objects.upsert(films, objects)
    storage.collections.set_gate_threshold("films", 0.8)

    guard_gate(storage, films, [each.object_id for each in objects])

    assert storage.collections.get("films").gate_threshold == 0.8


def test_variants_of_one_thing_do_not_close_the_gate_altogether(storage):
    variants = np.ones((ENOUGH_OBJECTS, D)) + np.random.default_rng(5).normal(size=(ENOUGH_OBJECTS, D)) / 1000

    assert load(storage, variants.astype(np.float32)) == NARROWEST_GUARD


def test_objects_that_are_all_the_same_tell_nothing_and_are_stored(storage):
    assert load(storage, np.ones((ENOUGH_OBJECTS, D), np.float32)) is None
    assert storage.objects.count(storage.collections.get("films")) == ENOUGH_OBJECTS


def test_a_dry_run_stores_nothing(storage):
    storage.collections.create("films", INDEX, gate_threshold=0.5)
    record(storage, asked())

    tuned = tune_gate(storage, "films", dry_run=True)
    reset = reset_gate(storage, "films", dry_run=True)

    assert tuned == TunedGate("films", 0.5, FITTED, ENOUGH_QUERIES, is_stored=False)
    assert reset == TunedGate("films", 0.5, None, 0, is_stored=False)
    assert storage.collections.get("films").gate_threshold == 0.5


def test_an_alias_tunes_the_collection_that_it_stands_for(storage):
    storage.collections.create("films", INDEX)
    storage.collections.set_alias("best", "films")
    record(storage, asked(), "best")

    tuned = tune_gate(storage, "best")

    assert tuned.collection == "films"
    assert storage.collections.get("films").gate_threshold == tuned.after


def test_a_gate_that_was_fitted_goes_back_to_the_setting(storage):
    storage.collections.create("films", INDEX)
    record(storage, asked())
    fitted = tune_gate(storage, "films").after

    assert reset_gate(storage, "films") == TunedGate("films", fitted, None, 0, is_stored=True)
    assert storage.collections.get("films").gate_threshold is None


def test_a_query_of_several_parts_counts_by_their_mean(memory):
    memory.collections.create("films", INDEX)
    record(memory, asked())
    memory.clickstream.register_session(
        Session(session_id="parts", created_at=999, collection="films"), asked(3)
    )

    assert tune_gate(memory, "films") == TunedGate("films", None, FITTED, ENOUGH_QUERIES + 1, is_stored=True)


def test_too_few_queries_are_told_and_nothing_is_stored(storage):
    storage.collections.create("films", INDEX)
    record(storage, asked(ENOUGH_QUERIES - 1))

    with pytest.raises(InvalidInputError, match=f"hold 99 different queries.*needs {ENOUGH_QUERIES}"):
        tune_gate(storage, "films")

    assert storage.collections.get("films").gate_threshold is None


@pytest.mark.parametrize("change", [tune_gate, reset_gate])
def test_the_gate_of_no_collection_is_not_changed(memory, change):
    with pytest.raises(CollectionNotFoundError, match="films"):
        change(memory, "films")


def test_a_fitted_gate_is_used_by_the_next_search_of_every_process(postgres_url):
    settings = load_settings(embedder="none", database_url=postgres_url)
    queries = asked()
    with Context(settings) as ours, Context(settings) as theirs:
        learnt(ours.storage, ours.storage.collections.create("films", INDEX), queries[0])
        record(ours.storage, queries)
        # Of cosine 3 / 4 and a little more to the query learnt from: near by the setting alone.
        unrelated = queries[np.abs(queries @ queries[0] - 3).argmin()] + 0.1 * queries[0]
        before = theirs.search.search(unrelated, collection="films", user_id="ann").personalised

        tune_gate(ours.storage, "films")
        after = theirs.search.search(unrelated, collection="films", user_id="ann").personalised
        same = theirs.search.search(queries[0], collection="films", user_id="ann").personalised

    assert (before, after, same) == (True, False, True)
