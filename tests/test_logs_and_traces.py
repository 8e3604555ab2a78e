"""What is told of requests and of learning, in the log and in traces; and what never is."""

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from embedding_studio import SearchIndexInfo
from embedding_studio.api.app import create_app
from embedding_studio.cli.console import quiet
from embedding_studio.errors import EmbeddingError, InvalidSettingError, StorageError
from embedding_studio.telemetry import logs, traces
from test_api_service import EVENTS, SEARCH, SESSION, letters_context, serving

USER, QUERY, SESSION_ID, OBJECT, KEY = (
    "zebra-user",
    "zebra query",
    "zebra-session",
    "zebra-object",
    "zebra-" * 8,
)
SECRET = "zebra"  # noqa: S105, it stands for what a user sends
ADMIN = {"Authorization": f"Bearer {KEY}", "X-Request-ID": "night-1"}


@contextlib.contextmanager
def logged(log_format):
    """Yield what is logged in this format, as a process writes it."""
    stderr = io.StringIO()
    lines = logs.EarlyLines()
    lines.log_format = log_format
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = [lines]
    root.setLevel(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the client is not of the service
    try:
        with contextlib.redirect_stderr(stderr):
            lines.write()
        yield stderr
    finally:
        root.handlers[:] = before
        root.setLevel(level)


@pytest.fixture
def context(tmp_path):
    made = letters_context(tmp_path, admin_api_key=KEY)
    made.collection(index=SearchIndexInfo(dimensions=3))
    return made


def everything_that_is_asked(client, context):
    """Let a user search, click, and be forgotten, with good and with bad requests; learn in between."""
    client.headers.update(ADMIN)
    item = {"object_id": OBJECT, "text": QUERY, "payload": {"title": QUERY}}
    assert client.post("/api/v1/embeddings/upsert", json={"items": [item]}).status_code == 200
    search = {"search_query": QUERY, "user_id": USER, "create_session": True, "session_id": SESSION_ID}
    assert client.post(SEARCH, json=search).status_code == 200
    click = {"session_id": SESSION_ID, "events": [{"object_id": OBJECT, "event_type": "click"}]}
    [receipt] = client.post(EVENTS, json=click).json()["events"]
    assert receipt["disposition"] == "accepted"
    assert context.improver().improve_once().learnt == 1
    assert client.get(SESSION, params={"session_id": SESSION_ID}).status_code == 200
    assert client.post(SEARCH, json=search | {"limit": SECRET}).status_code == 422
    assert client.get(f"/{SECRET}/nothing").status_code == 404
    assert client.head(SESSION, params={"session_id": SESSION_ID}).status_code == 200
    assert client.get("/metrics", headers={"Authorization": f"Bearer {SECRET}"}).status_code == 401
    assert client.delete(f"/api/v1/users/{USER}").status_code == 200
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_line_tells_of_each_request_and_none_of_what_was_sent(context, log_format):
    with logged(log_format) as told, serving(create_app(context)) as client:
        everything_that_is_asked(client, context)

    lines = told.getvalue().splitlines()
    assert SECRET not in told.getvalue()
    answered = [
        re.search(r"(POST|GET|HEAD|DELETE) (\S+|\(no route\)) (\d{3}) in [\d.]+ ms", line) for line in lines
    ]
    assert [found.groups() for found in answered if found] == [
        ("POST", "/api/v1/embeddings/upsert", "200"),
        ("POST", SEARCH, "200"),
        ("POST", EVENTS, "200"),
        ("GET", SESSION, "200"),
        ("POST", SEARCH, "422"),
        ("GET", "(no route)", "404"),
        ("HEAD", SESSION, "200"),
        ("GET", "/metrics", "401"),
        ("DELETE", "/api/v1/users/{user_id}", "200"),
    ]
    assert all("night-1" in line for line, found in zip(lines, answered, strict=True) if found)


def test_a_json_line_has_what_programs_look_for(context):
    with logged("json") as told:
        with serving(create_app(context)) as client:
            client.get("/api/v1/collections", headers=ADMIN)
        logging.getLogger("elsewhere").warning("é\n%s", "two lines")  # once the line of the answer is written

    of_request, other = map(json.loads, told.getvalue().splitlines())
    assert 0 <= of_request.pop("ms") < 30_000
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", of_request.pop("time"))
    assert re.fullmatch(r"GET /api/v1/collections 200 in [\d.]+ ms", of_request.pop("message"))
    assert of_request == {
        "level": "INFO",
        "logger": "embedding_studio.api.access_log",
        "request_id": "night-1",
        "method": "GET",
        "route": "/api/v1/collections",
        "status": 200,
    }
    assert (other["message"], other["level"]) == ("é\ntwo lines", "WARNING")
    assert "request_id" not in other


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(
    "raised", [ValueError(SECRET), KeyError(SECRET), EmbeddingError("the model is gone")]
)
def test_what_goes_wrong_in_a_request_is_logged_with_its_place_and_without_what_was_sent(
    context, log_format, raised
):
    app = create_app(context)

    @app.get("/fail/{what}")
    def fail(what: str) -> None:
        try:
            raise OSError("the disk is full")  # noqa: TRY301
        except OSError:
            raise raised from ValueError(SECRET)

    with logged(log_format) as told, serving(app) as client:
        answer = client.get(f"/fail/{SECRET}", headers=ADMIN)

    assert answer.status_code >= 500
    assert SECRET not in told.getvalue()
    assert type(raised).__name__ in told.getvalue()
    assert "in fail" in told.getvalue()
    assert ("the model is gone" in told.getvalue()) == isinstance(raised, EmbeddingError)
    assert told.getvalue().count("night-1") >= 2


def test_an_adjuster_that_repeats_what_it_was_given_does_not_do_so_in_the_log(context):
    class Loud:
        def adjust_vectors(self, inputs):
            raise RuntimeError(str(inputs) + SECRET)

    with logged("text") as told, serving(create_app(context)) as client:
        improver = context.improver()
        improver._adjuster = lambda _: Loud()
        client.headers.update(ADMIN)
        items = [{"object_id": OBJECT, "text": "b"}, {"object_id": "other", "text": QUERY}]
        client.post("/api/v1/embeddings/upsert", json={"items": items})
        search = {"search_query": QUERY, "user_id": USER, "create_session": True, "session_id": SESSION_ID}
        client.post(SEARCH, json=search)
        client.post(EVENTS, json={"session_id": SESSION_ID, "events": [{"object_id": OBJECT}]})
        failed = improver.improve_once().failed

    assert SECRET in failed[SESSION_ID]
    assert "could not be learnt from" in told.getvalue()
    assert SECRET not in told.getvalue()


def test_what_a_database_says_of_a_row_is_not_in_its_error(postgres_url):
    from embedding_studio.storage.postgres.database import Database

    database = Database(postgres_url, pool_size=1)
    try:
        with pytest.raises(StorageError) as refused:
            database.write(
                lambda connection: connection.execute(
                    "CREATE TEMPORARY TABLE named (name text UNIQUE);"
                    "INSERT INTO named VALUES ('zebra'), ('zebra')"
                )
            )
    finally:
        database.close()

    assert "duplicate key value" in str(refused.value)
    assert SECRET not in str(refused.value)


def test_warnings_about_settings_are_in_the_format_of_the_others(tmp_path):
    (tmp_path / ".env").write_text("LOG_FORMAT=json\nSHARED_MINUSERS=5\nEMBEDDER=none\nPORT=80000\n")

    def run(**changed):
        return subprocess.run(
            [Path(sys.executable).with_name("embedding-studio"), "collections"],
            cwd=tmp_path,
            env=os.environ | changed,
            capture_output=True,
            text=True,
            check=False,
        ).stderr

    told = run(PORT="8000", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")

    lines = [json.loads(line) for line in told.splitlines()]
    assert [line["level"] for line in lines][:1] == ["WARNING"]
    assert "is SHARED_MIN_USERS meant?" in lines[0]["message"]
    assert lines[-1]["level"] == "ERROR"
    assert "PORT" in run()  # before it is known in which format, as text


# Traces


@contextlib.contextmanager
def traced():
    """Yield what remembers the spans that end."""
    exporter = InMemorySpanExporter()
    with traces.sending_to(SimpleSpanProcessor(exporter)):
        yield exporter


def test_a_program_that_traces_itself_gets_no_spans_with_what_was_sent(context, monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)  # set_tracer_provider can be called once
    with serving(create_app(context)) as client:
        everything_that_is_asked(client, context)

    assert exporter.get_finished_spans() == ()


def test_a_request_and_what_it_waits_for_are_spans_of_one_trace_without_what_was_sent(context):
    with traced() as exporter, serving(create_app(context)) as client:
        everything_that_is_asked(client, context)
    spans = exporter.get_finished_spans()

    assert SECRET not in "".join(span.to_json() for span in spans)
    [search] = [
        each
        for each in spans
        if each.name == f"POST {SEARCH}" and each.attributes["http.response.status_code"] == 200
    ]
    assert search.attributes == {
        "http.request.method": "POST",
        "http.route": SEARCH,
        "http.response.status_code": 200,
        "embedding_studio.request_id": "night-1",
    }
    below = {each.name for each in spans if each.parent and each.parent.span_id == search.context.span_id}
    assert below == {
        *("look up collection", "embed query", "read what was learnt"),
        *("find the nearest", "record session"),
    }
    assert {each.context.trace_id for each in spans if each.name in below} == {search.context.trace_id}
    [learning] = [each for each in spans if each.name == "learn"]
    [folding] = [each for each in spans if each.name == "fold"]
    assert folding.parent.span_id == learning.context.span_id
    assert (learning.attributes["users"], learning.parent) == (1, None)
    assert not [each for each in spans if "healthz" in each.name or "metrics" in each.name]
    assert {each.resource.attributes["service.name"] for each in spans} == {"embedding-studio"}


def test_a_trace_goes_on_from_the_caller_and_is_named_in_the_log(context):
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = ADMIN | {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    with traced() as exporter, logged("json") as told, serving(create_app(context)) as client:
        client.get("/api/v1/collections", headers=headers)

    [span] = exporter.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == trace_id
    assert json.loads(told.getvalue())["trace_id"] == trace_id


def test_a_span_that_fails_has_the_type_of_what_failed_and_not_what_it_says():
    with traced() as exporter, pytest.raises(ValueError, match=SECRET), traces.span("embed query"):
        raise ValueError(SECRET)

    [span] = exporter.get_finished_spans()
    assert span.attributes == {"error.type": "ValueError"}
    assert (span.status.is_ok, span.events) == (False, ())


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "console"},
        {"OTEL_SERVICE_NAME": "shop"},
    ],
)
def test_nothing_is_traced_where_the_variables_do_not_ask_for_it(environment):
    with traces.tracing(environment), traces.span("embed query") as span:
        assert span is None
        assert traces.current_trace_id() is None


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, r"zipkin is not known.*otlp, console or none"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            },
            r"not as grpc.*http/protobuf.*4318",
        ),
    ],
)
def test_an_exporter_that_there_is_not_is_told_in_a_sentence(environment, told):
    with pytest.raises(InvalidSettingError, match=told), traces.tracing(environment):
        pass


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)

    with (
        pytest.raises(InvalidSettingError, match=r"pip install 'embedding-studio\[otel\]'"),
        traces.tracing({"OTEL_TRACES_EXPORTER": "otlp"}),
    ):
        pass


def test_spans_are_sent_to_the_endpoint_that_the_variables_name(monkeypatch):
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-search")
        with traces.tracing(), traces.span("embed query"):
            pass
        server.shutdown()

    [(path, body)] = received
    assert path == "/v1/traces"
    assert b"embed query" in body
    assert b"shop-search" in body


def test_a_command_that_was_quiet_leaves_loggers_as_they_were():
    logger = logging.getLogger("embedding_studio")
    before = logger.level

    with quiet("embedding_studio"):
        assert not logging.getLogger("embedding_studio.api").isEnabledFor(logging.INFO)

    assert logger.level == before
