"""The routes of other systems' clients: bodies as these send them."""

import json
import time
from functools import partial

import pytest

from embedding_studio.api import collectors
from embedding_studio.api.app import create_app
from embedding_studio.importing import Importer
from test_api_service import KEYS, SEARCH, letters_context, pointers_of, problem_of, serving

ALGOLIA = "/1/events"
UPSERT = "/api/v1/embeddings/upsert"


@pytest.fixture
def make_context(tmp_path):
    return partial(letters_context, tmp_path)


@pytest.fixture
def client(make_context):
    with serving(create_app(make_context())) as client:
        fill(client)
        yield client


def fill(client, **headers):
    items = [{"object_id": each, "text": each} for each in ("a", "ab", "b")]
    assert client.post(UPSERT, json={"items": items}, headers=headers).status_code == 200
    search = {"search_query": "a", "user_id": "ada", "session_id": "q1", "create_session": True}
    assert client.post(SEARCH, json=search, headers=headers).status_code == 200


def now():
    return int(time.time() * 1000)


def event(**given):
    """Return one as search-insights.js sends it."""
    return {
        "eventType": "click",
        "eventName": "Hit Clicked",
        "index": "default",
        "userToken": "ada",
        "queryID": "q1",
        "objectIDs": ["ab"],
        "positions": [2],
        "timestamp": now(),
    } | given


def became(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()


def events_of(client, session_id, **headers):
    session = client.get("/api/v1/clickstream/session", params={"session_id": session_id}, headers=headers)
    return [(each["object_id"], each["event_type"]) for each in session.json()["events"]]


def test_a_beacon_of_algolias_client_is_taken_with_its_key_in_the_url(make_context):
    admin = {"Authorization": "Bearer admin-7f3a-0123456789"}
    keys = KEYS | {"write_api_key": "write-9-0123456789"}
    agent = "X-Algolia-Application-Id=APP&X-Algolia-Agent=insights-js%20(2.17.3)"
    with serving(create_app(make_context(**keys))) as client:
        fill(client, **admin)
        body = json.dumps({"events": [event()]})
        beacon = {"Content-Type": "text/plain;charset=UTF-8"}

        refused = client.post(f"{ALGOLIA}?{agent}", content=body, headers=beacon)
        unknown = client.post(f"{ALGOLIA}?{agent}&X-Algolia-API-Key=x", content=body, headers=beacon)
        taken = client.post(
            f"{ALGOLIA}?{agent}&X-Algolia-API-Key=write-9-0123456789", content=body, headers=beacon
        )
        lower = client.post(f"{ALGOLIA}?x-algolia-api-key=write-9-0123456789", content=body, headers=beacon)
        header = client.post(ALGOLIA, content=body, headers={"X-Algolia-API-Key": "write-9-0123456789"})
        forbidden = client.delete("/1/usertokens/ada", headers={"X-Algolia-API-Key": "write-9-0123456789"})
        forgotten = client.delete("/1/usertokens/ada", headers={"X-Algolia-API-Key": "admin-7f3a-0123456789"})
        gone = client.get("/api/v1/clickstream/session", params={"session_id": "q1"}, headers=admin)

    assert (refused.status_code, unknown.status_code) == (401, 401)
    assert became(taken) == {
        "status": 200,
        "message": "OK",
        "sessions": {},
        "events": {"accepted": 1},
        "left_out": {},
    }
    assert [became(each)["events"] for each in (lower, header)] == [{"duplicate": 1}] * 2
    assert (forbidden.status_code, became(forgotten)["status"], gone.status_code) == (403, 200, 404)


def test_a_key_in_the_url_may_have_any_character(make_context):
    with serving(create_app(make_context(write_api_key="cl\u00e9\u20ac-01234567890"))) as client:
        answers = [
            client.post(ALGOLIA, params={"X-Algolia-API-Key": key}, json={"events": []})
            for key in ("cl\u00e9\u20ac-01234567890", "\u20ac")
        ]

    assert [each.status_code for each in answers] == [200, 401]


def test_an_event_of_algolia_without_a_query_belongs_to_its_users_last_search_that_showed_it(client):
    found = event(eventType="conversion", eventSubtype="purchase", positions=None, objectIDs=["b"])
    del found["queryID"], found["positions"]
    strangers = {"userToken": "eve", "eventType": "view", "queryID": None, "positions": None}

    answer = client.post(ALGOLIA, json={"events": [found, event(**strangers), event(queryID="q9")]})

    assert became(answer)["events"] == {"accepted": 1, "waiting": 1}
    assert list(became(answer)["left_out"].values()) == [1]
    assert events_of(client, "q1") == [("b", "purchase")]


def test_events_of_algolia_on_what_is_not_here_are_counted(client):
    filters = event(filters=["brand:acme"])
    del filters["objectIDs"]
    sent = [event(index="elsewhere"), event(objectIDs=["gone"]), filters]

    answer = became(client.post(ALGOLIA, json={"events": sent}))

    assert answer["events"] == {}
    assert answer["left_out"] == {
        "there is no collection 'elsewhere'": 1,
        "an event on an object that the collection does not have": 1,
    }


@pytest.mark.parametrize(
    ("wrong", "pointer", "sentence"),
    [
        ({"eventName": "x" * 65}, "#/events/1", "eventName has 1 to 64 characters"),
        ({"eventType": "hover"}, "#/events/1", "eventType is click, view or conversion"),
        ({"userToken": "a b"}, "#/events/1", "userToken has 1 to 129"),
        ({"objectIDs": ["a"] * 21}, "#/events/1", "objectIDs are a list of 1 to 20"),
        ({"positions": [0]}, "#/events/1", "positions belong to a click"),
        ({"positions": [1, 2]}, "#/events/1", "as many as objectIDs"),
        ({"timestamp": 1_600_000_000_000}, "#/events/1/timestamp", "at most 30 days ago"),
        ({"index": None}, "#/events/1", "the name of an index"),
        ({"index": "a\0"}, "#/events/1", "the name of an index"),
        ({"index": "x" * 513}, "#/events/1", "the name of an index"),
        ({"events": [event(timestamp=1)], "eventName": None}, "#/events/1", "eventName has 1 to 64"),
    ],
)
def test_a_wrong_event_of_algolia_is_refused_with_a_sentence_and_its_place(client, wrong, pointer, sentence):
    answer = client.post(ALGOLIA, json={"events": [event(), event(**wrong)]})

    assert pointers_of(answer) == [pointer]
    assert sentence in problem_of(answer)["detail"]
    assert events_of(client, "q1") == []


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("{", "the body is not JSON"),
        ("[]", "events are a list"),
        ('{"events": 1}', "events are a list"),
        (json.dumps({"events": [0] * 1001}), "1001 events at once are too many; send at most 1000"),
    ],
)
def test_a_body_that_is_none_of_algolias_is_refused(client, body, sentence):
    assert sentence in problem_of(client.post(ALGOLIA, content=body))["detail"]


def test_the_collector_of_ubi_sends_queries_and_events_in_lists(client):
    at = now()
    query = {"query_id": "u1", "client_id": "bob", "user_query": "ab", "timestamp": at, "application": "shop"}
    click = {
        "action_name": "click",
        "query_id": "u1",
        "client_id": "bob",
        "timestamp": at + 1000,
        "event_attributes": {"object": {"object_id": "ab"}, "position": {"ordinal": 1}},
    }

    searched = client.post("/ubi_queries", json=[query | {"query_response_hit_ids": ["b", "ab"]}])
    clicked = client.post(
        "/ubi_events", json=[click, click, {"action_name": "page_exit", "timestamp": at}, 7]
    )
    one = client.post("/ubi_events", json=click | {"action_name": "add_to_cart"})

    assert became(searched)["sessions"] == {"recorded": 1}
    assert became(clicked)["events"] == {"accepted": 1, "duplicate": 1}
    assert became(clicked)["left_out"] == {"an event about no object": 1, "a row that is no JSON object": 1}
    assert became(one)["events"] == {"accepted": 1}
    assert set(events_of(client, "u1")) == {("ab", "click"), ("ab", "add_to_cart")}


def test_an_event_of_ubi_that_names_its_text_belongs_to_no_search_for_another(client):
    fill(client)
    for text, object_id in (("alpha", "b"), ("beta", "ab")):
        click = {
            "action_name": "click",
            "client_id": "kim",
            "user_query": text,
            "timestamp": now(),
            "event_attributes": {"object": {"object_id": object_id}},
        }
        answer = client.post("/ubi_events", json=click)
        assert became(answer)["sessions"] == {"recorded": 1}, text


def test_application_names_the_collection_of_ubi_where_there_is_such(client):
    client.put("/api/v1/collections/aliases/shop", json={"name": "default"})
    query = {"query_id": "u1", "client_id": "bob", "user_query": "ab", "timestamp": now()}

    client.post("/ubi_queries", json=[query | {"application": "shop"}])
    too_many = problem_of(client.post("/ubi_events", json=[{}] * 10_001))

    session = client.get("/api/v1/clickstream/session", params={"session_id": "u1"}).json()
    assert session["collection"] == "default"
    assert "rows at once are too many" in too_many["detail"]


@pytest.mark.parametrize("application", ["a\0", "x" * 513, "", {"a": 1}])
def test_an_application_that_no_collection_can_be_called_by_is_as_one_that_there_is_not(client, application):
    query = {"query_id": "u1", "client_id": "bob", "user_query": "ab", "timestamp": now()}

    answer = client.post("/ubi_queries", json=[query | {"application": application}])

    assert became(answer)["sessions"] == {"recorded": 1}


def test_rows_of_many_applications_that_are_no_collections_are_stored_at_once(client, monkeypatch):
    stored = []

    class Counted(Importer):
        def run(self, entries):
            stored.append(entries)
            return super().run(entries)

    monkeypatch.setattr(collectors, "Importer", Counted)
    query = {"client_id": "bob", "user_query": "ab", "timestamp": now()}

    answer = client.post(
        "/ubi_queries", json=[query | {"application": f"app {n}", "query_id": f"u{n}"} for n in range(50)]
    )

    assert became(answer)["sessions"] == {"recorded": 50}
    assert len(stored) == 1


def test_a_browser_may_send_to_the_collectors_from_the_origins_that_are_allowed(make_context):
    asked = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-algolia-api-key",
    }
    with serving(create_app(make_context(cors_origins=["https://shop.example"]))) as client:
        allowed = client.options(ALGOLIA, headers=asked)

    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://shop.example"


def test_events_of_collectors_are_counted_in_the_metrics(client):
    client.post(ALGOLIA, json={"events": [event(), event()]})

    told = client.get("/metrics").text
    assert 'embedding_studio_events_total{disposition="accepted",kind="click"} 1.0' in told
    assert 'embedding_studio_events_total{disposition="duplicate",kind="click"} 1.0' in told
