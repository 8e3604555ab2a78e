"""The client, sync and async alike: what it asks, what it raises, and when it asks again."""

import asyncio
import dataclasses
import inspect
import itertools
import json
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from embedding_studio import CatalogueObject, client, errors
from embedding_studio.api.app import create_app
from embedding_studio.client import AsyncClient, Client, answers, calls
from embedding_studio.client.failures import KINDS, STATUSES
from embedding_studio.client.service import Service
from embedding_studio.domain.explanations import Explanation
from embedding_studio.search import why
from test_api_service import letters_context, serving

URL = "http://shop.test"


class Awaited:
    """An ``AsyncClient`` that is used as a ``Client`` is, so that one test holds both."""

    def __init__(self, *args, **options) -> None:
        self._runner = asyncio.Runner()
        self._asked = AsyncClient(*args, **options)

    def __getattr__(self, name):
        method = getattr(self._asked, name)

        def call(*args, **options):
            given = method(*args, **options)
            if isinstance(given, AsyncIterator):
                return self._collected(given)
            return self._runner.run(_awaited(given))

        return call

    def _collected(self, given) -> Iterator:
        while (each := self._runner.run(_awaited(anext(given, None)))) is not None:
            yield each

    def close(self) -> None:
        self._runner.run(self._asked.aclose())
        self._runner.close()


async def _awaited(given):
    return await given


@pytest.fixture(params=[Client, Awaited], ids=["sync", "async"])
def make(request):
    """Return what makes a client of each kind; all are closed at the end."""
    made = []

    def made_client(*args, **options):
        made.append(request.param(*args, **options))
        return made[-1]

    yield made_client
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    app = create_app(letters_context(folder))
    with serving(app) as http:
        yield app, str(http.base_url), folder


@pytest.fixture
def context(served):
    """The context of the service, with a storage of its own, in which a collection has three letters."""
    app, _, folder = served
    app.state.context = letters_context(folder)
    app.state.context.collection()
    return app.state.context


@pytest.fixture
def shop(make, served, context):
    """Return a client of a service, which has three objects."""
    shop = make(served[1])
    shop.upsert([{"object_id": name, "text": name, "payload": {"title": name}} for name in ("a", "ab", "bc")])
    return shop


def ids(page) -> list[str]:
    return [each.object_id for each in page.results]


# The loop


def test_a_click_on_a_page_is_learnt_and_the_page_says_so(shop, context):
    page = shop.search("aaab", user_id="ada", create_session=True)
    receipt = shop.click(page.session_id, "bc")
    context.improver().improve_once()
    after = shop.search("aaab", user_id="ada", explain=True)
    other = shop.search("aaab", user_id="bob")

    assert ids(page) == ["a", "ab", "bc"]
    assert (page.personalised, page.next_page_offset, page.metric_type) == (False, None, "cosine")
    assert page.results[0].payload == {"title": "a"}
    assert (receipt.object_id, receipt.event_type, receipt.disposition) == ("bc", "click", "accepted")
    assert after.personalised
    assert after.results[2].distance < page.results[2].distance
    moved = next(each for each in after.results if each.object_id == "bc")
    assert isinstance(moved.explanation, Explanation)
    assert why("bc", moved.explanation) == "you clicked it for 'aaab'"
    assert ids(other) == ["a", "ab", "bc"]
    assert [each.status for each in shop.orders()] == ["done"]
    assert shop.order(page.session_id).user_id == "ada"
    assert shop.order_counts()["done"] == 1


def test_pages_filters_and_sorting_are_those_of_a_search(shop):
    first = shop.search("a", limit=2, user_id="ada", create_session=True)
    second = shop.search("a", limit=2, offset=2, user_id="ada", session_id=first.session_id)
    filtered = shop.search("a", filter={"query": {"term": {"field": "title", "value": "bc"}}})
    ordered = shop.search("a", sort_by=("title", "desc"))
    near = shop.search(np.array([1.0, 0, 0]), max_distance=0.1)

    assert (ids(first), first.next_page_offset, ids(second)) == (["a", "ab"], 2, ["bc"])
    assert [each.position for each in second.results] == [3]
    assert ids(filtered) == ["bc"]
    assert (ids(ordered), ordered.is_sorted) == (["bc", "ab", "a"], True)
    assert ids(near) == ["a"]


def test_candidates_are_ranked_and_a_query_is_bent(shop, context):
    page = shop.rank(
        "aaab", ["a", "ab", {"object_id": "new", "vectors": np.ones(3)}, "gone"], create_session=True
    )
    ranked = shop.rank("aaab", ["bc", "a"], user_id="ada", limit=1)
    plain = shop.bend("aaab", user_id="ada")
    shown = shop.search("aaab", user_id="ada", create_session=True)
    shop.click(shown.session_id, "bc")
    context.improver().improve_once()
    bent = shop.bend("aaab", user_id="ada")

    assert (ids(page), page.unknown, page.personalised) == (["a", "ab", "new", "gone"], ("gone",), False)
    assert shop.session(page.session_id).search_query == "aaab"
    assert (ids(ranked), ranked.session_id) == (["bc"], None)
    assert (plain.query_vectors, plain.moved, plain.factors) == ([[3, 1, 0]], (), {})
    assert bent.personalised
    assert "bc" in {each.object_id for each in bent.moved}


def test_objects_go_in_and_out(shop):
    again = shop.upsert(
        [
            {"object_id": "a", "text": "a", "payload": {"n": 1}},
            CatalogueObject("v", np.array([[1, 2, 3]], dtype=np.float32)),
        ]
    )
    replaced = shop.update_payloads({"v": {"n": 2}, "unknown": {}})
    found = shop.get(["v", "unknown", "a"])
    scrolled = list(shop.scroll(page_size=3))
    some = list(shop.scroll(filter={"query": {"term": {"field": "n", "value": 2}}}, with_vectors=True))

    assert again == client.Indexed(indexed=1, updated=1)
    assert replaced == client.PayloadsReplaced(1, ("unknown",))
    assert found == [
        client.StoredObject("v", {"n": 2}, [[1, 2, 3]]),
        client.StoredObject("a", {"n": 1}, [[1, 0, 0]]),
    ]
    assert [(each.object_id, each.vectors) for each in scrolled] == [
        (name, None) for name in ("a", "ab", "bc", "v")
    ]
    assert [each.vectors for each in some] == [[[1, 2, 3]]]
    assert shop.delete(["v", "unknown", "a"]) == 2
    assert [each.object_id for each in shop.scroll()] == ["ab", "bc"]


def test_collections_are_made_named_and_dropped(shop, make, served):
    made = shop.create_collection("films", dimensions=3, metric_type="dot", gate_threshold=0.5)
    shop.set_alias("live", "films")
    of_films = make(served[1], collection="live")
    of_films.upsert([{"object_id": "f", "vectors": np.ones((2, 3), dtype=np.float32)}])

    info = shop.collection("live")

    assert made.index == client.SearchIndexInfo(3, "dot", "min")
    assert (info.name, info.objects, info.aliases, info.gate_threshold) == ("films", 1, ("live",), 0.5)
    assert [each.name for each in shop.collections()] == ["default", "films"]
    assert ids(of_films.search([1, 1, 1])) == ids(shop.search([1, 1, 1], collection="films")) == ["f"]
    assert shop.drop_alias("live") is None
    assert shop.drop_collection("films") is None
    assert [each.name for each in shop.collections()] == ["default"]


def test_searches_of_another_system_are_recorded_with_what_was_done(shop):
    registered = shop.register_session("a", ["a", {"object_id": "ab", "rank": 0.5}], user_id="ada")
    pushed = shop.push_events(registered.session_id, ["a", {"object_id": "ab", "event_type": "purchase"}])
    several = shop.push_events_of_sessions(
        [{"session_id": registered.session_id, "object_id": "a"}, {"session_id": "later", "object_id": "a"}]
    )
    recorded = shop.record_sessions(
        [
            {"session_id": f"s{n}", "search_query": "b", "search_results": [{"object_id": "a"}]}
            for n in range(120)
        ]
        + [{"session_id": "with", "events": [{"object_id": "a"}], "search_results": [{"object_id": "a"}]}]
    )

    assert [each.rank for each in registered.search_results] == [None, 0.5]
    assert [(each.object_id, each.disposition) for each in pushed] == [("a", "accepted"), ("ab", "accepted")]
    assert [(each.session_id, each.disposition) for each in several] == [
        (registered.session_id, "accepted"),
        ("later", "waiting"),
    ]
    assert shop.take_back("with", "a") == 1
    assert {each.disposition for each in recorded} == {"recorded"}
    assert [each.session_id for each in recorded] == [f"s{n}" for n in range(120)] + ["with"]
    assert [each.disposition for each in recorded[-1].events] == ["accepted"]
    assert [shop.take_back(registered.session_id, "ab") for _ in range(2)] == [1, 0]
    shop.mark_irrelevant(registered.session_id)
    session = shop.session(registered.session_id)
    assert (session.is_irrelevant, len(session.events)) == (True, 3)


@pytest.mark.parametrize("user_id", ["ada", "a/b", "..", ".", "%2E", ".%252e", "50% größe 靴?#&", "a\nb"])
def test_a_user_of_any_name_is_exported_and_forgotten(shop, context, user_id):
    page = shop.search("a", user_id=user_id, create_session=True)
    shop.search("a", user_id="another", create_session=True)

    [exported] = shop.export_user(user_id)
    forgotten = shop.forget_user(user_id)

    assert (exported["kind"], exported["session_id"]) == ("session", page.session_id)
    assert forgotten.sessions == forgotten.removed["sessions"] == 1
    assert any("backups" in each for each in forgotten.not_reached)
    assert list(shop.export_user(user_id)) == []
    assert len(list(context.storage.clickstream.scan())) == 1


def test_an_order_is_tried_again_or_cancelled(shop, context):
    page = shop.search("a", user_id="ada", create_session=True)
    shop.click(page.session_id, "unheard of")
    context.improver().improve_once()

    assert [each.status for each in shop.orders("refused")] == ["refused"]
    assert list(shop.orders("done")) == []
    assert shop.retry_order(page.session_id).status == "pending"
    shop.cancel_order(page.session_id)
    with pytest.raises(errors.OrderNotFoundError):
        shop.order(page.session_id)


def test_orders_are_read_page_by_page(shop, context):
    for n in range(7):
        page = shop.search("a", user_id=f"u{n}", create_session=True)
        shop.click(page.session_id, "a")

    assert len({each.session_id for each in shop.orders(page_size=3)}) == 7


def test_readiness_is_a_question_to_which_no_is_an_answer(shop, make):
    told = {"status": 503, "parts": {"database": "storage does not answer"}}
    problem = {"content-type": "application/problem+json"}
    down = answering(make, httpx.Response(503, json=told, headers=problem))
    gone = answering(make, httpx.Response(503, html="<h1>no server</h1>"))

    ready, not_ready = shop.ready(), down.ready()
    with pytest.raises(errors.ServiceUnavailableError, match="no server"):
        gone.ready()

    assert ready
    assert ready.parts["database"] == "ok"
    assert not not_ready
    assert not_ready.failing == ("storage does not answer",)


# Errors


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        (lambda shop: shop.search("a", collection="none"), errors.CollectionNotFoundError),
        (lambda shop: shop.session("none"), errors.SessionNotFoundError),
        (lambda shop: shop.mark_irrelevant("none"), errors.SessionNotFoundError),
        (lambda shop: shop.order("none"), errors.OrderNotFoundError),
        (lambda shop: shop.drop_alias("none"), errors.CollectionNotFoundError),
        (lambda shop: shop.create_collection("default", dimensions=9), errors.ConflictError),
        (lambda shop: shop.search("a", limit=0), errors.InvalidInputError),
        (lambda shop: shop.search([1, 2]), errors.InvalidInputError),
        (lambda shop: shop.search("a", filter={"query": {"trem": 1}}), errors.InvalidInputError),
        (lambda shop: shop.upsert([{"object_id": "x"}]), errors.InvalidInputError),
    ],
)
def test_an_error_is_the_one_that_the_library_raises(shop, ask, kind):
    with pytest.raises(kind) as raised:
        ask(shop)

    assert type(raised.value) is kind
    assert raised.value.problem["detail"] == str(raised.value)
    assert re.fullmatch(r"[0-9a-f-]{36}", raised.value.request_id)


def test_what_is_wrong_is_told_place_by_place(shop):
    with pytest.raises(errors.InvalidInputError, match=r"#/limit.*1 more under errors") as raised:
        shop.search("a", limit=0, offset=-1)

    assert [each["pointer"] for each in raised.value.problem["errors"]] == ["#/limit", "#/offset"]


def test_every_error_of_the_package_can_come_over_http():
    of_the_package = {
        each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)
    }

    assert set(KINDS.values()) == of_the_package
    assert KINDS["urn:embedding-studio:collection-not-found"] is errors.CollectionNotFoundError
    for kind in KINDS.values():
        assert kind("said").problem is None


def answering(make, *outcomes, url=URL, **options):
    """Return a client whose service gives these answers in turn, and the last one from then on."""
    told = itertools.chain(outcomes, itertools.repeat(outcomes[-1]))
    asked = []

    def answer(request):
        asked.append(request)
        outcome = next(told)
        if isinstance(outcome, Exception):
            raise outcome
        return httpx.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)

    made = make(url, transport=httpx.MockTransport(answer), **options)
    made.asked = asked
    return made


@pytest.mark.parametrize(
    ("status", "kind"), [*STATUSES.items(), (404, errors.ServiceError), (307, errors.ServiceError)]
)
def test_the_answer_of_a_proxy_is_an_error_too(make, status, kind):
    shop = answering(make, httpx.Response(status, html="<h1>no</h1>"), retries=0)

    with pytest.raises(kind, match=f"GET /api/v1/collections was answered with {status} .*: <h1>no</h1>"):
        shop.collections()


@pytest.mark.parametrize(
    "content",
    [b"<html>", b"[]", b"{}", b'{"collections": [{"name": 1}]}', b"null", b"", b"[" * 200_000, b"\xff"],
)
def test_what_is_no_answer_of_a_service_is_told(make, content):
    with pytest.raises(errors.ServiceError, match=f"is {URL} the address of its service"):
        answering(make, httpx.Response(200, content=content)).collections()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"type": ["a"], "detail": "as told"}', "as told"),
        (b'{"type": {}, "detail": ["a"]}', "was answered with 500"),
        (b"[" * 200_000, "was answered with 500"),
        (b"\xff", "was answered with 500"),
    ],
)
def test_a_problem_that_makes_no_sense_is_the_service_s_error(make, content, said):
    with pytest.raises(errors.ServiceError, match=said) as raised:
        answering(make, httpx.Response(500, content=content)).collections()

    assert type(raised.value) is errors.ServiceError


def test_an_export_that_makes_no_sense_is_told_where_it_does_not(make):
    rows = answering(make, httpx.Response(200, content=b'{"kind": "session"}\n<html>')).export_user("ada")

    assert next(rows) == {"kind": "session"}
    with pytest.raises(errors.ServiceError, match=f"is {URL} the address of its service"):
        next(rows)


def test_a_newer_service_may_say_more(make):
    told = {"search_results": [{**FOUND, "new": 1}], **PAGE, "new": {}}

    assert ids(answering(make, httpx.Response(200, json=told)).search("a")) == ["a"]


FOUND = {"object_id": "a", "distance": 0.5, "payload": {}, "position": 1, "personalised": False}
PAGE = {"session_id": None, "next_page_offset": None, "personalised": False}


def test_a_service_that_is_not_there_is_told_by_its_address(make):
    with pytest.raises(
        errors.ServiceUnavailableError, match=r"service at http://127\.0\.0\.1:1 cannot be reached"
    ):
        make("http://127.0.0.1:1/", retries=0).search("a")


def test_a_key_is_asked_for_and_never_told(make, served, context):
    context.settings.__dict__["admin_api_key"] = context.settings.__class__(
        admin_api_key="the-admin-key-ß-0123456789-0123456789", _env_file=None
    ).admin_api_key
    right = make(served[1], api_key="the-admin-key-ß-0123456789-0123456789")
    wrong = make(served[1], api_key="a-wrong-key")

    assert right.search("a").results == ()
    for each in (wrong, make(served[1])):
        with pytest.raises(errors.AccessDeniedError, match="key") as raised:
            each.search("a")
        assert "wrong-key" not in str(raised.value)
    assert "wrong-key" not in repr(Service(URL, "a-wrong-key", "wrong-key"))


@pytest.mark.parametrize("outcome", [httpx.ConnectError("refused"), httpx.Response(200, content=b"<html>")])
def test_a_password_in_the_address_is_sent_and_never_told(make, outcome):
    url = "http://ada%40home:s3cr3t@shop.test/under/@/"
    shop = answering(make, outcome, url=url, retries=0)

    with pytest.raises(errors.ServiceError, match=r"http://shop\.test/under/@ ") as raised:
        shop.collections()

    [request] = shop.asked
    assert request.headers["Authorization"] == "Basic " + b64encode(b"ada@home:s3cr3t").decode()
    assert str(request.url) == "http://shop.test/under/@/api/v1/collections"  # which httpx logs
    assert "s3cr3t" not in f"{raised.value} {Service(url)!r}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "localhost:8000"}, "give one such as http://localhost:8000"),
        ({"url": "http://"}, "give one such as"),
        ({"url": "http://[::1"}, "give one such as"),
        ({"url": "ada:secret@shop.test:1"}, "is '…@shop.test:1'; give one such as"),
        ({"url": "ftp://ada:secret@shop.test"}, "is 'ftp://…@shop.test'; give one such as"),
        ({"url": "http://ada:secret/or?so@shop.test"}, "is 'http://…@shop.test'; give one such as"),
        ({"url": "http://shop.test/?token=secret"}, "has a query or fragment"),
        ({"url": "http://shop.test/#secret"}, "has a query or fragment"),
        ({"api_key": "secret\nX: 1"}, "api_key is empty, or holds what no header may"),
        ({"user_token": ""}, "user_token is empty"),
        ({"retries": -1}, "retries is -1"),
        ({"timeout": 0}, "timeout 0"),
    ],
)
def test_what_no_client_can_be_made_of_is_told(options, said):
    for kind in (Client, AsyncClient):
        with pytest.raises(errors.InvalidInputError, match=re.escape(said)) as raised:
            kind(**{"url": URL, **options})
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "ask",
    [
        lambda shop: shop.search([float("nan")]),
        lambda shop: shop.search("half a pair \ud800"),
        lambda shop: shop.upsert([{"object_id": "a", "payload": {"at": {1, 2}}}]),
        lambda shop: shop.forget_user(""),
        lambda shop: shop.forget_user(5),
        lambda shop: shop.forget_user("half a pair \ud800"),
        lambda shop: shop.forget_user("long" * 20_000),
        lambda shop: shop.session("half a pair \ud800"),
        lambda shop: shop.take_back("s", "long" * 20_000),
        lambda shop: shop.click(None, "a"),
    ],
)
def test_what_cannot_be_sent_is_told_before_it_is(make, ask):
    shop = answering(make, httpx.Response(500))

    with pytest.raises(errors.InvalidInputError):
        ask(shop)

    assert shop.asked == []


# Asking again

BUSY = httpx.Response(503, headers={"Retry-After": "0"})
MANY = httpx.Response(429, headers={"Retry-After": "0"})
LOST = httpx.ReadError("the answer is lost")
LATE = httpx.ReadTimeout("no answer")
REFUSED = httpx.ConnectError("refused")
OK = httpx.Response(200, json={"search_results": [FOUND], **PAGE})
DONE = httpx.Response(204)
EMBEDDING = httpx.Response(
    502,
    content=b'{"type": "urn:embedding-studio:embedding"}',
    headers={"content-type": "application/problem+json"},
)
SEARCH, DROP = (lambda shop: shop.search("a")), (lambda shop: shop.drop_collection("a"))
FORGOTTEN = httpx.Response(200, json={"sessions": 1, "removed": {"sessions": 1}, "not_reached": []})
FORGET, TAKE_BACK = (lambda shop: shop.forget_user("ada")), (lambda shop: shop.take_back("s", "a"))
DELETE = lambda shop: shop.delete(["a"])  # noqa: E731, as those above


@pytest.mark.parametrize(
    ("ask", "outcomes", "attempts", "kind"),
    [
        (SEARCH, [BUSY, LOST, OK], 3, None),
        (SEARCH, [LATE, REFUSED, MANY, OK], 4, None),
        (SEARCH, [httpx.Response(502), httpx.Response(504), OK], 3, None),
        (SEARCH, [BUSY], 4, errors.ServiceUnavailableError),
        (SEARCH, [LOST], 4, errors.ServiceUnavailableError),
        (SEARCH, [MANY], 4, errors.TooManyRequestsError),
        (SEARCH, [EMBEDDING], 1, errors.EmbeddingError),
        (SEARCH, [httpx.Response(500)], 1, errors.ServiceError),
        (SEARCH, [httpx.Response(404)], 1, errors.ServiceError),
        (SEARCH, [httpx.Response(503, headers={"Retry-After": "11"})], 1, errors.ServiceUnavailableError),
        (DROP, [REFUSED, MANY, DONE], 3, None),
        (DROP, [LOST], 1, errors.ServiceUnavailableError),
        (FORGET, [REFUSED, MANY, FORGOTTEN], 3, None),
        (FORGET, [LATE, FORGOTTEN], 1, errors.ServiceUnavailableError),
        (FORGET, [BUSY, FORGOTTEN], 1, errors.ServiceUnavailableError),
        (TAKE_BACK, [REFUSED, MANY, httpx.Response(200, json={"taken_back": 1})], 3, None),
        (TAKE_BACK, [LOST], 1, errors.ServiceUnavailableError),
        (DELETE, [REFUSED, MANY, httpx.Response(200, json={"deleted": 1})], 3, None),
        (DELETE, [LOST], 1, errors.ServiceUnavailableError),
        (DROP, [BUSY], 1, errors.ServiceUnavailableError),
    ],
)
def test_a_request_is_sent_again_where_that_changes_nothing(  # noqa: PLR0917, a row of the table
    make, monkeypatch, ask, outcomes, attempts, kind
):
    slept = sleeping(monkeypatch)
    shop = answering(make, *outcomes)

    if kind is None:
        ask(shop)
    else:
        with pytest.raises(kind):
            ask(shop)

    assert len(shop.asked) == attempts
    assert len({request.content for request in shop.asked}) == 1
    assert len(slept) == attempts - 1


def sleeping(monkeypatch) -> list[float]:
    """Return the seconds for which clients would have waited from now on; nobody waits."""
    slept: list[float] = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("anyio.sleep", sleep)
    return slept


def test_waits_are_drawn_grow_and_are_not_shorter_than_the_service_asks(make, monkeypatch):
    slept = sleeping(monkeypatch)
    waits = []
    for _ in range(50):
        answering(make, *[LOST] * 4, OK, retries=9).search("a")
        waits.append(slept[:])
        slept.clear()
    asked = httpx.Response(429, headers={"Retry-After": "7"})
    dated = httpx.Response(429, headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"})
    answering(make, asked, dated, OK).search("a")
    endless = httpx.Response(429, headers={"Retry-After": f"Fri, 31 Dec {'9' * 20} 23:59:59 GMT"})
    answering(make, endless, OK).search("a")

    for n, column in enumerate(zip(*waits, strict=True)):
        assert 0 <= min(column) < max(column) <= 0.2 * 2**n
        assert len(set(column)) > 25
    assert 7 <= slept[0] <= 7.2
    assert slept[1] <= 0.4
    assert slept[2] <= 0.2


class LosesAnswers(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Sends a request, and loses the first answer to each."""

    def __init__(self) -> None:
        self._sync, self._async = httpx.HTTPTransport(), httpx.AsyncHTTPTransport()
        self.seen: set[bytes] = set()

    def handle_request(self, request):
        answer = self._sync.handle_request(request)
        return self._first(request, answer, answer.read())

    async def handle_async_request(self, request):
        answer = await self._async.handle_async_request(request)
        return self._first(request, answer, await answer.aread())

    def _first(self, request, answer, _):
        if request.content in self.seen:
            return answer
        self.seen.add(request.content)
        raise LOST

    def close(self):
        self._sync.close()

    async def aclose(self):
        await self._async.aclose()


def test_what_was_done_though_its_answer_was_lost_counts_once(shop, make, served, context, monkeypatch):
    sleeping(monkeypatch)
    unlucky = make(served[1], transport=LosesAnswers())

    page = unlucky.search("a", user_id="ada", create_session=True)
    receipt = unlucky.click(page.session_id, "a")
    second = unlucky.click(page.session_id, "a")
    recorded = unlucky.record_sessions([{"session_id": "s", "events": [{"object_id": "a"}]}])
    registered = unlucky.register_session("b", ["ab"], user_id="ada")
    indexed = unlucky.upsert([{"object_id": "a", "text": "b"}])

    assert {receipt.disposition, second.disposition} == {"duplicate"}
    assert [each.disposition for each in recorded] == ["continued"]
    sessions = [each.session for each in context.storage.clickstream.scan()]
    assert {each.session_id for each in sessions} == {page.session_id, "s", registered.session_id}
    assert sum(len(each.events) for each in sessions) == 3
    assert indexed == client.Indexed(unchanged=1)


# Batches


def test_objects_are_sent_some_at_a_time_and_an_error_says_which_were_stored(shop, context):
    objects = [{"object_id": f"o{n}", "text": "a"} for n in range(10)]

    many = shop.upsert(iter(objects), batch_size=4)
    with pytest.raises(errors.InvalidInputError, match="#/items/1") as raised:
        shop.upsert(
            [*objects, {"object_id": "x", "text": "a"}, {"object_id": "y"}, {"object_id": "z", "text": "a"}],
            batch_size=10,
        )

    assert many.indexed == 10
    assert raised.value.__notes__ == ["in the 3 objects from number 10 on; those before are stored"]
    assert shop.get(["x", "z"]) == []


def test_no_request_is_larger_than_a_service_takes(make):
    shop = answering(make, httpx.Response(200, json={"indexed": 1, "updated": 0, "unchanged": 0}))

    shop.upsert({"object_id": str(n), "text": "x" * 300_000} for n in range(7))

    assert [len(json.loads(each.content)["items"]) for each in shop.asked] == [3, 3, 1]


# What there is


EVERY_CALL: list[calls.Call[Any]] = [
    calls.search("a"),
    calls.rank("a", []),
    calls.bend("a"),
    calls.push_events("s", []),
    calls.push_events_of_sessions([]),
    calls.register_session("a", []),
    calls.record_sessions([], collection="default"),
    calls.session("s"),
    calls.mark_irrelevant("s"),
    calls.take_back("s", "a/b"),
    calls.upsert([]),
    calls.update_payloads({}),
    calls.delete([]),
    calls.get([]),
    calls.scrolled(None),
    calls.collections(),
    calls.collection("c"),
    calls.create_collection("c"),
    calls.drop_collection("c"),
    calls.set_alias("a", "c"),
    calls.drop_alias("a"),
    calls.forget_user("u"),
    calls.exported_user("u"),
    calls.listed_orders(None, 0, 1),
    calls.order("s"),
    calls.order_counts(),
    calls.retry_order("s"),
    calls.cancel_order("s"),
    calls.ready(),
]

NOT_COVERED = {
    "use_session_for_improvement": "a click places the order; retry_order places it again",
    "list_sessions": "the console's",
    "get_user_state": "as above",
    "get_user_map": "as above",
    "get_findings": "as above",
    "get_settings": "as above",
    "update_collection": "as above",
    "start_report": "as above",
    "list_reports": "as above",
    "get_report": "as above",
    "stop_report": "as above",
    "list_quarantined_users": "an operator's: the command line",
    "quarantine_user": "as above",
    "release_user": "as above",
    "list_keys": "an operator's: the command line",
    "create_key": "as above",
    "rotate_key": "as above",
    "revoke_key": "as above",
    "disregard_key": "as above",
    "push_algolia_events": "for Algolia's own clients",
    "forget_algolia_user": "as above",
    "push_ubi_queries": "for OpenSearch's own clients",
    "push_ubi_events": "as above",
    "get_health": "for whoever starts the process; ready says more",
    "get_metrics": "for Prometheus",
}


def test_every_route_is_covered_or_listed_as_not_covered(served):
    document = served[0].openapi()
    patterns = {
        (method.upper(), re.compile(re.sub(r"\{\w+\}", "[^/]+", path))): operation["operationId"]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }

    covered = {
        operation
        for call in EVERY_CALL
        for (method, path), operation in patterns.items()
        if call.method == method and path.fullmatch(call.path)
    }

    made = {
        name
        for name, each in vars(calls).items()
        if inspect.isfunction(each) and "Call[" in str(inspect.signature(each).return_annotation)
    }
    assert covered.isdisjoint(NOT_COVERED)
    assert covered | set(NOT_COVERED) == set(patterns.values())
    assert len(EVERY_CALL) == len({name for name in made if not name.startswith("_")} - {"click"})


OTHERWISE = {
    "FoundPage": ({"results"}, {"search_results", "distance_direction"}),
    "EventReceipt": ({"session_id"}, set()),
    "BentAnswer": (set(), set()),
}
"""Where a class has other fields than the document: more, and less."""


def test_answers_have_the_fields_of_the_document(served):
    schemas = served[0].openapi()["components"]["schemas"]
    kinds = [
        each for each in vars(answers).values() if isinstance(each, type) and dataclasses.is_dataclass(each)
    ]

    compared = 0
    for kind in kinds:
        if kind.__name__ in {"Readiness", "Explanation", "Influence", "SharedInfluence"}:
            continue
        more, less = OTHERWISE.get(kind.__name__, (set(), set()))
        fields = {each.name for each in dataclasses.fields(kind)}
        assert fields - more == set(schemas[kind.__name__]["properties"]) - less, kind
        compared += 1
    assert compared > 15


def test_both_clients_have_the_same_methods_with_the_same_parameters():
    def methods(kind):
        return {
            name: str(inspect.signature(each).replace(return_annotation=None))
            for name, each in vars(kind).items()
            if not name.startswith("_")
        }

    sync, concurrent = methods(Client), methods(AsyncClient)
    assert sync.pop("close") == concurrent.pop("aclose")
    assert sync == concurrent
    assert all(getattr(kind, name).__doc__ for kind in (Client, AsyncClient) for name in sync)


def test_a_client_is_closed_at_the_end_of_its_block():
    async def used():
        async with AsyncClient(URL) as concurrent:
            pass
        return concurrent._http.is_closed

    with Client(URL) as sync:
        pass

    assert sync._http.is_closed
    assert asyncio.run(used())


def test_importing_the_client_loads_nothing_heavy():
    program = (
        "import sys; from embedding_studio import Client\n"
        "Client('http://localhost:8000')\n"
        "print([name for name in ('numpy', 'pydantic', 'psycopg', 'onnxruntime', 'tokenizers', 'fastapi')"
        " if name in sys.modules])"
    )

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"
