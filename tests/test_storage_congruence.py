"""Random sequences of operations, put to the twin and to PostgreSQL; every answer must be the same."""

import contextlib
import dataclasses
import itertools
from typing import Any, ClassVar

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import (
    CatalogueObject,
    OwnPast,
    PersonalState,
    QueryMemory,
    SeenObject,
    SharedVote,
)
from embedding_studio.domain.sessions import (
    FurtherPage,
    RecordedSession,
    SearchRequest,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovement,
    SessionForImprovementCreateSchema,
    SessionForImprovementStatus,
)
from embedding_studio.errors import CollectionNotFoundError, EmbeddingStudioError
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import OrderOutcome, OutdatedError, PassedOver, QuarantineDecision

Status = SessionForImprovementStatus

PASSED_OVER = PassedOver("irrelevant", "no events", "too old")

# Vectors that no metric ties by accident: equal distances are those of equal parts.
POOL, QUERIES = np.random.default_rng(5).normal(size=(2, 6, 3)).astype(np.float32)
INDEXES = {
    "films": SearchIndexInfo(dimensions=3),
    "books": SearchIndexInfo(
        dimensions=3,
        metric_type=MetricType.EUCLID,
        metric_aggregation_type=MetricAggregationType.AVG,
    ),
    "songs": SearchIndexInfo(
        dimensions=3, metric_type=MetricType.DOT, metric_aggregation_type=MetricAggregationType.AVG
    ),
}
FILTERS = [
    None,
    PayloadFilter.parse({"query": {"term": {"field": "price", "value": 1}}}),
    PayloadFilter.parse({"query": {"must_not": [{"match": {"field": "title", "value": "red"}}]}}),
]

EVERYTHING = ["a", "b", "c", "a_ann", "é"]
EVERYBODY = ["ann", "bob", "5"]
EVERY_SESSION = [f"s{number}" for number in range(6)]

collections = st.sampled_from(sorted(INDEXES))
names = st.sampled_from(["films", "books", "songs", "best", "films", "books", "best", "films", "unknown"])
object_ids = st.sampled_from(EVERYTHING)
users = st.sampled_from(EVERYBODY)
session_ids = st.sampled_from(EVERY_SESSION)
instants = st.integers(100, 103)
rows = st.sets(st.integers(0, len(POOL) - 1), min_size=1, max_size=3).map(sorted)
parts, queries_of_many_parts = rows.map(lambda chosen: POOL[chosen]), rows.map(lambda chosen: QUERIES[chosen])
payloads = st.sampled_from(
    [{}, {"price": 1}, {"price": True, "title": "Red"}, {"price": 1.0, "title": "a red shoe"}]
)
events = st.builds(
    SessionEvent,
    session_id=session_ids,
    object_id=object_ids,
    event_type=st.sampled_from(["click", "view", "purchase"]),
    created_at=instants,
    event_id=st.sampled_from(["", "e1", "e2"]),
)


pages = st.lists(object_ids, max_size=4, unique=True).map(
    lambda shown: [SearchResultItem(object_id=i, position=p) for p, i in enumerate(shown, start=2)]
)
further_pages = st.none() | st.builds(
    FurtherPage,
    request=st.builds(SearchRequest, offset=st.integers(0, 3)),
    created_at=instants,
    object_ids=st.lists(object_ids, max_size=3, unique=True).map(tuple),
)


def plain(answer):
    """Return an answer without clocks and tokens."""
    if isinstance(answer, SessionForImprovement):
        return answer.model_dump(exclude={"created_at", "updated_at", "not_before"})
    if isinstance(answer, list | tuple):
        return [plain(item) for item in answer]
    if isinstance(answer, dict):
        return {key: plain(value) for key, value in answer.items()}
    if dataclasses.is_dataclass(answer):
        names = {field.name for field in dataclasses.fields(answer)} - {
            "token",
            "collection_id",
            "waited_seconds",
            "oldest_seconds",
        }
        return {name: plain(getattr(answer, name)) for name in names}
    return answer


def alike(ours, theirs):
    """Return whether two plain answers are the same, distances and vectors up to 1e-5."""
    match ours, theirs:
        case (np.ndarray(), np.ndarray()):
            return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=0, atol=1e-5)
        case (float(), float()):
            return abs(ours - theirs) <= 1e-5
        case (list(), list()):
            return len(ours) == len(theirs) and all(map(alike, ours, theirs))
        case (dict(), dict()):
            return ours.keys() == theirs.keys() and all(alike(ours[key], theirs[key]) for key in ours)
    return ours == theirs


def in_order(claim):
    """Return a claim with its users by name, for two marked in one go have no order of age."""
    by_name = sorted(claim.entries, key=lambda entry: (entry.collection, entry.user_id)) if claim else ()
    return claim and dataclasses.replace(claim, entries=tuple(by_name))


class UndoneError(EmbeddingStudioError):
    """Rolls a learning block back."""


class TwoStorages(RuleBasedStateMachine):
    new_postgres_storage: ClassVar[Any]  # set by the test

    def __init__(self):
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.memory = MemoryStorage()
        self.postgres = self.stack.enter_context(self.new_postgres_storage())
        self.now = 5_000_000_000.0  # far ahead, so that what is placed is due
        self.claims = []  # (ours, theirs)

    def both(self, operation):
        """Put an operation to both storages; an error is an answer too."""
        answers = []
        for storage in (self.memory, self.postgres):
            try:
                answers.append(operation(storage))
            except EmbeddingStudioError as error:
                answers.append(type(error))
        assert alike(*map(plain, answers)), answers
        return answers

    def held(self, storage, number):
        """Return one of the claims made so far; None before the first."""
        if not self.claims:
            return None
        ours, theirs = self.claims[number % len(self.claims)]
        return ours if storage is self.memory else theirs

    @initialize()
    def begin(self):
        """Fill a small world, so that most operations meet something."""
        for name, index in INDEXES.items():
            self.both(lambda s, name=name, index=index: s.collections.create(name, index))
            self.upsert(
                name=name, objects={i: (POOL[k : k + 2], {"price": k}) for k, i in enumerate(EVERYTHING)}
            )
        self.both(lambda s: s.collections.set_alias("best", "films"))
        for number, (user_id, name) in enumerate(
            [("ann", "films"), ("ann", "best"), ("bob", "books"), (None, "films")]
        ):
            session = Session(
                session_id=f"s{number}",
                user_id=user_id,
                collection=name,
                created_at=100,
                search_results=tuple(SearchResultItem(object_id=i) for i in EVERYTHING),
                events=(SessionEvent(session_id=f"s{number}", object_id=EVERYTHING[number], created_at=101),),
            )
            self.both(lambda s, session=session: s.clickstream.register_session(session, QUERIES[:1]))
        self.learn(
            name="films",
            user_ids=EVERYBODY,
            limit=9,
            moved_ids=EVERYTHING[:3],
            push=2,
            number=0,
            is_undone=False,
            asked=[0, 1, 2],
            endings=[Status.DONE],
        )

    @rule(name=collections, alias=st.sampled_from(["best", "films"]))
    def set_alias(self, name, alias):
        self.both(lambda s: s.collections.set_alias(alias, name))

    @rule(name=st.sampled_from(["songs", "best", "books"]))
    def drop_and_create(self, name):
        self.both(lambda s: s.collections.drop(name))
        self.both(lambda s: s.collections.create(name, INDEXES.get(name, INDEXES["films"])))

    @rule(name=names, embedder=st.sampled_from(["one", "two"]))
    def rename_embedder(self, name, embedder):
        self.both(lambda s: s.collections.rename_embedder(name, embedder))

    @rule(name=names, gate_threshold=st.sampled_from([None, 0.5, 0.9]))
    def set_gate_threshold(self, name, gate_threshold):
        self.both(lambda s: s.collections.set_gate_threshold(name, gate_threshold))
        self.both(lambda s: s.collections.create(name, INDEXES.get(name, INDEXES["films"])))
        self.both(lambda s: s.collections.list())

    @rule(name=names, own_past=st.sampled_from([None, OwnPast(near_soon=0.5)]))
    def set_own_past(self, name, own_past):
        self.both(lambda s: s.collections.set_own_past(name, own_past))
        self.both(lambda s: s.collections.create(name, INDEXES.get(name, INDEXES["films"])))
        self.both(lambda s: s.collections.list())

    @rule(name=names, objects=st.dictionaries(object_ids, st.tuples(parts, payloads), max_size=5))
    def upsert(self, name, objects):
        given = [CatalogueObject(i, rows, payload) for i, (rows, payload) in objects.items()]
        self.both(lambda s: s.objects.upsert(s.collections.get(name), given))

    @rule(name=names, given=st.dictionaries(object_ids, payloads, max_size=3))
    def update_payloads(self, name, given):
        self.both(lambda s: s.objects.update_payloads(s.collections.get(name), given))

    @rule(
        name=names,
        after=st.one_of(st.none(), object_ids),
        limit=st.integers(0, 4),
        wanted=st.sampled_from(FILTERS),
    )
    def scroll(self, *, name, after, limit, wanted):
        self.both(
            lambda s: s.objects.scroll(s.collections.get(name), after=after, limit=limit, filter=wanted)
        )

    @rule(name=names, objects=st.lists(object_ids, max_size=2))
    def delete(self, name, objects):
        self.both(lambda s: s.objects.delete(s.collections.get(name), objects))

    @rule(
        name=names,
        queries=queries_of_many_parts,
        limit=st.integers(0, 6),
        wanted=st.sampled_from(FILTERS),
        max_distance=st.sampled_from([None, 1.1, 2.3, 0.3, -0.5]),
        user_id=users,
        gates=st.dictionaries(object_ids, st.sampled_from([0.25, 0.5, 1.0]), max_size=5),
        shared_by=st.integers(0, 3),
        named=st.dictionaries(object_ids, st.sampled_from([0.0, 0.5, 1.5]), max_size=4),
    )
    def look(self, *, name, queries, limit, wanted, max_distance, user_id, gates, shared_by, named):
        self.both(
            lambda s: s.objects.nearest(
                s.collections.get(name), queries, limit, filter=wanted, max_distance=max_distance
            )
        )

        self.both(
            lambda s: s.personal.nearest(
                s.collections.get(name), user_id, queries, limit, gates, filter=wanted, objects=s.objects
            )
        )

        def searched(storage, collection, **seen):
            near = storage.personal.near_memories(
                collection, user_id, queries[0], 0.3, shared_by=shared_by, **seen
            )
            found = storage.personal.nearest(
                collection,
                user_id,
                queries,
                limit,
                gates,
                filter=wanted,
                objects=storage.objects,
                own=near.read,
                named=named,
            )
            return near.own, near.shared, found

        def as_a_search_does(storage):
            for later in (True, False):
                try:
                    seen = storage.collections.seen(name)
                    return searched(storage, seen, seen_as=name, is_checked_later=later)
                except (OutdatedError, CollectionNotFoundError):  # it is another by now
                    continue
            return searched(storage, storage.collections.get(name))

        self.both(as_a_search_does)
        self.both(lambda s: s.personal.copies(s.collections.get(name), user_id, sorted(gates)))
        self.both(lambda s: s.clickstream.recent_queries(s.collections.get(name), limit))
        self.both(lambda s: s.personal.latest_memories(s.collections.get(name), limit))
        for asking in (user_id, None):
            self.both(
                lambda s, asking=asking: dataclasses.replace(
                    s.personal.near_memories(
                        s.collections.get(name), asking, queries[0], 0.3, shared_by=shared_by
                    ),
                    read=None,  # a storage's own
                )
            )

    @rule(
        session_id=session_ids,
        who=st.sampled_from(
            [("ann", "films"), ("bob", "best"), ("ann", "books"), (None, "films"), ("5", "unknown")]
        ),
        shown=pages,
        created_at=instants,
        text=st.sampled_from(["", "", "a film"]),
        query=st.one_of(st.none(), queries_of_many_parts),
        done=st.lists(events, max_size=2),
    )
    def register(self, *, session_id, who, shown, created_at, text, query, done):
        session = Session(
            session_id=session_id,
            search_query=text,
            user_id=who[0],
            collection=who[1],
            created_at=created_at,
            search_results=tuple(shown),
            events=tuple(done),
        )
        self.both(lambda s: s.clickstream.register_session(session, query))

    @rule(
        session_ids=st.lists(session_ids, max_size=4),
        whose=st.lists(
            st.sampled_from([("ann", "films"), ("bob", "best"), ("ann", "books"), (None, "films")]),
            min_size=4,
        ),
        shown=st.lists(pages, min_size=4, max_size=4),
        created_at=instants,
        query=st.one_of(st.none(), queries_of_many_parts),
        done=st.lists(events, max_size=2),
        sender=st.sampled_from(["", "a key"]),
        request=st.sampled_from([None, SearchRequest(limit=2)]),
        further=further_pages,
    )
    def record(self, *, session_ids, whose, shown, created_at, query, done, sender, request, further):
        recorded = [
            RecordedSession(
                Session(
                    session_id=session_id,
                    user_id=user_id,
                    collection=collection,
                    created_at=created_at + k,
                    search_results=tuple(shown[k]),
                    events=tuple(done),
                    request=request,
                    pages=(further,) if further and k % 2 else (),
                ),
                query,
                sender,
            )
            for k, (session_id, (user_id, collection)) in enumerate(zip(session_ids, whose, strict=False))
        ]
        self.both(lambda s: s.clickstream.record(recorded))

    @rule()
    def disregard(self):
        self.both(lambda s: s.clickstream.disregard("a key"))

    @rule(
        name=st.none() | names,
        user_id=st.none() | users,
        since=st.none() | instants,
        until=st.none() | instants,
    )
    def scan(self, *, name, user_id, since, until):
        self.both(
            lambda s: list(
                s.clickstream.scan(
                    collection=None if name is None else s.collections.get(name),
                    user_id=user_id,
                    since=since,
                    until=until,
                )
            )
        )

    @rule(session_id=session_ids, shown=pages, page=further_pages)
    def append(self, session_id, shown, page):
        self.both(lambda s: s.clickstream.append_results(session_id, shown, page))

    @rule(done=st.lists(events, max_size=5))
    def push(self, done):
        self.both(lambda s: s.clickstream.push_events(done))
        self.both(lambda s: s.clickstream.waiting_events())

    @rule(session_id=session_ids)
    def mark_irrelevant(self, session_id):
        self.both(lambda s: s.clickstream.mark_irrelevant(session_id))

    @rule(session_id=session_ids, object_id=object_ids)
    def take_back(self, session_id, object_id):
        self.both(lambda s: s.clickstream.take_back(session_id, object_id))

    @rule(name=names, user_id=st.none() | users, before=st.none() | st.tuples(instants, session_ids))
    def latest(self, name, user_id, before):
        def look(storage):
            collection = storage.collections.get(name)
            found = storage.clickstream.latest(collection=collection, user_id=user_id, before=before, limit=2)
            return found, storage.orders.of([each.session_id for each in found])

        self.both(look)

    @rule(user_id=st.sampled_from(["5", "bob", "ann"]))
    def forget(self, user_id):
        self.both(lambda s: s.clickstream.forget_user(user_id))

    @rule(user_id=users, is_quarantined=st.booleans(), at=instants)
    def decide(self, user_id, is_quarantined, at):
        decision = QuarantineDecision(is_quarantined, "by hand", at)
        self.both(lambda s: s.quarantine.decide(user_id, decision))
        self.both(lambda s: s.quarantine.count())
        self.both(lambda s: s.quarantine.decisions([user_id]))

    @rule(session_id=session_ids)
    def place(self, session_id):
        schema = SessionForImprovementCreateSchema(session_id=session_id)
        self.both(lambda s: s.orders.create(schema))

    @rule(session_id=session_ids)
    def cancel(self, session_id):
        self.both(lambda s: s.orders.cancel(session_id))

    @rule(seconds=st.sampled_from([0, 5, 11]))
    def claim(self, seconds):
        self.now += seconds
        claims = self.both(lambda s: in_order(s.queue.claim(users=100, lease_seconds=10, now=self.now)))
        if claims[0] is not None:
            self.claims.append(claims)

    @rule(
        number=st.integers(0, 9),
        backoff_seconds=st.sampled_from([0.0, 1e12]),
        failed=st.one_of(st.none(), st.dictionaries(session_ids, st.just("of its own"), max_size=3)),
    )
    def fail(self, *, number, backoff_seconds, failed):
        if self.claims:
            for place in range(len(self.held(self.memory, number).entries)):
                self.both(
                    lambda s, place=place: sorted(
                        s.queue.fail(
                            (claim := self.held(s, number)).token,
                            claim.entries[place],
                            "why",
                            sessions=failed,
                            max_attempts=2,
                            backoff_seconds=backoff_seconds,
                        )
                    )
                )

    @rule(number=st.integers(0, 9))
    def refuse(self, number):
        if self.claims:
            self.both(
                lambda s: sorted(
                    s.queue.refuse((claim := self.held(s, number)).token, claim.entries[0], "no such place")
                )
            )

    @rule(
        name=names,
        user_ids=st.sets(st.sampled_from(["ann", "bob", "5"]), min_size=1),
        limit=st.integers(0, 3),
        moved_ids=st.sets(object_ids),
        push=st.integers(0, len(POOL) - 1),
        number=st.integers(0, 9),
        is_undone=st.sampled_from([False, False, True]),
        asked=st.lists(st.integers(0, 2 * len(QUERIES)), max_size=9, unique=True),
        endings=st.lists(st.sampled_from([Status.DONE, Status.REFUSED, Status.FAILED]), min_size=3),
    )
    def learn(self, *, name, user_ids, limit, moved_ids, push, number, is_undone, asked, endings):
        def fold(s):
            collection = s.collections.get(name)
            recent = s.clickstream.recent_sessions(collection, sorted(user_ids), limit)
            originals = s.objects.originals(collection, moved_ids)
            with s.personal.learning(collection, sorted(user_ids)) as transaction:
                moved = {object_id: vectors + POOL[push] for object_id, vectors in originals.items()}
                states, outcomes, embedded = {}, [], {}
                for user_id, sessions in recent.items():
                    memories = [
                        QueryMemory(
                            session_id=recorded.session.session_id,
                            search_query=recorded.session.search_query,
                            created_at=recorded.session.created_at,
                            query=QUERIES[push],
                            clicked_mean=-POOL[push],
                            clicked_ids=tuple(sorted(recorded.session.clicked())),
                            moved_ids=tuple(sorted(moved)),
                        )
                        for recorded in sessions
                    ]
                    votes = [
                        SharedVote(
                            query_key=f"query {key}",
                            query=QUERIES[(key + number) % len(QUERIES)],
                            clicked_mean=POOL[push] * (1 + len(user_id)),
                            created_at=100 + key % 2,
                            seen=tuple(
                                SeenObject(object_id, (key + number) % 3 / 2, 1 / number)
                                for number, object_id in enumerate(sorted(moved), start=1)
                            ),
                        )
                        for key in asked
                    ]
                    states[user_id] = PersonalState(tuple(memories), moved, tuple(votes))
                    outcomes += [
                        OrderOutcome(memory.session_id, became)
                        for memory, became in zip(memories, itertools.cycle(endings), strict=False)
                    ]
                    embedded |= {memory.session_id: QUERIES[push : push + 1] for memory in memories}
                transaction.store_query_vectors(embedded)
                transaction.replace_states(states, {user_id: "a robot" for user_id in states if push % 2})
                new = []
                if (claim := self.held(s, number)) is not None:
                    new = transaction.complete(claim.token, outcomes, PASSED_OVER)
                if is_undone:
                    raise UndoneError
            return recent, originals, sorted(new, key=lambda outcome: outcome.session_id)

        self.both(fold)

    @invariant()
    def orders_are_the_same(self):
        self.both(lambda s: sorted(s.orders.list(), key=lambda order: order.session_id))
        self.both(lambda s: s.orders.counts())
        self.both(lambda s: s.queue.info())

    def teardown(self):
        try:
            self.both(lambda s: s.collections.aliases())
            for session_id in EVERY_SESSION:
                self.both(lambda s, session_id=session_id: s.clickstream.get_session(session_id))
            for name in INDEXES:
                self.both(lambda s, name=name: s.objects.get(s.collections.get(name), EVERYTHING))
                for user_id in EVERYBODY:
                    self.both(lambda s, of=(name, user_id): s.personal.state(s.collections.get(of[0]), of[1]))
        finally:
            self.stack.close()


def test_random_sequences_have_the_same_answers_from_memory_and_from_postgres(new_postgres_storage):
    class Machine(TwoStorages):
        pass

    Machine.new_postgres_storage = staticmethod(new_postgres_storage)

    run_state_machine_as_test(
        Machine, settings=settings(max_examples=25, stateful_step_count=40, derandomize=True)
    )
