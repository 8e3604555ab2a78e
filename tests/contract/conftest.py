"""Storages of each kind, and what the tests of ``storage/ports`` say to them and ask of them."""

import contextlib
import threading

import numpy as np
import pytest

from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import (
    CatalogueObject,
    PersonalState,
    QueryMemory,
    SeenObject,
    SharedVote,
)
from embedding_studio.domain.sessions import (
    EventDisposition,
    RecordedSession,
    SearchResultItem,
    Session,
    SessionDisposition,
    SessionEvent,
    SessionForImprovementCreateSchema,
    SessionForImprovementStatus,
)
from embedding_studio.storage.attached import create_collection
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import OrderOutcome, PassedOver

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


CLOSED_FORMS = {
    # of the parts (3, 0) and (0, 4) to the query (4, 3)
    (MetricType.COSINE, MetricAggregationType.MIN): 0.2,
    (MetricType.COSINE, MetricAggregationType.AVG): 0.3,
    (MetricType.DOT, MetricAggregationType.MIN): -12.0,
    (MetricType.DOT, MetricAggregationType.AVG): -12.0,
    (MetricType.EUCLID, MetricAggregationType.MIN): 3.1622777,
    (MetricType.EUCLID, MetricAggregationType.AVG): 3.6426916,
}


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


def recorded(session_id, user_id="ann", *, shown="abc", at=100, query=(1, 0, 0), done=(), **fields):
    return RecordedSession(
        Session(
            **{"session_id": session_id, "user_id": user_id, "created_at": at, "collection": "films"}
            | {"search_results": [SearchResultItem(object_id=i) for i in shown], "events": done}
            | fields
        ),
        None if query is None else vectors(query),
    )
