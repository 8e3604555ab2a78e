"""Callers who mean harm, or have a fault: nobody else waits for them (FAULTS F1, F2, F5)."""

import asyncio
import gc
import logging
import socket
import threading
import time
from asyncio.selector_events import _SelectorSocketTransport  # type: ignore[attr-defined]
from contextlib import ExitStack, closing
from functools import partial

import httpx
import orjson
import psycopg
import pytest
from starlette.responses import StreamingResponse

from embedding_studio import errors
from embedding_studio.api.app import create_app
from embedding_studio.api.border import HangUps
from embedding_studio.api.clickstream import SessionsBody
from embedding_studio.cli.learning import settle
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.storage.waiting import WAITER, Waiter
from test_api_service import EVENTS, NO_TLS, SEARCH, SESSION, letters_context, problem_of, serving

HALF_A_SEARCH = (
    f"POST {SEARCH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{{"
).encode()
JSON = {"content-type": "application/json"}


@pytest.fixture
def make_context(tmp_path):
    return partial(letters_context, tmp_path)


# Bodies


def repeated(item: str, number: int) -> str:
    return "[" + ",".join([item] * number) + "]"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (EVENTS, '{"session_id": "s", "events": ' + repeated("1", 900_000) + "}"),
        (EVENTS, '{"session_id": "s", "events": ' + repeated("[]", 600_000) + "}"),
        (SESSION, '{"session_id": "s", "search_results": ' + repeated("{}", 160_000) + "}"),
        ("/api/v1/clickstream/sessions", '{"sessions": ' + repeated('{"search_results":[1]}', 80_000) + "}"),
        ("/api/v1/embeddings/upsert", '{"items": ' + repeated('{"a":1,"b":2,"c":3}', 90_000) + "}"),
        ("/api/v1/embeddings/delete", '{"object_ids": ' + repeated("0", 900_000) + "}"),
        (SEARCH, "{" + ",".join(f'"{number}": 0' for number in range(150_000)) + "}"),
        (SEARCH, '{"search_query": ' + repeated("true", 390_000) + "}"),
        (SEARCH, '{"search_query": ' + "[" * 1_900_000 + "}"),
        ("/1/events", '{"events": ' + repeated("1", 900_000) + "}"),
        ("/ubi_events", repeated("1", 900_000)),
    ],
)
def test_nobody_waits_while_a_wrong_body_is_refused(make_context, path, body):
    answers: list[httpx.Response] = []
    worked = []  # CPU seconds of this process while one request waited: no other process is in it
    with serving(create_app(make_context())) as client:

        def send() -> None:
            answers.append(client.post(path, content=body, headers=JSON))

        sending = threading.Thread(target=send)
        with httpx.Client(base_url=client.base_url, timeout=30, verify=NO_TLS) as other:
            sending.start()
            while sending.is_alive():
                asked = time.process_time()
                other.get("/healthz")
                worked.append(time.process_time() - asked)
        sending.join()

    assert answers[0].status_code == 422
    assert len(problem_of(answers[0])["detail"]) < 1_000
    assert max(worked) < 5  # up to 0.1, and 10 to 44 before; all threads of this process count


def test_a_body_of_a_legal_size_is_read_whole_however_large(make_context):
    sessions = [
        {
            "session_id": f"s{number}",
            "search_query": "a",
            "search_results": [{"object_id": f"o{place}", "position": place + 1} for place in range(60)],
        }
        for number in range(600)
    ]
    context = make_context()
    context.collection()
    with serving(create_app(context)) as client:
        answer = client.post("/api/v1/clickstream/sessions", json={"sessions": sessions})

    assert answer.status_code == 200, answer.text
    assert len(context.clickstream_dao.get_session("s599").search_results) == 60


# Connections


def half_sent(client: httpx.Client, stack: ExitStack, sent: bytes) -> socket.socket:
    raw = stack.enter_context(
        socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10)
    )
    raw.sendall(sent)
    return raw


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /x HTTP/1.1\r\nHost:",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
        HALF_A_SEARCH,
    ],
)
def test_a_request_that_does_not_arrive_whole_ends_with_its_time(make_context, sent):
    with serving(create_app(make_context(request_seconds=0.3))) as client, ExitStack() as stack:
        raw = half_sent(client, stack, sent)
        began = time.monotonic()
        while raw.recv(4096):
            pass

        assert 0.2 < time.monotonic() - began < 5
        assert client.get("/healthz").status_code == 200


def test_who_is_late_is_told_so(make_context):
    with serving(create_app(make_context(request_seconds=0.3))) as client, ExitStack() as stack:
        raw = half_sent(client, stack, HALF_A_SEARCH)

        assert raw.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_connections_that_wait_for_their_clients_keep_nobody_out(make_context):
    unfinished = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    with serving(create_app(make_context(max_connections=10))) as client, ExitStack() as stack:
        for _ in range(40):
            half_sent(client, stack, unfinished)
        answers = [httpx.get(client.base_url.join("/healthz"), verify=NO_TLS) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 200]


@pytest.fixture
def settled():
    """Let this process be settled as one that serves, until the test is over."""
    before = gc.get_threshold()
    settle()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.mark.usefixtures("settled")
def test_a_large_body_is_no_reason_to_look_through_all_memory_which_holds_up_everybody():
    shown = [{"object_id": f"{n}"} for n in range(1_000)]
    body = orjson.dumps({"sessions": [{"session_id": f"{n}", "search_results": shown} for n in range(90)]})
    began = []

    def note(phase, told):
        if phase == "start" and told["generation"] == 2:
            began.append(told)

    gc.callbacks.append(note)
    try:
        read = SessionsBody.model_validate(orjson.loads(body))
    finally:
        gc.callbacks.remove(note)

    assert sum(len(each.search_results) for each in read.sessions) == 90_000
    assert began == []


def test_many_connections_that_come_at_once_need_not_come_again(make_context):
    app = create_app(make_context(max_connections=10))
    is_busy, may_go_on = threading.Event(), threading.Event()

    @app.get("/busy")
    async def busy() -> str:
        is_busy.set()
        may_go_on.wait(timeout=60)  # with the event loop
        return "done"

    with serving(app) as client, ExitStack() as stack:
        asking = threading.Thread(target=client.get, args=("/busy",))
        asking.start()
        assert is_busy.wait(timeout=30)
        try:
            for _ in range(100):  # none is accepted meanwhile; 17 were kept, and others hung in the air
                half_sent(client, stack, b"GET /")
        finally:
            may_go_on.set()
        asking.join(timeout=30)


def test_an_answer_is_sent_in_one_piece_but_what_is_streamed_as_it_is_made(make_context, monkeypatch):
    app = create_app(make_context())
    has_arrived = threading.Event()

    async def made():
        yield b"first"
        await asyncio.to_thread(has_arrived.wait, 30)
        yield b"x" * 200_000

    @app.get("/streamed")
    async def streamed() -> StreamingResponse:
        return StreamingResponse(made())

    sent: list[bytes] = []
    write = _SelectorSocketTransport.write

    def note(transport, data):
        sent.append(bytes(data))
        write(transport, data)

    with serving(app) as client:
        monkeypatch.setattr(_SelectorSocketTransport, "write", note)
        answer = client.get("/healthz")
        assert [piece.endswith(b"\r\n\r\n" + answer.content) for piece in sent] == [True]

        with client.stream("GET", "/streamed") as answer:
            pieces = answer.iter_raw()
            assert next(pieces) == b"first"
            has_arrived.set()
            assert sum(map(len, pieces)) == 200_000


def test_a_request_that_is_being_answered_is_not_closed_for_another(make_context):
    app = create_app(make_context(max_connections=10))
    has_begun, may_end = threading.Event(), threading.Event()

    @app.get("/slow")
    def slow() -> str:
        has_begun.set()
        may_end.wait(timeout=30)
        return "done"

    answers: list[httpx.Response] = []
    with serving(app) as client, ExitStack() as stack:
        asking = threading.Thread(target=lambda: answers.append(client.get("/slow")))
        asking.start()
        assert has_begun.wait(timeout=30)
        for _ in range(40):
            half_sent(client, stack, b"GET /")
        may_end.set()
        asking.join(timeout=30)

    assert [answer.json() for answer in answers] == ["done"]


# The database


@pytest.fixture
def impatient(postgres_url):
    with closing(PostgresStorage(postgres_url, statement_seconds=1, lock_seconds=0.3)) as storage:
        yield storage.objects.own.database  # type: ignore[attr-defined]


def test_a_statement_that_takes_too_long_is_given_up_and_the_next_one_is_not(impatient):
    with pytest.raises(errors.StorageTimeoutError, match="statement timeout"):
        impatient.read(lambda connection: connection.execute("SELECT pg_sleep(30)"))

    assert impatient.read(lambda connection: connection.execute("SELECT 7").fetchone()) == (7,)


def test_upkeep_may_take_longer(impatient):
    def work(connection):
        return connection.execute("SELECT pg_sleep(1.5), 7").fetchone()[1]

    assert impatient.write(work, is_upkeep=True) == 7


def test_a_lock_is_waited_for_only_so_long(impatient, postgres_url):
    token = WAITER.set(Waiter())
    try:
        with psycopg.connect(postgres_url) as other:
            other.execute("SELECT pg_advisory_xact_lock(7)")
            with pytest.raises(errors.StorageTimeoutError, match="lock timeout"):
                impatient.write(lambda connection: connection.execute("SELECT pg_advisory_xact_lock(7)"))
    finally:
        WAITER.reset(token)


def test_where_nobody_waits_a_lock_is_tried_again(impatient, postgres_url):
    with psycopg.connect(postgres_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(7)")
        threading.Timer(0.6, other.rollback).start()
        impatient.write(lambda connection: connection.execute("SELECT pg_advisory_xact_lock(7)"))


def test_what_the_driver_refuses_is_no_outage(impatient):
    many = list(range(66_000))
    tries = []

    def work(connection):
        tries.append(1)
        connection.execute("SELECT " + ",".join(["%s"] * len(many)), many)

    with pytest.raises(errors.StorageError, match="number of parameters") as caught:
        impatient.read(work)

    assert not isinstance(caught.value, errors.StorageUnavailableError)
    assert len(tries) == 1


def test_a_server_that_takes_no_events_is_not_ready(impatient, postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        other.execute("SELECT pg_reload_conf()")
        try:
            with pytest.raises(errors.StorageNotWritableError):
                wait_until_read_only(impatient)
        finally:
            other.execute("SET default_transaction_read_only = off")
            other.execute("ALTER SYSTEM RESET default_transaction_read_only")
            other.execute("SELECT pg_reload_conf()")


def wait_until_read_only(database) -> None:
    for _ in range(50):
        database.check_writable()
        time.sleep(0.1)


def test_after_a_write_that_found_the_disk_full_readiness_depends_on_another(impatient):
    def fail(_):
        raise psycopg.errors.DiskFull

    with pytest.raises(errors.StorageNotWritableError):
        impatient.write(fail)
    impatient.check_writable()  # writes something, which can be now

    assert impatient._is_writable


# Who hangs up


def test_what_is_read_for_somebody_who_has_gone_stops(postgres_url):
    with closing(PostgresStorage(postgres_url)) as storage:
        database = storage.objects.own.database  # type: ignore[attr-defined]
        waiter = Waiter()
        threading.Timer(0.3, waiter.go).start()
        began = time.monotonic()
        token = WAITER.set(waiter)
        try:
            with pytest.raises(errors.AbandonedError):
                database.read(lambda connection: connection.execute("SELECT pg_sleep(30)"))
            with pytest.raises(errors.AbandonedError):
                database.read(lambda connection: connection.execute("SELECT 7"))
            database.write(lambda connection: connection.execute("SELECT 7"))  # a click of a closed page
        finally:
            WAITER.reset(token)

        assert time.monotonic() - began < 10
        assert database.read(lambda connection: connection.execute("SELECT 7").fetchone()) == (7,)


def test_a_request_whose_caller_goes_tells_who_reads_for_it():
    gone = []

    async def run() -> None:
        left = asyncio.Event()

        async def receive() -> dict:
            if gone:
                await left.wait()
                return {"type": "http.disconnect"}
            gone.append("soon")
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def app(scope, receive, send) -> None:
            await receive()
            left.set()
            waiter = WAITER.get()
            assert waiter is not None
            for _ in range(100):
                if waiter.has_gone:
                    return
                await asyncio.sleep(0.05)
            raise AssertionError

        async def send(_: object) -> None: ...

        await HangUps(app)({"type": "http", "method": "POST"}, receive, send)

    asyncio.run(run())

    assert WAITER.get() is None


# The log


def test_a_log_has_one_line_a_second_of_one_kind_of_trouble(caplog):
    from embedding_studio.telemetry.troubles import OnceASecond

    once = OnceASecond(clock=iter([0.0, 0.2, 0.4, 5.0]).__next__)
    logger = logging.getLogger("trouble")
    logger.addFilter(once)
    try:
        for _ in range(4):
            logger.error("too many open files")
    finally:
        logger.removeFilter(once)

    assert [record.getMessage() for record in caplog.records] == [
        "too many open files",
        "too many open files (and 2 more of this kind)",
    ]


@pytest.mark.parametrize("padding", [0, 20_000])
def test_a_whole_number_of_any_size_is_kept_in_a_body_of_any_size(make_context, padding):
    payload = {"n": 123456789012345678901234567, "m": [-98765432109876543210], "padding": "x" * padding}
    item = {"object_id": "a", "vectors": [1.0, 0.0], "payload": payload}
    with serving(create_app(make_context(embedder="none"))) as client:
        made = {"name": "numbers", "index": {"dimensions": 2}}
        assert client.post("/api/v1/collections", json=made).is_success
        given = {"collection": "numbers", "items": [item]}
        assert client.post("/api/v1/embeddings/upsert", json=given).is_success
        asked = {"collection": "numbers", "object_ids": ["a"]}
        [found] = client.post("/api/v1/embeddings/objects", json=asked).json()["objects"]

    assert found["payload"] == payload
