"""The loop through real processes: a service and a worker apart, the embedded server, HTTP."""

import errno
import json
import os
import signal
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from conftest import new_database
from embedding_studio import SearchResultItem, Session, SessionEvent, SessionForImprovementCreateSchema
from embedding_studio.storage.postgres import PostgresStorage
from processes import command, environment_of, eventually, running, url_in

CATALOGUE = {
    "heat": "Heat conduction in composite slabs",
    "slab": "The temperature of a slab that is heated on one side",
    "wing": "Lift of a wing in the slipstream of a propeller",
    "cone": "Supersonic flow past a cone at an angle of attack",
    "plate": "Buckling of a thin plate under compression",
    "shell": "Vibration of cylindrical shells",
    "nozzle": "Flow separation in an overexpanded rocket nozzle",
}


@pytest.fixture(scope="module")
def indexed(postgres_server):
    """Return a database with the catalogue in it, and what was said when it was indexed."""
    with new_database(postgres_server) as url:
        yield url, index_the_catalogue(environment_of(url))


@pytest.fixture
def environment(postgres_server, indexed):
    """Return the environment of a process whose database is a copy of the indexed one."""
    template = urlsplit(indexed[0]).path.lstrip("/")
    with new_database(postgres_server, template) as url:
        yield environment_of(url)


def index_the_catalogue(environment):
    lines = "".join(json.dumps({"id": each, "text": text}) + "\n" for each, text in CATALOGUE.items())
    indexed = command(environment, "index", "-", "--json", stdin=lines)
    assert indexed.returncode == 0, indexed.stderr
    return json.loads(indexed.stdout)


def ids(client, query, **more):
    answer = client.post("/embeddings/similarity-search", json={"search_query": query, "limit": 7} | more)
    answer.raise_for_status()
    return [each["object_id"] for each in answer.json()["search_results"]]


def test_a_worker_tells_what_it_learnt_until_it_is_told_to_end(environment):
    with running(environment | {"WORKER_METRICS_PORT": "0"}, "worker", ready="ready") as (worker, line):
        url = url_in(line)
        learnt = 'embedding_studio_learning_users_total{outcome="learnt"} 1.0'
        with closing(PostgresStorage(environment["DATABASE_URL"])) as storage:
            session = Session(
                session_id="s", user_id="ann", search_results=(SearchResultItem(object_id="heat"),)
            )
            storage.clickstream.register_session(session, np.ones((1, 384), dtype=np.float32))
            storage.clickstream.push_events([SessionEvent(session_id="s", object_id="heat")])
        exposed = eventually(60, lambda: learnt in (text := httpx.get(url).text) and text)
        worker.send_signal(signal.SIGTERM)
        ended = worker.wait(timeout=30)

    assert ended == 0
    assert 'embedding_studio_learning_sessions_total{outcome="done"} 1.0' in exposed
    assert 'embedding_studio_queue_users{state="waiting"} 0.0' in exposed


def test_a_worker_whose_port_for_numbers_is_taken_ends_with_a_sentence(environment):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ended = command(environment | {"WORKER_METRICS_PORT": port}, "worker")

    assert ended.returncode == 1
    assert f"cannot tell its numbers on 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_click_over_http_changes_this_users_next_search_and_nobody_elses(environment):
    query = "how warm does a slab get"
    with (
        running(environment, "serve", "--no-worker", ready="serves on") as (_, line),
        running(environment, "worker", ready="The worker is ready"),
        httpx.Client(base_url=f"{url_in(line)}/api/v1", timeout=60) as client,
    ):
        shown = client.post(
            "/embeddings/similarity-search",
            json={"search_query": query, "limit": 7, "user_id": "ann", "create_session": True},
        ).json()
        before = [each["object_id"] for each in shown["search_results"]]
        clicked = before[3]
        unrelated_before = ids(client, "rocket engines", user_id="ann")

        events = client.post(
            "/clickstream/session/events",
            json={
                "session_id": shown["session_id"],
                "events": [{"object_id": clicked, "event_type": "click"}],
            },
        )
        after = eventually(60, lambda: (now := ids(client, query, user_id="ann")) != before and now)

        assert events.status_code == 200
        assert after.index(clicked) < before.index(clicked)
        assert sorted(after) == sorted(before)
        assert ids(client, query, user_id="bob") == before
        assert ids(client, query) == before
        assert ids(client, "rocket engines", user_id="ann") == unrelated_before
        order = client.get(f"/improvement/orders/{shown['session_id']}").json()
        assert order["status"] == "done"


def test_one_process_serves_and_learns_and_stops_gracefully(environment):
    query = "how warm does a slab get"
    with (
        running(environment, "serve", ready="serves on") as (process, line),
        httpx.Client(base_url=f"{url_in(line)}/api/v1", timeout=60) as client,
    ):
        shown = client.post(
            "/embeddings/similarity-search",
            json={"search_query": query, "user_id": "ann", "create_session": True},
        ).json()
        before = [each["object_id"] for each in shown["search_results"]]
        client.post(
            "/clickstream/session/events",
            json={"session_id": shown["session_id"], "events": [{"object_id": before[4]}]},
        ).raise_for_status()

        eventually(60, lambda: ids(client, query, user_id="ann") != before)
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=60) == 0


HANGING = """
import pathlib, time
from embedding_studio.plugins import Plugin

class Hangs(Plugin):
    def get_session_filter(self):
        def keep(session):
            pathlib.Path({reached!r}).touch()
            time.sleep(600)
        return keep
"""


@pytest.mark.parametrize("arguments", [("serve",), ("worker",)])
def test_a_process_whose_plugin_hangs_ends_all_the_same(environment, tmp_path, arguments):
    reached, plugin = tmp_path / "reached", tmp_path / "hanging.py"
    plugin.write_text(HANGING.format(reached=str(reached)))
    with running(environment, "serve", "--no-worker", ready="serves on") as (_, line):
        session = {"session_id": "hangs", "user_id": "ann", "search_results": [{"object_id": "1"}]}
        with httpx.Client(base_url=f"{url_in(line)}/api/v1", timeout=60) as client:
            client.post("/clickstream/session", json=session).raise_for_status()
            events = {"session_id": "hangs", "events": [{"object_id": "1"}]}
            client.post("/clickstream/session/events", json=events).raise_for_status()
    told = {"serve": "serves on", "worker": "ready"}[arguments[0]]
    with running(environment | {"PLUGINS_PATH": str(plugin)}, *arguments, ready=told) as (process, _):
        eventually(60, reached.exists)
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=60) == 1


HANGING_EMBEDDER = """
import pathlib, time
from embedding_studio.plugins import Plugin

class Hangs:
    name, dimensions = "hangs", 2

    def embed(self, texts, *, progress=None):
        pathlib.Path({reached!r}).touch()
        time.sleep(600)

    def split(self, text):
        return [text]

class OfHangs(Plugin):
    def get_embedder(self):
        return Hangs()
"""


@pytest.mark.parametrize(("processes", "ended"), [("1", 1), ("2", 0)])
def test_a_service_whose_embedder_hangs_says_so_and_ends_all_the_same(
    environment, tmp_path, processes, ended
):
    reached, plugin = tmp_path / "reached", tmp_path / "hanging.py"
    plugin.write_text(HANGING_EMBEDDER.format(reached=str(reached)))
    environment |= {"PLUGINS_PATH": str(plugin)}
    with (
        running(environment, "serve", "--no-worker", "--processes", processes, ready="serves on") as (
            process,
            line,
        ),
        httpx.Client(base_url=f"{url_in(line)}/api/v1", timeout=60) as client,
        ThreadPoolExecutor() as threads,
    ):
        client.post("/collections", json={"name": "hung", "index": {"dimensions": 2}, "embedder": "hangs"})
        search = {"search_query": "a text", "collection": "hung"}
        asked = threads.submit(client.post, "/embeddings/similarity-search", json=search)
        eventually(60, reached.exists)
        process.send_signal(signal.SIGTERM)
        eventually(10, lambda: is_refused(url_in(line)))

        assert process.poll() is None
        assert process.wait(timeout=60) == ended
        assert "does not come to an end; the process ends without it" in process.stderr.read()
        assert asked.result().status_code >= 500


def is_refused(url):
    at = urlsplit(url)
    with closing(socket.socket()) as caller:
        return caller.connect_ex((at.hostname, at.port)) == errno.ECONNREFUSED


def test_orders_of_a_killed_worker_are_learnt_by_the_next(environment):
    environment |= {"LEASE_SECONDS": "1"}
    with running(environment, "serve", "--no-worker", ready="serves on") as (_, line):
        client = httpx.Client(base_url=f"{url_in(line)}/api/v1", timeout=60)
        query = "how warm does a slab get"
        with client:
            sessions = []
            for n in range(30):
                shown = client.post(
                    "/embeddings/similarity-search",
                    json={"search_query": query, "user_id": f"user-{n}", "create_session": True},
                ).json()
                sessions.append((shown["session_id"], shown["search_results"][3]["object_id"]))
            with running(environment | {"USERS_PER_BATCH": "1"}, "worker", ready="ready") as (worker, _):
                for session_id, object_id in sessions:
                    client.post(
                        "/clickstream/session/events",
                        json={"session_id": session_id, "events": [{"object_id": object_id}]},
                    ).raise_for_status()
                os.killpg(worker.pid, signal.SIGKILL)

            with running(environment, "worker", ready="ready"):
                done = eventually(
                    60, lambda: (n := client.get("/improvement/summary").json()["orders"])["done"] == 30 and n
                )

        assert done["failed"] == done["refused"] == done["processing"] == done["pending"] == 0


def test_index_embeds_only_what_changed(environment, indexed):
    _, first = indexed

    second = index_the_catalogue(environment)

    assert (first["indexed"], first["unchanged"]) == (7, 0)
    assert (second["indexed"], second["unchanged"]) == (0, 7)


def test_search_prints_json_for_machines_and_a_table_for_people(environment):
    for_machines = command(environment, "search", "rocket engine", "--limit", "1", "--json")
    for_people = command(environment, "search", "rocket engine", "--limit", "1")

    assert json.loads(for_machines.stdout)["results"][0]["object_id"] == "nozzle"
    assert "nozzle" in for_people.stdout


def test_the_gate_is_fitted_shown_and_set_back(environment):
    with closing(PostgresStorage(environment["DATABASE_URL"])) as storage:
        for number, query in enumerate(np.random.default_rng(3).normal(size=(100, 384))):
            session = Session(session_id=f"s{number}", search_query=f"query {number}", created_at=number)
            storage.clickstream.register_session(session, query.astype(np.float32)[None])

        tuned = json.loads(command(environment, "tune", "--json").stdout)
        told = command(environment, "tune", "default", "--reset", "--dry-run")
        held = storage.collections.get("default").gate_threshold
        reset = json.loads(command(environment, "tune", "--reset", "--json").stdout)
        then = storage.collections.get("default").gate_threshold

    assert (tuned["before"], tuned["after"], tuned["queries"], tuned["is_stored"]) == (None, held, 100, True)
    assert held == pytest.approx(0.7, abs=0.01)  # at right angles in the median
    assert "0.75 (GATE_THRESHOLD)" in told.stdout
    assert (reset["before"], reset["after"], then) == (held, None, None)


def test_everyone_is_learnt_anew_on_demand(environment):
    with closing(PostgresStorage(environment["DATABASE_URL"])) as storage:
        query = np.eye(1, 384, dtype=np.float32)
        for user_id in ("ann", "bob"):
            session = Session(
                session_id=f"anew-{user_id}",
                user_id=user_id,
                search_query="everyone",
                search_results=[SearchResultItem(object_id="nozzle"), SearchResultItem(object_id="slab")],
                events=[SessionEvent(session_id=f"anew-{user_id}", object_id="slab")],
            )
            storage.clickstream.register_session(session, query)
            storage.orders.create(SessionForImprovementCreateSchema(session_id=session.session_id))

        first, idle, anew = (
            json.loads(command(environment, "improve", *options, "--json").stdout)["users"]
            for options in ((), (), ("--everyone",))
        )

    assert first >= 2
    assert idle == 0
    assert anew >= 2


@pytest.mark.parametrize(
    ("arguments", "more", "told"),
    [
        (["search", "x", "-c", "absent"], {}, "absent"),
        (["index", "absent.csv"], {}, "absent.csv"),
        (["tune"], {}, "fitting the gate needs 100"),
        (["search", "x", "--filter", '{"query": {"trem": 1}}'], {}, "is no kind of query"),
        (["serve", "--host", "0.0.0.0"], {}, "set ADMIN_API_KEY"),  # noqa: S104, that is what is refused
        (["settings"], {"GATE_THRESHOLD": "2"}, "GATE_THRESHOLD"),
        (["collections"], {"DATABASE_URL": "postgresql://localhost:1/none"}, "localhost"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_sentence_and_exits_with_1(environment, arguments, more, told):
    ended = command(environment | more, *arguments)

    assert ended.returncode == 1
    assert told in ended.stderr.replace("\n", " ")
    assert "Traceback" not in ended.stderr


def test_a_service_survives_the_death_of_its_embedded_server_and_loses_nothing():
    with tempfile.TemporaryDirectory(prefix="embedding-studio-killed-") as folder:
        Path(folder).chmod(0o755)  # as root the server runs as somebody else, who must get in
        environment = environment_of("") | {"DATA_DIR": f"{folder}/data", "EMBEDDER": "none"}
        with (
            running(environment, "serve", ready="serves on") as (_, line),
            httpx.Client(base_url=f"{url_in(line)}/api/v1", timeout=120) as client,
        ):
            client.post(
                "/collections", json={"name": "default", "index": {"dimensions": 2}}
            ).raise_for_status()
            item = {"object_id": "kept", "vectors": [[1.0, 0.0]]}
            client.post("/embeddings/upsert", json={"items": [item]}).raise_for_status()
            assert ids(client, [1.0, 0.5]) == ["kept"]

            postmaster = int(Path(f"{folder}/data/postgres/postmaster.pid").read_text().split()[0])
            os.kill(postmaster, signal.SIGKILL)

            found = eventually(60, lambda: answered(client, [1.0, 0.5]))
            assert found == ["kept"]


def answered(client, query):
    """Return what is found, or None while the service cannot answer."""
    body = {"search_query": query, "limit": 1}
    answer = client.post("/embeddings/similarity-search", json=body)
    return [each["object_id"] for each in answer.json()["search_results"]] if answer.is_success else None
