"""The service as a whole: what every route shares. ``test_api_routes.py`` holds each route's own contract."""

import asyncio
import gzip
import hashlib
import json
import logging
import re
import socket
import ssl
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from prometheus_client import CollectorRegistry, generate_latest
from starlette.requests import Request

from conftest import listening_socket
from embedding_studio import SearchIndexInfo, Session, errors
from embedding_studio.api import connections, static
from embedding_studio.api.app import STATUSES, create_app
from embedding_studio.api.border import Answers, BodyLimit
from embedding_studio.bootstrap import Context
from embedding_studio.domain.keys import Scope, new_key
from embedding_studio.settings import Settings
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import CodesInfo, QueueInfo, Storage
from embedding_studio.telemetry.metrics import ServiceMetrics

SEARCH = "/api/v1/embeddings/similarity-search"
SESSION = "/api/v1/clickstream/session"
EVENTS = "/api/v1/clickstream/session/events"

NO_TLS = ssl.SSLContext(
    ssl.PROTOCOL_TLS_CLIENT
)  # httpx would load every certificate there is for each client

PLUGIN = '''
import numpy as np

class CountsLetters:
    """Embeds a text by how often it holds the letters a, b and c; a text without any is all three."""

    name = "letters"
    dimensions = 3

    def embed(self, texts, *, progress=None):
        counts = np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float32)
        counts[~counts.any(axis=1)] = 1
        return counts.reshape(-1, 3)

    def split(self, text):
        return [text]

class LettersPlugin:
    def get_embedder(self):
        return CountsLetters()
'''


def letters_context(folder: Path, storage: Storage | None = None, **settings: Any) -> Context:
    """Return a context over memory whose embedder counts letters; with ``embedder="none"`` it has none."""
    if settings.get("embedder") != "none":
        settings["plugins_path"] = folder / "letters.py"
        settings["plugins_path"].write_text(PLUGIN)
    return Context(Settings(_env_file=None, **settings), storage=storage or MemoryStorage())


@contextmanager
def serving(app: FastAPI) -> Iterator[httpx.Client]:
    """Serve an app by HTTP on a free port, as ``embedding-studio serve`` does."""
    listening = listening_socket()
    server = connections.server(app, app.state.context.settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    host, port = listening.getsockname()
    try:
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=30, verify=NO_TLS) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture
def make_context(tmp_path):
    return partial(letters_context, tmp_path)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    app = create_app(letters_context(tmp_path_factory.mktemp("plugins")))
    with serving(app) as client:
        yield app, client


@pytest.fixture
def client(service, make_context):
    app, client = service
    app.state.context = make_context()  # with a storage of its own, for starting a server takes long
    return client


def problem_of(answer: httpx.Response) -> dict:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["instance"] == answer.url.raw_path.decode().partition("?")[0]
    assert set(problem) <= {"type", "title", "status", "detail", "instance", "errors", "parts"}
    return problem


def pointers_of(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 422, answer.text
    return [found["pointer"] for found in problem_of(answer)["errors"]]


# Problems


def test_an_unknown_path_is_a_problem(client):
    answer = client.get("/api/v2/nothing")

    assert answer.status_code == 404
    assert problem_of(answer) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "Not Found",
        "instance": "/api/v2/nothing",
    }


def test_a_wrong_method_is_a_problem_that_names_the_right_ones(client):
    answer = client.put(SEARCH, json={})

    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert problem_of(answer)["title"] == "Method Not Allowed"
    assert client.delete(SESSION).headers["allow"] == "GET, POST, HEAD"
    assert client.put("/api/v1/improvement/orders/s1/retry").headers["allow"] == "GET, POST, DELETE, HEAD"


def test_a_missing_thing_is_named_in_the_type_and_in_the_sentence(client):
    answer = client.get(SESSION, params={"session_id": "gone"})

    assert answer.status_code == 404
    problem = problem_of(answer)
    assert problem["type"] == "urn:embedding-studio:session-not-found"
    assert problem["title"] == "Session not found"
    assert "gone" in problem["detail"]


def test_every_wrong_field_is_pointed_at(client):
    answer = client.post(
        SESSION, json={"session_id": "", "created_at": -1, "search_results": [{"rank": 0.5}]}
    )

    assert sorted(pointers_of(answer)) == ["#/created_at", "#/search_results/0/object_id", "#/session_id"]
    assert answer.json()["type"] == "urn:embedding-studio:invalid-input"


def test_an_unknown_field_is_refused_at_any_depth(client):
    answer = client.post(
        SEARCH, json={"search_query": "a", "sort_by": {"field": "x", "ordre": "asc"}, "limti": 3}
    )

    assert sorted(pointers_of(answer)) == ["#/limti", "#/sort_by/ordre"]


def test_a_pointer_escapes_what_a_field_name_may_hold(client):
    answer = client.post(SEARCH, json={"search_query": "a", "a/b~c é": 1})

    assert pointers_of(answer) == ["#/a~1b~0c%20%C3%A9"]  # RFC 6901, sections 3 and 6


def test_a_wrong_parameter_is_named(client):
    answer = client.get("/api/v1/improvement/orders", params={"limit": 0, "status": "lost"})

    assert answer.status_code == 422
    assert [found["parameter"] for found in problem_of(answer)["errors"]] == ["status", "limit"]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"search_query": ', "the body is not JSON"),
        (b"[" * 10_000, "the body is not JSON"),
        (b'{"search_query": "\xff"}', "the body is not JSON"),
        (b'{"limit": ' + b"9" * 5_000 + b"}", "the body is not JSON: a number of 5,000 digits; write one of"),
    ],
)
def test_a_body_that_cannot_be_read_is_the_callers_fault(client, body, detail):
    answer = client.post(SEARCH, content=body, headers={"content-type": "application/json"})

    assert answer.status_code in {400, 422}
    assert detail in problem_of(answer)["detail"]


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        (EVENTS, b"[]", "#: a JSON object is needed"),
        (EVENTS, b'{"session_id": "s", "events": [1]}', "#/events/0: a JSON object is needed"),
        (EVENTS, b'{"session_id": "s", "events": {}}', "#/events: a list is needed"),
        (SESSION, b'{"session_id": "s", "search_results": ["a"]}', "#/search_results/0: a JSON object is"),
        (SESSION, b'{"session_id": "s", "search_meta": 1}', "#/search_meta: a JSON object is needed"),
        (SESSION, b'{"session_id": "half \\ud83d"}', "#/session_id: a text may not hold half a surrogate"),
        (SESSION, b'{"session_id": ""}', "#/session_id: String should have at least 1 character"),
        (EVENTS, b'{"session_id": "s", "events": [{"object_id": "a", "event_type": ""}]}', "at least 1 char"),
        (
            SESSION,
            b'{"session_id":"s","search_results":[' + b'{"object_id":"a"},' * 20_000 + b"{}]}",
            "give at most 10,000 items",
        ),
    ],
)
def test_a_wrong_body_is_told_so_in_words_of_json(client, path, body, told):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})

    assert pointers_of(answer)
    assert told in answer.json()["detail"]


def test_a_packed_body_is_told_to_be_sent_as_it_is(client):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}

    answer = client.post(EVENTS, content=gzip.compress(b'{"session_id": "s", "events": []}'), headers=headers)

    assert answer.status_code == 415
    assert "content-encoding: gzip" in problem_of(answer)["detail"]


def test_of_thousands_of_wrong_items_the_first_is_pointed_at(client):
    answer = client.post("/api/v1/embeddings/delete", json={"object_ids": ["a", "b"] + [0] * 5_000})

    assert pointers_of(answer) == ["#/object_ids/2"]


def test_every_error_has_its_status_and_what_is_our_fault_tells_nothing_of_the_inside(make_context):
    app = create_app(make_context())
    kinds = {kind.__name__: kind for kind in STATUSES}

    @app.get("/fail/{name}")
    def fail(name: str) -> None:
        raise kinds[name]("the secret is 1234")

    with serving(app) as client:
        answers = {kind: client.get(f"/fail/{kind.__name__}") for kind in STATUSES}

    assert {kind: answer.status_code for kind, answer in answers.items()} == STATUSES
    for answer in answers.values():
        assert ("1234" in problem_of(answer)["detail"]) == (answer.status_code < 500)
    waits = {kind: answer.headers.get("retry-after") for kind, answer in answers.items()}
    assert {kind: wait for kind, wait in waits.items() if wait} == {
        errors.StorageUnavailableError: "1",
        errors.EmbedderUnavailableError: "1",
        errors.StorageTimeoutError: "5",
        errors.AttachedUnavailableError: "5",
        errors.StorageNotWritableError: "30",
    }


def test_every_error_of_the_package_has_a_status():
    of_the_package = [
        each
        for each in vars(errors).values()
        if getattr(each, "__module__", "") == errors.__name__ and isinstance(each, type)
    ]

    assert len(of_the_package) > 15
    for kind in of_the_package:
        assert any(parent in STATUSES for parent in kind.__mro__)


def test_an_unforeseen_failure_is_a_problem_without_internals_and_is_logged_under_its_id(
    make_context, caplog
):
    app = create_app(make_context())

    @app.get("/fail")
    def fail() -> None:
        raise ZeroDivisionError("postgresql://admin:secret@db")

    with serving(app) as client:
        answer = client.get("/fail", headers={"X-Request-ID": "night-1"})
        after = client.get("/healthz")

    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "ZeroDivision" not in answer.text
    assert "night-1" in problem_of(answer)["detail"]
    assert answer.headers["x-request-id"] == "night-1"
    assert after.status_code == 200
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert ["night-1" in record.getMessage() and record.exc_info is not None for record in logged] == [True]


def test_a_failure_half_way_through_an_answer_is_not_hidden(make_context):
    app = create_app(make_context())

    def halves() -> Iterator[bytes]:
        yield b"one half"
        raise ZeroDivisionError

    @app.get("/half")
    def half() -> StreamingResponse:
        return StreamingResponse(halves())

    with serving(app) as client, pytest.raises(httpx.RemoteProtocolError):
        client.get("/half")


def test_head_is_answered_as_get_without_the_body(client):
    for path in ("/healthz", "/readyz", "/openapi.json", "/nothing"):
        asked, told = client.head(path), client.get(path)

        assert (asked.status_code, asked.content) == (told.status_code, b"")
        assert asked.headers["content-length"] == told.headers["content-length"]


@pytest.mark.parametrize("sent", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_does_not_say_that_it_is_json_is_told_what_to_say(client, sent):
    headers = {} if sent is None else {"content-type": sent}

    answer = client.post(SEARCH, content=b'{"search_query": "a"}', headers=headers)

    assert answer.status_code == 415
    assert "content-type: application/json" in problem_of(answer)["detail"]


@pytest.mark.parametrize("sent", ["text/plain;charset=UTF-8", "application/json; charset=utf-8"])
def test_events_may_come_as_a_beacon_sends_them(client, sent):
    for path, body in (
        (EVENTS, {"session_id": "s", "events": []}),
        ("/api/v1/clickstream/events", {"events": []}),
    ):
        answer = client.post(path, content=json.dumps(body).encode(), headers={"content-type": sent})

        assert answer.status_code == 200, answer.text


def test_what_is_sent_is_not_sent_back_as_a_whole(client):
    long = "x" * 100_000
    for body in ({long: 1, "search_query": "a"}, {"search_query": "a", "filter": {"query": {long: long}}}):
        answer = client.post(SEARCH, json=body)

        assert answer.status_code == 422
        assert len(answer.content) < 3_000


def test_browsers_are_told_to_guess_nothing_and_to_frame_nothing(client):
    for answer in (client.get("/healthz"), client.get("/nothing"), client.post(SEARCH, json={})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")


# Request ids


def test_a_request_id_is_echoed(client):
    assert (
        client.get("/healthz", headers={"X-Request-ID": "web-7.a:b_c"}).headers["x-request-id"]
        == "web-7.a:b_c"
    )


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129, "a;b", "<script>"])
def test_without_a_harmless_request_id_one_is_made(client, given):
    answer = client.get("/nothing", headers={} if given is None else {"X-Request-ID": given})

    assert str(uuid.UUID(answer.headers["x-request-id"])) == answer.headers["x-request-id"]


# Size


def test_a_body_that_announces_too_much_is_refused_with_the_limit(make_context):
    with serving(create_app(make_context(max_request_bytes=1_000))) as client:
        answer = client.post(SEARCH, json={"search_query": "a" * 1_000})

    assert answer.status_code == 413
    assert "1000 bytes" in problem_of(answer)["detail"]
    assert "x-request-id" in answer.headers


def test_a_body_that_announces_nothing_is_refused_when_it_grows_too_large(make_context):
    def chunks() -> Iterator[bytes]:
        yield b'{"search_query": "'
        for _ in range(10):
            yield b"a" * 200

    with serving(create_app(make_context(max_request_bytes=1_000))) as client:
        answer = client.post(SEARCH, content=chunks(), headers={"content-type": "application/json"})

    assert answer.status_code == 413


def test_a_body_in_chunks_within_the_limit_is_read_whole(client):
    whole = json.dumps({"session_id": "s1", "search_query": "é" * 3_000, "collection": "none"}).encode()
    chunks = (whole[start : start + 701] for start in range(0, len(whole), 701))

    answer = client.post(SESSION, content=chunks, headers={"content-type": "application/json"})

    assert problem_of(answer)["type"] == "urn:embedding-studio:collection-not-found"


def test_a_caller_who_hangs_up_before_the_end_of_a_body_is_not_served():
    served, sent = [], []
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    heard = iter(messages)

    async def receive() -> dict:
        return next(heard)

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, _: Any) -> None:
        served.append(await Request(scope, receive).body())

    scope = {"type": "http", "method": "POST", "headers": [], "path": SEARCH}
    within = BodyLimit(app, max_request_bytes=1_000)
    asyncio.run(Answers(within, ServiceMetrics(), search_path="")(scope, receive, send))

    assert (served, sent) == ([], [])


# Keys

OPEN = {"get_health", "get_readiness"}
FOR_THE_WRITE_KEY = {
    *("similarity_search", "rank_candidates", "mark_session_irrelevant", "take_back_events"),
    *("register_session", "record_sessions", "push_events", "push_events_of_sessions"),
    *("push_algolia_events", "push_ubi_events", "push_ubi_queries"),
}
KEYS = {"admin_api_key": "admin-7f3a-0123456789", "write_api_key": "write-é9-0123456789"}


def operations(client: httpx.Client) -> dict[str, tuple[str, str]]:
    """operation_id -> (method, path), of every route there is."""
    paths = client.get("/openapi.json").json()["paths"]
    return {
        operation["operationId"]: (method.upper(), re.sub(r"\{.*?\}", "x", path))
        for path, methods in paths.items()
        for method, operation in methods.items()
    }


def statuses(client: httpx.Client, key: str | None) -> dict[str, int]:
    headers = {} if key is None else {b"Authorization": f"Bearer {key}".encode()}
    return {
        name: client.request(method, path, headers=headers).status_code
        for name, (method, path) in operations(client).items()
    }


def test_without_a_key_only_health_is_open(make_context):
    with serving(create_app(make_context(**KEYS))) as client:
        seen = statuses(client, None)

    assert {name for name, status in seen.items() if status != 401} == OPEN


def test_an_unknown_key_opens_nothing(make_context):
    with serving(create_app(make_context(**KEYS))) as client:
        for key in ("wrong", "admin-7f3a-012345678", "admin-7f3a-0123456789a", "ADMIN-7F3A-0123456789", "é"):
            seen = statuses(client, key)
            assert {name for name, status in seen.items() if status not in {401, 429}} == OPEN


def test_a_key_is_looked_at_before_the_body(make_context):
    head = (
        f"POST {SEARCH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
    )
    with serving(create_app(make_context(**KEYS))) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10) as raw:
            raw.sendall(head.encode())  # and nothing of the body
            answered = raw.recv(12)
        no_json = client.post(SEARCH, content=b"{", headers={"content-type": "application/json"})

    assert answered == b"HTTP/1.1 401"
    assert no_json.status_code == 401


def test_the_write_key_searches_and_sends_and_reads_nothing(make_context):
    with serving(create_app(make_context(**KEYS))) as client:
        seen = statuses(client, KEYS["write_api_key"])

    assert 401 not in seen.values()
    assert {name for name, status in seen.items() if status != 403} == OPEN | FOR_THE_WRITE_KEY


def test_the_admin_key_opens_everything(make_context):
    with serving(create_app(make_context(**KEYS))) as client:
        seen = statuses(client, KEYS["admin_api_key"])

    assert len(seen) > 15
    assert not {401, 403} & set(seen.values())


def test_with_an_admin_key_alone_nothing_else_opens(make_context):
    with serving(create_app(make_context(admin_api_key="admin-7f3a-0123456789"))) as client:
        assert client.post(SEARCH, json={"search_query": "a"}).status_code == 401
        allowed = client.get("/metrics", headers={"Authorization": "Bearer admin-7f3a-0123456789"})

    assert allowed.status_code == 200


def test_without_keys_the_service_is_open(client):
    assert not {401, 403} & set(statuses(client, None).values())


def test_a_refused_key_is_told_what_to_send(make_context):
    with serving(create_app(make_context(**KEYS))) as client:
        missing = client.get("/metrics")
        basic = client.get("/metrics", headers={"Authorization": "Basic dTpw"})
        unknown = client.get("/metrics", headers={"Authorization": "Bearer wrong"})
        write = f"Bearer {KEYS['write_api_key']}".encode()
        narrow = client.get("/metrics", headers={b"Authorization": write})

    realm = 'Bearer realm="embedding-studio"'
    assert missing.headers["www-authenticate"] == basic.headers["www-authenticate"] == realm
    assert unknown.headers["www-authenticate"] == f'{realm}, error="invalid_token"'
    assert narrow.headers["www-authenticate"] == f'{realm}, error="insufficient_scope"'
    for answer in (missing, basic, unknown, narrow):
        assert not any(key in answer.text for key in KEYS.values())
        problem_of(answer)


# Origins


def test_no_origin_may_call_unless_it_is_named(client):
    answer = client.get("/healthz", headers={"Origin": "https://shop.example"})

    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origins", ["https://shop.example", "*"])
def test_a_named_origin_may_call_and_never_with_credentials(make_context, origins):
    with serving(create_app(make_context(cors_origins=origins))) as client:
        preflight = client.options(
            EVENTS,
            headers={
                "Origin": "https://shop.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type,x-user-token",
            },
        )
        failed = client.get("/nothing", headers={"Origin": "https://shop.example"})

    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] in {"https://shop.example", "*"}
    assert failed.headers["access-control-allow-origin"] in {"https://shop.example", "*"}
    for answer in (preflight, failed):
        assert "access-control-allow-credentials" not in answer.headers


def test_another_origin_than_the_named_may_not_call(make_context):
    with serving(create_app(make_context(cors_origins="https://shop.example"))) as client:
        answer = client.get("/healthz", headers={"Origin": "https://evil.example"})

    assert "access-control-allow-origin" not in answer.headers


# Health


class StorageThatIsDown(MemoryStorage):
    def ping(self) -> NoReturn:
        raise errors.StorageUnavailableError("connection to 10.0.0.7 refused")

    @property
    def orders(self) -> NoReturn:
        self.ping()

    @orders.setter
    def orders(self, _: object) -> None:
        """What memory would have kept there."""


def test_a_service_that_can_serve_is_alive_and_ready(client):
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {
        "status": "ready",
        "parts": {"database": "ok", "events": "ok", "texts": "ok", "learning": "ok"},
    }


def test_without_storage_the_service_is_alive_and_says_what_it_is_not_ready_for(make_context):
    with serving(create_app(make_context(StorageThatIsDown()))) as client:
        alive, ready, metrics = client.get("/healthz"), client.get("/readyz"), client.get("/metrics")
        order = client.get("/api/v1/improvement/orders/s1")

    assert alive.status_code == metrics.status_code == 200
    assert ready.status_code == order.status_code == 503
    assert problem_of(ready)["detail"] == "storage does not answer"
    assert problem_of(ready)["parts"] == {"database": "storage does not answer"}
    assert "embedding_studio_orders{" not in metrics.text
    assert "embedding_studio_queue_users{" not in metrics.text
    assert "10.0.0.7" not in ready.text + metrics.text + order.text


def test_what_runs_in_the_background_starts_and_is_awaited_at_the_end(make_context):
    started, ended = threading.Event(), []

    def background(stop: threading.Event) -> None:
        started.set()
        ended.append(stop.wait(30))

    with serving(create_app(make_context(), background=background)) as client:
        assert started.wait(30)
        assert client.get("/readyz").status_code == 200
        assert ended == []

    assert ended == [True]


def test_a_worker_that_ended_early_is_named(make_context):
    app = create_app(make_context(), background=lambda _: None)
    with serving(app) as client:
        assert client.get("/healthz").status_code == 200  # it is up, so the worker was started
        app.state.background.join(30)
        answer = client.get("/readyz")

    assert answer.status_code == 503
    assert "worker" in problem_of(answer)["detail"]
    assert problem_of(answer)["parts"]["worker"] == problem_of(answer)["detail"]


def test_learning_that_is_late_is_told_and_the_service_stays_ready(make_context, monkeypatch):
    context = make_context()
    info = QueueInfo(waiting=3, held=0, oldest_seconds=61.0)
    monkeypatch.setattr(context.storage.queue, "info", lambda: info)
    with serving(create_app(context)) as client:
        answer = client.get("/readyz")

    assert answer.status_code == 200
    assert answer.json()["failing"] == ["learning is late: the first user waits for 61 s"]
    assert answer.json()["parts"]["learning"] == answer.json()["failing"][0]


# OpenAPI

ROUTES_OF_THE_DESIGN = {
    "POST /api/v1/clickstream/session",
    "GET /api/v1/clickstream/session",
    "GET /api/v1/clickstream/sessions",
    "DELETE /api/v1/clickstream/session/events",
    "POST /api/v1/clickstream/session/events",
    "POST /api/v1/clickstream/events",
    "POST /api/v1/clickstream/sessions",
    "POST /api/v1/clickstream/session/irrelevant",
    "POST /api/v1/clickstream/internal/session/use-for-improvement",
    "POST /api/v1/embeddings/similarity-search",
    "POST /api/v1/embeddings/rank",
    "POST /api/v1/embeddings/bend",
    "POST /api/v1/embeddings/upsert",
    "POST /api/v1/embeddings/delete",
    "POST /api/v1/embeddings/payloads",
    "POST /api/v1/embeddings/objects",
    "POST /api/v1/embeddings/scroll",
    "GET /api/v1/collections",
    "POST /api/v1/collections",
    "GET /api/v1/collections/{name}",
    "PATCH /api/v1/collections/{name}",
    "DELETE /api/v1/collections/{name}",
    "PUT /api/v1/collections/aliases/{alias}",
    "DELETE /api/v1/collections/aliases/{alias}",
    "GET /api/v1/improvement/summary",
    "GET /api/v1/improvement/orders",
    "GET /api/v1/improvement/orders/{session_id}",
    "DELETE /api/v1/improvement/orders/{session_id}",
    "POST /api/v1/improvement/orders/{session_id}/retry",
    "DELETE /api/v1/users/{user_id}",
    "GET /api/v1/keys",
    "POST /api/v1/keys",
    "POST /api/v1/keys/{key_id}/rotate",
    "DELETE /api/v1/keys/{key_id}",
    "POST /api/v1/keys/{key_id}/disregard",
    "GET /api/v1/quarantine",
    "PUT /api/v1/quarantine/{user_id}",
    "DELETE /api/v1/quarantine/{user_id}",
    "GET /api/v1/users/{user_id}/export",
    "GET /api/v1/users/{user_id}/state",
    "GET /api/v1/users/{user_id}/map",
    "GET /api/v1/doctor",
    "GET /api/v1/settings",
    "GET /api/v1/reports",
    "POST /api/v1/reports",
    "GET /api/v1/reports/{report_id}",
    "DELETE /api/v1/reports/{report_id}",
    "POST /1/events",
    "DELETE /1/usertokens/{token}",
    "POST /ubi_events",
    "POST /ubi_queries",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
}


def test_a_recorded_request_is_described_with_nothing_left_open(client):
    schema = client.get("/openapi.json").json()["components"]["schemas"]["SearchRequest"]

    assert schema["required"] == ["limit"]
    assert schema["properties"]["limit"] == {"type": "integer", "title": "Limit"}
    assert schema["properties"]["exploration_ratio"]["type"] == "number"
    assert schema["properties"]["filter"]["anyOf"][0] == {"type": "object", "additionalProperties": True}


def test_the_document_describes_every_route_for_clients_to_be_generated(client):
    document = client.get("/openapi.json").json()

    described = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert set(described) == ROUTES_OF_THE_DESIGN
    ids = [operation["operationId"] for operation in described.values()]
    assert len(set(ids)) == len(ids)
    tags = {tag["name"] for tag in document["tags"]}
    for operation in described.values():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", operation["operationId"])
        assert set(operation["tags"]) <= tags
        assert operation["description"]
        assert list(operation["responses"]["default"]["content"]) == ["application/problem+json"]
        assert "422" not in operation["responses"]  # FastAPI's own shape of errors, which is never sent


def context_of_what_the_examples_name(context: Context, path: str) -> Context:
    """Return a context that holds it, without what the route itself makes."""
    if path != "/api/v1/collections":
        context.collection()
        context.storage.collections.create("shoes-2", SearchIndexInfo(dimensions=3))
        if path != SESSION:
            session = Session(session_id="6cf4a6a5-0f7b-4c4f-9d4c-3f6f7b1c2d3e")
            context.clickstream_dao.register_session(session)
    return context


COLLECTORS = {"/1/events", "/ubi_queries", "/ubi_events"}


def test_every_body_has_examples_and_each_is_done_where_there_is_what_it_names(service, make_context):
    app, client = service
    document = client.get("/openapi.json").json()

    tried = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "requestBody" not in operation:
                continue
            if path == "/api/v1/reports":  # not of a context with parts of its own: tests/test_reports.py
                continue
            body = operation["requestBody"]["content"]["application/json"]["schema"]
            if "$ref" not in body:  # of another system's client
                assert path in COLLECTORS
                continue
            for example in document["components"]["schemas"][body["$ref"].rsplit("/")[-1]]["examples"]:
                context = context_of_what_the_examples_name(make_context(), path)
                app.state.context = context
                kept, key = new_key("me", [Scope.ADMIN], now=1)
                headers = {}
                if "{key_id}" in path:
                    context.storage.keys.add(kept)
                    headers = {"Authorization": f"Bearer {key}"}
                filled = path.replace("{alias}", "shoes").replace("{key_id}", kept.key_id)
                filled = filled.replace("{user_id}", "ada").replace("{name}", "default")
                answer = client.request(method, filled, json=example, headers=headers)
                assert answer.is_success, f"{path}: {answer.text}"
                tried += 1
    assert tried >= 10


@pytest.mark.parametrize("name", ["docs", "console", "demo"])
def test_a_page_loads_nothing_from_elsewhere_and_nothing_inline(make_context, name):
    with serving(create_app(make_context(), shown=["demo"])) as client:
        page = client.get(f"/{name}")
        policy = page.headers["content-security-policy"]
        loaded = re.findall(r'(?:href|src)="([^"]+)"', page.text)

        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert loaded
        for each in loaded:  # relative: a proxy may strip a prefix
            assert client.get(f"/{each}").status_code == 200
        assert not re.search(r"<(script|style)>| (style|on[a-z]+)=", page.text)
        assert client.get(f"/{name}/other.js").status_code == 404
        slash = client.get(f"/{name}/", follow_redirects=False)
        assert (slash.status_code, slash.headers["location"]) == (307, f"../{name}")
        assert client.get(f"/{name}/%2e%2e/docs/docs.js").status_code == 404


def test_the_files_of_the_pages_name_no_other_host():
    for name, path in static.FILES.items():
        if not name.startswith("vendor/"):
            assert not re.search(r"https?://(?!www\.w3\.org/)", path.read_text()), name


def test_the_javascript_of_others_is_as_it_was_brought():
    versions = json.loads(static.FILES["vendor/versions.json"].read_text())
    code = [name for name in static.FILES if name.startswith("vendor/") and name.endswith((".js", ".css"))]

    assert sorted(code) == sorted(f"vendor/{name}" for name in versions)
    for name, told in versions.items():
        assert hashlib.sha256(static.FILES[f"vendor/{name}"].read_bytes()).hexdigest() == told["sha256"]


def test_the_root_leads_to_the_page_that_was_asked_for(make_context):
    for settings, shown, page in (
        ({}, [], "console"),
        ({"console": False}, [], "docs"),
        ({}, ["demo"], "demo"),
    ):
        with serving(create_app(make_context(**settings), shown=shown)) as client:
            assert client.get("/").headers["location"] == page


def test_a_prefix_that_a_proxy_strips_is_said_to_clients(make_context):
    with serving(create_app(make_context(root_path="/shop"))) as client:
        document = client.get("/openapi.json").json()

        assert document["servers"] == [{"url": "/shop"}]
        assert client.get("/healthz").status_code == 200


# Metrics


def samples(client: httpx.Client) -> dict[str, float]:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


@pytest.fixture
def counted(make_context):
    """A service that has counted nothing yet."""
    with serving(create_app(make_context())) as client:
        yield client


def test_metrics_count_searches_events_and_orders(counted):
    counted.post("/api/v1/embeddings/upsert", json={"items": [{"object_id": "o1", "text": "abc"}]})
    counted.post(
        SEARCH, json={"search_query": "a", "user_id": "ada", "create_session": True, "session_id": "s1"}
    )
    counted.post(SEARCH, json={"search_query": "a", "limit": 0})
    sent = [
        {"object_id": "o1", "event_id": "e1"},
        {"object_id": "o1", "event_id": "e1"},
        {"object_id": "o2", "event_type": "hover over \n it", "event_id": "e2"},
    ]
    counted.post(EVENTS, json={"session_id": "s1", "events": sent})

    seen = samples(counted)

    searches = "embedding_studio_search_requests_total"
    events = "embedding_studio_events_total"
    assert seen[searches + '{personalised="false",status="200"}'] == 1
    assert seen[searches + '{personalised="false",status="422"}'] == 1
    assert seen["embedding_studio_search_duration_seconds_count"] == 1
    assert seen[events + '{disposition="accepted",kind="click"}'] == 1
    assert seen[events + '{disposition="duplicate",kind="click"}'] == 1
    assert seen[events + '{disposition="unknown_object",kind="other"}'] == 1
    assert seen['embedding_studio_orders{status="pending"}'] == 1
    assert seen['embedding_studio_orders{status="failed"}'] == 0
    assert seen['embedding_studio_queue_users{state="waiting"}'] == 1
    assert seen['embedding_studio_queue_users{state="held"}'] == 0
    assert 0 < seen["embedding_studio_queue_oldest_seconds"] < 60
    assert not any("_learning_" in name for name in seen)  # no worker runs in this process
    assert seen["embedding_studio_exploration_slots_total"] == 0


def test_metrics_tell_of_collections_and_of_codes_only_where_they_are_in_memory(make_context):
    context = make_context()
    with serving(create_app(context)) as client:
        client.post("/api/v1/embeddings/upsert", json={"items": [{"object_id": "o1", "text": "abc"}]})
        before = samples(client)
        client.post(SEARCH, json={"search_query": "a"})
        after = samples(client)
        context.storage.collections.drop("default")
        dropped = samples(client)

    objects = 'embedding_studio_collection_objects{collection="default"}'
    codes = 'embedding_studio_codes_bytes{collection="default"}'
    assert before[objects] == after[objects] == 1
    assert codes not in before
    assert after[codes] == 0
    assert not any("collection=" in name for name in dropped)


def test_objects_are_counted_again_after_a_minute_or_when_there_are_other_collections():
    metrics = ServiceMetrics()
    metrics.set_objects({"films": 3}, now=1_000.0)

    counted = [metrics.are_counted(names, now) for names, now in (
        ({"films"}, 1_059.9), ({"films"}, 1_060.0), ({"films", "few"}, 1_001.0),
    )]  # fmt: skip

    assert counted == [True, False, False]


def test_the_margin_of_a_collection_that_was_searched_by_codes_is_told():
    registry = CollectorRegistry()
    metrics = ServiceMetrics(registry=registry)

    metrics.set_codes({"films": CodesInfo(4_000, 300_000, 1.5), "few": CodesInfo(0, 0, 1.5)})

    exposed = generate_latest(registry).decode()
    assert 'embedding_studio_recall_margin{collection="films"} 1.5' in exposed
    assert 'embedding_studio_codes_bytes{collection="films"} 300000.0' in exposed
    assert 'embedding_studio_recall_margin{collection="few"}' not in exposed


def test_no_label_tells_of_users_queries_or_objects(counted):
    counted.post("/api/v1/embeddings/upsert", json={"items": [{"object_id": "zebra", "text": "abc"}]})
    counted.post(
        SEARCH,
        json={"search_query": "zebra", "user_id": "zebra", "session_id": "zebra", "create_session": True},
    )
    counted.post(
        EVENTS, json={"session_id": "zebra", "events": [{"object_id": "zebra", "event_type": "zebra"}]}
    )

    assert "zebra" not in counted.get("/metrics").text


def test_two_services_in_one_process_count_apart(make_context):
    with serving(create_app(make_context())) as one, serving(create_app(make_context())) as other:
        one.post(SEARCH, json={"search_query": "a", "limit": 0})

        counted = [sum("search_requests_total{" in name for name in samples(each)) for each in (one, other)]

    assert counted == [1, 0]
