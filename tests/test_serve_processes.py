"""A service of several processes: ``serve --processes``."""

import http.client
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import jwt
import numpy as np
import pytest

from embedding_studio import CatalogueObject, SearchIndexInfo
from embedding_studio.bootstrap import Context
from embedding_studio.cli.processes import WORKER, Parent, _Process
from embedding_studio.cli.succession import Succession
from embedding_studio.storage.postgres import PostgresStorage
from processes import command, environment_of, eventually, running, url_in

KEY = "key-0123456789-0123456789-k"
SEARCH = "/api/v1/embeddings/similarity-search"
QUERY = {"search_query": [1.0, 0.0], "limit": 5}
DEGREES = (10, 20, 30, 40, 50)


@pytest.fixture
def environment(postgres_url):
    """Return the environment of a service with some objects, of which nothing has to be embedded."""
    with closing(PostgresStorage(postgres_url)) as storage:
        collection = storage.collections.create("default", SearchIndexInfo(dimensions=2))
        arc = {f"at{each}": [np.cos(np.radians(each)), np.sin(np.radians(each))] for each in DEGREES}
        objects = [CatalogueObject(name, np.array([at], dtype=np.float32)) for name, at in arc.items()]
        storage.objects.upsert(collection, objects)
    return environment_of(postgres_url) | {"EMBEDDER": "none", "ADMIN_API_KEY": KEY}


class Caller:
    """Asks a service, each time over a new connection."""

    def __init__(self, url):
        self.url = url

    def __call__(self, method, path, *, token=None, **more):
        headers = {"Authorization": f"Bearer {KEY}"} | ({"X-User-Token": token} if token else {})
        return httpx.request(method, f"{self.url}{path}", headers=headers, timeout=120, **more)

    def processes(self):
        """Return the names of those that tell their numbers."""
        return set(re.findall(r'process="(\w+)"', self("GET", "/metrics").text))

    def are_all_there(self, *names):
        return eventually(120, lambda: self.processes() == set(names))


def children_of(process_id):
    told = Path(f"/proc/{process_id}/task/{process_id}/children")
    return [int(each) for each in told.read_text().split()]


def test_searches_are_answered_and_clicks_learnt_whichever_process_is_killed(environment):
    with running(environment, "serve", "--processes", "2", ready="serves on") as (service, line):
        ask = Caller(url_in(line))
        ask.are_all_there("1", "2", WORKER)
        for killed in children_of(service.pid):
            os.kill(killed, signal.SIGKILL)
            answers = [ask("POST", SEARCH, json=QUERY) for _ in range(20)]
            eventually(120, lambda: len(children_of(service.pid)) == 3)
            ask.are_all_there("1", "2", WORKER)

            assert [each.status_code for each in answers] == [200] * 20
            assert killed not in children_of(service.pid)

        shown = ask("POST", SEARCH, json={**QUERY, "user_id": "ann", "create_session": True}).json()
        before = [each["object_id"] for each in shown["search_results"]]
        event = {"session_id": shown["session_id"], "events": [{"object_id": before[3]}]}
        ask("POST", "/api/v1/clickstream/session/events", json=event).raise_for_status()
        eventually(60, lambda: ask("POST", SEARCH, json={**QUERY, "user_id": "ann"}).json()["personalised"])

        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0


def test_the_processes_of_a_parent_that_is_killed_end_and_let_go_of_the_port(environment):
    with running(environment, "serve", "--processes", "2", ready="serves on") as (service, line):
        ask = Caller(url_in(line))
        ask.are_all_there("1", "2", WORKER)
        orphans = killed(service)
        port = urlsplit(ask.url).port

        eventually(60, lambda: not any(map(is_alive, orphans)))
        eventually(60, lambda: can_be_bound(port))
    assert len(orphans) == 3


def test_the_processes_of_a_parent_that_is_killed_answer_until_another_service_does(environment):
    with (
        ThreadPoolExecutor(1) as threads,
        running(environment, "serve", "--processes", "2", ready="serves on") as (first, line),
    ):
        ask = Caller(url_in(line))
        ask.are_all_there("1", "2", WORKER)
        again = ("serve", "--port", str(urlsplit(ask.url).port), "--processes")
        is_over = threading.Event()

        def answers():
            return [ask("POST", SEARCH, json=QUERY).status_code for _ in iter(is_over.is_set, True)]

        answered = threads.submit(answers)
        early = command(environment, *again, "2")
        orphans = killed(first)
        with running(environment, *again, "2", ready="serves on") as (second, _):
            eventually(60, lambda: not any(map(is_alive, orphans)))
            ask.are_all_there("1", "2", WORKER)
            orphans = killed(second)
            with running(environment, *again, "1", ready="serves on"):
                eventually(60, lambda: not any(map(is_alive, orphans)))
                is_over.set()
                answered = answered.result()

    assert early.returncode == 1
    assert "choose another PORT" in early.stderr.replace("\n", " ")
    assert set(answered) == {200}


def killed(service):
    """Kill the parent of a service, wait for the end of what it says, and return its processes."""
    orphans = children_of(service.pid)
    service.kill()
    service.wait()
    service.stderr.read()
    return orphans


def test_a_process_that_is_killed_is_restarted_where_whoever_started_the_service_ignores_such_ends(
    environment,
):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as some supervisors do; a program inherits it
    with running(environment, "serve", "--processes", "2", ready="serves on") as (service, line):
        signal.signal(signal.SIGCHLD, before)
        ask = Caller(url_in(line))
        ask.are_all_there("1", "2", WORKER)
        second = children_of(service.pid)[1]
        os.kill(second, signal.SIGKILL)
        eventually(60, lambda: second not in children_of(service.pid))

        ask.are_all_there("1", "2", WORKER)
        assert len(children_of(service.pid)) == 3


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_first_process_that_is_told_to_end_before_it_serves_is_restarted(environment, end):
    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(end_the_first_process, end)
        with running(environment, "serve", "--processes", "2", ready="serves on") as (service, line):
            Caller(url_in(line)).are_all_there("1", "2", WORKER)

            assert ended.result() not in children_of(service.pid)


def end_the_first_process(end):
    """End what a child of this process, which is a service, forks first; return which that was."""
    first = eventually(60, lambda: [each for one in children_of(os.getpid()) for each in children_of(one)])
    os.kill(first[0], end)
    return first[0]


def test_a_service_whose_terminal_is_closed_ends_as_by_sigterm(environment):
    with running(environment, "serve", "--processes", "2", ready="serves on") as (service, line):
        Caller(url_in(line)).are_all_there("1", "2", WORKER)
        processes = children_of(service.pid)
        service.send_signal(signal.SIGHUP)

        assert service.wait(60) == 0
        assert not any(map(is_alive, processes))


def test_a_service_goes_on_where_a_process_cannot_be_restarted_just_now(environment):
    with running(environment, "serve", "--processes", "2", ready="serves on") as (service, line):
        ask = Caller(url_in(line))
        ask.are_all_there("1", "2", WORKER)
        files = resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (3, 1024))
        os.kill(children_of(service.pid)[1], signal.SIGKILL)
        eventually(60, lambda: "cannot be started just now: [Errno 24]" in service.stderr.readline())
        answer = ask("POST", SEARCH, json=QUERY)
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (1024, 1024))

        assert files[0] > 3
        assert answer.status_code == 200
        ask.are_all_there("1", "2", WORKER)


def test_a_process_that_fails_for_a_day_is_started_again_every_half_minute():
    failing = _Process("2")

    with socket.socket() as listening:
        parent = Parent(
            Context(), Succession(listening, None, (0, 0)), "http://127.0.0.1:8000", 2, learns=True
        )
        for _ in range(2 * 60 * 24):
            parent._put_off(failing)

    assert failing.due_at - time.monotonic() == pytest.approx(30, abs=5)


def test_processes_share_what_their_parent_imported_and_it_has_no_thread_when_it_forks_them(environment):
    environment |= {"OTEL_TRACES_EXPORTER": "console"}
    with running(environment, "serve", "--processes", "2", ready="serves on") as (service, line):
        Caller(url_in(line)).are_all_there("1", "2", WORKER)
        started_as = {started_by(each) for each in [service.pid, *children_of(service.pid)]}
        threads = list(Path(f"/proc/{service.pid}/task").iterdir())

    assert len(started_as) == 1
    assert len(threads) == 1


def started_by(process_id):
    return Path(f"/proc/{process_id}/cmdline").read_bytes()


def test_a_service_starts_without_what_few_services_need():
    program = (
        "import sys\n"
        "from embedding_studio.cli import learning, processes, serving\n"
        "from embedding_studio.api import app, connections\n"
        "heavy = ('httpx', 'jwt', 'pygments', 'onnxruntime', 'embedding_studio.storage.qdrant')\n"
        "print([name for name in heavy if name in sys.modules])"
    )

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert ran.stdout == "[]\n"


def is_alive(process_id):
    with suppress(ProcessLookupError, FileNotFoundError):
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def can_be_bound(port):
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            bound.bind(("127.0.0.1", port))
            return True
    return False


def test_what_one_process_counts_or_keeps_all_know(environment):
    secret = "a-secret-of-who-signs-users-in-0123456789"  # noqa: S105
    environment |= {"USER_REQUESTS_PER_SECOND": "1", "USER_TOKEN_SECRET": secret, "SERVE_PROCESSES": "2"}
    ann = jwt.encode({"sub": "ann", "exp": 2**31}, secret, "HS256")
    with running(environment, "serve", "--no-worker", ready="serves on") as (_, line):
        ask = Caller(url_in(line))
        ask.are_all_there("1", "2")

        report = ask("POST", "/api/v1/reports", json={"kind": "recall"}).json()["report_id"]
        kept = [ask("GET", f"/api/v1/reports/{report}").status_code for _ in range(10)]
        absent = ask("GET", "/api/v1/reports/absent")
        dotted = [asked_as_it_stands(ask.url, "/api/v1/reports/../keys") for _ in range(10)]
        began = time.monotonic()
        with ThreadPoolExecutor(6) as threads:
            answers = list(threads.map(lambda _: ask("POST", SEARCH, token=ann, json=QUERY), range(60)))
        seconds = time.monotonic() - began

    assert kept == [200] * 10
    assert dotted == [404] * 10
    assert absent.json()["detail"].startswith("no report 'absent' is kept here")
    assert [each.status_code for each in answers].count(200) <= 10 + seconds + 1  # a second, ten at once
    assert {each.status_code for each in answers} == {200, 429}


def asked_as_it_stands(url, path):
    at = urlsplit(url)
    with closing(http.client.HTTPConnection(at.hostname, at.port, timeout=120)) as connection:
        connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
        return connection.getresponse().status


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"DATABASE_URL": "postgresql://localhost:1/none"}, "localhost"),
        ({"ADJUSTER": "none"}, "ADJUSTER"),
        ({"USER_TOKEN_JWKS": "/absent.json"}, "/absent.json"),
        ({"PLUGINS_PATH": "/absent.py"}, "/absent.py"),
    ],
)
def test_what_keeps_processes_from_starting_is_told_once_and_ends_the_service(environment, more, told):
    ended = command(environment | more, "serve", "--processes", "3")

    assert ended.returncode == 1
    assert ended.stderr.count("error: ") == 1
    assert told in ended.stderr.replace("\n", " ")
    assert "Traceback" not in ended.stderr
