"""How often each operation waits for PostgreSQL, counted on the wire between the two."""

import itertools
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import numpy as np
import psycopg
import pytest

from conftest import new_database
from embedding_studio import (
    CatalogueObject,
    Context,
    SearchIndexInfo,
    SearchResultItem,
    Session,
    SessionEvent,
    load_settings,
)
from embedding_studio.api import keyring
from embedding_studio.api.app import create_app
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.objects import PersonalState, QueryMemory, SeenObject, SharedVote
from embedding_studio.domain.sessions import RecordedSession
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import SearchService
from test_api_service import EVENTS, SEARCH, SESSION, serving
from test_embedded import open_folder

LATENCY_SECONDS = 0.03
"""An answer is held back for so long that all which is sent without waiting for it is sent before."""


WARM = 7
"""So often each operation is done before it is counted: psycopg prepares a statement the sixth time."""


class Wire:
    """Carries what a client and a server say to each other, and counts the client's waits.

    Whatever the client sends before it gets an answer is one round trip: a pipeline, or a body in pieces.

    Attributes:
        folder: where it listens, as ``.s.PGSQL.5432``.
        round_trips: that were answered.
    """

    def __init__(self, folder: Path, server: str) -> None:
        self.folder = folder
        self.round_trips = 0
        self.latency_seconds = 0.0
        self._server = server
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(folder / ".s.PGSQL.5432"))
        self._listening.listen()
        self._lock = threading.Lock()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # else who waits in ``accept`` waits on
        self._listening.close()
        self._accepting.join()

    @contextmanager
    def counting(self) -> Iterator[Callable[[], int]]:
        """Yield what tells the round trips of the block, in which every answer is held back."""
        before, after = self.round_trips, []
        self.latency_seconds = LATENCY_SECONDS
        yield lambda: after[0] - before
        self.latency_seconds = 0
        after.append(self.round_trips)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._server)
            threading.Thread(target=self._carry, args=(client, server), daemon=True).start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        """Carry both ways until both have hung up; only then is either closed, and its number free again."""
        asked = threading.Event()
        answering = threading.Thread(target=self._answer, args=(server, client, asked), daemon=True)
        with client, server:
            answering.start()
            self._ask(client, server, asked)
            answering.join()

    def _ask(self, client: socket.socket, server: socket.socket, asked: threading.Event) -> None:
        while said := _received(client):
            asked.set()
            if not _sent(server, said):
                break
        _hang_up(server)

    def _answer(self, server: socket.socket, client: socket.socket, asked: threading.Event) -> None:
        while said := _received(server):
            time.sleep(self.latency_seconds)
            if asked.is_set():
                asked.clear()
                with self._lock:
                    self.round_trips += 1
            if not _sent(client, said):
                break
        _hang_up(client)


def _received(one: socket.socket) -> bytes:
    try:
        return one.recv(2**20)
    except OSError:
        return b""


def _sent(one: socket.socket, said: bytes) -> bool:
    """Send, and return whether there is still somebody to send to."""
    try:
        one.sendall(said)
    except OSError:
        return False
    return True


def _hang_up(other: socket.socket) -> None:
    with suppress(OSError):
        other.shutdown(socket.SHUT_WR)


D = 3
SIZES = {"compared": 100, "coded": 3_100}
"""Objects of a collection that PostgreSQL compares, and of one that is searched by codes."""


def at(degrees: float) -> np.ndarray:
    radians = math.radians(degrees)
    return np.array([[math.cos(radians), math.sin(radians), 0]], dtype=np.float32)


QUERY = [1.0, 0.0, 0.0]


@dataclass
class Service:
    """A context and its HTTP service, over one wire.

    Attributes:
        collection: the one that operations are about.
    """

    wire: Wire
    context: Context
    client: httpx.Client
    numbers: Iterator[int] = field(default_factory=itertools.count)
    collection: str = ""

    def new(self) -> str:
        return f"new-{next(self.numbers)}"

    def post(self, path: str, **body: object) -> Callable[[], object]:
        return lambda: self.client.post(path, json=body).raise_for_status()

    def session(self) -> Session:
        shown = [SearchResultItem(object_id=f"o{n:04}") for n in range(10)]
        return Session(
            session_id=self.new(), user_id=self.new(), collection=self.collection, search_results=shown
        )

    def registered(self) -> str:
        session = self.session()
        self.context.clickstream_dao.register_session(session, at(0))
        return session.session_id

    def click(self) -> SessionEvent:
        return SessionEvent(session_id=self.registered(), object_id="o0003")

    def learn_all(self) -> None:
        while self.context.improver().improve_once().users:
            pass

    def order(self) -> None:
        """Have one order due, and no other."""
        self.learn_all()
        self.context.clickstream_dao.push_events([self.click()])

    def order_of_one_user(self, orders: int) -> None:
        """Have so many orders of one new user due, a session an hour."""
        user_id, now = self.new(), utc_timestamp()
        of_hour = [
            self.session().model_copy(update={"user_id": user_id, "created_at": now - 3600 * (hour + 1)})
            for hour in range(orders)
        ]
        self.context.clickstream_dao.record([RecordedSession(each, at(0)) for each in of_hour])
        self.context.clickstream_dao.push_events(
            [SessionEvent(session_id=each.session_id, object_id="o0003") for each in of_hour]
        )


@pytest.fixture(scope="module")
def opened(postgres_server):
    [server] = parse_qs(urlsplit(postgres_server).query)["host"]
    with new_database(postgres_server) as url, open_folder() as folder:
        wire = Wire(folder, f"{server}/.s.PGSQL.5432")
        through = urlsplit(url)._replace(query=urlencode({"host": folder, "port": 5432})).geturl()
        settings = load_settings(database_url=through, embedder="none", pool_size=1)
        with (
            pytest.MonkeyPatch.context() as patched,
            Context(settings) as context,
            serving(create_app(context)) as client,
        ):
            patched.setattr(
                keyring, "LIFE_SECONDS", 3600
            )  # whether there are keys is asked every two seconds
            for name, size in SIZES.items():
                fill(context, name, size)
            yield Service(wire, context, client)
        wire.close()


def fill(context: Context, name: str, size: int) -> None:
    """Store objects, and three users' past: far from the query, near it, and near it with an object moved.

    Three others asked for something else, and clicked what is far from that.
    """
    collection = context.collection(name, index=SearchIndexInfo(dimensions=D))
    objects = [CatalogueObject(f"o{n:04}", at(5 + 80 * n / size)) for n in range(size)]
    context.index_objects(name, objects)
    pasts = {"far": (at(100), ()), "near": (at(10), ()), "moved": (at(10), ("o0009",))}
    states = {
        user_id: PersonalState(
            (QueryMemory("past", "", 1, query[0], at(20)[0], ("o0009",), moved),),
            dict.fromkeys(moved, at(6)),
        )
        for user_id, (query, moved) in pasts.items()
    }
    vote = SharedVote("asked", at(80)[0], at(80)[0], 1, (SeenObject("o0000", 1.0, 0.5),))
    states |= {f"voter-{n}": PersonalState(votes=(vote,)) for n in range(3)}
    with context.storage.personal.learning(collection, list(states)) as transaction:
        transaction.replace_states(states)


@pytest.fixture(params=SIZES)
def service(opened, request):
    opened.collection = request.param
    return opened


# Operations: each prepares what it needs, and returns what is counted.


def search(service, **given):
    return partial(service.context.search.search, QUERY, collection=service.collection, **given)


def search_of_a_new_user(service):
    return search(service, user_id="new")


def search_of_a_user_whose_past_is_far(service):
    return search(service, user_id="far")


def search_of_a_user_whose_past_is_near(service):
    return search(service, user_id="near")


def search_of_a_user_who_moved_what_is_near(service):
    return search(service, user_id="moved")


def search_of_a_user_who_was_learnt_since_the_last(service):
    search(service, user_id="moved")()
    storage = service.context.storage
    collection = storage.collections.get(service.collection)
    state = storage.personal.state(collection, "moved")
    with storage.personal.learning(collection, ["moved"]) as transaction:
        transaction.replace_states({"moved": state})
    return search(service, user_id="moved")


def search_that_others_bear_on(service):
    shared = SearchService(service.context.storage, shared_min_users=3)

    def search():
        assert shared.search(at(80), collection=service.collection, user_id="new").personalised

    return search


def recorded_search(service):
    return search(service, create_session=True)


def recorded_search_of_a_user_who_moved_what_is_near(service):
    return search(service, create_session=True, user_id="moved")


def search_recorded_under_the_callers_id(service):
    return search(service, create_session=True, session_id=service.new())


def register_session(service):
    return partial(service.context.clickstream_dao.register_session, service.session(), at(0))


def push_a_click(service):
    return partial(service.context.clickstream_dao.push_events, [service.click()])


def upsert_of_10_new_objects(service):
    return upsert(service, [service.new() for _ in range(10)])


def upsert_of_10_known_objects(service):
    return upsert(service, [f"o{n:04}" for n in range(90, 100)])


def upsert(service, object_ids):
    collection = service.context.collection(service.collection)
    objects = [CatalogueObject(each, at(80 + next(service.numbers) % 10)) for each in object_ids]
    return partial(service.context.storage.objects.upsert, collection, objects)


def claim_of_one_order(service):
    service.order()
    return partial(service.context.storage.queue.claim, users=9, lease_seconds=60)


def claim_of_nothing(service):
    service.learn_all()
    return partial(service.context.storage.queue.claim, users=9, lease_seconds=60)


def pass_of_learning_from_one_order(service):
    service.order()
    return service.context.improver().improve_once


def pass_of_learning_from_70_orders_of_which_60_are_too_old_to_count(service):
    service.learn_all()
    service.order_of_one_user(70)
    context = service.context
    improver = Improver(context.storage, context.adjuster_for, max_sessions_per_user=10)

    def learn():
        report = improver.improve_once()
        assert (report.users, report.learnt, len(report.refused)) == (1, 10, 60)

    return learn


def http_search(service, **given):
    return service.post(SEARCH, search_query=QUERY, collection=service.collection, **given)


def http_search_of_a_user_who_moved_what_is_near(service):
    return http_search(service, user_id="moved")


def http_recorded_search_of_a_user_who_moved_what_is_near(service):
    return http_search(service, user_id="moved", create_session=True)


def http_search_recorded_under_the_callers_id(service):
    return http_search(service, create_session=True, session_id=service.new())


def http_register_session(service):
    shown = [{"object_id": "o0003"}]
    body = {"session_id": service.new(), "search_results": shown, "query_vectors": [QUERY]}
    return service.post(SESSION, collection=service.collection, **body)


def http_push_a_click(service):
    return service.post(EVENTS, session_id=service.registered(), events=[{"object_id": "o0003"}])


ROUND_TRIPS = {
    search: (1, 1),
    search_of_a_new_user: (1, 1),
    search_of_a_user_whose_past_is_far: (1, 1),
    search_of_a_user_whose_past_is_near: (1, 1),
    search_of_a_user_who_moved_what_is_near: (1, 1),
    search_of_a_user_who_was_learnt_since_the_last: (3, 3),
    search_that_others_bear_on: (1, 1),
    recorded_search: (2, 2),
    recorded_search_of_a_user_who_moved_what_is_near: (2, 2),
    search_recorded_under_the_callers_id: (2, 2),
    register_session: (1, 1),
    push_a_click: (4, 4),
    upsert_of_10_new_objects: (12, 12),
    upsert_of_10_known_objects: (8, 7),
    claim_of_one_order: (1, 1),
    claim_of_nothing: (1, 1),
    pass_of_learning_from_one_order: (19, 19),
    pass_of_learning_from_70_orders_of_which_60_are_too_old_to_count: (21, 21),
    http_search: (1, 1),
    http_search_of_a_user_who_moved_what_is_near: (1, 1),
    http_recorded_search_of_a_user_who_moved_what_is_near: (2, 2),
    http_search_recorded_under_the_callers_id: (2, 2),
    http_register_session: (4, 4),
    http_push_a_click: (4, 4),
}
"""The most that an operation may take where all is compared, and where search is by codes."""


@pytest.mark.parametrize("operation", ROUND_TRIPS, ids=lambda operation: operation.__name__)
def test_an_operation_waits_for_the_database_so_often_at_most(service, operation):
    most = dict(zip(SIZES, ROUND_TRIPS[operation], strict=True))[service.collection]
    for _ in range(WARM):
        operation(service)()
    once_more = operation(service)

    with service.wire.counting() as round_trips:
        once_more()

    assert 1 <= round_trips() <= most


def test_a_pipeline_is_one_round_trip_and_a_transaction_of_one_statement_is_three(opened):
    database = opened.context.settings.database_url.get_secret_value()
    with psycopg.connect(database, autocommit=True) as connection:
        with opened.wire.counting() as alone:
            connection.execute("SELECT 1")
        with opened.wire.counting() as together, connection.pipeline():
            answers = [connection.execute("SELECT repeat('x', 100000)") for _ in range(5)]
        with opened.wire.counting() as in_a_transaction, connection.transaction():
            connection.execute("SELECT 1")

    assert [len(answer.fetchone()[0]) for answer in answers] == [100_000] * 5
    assert (alone(), together(), in_a_transaction()) == (1, 1, 3)
