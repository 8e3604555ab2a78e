"""What ``storage/ports`` promises, put to every implementation; then random sequences side by side."""

import contextlib
import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.keys import Scope, new_key, renewed
from embedding_studio.domain.objects import (
    Attachment,
    CatalogueObject,
    Neighbour,
    OwnPast,
    PersonalState,
    QueryMemory,
    SeenObject,
    SharedObject,
    SharedVote,
)
from embedding_studio.domain.sessions import (
    EventDisposition,
    FurtherPage,
    RecordedSession,
    SearchRequest,
    SearchResultItem,
    Session,
    SessionDisposition,
    SessionEvent,
    SessionForImprovementCreateSchema,
    SessionForImprovementStatus,
)
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.errors import (
    CollectionNotFoundError,
    ConflictError,
    EmbeddingStudioError,
    InvalidInputError,
    InvalidVectorsError,
    KeyNotFoundError,
    OrderNotFoundError,
    SessionNotFoundError,
)
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import SearchService
from embedding_studio.storage.attached import create_collection
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import (
    SHARED_HALF_LIFE,
    SHARED_QUERIES,
    SHARED_VOTES,
    OrderOutcome,
    PassedOver,
    SessionOwner,
    Storage,
)
from embedding_studio.storage.postgres import clickstream as pg_clickstream
from test_filters import CASES

ACCEPTED, DUPLICATE = EventDisposition.ACCEPTED, EventDisposition.DUPLICATE
UNKNOWN_OBJECT, UNKNOWN_SESSION = EventDisposition.UNKNOWN_OBJECT, EventDisposition.UNKNOWN_SESSION
CONTINUED = SessionDisposition.CONTINUED
WAITING, CONFLICT = EventDisposition.WAITING, EventDisposition.CONFLICT
PENDING, PROCESSING = SessionForImprovementStatus.PENDING, SessionForImprovementStatus.PROCESSING
DONE, FAILED = SessionForImprovementStatus.DONE, SessionForImprovementStatus.FAILED
REFUSED = SessionForImprovementStatus.REFUSED

PASSED_OVER = PassedOver("irrelevant", "no events", "too old")

ODD_IDS = [
    "o'1",
    'o"1"; DROP TABLE sessions; --',
    "%s {0} \\ $1",
    "靴 größe 🙂",
    "e\u0301 is not \u00e9",
    " spaces ",
    "x" * 512,
    "靴" * 170,
]
NOW = 5_000_000_000.0  # far ahead, so that whatever is placed or given back during a test is due


def vectors(*rows):
    return np.array(rows, dtype=np.float32)


def thing(object_id, *parts, content_hash=None, **payload):
    return CatalogueObject(object_id, vectors(*parts), payload, content_hash)


def index(metric_type=MetricType.COSINE, aggregation=MetricAggregationType.MIN, dimensions=3):
    return SearchIndexInfo(
        dimensions=dimensions, metric_type=metric_type, metric_aggregation_type=aggregation
    )


class Elsewhere:
    """A base index that a storage does not take for its own, so that nothing is searched together."""

    def __init__(self, objects):
        self._objects = objects

    def __getattr__(self, name):
        return getattr(self._objects, name)


class FillingCollections:
    """Collections each of which an engine finds that is filled, of a storage."""

    def __init__(self, storage):
        self._storage = storage
        self._own = storage.collections

    def __getattr__(self, name):
        return getattr(self._own, name)

    def create(self, name, index, **given):
        is_long = len(name.encode()) > 200  # as no name may be there
        if "attached" in given or index.dimensions is None or is_long:
            return self._own.create(name, index, **given)
        return create_collection(self._storage, name, index, **given, fill="vectors")


@pytest.fixture(scope="module")
def qdrant(tmp_path_factory):
    pytest.importorskip("qdrant_edge", reason="Qdrant's engine is not installed here")
    import qdrant_server

    with qdrant_server.qdrant(tmp_path_factory.mktemp("qdrant")) as server:
        yield server


@pytest.fixture(params=["memory", "postgres", "elsewhere", "filled"])
def storage(request):
    """Return an empty storage of each kind, with its base index elsewhere, and with collections filled."""
    if request.param == "memory":
        yield MemoryStorage()
        return
    with request.getfixturevalue("new_postgres_storage")() as opened:
        if request.param == "filled":
            server = request.getfixturevalue("qdrant")
            opened.objects.filling._opened._stores["vectors"] = server.url
            yield opened.having(collections=FillingCollections(opened))
            for each in opened.collections.list():
                opened.collections.drop(each.name)
            return
        yield opened.having(objects=Elsewhere(opened.objects)) if request.param == "elsewhere" else opened


@pytest.fixture
def films(storage):
    """Return a collection of three objects at right angles."""
    collection = storage.collections.create("films", index())
    objects = [thing("a", [1, 0, 0]), thing("b", [0, 1, 0]), thing("c", [0, 0, 1])]
    storage.objects.upsert(collection, objects)
    return collection


def ids(neighbours):
    return [neighbour.object_id for neighbour in neighbours]


def search(storage, session_id, user_id="ann", *, shown="abc", at=100, query=(1, 0, 0), **fields):
    """Record a search; ``shown`` are the ids of its results, from the top."""
    results = tuple(SearchResultItem(object_id=object_id) for object_id in shown)
    session = Session(
        **{"session_id": session_id, "user_id": user_id, "created_at": at, "collection": "films"}
        | {"search_query": "a film", "search_results": results}
        | fields
    )
    storage.clickstream.register_session(session, None if query is None else vectors(query))
    return session


def event(session_id, object_id="a", event_type="click", at=101, **fields):
    return SessionEvent(
        session_id=session_id, object_id=object_id, event_type=event_type, created_at=at, **fields
    )


def click(storage, session_id, object_id="a", **fields):
    [disposition] = storage.clickstream.push_events([event(session_id, object_id, **fields)])
    return disposition


def clicked(storage, session_id, user_id="ann", **fields):
    """Record a search and a click on its first result; so an order is placed."""
    search(storage, session_id, user_id, **fields)
    click(storage, session_id)


def place(storage, session_id):
    return storage.orders.create(SessionForImprovementCreateSchema(session_id=session_id))


def claim(storage, *, users=100, lease_seconds=60.0, now=NOW):
    return storage.queue.claim(users=users, lease_seconds=lease_seconds, now=now)


def claimed(storage, **options):
    """Return the users whom a claim holds, sorted."""
    given = claim(storage, **options)
    return [] if given is None else sorted(entry.user_id for entry in given.entries)


def complete(storage, given, *outcomes):
    """End orders of the users whom a claim holds; return what is new."""
    new = []
    for name in sorted({entry.collection for entry in given.entries}):
        users = [entry.user_id for entry in given.entries if entry.collection == name]
        with storage.personal.learning(storage.collections.get(name), users) as transaction:
            new += transaction.complete(given.token, outcomes, PASSED_OVER)
    return new


def settle(storage):
    """Let every order be done."""
    given = claim(storage)
    complete(storage, given, *[OrderOutcome(order.session_id, DONE) for order in storage.orders.list()])


def fail(storage, given, detail="why", **options):
    """Give back every user whom a claim holds; return the sessions concerned, sorted."""
    options = {"max_attempts": 1, "backoff_seconds": 1} | options
    return sorted(
        session_id
        for entry in given.entries
        for session_id in storage.queue.fail(given.token, entry, detail, **options)
    )


def memory_of(session_id, *, query=(1, 0, 0), mean=(0, 1, 0), moved=("b",), at=100):
    return QueryMemory(session_id, "a film", at, vectors(*query), vectors(*mean), ("a", "b"), moved)


def vote(query_key, *, query=(1, 0, 0), mean=(0, 1, 0), at=100, seen=()):
    """Return a vote; ``seen`` holds (object_id, clicks, looks)."""
    return SharedVote(
        query_key,
        vectors(*query),
        vectors(*mean),
        at,
        tuple(SeenObject(each, float(clicks), float(looks)) for each, clicks, looks in seen),
    )


def learn(storage, collection, user_id="ann", *, memories=(), moved=None, votes=()):
    """Store a user's state as a fold would; ``moved`` is object_id -> parts."""
    copies = {object_id: vectors(*parts) for object_id, parts in (moved or {}).items()}
    with storage.personal.learning(collection, [user_id]) as transaction:
        transaction.replace_states({user_id: PersonalState(tuple(memories), copies, tuple(votes))})


def told(state):
    """Return a state as something that can be compared."""
    memories = [told_memory(memory) for memory in state.memories]
    return memories, {object_id: parts.tolist() for object_id, parts in state.vectors.items()}


def told_memory(memory):
    learnt = (memory.query.tolist(), memory.clicked_mean.tolist(), memory.clicked_ids, memory.moved_ids)
    return (memory.session_id, memory.search_query, memory.created_at, *learnt)


NOTHING = told(PersonalState())


def told_votes(storage, collection, user_id="ann"):
    """Return (query_key, query, clicked_mean, created_at, *seen) of each vote of a user."""
    votes = storage.personal.state(collection, user_id).votes
    return [(v.query_key, v.query.tolist(), v.clicked_mean.tolist(), v.created_at, *v.seen) for v in votes]


def heard(storage, collection, user_id="ann", *, query=(1, 0, 0), threshold=0.5, shared_by=1):
    """Return (query, clicked_mean, users) of each memory of others that is told to a user."""
    near = storage.personal.near_memories(
        collection, user_id, vectors(*query), threshold, shared_by=shared_by
    )
    return [(m.query.tolist(), m.clicked_mean.tolist(), m.users) for m in near.shared]


@contextlib.contextmanager
def beside(work):
    """Run ``work`` in a thread beside the block; its end is an Event, its error is raised after the block."""
    ended, errors = threading.Event(), []

    def run():
        try:
            work()
        except BaseException as error:  # noqa: BLE001, handed to the test below
            errors.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield ended
    thread.join(timeout=30)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


# Collections


def test_a_collection_is_found_as_it_was_made(storage):
    info = SearchIndexInfo(
        dimensions=5,
        metric_type=MetricType.EUCLID,
        metric_aggregation_type=MetricAggregationType.AVG,
    )

    made = storage.collections.create("shoes", info, embedder="minilm", gate_threshold=0.7)

    assert (made.name, made.index, made.embedder, made.gate_threshold) == ("shoes", info, "minilm", 0.7)
    assert storage.collections.get("shoes") == made


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


def test_the_latest_memories_are_of_those_who_have_two(storage, films):
    ages = {"ann": (5, 9), "bob": (7, 9, 1), "cat": (10,), "dan": (2, 3), "eve": (12, 11)}
    with storage.personal.learning(films, list(ages)) as transaction:
        transaction.replace_states(
            {
                user: PersonalState(tuple(memory_of(f"{user}{at}", at=at) for at in sorted(times)))
                for user, times in ages.items()
            }
        )

    def told(count):
        found = storage.personal.latest_memories(films, count)
        return [[memory.session_id for memory in memories] for memories in found]

    assert told(100) == [["eve11", "eve12"], ["ann5", "ann9"], ["bob1", "bob7", "bob9"], ["dan2", "dan3"]]
    assert told(5) == told(100)[:3]
    assert told(2) == told(100)[:1]
    [first, _] = storage.personal.latest_memories(films, 1)[0]
    np.testing.assert_array_equal(first.query, memory_of("eve11").query)
    assert (first.created_at, first.clicked_ids) == (11, ("a", "b"))


def test_a_memory_keeps_how_like_its_query_each_click_is(storage, films):
    unlike = dataclasses.replace(memory_of("s1"), likeness=(0.25, 1.0))
    with storage.personal.learning(films, ["ann"]) as transaction:
        transaction.replace_states({"ann": PersonalState((unlike, memory_of("s2")))})

    [near, _] = storage.personal.near_memories(films, "ann", unlike.query, 0.5).own
    [stored, other] = storage.personal.state(films, "ann").memories
    assert near.likeness == stored.likeness == (0.25, 1.0)
    assert other.likeness == ()


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


# Objects


def test_objects_come_back_whole_and_in_the_order_asked_for(storage):
    shoes = storage.collections.create("shoes", index())
    payload = {"name": "größe 靴", "price": 1.5, "tags": ["x", None, True], "maker": {"name": "o'Neill"}}
    many_parts = [[1, 2, 3], [-4, 5.5, 0], [0.1, 0, 7], [1, 1, 1], [0, 0, 1e-3]]
    storage.objects.upsert(
        shoes, [thing("a", [1, 0, 0], content_hash="h"), CatalogueObject("b", vectors(*many_parts), payload)]
    )

    b, a = storage.objects.get(shoes, ["b", "unknown", "a"])

    assert (b.object_id, b.payload, b.content_hash) == ("b", payload, None)
    assert (a.object_id, a.payload, a.content_hash) == ("a", {}, "h")
    assert (b.parts.dtype, b.parts.shape, a.parts.shape) == (np.float32, (5, 3), (1, 3))
    np.testing.assert_array_equal(b.parts, vectors(*many_parts))


def test_an_upserted_object_replaces_the_one_of_its_id_altogether(storage):
    shoes = storage.collections.create("shoes", index())
    storage.objects.upsert(shoes, [thing("a", [1, 0, 0], [0, 1, 0], content_hash="h", price=3)])

    storage.objects.upsert(shoes, [thing("a", [0, 0, 1], name="new")])

    [a] = storage.objects.get(shoes, ["a"])
    assert (a.parts.tolist(), a.payload, a.content_hash) == ([[0, 0, 1]], {"name": "new"}, None)
    assert storage.objects.count(shoes) == 1
    assert storage.objects.nearest(shoes, vectors([1, 0, 0]), 5) == [Neighbour("a", 1.0, {"name": "new"})]


@pytest.mark.parametrize(
    ("metric_type", "parts"),
    [
        (MetricType.COSINE, [[1, 0]]),
        (MetricType.COSINE, [[1, 0, np.nan]]),
        (MetricType.DOT, [[1, 0, 0], [1, 0, np.inf]]),
        (MetricType.EUCLID, np.empty((0, 3))),
        (MetricType.COSINE, [[1, 0, 0], [0, 0, 0]]),
    ],
)
def test_bad_vectors_are_refused_by_the_name_of_their_object_and_nothing_is_stored(
    storage, metric_type, parts
):
    shoes = storage.collections.create("shoes", index(metric_type))
    bad = CatalogueObject("the bad one", np.array(parts, dtype=np.float32))

    with pytest.raises(InvalidVectorsError, match="the bad one"):
        storage.objects.upsert(shoes, [thing("a", [1, 0, 0]), bad, thing("c", [1, 0, 0])])

    assert storage.objects.count(shoes) == 0


@pytest.mark.parametrize("metric_type", [MetricType.DOT, MetricType.EUCLID])
def test_a_zero_vector_is_a_point_where_direction_does_not_count(storage, metric_type):
    shoes = storage.collections.create("shoes", index(metric_type))

    storage.objects.upsert(shoes, [thing("a", [0, 0, 0])])

    assert storage.objects.nearest(shoes, vectors([0, 0, 0]), 5) == [Neighbour("a", 0.0, {})]


def test_a_payload_that_is_not_json_is_refused_and_nothing_is_stored(storage, films):
    with pytest.raises(InvalidInputError):
        storage.objects.upsert(films, [thing("d", [1, 0, 0]), thing("e", [1, 0, 0], price=float("nan"))])

    assert storage.objects.count(films) == 3


def test_content_hashes_are_told_of_those_that_exist_and_have_one(storage):
    shoes = storage.collections.create("shoes", index())
    storage.objects.upsert(shoes, [thing("a", [1, 0, 0], content_hash="h"), thing("b", [1, 0, 0])])

    assert storage.objects.content_hashes(shoes, ["a", "b", "unknown"]) == {"a": "h"}
    assert storage.objects.content_hashes(shoes, []) == {}


def test_a_payload_is_replaced_alone(storage, films):
    clicked(storage, "s1", "ann", shown="ab")
    settle(storage)
    learn(storage, films, moved={"a": [[1, 1, 0]]})
    storage.objects.upsert(films, [thing("b", [0, 1, 0], content_hash="t" * 32 + "p" * 32, price=3)])

    unknown = storage.objects.update_payloads(
        films, {"unknown": {"price": 1}, "b": {"tags": ["größe", None]}, "a": {"price": 2}, "also": {}}
    )

    a, b, c = storage.objects.get(films, ["a", "b", "c"])
    assert unknown == ["also", "unknown"]
    assert (a.payload, b.payload, c.payload) == ({"price": 2}, {"tags": ["größe", None]}, {})
    assert (a.parts.tolist(), b.parts.tolist()) == ([[1, 0, 0]], [[0, 1, 0]])
    assert (a.content_hash, b.content_hash) == (None, "t" * 32)  # of the text; the payload is another now
    assert told(storage.personal.state(films, "ann")) == ([], {"a": [[1, 1, 0]]})
    assert claimed(storage) == []
    assert storage.objects.count(films) == 3
    assert storage.objects.nearest(films, vectors([1, 0, 0]), 1) == [Neighbour("a", 0.0, {"price": 2})]


def test_payloads_are_replaced_all_or_none(storage, films):
    with pytest.raises(InvalidInputError):
        storage.objects.update_payloads(films, {"a": {"price": 1}, "b": {"price": float("nan")}})

    assert [each.payload for each in storage.objects.get(films, ["a", "b"])] == [{}, {}]


def test_a_collection_is_scrolled_in_the_order_of_ids_page_by_page(storage):
    shoes = storage.collections.create("shoes", index(aggregation=MetricAggregationType.AVG))
    mixed = ["b", "a", "B", "é", "z", "a1", "_", "靴", "a b", "10", "9"]
    parts = {object_id: [[k + 1, 0, 1], [0, k, 2]][: 1 + k % 2] for k, object_id in enumerate(mixed)}
    storage.objects.upsert(shoes, [thing(i, *parts[i], content_hash=f"hash of {i}", name=i) for i in mixed])

    pages = [storage.objects.scroll(shoes, limit=4)]
    while len(pages[-1]) == 4:
        pages.append(storage.objects.scroll(shoes, after=pages[-1][-1].object_id, limit=4))

    assert [ids(page) for page in pages] == [
        ["10", "9", "B", "_"], ["a", "a b", "a1", "b"], ["z", "é", "靴"],
    ]  # fmt: skip
    for item in itertools.chain(*pages):
        assert item.parts.tolist() == parts[item.object_id]
        assert item.parts.dtype == np.float32
        assert item.payload == {"name": item.object_id}
        assert item.content_hash == f"hash of {item.object_id}"
    assert ids(storage.objects.scroll(shoes)) == ids(itertools.chain(*pages))


def test_scrolling_begins_after_an_id_that_need_not_exist_and_ends_with_an_empty_page(storage, films):
    assert ids(storage.objects.scroll(films, after="aa")) == ["b", "c"]
    assert ids(storage.objects.scroll(films, after="")) == ["a", "b", "c"]
    assert storage.objects.scroll(films, after="c") == []
    assert storage.objects.scroll(films, limit=0) == []


def test_scrolling_keeps_to_a_filter(storage):
    shoes = storage.collections.create("shoes", index())
    storage.objects.upsert(shoes, [thing(f"o{k}", [1, 0, k], even=k % 2 == 0) for k in range(9)])
    even = PayloadFilter.parse({"query": {"term": {"field": "even", "value": True}}})

    first = storage.objects.scroll(shoes, limit=3, filter=even)
    second = storage.objects.scroll(shoes, after="o4", limit=3, filter=even)

    assert ids(first) == ["o0", "o2", "o4"]
    assert ids(second) == ["o6", "o8"]


def test_no_objects_at_all_are_no_special_case(storage, films):
    storage.objects.upsert(films, [])

    assert storage.objects.get(films, []) == []
    assert storage.objects.delete(films, []) == 0
    assert storage.objects.update_payloads(films, {}) == []
    assert storage.objects.count(films) == 3


def test_deleted_objects_are_gone_and_counted(storage, films):
    assert storage.objects.delete(films, ["a", "unknown", "c", "a"]) == 2

    assert storage.objects.count(films) == 1
    assert storage.objects.get(films, ["a", "c"]) == []
    assert ids(storage.objects.nearest(films, vectors([1, 0, 0]), 5)) == ["b"]


@pytest.mark.parametrize("object_id", ODD_IDS)
def test_an_object_and_a_user_may_have_any_id(storage, films, object_id):
    user_id = object_id[::-1]
    storage.objects.upsert(films, [thing(object_id, [1, 1, 0])])
    clicked(storage, object_id, user_id, shown=["a", object_id])
    learn(
        storage,
        films,
        user_id,
        memories=[memory_of(object_id, moved=(object_id,))],
        moved={object_id: [[3, 1, 0]]},
    )

    near = storage.personal.nearest(
        films, user_id, vectors([1, 1, 0]), 2, {object_id: 1.0}, objects=storage.objects
    )

    assert ids(storage.objects.nearest(films, vectors([1, 1, 0]), 1)) == [object_id]
    assert [(n.object_id, n.distance) for n in near] == [
        (object_id, pytest.approx(1 - 4 / np.sqrt(20), abs=1e-6)),
        ("a", pytest.approx(1 - np.sqrt(0.5), abs=1e-6)),
    ]
    assert list(storage.personal.copies(films, user_id, [object_id])) == [object_id]
    assert claimed(storage) == [user_id]
    assert storage.objects.update_payloads(films, {object_id: {"new": True}}) == []
    assert object_id in ids(storage.objects.scroll(films))
    assert storage.objects.delete(films, [object_id]) == 1
    assert storage.clickstream.forget_user(user_id)["sessions"] == 1


def test_collections_share_no_objects(storage, films):
    books = storage.collections.create("books", index())
    storage.objects.upsert(books, [thing("a", [0, 0, 5], title="a book")])

    storage.objects.delete(films, ["a"])

    assert storage.objects.nearest(books, vectors([0, 0, 1]), 5) == [Neighbour("a", 0.0, {"title": "a book"})]


# Nearest

CLOSED_FORMS = {
    # of the parts (3, 0) and (0, 4) to the query (4, 3)
    (MetricType.COSINE, MetricAggregationType.MIN): 0.2,
    (MetricType.COSINE, MetricAggregationType.AVG): 0.3,
    (MetricType.DOT, MetricAggregationType.MIN): -12.0,
    (MetricType.DOT, MetricAggregationType.AVG): -12.0,
    (MetricType.EUCLID, MetricAggregationType.MIN): 3.1622777,
    (MetricType.EUCLID, MetricAggregationType.AVG): 3.6426916,
}


@pytest.mark.parametrize(("metric_type", "aggregation"), CLOSED_FORMS)
def test_a_distance_is_what_its_metric_and_aggregation_say(storage, metric_type, aggregation):
    shoes = storage.collections.create("shoes", index(metric_type, aggregation, dimensions=2))
    storage.objects.upsert(shoes, [thing("a", [3, 0], [0, 4])])

    [a] = storage.objects.nearest(shoes, vectors([4, 3]), 5)

    assert a.distance == pytest.approx(CLOSED_FORMS[metric_type, aggregation], abs=1e-6)


def distance_by_definition(metric_type, aggregation, queries, parts):
    pairs = []
    for q in queries.astype(np.float64):
        for v in parts.astype(np.float64):
            if metric_type is MetricType.COSINE:
                pairs.append(1 - sum(q * v) / sum(q * q) ** 0.5 / sum(v * v) ** 0.5)
            elif metric_type is MetricType.DOT:
                pairs.append(-sum(q * v))
            else:
                pairs.append(sum((q - v) ** 2) ** 0.5)
    return min(pairs) if aggregation is MetricAggregationType.MIN else sum(pairs) / len(pairs)


@pytest.mark.parametrize("query_parts", [1, 3])
@pytest.mark.parametrize(("metric_type", "aggregation"), CLOSED_FORMS)
def test_the_nearest_are_those_of_the_definition(storage, metric_type, aggregation, query_parts):
    rng = np.random.default_rng(7)
    shoes = storage.collections.create("shoes", index(metric_type, aggregation, dimensions=5))
    objects = {
        f"o{number}": rng.normal(size=(rng.integers(1, 5), 5)).astype(np.float32) for number in range(211)
    }
    storage.objects.upsert(shoes, [CatalogueObject(*item) for item in objects.items()])
    queries = rng.normal(size=(query_parts, 5)).astype(np.float32)
    true = {i: distance_by_definition(metric_type, aggregation, queries, objects[i]) for i in objects}
    expected = sorted(true, key=true.get)

    ten = storage.objects.nearest(shoes, queries, 10)
    everything = storage.objects.nearest(shoes, queries, 1000)
    near = storage.objects.nearest(shoes, queries, 1000, max_distance=true[expected[29]] + 1e-5)

    assert ids(ten) == expected[:10]
    assert ids(everything) == expected
    assert ids(near) == expected[:30]
    assert [n.distance for n in everything] == pytest.approx([true[i] for i in expected], abs=1e-5)


def test_an_object_of_many_parts_comes_once_and_takes_one_place(storage):
    shoes = storage.collections.create("shoes", index())
    storage.objects.upsert(shoes, [thing("many", *[[1, 0, k / 100] for k in range(40)])])
    storage.objects.upsert(shoes, [thing(f"o{k}", [1, 1 + k / 10, 0]) for k in range(5)])

    near = storage.objects.nearest(shoes, vectors([1, 0, 0]), 4)

    assert ids(near) == ["many", "o0", "o1", "o2"]


def test_equal_distances_are_in_the_order_of_ids_by_code_point(storage):
    shoes = storage.collections.create("shoes", index())
    tied = ["b", "a", "B", "é", "z", "a1", "_", "靴", "a b", "10", "9"]
    storage.objects.upsert(shoes, [thing(object_id, [1, 2, 3]) for object_id in tied])
    storage.objects.upsert(shoes, [thing("0 far", [1, 0, 0]), thing("zz near", [1, 2, 4])])

    near = storage.objects.nearest(shoes, vectors([1, 2, 4]), 20)

    assert ids(near) == ["zz near", "10", "9", "B", "_", "a", "a b", "a1", "b", "z", "é", "靴", "0 far"]


@pytest.mark.parametrize(("metric_type", "aggregation"), CLOSED_FORMS)
def test_a_longer_list_begins_with_the_shorter_one(storage, metric_type, aggregation):
    rng = np.random.default_rng(11)
    shoes = storage.collections.create("shoes", index(metric_type, aggregation, dimensions=3))
    grid = rng.integers(1, 3, size=(97, 2, 3)).astype(np.float32)  # few different vectors, so many ties
    storage.objects.upsert(shoes, [CatalogueObject(f"o{k}", parts) for k, parts in enumerate(grid)])
    queries = vectors([1, 2, 1], [2, 2, 1])

    everything = storage.objects.nearest(shoes, queries, 97)

    assert len(everything) == 97
    assert everything == sorted(everything, key=lambda n: (n.distance, n.object_id))
    for limit in (0, 1, 2, 3, 5, 10, 30, 60, 96):
        assert storage.objects.nearest(shoes, queries, limit) == everything[:limit]


@pytest.mark.parametrize(("metric_type", "aggregation"), CLOSED_FORMS)
def test_the_largest_distance_is_inclusive(storage, metric_type, aggregation):
    rng = np.random.default_rng(13)
    shoes = storage.collections.create("shoes", index(metric_type, aggregation, dimensions=5))
    objects = rng.normal(size=(31, 3, 5)).astype(np.float32)
    storage.objects.upsert(shoes, [CatalogueObject(f"o{k}", parts) for k, parts in enumerate(objects)])
    query = rng.normal(size=(1, 5)).astype(np.float32)
    everything = storage.objects.nearest(shoes, query, 31)

    for last in (0, 1, 15, 30):
        near = storage.objects.nearest(shoes, query, 31, max_distance=everything[last].distance)
        assert near == everything[: last + 1]
    assert storage.objects.nearest(shoes, query, 31, max_distance=everything[0].distance - 1e-3) == []


@pytest.mark.parametrize("bad", [[[1, 0]], [[1, 0, np.nan]], [[1, 0, 0], [0, 0, 0]], np.empty((0, 3))])
def test_a_query_that_cannot_be_compared_is_refused(storage, films, bad):
    query = np.array(bad, dtype=np.float32)

    with pytest.raises(InvalidVectorsError, match="query"):
        storage.objects.nearest(films, query, 3)
    with pytest.raises(InvalidVectorsError, match="query"):
        storage.personal.nearest(films, "ann", query, 3, {}, objects=storage.objects)


def test_an_empty_collection_has_nothing_near(storage):
    shoes = storage.collections.create("shoes", index())

    assert storage.objects.nearest(shoes, vectors([1, 0, 0]), 5) == []


def test_every_kind_of_filter_finds_what_it_means(storage):
    shoes = storage.collections.create("shoes", index())
    payloads = {f"o{number}": payload for number, (_, payload, _) in enumerate(CASES)}
    storage.objects.upsert(shoes, [thing(i, [1, 0, 0], **payload) for i, payload in payloads.items()])

    disagreements = []
    for query, _, _ in CASES:
        wanted = PayloadFilter.parse({"query": query})
        found = set(ids(storage.objects.nearest(shoes, vectors([1, 0, 0]), 1000, filter=wanted)))
        expected = {i for i, payload in payloads.items() if wanted.matches(payload)}
        disagreements += [(query, payloads[i], i in found) for i in found ^ expected]

    assert disagreements == []


def test_a_filtered_list_is_shorter_only_if_fewer_match(storage):
    rng = np.random.default_rng(17)
    shoes = storage.collections.create("shoes", index(dimensions=5))
    objects = rng.normal(size=(801, 5)).astype(np.float32)
    query = rng.normal(size=(1, 5)).astype(np.float32)
    true = 1 - (objects @ query[0]) / np.linalg.norm(objects, axis=1) / np.linalg.norm(query)
    far_to_near = np.argsort(-true)  # rank 0 is farthest: what a filter seeks lies where a search looks last
    storage.objects.upsert(
        shoes, [thing(f"o{k}", objects[k], rank=rank) for rank, k in enumerate(far_to_near.tolist())]
    )

    for matching in (0, 1, 7, 80, 400, 801):
        wanted = PayloadFilter.parse({"query": {"field": "rank", "range": {"lt": matching}}})
        expected = [f"o{k}" for k in reversed(far_to_near[:matching].tolist())]
        assert ids(storage.objects.nearest(shoes, query, 10, filter=wanted)) == expected[:10]
        assert ids(storage.objects.nearest(shoes, query, 300, filter=wanted)) == expected[:300]


@pytest.mark.parametrize("margin", [0, -1, 101, np.inf, np.nan])
def test_a_margin_that_no_search_can_have_is_refused(storage, margin):
    shoes = storage.collections.create("shoes", index())

    with pytest.raises(InvalidInputError, match="margin"):
        storage.objects.set_margin(shoes, margin)


def test_a_margin_that_was_set_is_told_until_it_is_taken_back(storage):
    shoes = storage.collections.create("shoes", index())

    storage.objects.set_margin(shoes, 1.5)
    while_set = storage.objects.codes(shoes).margin
    storage.objects.set_margin(shoes, None)

    assert while_set == 1.5
    assert storage.objects.codes(shoes).margin is None


def test_filter_and_largest_distance_hold_together(storage):
    shoes = storage.collections.create("shoes", index(MetricType.EUCLID))
    storage.objects.upsert(shoes, [thing(f"o{k}", [k, 0, 0], even=k % 2 == 0) for k in range(9)])
    even = PayloadFilter.parse({"query": {"term": {"field": "even", "value": True}}})

    near = storage.objects.nearest(shoes, vectors([0, 0, 0]), 9, filter=even, max_distance=4)

    assert near == [
        Neighbour("o0", 0.0, {"even": True}),
        Neighbour("o2", 2.0, {"even": True}),
        Neighbour("o4", 4.0, {"even": True}),
    ]


@pytest.mark.parametrize(
    ("metric_type", "aggregation"),
    [
        (MetricType.COSINE, MetricAggregationType.MIN),
        (MetricType.DOT, MetricAggregationType.AVG),
        (MetricType.EUCLID, MetricAggregationType.AVG),
    ],
)
def test_a_collection_large_enough_for_a_vector_index_keeps_the_promises(storage, metric_type, aggregation):
    rng = np.random.default_rng(23)
    objects = rng.normal(size=(3301, 2, 5)).astype(np.float32)  # parts of one thing are alike
    query = rng.normal(size=(1, 5)).astype(np.float32)
    true = np.array([distance_by_definition(metric_type, aggregation, query, parts) for parts in objects])
    order = [f"o{k}" for k in np.argsort(true)]
    rank = {object_id: place for place, object_id in enumerate(order)}
    shoes = storage.collections.create("shoes", index(metric_type, aggregation, dimensions=5))
    storage.objects.upsert(
        shoes, [CatalogueObject(f"o{k}", parts, {"rank": rank[f"o{k}"]}) for k, parts in enumerate(objects)]
    )
    learn(storage, shoes, moved={object_id: [[9] * 5, [9] * 5] for object_id in order[:40]})
    rare = PayloadFilter.parse({"query": {"field": "rank", "range": {"gte": 3280}}})
    common = PayloadFilter.parse({"query": {"field": "rank", "range": {"gte": 1500}}})

    near = storage.objects.nearest(shoes, query, 200)
    own = storage.personal.nearest(
        shoes, "ann", query, 70, dict.fromkeys(order[:40], 1.0), objects=storage.objects
    )
    far = distance_by_definition(metric_type, aggregation, query, np.full((2, 5), 9, dtype=np.float32))

    assert len(set(ids(near))) == 200
    assert near == sorted(near, key=lambda n: (n.distance, n.object_id))
    assert [n.distance for n in near] == pytest.approx([true[int(n.object_id[1:])] for n in near], abs=1e-5)
    assert len(set(ids(near)) & set(order[:200])) >= 170  # an index may miss some
    for limit in (1, 10, 50):
        assert storage.objects.nearest(shoes, query, limit) == near[:limit]
    assert storage.objects.nearest(shoes, query, 200, max_distance=near[19].distance) == near[:20]
    assert ids(storage.objects.nearest(shoes, query, 30, filter=rare)) == order[3280:]
    found = ids(storage.objects.nearest(shoes, query, 30, filter=common))
    assert len(set(found) & set(order[1500:1530])) >= 24
    assert len(found) == len(set(found)) == 30
    by_place = {object_id: far if n < 40 else true[int(object_id[1:])] for n, object_id in enumerate(order)}
    best = sorted(by_place, key=lambda object_id: (by_place[object_id], object_id))[:70]
    assert [n.distance for n in own] == pytest.approx([by_place[n.object_id] for n in own], abs=1e-5)
    assert len(set(ids(own)) & set(best)) >= 60


# Originals and copies


def test_object_o1_of_user_5_is_not_object_o1_5(storage):
    shoes = storage.collections.create("shoes", index())
    storage.objects.upsert(shoes, [thing("o1", [1, 0, 0]), thing("o1_5", [0, 1, 0])])

    learn(storage, shoes, "5", moved={"o1": [[1, 1, 0]]})
    learn(storage, shoes, "1_5", moved={"o1": [[1, 0, 1]]})

    assert [o.parts.tolist() for o in storage.objects.get(shoes, ["o1", "o1_5"])] == [
        [[1, 0, 0]],
        [[0, 1, 0]],
    ]
    assert told(storage.personal.state(shoes, "5")) == ([], {"o1": [[1, 1, 0]]})
    assert told(storage.personal.state(shoes, "1_5")) == ([], {"o1": [[1, 0, 1]]})
    assert storage.objects.count(shoes) == 2


def test_copies_of_many_users_leave_the_plain_search_as_it_is(storage, films):
    query = vectors([1, 0.5, 0.25])
    before = storage.objects.nearest(films, query, 3)

    for number in range(20):
        learn(storage, films, f"u{number}", moved={i: [[1, 0.5, 0.25]] for i in "abc"})

    assert storage.objects.nearest(films, query, 3) == before
    assert storage.personal.nearest(films, "nobody", query, 3, {}, objects=storage.objects) == before
    assert (
        storage.personal.nearest(
            films, "nobody", query, 3, dict.fromkeys("abc", 1.0), objects=storage.objects
        )
        == before
    )
    assert storage.personal.nearest(films, "u1", query, 3, {}, objects=storage.objects) == before


def test_changed_parts_drop_the_copies_and_fold_whoever_met_the_object(storage, films):
    clicked(storage, "s1", "ann", shown=["a"])
    clicked(storage, "s2", "bob", shown=["b", "a"])
    search(storage, "s3", "cat", shown=["b"])
    click(storage, "s3", "b")
    search(storage, "s4", "dan", shown=["a"])  # nothing is learnt from this one
    settle(storage)
    learn(storage, films, "ann", memories=[memory_of("s1")], moved={"a": [[1, 0.1, 0]], "b": [[0, 1, 0.1]]})
    learn(storage, films, "bob", moved={"a": [[1, 0, 0.1]]})
    learn(storage, films, "cat", moved={"b": [[0, 1, 0.2]]})

    storage.objects.upsert(films, [thing("a", [1, 0, 1])])

    ann = storage.personal.state(films, "ann")
    assert told(ann)[1] == {"b": vectors([0, 1, 0.1]).tolist()}
    assert told(storage.personal.state(films, "bob")) == NOTHING
    assert list(storage.personal.state(films, "cat").vectors) == ["b"]
    assert claimed(storage) == ["ann", "bob"]


def test_another_number_of_parts_is_a_change_too(storage, films):
    learn(storage, films, moved={"a": [[1, 0.1, 0]]})

    storage.objects.upsert(films, [thing("a", [1, 0, 0], [1, 0, 0])])

    assert told(storage.personal.state(films, "ann")) == NOTHING


def test_another_payload_alone_keeps_the_copies_and_places_no_order(storage, films):
    clicked(storage, "s1")
    settle(storage)
    learn(storage, films, moved={"a": [[1, 0.5, 0]]})

    storage.objects.upsert(films, [thing("a", [1, 0, 0], content_hash="h", name="new")])

    assert told(storage.personal.state(films, "ann")) == ([], {"a": [[1, 0.5, 0]]})
    assert storage.objects.get(films, ["a"])[0].payload == {"name": "new"}
    assert claim(storage) is None


@pytest.mark.parametrize("bad", [{"price": float("nan")}, {"name": "a\0b"}, {"a\0": 1}, {"name": "\ud800"}])
def test_of_objects_of_which_one_cannot_be_stored_none_is(storage, films, bad):
    many = [thing(f"m{number:04}", [1, 0, number]) for number in range(2500)]
    many.append(CatalogueObject("z", vectors([1, 0, 0]), bad))

    with pytest.raises(InvalidInputError, match="'z'"):
        storage.objects.upsert(films, many)

    assert storage.objects.count(films) == 3
    storage.objects.upsert(films, [*many[:-1], thing("z", [1, 0, 0], name="a\\u0000b")])
    assert storage.objects.count(films) == 2504
    assert storage.objects.get(films, ["z"])[0].payload == {"name": "a\\u0000b"}


def test_a_refused_upsert_keeps_the_copies(storage, films):
    learn(storage, films, moved={"a": [[1, 0.5, 0]]})

    with pytest.raises(InvalidVectorsError):
        storage.objects.upsert(films, [thing("a", [0, 1, 0]), thing("b", [0, 0, 0])])

    assert told(storage.personal.state(films, "ann")) == ([], {"a": [[1, 0.5, 0]]})


def test_a_deleted_object_takes_its_copies_along_and_places_orders(storage, films):
    clicked(storage, "s1", "ann", shown=["b", "a"])
    search(storage, "s2", "bob", shown=["b"])
    click(storage, "s2", "b")
    settle(storage)
    learn(storage, films, "ann", moved={"a": [[1, 0.5, 0]], "b": [[0, 1, 0.5]]})
    learn(storage, films, "bob", moved={"b": [[0, 1, 0.5]]})

    storage.objects.delete(films, ["a"])

    assert told(storage.personal.state(films, "ann")) == ([], {"b": [[0, 1, 0.5]]})
    assert told(storage.personal.state(films, "bob")) == ([], {"b": [[0, 1, 0.5]]})
    assert claimed(storage) == ["ann"]


def test_an_object_that_comes_back_is_learnt_from_again(storage, films):
    clicked(storage, "s1", "ann", shown=["a"])
    storage.objects.delete(films, ["a"])
    settle(storage)

    storage.objects.upsert(films, [thing("a", [1, 0, 0])])

    assert claimed(storage) == ["ann"]


def test_an_object_with_copies_can_be_updated_and_deleted_again_and_again(storage, films):
    for turn in range(3):
        learn(storage, films, moved={"a": [[1, 0.5, 0]]})
        storage.objects.upsert(films, [thing("a", [1, 0, turn + 1])])
        learn(storage, films, moved={"a": [[1, 0.5, 0]]})
        assert storage.objects.delete(films, ["a"]) == 1
        storage.objects.upsert(films, [thing("a", [1, 0, 0])])

    assert told(storage.personal.state(films, "ann")) == NOTHING


# Sessions and events


def test_a_session_comes_back_as_it_was_registered(storage, films):
    session = Session(
        session_id="s1",
        search_query="größe 靴 'or' \"so\"",
        user_id="ann",
        created_at=100,
        collection="films",
        search_results=(
            SearchResultItem(
                object_id="b", rank=0.1, meta={"shelf": [1, None]}, personalised=True, propensity=0.1
            ),
            SearchResultItem(object_id="a", rank=-3.5),
            SearchResultItem(object_id="z"),
        ),
        search_meta={"page": {"size": 3}},
        events=(event("s1", "a", meta={"dwell": 2.5}), event("s1", "b", "view", at=99)),
    )

    storage.clickstream.register_session(session)

    back = storage.clickstream.get_session("s1")
    assert back == session.model_copy(update={"events": session.events[::-1]})
    assert [result.position for result in back.search_results] == [1, 2, 3]
    assert storage.orders.get("s1").status is PENDING


def test_results_come_by_position_whatever_the_order_they_were_given_in(storage, films):
    results = [SearchResultItem(object_id=i, position=p) for i, p in [("c", 30), ("a", 10), ("b", 20)]]

    search(storage, "s1", search_results=tuple(results))

    shown = storage.clickstream.get_session("s1").search_results
    assert [(result.object_id, result.position) for result in shown] == [("a", 10), ("b", 20), ("c", 30)]


def test_events_come_by_time_and_then_by_id(storage, films):
    search(storage, "s1")
    told_events = [("e3", 102), ("e1", 102), ("e2", 101), ("E4", 102)]

    storage.clickstream.push_events([event("s1", at=at, event_id=event_id) for event_id, at in told_events])

    events = storage.clickstream.get_session("s1").events
    assert [e.event_id for e in events] == ["e2", "E4", "e1", "e3"]


def test_the_same_session_again_changes_nothing(storage, films):
    session = search(storage, "s1", events=(event("s1", "b"),))
    click(storage, "s1", "a")
    settle(storage)
    before = storage.clickstream.get_session("s1")

    storage.clickstream.register_session(session, vectors([1, 0, 0]))

    assert storage.clickstream.get_session("s1") == before
    assert storage.orders.get("s1").status is DONE


@pytest.mark.parametrize(
    "other", [{"user_id": "bob"}, {"user_id": None}, {"search_query": "?"}, {"collection": "best"}]
)
def test_an_id_that_is_taken_by_another_session_is_a_conflict(storage, films, other):
    storage.collections.set_alias("best", "films")
    session = search(storage, "s1")

    with pytest.raises(ConflictError, match="s1"):
        storage.clickstream.register_session(session.model_copy(update=other))

    assert storage.clickstream.get_session("s1") == session


def test_a_session_in_an_unknown_collection_is_refused(storage):
    with pytest.raises(CollectionNotFoundError, match="films"):
        search(storage, "s1")

    with pytest.raises(SessionNotFoundError):
        storage.clickstream.get_session("s1")


def test_a_session_under_an_alias_keeps_the_name_it_was_recorded_under(storage, films):
    storage.collections.set_alias("best", "films")

    search(storage, "s1", collection="best")

    assert storage.clickstream.get_session("s1").collection == "best"


def test_a_session_under_an_alias_is_continued_under_any_name_of_its_collection(storage, films):
    storage.collections.set_alias("best", "films")
    storage.collections.create("books", films.index)
    search(storage, "s1", collection="best")
    first = storage.clickstream.get_session("s1")

    became = storage.clickstream.record(
        [
            RecordedSession(first.model_copy(update={"collection": name}))
            for name in ("films", "best", "books")
        ]
    )

    assert [each.disposition for each in became] == [CONTINUED, CONTINUED, SessionDisposition.TAKEN]
    assert storage.clickstream.get_session("s1") == first


def test_a_session_that_was_never_registered_is_not_found(storage):
    with pytest.raises(SessionNotFoundError, match="s1"):
        storage.clickstream.get_session("s1")
    with pytest.raises(SessionNotFoundError, match="s1"):
        storage.clickstream.append_results("s1", [SearchResultItem(object_id="a")])
    with pytest.raises(SessionNotFoundError, match="s1"):
        storage.clickstream.mark_irrelevant("s1")
    with pytest.raises(SessionNotFoundError, match="s1"):
        place(storage, "s1")


def test_a_further_page_keeps_the_positions_of_what_was_shown(storage, films):
    search(storage, "s1", shown="ab")

    page = [SearchResultItem(object_id=i, position=p, rank=0.5) for i, p in [("b", 3), ("c", 4), ("d", 5)]]
    storage.clickstream.append_results("s1", page)

    shown = storage.clickstream.get_session("s1").search_results
    assert [(result.object_id, result.position) for result in shown] == [
        ("a", 1),
        ("b", 2),
        ("c", 4),
        ("d", 5),
    ]
    assert shown[1].rank is None


def test_a_session_keeps_of_each_further_page_its_request_its_time_and_what_was_new_there(storage, films):
    first, second, other = (SearchRequest(limit=2, offset=k, settings=str(k)) for k in (0, 2, 4))

    def page_of(request, shown, at):
        return FurtherPage(request=request, created_at=at, object_ids=tuple(shown))

    def showing(shown, at, request=first, pages=()):
        return recorded("s1", shown=shown, at=at, request=request, pages=pages)

    storage.clickstream.record([showing("ab", 100)])
    for shown, at in (("cd", 101), ("dc", 102)):  # the second time nothing is new
        page = page_of(second, shown, at)
        storage.clickstream.append_results("s1", [SearchResultItem(object_id=i) for i in shown], page)
    storage.clickstream.append_results("s1", [SearchResultItem(object_id="e")])  # by whom is not known
    storage.clickstream.record([showing("fa", 103), showing("gf", 104, request=None)])
    storage.clickstream.record(
        [showing("hij", 105, pages=[page_of(other, "ai", 99), page_of(other, "i", 98)])]
    )

    session = storage.clickstream.get_session("s1")
    assert session.request == first
    assert session.pages == (
        page_of(second, "cd", 101),
        page_of(first, "f", 103),
        page_of(other, "i", 99),
        page_of(first, "hj", 105),
    )
    assert sorted(result.object_id for result in session.search_results) == [*"abcdefghij"]
    [of_log] = storage.clickstream.scan()
    assert of_log.session.pages == session.pages
    assert session.shown_before(2, page=1) == set("abg")  # f, h and i stand there, too, and came later
    assert session.shown_before(3, page=2) == set("abcg")
    assert session.shown_before(3) == set("abcfghij")


def test_a_further_page_without_positions_goes_on_where_the_last_one_ended(storage, films):
    search(storage, "s1", shown="ab")

    storage.clickstream.append_results(
        "s1", [SearchResultItem(object_id="c"), SearchResultItem(object_id="d")]
    )

    shown = storage.clickstream.get_session("s1").search_results
    assert [(result.object_id, result.position) for result in shown] == [
        ("a", 1),
        ("b", 2),
        ("c", 3),
        ("d", 4),
    ]


def test_a_click_on_the_second_page_is_accepted(storage, films):
    search(storage, "s1", shown="ab")
    storage.clickstream.append_results("s1", [SearchResultItem(object_id="c")])

    assert click(storage, "s1", "c") is ACCEPTED


def recorded(session_id, user_id="ann", *, shown="abc", at=100, query=(1, 0, 0), done=(), **fields):
    return RecordedSession(
        Session(
            **{"session_id": session_id, "user_id": user_id, "created_at": at, "collection": "films"}
            | {"search_results": [SearchResultItem(object_id=i) for i in shown], "events": done}
            | fields
        ),
        None if query is None else vectors(query),
    )


def test_sessions_are_recorded_many_at_once_with_what_was_done_in_them(storage, films):
    given = [
        recorded("s1", done=[event("s1", "b")]),
        recorded("s2", None, shown="", query=None),
        recorded("s3", "bob", shown="ca", done=[event("s3", "c", "view"), event("s1", "c")]),
    ]

    became = storage.clickstream.record(given)

    assert [each.disposition for each in became] == [SessionDisposition.RECORDED] * 3
    assert [each.events for each in became] == [(ACCEPTED,), (), (ACCEPTED, ACCEPTED)]
    stored = [storage.clickstream.get_session(key) for key in ("s1", "s2", "s3")]
    assert [[(r.object_id, r.position) for r in session.search_results] for session in stored] == [
        [("a", 1), ("b", 2), ("c", 3)],
        [],
        [("c", 1), ("a", 2)],
    ]
    assert [len(session.events) for session in stored] == [2, 0, 1]
    assert claimed(storage) == ["ann"]
    assert storage.clickstream.record([]) == []


def test_a_session_that_is_recorded_again_is_continued_unless_it_is_another(storage, films):
    storage.clickstream.record([recorded("s1", shown="ab")])
    click(storage, "s1")
    settle(storage)

    became = storage.clickstream.record(
        [
            recorded("s1", shown="bc", at=999, query=(0, 1, 0), done=[event("s1", "c")]),
            recorded("s1", "bob", shown="z", done=[event("s1", "z")]),
            recorded("s2"),
            recorded("s2", shown="d"),
        ]
    )

    assert [each.disposition for each in became] == [
        SessionDisposition.CONTINUED,
        SessionDisposition.TAKEN,
        SessionDisposition.RECORDED,
        SessionDisposition.CONTINUED,
    ]
    session = storage.clickstream.get_session("s1")
    assert [(r.object_id, r.position) for r in session.search_results] == [("a", 1), ("b", 2), ("c", 2)]
    assert (session.user_id, session.created_at) == ("ann", 100)
    assert [each.object_id for each in session.events] == ["a", "c"]
    shown = storage.clickstream.get_session("s2").search_results
    assert [(r.object_id, r.position) for r in shown] == [("a", 1), ("d", 1), ("b", 2), ("c", 3)]
    assert claimed(storage) == ["ann"]


def test_recording_what_is_there_already_changes_nothing_and_marks_nobody(storage, films):
    given = [recorded("s1", done=[event("s1", event_id="e1")]), recorded("s2", "bob")]
    storage.clickstream.record(given)
    settle(storage)
    before = list(map(storage.clickstream.get_session, ["s1", "s2"]))

    became = storage.clickstream.record(given)

    assert [each.disposition for each in became] == [CONTINUED, CONTINUED]
    assert list(map(storage.clickstream.get_session, ["s1", "s2"])) == before
    assert claimed(storage) == []


@pytest.mark.parametrize("number", [1, 2])
def test_nothing_is_recorded_of_a_batch_with_an_unknown_collection(storage, films, number):
    given = [recorded("s2", collection="nowhere"), recorded("s1")][:number]

    with pytest.raises(CollectionNotFoundError, match="nowhere"):
        storage.clickstream.record(given)

    assert list(storage.clickstream.scan()) == []


def test_the_longest_ids_fit_into_every_index(new_postgres_storage):
    rng = np.random.default_rng(3)
    long, other, user = ("".join(map(chr, rng.integers(0x4E00, 0x9FFF, size=170))) for _ in range(3))
    with new_postgres_storage() as storage:
        storage.collections.create("films", index())

        storage.clickstream.record([recorded(long, user, shown=[other])])

        [stored] = storage.clickstream.scan()
        assert (stored.session.session_id, stored.session.user_id) == (long, user)
        with pytest.raises(ValueError, match="513 bytes"):
            recorded("s", long + "abc")


def test_the_log_is_read_by_time(storage, films):
    storage.collections.create("books", index())
    storage.collections.set_alias("best", "films")
    storage.clickstream.record(
        [
            recorded("s3", at=300, collection="best", done=[event("s3")]),
            recorded("s1b", "bob", at=100, query=None),
            recorded("s1a", None, at=100),
            recorded("s2", at=200, collection="books", query=(1, 2)),
        ]
    )

    def keys(**wanted):
        return [each.session.session_id for each in storage.clickstream.scan(**wanted)]

    assert keys() == ["s1a", "s1b", "s2", "s3"]
    assert keys(collection=films) == ["s1a", "s1b", "s3"]
    assert keys(user_id="ann") == ["s2", "s3"]
    assert keys(since=200) == ["s2", "s3"]
    assert keys(until=200) == ["s1a", "s1b"]
    assert keys(since=101, until=300, user_id="bob") == []
    whole = list(storage.clickstream.scan())
    assert [each.session for each in whole] == list(map(storage.clickstream.get_session, keys()))
    assert [None if v is None else v.tolist() for v in (each.query_vectors for each in whole)] == [
        [[1, 0, 0]],
        None,
        [[1, 2]],
        [[1, 0, 0]],
    ]


def test_a_long_log_is_read_whole_and_while_it_grows(storage, films):
    storage.clickstream.record([recorded(f"s{k:04}", at=k // 7) for k in range(1234)])

    log = storage.clickstream.scan()
    first = next(log)
    storage.clickstream.record([recorded("later", at=5000)])
    rest = list(log)

    keys = [each.session.session_id for each in [first, *rest]]
    assert keys[:1234] == [f"s{k:04}" for k in range(1234)]
    assert keys[1234:] in ([], ["later"])


def test_every_event_gets_its_disposition_in_order(storage, films):
    search(storage, "s1", shown="ab")
    search(storage, "s2", shown="")

    dispositions = storage.clickstream.push_events(
        [
            event("s1", "a"),
            event("nowhere", "a"),
            event("s1", "z"),
            event("s1", "a"),
            event("s1", "a", at=102),
            event("s2", "z"),
            event("s1", "z"),
        ]
    )

    assert dispositions == [
        ACCEPTED,
        WAITING,
        UNKNOWN_OBJECT,
        DUPLICATE,
        ACCEPTED,
        ACCEPTED,
        DUPLICATE,
    ]
    assert storage.clickstream.push_events([event("s1", "a"), event("s1", "b")]) == [DUPLICATE, ACCEPTED]
    assert storage.clickstream.push_events([]) == []


ARRIVALS = {
    "registered": lambda log, session: log.register_session(session),
    "recorded alone": lambda log, session: log.record([RecordedSession(session)]),
    "recorded with others": lambda log, session: log.record(
        [RecordedSession(session), RecordedSession(Session(session_id="other", collection="films"))]
    ),
}


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_events_before_their_session_are_joined_to_it(storage, films, arrival):
    early = [event("s1", "b", at=102), event("s1", "a"), event("s1", "z"), event("s1", "a", "view")]
    shown = [SearchResultItem(object_id=object_id) for object_id in "ab"]
    session = Session(
        session_id="s1", user_id="ada", created_at=100, collection="films", search_results=tuple(shown)
    )

    assert storage.clickstream.push_events(early) == [WAITING] * 4
    assert storage.clickstream.waiting_events() == 4
    ARRIVALS[arrival](storage.clickstream, session)

    assert storage.clickstream.waiting_events() == 0
    told = storage.clickstream.get_session("s1").events
    assert sorted(each.event_id for each in told) == sorted(each.event_id for each in early)
    assert storage.orders.get("s1").status is PENDING
    [entry] = storage.queue.claim(users=5, lease_seconds=60, now=NOW).entries
    assert (entry.collection, entry.user_id) == ("films", "ada")
    assert storage.clickstream.push_events(early) == [DUPLICATE] * 4


def test_events_of_no_weight_that_waited_place_no_order(storage, films):
    storage.clickstream.push_events([event("s1", "a", "view")])

    search(storage, "s1", shown="ab")

    assert [each.event_type for each in storage.clickstream.get_session("s1").events] == ["view"]
    with pytest.raises(OrderNotFoundError):
        storage.orders.get("s1")


def test_an_event_that_waits_is_known_by_its_id(storage, films):
    given = [
        SessionEvent(session_id="s1", object_id=object_id, event_id="e1", created_at=101)
        for object_id in "aab"
    ]

    assert storage.clickstream.push_events(given) == [WAITING, DUPLICATE, CONFLICT]
    assert storage.clickstream.push_events(given[1:]) == [DUPLICATE, CONFLICT]
    storage.clickstream.record(
        [recorded("s1", shown="ab", done=[given[2].model_copy(update={"event_type": "purchase"})])]
    )
    assert [each.event_type for each in storage.clickstream.get_session("s1").events] == ["purchase"]


def test_few_events_wait_for_one_session_and_none_where_they_may_not(storage, films):
    many = [event("s1", "a", at=at) for at in range(103)]

    assert storage.clickstream.push_events(many, may_wait=False) == [UNKNOWN_SESSION] * 103
    assert storage.clickstream.push_events(many) == [WAITING] * 100 + [UNKNOWN_SESSION] * 3
    assert storage.clickstream.push_events([event("s2", "a")]) == [WAITING]
    assert storage.clickstream.waiting_events() == 101


def test_events_wait_for_a_day(storage, films):
    storage.clickstream.push_events([event("s1", "a")])
    day = 86_400

    assert storage.clickstream.drop_waiting(time.time() + day - 60) == 0
    assert storage.clickstream.drop_waiting(time.time() + day + 1) == 1
    search(storage, "s1", shown="ab")
    assert storage.clickstream.get_session("s1").events == ()


def test_no_event_is_lost_between_its_arrival_and_that_of_its_session(storage, films):
    names = [f"s{number}" for number in range(40)]
    start = threading.Barrier(2)

    def push():
        start.wait()
        for name in names:
            storage.clickstream.push_events([event(name, "a")])

    pushing = threading.Thread(target=push)
    pushing.start()
    start.wait()
    for name in names:
        search(storage, name, shown="ab")
    pushing.join()

    assert storage.clickstream.waiting_events() == 0
    assert [len(storage.clickstream.get_session(name).events) for name in names] == [1] * 40


def test_an_event_on_an_object_that_was_not_shown_is_kept(storage, films):
    search(storage, "s1", shown="ab")

    click(storage, "s1", "z")

    assert [e.object_id for e in storage.clickstream.get_session("s1").events] == ["z"]


def test_equal_event_ids_in_two_sessions_are_two_events(storage, films):
    search(storage, "s1")
    search(storage, "s2")

    assert click(storage, "s1", event_id="1") is ACCEPTED
    assert click(storage, "s2", event_id="1") is ACCEPTED
    assert click(storage, "s2", event_id="1", at=102) is DUPLICATE


def test_three_hundred_views_do_not_hide_a_click(storage, films):
    search(storage, "s1")
    views = [event("s1", "a", "view", at=101 + second) for second in range(300)]

    storage.clickstream.push_events([*views[:150], event("s1", "b", at=500), *views[150:]])

    session = storage.clickstream.get_session("s1")
    assert len(session.events) == 301
    assert session.clicked() == {"b": 1.0}
    [recorded] = storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"]
    assert recorded.session == session


def test_a_click_places_an_order_and_a_view_does_not(storage, films):
    search(storage, "s1")
    search(storage, "s2", "bob")
    search(storage, "s3", None)

    storage.clickstream.push_events(
        [
            event("s1", event_type="view"),
            event("s2", event_type="purchase"),
            event("s3", event_type="add_to_cart"),
        ]
    )

    with pytest.raises(OrderNotFoundError):
        storage.orders.get("s1")
    order = storage.orders.get("s2")
    assert (order.session_id, order.user_id, order.collection) == ("s2", "bob", "films")
    assert (order.status, order.attempts, order.detail) == (PENDING, 0, None)
    assert storage.orders.get("s3").user_id is None


def test_a_click_sent_twice_places_no_second_order(storage, films):
    clicked(storage, "s1")
    settle(storage)

    assert click(storage, "s1") is DUPLICATE

    assert storage.orders.get("s1").status is DONE


def test_a_later_click_places_the_order_anew(storage, films):
    clicked(storage, "s1")
    complete(storage, claim(storage), OrderOutcome("s1", REFUSED, "nothing skipped"))

    click(storage, "s1", "b")

    order = storage.orders.get("s1")
    assert (order.status, order.attempts) == (PENDING, 0)
    assert claimed(storage) == ["ann"]


@pytest.mark.parametrize(("object_id", "priority"), [("c", 0), ("d", 1)])
def test_an_order_is_urgent_if_something_below_position_3_was_clicked(storage, films, object_id, priority):
    search(storage, "s1", shown="abcde")
    storage.clickstream.push_events([event("s1", "e", "view")])

    click(storage, "s1", object_id)

    assert storage.orders.get("s1").priority == priority


def test_an_irrelevant_session_counts_no_longer_and_its_user_is_folded_anew(storage, films):
    clicked(storage, "s1")
    clicked(storage, "s2", at=200)
    settle(storage)

    storage.clickstream.mark_irrelevant("s1")

    assert storage.clickstream.get_session("s1").is_irrelevant
    assert claimed(storage) == ["ann"]
    assert [r.session.session_id for r in storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"]] == [
        "s2"
    ]


def test_a_click_that_is_taken_back_counts_no_longer_and_stays_known(storage, films):
    clicked(storage, "s1")
    click(storage, "s1", "b", event_id="of b")
    settle(storage)

    taken = storage.clickstream.take_back("s1", "b")

    assert taken == 1
    assert set(storage.clickstream.get_session("s1").clicked()) == {"a"}
    assert claimed(storage) == ["ann"]
    assert click(storage, "s1", "b", event_id="of b") is EventDisposition.CONFLICT  # sent late once more
    assert storage.clickstream.take_back("s1", "b") == 0
    assert click(storage, "s1", "b") is EventDisposition.ACCEPTED  # a new one
    assert set(storage.clickstream.get_session("s1").clicked()) == {"a", "b"}


def test_a_click_that_waits_for_its_session_is_taken_back_too(storage, films):
    early = event("s1", "b")
    assert storage.clickstream.push_events([early, event("s1", "c")]) == [EventDisposition.WAITING] * 2

    assert storage.clickstream.take_back("s1", "b") == 1

    search(storage, "s1")
    assert set(storage.clickstream.get_session("s1").clicked()) == {"c"}
    with pytest.raises(SessionNotFoundError):
        storage.clickstream.take_back("s2", "b")


def test_nothing_to_take_back_marks_nobody(storage, films):
    clicked(storage, "s1")
    settle(storage)

    assert storage.clickstream.take_back("s1", "c") == 0
    assert claimed(storage) == []
    with pytest.raises(SessionNotFoundError):
        storage.clickstream.take_back("s2", "c")


def test_the_latest_sessions_come_page_by_page_with_their_orders(storage, films):
    storage.collections.create("books", index())
    storage.collections.set_alias("best", "films")
    clicked(storage, "s1", at=100)
    search(storage, "s2", "bob", at=101, collection="best")
    search(storage, "s3", None, at=101)
    search(storage, "s4", at=102, collection="books")

    def ids(**wanted):
        return [each.session_id for each in storage.clickstream.latest(**{"limit": 10} | wanted)]

    assert ids() == ["s4", "s3", "s2", "s1"]
    assert ids(limit=2) == ["s4", "s3"]
    assert ids(before=(101, "s3")) == ["s2", "s1"]
    assert ids(collection=films) == ["s3", "s2", "s1"]
    assert ids(user_id="ann") == ["s4", "s1"]
    [*_, first] = storage.clickstream.latest(limit=10)
    assert first == storage.clickstream.get_session("s1")
    assert storage.orders.of(["s1", "s2", "gone"]) == {"s1": storage.orders.get("s1")}


def test_marking_a_session_irrelevant_that_never_counted_places_no_order(storage, films):
    search(storage, "s1")

    storage.clickstream.mark_irrelevant("s1")

    with pytest.raises(OrderNotFoundError):
        storage.orders.get("s1")


def test_what_came_by_one_key_counts_no_longer_and_what_came_by_others_does(storage, films, monkeypatch):
    monkeypatch.setattr(pg_clickstream, "PAGE", 2)  # several pages
    whose = {f"s{number}": "stolen" for number in range(5)} | {"s5": "", "s6": "other"}
    for session_id, sender in whose.items():
        user_id = "bob" if session_id == "s6" else "ann"
        session = Session(session_id=session_id, user_id=user_id, collection="films", created_at=100)
        storage.clickstream.register_session(session, vectors((1, 0, 0)), sender=sender)
        click(storage, session_id)
    storage.clickstream.register_session(
        Session(session_id="s7", user_id="cat", collection="films"), sender="stolen"
    )
    settle(storage)
    kept = {each.session.session_id: each.sender for each in storage.clickstream.scan()}
    [of_bob] = storage.clickstream.recent_sessions(films, ["bob"], 5)["bob"]

    went = [storage.clickstream.disregard("stolen") for _ in range(2)]

    assert kept == whose | {"s7": "stolen"}
    assert of_bob.sender == "other"
    assert went == [6, 0]
    assert claimed(storage) == ["ann"]
    [left] = storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"]
    assert left.session.session_id == "s5"


def test_the_latest_different_queries_are_those_of_anybody_under_any_name(storage, films):
    storage.collections.create("books", index())
    storage.collections.set_alias("best", "films")
    search(storage, "s1", search_query="wing", query=(1, 0, 0), at=100)
    search(storage, "s2", "bob", search_query="cone", query=(0, 1, 0), at=101)
    search(storage, "s3", None, search_query="heat", query=(0, 0, 1), at=102, collection="best")
    search(storage, "s4", search_query="wing", query=(1, 0, 2), at=103)  # embedded again
    search(storage, "s5", search_query="irrelevant", is_irrelevant=True, at=104)
    search(storage, "s6", search_query="of another collection", collection="books", at=104)
    search(storage, "s7", search_query="not embedded", query=None, at=104)
    search(storage, "s8", search_query="of another size", query=(1, 0), at=104)

    latest = storage.clickstream.recent_queries(films, 2)
    everything = storage.clickstream.recent_queries(films, 10)

    assert [each.tolist() for each in everything] == [[[1, 0, 2]], [[0, 0, 1]], [[0, 1, 0]]]
    assert [each.tolist() for each in latest] == [[[1, 0, 2]], [[0, 0, 1]]]
    assert everything[0].dtype == np.float32
    assert storage.clickstream.recent_queries(films, 0) == []


def test_queries_without_a_text_differ_by_their_vectors(storage, films):
    several = vectors([1, 0, 0], [0, 1, 0])
    session = Session(session_id="s3", user_id="ann", created_at=102, collection="films")
    search(storage, "s1", search_query="", query=(1, 0, 0), at=100)
    search(storage, "s2", "bob", search_query="", query=(0, 1, 0), at=101)
    storage.clickstream.register_session(session, several)
    search(storage, "s4", search_query="", query=(1, 0, 0), at=103)

    queries = storage.clickstream.recent_queries(films, 10)

    assert [each.tolist() for each in queries] == [[[1, 0, 0]], several.tolist(), [[0, 1, 0]]]


def test_a_collection_that_was_dropped_has_no_queries_to_tell(storage, films):
    search(storage, "s1")
    storage.collections.drop("films")

    with pytest.raises(CollectionNotFoundError, match="films"):
        storage.clickstream.recent_queries(films, 10)


REMOVED = {
    "queue": 1,
    "personal_parts": 2,
    "query_memory": 1,
    "session_events": 1,
    "sessions": 2,
    "sessions_for_improvement": 1,
    "shared_votes": 0,
}


def test_a_forgotten_user_leaves_nothing_behind_and_nobody_else_is_touched(storage, films):
    books = storage.collections.create("books", index())
    storage.objects.upsert(books, [thing("a", [1, 0, 0])])
    for user_id in ("ann", "bob", None):
        clicked(storage, f"{user_id} 1", user_id)
        search(storage, f"{user_id} 2", user_id, collection="books")
    for user_id in ("ann", "bob"):
        learn(storage, films, user_id, memories=[memory_of(f"{user_id} 1")], moved={"b": [[0, 1, 1]]})
        learn(storage, books, user_id, moved={"a": [[1, 1, 0]]})
    bobs = [storage.clickstream.get_session("bob 1"), storage.orders.get("bob 1")]

    forgotten = storage.clickstream.forget_user("ann")

    assert {table: forgotten[table] for table in REMOVED} == REMOVED
    for session_id in ("ann 1", "ann 2"):
        with pytest.raises(SessionNotFoundError):
            storage.clickstream.get_session(session_id)
        with pytest.raises(OrderNotFoundError):
            storage.orders.get(session_id)
    assert told(storage.personal.state(films, "ann")) == NOTHING
    assert told(storage.personal.state(books, "ann")) == NOTHING
    assert [storage.clickstream.get_session("bob 1"), storage.orders.get("bob 1")] == bobs
    assert told(storage.personal.state(films, "bob"))[0] == [told_memory(memory_of("bob 1"))]
    assert told(storage.personal.state(films, "bob"))[1] == {"b": [[0, 1, 1]]}
    assert told(storage.personal.state(books, "bob")) == ([], {"a": [[1, 1, 0]]})
    assert claimed(storage) == ["bob"]
    assert set(storage.clickstream.forget_user("ann").values()) == {0}


def test_the_id_of_a_forgotten_session_is_free_again(storage, films):
    clicked(storage, "s1", "ann")
    storage.clickstream.forget_user("ann")

    search(storage, "s1", "bob")

    assert storage.clickstream.get_session("s1").events == ()


# Orders


def test_a_session_keeps_its_request(storage, films):
    request = SearchRequest(
        limit=7,
        offset=2,
        max_distance=0.5,
        filter={"query": {"term": {"field": "price", "value": 1}}},
        sort_by=("price", "descending"),
        exploration_ratio=0.1,
        settings="f00",
    )
    session = Session(session_id="s1", user_id="ann", collection="films", request=request)

    assert storage.clickstream.register_session(session) is True
    assert storage.clickstream.register_session(session.model_copy(update={"request": None})) is False
    search(storage, "s2")
    click(storage, "s1")

    assert storage.clickstream.get_session("s1").request == request
    assert storage.clickstream.get_session("s2").request is None
    [recorded] = storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"]
    assert recorded.session.request == request


def test_an_order_is_placed_for_any_session_that_is_known(storage, films):
    search(storage, "s1")

    placed = place(storage, "s1")

    assert (placed.session_id, placed.user_id, placed.collection) == ("s1", "ann", "films")
    assert (placed.status, placed.priority, placed.attempts, placed.detail) == (PENDING, 0, 0, None)
    assert storage.orders.get("s1") == placed


def test_an_order_that_nobody_placed_is_not_found(storage, films):
    search(storage, "s1")

    with pytest.raises(OrderNotFoundError, match="s1"):
        storage.orders.get("s1")
    with pytest.raises(OrderNotFoundError, match="s1"):
        storage.orders.cancel("s1")


def test_an_order_of_a_claimed_user_is_processing_with_one_attempt_more(storage, films):
    clicked(storage, "s1")

    given = claim(storage)

    [entry] = given.entries
    order = storage.orders.get("s1")
    assert (entry.collection, entry.user_id, entry.attempts) == ("films", "ann", 1)
    assert (order.status, order.attempts, order.not_before) == (PROCESSING, 1, NOW + 60)
    assert claim(storage) is None


def test_an_order_of_an_anonymous_session_is_refused_at_once(storage, films):
    clicked(storage, "s1", None)

    order = storage.orders.get("s1")
    again = place(storage, "s1")

    assert (order.status, again.status) == (REFUSED, REFUSED)
    assert "anonymous" in order.detail
    assert claim(storage) is None


def test_a_user_is_claimed_once_under_each_name_however_many_sessions_there_are(storage, films):
    storage.collections.create("books", index())
    for number in range(7):
        clicked(storage, f"s{number}", "ann")
    clicked(storage, "b1", "ann", collection="books")
    clicked(storage, "b2", "bob")

    entries = claim(storage).entries

    assert sorted((entry.collection, entry.user_id) for entry in entries) == [
        ("books", "ann"),
        ("films", "ann"),
        ("films", "bob"),
    ]


def test_users_are_claimed_by_priority_and_then_by_age(storage, films):
    for session_id, user_id, object_id in [
        ("s1", "zoe", "a"),
        ("s2", "bob", "b"),
        ("s3", "ann", "d"),
        ("s4", "zoe", "b"),
        ("s5", "bob", "a"),
    ]:
        search(storage, session_id, user_id, shown="abcd")
        click(storage, session_id, object_id)

    claims = [claimed(storage, users=1) for _ in range(4)]

    assert claims == [["ann"], ["zoe"], ["bob"], []]


def test_a_further_page_of_a_session_that_was_clicked_marks_its_user(storage, films):
    clicked(storage, "s1", "ann")
    search(storage, "s2", "bob")
    settle(storage)

    for session_id in ("s1", "s2"):
        storage.clickstream.append_results(session_id, [SearchResultItem(object_id="further")])
    marked = claimed(storage)
    again = claim(storage, now=NOW + 100)
    complete(storage, again, OrderOutcome("s1", DONE))
    storage.clickstream.append_results("s1", [SearchResultItem(object_id="further")])

    assert marked == ["ann"]
    assert claim(storage, now=NOW + 1000) is None


def test_a_user_marked_anew_keeps_age_and_priority(storage, films):
    search(storage, "s1", "bob", shown="abcd")
    click(storage, "s1", "d")
    clicked(storage, "s2", "ann")
    search(storage, "s3", "cat", shown="abcd")
    click(storage, "s3", "d")

    clicked(storage, "s4", "bob")

    assert [claimed(storage, users=1) for _ in range(3)] == [["bob"], ["cat"], ["ann"]]


def test_no_more_users_are_claimed_than_asked_for(storage, films):
    for number in range(7):
        clicked(storage, f"s{number}", f"u{number}")

    assert [len(claimed(storage, users=3)) for _ in range(4)] == [3, 3, 1, 0]


def test_a_lease_that_has_ended_lets_others_claim(storage, films):
    clicked(storage, "s1")
    claim(storage, lease_seconds=60)

    assert claim(storage, now=NOW + 59) is None
    assert claimed(storage, now=NOW + 61) == ["ann"]


def test_a_lease_that_is_renewed_lets_nobody_claim(storage, films):
    clicked(storage, "s1", "ann")
    clicked(storage, "s2", "bob")
    given = claim(storage, users=1, now=None)
    other = claim(storage, users=1, lease_seconds=0, now=None)

    storage.queue.renew(given.token, 10_000)

    assert [entry.user_id for entry in other.entries] == ["bob"]
    assert claimed(storage, now=time.time() + 9_000) == ["bob"]
    assert claimed(storage, users=1, now=time.time() + 11_000) == ["ann"]


def test_who_is_released_is_due_at_once_with_no_attempt_more(storage, films):
    clicked(storage, "s1", "ann")
    clicked(storage, "s2", "bob")
    given = claim(storage, users=1)

    storage.queue.release(given.token)

    again = claim(storage)
    assert [(entry.user_id, entry.attempts) for entry in again.entries] == [("ann", 1), ("bob", 1)]


def test_held_are_those_of_the_block_that_a_token_still_holds(storage, films):
    storage.collections.set_alias("best", "films")
    storage.collections.create("books", index())
    for user_id, name in [("ann", "best"), ("bob", "films"), ("cat", "films"), ("dan", "books")]:
        clicked(storage, f"s {user_id}", user_id, collection=name)
    given = claim(storage)
    clicked(storage, "another", "bob")

    with storage.personal.learning(films, ["ann", "bob", "dan", "eve"]) as transaction:
        assert transaction.held(given.token) == {"ann"}
        assert transaction.held("another token") == set()


def test_who_is_learnt_under_one_name_is_no_longer_held_under_another(storage, films):
    storage.collections.set_alias("best", "films")
    clicked(storage, "s1", "ann", collection="best")
    clicked(storage, "s2", "bob", collection="best")
    of_best = claim(storage)
    clicked(storage, "s3", "ann")
    of_films = claim(storage)

    complete(storage, of_films, OrderOutcome("s1", DONE), OrderOutcome("s3", DONE))

    with storage.personal.learning(films, ["ann", "bob"]) as transaction:
        assert transaction.held(of_best.token) == {"bob"}
        assert transaction.held(of_films.token) == set()
    again = claim(storage)
    assert [(entry.collection, entry.user_id, entry.attempts) for entry in again.entries] == [
        ("best", "ann", 1)
    ]


@pytest.mark.parametrize("status", [PENDING, FAILED, REFUSED])
def test_whoever_learns_from_an_order_that_is_cancelled_begins_again(storage, films, status):
    clicked(storage, "s1")
    given = claim(storage)
    if status is FAILED:
        fail(storage, given)
    elif status is REFUSED:
        complete(storage, given, OrderOutcome("s1", REFUSED, "why"))
    else:
        storage.queue.release(given.token)
    if status is not PENDING:
        clicked(storage, "s2")
        given = claim(storage)

    storage.orders.cancel("s1")

    with storage.personal.learning(films, ["ann"]) as transaction:
        assert transaction.held(given.token) == set()
    assert claimed(storage) == ["ann"]


def test_whoever_was_held_by_a_worker_that_ended_is_claimed_alone_and_not_blamed(storage, films):
    for user_id in ("ann", "bob", "cat"):
        clicked(storage, f"s {user_id}", user_id)
    claim(storage, lease_seconds=10)
    clicked(storage, "s dan", "dan")

    claims = [claim(storage, lease_seconds=10, now=NOW + seconds) for seconds in (11, 12, 13, 14)]

    found = [[(entry.user_id, entry.attempts) for entry in given.entries] for given in claims]
    assert found == [[("ann", 1)], [("bob", 1)], [("cat", 1)], [("dan", 1)]]


def test_who_was_alone_in_hand_when_a_worker_ended_has_one_attempt_more(storage, films):
    clicked(storage, "s1", "ann")
    clicked(storage, "s2", "bob")
    claim(storage, users=2, lease_seconds=10)

    attempts = []
    for turn in range(1, 4):
        [entry] = claim(storage, lease_seconds=10, now=NOW + 11 * turn).entries  # ann is the older
        attempts.append((entry.user_id, entry.attempts))

    assert attempts == [("ann", 1), ("ann", 2), ("ann", 3)]


def test_whom_the_storage_failed_is_due_at_once_alone_and_then_later_and_is_never_blamed(storage, films):
    clicked(storage, "s1", "ann")
    clicked(storage, "s2", "bob")
    found = []

    def interrupted(now=None):
        given = claim(storage, users=2, lease_seconds=10_000, now=now)
        found.append(given and [(entry.user_id, entry.attempts) for entry in given.entries])
        if given:
            storage.queue.put_off(given.token, backoff_seconds=50)

    for _ in range(4):
        interrupted(now=None)
    for _ in range(7):
        interrupted(now=time.time() + 61)  # not later than a minute, however often

    assert found[:4] == [[("ann", 1), ("bob", 1)], [("ann", 1)], [("bob", 1)], None]
    assert found[4:] == [[("ann", 1)]] * 7


def test_an_attempt_that_an_outage_spoilt_does_not_count_and_the_order_says_why(storage, films):
    clicked(storage, "s1")
    for _ in range(5):
        given = claim(storage, lease_seconds=60, now=time.time() + 61)
        fail(storage, given, "the model is away", max_attempts=2, is_outage=True)

    order = storage.orders.get("s1")
    assert (order.status, order.attempts, order.detail) == (PENDING, 0, "the model is away")
    assert claim(storage, lease_seconds=60, now=time.time() + 61).entries[0].attempts == 1


def test_a_token_that_holds_nobody_any_more_changes_nothing(storage, films):
    clicked(storage, "s1")
    lost = claim(storage, lease_seconds=60)
    held = claim(storage, lease_seconds=60, now=NOW + 61)
    before = storage.orders.get("s1")

    assert complete(storage, lost, OrderOutcome("s1", REFUSED, "late")) == []
    assert fail(storage, lost, "late") == []
    assert storage.queue.refuse(lost.token, lost.entries[0], "late") == []
    storage.queue.renew(lost.token, 10_000)
    storage.queue.put_off(lost.token, backoff_seconds=1)

    assert storage.orders.get("s1") == before
    assert complete(storage, held, OrderOutcome("s1", DONE)) == [OrderOutcome("s1", DONE)]


def test_a_completion_ends_the_orders_it_names_and_says_why_of_the_others(storage, films):
    for session_id in ("s1", "s2", "old", "irrelevant"):
        clicked(storage, session_id)
    search(storage, "eventless")
    place(storage, "eventless")
    storage.clickstream.mark_irrelevant("irrelevant")
    clicked(storage, "bob's", "bob")
    given = claim(storage)
    anns = [entry for entry in given.entries if entry.user_id == "ann"]

    new = complete(
        storage,
        dataclasses.replace(given, entries=tuple(anns)),
        OrderOutcome("s1", DONE),
        OrderOutcome("s2", REFUSED, "why"),
        OrderOutcome("unknown", DONE),
        OrderOutcome("bob's", DONE),
    )

    expected = {
        "s1": (DONE, None),
        "s2": (REFUSED, "why"),
        "old": (REFUSED, "too old"),
        "irrelevant": (REFUSED, "irrelevant"),
        "eventless": (REFUSED, "no events"),
    }
    assert {each.session_id: (each.status, each.detail) for each in new} == expected
    orders = {session_id: storage.orders.get(session_id) for session_id in expected}
    assert {key: (order.status, order.detail) for key, order in orders.items()} == expected
    assert {order.attempts for order in orders.values()} == {1}
    assert storage.orders.get("bob's").status is PROCESSING
    assert claimed(storage, now=NOW + 1000) == ["bob"]


def test_a_completion_tells_what_is_new_alone(storage, films):
    clicked(storage, "s1")
    clicked(storage, "s2")
    complete(storage, claim(storage), OrderOutcome("s1", DONE), OrderOutcome("s2", DONE))
    clicked(storage, "s3")

    new = complete(
        storage,
        claim(storage),
        OrderOutcome("s1", DONE),
        OrderOutcome("s2", REFUSED, "gone"),
        OrderOutcome("s3", DONE),
    )

    assert sorted(new, key=lambda each: each.session_id) == [
        OrderOutcome("s2", REFUSED, "gone"),
        OrderOutcome("s3", DONE),
    ]


def test_a_user_marked_while_in_hand_stays_in_the_queue_with_all_orders(storage, films):
    clicked(storage, "s1")
    clicked(storage, "s2")
    given = claim(storage)
    click(storage, "s1", "b")

    assert complete(storage, given, OrderOutcome("s1", DONE), OrderOutcome("s2", DONE)) == []
    assert fail(storage, given) == []

    for session_id in ("s1", "s2"):
        order = storage.orders.get(session_id)
        assert (order.status, order.attempts, order.detail) == (PENDING, 0, None)
    assert claimed(storage) == ["ann"]


def test_an_order_whose_user_is_due_no_more_counts_no_attempts(storage, films):
    clicked(storage, "s1")
    far = 5_000_000_000.0  # ahead of what is put off
    first = storage.queue.claim(users=1, lease_seconds=10, now=far)
    assert fail(storage, first, max_attempts=2) == ["s1"]
    last = storage.queue.claim(users=1, lease_seconds=10, now=far)

    assert fail(storage, last, max_attempts=2, sessions={}) == []

    order = storage.orders.get("s1")
    assert (order.status, order.attempts, order.not_before) == (PENDING, 0, 0)
    assert storage.queue.info().waiting == 0


def test_a_user_of_whom_a_session_failed_stays_held_until_given_back(storage, films):
    clicked(storage, "bad")
    clicked(storage, "good")
    clicked(storage, "bob's", "bob")
    given = claim(storage)

    new = complete(
        storage,
        given,
        OrderOutcome("bad", FAILED, "boom"),
        OrderOutcome("good", DONE),
        OrderOutcome("bob's", DONE),
    )
    between = storage.orders.get("bad").status
    anns = next(entry for entry in given.entries if entry.user_id == "ann")
    given_back = storage.queue.fail(
        given.token, anns, "", sessions={"bad": "boom"}, max_attempts=2, backoff_seconds=0
    )

    assert OrderOutcome("bad", FAILED, "boom") in new
    assert between is PROCESSING
    assert given_back == ["bad"]
    bad = storage.orders.get("bad")
    assert (bad.status, bad.detail, storage.orders.get("good").status) == (PENDING, "boom", DONE)
    assert claimed(storage) == ["ann"]


def test_a_session_that_is_known_to_fail_holds_nobody(storage, films):
    clicked(storage, "bad")
    fail(storage, claim(storage))
    clicked(storage, "good")
    given = claim(storage)

    new = complete(storage, given, OrderOutcome("bad", FAILED, "boom"), OrderOutcome("good", DONE))

    assert new == [OrderOutcome("good", DONE)]
    assert storage.orders.get("bad").status is FAILED
    assert claim(storage, now=NOW + 1000) is None


def test_a_failed_attempt_is_due_again_after_a_backoff_that_doubles(storage, films):
    clicked(storage, "s1")

    for attempt, backoff in [(1, 100), (2, 200), (3, 400)]:
        given = claim(storage)
        before = time.time()
        assert fail(storage, given, f"attempt {attempt}", max_attempts=9, backoff_seconds=100) == ["s1"]
        after = time.time()

        order = storage.orders.get("s1")
        assert (order.status, order.attempts, order.detail) == (PENDING, attempt, f"attempt {attempt}")
        assert before + backoff - 1 <= order.not_before <= after + backoff + 1
        assert claim(storage, now=order.not_before - 1) is None
    assert claimed(storage, now=order.not_before + 1) == ["ann"]


def test_orders_of_a_user_whose_attempts_are_used_up_are_failed_until_somebody_places_them_anew(
    storage, films
):
    clicked(storage, "s1")
    fail(storage, claim(storage), "first", max_attempts=2, backoff_seconds=0)
    fail(storage, claim(storage), "second", max_attempts=2, backoff_seconds=0)

    dead = storage.orders.get("s1")
    none = claim(storage)
    retried = place(storage, "s1")

    assert (dead.status, dead.attempts, dead.detail) == (FAILED, 2, "second")
    assert none is None
    assert (retried.status, retried.attempts, retried.detail) == (PENDING, 0, None)
    assert claimed(storage) == ["ann"]


def test_refusing_a_user_ends_what_is_pending_and_nothing_else(storage, films):
    clicked(storage, "done")
    complete(storage, claim(storage), OrderOutcome("done", DONE))
    clicked(storage, "s1")
    given = claim(storage)

    assert storage.queue.refuse(given.token, given.entries[0], "no such place") == ["s1"]

    assert (storage.orders.get("s1").status, storage.orders.get("s1").detail) == (REFUSED, "no such place")
    assert storage.orders.get("done").status is DONE
    assert claim(storage, now=NOW + 1000) is None


def test_an_over_long_detail_is_cut_and_the_order_stays_readable(storage, films):
    for session_id in ("s1", "s2", "s3"):
        clicked(storage, session_id, user_id=session_id)
    detail = "靴" * 2000 + "x" * 100_000

    given = [claim(storage, users=1) for _ in range(3)]
    complete(storage, given[0], OrderOutcome("s1", REFUSED, detail))
    fail(storage, given[1], detail)
    fail(storage, given[2], "", sessions={"s3": detail})

    assert [order.detail for order in storage.orders.list()] == ["靴" * 2000] * 3
    assert storage.orders.counts()[FAILED] == 2


def test_orders_are_listed_by_their_latest_change_page_by_page(storage, films):
    for number in range(5):
        clicked(storage, f"s{number}")
    place(storage, "s1")

    everything = [order.session_id for order in storage.orders.list()]
    pages = [[o.session_id for o in storage.orders.list(limit=2, offset=offset)] for offset in (0, 2, 4, 6)]

    assert everything == ["s1", "s4", "s3", "s2", "s0"]
    assert pages == [["s1", "s4"], ["s3", "s2"], ["s0"], []]


def test_orders_are_listed_and_counted_by_status(storage, films):
    for number in range(5):
        clicked(storage, f"s{number}", f"u{number}")
    given = [claim(storage, users=1) for _ in range(5)]
    complete(storage, given[1], OrderOutcome("s1", DONE))
    complete(storage, given[2], OrderOutcome("s2", REFUSED, "why"))
    for failed in (given[0], given[3]):
        fail(storage, failed)
    place(storage, "s4")

    assert storage.orders.counts() == {PENDING: 1, PROCESSING: 0, DONE: 1, FAILED: 2, REFUSED: 1}
    assert [order.session_id for order in storage.orders.list(status=PENDING)] == ["s4"]
    assert sorted(order.session_id for order in storage.orders.list(status=FAILED)) == ["s0", "s3"]
    assert len(storage.orders.list(status=FAILED, limit=1)) == 1
    assert storage.orders.list(status=PROCESSING) == []


def test_nothing_placed_is_counted_as_nothing_in_every_status(storage):
    assert storage.orders.counts() == dict.fromkeys(SessionForImprovementStatus, 0)
    assert storage.orders.list() == []


def test_a_cancelled_order_is_gone_and_its_session_counts_no_longer(storage, films):
    for session_id in ("pending", "failed", "refused"):
        clicked(storage, session_id)
    given = claim(storage)
    outcomes = [OrderOutcome("failed", FAILED, "why"), OrderOutcome("refused", REFUSED, "why")]
    complete(storage, given, *outcomes)
    fail(storage, given, sessions={"failed": "why"})
    place(storage, "pending")

    for session_id in ("pending", "failed", "refused"):
        storage.orders.cancel(session_id)

    assert storage.orders.list() == []
    assert len(storage.clickstream.get_session("pending").events) == 1
    assert storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"] == []


def test_an_order_that_is_processing_or_done_is_not_cancelled(storage, films):
    clicked(storage, "s1")
    complete(storage, claim(storage), OrderOutcome("s1", DONE))
    clicked(storage, "s2")
    claim(storage)

    for session_id, status in [("s1", DONE), ("s2", PROCESSING)]:
        with pytest.raises(ConflictError, match=session_id):
            storage.orders.cancel(session_id)
        assert storage.orders.get(session_id).status is status


def test_no_user_is_given_to_two_workers(storage, films):
    for number in range(60):
        clicked(storage, f"s{number}", f"u{number % 40}")
    taken, start = [[] for _ in range(4)], threading.Barrier(4)

    def work(mine):
        start.wait(timeout=30)
        while given := claim(storage, users=3):
            mine += [entry.user_id for entry in given.entries]

    with contextlib.ExitStack() as workers:
        for mine in taken:
            workers.enter_context(beside(lambda mine=mine: work(mine)))
    rest = claimed(storage)

    assert sorted([user_id for mine in taken for user_id in mine] + rest) == sorted(
        f"u{number}" for number in range(40)
    )


def test_waiting_ends_when_an_order_is_placed(storage, films):
    search(storage, "s1")
    woken = []

    with beside(lambda: woken.append(storage.queue.wait(30))) as ended:
        while not ended.wait(0.01):  # nobody says when the other has begun to wait
            place(storage, "s1")

    assert woken == [True]


def test_waiting_ends_when_a_click_places_the_order(storage, films):
    search(storage, "s1")
    woken = []

    with beside(lambda: woken.append(storage.queue.wait(30))) as ended:
        at = 101
        while not ended.wait(0.01):
            click(storage, "s1", at=(at := at + 1))

    assert woken == [True]


def test_waiting_for_an_order_that_nobody_places_ends_with_the_time(storage):
    assert storage.queue.wait(0.01) is False


# Learning


def test_recent_sessions_are_the_latest_that_count_oldest_first(storage, films):
    for session_id, at in [("s4", 400), ("s1", 100), ("s3b", 300), ("s3a", 300), ("S3", 300)]:
        clicked(storage, session_id, at=at)
    clicked(storage, "bobs", "bob")

    everything = storage.clickstream.recent_sessions(films, ["ann", "bob", "cat"], 10)
    latest = storage.clickstream.recent_sessions(films, ["ann", "bob", "cat"], 3)
    none = storage.clickstream.recent_sessions(films, ["ann", "bob", "cat"], 0)

    named = {u: [recorded.session.session_id for recorded in sessions] for u, sessions in everything.items()}
    assert named == {"ann": ["s1", "S3", "s3a", "s3b", "s4"], "bob": ["bobs"], "cat": []}
    assert [recorded.session.session_id for recorded in latest["ann"]] == ["s3a", "s3b", "s4"]
    assert none == {"ann": [], "bob": [], "cat": []}


def test_a_session_counts_with_an_order_an_event_and_relevance(storage, films):
    storage.collections.create("books", index())
    storage.collections.set_alias("best", "films")
    clicked(storage, "counts")
    clicked(storage, "under an alias", collection="best", at=200)
    search(storage, "ordered without an event")
    place(storage, "ordered without an event")
    search(storage, "viewed without an order")
    click(storage, "viewed without an order", event_type="view")
    search(storage, "viewed and ordered", at=300)
    click(storage, "viewed and ordered", event_type="view")
    place(storage, "viewed and ordered")
    clicked(storage, "irrelevant", is_irrelevant=True)
    clicked(storage, "of another collection", collection="books")
    clicked(storage, "of another user", "bob")
    clicked(storage, "of nobody", None)
    click(storage, "counts", "z")

    recent = storage.clickstream.recent_sessions(films, ["ann"], 2)
    everything = storage.clickstream.recent_sessions(films, ["ann"], 100)

    counting = ["counts", "under an alias", "viewed and ordered"]
    assert [recorded.session for recorded in everything["ann"]] == list(
        map(storage.clickstream.get_session, counting)
    )
    assert list(everything) == ["ann"]
    assert recent["ann"][0].session.session_id == "under an alias"


def test_sessions_under_a_moved_alias_count_for_the_new_collection_alone(storage, films):
    books = storage.collections.create("books", index())
    storage.collections.set_alias("best", "films")
    clicked(storage, "s1", collection="best")

    storage.collections.set_alias("best", "books")

    assert storage.clickstream.recent_sessions(films, ["ann"], 5) == {"ann": []}
    assert [
        recorded.session.session_id
        for recorded in storage.clickstream.recent_sessions(books, ["ann"], 5)["ann"]
    ] == ["s1"]


def test_query_vectors_come_back_with_their_session_if_they_fit_the_collection(storage, films):
    clicked(storage, "s1", query=None, at=100)
    clicked(storage, "s2", query=(1, 0.1), at=200)
    search(storage, "s3", query=None, at=300)
    several = vectors([1, 0.1, -2], [0, 3, 0])
    storage.clickstream.register_session(
        Session(session_id="s4", user_id="ann", created_at=400, collection="films"), several
    )
    click(storage, "s4")

    [s1, s2, s4] = storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"]

    assert (s1.query_vectors, s2.query_vectors) == (None, None)
    assert s4.query_vectors.dtype == np.float32
    np.testing.assert_array_equal(s4.query_vectors, several)


def test_query_vectors_that_had_to_be_embedded_are_kept(storage, films):
    clicked(storage, "s1", query=None)

    with storage.personal.learning(films, ["ann"]) as transaction:
        transaction.store_query_vectors({"s1": vectors([1, 0.1, -2], [0, 3, 0])})

    [recorded] = storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"]
    assert recorded.query_vectors.tolist() == vectors([1, 0.1, -2], [0, 3, 0]).tolist()


def test_originals_are_those_that_exist(storage, films):
    storage.objects.upsert(films, [thing("d", [1, 2, 3], [4, 5, 6])])

    originals = storage.objects.originals(films, iter(["d", "unknown", "a"]))
    none = storage.objects.originals(films, [])

    assert {i: parts.tolist() for i, parts in originals.items()} == {
        "a": [[1, 0, 0]],
        "d": [[1, 2, 3], [4, 5, 6]],
    }
    assert none == {}


def test_a_state_comes_back_as_it_was_stored(storage, films):
    storage.objects.upsert(films, [thing("d", [1, 2, 3], [4, 5, 6])])
    memories = [
        memory_of("s2", at=100, moved=()),
        memory_of("s1", query=(0.1, 0, -1), mean=(0.3, 2, 0), at=200, moved=("a", "d")),
    ]

    learn(storage, films, memories=memories, moved={"d": [[1, 2, 3.5], [4, 5.1, 6]], "a": [[1, 0.1, 0]]})

    state = storage.personal.state(films, "ann")
    assert [told_memory(memory) for memory in state.memories] == [told_memory(memory) for memory in memories]
    assert state.vectors["d"].dtype == state.memories[0].query.dtype == np.float32
    np.testing.assert_array_equal(state.vectors["d"], vectors([1, 2, 3.5], [4, 5.1, 6]))
    np.testing.assert_array_equal(state.vectors["a"], vectors([1, 0.1, 0]))


def test_a_state_is_replaced_as_a_whole_and_nobody_else_is_touched(storage, films):
    books = storage.collections.create("books", index())
    storage.objects.upsert(books, [thing("a", [1, 0, 0])])
    for user_id in ("ann", "bob"):
        learn(storage, films, user_id, memories=[memory_of("s1")], moved={"a": [[1, 1, 0]], "b": [[1, 1, 0]]})
        learn(storage, books, user_id, moved={"a": [[1, 1, 0]]})
    bobs = told(storage.personal.state(films, "bob"))

    with storage.personal.learning(films, ["ann", "bob"]) as transaction:
        transaction.replace_states({"ann": PersonalState((memory_of("s2"),), {"c": vectors([0, 1, 1])})})

    assert told(storage.personal.state(films, "ann")) == ([told_memory(memory_of("s2"))], {"c": [[0, 1, 1]]})
    assert told(storage.personal.state(films, "bob")) == bobs
    assert told(storage.personal.state(books, "ann")) == ([], {"a": [[1, 1, 0]]})


def test_a_state_may_become_empty(storage, films):
    learn(storage, films, memories=[memory_of("s1")], moved={"a": [[1, 1, 0]]})

    learn(storage, films)

    assert told(storage.personal.state(films, "ann")) == NOTHING


def test_the_loop_never_writes_an_original(storage, films):
    before = [(o.parts.tolist(), o.payload) for o in storage.objects.get(films, ["a", "b", "c"])]

    learn(storage, films, moved={"a": [[0, 1, 0]], "b": [[1, 0, 0]]})
    learn(storage, films)

    assert [(o.parts.tolist(), o.payload) for o in storage.objects.get(films, ["a", "b", "c"])] == before


def test_an_error_in_a_learning_block_undoes_all_of_it(storage, films):
    clicked(storage, "s1", query=None)
    learn(storage, films, moved={"a": [[1, 1, 0]]})
    given = claim(storage)
    before = storage.orders.get("s1")

    with (  # noqa: PT012, the block is what is tested
        pytest.raises(ZeroDivisionError),
        storage.personal.learning(films, ["ann"]) as transaction,
    ):
        transaction.store_query_vectors({"s1": vectors([1, 0, 0])})
        transaction.replace_states({"ann": PersonalState()})
        assert transaction.complete(given.token, [OrderOutcome("s1", DONE)], PASSED_OVER)
        raise ZeroDivisionError

    assert told(storage.personal.state(films, "ann")) == ([], {"a": [[1, 1, 0]]})
    assert storage.orders.get("s1") == before
    assert storage.clickstream.recent_sessions(films, ["ann"], 5)["ann"][0].query_vectors is None


def test_state_and_completion_commit_together(storage, films):
    clicked(storage, "s1")
    clicked(storage, "s2")
    given = claim(storage)

    with storage.personal.learning(films, ["ann"]) as transaction:
        transaction.replace_states({"ann": PersonalState((), {"a": vectors([1, 1, 0])})})
        transaction.complete(
            given.token, [OrderOutcome("s1", DONE), OrderOutcome("s2", REFUSED, "why")], PASSED_OVER
        )

    assert told(storage.personal.state(films, "ann")) == ([], {"a": [[1, 1, 0]]})
    assert (storage.orders.get("s1").status, storage.orders.get("s1").detail) == (DONE, None)
    assert (storage.orders.get("s2").status, storage.orders.get("s2").detail) == (REFUSED, "why")


def test_what_a_learning_block_writes_is_unseen_until_it_commits(storage, films):
    with storage.personal.learning(films, ["ann"]) as transaction:
        transaction.replace_states({"ann": PersonalState((), {"a": vectors([1, 1, 0])})})
        during = told(storage.personal.state(films, "ann"))

    assert during == NOTHING
    assert told(storage.personal.state(films, "ann")) == ([], {"a": [[1, 1, 0]]})


def test_two_learning_blocks_on_one_user_run_one_after_the_other(storage, films):
    seen = []

    def second():
        with storage.personal.learning(films, ["bob", "ann"]) as transaction:
            seen.append(told(storage.personal.state(films, "ann")))
            transaction.replace_states({"ann": PersonalState((), {"b": vectors([1, 1, 0])})})

    with contextlib.ExitStack() as stack, storage.personal.learning(films, ["ann", "cat"]) as transaction:
        ended = stack.enter_context(beside(second))
        assert not ended.wait(0.3)
        transaction.replace_states({"ann": PersonalState((), {"a": vectors([1, 1, 0])})})

    assert seen == [([], {"a": [[1, 1, 0]]})]
    assert told(storage.personal.state(films, "ann")) == ([], {"b": [[1, 1, 0]]})


def test_learning_blocks_on_different_users_do_not_wait_for_each_other(storage, films):
    with (
        storage.personal.learning(films, ["ann"]),
        beside(lambda: learn(storage, films, "bob", moved={"a": [[1, 1, 0]]})) as ended,
    ):
        assert ended.wait(30)

    assert told(storage.personal.state(films, "bob")) == ([], {"a": [[1, 1, 0]]})


def test_two_learning_blocks_with_the_same_users_in_another_order_do_not_deadlock(storage, films):
    start = threading.Barrier(2)

    def work(user_ids):
        start.wait(timeout=30)
        for _ in range(20):
            with storage.personal.learning(films, user_ids) as transaction:
                transaction.replace_states(dict.fromkeys(user_ids, PersonalState()))

    with beside(lambda: work(["ann", "bob", "cat"])), beside(lambda: work(["cat", "bob", "ann"])):
        pass


def test_a_base_index_that_is_elsewhere_says_whose_originals_changed(storage, films):
    for user_id, shown in (("ann", "ab"), ("bob", "c"), ("cat", "z")):
        search(storage, f"s {user_id}", user_id, shown=shown)
        click(storage, f"s {user_id}", shown[-1])
        learn(storage, films, user_id, moved={"a": [[1, 1, 0]], "c": [[1, 1, 0]]})
    settle(storage)

    storage.personal.outdate(films, ["a", "z"])

    assert claimed(storage) == ["ann", "cat"]
    assert [list(storage.personal.state(films, u).vectors) for u in ("ann", "bob", "cat")] == [["c"]] * 3


def test_what_is_noticed_of_originals_elsewhere_is_told_and_what_changed_is_named(storage):
    far = storage.collections.create("films", index(), attached=Attachment("table", "public.films"))
    first = storage.personal.notice(far, {"a": "1", "c": "2", "z": None})

    noticed = storage.personal.noticed(far)
    again = storage.personal.notice(far, {"a": "1", "c": "2", "z": None, "b": "3"})
    changed = storage.personal.notice(far, {"b": "3", "z": "4", "c": None})

    assert noticed == {"a": "1", "c": "2", "z": None}
    assert (first, again, changed) == ([], [], ["c", "z"])
    assert storage.personal.noticed(far, after="a", limit=2) == {"b": "3", "c": None}
    assert storage.personal.noticed(far, among=["z", "gone"]) == {"z": "4"}
    assert storage.personal.noticed(far, after="z") == {}


def test_whoever_met_an_original_that_changed_elsewhere_is_folded_anew(storage):
    far = storage.collections.create("films", index(), attached=Attachment("table", "public.films"))
    for user_id, shown in (("ann", "ab"), ("bob", "c"), ("cat", "z")):
        search(storage, f"s {user_id}", user_id, shown=shown)
        click(storage, f"s {user_id}", shown[-1])
        learn(storage, far, user_id, moved={"a": [[1, 1, 0]], "c": [[1, 1, 0]]})
    settle(storage)
    storage.personal.notice(far, {"a": "1", "b": "2", "c": "3", "z": None})
    assert claimed(storage) == []

    storage.personal.notice(far, {"a": "5", "b": "2", "z": "6"})

    assert claimed(storage) == ["ann", "cat"]
    assert [list(storage.personal.state(far, u).vectors) for u in ("ann", "bob", "cat")] == [["c"]] * 3


def test_where_a_collection_is_attached_is_kept_and_told_in_a_conflict(storage):
    place = Attachment("table", 'shop."Films"', "shop", "sku", "vector", ("title", "year"), None)
    created = storage.collections.create("films", index(), attached=place)

    assert storage.collections.get("films").attached == created.attached == place
    assert storage.collections.create("films", index(), attached=place) == created
    with pytest.raises(ConflictError, match=r'attached to the table shop\."Films" of shop; asked for is'):
        storage.collections.create("films", index())


@pytest.mark.parametrize("change", ["upsert", "delete", "drop", "forget"])
def test_what_would_outdate_a_learning_block_waits_for_its_end(storage, films, change):
    clicked(storage, "s1")
    changes = {
        "upsert": lambda: storage.objects.upsert(films, [thing("a", [0, 1, 1])]),
        "delete": lambda: storage.objects.delete(films, ["a"]),
        "drop": lambda: storage.collections.drop("films"),
        "forget": lambda: storage.clickstream.forget_user("ann"),
    }

    with contextlib.ExitStack() as stack, storage.personal.learning(films, ["ann"]) as transaction:
        ended = stack.enter_context(beside(changes[change]))
        assert not ended.wait(0.3)
        transaction.replace_states({"ann": PersonalState((), {"a": vectors([1, 1, 0])})})

    films = storage.collections.create("films", index())
    assert told(storage.personal.state(films, "ann")) == NOTHING


def test_clicks_and_searches_go_on_during_a_learning_block(storage, films):
    search(storage, "s1")
    found = []

    def go_on():
        click(storage, "s1")
        found.extend(ids(storage.objects.nearest(films, vectors([1, 0, 0]), 1)))

    with storage.personal.learning(films, ["ann"]), beside(go_on) as ended:
        assert ended.wait(30)

    assert found == ["a"]
    assert storage.orders.get("s1").status is PENDING


# Personal search


def test_memories_are_active_above_the_threshold(storage, films):
    queries = {"same": (2, 0, 0), "near": (4, 3, 0), "square": (0, 1, 0), "opposite": (-1, 0, 0)}
    learn(
        storage, films, memories=[memory_of(session_id, query=query) for session_id, query in queries.items()]
    )

    def active(threshold, query=(5, 0, 0)):
        memories = storage.personal.near_memories(films, "ann", vectors(*query), threshold).own
        return sorted(memory.session_id for memory in memories)

    assert active(0.9) == ["same"]
    assert active(0.81) == ["same"]
    assert active(0.79) == ["near", "same"]
    assert active(0.0) == ["near", "same"]
    assert active(-0.5) == ["near", "same", "square"]
    assert active(0.5, query=(0, 0, 1)) == []


def test_an_active_memory_comes_whole(storage, films):
    memory = memory_of("s1", query=(1, 0.1, 0), mean=(0.3, 2, 0), moved=("a", "c"), at=123)
    learn(storage, films, memories=[memory])

    [active] = storage.personal.near_memories(films, "ann", vectors(1, 0, 0), 0.75).own

    assert told_memory(active) == told_memory(memory)


@pytest.mark.parametrize("metric_type", list(MetricType))
def test_nearness_to_a_memory_is_the_cosine_whatever_the_metric(storage, metric_type):
    shoes = storage.collections.create("shoes", index(metric_type))
    learn(
        storage, shoes, memories=[memory_of("far along", query=(9, 0, 0)), memory_of("zero", query=(0, 0, 0))]
    )

    near = storage.personal.near_memories(shoes, "ann", vectors(1, 0, 0), 0.5).own
    assert [memory.session_id for memory in near] == ["far along"]
    assert storage.personal.near_memories(shoes, "ann", vectors(0, 0, 0), 0.5).own == []


@pytest.mark.parametrize("intruder", ["nobody", "ann' OR '1'='1", "an%", "ann\\", "ANN", "ann "])
def test_a_users_state_is_read_for_that_user_alone(storage, films, intruder):
    learn(storage, films, "ann", memories=[memory_of("s1")], moved={"b": [[1, 1, 0]]})
    plain = storage.objects.nearest(films, vectors([1, 0, 0]), 3)

    assert told(storage.personal.state(films, intruder)) == NOTHING
    assert storage.personal.near_memories(films, intruder, vectors(1, 0, 0), 0.0).own == []
    assert (
        storage.personal.nearest(films, intruder, vectors([1, 0, 0]), 3, {"b": 1.0}, objects=storage.objects)
        == plain
    )
    assert storage.personal.copies(films, intruder, ["b"]) == {}


def test_what_a_user_moved_stands_where_its_gate_puts_it(storage):
    shoes = storage.collections.create("shoes", index(MetricType.EUCLID))
    storage.objects.upsert(shoes, [thing(f"o{k}", [k, 0, 0], [k, 1, 0], number=k) for k in range(9)])
    learn(storage, shoes, moved={f"o{k}": [[k, 5, 0], [k, 6, 0]] for k in (0, 3)} | {"o8": [[1, 0, 0]] * 2})

    near = storage.personal.nearest(
        shoes,
        "ann",
        vectors([0, 0, 0]),
        5,
        {"o8": 1.0, "o0": 0.5, "o5": 1.0, "unknown": 1.0},
        objects=storage.objects,
    )

    assert near == [
        Neighbour("o1", 1.0, {"number": 1}),
        Neighbour("o8", 1.0, {"number": 8}),  # (1 - 1) * 8 + 1 * 1
        Neighbour("o2", 2.0, {"number": 2}),
        Neighbour("o0", 2.5, {"number": 0}),  # (1 - 1/2) * 0 + 1/2 * 5
        Neighbour("o3", 3.0, {"number": 3}),  # moved, and no gate is open for it
    ]


def test_copies_are_those_that_there_are(storage, films):
    learn(storage, films, moved={"b": [[1, 1, 0]], "c": [[0, 1, 1]]})

    copies = storage.personal.copies(films, "ann", ["a", "b", "unknown"])

    assert {object_id: parts.tolist() for object_id, parts in copies.items()} == {"b": [[1, 1, 0]]}
    assert copies["b"].dtype == np.float32
    assert storage.personal.copies(films, "ann", []) == {}


def test_a_filter_holds_for_moved_objects_too(storage):
    shoes = storage.collections.create("shoes", index(MetricType.EUCLID))
    storage.objects.upsert(shoes, [thing(f"o{k}", [k, 0, 0], even=k % 2 == 0) for k in range(9)])
    learn(storage, shoes, moved={f"o{k}": [[k, 5, 0]] for k in range(4)})
    even = PayloadFilter.parse({"query": {"term": {"field": "even", "value": True}}})

    near = storage.personal.nearest(
        shoes,
        "ann",
        vectors([0, 0, 0]),
        4,
        dict.fromkeys(["o0", "o1", "o2", "o3"], 1.0),
        filter=even,
        objects=storage.objects,
    )

    assert ids(near) == ["o4", "o0", "o2", "o6"]


@pytest.mark.parametrize(("metric_type", "aggregation"), CLOSED_FORMS)
def test_the_nearest_for_a_user_are_those_by_definition(storage, metric_type, aggregation):
    rng = np.random.default_rng(19)
    shoes = storage.collections.create("shoes", index(metric_type, aggregation, dimensions=5))
    objects = rng.normal(size=(57, 3, 5)).astype(np.float32)
    copies = rng.normal(size=(20, 3, 5)).astype(np.float32)
    storage.objects.upsert(shoes, [CatalogueObject(f"o{k}", parts) for k, parts in enumerate(objects)])
    learn(storage, shoes, moved={f"o{k}": parts for k, parts in enumerate(copies)})
    queries = rng.normal(size=(2, 5)).astype(np.float32)
    gates = {f"o{k}": 1 / (1 + k % 4) for k in range(0, 40, 3)}

    def distance(parts):
        return distance_by_definition(metric_type, aggregation, queries, parts)

    expected = {f"o{k}": distance(parts) for k, parts in enumerate(objects)}
    for k in range(0, 20, 3):
        gate = gates[f"o{k}"]
        expected[f"o{k}"] = (1 - gate) * expected[f"o{k}"] + gate * distance(copies[k])

    plain = storage.personal.nearest(shoes, "ann", queries, 9, {}, objects=storage.objects)
    near = storage.personal.nearest(shoes, "ann", queries, 57, gates, objects=storage.objects)

    assert plain == storage.objects.nearest(shoes, queries, 9)
    assert ids(near) == sorted(expected, key=lambda object_id: (expected[object_id], object_id))
    assert [n.distance for n in near] == pytest.approx([expected[n.object_id] for n in near], abs=1e-5)
    for limit in (1, 9, 30):
        assert (
            storage.personal.nearest(shoes, "ann", queries, limit, gates, objects=storage.objects)
            == near[:limit]
        )


# What users tell each other


def test_what_others_clicked_for_a_query_comes_as_one_memory_of_it_nearest_first(storage, films):
    learn(storage, films, "bob", votes=[vote("far", query=(3, 4, 0), mean=(0, 0, 2))])
    learn(storage, films, "cat", votes=[vote("near", query=(5, 0, 0), mean=(0, 1, 0))])
    learn(storage, films, "dan", votes=[vote("near", query=(5, 0, 0), mean=(0, 3, 0))])
    learn(storage, films, "eve", votes=[vote("elsewhere", query=(0, 0, 1))])

    near = storage.personal.near_memories(films, "ann", vectors(1, 0, 0), 0.5, shared_by=2)

    assert near.own == []
    assert heard(storage, films, shared_by=2) == [([5, 0, 0], [0, 2, 0], 2), ([3, 4, 0], [0, 0, 2], 1)]
    assert [(m.query.dtype, m.clicked_mean.dtype) for m in near.shared] == [(np.float32, np.float32)] * 2


@pytest.mark.parametrize("user_id", ["ann", None])
def test_nothing_is_told_that_fewer_users_said_than_are_asked_for(storage, films, user_id):
    learn(storage, films, "bob", votes=[vote("red"), vote("blue", query=(0, 1, 0))])
    learn(storage, films, "cat", votes=[vote("reddish", query=(4, 3, 0))])

    assert heard(storage, films, user_id, shared_by=3) == []
    assert [users for *_, users in heard(storage, films, user_id, shared_by=2)] == [1, 1]
    assert heard(storage, films, user_id, shared_by=2, threshold=0.9) == []
    assert heard(storage, films, user_id, shared_by=0) == []


def test_a_users_own_vote_never_comes_back_to_them(storage, films):
    for user_id, mean in {"ann": (9, 9, 9), "bob": (0, 3, 0), "cat": (0, 0, 3)}.items():
        learn(storage, films, user_id, memories=[memory_of("s1")], votes=[vote("red", mean=mean)])

    assert heard(storage, films, "ann", shared_by=2) == [([1, 0, 0], [0, 1.5, 1.5], 2)]
    assert heard(storage, films, "ann", shared_by=3) == []
    assert heard(storage, films, None, shared_by=3) == [([1, 0, 0], [3, 4, 4], 3)]


def test_own_memories_and_those_of_others_come_together(storage, films):
    learn(storage, films, "ann", memories=[memory_of("s1")])
    learn(storage, films, "bob", memories=[memory_of("s2")], votes=[vote("red")])

    anns, nobodys = (
        storage.personal.near_memories(films, user_id, vectors(1, 0, 0), 0.5, shared_by=1)
        for user_id in ("ann", None)
    )

    assert [memory.session_id for memory in anns.own] == ["s1"]
    assert nobodys.own == []
    assert [memory.users for memory in anns.shared] == [memory.users for memory in nobodys.shared] == [1]


def test_a_user_who_asked_in_several_ways_counts_once_for_the_nearest(storage, films):
    learn(
        storage,
        films,
        "bob",
        votes=[
            vote("a far", query=(4, 3, 0), mean=(7, 7, 7), at=900),
            vote("b same", mean=(0, 2, 0)),
            vote("c same", mean=(7, 7, 7), at=900),
        ],
    )
    learn(storage, films, "cat", votes=[vote("c same", mean=(0, 0, 2)), vote("b same", mean=(0, 4, 0))])
    learn(storage, films, "dan", votes=[vote("a far", query=(4, 3, 0), mean=(1, 0, 0))])

    assert heard(storage, films, shared_by=3) == [([1, 0, 0], [0, 3, 0], 2), ([4, 3, 0], [1, 0, 0], 1)]
    assert heard(storage, films, shared_by=4) == []


def test_of_the_votes_for_one_query_the_latest_count(storage, films):
    old, new = [f"old {k:02}" for k in range(9)], [f"new {k:02}" for k in range(SHARED_VOTES - 3)]
    for user_id in old:
        learn(storage, films, user_id, votes=[vote("red", mean=(0, 0, 1 if user_id <= "old 02" else 9))])
    for user_id in [*new, "ann"]:
        learn(storage, films, user_id, votes=[vote("red", mean=(0, 0, 1), at=101)])

    assert heard(storage, films, "ann") == [([1, 0, 0], [0, 0, 1], SHARED_VOTES)]
    [(_, (*_, mean), users)] = heard(storage, films, "ann", shared_by=SHARED_VOTES + 1)
    assert (users, mean) == (SHARED_VOTES + 1, pytest.approx((SHARED_VOTES + 9) / (SHARED_VOTES + 1)))
    assert heard(storage, films, "ann", shared_by=len(old) + len(new) + 1) == []


def test_of_all_queries_the_nearest_count(storage, films):
    angles = np.radians(range(1, SHARED_QUERIES + 3))
    for k, angle in enumerate(angles):
        query = (np.cos(angle), np.sin(angle), 0)
        learn(storage, films, f"user {k}", votes=[vote(f"query {k}", query=query, mean=(k, 0, 0))])
    learn(storage, films, "last", votes=[vote("query 0", query=(1, 0, 0), mean=(2, 0, 0))])

    told = heard(storage, films)

    assert [mean for _, mean, _ in told] == [[1 if k == 0 else k, 0, 0] for k in range(SHARED_QUERIES)]
    assert [users for *_, users in told] == [2] + [1] * (SHARED_QUERIES - 1)


def test_what_others_did_with_objects_is_summed_up_query_by_query_and_fades_with_age(storage, films):
    at = 100 + SHARED_HALF_LIFE
    learn(storage, films, "bob", votes=[vote("red", seen=[("x", 1, 0.5), ("y", 0, 1)])])
    learn(storage, films, "cat", votes=[vote("red", seen=[("a\u00e9", 0.5, 0), ("x", 0.25, 0)], at=at)])
    learn(storage, films, "dan", votes=[vote("reddish", query=(3, 4, 0), seen=[("x", 1, 1)], at=at)])
    learn(storage, films, "eve", votes=[vote("reddish", query=(3, 4, 0), at=at)])
    learn(storage, films, "fay", votes=[vote("green", query=(0, 0, 1), seen=[("z", 1, 1)], at=9 * at)])

    red, reddish = storage.personal.near_memories(films, "ann", vectors(1, 0, 0), 0.5, shared_by=3).shared

    assert red.seen == (
        SharedObject("a\u00e9", 1, 0.5, 0),
        SharedObject("x", 2, 0.75, 0.25),
        SharedObject("y", 0, 0, 0.5),
    )
    assert reddish.seen == (SharedObject("x", 1, 1, 1),)


@pytest.mark.parametrize("ahead", [2**62, 10**12])
def test_fewer_than_are_needed_cannot_make_what_others_did_old(storage, films, ahead):
    for user_id in ("bob", "cat", "dan"):
        learn(storage, films, user_id, votes=[vote("red", seen=[("x", 1, 1)])])
    for user_id in ("eve", "mallory"):
        learn(storage, films, user_id, votes=[vote("red", seen=[("y", 1, 0)], at=ahead)])

    [red] = storage.personal.near_memories(films, "ann", vectors(1, 0, 0), 0.5, shared_by=3).shared

    assert red.seen == (SharedObject("x", 3, 3, 3), SharedObject("y", 2, 2, 0))


def test_what_is_very_old_still_weighs_something_and_the_same_everywhere(storage, films):
    learn(storage, films, "bob", votes=[vote("red", seen=[("x", 1, 0.5)], at=0)])
    learn(storage, films, "cat", votes=[vote("red", seen=[("x", 0, 0)], at=2**62)])

    [red] = storage.personal.near_memories(films, "ann", vectors(1, 0, 0), 0.5, shared_by=1).shared

    [x] = red.seen
    assert (x.clicks / 0.5**1000, x.looks / 0.5**1000) == (pytest.approx(1), pytest.approx(0.5))


def test_what_a_user_did_with_objects_never_comes_back_to_them_nor_twice(storage, films):
    seen = [("x", 1, 0)]
    learn(storage, films, "ann", votes=[vote("red", seen=seen, at=10**9)])
    learn(storage, films, "bob", votes=[vote("red", seen=seen), vote("reddish", query=(3, 4, 0), seen=seen)])

    [red] = storage.personal.near_memories(films, "ann", vectors(1, 0, 0), 0.5, shared_by=1).shared

    assert red.seen == (SharedObject("x", 1, 1, 0),)


@pytest.mark.parametrize("metric_type", list(MetricType))
def test_nearness_to_what_others_asked_is_the_cosine_whatever_the_metric(storage, metric_type):
    shoes = storage.collections.create("shoes", index(metric_type))
    learn(
        storage,
        shoes,
        "bob",
        votes=[vote("far along", query=(9, 0, 0), mean=(1, 2, 3)), vote("zero", query=(0, 0, 0))],
    )

    assert heard(storage, shoes) == [([9, 0, 0], [1, 2, 3], 1)]
    assert heard(storage, shoes, query=(0, 0, 0), threshold=0) == []
    assert told_votes(storage, shoes, "bob")[1] == ("zero", [0, 0, 0], [0, 1, 0], 100)


def test_votes_come_back_by_the_key_of_their_query(storage, films):
    seen = [("a", 0.5, 0.25), ("\u00e9 b", 1, 0)]
    votes = [vote("red", mean=(0.5, 1, 0), at=7, seen=seen), vote("blue", query=(0, 1, 0))]
    learn(storage, films, votes=votes)

    assert told_votes(storage, films) == [
        ("blue", [0, 1, 0], [0, 1, 0], 100),
        ("red", [1, 0, 0], [0.5, 1, 0], 7, SeenObject("a", 0.5, 0.25), SeenObject("\u00e9 b", 1, 0)),
    ]
    assert storage.personal.state(films, "ann").votes[0].query.dtype == np.float32


def test_votes_are_replaced_with_the_state_and_not_added(storage, films):
    learn(storage, films, "bob", votes=[vote("red", mean=(0, 1, 0)), vote("reddish", query=(4, 3, 0))])
    learn(storage, films, "cat", votes=[vote("red", mean=(0, 1, 0))])

    learn(storage, films, "bob", votes=[vote("red", mean=(0, 3, 0), at=200)])

    assert told_votes(storage, films, "bob") == [("red", [1, 0, 0], [0, 3, 0], 200)]
    assert heard(storage, films) == [([1, 0, 0], [0, 2, 0], 2)]
    learn(storage, films, "bob", memories=[memory_of("s1")])
    assert heard(storage, films) == [([1, 0, 0], [0, 1, 0], 1)]


def test_votes_of_one_key_have_the_query_that_came_first_until_the_last_of_them_goes(storage, films):
    learn(storage, films, "bob", votes=[vote("red", query=(1, 0, 0))])
    learn(storage, films, "cat", votes=[vote("red", query=(4, 3, 0))])
    learn(storage, films, "bob")

    while_there_are_some = told_votes(storage, films, "cat")
    learn(storage, films, "cat")
    learn(storage, films, "cat", votes=[vote("red", query=(4, 3, 0))])

    assert while_there_are_some == [("red", [1, 0, 0], [0, 1, 0], 100)]
    assert told_votes(storage, films, "cat") == [("red", [4, 3, 0], [0, 1, 0], 100)]


def test_a_forgotten_user_is_heard_no_more_and_crowds_nobody_out(storage, films):
    books = storage.collections.create("books", index())
    learn(storage, films, "bob", votes=[vote(f"red {k:03}") for k in range(3 * SHARED_QUERIES)])
    learn(storage, films, "cat", votes=[vote("reddish", query=(4, 3, 0)), vote("red 007")])
    learn(storage, books, "bob", votes=[vote("red")])
    before = heard(storage, films)

    storage.clickstream.forget_user("bob")

    assert before == [([1, 0, 0], [0, 1, 0], 1), ([1, 0, 0], [0, 1, 0], 1)]
    assert heard(storage, films) == [([1, 0, 0], [0, 1, 0], 1)]
    learn(storage, films, "cat", votes=[vote("reddish", query=(4, 3, 0))])
    assert heard(storage, films) == [([4, 3, 0], [0, 1, 0], 1)]
    assert heard(storage, books) == []
    assert told_votes(storage, films, "bob") == []


def test_votes_are_heard_in_their_collection_alone_and_go_with_it(storage, films):
    books = storage.collections.create("books", index())
    learn(storage, films, "bob", votes=[vote("red")])

    elsewhere = heard(storage, books)
    storage.collections.drop("films")
    films = storage.collections.create("films", index())

    assert elsewhere == heard(storage, films) == []
    learn(storage, films, "cat", votes=[vote("red", query=(4, 3, 0))])
    assert heard(storage, films) == [([4, 3, 0], [0, 1, 0], 1)]


def test_an_error_in_a_learning_block_undoes_its_votes(storage, films):
    learn(storage, films, "bob", votes=[vote("red")])

    with (  # noqa: PT012, the block is what is tested
        pytest.raises(ZeroDivisionError),
        storage.personal.learning(films, ["bob"]) as transaction,
    ):
        transaction.replace_states({"bob": PersonalState((), {}, (vote("blue"),))})
        raise ZeroDivisionError

    assert told_votes(storage, films, "bob") == [("red", [1, 0, 0], [0, 1, 0], 100)]


def test_changed_objects_leave_votes_as_they_are(storage, films):
    learn(storage, films, "bob", moved={"a": [[1, 1, 0]]}, votes=[vote("red")])

    storage.objects.upsert(films, [thing("a", [0, 1, 1])])
    storage.objects.delete(films, ["b"])

    assert told_votes(storage, films, "bob") == [("red", [1, 0, 0], [0, 1, 0], 100)]


def test_users_who_share_queries_are_folded_and_forgotten_at_once(storage, films):
    start = threading.Barrier(3)
    keys = [f"query {k}" for k in range(7)]

    def fold(user_ids, seed):
        rng = np.random.default_rng(seed)
        start.wait(timeout=30)
        for _ in range(30):
            states = {
                user_id: PersonalState(
                    (), {}, tuple(vote(keys[k]) for k in np.flatnonzero(rng.random(7) < 0.3))
                )
                for user_id in user_ids
            }
            with storage.personal.learning(films, user_ids) as transaction:
                transaction.replace_states(states)
        learn(storage, films, user_ids[0], votes=map(vote, keys[:3]))
        learn(storage, films, user_ids[1], votes=map(vote, keys[4:5]))

    def forget():
        start.wait(timeout=30)
        for _ in range(30):
            learn(storage, films, "eve", votes=map(vote, reversed(keys)))
            storage.clickstream.forget_user("eve")

    with (
        beside(lambda: fold(["ann", "bob"], 5)),
        beside(lambda: fold(["cat", "dan"], 7)),
        beside(forget),
    ):
        pass

    assert [told[0] for told in told_votes(storage, films, "ann")] == keys[:3]
    assert [told[0] for told in told_votes(storage, films, "dan")] == keys[4:5]
    assert told_votes(storage, films, "eve") == []
    assert [users for *_, users in heard(storage, films, "eve")] == [2, 2]


def test_storage_answers_a_ping(storage):
    storage.ping()


# Keys


def test_a_key_is_kept_as_it_was_made(storage):
    kept = [
        new_key("shop", [Scope.SEARCH, Scope.EVENTS], collections=["b", "a"], expires_at=9, now=7)[0],
        new_key("größe '; --", [Scope.ADMIN], now=8)[0],
        new_key("browser", [Scope.EVENTS], requires_user_token=True, now=8)[0],
    ]
    was_there_any = storage.keys.has_any()

    for each in kept:
        storage.keys.add(each)

    assert not was_there_any
    assert storage.keys.has_any()
    assert [storage.keys.get(each.key_id) for each in kept] == kept
    assert storage.keys.list() == sorted(kept, key=lambda key: (key.created_at, key.key_id))
    with pytest.raises(KeyNotFoundError, match="elsewhere234"):
        storage.keys.get("elsewhere234")


def test_a_key_that_was_revoked_stays_so_and_is_told_of(storage):
    key, _ = new_key("shop", [Scope.SEARCH], now=5)
    storage.keys.add(key)

    first, again = storage.keys.revoke(key.key_id, now=8), storage.keys.revoke(key.key_id, now=9)

    assert first == again == storage.keys.get(key.key_id) == dataclasses.replace(key, revoked_at=8)
    assert [key.status(now) for now in (7, 8)] == ["active", "active"]
    assert [first.status(now) for now in (7, 8)] == ["active", "revoked"]
    with pytest.raises(KeyNotFoundError, match="elsewhere"):
        storage.keys.revoke("elsewhere", now=9)


@pytest.mark.parametrize(("expires_at", "until"), [(None, 20), (15, 15), (30, 20)])
def test_a_key_is_good_beside_the_one_that_takes_its_place(storage, expires_at, until):
    old, _ = new_key("shop", [Scope.SEARCH], expires_at=expires_at, now=5)
    storage.keys.add(old)
    new, _ = renewed(old, now=10)

    storage.keys.replace(old.key_id, new, until=20, now=10)

    assert storage.keys.list() == [dataclasses.replace(old, expires_at=until), new]
    assert new.expires_at == (None if expires_at is None else expires_at + 5)  # as long as the old one


def test_a_key_that_ended_is_not_replaced_and_nothing_is_kept(storage):
    old, _ = new_key("shop", [Scope.SEARCH], expires_at=9, now=5)
    storage.keys.add(old)
    new, _ = renewed(old, now=10)

    with pytest.raises(ConflictError, match="expired"):
        storage.keys.replace(old.key_id, new, until=20, now=10)
    with pytest.raises(KeyNotFoundError):
        storage.keys.replace("elsewhere", new, until=20, now=10)

    assert storage.keys.list() == [old]


def test_the_use_of_a_key_is_noted_and_never_earlier_than_it_was(storage):
    key, _ = new_key("shop", [Scope.SEARCH], now=5)
    storage.keys.add(key)

    for now in (8, 7):
        storage.keys.note_use(key.key_id, now=now)
    storage.keys.note_use("elsewhere", now=9)

    assert storage.keys.list() == [dataclasses.replace(key, last_used_at=8)]


def test_the_owners_of_sessions_are_told_of_those_that_are_there(storage, films):
    storage.collections.set_alias("pictures", "films")
    for session_id, user_id, name in (("s1", "ann", "films"), ("s2", None, "pictures")):
        session = Session(session_id=session_id, user_id=user_id, collection=name)
        storage.clickstream.register_session(session)

    assert storage.clickstream.owners(["s2", "gone", "s1", "s1"]) == {
        "s1": SessionOwner("ann", "films"),
        "s2": SessionOwner(None, "pictures"),
    }
    assert storage.clickstream.owners([]) == {}


class Counted:
    """A part of another kind, which does what the one in it does, and notes what it was asked."""

    def __init__(self, part):
        self.asked = []
        self._part = part

    def __getattr__(self, name):
        self.asked.append(name)
        return getattr(self._part, name)


@pytest.mark.parametrize("name", [part.name for part in dataclasses.fields(Storage)])
def test_any_part_of_a_storage_can_be_replaced(storage, films, name):
    part = Counted(getattr(storage, name))

    other = storage.having(**{name: part})
    page = SearchService(other).search([1, 0, 0], collection="films", user_id="ann", create_session=True)
    other.clickstream.push_events([SessionEvent(session_id=page.session_id, object_id="c")])
    Improver(other, PassiveAggressiveAdjuster).improve_once()
    again = SearchService(other).search([1, 0, 0], collection="films", user_id="ann")
    other.ping()

    assert (other.orders.counts()[DONE], other.keys.has_any(), other.quarantine.count()) == (1, False, 0)
    assert [each.object_id for each in page.results] == ["a", "b", "c"]
    assert (page.personalised, again.personalised) == (False, True)
    assert part.asked
    assert storage.orders.counts()[DONE] == 1  # the rest is shared
    others = {each.name for each in dataclasses.fields(Storage)} - {name}
    assert all(getattr(other, each) is getattr(storage, each) for each in others)


def test_a_storage_has_no_part_of_another_name(storage):
    with pytest.raises(TypeError, match="indexes"):
        storage.having(indexes=storage.objects)
