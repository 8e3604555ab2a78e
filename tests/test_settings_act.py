"""Each setting, given by its environment variable, changes what is done, at each place that takes it.

Cases are functions that look at something; ``acts`` says what they see by default and with the setting.
"""

import io
import json
import logging
import math
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import numpy as np
import psycopg
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import rsa
from typer.testing import CliRunner

from conftest import new_database
from embedding_studio import (
    CatalogueObject,
    CatalogueText,
    Context,
    SearchIndexInfo,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovementCreateSchema,
    datetime_utils,
)
from embedding_studio.api.app import create_app
from embedding_studio.cli import app, demonstration
from embedding_studio.cli.console import opened_context
from embedding_studio.cli.processes import Parent
from embedding_studio.demo.story import Demo
from embedding_studio.demo.subjects import Subject
from embedding_studio.doctor import examine
from embedding_studio.domain.objects import PersonalState, QueryMemory
from embedding_studio.errors import (
    EmbeddingStudioError,
    InvalidInputError,
    InvalidSettingError,
    StorageTimeoutError,
)
from embedding_studio.feedback.worker import Worker
from embedding_studio.indexing import BATCH_TEXTS
from embedding_studio.replaying import Replayed
from embedding_studio.replaying import World as ReplayedWorld
from embedding_studio.reports import Report, ReportKind, make
from embedding_studio.settings import Settings, load_settings
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.storage.waiting import WAITER, Waiter
from embedding_studio.tuned_settings import Choices, _space, tune_settings
from test_api_service import EVENTS, SEARCH, samples, serving
from test_embedded import open_folder
from test_embedders import Endpoint

TOKEN_SECRET = "a-secret-of-who-signs-users-in-0123456789"  # noqa: S105
PAIR = rsa.generate_private_key(public_exponent=65537, key_size=2048)

ANGLES = (10, 20, 30, 40, 50)
ALL = [f"at{degrees}" for degrees in ANGLES]

ANYWHERE = "0.0.0.0"  # noqa: S104, is to be refused without a key

PATIENCE_SECONDS = 1.5
"""For what is not to happen; what is to happen has half a minute."""


@dataclass(frozen=True)
class Case:
    """One setting at one place.

    Attributes:
        value: what its variable is set to; a callable is given the world.
        given: other variables, set both times.
    """

    setting: str
    value: "str | Callable[[World], str]"
    look: "Callable[[World], object]"
    by_default: object
    when_set: object
    given: "Mapping[str, str | Callable[[World], str]]"


CASES: list[Case] = []


def acts(setting, value, *, sees, **given):
    """Add a case: what a look ``sees`` by default, and what where the variable of a setting has a value."""

    def add(look):
        named = {name.upper(): each for name, each in given.items()}
        by_default, when_set = sees
        CASES.append(Case(setting, value, look, by_default, when_set, named))
        return look

    return add


@dataclass
class World:
    """What a look finds around it.

    Attributes:
        folder: the working folder.
        patience_seconds: how long to wait for what may not happen.
        memory: the storage of contexts that are not to open a database.
    """

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    request: pytest.FixtureRequest
    patience_seconds: float = PATIENCE_SECONDS
    memory: MemoryStorage = field(default_factory=MemoryStorage)

    def see(self, case: Case, expected: object, more: Mapping[str, Any]) -> object:
        """Return what a case's look sees in an environment."""
        self.memory = MemoryStorage()
        self.patience_seconds = 30 if expected is True else PATIENCE_SECONDS
        with self.monkeypatch.context() as changed:
            for name, value in {**case.given, **more}.items():
                changed.setenv(name, value(self) if callable(value) else value)
            self.monkeypatch = changed
            return case.look(self)

    @contextmanager
    def context(self) -> Iterator[Context]:
        with Context(storage=self.memory) as context:
            yield context

    @contextmanager
    def postgres(self) -> Iterator[Context]:
        """A context over an empty database."""
        with new_database(self.request.getfixturevalue("postgres_server")) as url:
            self.monkeypatch.setenv("DATABASE_URL", url)
            with Context() as context:
                yield context

    def command(self, *arguments: str):
        """Run a command over memory."""
        self.monkeypatch.setattr(Context, "open_storage", lambda _: self.memory)
        return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def world(monkeypatch, request):
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    loggers = logging.getLogger().handlers[:]
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("EMBEDDER", "none")
    with open_folder() as folder:
        monkeypatch.chdir(folder)
        yield World(folder, monkeypatch, request)
        monkeypatch.undo()
    for each, handler in handlers.items():
        signal.signal(each, handler)
    logging.getLogger().handlers[:] = loggers


@pytest.fixture(scope="module")
def coded_url(postgres_server):
    """The URL of a database with a collection that is searched by codes."""
    vectors = np.random.default_rng(5).normal(size=(3_000, 66)).astype(np.float32)
    with new_database(postgres_server) as url:
        storage = PostgresStorage(url)
        collection = storage.collections.create("default", SearchIndexInfo(dimensions=66))
        storage.objects.upsert(
            collection, [CatalogueObject(f"o{n}", vector[None]) for n, vector in enumerate(vectors)]
        )
        storage.close()
        yield url


@pytest.fixture(scope="module")
def endpoint():
    """An endpoint of embeddings that knows who asked."""
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def a_plugin_that_refuses_all(world: World) -> str:
    (world.folder / "own.py").write_text(
        "class Own:\n    def get_session_filter(self):\n        return lambda session: False\n"
    )
    return "own.py"


def a_database_with_a_collection(world: World) -> str:
    return world.request.getfixturevalue("coded_url")


def an_endpoint(world: World) -> str:
    return f"openai:tiny@{world.request.getfixturevalue('endpoint').url}"


def test_every_setting_is_among_those_that_are_seen_to_act():
    assert {case.setting for case in CASES} == set(Settings.model_fields)


def test_a_setting_acts(case, world):
    before = world.see(case, case.by_default, {})
    after = world.see(case, case.when_set, {case.setting.upper(): case.value})

    assert (before, after) == (case.by_default, case.when_set)
    assert before != after


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        names = [f"{case.setting}-{case.look.__name__}" for case in CASES]
        metafunc.parametrize("case", CASES, ids=names)


# What there is to look at: objects on an arc, ``at30`` stands 30 degrees from the query.


def at(degrees: float) -> np.ndarray:
    radians = math.radians(degrees)
    return np.array([[math.cos(radians), math.sin(radians), 0]], dtype=np.float32)


def an_arc(context: Context) -> None:
    context.collection(index=SearchIndexInfo(dimensions=3))
    context.index_objects("default", [CatalogueObject(f"at{degrees}", at(degrees)) for degrees in ANGLES])


def record(
    context: Context,
    session_id: str = "s",
    *clicked: str,
    user_id: str = "ann",
    query: np.ndarray | None = None,
    search_query: str = "",
) -> None:
    """Record a session with its events, and order to learn from it."""
    now = datetime_utils.utc_timestamp() - 100
    session = Session(
        session_id=session_id,
        user_id=user_id,
        created_at=now,
        search_query=search_query,
        search_results=[SearchResultItem(object_id=each) for each in ALL],
        events=[
            SessionEvent(session_id=session_id, object_id=each, created_at=now + 1)
            for each in clicked or ["at40"]
        ],
    )
    context.clickstream_dao.register_session(session, at(0) if query is None else query)
    context.sessions_for_improvement.create(SessionForImprovementCreateSchema(session_id=session_id))


def status_of(context: Context, session_id: str = "s") -> str:
    return context.sessions_for_improvement.get(session_id).status.value


def stands_at(context: Context, object_id: str, *, user_id: str = "ann", query_at: float = 0) -> float:
    """Return the degrees from the query at which a user finds an object."""
    page = context.search.search(at(query_at), user_id=user_id)
    [distance] = [each.distance for each in page.results if each.object_id == object_id]
    return math.degrees(math.acos(1 - distance))


def near(degrees: float):
    return pytest.approx(degrees, abs=0.05)


# How vectors move


@acts("adjuster", "torch", sees=(near(43.2), near(45)), query_shift="0")
@acts("adjustment_rate", "aggressive", sees=(near(43.2), near(40.99)), query_shift="0")
@acts(
    "max_angle_degrees",
    "45",
    sees=(near(30), near(5)),
    query_shift="0",
    adjustment_rate="2",
    num_iterations="200",
)
def how_near_a_clicked_result_comes(world):
    with world.context() as context:
        an_arc(context)
        record(context, "s", "at50")
        context.improver().improve_once()
        return stands_at(context, "at50")


@acts("adjuster", "torch", sees=("made", "needs torch"))
def whether_learning_starts_where_there_is_no_torch(world):
    name = "embedding_studio.embeddings.improvement.torch_based_adjuster"
    world.monkeypatch.setitem(sys.modules, "torch", None)
    world.monkeypatch.delitem(sys.modules, name, raising=False)
    with world.context() as context:
        try:
            context.improver()
        except EmbeddingStudioError as error:
            return "needs torch" if "needs torch" in str(error) else str(error)
        return "made"


@acts("quarantine", "false", sees=("refused", "done"))
def what_becomes_of_a_session_of_a_robot(world):
    with world.context() as context:
        an_arc(context)
        for number in range(10):
            record(context, f"s{number}", *ALL)
        context.improver().improve_once()
        return status_of(context, "s9")


@acts("num_iterations", "30", sees=(near(43.12), near(34.23)), query_shift="0")
def how_near_a_result_comes_that_was_clicked_among_others(world):
    with world.context() as context:
        an_arc(context)
        for number, clicked in enumerate(["at30", "at50", "at40"]):
            record(context, f"s{number}", clicked)
        context.improver().improve_once()
        return stands_at(context, "at50")


@acts("softmin_temperature", "sharp", sees=(near(28.59), near(29.91)), query_shift="0")
def how_near_the_farther_part_of_a_clicked_result_comes(world):
    with world.context() as context:
        an_arc(context)
        context.index_objects("default", [CatalogueObject("at40", np.concatenate([at(40), at(-45)]))])
        record(context)
        context.improver().improve_once()
        return stands_at(context, "at40", query_at=-15)


# What search does


@acts("gate_threshold", "0.9", sees=(True, False))
@acts("query_shift", "0", sees=(True, False))
def a_past_query_30_degrees_off_shifts_this_one(world):
    with world.context() as context:
        an_arc(context)
        record(context, query=at(-30))
        context.improver().improve_once()
        plain, bent = (stands_at(context, "at10", user_id=user) for user in ("bob", "ann"))
        return bent < plain - 0.1


@acts("learn_own_past", "false", sees=(True, False))
@acts("gate_threshold", "0.9", sees=(True, False))
def a_worker_sees_that_people_do_not_come_back_for_the_same(world):
    with world.context() as context:
        an_arc(context)
        coats = context.collection()
        states = {
            f"user{number}": PersonalState(
                (
                    QueryMemory("s1", "", 1, at(0)[0], at(10)[0], ("at10",), ()),
                    QueryMemory("s2", "", 2, at(30)[0], at(20)[0], ("at20",), ()),
                )
            )
            for number in range(20)
        }
        with context.storage.personal.learning(coats, list(states)) as transaction:
            transaction.replace_states(states)
        with working(context):
            until = time.monotonic() + world.patience_seconds
            while context.collection().own_past is None and time.monotonic() < until:
                time.sleep(0.01)
        return context.collection().own_past is not None


@acts("retention_days", "400", sees=(False, True))
def a_session_of_1970_is_gone_once_a_worker_ran(world):
    with world.context() as context:
        an_arc(context)
        context.clickstream_dao.register_session(Session(session_id="old", user_id="ann", created_at=1))
        with working(context):
            until = time.monotonic() + world.patience_seconds
            while list(context.clickstream_dao.scan(until=2)) and time.monotonic() < until:
                time.sleep(0.01)
        return not list(context.clickstream_dao.scan(until=2))


@acts("gate_threshold", "0.76", sees=(0.95, None))
def the_gate_of_a_collection_of_objects_that_are_all_alike(world):
    with world.context() as context:
        context.collection(index=SearchIndexInfo(dimensions=2))
        alike = [
            CatalogueObject(str(number), np.array([[1, number * 1e-6]], dtype=np.float32))
            for number in range(500)
        ]
        context.index_objects("default", alike)
        return context.collection().gate_threshold


@acts("gate_threshold", "0.8", sees=("0.75 (GATE_THRESHOLD)", "0.8 (GATE_THRESHOLD)"))
def the_gate_to_which_a_collection_is_set_back(world):
    with world.context() as context:
        context.collection(index=SearchIndexInfo(dimensions=3))
    told = world.command("tune", "--reset")
    return re.search(r"after\W+([^│]+?)\s*│", told.stdout)[1]


@acts("shared_min_users", "2", sees=(False, True))
def what_two_users_clicked_bends_the_search_of_a_third(world):
    with world.context() as context:
        an_arc(context)
        for user_id in ("bob", "cid"):
            record(context, f"s-{user_id}", user_id=user_id)
        context.improver().improve_once()
        return context.search.search(at(0), user_id="ann").personalised


@acts("exploration_ratio", "1", sees=(False, True), adjustment_rate="1")
def a_personal_page_shows_the_plain_order(world):
    with world.context() as context:
        an_arc(context)
        record(context, "s", "at20")
        context.improver().improve_once()
        page = context.search.search(at(0), user_id="ann", limit=3)
        return [each.object_id for each in page.results] == ALL[:3]


@acts("recall_target", "0.51", sees=(True, False))
def everything_near_is_found(world):
    world.monkeypatch.setenv("DATABASE_URL", a_database_with_a_collection(world))
    queries = np.random.default_rng(7).normal(size=(50, 66)).astype(np.float32)
    with Context() as context:
        objects, collection = context.storage.objects, context.collection()
        return all(
            [each.object_id for each in context.search.search(query).results]
            == [each.object_id for each in objects.nearest(collection, query, 10, margin=math.inf)]
            for query in queries
        )


@acts(
    "recall_target",
    "0.8",
    sees=("2.58 standard errors for RECALL_TARGET=0.99", "1.28 standard errors for RECALL_TARGET=0.8"),
)
def what_the_doctor_says_of_a_collection_that_was_not_measured(world):
    world.monkeypatch.setenv("DATABASE_URL", a_database_with_a_collection(world))
    with Context() as context:
        [told] = [each.told for each in examine(context) if each.what == "collection default"]
        return re.search(r"margin of (.*); `", told)[1]


@acts("event_weights", '{"click": 1, "hover": 2}', sees=(0, 1))
def clicks_that_a_replay_reads_of_the_log(world):
    with world.context() as context:
        an_arc(context)
        shown = [SearchResultItem(object_id=each) for each in ALL]
        hover = SessionEvent(session_id="s", object_id="at40", event_type="hover")
        session = Session(
            session_id="s", user_id="ann", search_query="q", search_results=shown, events=[hover]
        )
        context.clickstream_dao.register_session(session, at(0))
        return sum(
            len(each.clicks) for each in ReplayedWorld(context, context.collection()).log(None).sessions
        )


@acts("gate_threshold", "0.9", sees=(0.75, 0.9))
def the_gate_of_a_replay(world):
    with world.context() as context:
        an_arc(context)
        return ReplayedWorld(context, context.collection()).gate_threshold


@acts("shared_min_users", "7", sees=((3, False), (7, True)))
def from_how_many_users_on_a_replay_shares_and_whether_it_does_without_being_asked_to(world):
    with world.context() as context:
        an_arc(context)
        replayed = ReplayedWorld(context, context.collection())
        [shared] = replayed.methods([Replayed.SHARED]).values()
        [default] = replayed.methods([Replayed.DEFAULT]).values()
        made: list[Any] = [make() for make in (default, shared, replayed.served(context.settings))]
        assert not made[0]._is_shared
        return made[1]._search._shared_by, made[2]._is_shared


@acts("shared_min_users", "7", sees=("no search to tune on", "too few"))
def what_tuning_says_of_one_search_of_a_user_who_clicked_nothing_before(world):
    with world.context() as context:
        an_arc(context)
        record(context, search_query="q")
        with pytest.raises(InvalidInputError) as refused:
            tune_settings(context, "default")
        return re.search("no search to tune on|too few", str(refused.value))[0]


@acts("query_shift", "3", sees=([2, 0.5, 0.95], [3, 0.5, 0.95]))
@acts("adjustment_rate", "4", sees=([2, 0.5, 0.95], [2, 4, 0.95]))
@acts("gate_threshold", "0.97", sees=([2, 0.5, 0.95], [2, 0.5, 0.97]))
def the_most_that_tuning_tries(world):
    with world.context() as context:
        space: Mapping[str, Any] = _space(context.settings, None, has_own_gate=False)
        return [space[name].high for name in ("query_shift", "adjustment_rate", "gate_threshold")]


@acts("shared_min_users", "3", sees=(Choices((0, 3)), None))
@acts("shared_min_users", "5", sees=(Choices((0, 3)), Choices((5, 3))))
def from_how_many_users_on_tuning_tries_to_share_where_it_may_from_three(world):
    with world.context() as context:
        return _space(context.settings, 3, has_own_gate=False).get("shared_min_users")


def shown_in_the_console(name):
    """Return a look at a setting as the console shows it."""

    def what_the_console_shows_to_be_in_force(world):
        with world.context() as context, serving(create_app(context)) as client:
            told = client.get("/api/v1/settings").json()["settings"]
        [value] = [each["value"] for each in told if each["name"] == name.upper()]
        return value

    return what_the_console_shows_to_be_in_force


for name, value, sees in [
    ("adjuster", "torch", ("passive_aggressive", "torch")),
    ("adjustment_rate", "0.3", (0.1, 0.3)),
    ("num_iterations", "30", (10, 30)),
    ("softmin_temperature", "3", (1.0, 3.0)),
    ("improvement_seconds_interval", "300", (1800, 300)),
    ("max_angle_degrees", "7", (None, 7.0)),
    ("query_shift", "0.3", (1.0, 0.3)),
    ("gate_threshold", "0.8", (0.75, 0.8)),
    ("learn_own_past", "false", (True, False)),
    ("shared_min_users", "7", (0, 7)),
    ("exploration_ratio", "0.5", (0.0, 0.5)),
]:
    acts(name, value, sees=sees)(shown_in_the_console(name))


@acts("recall_target", "0.8", sees=(0.99, 0.8))
def the_target_of_measuring_recall(world):
    with world.context() as context:
        an_arc(context)
    return json.loads(world.command("recall", "--json").stdout)["target"]


@acts("recall_target", "0.8", sees=(0.99, 0.8))
def the_target_of_a_report_of_recall(world):
    with world.context() as context:
        an_arc(context)
        report = Report("r", ReportKind.RECALL, "default", dry_run=True, started_at=0)
        return make(context, report, lambda *_: None)["target"]


@acts("recall_target", "1", sees=(0, 1))
def measuring_recall_for_less_than_all_is_refused(world):
    with world.context() as context:
        an_arc(context)
    return world.command("recall", "--target", "0.9").exit_code


# Which sessions are learnt from


@acts("event_weights", '{"click": 1, "hover": 2}', sees=(0, 1))
def sessions_learnt_from_after_an_event_of_another_type(world):
    with world.postgres() as context:
        an_arc(context)
        shown = context.search.search(at(0), user_id="ann", create_session=True)
        event = SessionEvent(session_id=shown.session_id, object_id="at40", event_type="hover")
        context.clickstream_dao.push_events([event])
        return context.improver().improve_once().learnt


@acts("event_weights", '{"click": 1, "hover": 2}', sees=("other", "hover"))
def the_label_of_an_event_of_another_type(world):
    with world.context() as context, serving(create_app(context)) as client:
        event = {"object_id": "o", "event_type": "hover"}
        client.post(EVENTS, json={"session_id": "s", "events": [event]})
        [counted] = [name for name in samples(client) if name.startswith("embedding_studio_events_total{")]
        return re.search(r'kind="(\w+)"', counted)[1]


@acts("event_weights", '{"click": 1, "hover": 2}', sees=("unknown_type", "accepted"))
def what_becomes_of_an_event_of_another_type(world):
    with world.context() as context, serving(create_app(context)) as client:
        an_arc(context)
        record(context)
        event = {"object_id": "at40", "event_type": "hover"}
        answer = client.post(EVENTS, json={"session_id": "s", "events": [event]})
        return answer.json()["events"][0]["disposition"]


@acts("event_weights", '{"click": 1, "hover": 2}', sees=({"unknown_type": 1}, {"accepted": 1}))
def what_becomes_of_an_imported_event(world):
    with world.context() as context:
        an_arc(context)
    click = {"object_id": "at50", "t": 1_700_000_001, "event_type": "hover"}
    row = {"session_id": "s", "user_id": "ann", "query": "q", "timestamp": 1_700_000_000, "clicks": [click]}
    (world.folder / "log.jsonl").write_text(json.dumps(row))
    report = json.loads(world.command("import", "log.jsonl", "--json").stdout)
    return {name: number for name, number in report["events"].items() if number}


@acts("event_weights", '{"click": 1, "hover": 2}', sees=({"unknown_type": 1}, {"accepted": 1}))
def what_becomes_of_an_event_of_another_type_as_opensearch_sends_it(world):
    with world.context() as context, serving(create_app(context)) as client:
        an_arc(context)
        record(context)
        event = {
            "action_name": "hover",
            "query_id": "s",
            "client_id": "ann",
            "timestamp": 1000 * datetime_utils.utc_timestamp(),
            "event_attributes": {"object": {"object_id": "at40"}},
        }
        return client.post("/ubi_events", json=event).json()["events"]


@acts("max_sessions_per_user", "1", sees=(2, 1))
def sessions_that_bear_on_a_users_search(world):
    with world.context() as context:
        an_arc(context)
        for session_id in ("s1", "s2"):
            record(context, session_id)
        context.improver().improve_once()
        page = context.search.search(at(0), user_id="ann", explain=True)
        return max(len(each.explanation.influences) for each in page.results)


@acts("min_session_seconds", "2", sees=("done", "refused"))
@acts("max_session_clicks", "1", sees=("done", "refused"))
@acts("plugins_path", a_plugin_that_refuses_all, sees=("done", "refused"))
def what_becomes_of_two_clicks_within_a_second(world):
    with world.context() as context:
        an_arc(context)
        record(context, "s", "at30", "at40")
        context.improver().improve_once()
        return status_of(context)


# When


class Recording:
    """A queue that tells how often some were claimed, and when there were none."""

    def __init__(self, queue) -> None:
        self._queue = queue
        self.claims = 0
        self.is_idle = threading.Event()

    def __getattr__(self, name):
        return getattr(self._queue, name)

    def claim(self, **given):
        claim = self._queue.claim(**given)
        self.claims += claim is not None
        if claim is None:
            self.is_idle.set()
        return claim


@contextmanager
def working(context: Context) -> Iterator[Recording]:
    """A worker that has looked for orders, and waits."""
    queue = Recording(context.storage.queue)
    vars(context.storage)["queue"] = queue
    stop = threading.Event()
    worker = threading.Thread(target=context.worker().run, args=(stop,))
    worker.start()
    try:
        assert queue.is_idle.wait(30)
        yield queue
    finally:
        stop.set()
        worker.join()


@acts("improve_on_click", "false", sees=(True, False))
@acts("improvement_seconds_interval", "1", sees=(False, True), improve_on_click="false")
def a_worker_learns_soon(world):
    with world.context() as context:
        an_arc(context)
        with working(context):
            record(context)
            until = time.monotonic() + world.patience_seconds
            while status_of(context) != "done" and time.monotonic() < until:
                time.sleep(0.01)
            return status_of(context) == "done"


@acts("improve_on_click", "false", sees=(1, 0))
def orders_after_a_click(world):
    with world.postgres() as context:
        an_arc(context)
        shown = context.search.search(at(0), user_id="ann", create_session=True)
        context.clickstream_dao.push_events([SessionEvent(session_id=shown.session_id, object_id="at40")])
        return len(context.sessions_for_improvement.list())


@acts("improve_on_click", "false", sees=("WARN", "OK"))
@acts("improvement_seconds_interval", "300", sees=("OK", "WARN"), improve_on_click="false")
def what_the_doctor_thinks_of_an_order_that_waits_for_400_seconds(world):
    with world.context() as context:
        an_arc(context)
        record(context)
        later = datetime_utils.utc_timestamp() + 400
        world.monkeypatch.setattr("embedding_studio.doctor.utc_timestamp", lambda: later)
        [grade] = [each.grade for each in examine(context) if each.what == "pending orders"]
        return grade


@acts("users_per_batch", "1", sees=(1, 2))
def batches_in_which_a_worker_learns_from_two_users(world):
    with world.context() as context:
        an_arc(context)
        for user_id in ("ann", "bob"):
            record(context, f"s-{user_id}", user_id=user_id)
        with working(context) as queue:
            return queue.claims


@acts("users_per_batch", "1", sees=(1, 2))
def batches_in_which_the_command_improve_learns_from_two_users(world):
    with world.context() as context:
        an_arc(context)
        for user_id in ("ann", "bob"):
            record(context, f"s-{user_id}", user_id=user_id)
    world.memory.queue = Recording(world.memory.queue)
    assert world.command("improve").exit_code == 0
    return world.memory.queue.claims


class Failing:
    """An adjuster that a worker does not get past."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def adjust_vectors(self, _):
        raise self.error


def failing(world, error: BaseException) -> Context:
    context = Context(storage=world.memory)
    vars(context)["adjuster_for"] = lambda _: Failing(error)
    an_arc(context)
    record(context)
    with suppress(KeyboardInterrupt):
        context.improver().improve_once()
    return context


@acts("lease_seconds", "1000", sees=(1, 0))
def orders_of_a_dead_worker_that_are_due_after_100_seconds(world):
    failing(world, KeyboardInterrupt())
    context = Context(storage=world.memory)
    return context.improver().improve_once(now=time.time() + 100).users


@acts("backoff_seconds", "1000", sees=(1, 0))
def failed_orders_that_are_due_after_100_seconds(world):
    context = failing(world, RuntimeError("boom"))
    return context.improver().improve_once(now=time.time() + 100).users


@acts("max_attempts", "1", sees=("pending", "failed"))
def what_becomes_of_an_order_that_failed_once(world):
    return status_of(failing(world, RuntimeError("boom")))


# Where things are


@acts("database_url", a_database_with_a_collection, sees=([], ["default"]))
def the_collections_that_are_there(world):
    with Context() as context:
        return [each.name for each in context.storage.collections.list()]


@acts("database_read_url", "postgresql://nobody@127.0.0.1:1/nothing", sees=("0.0", "1.0"))
def how_often_a_replica_was_away(world):
    name = 'embedding_studio_replica_searches_total{outcome="away"} '
    with world.postgres() as context:
        an_arc(context)
        assert context.metrics.service is not None  # it tells its numbers from its first use on
        context.search.search(np.ones(3), limit=1)
        lines = context.metrics.exposition(context.storage).decode().splitlines()
        return next(line.removeprefix(name) for line in lines if line.startswith(name))


@acts("database_url", "postgresql://elsewhere/shop", sees=("beside it", "wherever it is"))
def of_which_disk_the_doctor_tells_where_a_folder_of_the_embedded_server_is_left(world):
    (world.folder / ".embedding-studio" / "postgres").mkdir(parents=True, exist_ok=True)
    with world.context() as context:
        [told] = [each.told for each in examine(context) if each.what == "disk"]
        return re.search(r"beside it|wherever it is", told)[0]


@acts("data_dir", "elsewhere", sees=([".embedding-studio"], ["elsewhere"]))
def the_folder_of_the_embedded_server(world):
    before = set(world.folder.iterdir())
    with Context() as context:
        context.storage.ping()
        return [each.name for each in set(world.folder.iterdir()) - before]


@acts("data_dir", "elsewhere", sees=(".embedding-studio", "elsewhere"))
def the_folder_of_the_demonstration(world):
    with demonstration._context() as context:
        return context.settings.data_dir.parent.name


@acts(
    "attached_stores",
    lambda world: json.dumps({"shop": world.request.getfixturevalue("postgres_server")}),
    sees=(True, False),
)
def a_store_has_no_address(world):
    with world.postgres() as context:
        with pytest.raises(EmbeddingStudioError) as refused:
            context.attach("products", "products", store="shop")
        return str(refused.value).startswith("there is no address of the store 'shop'")


@acts("attached_stores", '{"shop": "qdrant://127.0.0.1:1"}', sees=(422, 409))
def the_status_where_a_store_is_to_be_filled_that_memory_cannot_fill(world):
    with world.context() as context, serving(create_app(context)) as client:
        body = {"name": "films", "index": {"dimensions": 3}, "fill": "shop"}
        return client.post("/api/v1/collections", json=body).status_code


@acts("pool_size", "1", sees=(True, False))
def a_second_connection_is_had_beside_one_that_is_in_use(world):
    with world.postgres() as context:
        an_arc(context)
        answered = threading.Event()

        def ping():
            context.storage.ping()
            answered.set()

        another = threading.Thread(target=ping)
        with context.storage.personal.learning(context.collection(), ["ann"]):
            another.start()
            is_answered = answered.wait(world.patience_seconds)
        another.join()
        return is_answered


@acts(
    "host",
    ANYWHERE,
    sees=(("127.0.0.1", "49151"), (ANYWHERE, "49151")),
    port="49151",
    admin_api_key="key-0123456789-k",
)
@acts("port", "49151", sees=(("127.0.0.1", "8000"), ("127.0.0.1", "49151")))
@acts("admin_api_key", "key-0123456789-k", sees=("refused", (ANYWHERE, "49151")), host=ANYWHERE, port="49151")
def where_the_service_listens(world):
    world.monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    ended = world.command("serve", "--no-worker")
    told = " ".join(ended.stderr.split())
    if "without keys" in told:
        return "refused"
    host, port = re.search(r"(?:cannot listen on |serves on http://)([\d.]+):(\d+)", told).groups()
    return host, port


@acts("serve_processes", "3", sees=(1, 3))
def in_how_many_processes_the_service_answers(world):
    answering = []
    world.monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: answering.append(1))
    world.monkeypatch.setattr(Parent, "run", lambda parent: answering.append(parent.processes))
    world.command("serve", "--no-worker", "--port", "0")
    return sum(answering)


@acts("worker_metrics_port", "49152", sees=("nowhere", ("127.0.0.1", "49152", 200)))
@acts(
    "host",
    ANYWHERE,
    sees=(("127.0.0.1", "49152", 401), (ANYWHERE, "49152", 401)),
    worker_metrics_port="49152",
    admin_api_key="key-0123456789-k",
)
@acts(
    "admin_api_key",
    "key-0123456789-k",
    sees=("refused", (ANYWHERE, "49152", 401)),
    worker_metrics_port="49152",
    host=ANYWHERE,
)
def where_a_worker_tells_its_numbers_and_the_status_of_who_asks_without_a_key(world):
    answered = []

    def run(*_):
        with suppress(httpx.ConnectError):
            answered.append(httpx.get("http://127.0.0.1:49152/metrics").status_code)

    world.monkeypatch.setattr(Worker, "run", run)
    ended = world.command("worker")
    told = " ".join(ended.stderr.split())
    if "without a key" in told:
        return "refused"
    if (found := re.search(r"numbers at http://([\d.]+):(\d+)/metrics", told)) is None:
        return answered or "nowhere"
    return (*found.groups(), *answered)


# Texts


@acts("embedder", an_endpoint, sees=("refused", ["at10"]))
def what_a_text_finds(world):
    with world.context() as context:
        index = SearchIndexInfo(dimensions=3)
        collection = context.storage.collections.create("default", index, embedder="openai:tiny")
        context.storage.objects.upsert(collection, [CatalogueObject("at10", at(10))])
        try:
            return [each.object_id for each in context.search.search("words").results]
        except EmbeddingStudioError:
            return "refused"


def sent_by(world, work):
    """Return what an endpoint was sent by something that embeds, whatever came of it."""
    endpoint = world.request.getfixturevalue("endpoint")
    before = len(endpoint.requests)
    with world.context() as context, suppress(EmbeddingStudioError):
        work(context.embedder)
    return [body for _, _, body in endpoint.requests[before:]]


@acts("embedder_query_prompt", "query: ", sees=("words", "query: words"), embedder=an_endpoint)
def what_an_endpoint_is_sent_for_a_query(world):
    return sent_by(world, lambda embedder: embedder.embed_queries(["words"]))[-1]["input"][0]


@acts("embedder_document_prompt", "passage: ", sees=("words", "passage: words"), embedder=an_endpoint)
def what_an_endpoint_is_sent_for_a_text(world):
    return sent_by(world, lambda embedder: embedder.embed(["words"]))[-1]["input"][0]


@acts("embedder_dimensions", "2", sees=(None, 2), embedder=an_endpoint)
def how_many_dimensions_an_endpoint_is_asked_for(world):
    return sent_by(world, lambda embedder: embedder.embed(["words"]))[-1].get("dimensions")


@acts("embedder_batch_size", "2", sees=(3, 2), embedder=an_endpoint)
def how_many_texts_an_endpoint_is_sent_at_once(world):
    sent = sent_by(world, lambda embedder: embedder.embed(["a", "bb", "ccc"]))
    return max(len(body["input"]) for body in sent)


@acts("embedder_threads", "37", sees=(False, True), embedder="all-MiniLM-L6-v2")
def the_cores_that_a_local_model_uses_are_as_many(world):
    with world.context() as context:
        return context.embedder._threads._max_workers == 37


@acts("embedder_part_characters", "10", sees=(False, True), embedder=an_endpoint)
def a_text_for_an_endpoint_is_split(world):
    with world.context() as context:
        return len(context.embedder.split("one two three four five")) > 1


@acts("embedder_query_seconds", "0.1", sees=(False, True), embedder=an_endpoint)
def a_query_to_an_endpoint_that_hangs_is_given_up_soon(world):
    endpoint = world.request.getfixturevalue("endpoint")
    endpoint.ended.clear()
    endpoint.hangs = True
    asking = threading.Thread(target=what_a_text_finds, args=(world,))
    asking.start()
    asking.join(world.patience_seconds)
    try:
        return not asking.is_alive()
    finally:
        endpoint.ended.set()
        asking.join()
        endpoint.hangs = False


class Hurried:
    """An embedder that notes how long it may take for a query."""

    name, dimensions = "hurried", 3

    def __init__(self) -> None:
        self.seconds: list[float | None] = []

    def embed(self, texts, **_):
        return np.tile(at(0), (len(texts), 1))

    def embed_queries(self, texts, *, seconds=None, **_):
        self.seconds.append(seconds)
        return self.embed(texts)

    def split(self, text):
        return [text]


@acts("embedder_query_seconds", "0.1", sees=([8.0], [0.1]))
def how_long_an_embedder_may_take_for_a_query(world):
    with world.context() as context:
        hurried = context.embedder = Hurried()
        context.index_objects("default", [CatalogueText("a", "words")])
        context.search.search("words")
        return hurried.seconds


@acts("embedder_api_key", "very-secret", sees=(None, "Bearer very-secret"), embedder=an_endpoint)
def what_an_endpoint_is_told_of_who_asks(world):
    with world.context() as context:
        context.embedder.embed(["words"])
    _, authorization, _ = world.request.getfixturevalue("endpoint").requests[-1]
    return authorization


class Meeting:
    """An embedder that waits for another thread to come, though not for ever."""

    name, dimensions = "meeting", 1

    def __init__(self, patience_seconds: float) -> None:
        self._together = threading.Barrier(2, timeout=patience_seconds)

    def embed(self, texts, **_):
        self._together.wait()
        return np.ones((len(texts), 1), dtype=np.float32)

    def split(self, text):
        return [text]


@acts("index_threads", "2", sees=(False, True))
def two_batches_are_embedded_at_once(world):
    with world.context() as context:
        context.embedder = Meeting(world.patience_seconds)
        try:
            texts = [CatalogueText(str(number), "a") for number in range(2 * BATCH_TEXTS)]
            return context.index_objects("default", texts).indexed == 512
        except threading.BrokenBarrierError:
            return False


# Who may call the service, and with how much


@acts("admin_api_key", "key-0123456789-k", sees=(200, 401))
def the_status_of_a_caller_without_a_key(world):
    with world.context() as context, serving(create_app(context)) as client:
        return client.get("/api/v1/collections").status_code


@acts(
    "admin_api_key",
    "key-0123456789-k",
    sees=((None, 200), ("Bearer key-0123456789-k", 200)),
    embedder=an_endpoint,
    port="0",
)
def what_the_demo_sends_and_is_answered(world):
    seen = []

    def run(demo):
        answer = demo._client.get("/api/v1/collections")
        seen.append((answer.request.headers.get("Authorization"), answer.status_code))

    world.monkeypatch.setattr(Demo, "run", run)
    one = Subject("few", "Few", lambda _: iter([CatalogueText("a", "words")]), (), "", "")
    world.monkeypatch.setattr("embedding_studio.cli.demonstration.SUBJECTS", (one,))
    ended = world.command("demo", "--no-keep-serving")
    assert ended.exit_code == 0, ended.output
    return seen[0]


@acts("write_api_key", "key-0123456789-w", sees=((200, 200), (401, 200)))
def the_statuses_of_a_caller_with_a_wrong_key_and_with_the_write_key(world):
    with world.context() as context, serving(create_app(context)) as client:
        an_arc(context)
        return tuple(
            client.post(
                SEARCH, json={"search_query": [1, 0, 0]}, headers={"Authorization": f"Bearer {key}"}
            ).status_code
            for key in ("x", "key-0123456789-w")
        )


def claims_of(user_id, **others):
    return {"sub": user_id, "exp": int(time.time()) + 60, **others}


def signed(**claims):
    return jwt.encode(claims, TOKEN_SECRET, algorithm="HS256")


def status_with(world, token, key="key-0123456789-w", **body):
    """Return the status of a search with a token."""
    with world.context() as context, serving(create_app(context)) as client:
        if not context.storage.collections.list():
            an_arc(context)
        headers = {"Authorization": f"Bearer {key}"} | ({"X-User-Token": token} if token else {})
        return client.post(SEARCH, json={"search_query": [1, 0, 0]} | body, headers=headers).status_code


TOKENS = {"write_api_key": "key-0123456789-w", "user_token_secret": TOKEN_SECRET}


@acts("write_api_key_requires_user_token", "true", sees=(200, 401), **TOKENS)
def the_status_of_the_write_key_that_names_a_user_without_a_token(world):
    return status_with(world, None, user_id="ann")


@acts("user_token_secret", TOKEN_SECRET, sees=(401, 200), write_api_key="key-0123456789-w")
def the_status_of_a_token(world):
    return status_with(world, signed(**claims_of("ann")))


def a_file_of_public_keys(world):
    told = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(PAIR.public_key()))
    (world.folder / "jwks.json").write_text(json.dumps({"keys": [told]}))
    return "jwks.json"


@acts("user_token_secret", TOKEN_SECRET, sees=(1, 0))
@acts("user_token_jwks", a_file_of_public_keys, sees=(1, 0))
def the_exit_status_where_a_key_is_made_that_requires_tokens(world):
    return world.command("keys", "create", "shop", "--scope", "search", "--requires-user-token").exit_code


@acts("admin_api_key", "key-0123456789-k", sees=(None, "equal"), write_api_key="key-0123456789-k")
@acts("write_api_key", "key-0123456789-k", sees=(None, "equal"), admin_api_key="key-0123456789-k")
@acts("user_token_secret", TOKEN_SECRET, sees=(None, "signed in one way"), user_token_jwks="jwks.json")
@acts("user_token_jwks", "jwks.json", sees=(None, "signed in one way"), user_token_secret=TOKEN_SECRET)
@acts("user_token_secret", TOKEN_SECRET, sees=("to check", None), write_api_key_requires_user_token="true")
@acts("user_token_jwks", "jwks.json", sees=("to check", None), write_api_key_requires_user_token="true")
@acts("write_api_key_requires_user_token", "true", sees=(None, "to check"))
def why_the_keys_do_not_agree(world):
    try:
        load_settings()
    except InvalidSettingError as error:
        return re.search("equal|signed in one way|to check", str(error))[0]


@acts("user_token_jwks", a_file_of_public_keys, sees=(401, 200), write_api_key="key-0123456789-w")
def the_status_of_a_token_that_a_private_key_signed(world):
    return status_with(world, jwt.encode(claims_of("ann"), PAIR, algorithm="RS256"))


@acts("user_token_claim", "uid", sees=(403, 200), **TOKENS)
def the_status_of_a_token_that_names_ann_beside_its_subject(world):
    return status_with(world, signed(**claims_of("bob", uid="ann")), user_id="ann")


@acts("user_token_audience", "shop", sees=(200, 401), **TOKENS)
def the_status_of_a_token_for_another_audience(world):
    return status_with(world, signed(**claims_of("ann", aud="games")))


@acts("user_token_issuer", "shop", sees=(200, 401), **TOKENS)
def the_status_of_a_token_of_another_issuer(world):
    return status_with(world, signed(**claims_of("ann", iss="games")))


@acts("key_requests_per_second", "0.1", sees=([200, 200], [200, 429]), **TOKENS)
@acts("user_requests_per_second", "0.1", sees=([200, 200], [200, 429]), **TOKENS)
def the_statuses_of_two_requests_of_a_user(world):
    with world.context() as context, serving(create_app(context)) as client:
        an_arc(context)
        headers = {"Authorization": "Bearer key-0123456789-w", "X-User-Token": signed(**claims_of("ann"))}
        return [
            client.post(SEARCH, json={"search_query": [1, 0, 0]}, headers=headers).status_code
            for _ in range(2)
        ]


@acts("cors_origins", "https://a.example,https://b.example", sees=(None, "https://b.example"))
def the_origin_whose_pages_may_call(world):
    with world.context() as context, serving(create_app(context)) as client:
        answer = client.get("/healthz", headers={"Origin": "https://b.example"})
        return answer.headers.get("Access-Control-Allow-Origin")


@acts("console", "false", sees=(True, False))
def whether_the_page_of_the_demonstration_knows_a_console(world):
    with world.context() as context:
        return demonstration.Stage(context, 0, shown=[]).state()["has_console"]


@acts("admin_api_key", "key-0123456789-k", sees=(False, True))
def whether_the_demonstration_says_that_its_page_asks_for_a_key(world):
    world.monkeypatch.setattr(demonstration, "_fill_behind", lambda _: None)
    world.monkeypatch.setattr(demonstration, "has_desktop", lambda: False)
    with world.context() as context:
        stage = demonstration.Stage(context, 0, shown=[])
        stage.closing.set()
        demonstration._show_page(stage, "http://localhost:1")
    return "ADMIN_API_KEY" in world.request.getfixturevalue("capsys").readouterr().out


@acts("console", "false", sees=(200, 404))
def the_status_of_the_console(world):
    with world.context() as context, serving(create_app(context)) as client:
        return client.get("/console").status_code


@acts("max_request_bytes", "1000", sees=(200, 413))
def the_status_of_a_request_of_1001_bytes(world):
    with world.context() as context, serving(create_app(context)) as client:
        an_arc(context)
        body = json.dumps({"search_query": [1, 0, 0]})
        is_json = {"Content-Type": "application/json"}
        return client.post(SEARCH, content=body.ljust(1001), headers=is_json).status_code


@acts("max_events_per_request", "1", sees=(200, 422))
def the_status_of_two_events_at_once(world):
    with world.context() as context, serving(create_app(context)) as client:
        events = [{"object_id": "a"}, {"object_id": "b"}]
        return client.post(EVENTS, json={"session_id": "s", "events": events}).status_code


@acts("max_events_per_request", "1", sees=(200, 422))
def the_status_of_two_events_at_once_as_opensearch_sends_them(world):
    with world.context() as context, serving(create_app(context)) as client:
        an_arc(context)
        return client.post("/ubi_events", json=[{}, {}]).status_code


@acts("waiting_events", "0", sees=("waiting", "unknown_session"))
def what_becomes_of_an_event_before_its_session(world):
    with world.postgres() as context, serving(create_app(context)) as client:
        answer = client.post(EVENTS, json={"session_id": "s", "events": [{"object_id": "a"}]})
        return answer.json()["events"][0]["disposition"]


@acts("statement_seconds", "0.3", sees=("done", "given up"))
def what_becomes_of_a_statement_of_a_second(world):
    with world.postgres() as context:
        database = context.storage.objects.own.database
        return outcome(lambda: database.read(lambda connection: connection.execute("SELECT pg_sleep(1)")))


@acts("lock_seconds", "0.3", sees=("done", "given up"))
def what_becomes_of_one_that_waits_a_second_for_a_lock(world):
    lock = "SELECT pg_advisory_xact_lock(7)"
    with world.postgres() as context, psycopg.connect(os.environ["DATABASE_URL"]) as other:
        database = context.storage.objects.own.database
        other.execute(lock)
        releasing = threading.Timer(1, other.rollback)
        releasing.start()
        token = WAITER.set(Waiter())
        try:
            return outcome(lambda: database.write(lambda connection: connection.execute(lock)))
        finally:
            WAITER.reset(token)
            releasing.join()


def outcome(work: Callable[[], object]) -> str:
    try:
        work()
    except StorageTimeoutError:
        return "given up"
    return "done"


@acts("log_format", "json", sees=("WARNING shop: closed", {"level": "WARNING", "message": "closed"}))
def a_line_of_the_log(world):
    logging.getLogger().handlers.clear()
    stderr = io.StringIO()
    with redirect_stderr(stderr), opened_context():
        logging.getLogger("shop").warning("closed")
    told = stderr.getvalue().strip()
    if told.startswith("{"):
        return {name: each for name, each in json.loads(told).items() if name in {"level", "message"}}
    return told


@acts("root_path", "/shop", sees=(None, [{"url": "/shop"}]))
def where_clients_are_told_to_ask(world):
    with world.context() as context, serving(create_app(context)) as client:
        return client.get("/openapi.json").json().get("servers")


@acts("request_seconds", "0.2", sees=(True, False))
def half_a_request_is_waited_for(world):
    with world.context() as context, serving(create_app(context)) as client:
        return len(still_open(client, 1)) == 1


@acts("max_connections", "10", sees=(12, 10))
def how_many_connections_stay_open(world):
    with world.context() as context, serving(create_app(context)) as client:
        return len(still_open(client, 12))


def still_open(client: httpx.Client, number: int) -> list[socket.socket]:
    """Return those of some connections with half a request that the service has not closed a second later."""
    at = client.base_url.host, client.base_url.port or 80
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(at)) for _ in range(number)]
        for each in connections:
            each.sendall(b"GET /")
        time.sleep(1)
        return [each for each in connections if not select.select([each], [], [], 0)[0]]
