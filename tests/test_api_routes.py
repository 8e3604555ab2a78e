"""What each route promises. What they share is in ``test_api_service.py``."""

import json
import time
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from embedding_studio.api.app import create_app
from embedding_studio.api.embeddings import FoundPage
from test_api_service import (
    EVENTS,
    KEYS,
    SEARCH,
    SESSION,
    letters_context,
    pointers_of,
    problem_of,
    serving,
)

UPSERT = "/api/v1/embeddings/upsert"
DELETE = "/api/v1/embeddings/delete"
PAYLOADS = "/api/v1/embeddings/payloads"
OBJECTS = "/api/v1/embeddings/objects"
SCROLL = "/api/v1/embeddings/scroll"
RANK = "/api/v1/embeddings/rank"
BEND = "/api/v1/embeddings/bend"
COLLECTIONS = "/api/v1/collections"
ORDERS = "/api/v1/improvement/orders"
SESSIONS = "/api/v1/clickstream/sessions"
EVENTS_OF_SESSIONS = "/api/v1/clickstream/events"
IRRELEVANT = "/api/v1/clickstream/session/irrelevant"
USE = "/api/v1/clickstream/internal/session/use-for-improvement"

NASTY = [
    "o'brien",
    "'; DROP TABLE sessions; --",
    '" OR 1=1 --',
    "a/b?c#d%2F",
    "{}[]$1 %s %(x)s \\",
    "日本 🦊\n\tx\n",
]


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


def fill(client: httpx.Client) -> None:
    """Three objects whose vectors are [a's, b's, c's]: the cosine distances to "a" are closed forms."""
    items = [
        {"object_id": "all-a", "text": "aaa", "payload": {"price": 30, "brand": "acme"}},
        {"object_id": "a-and-b", "text": "ab", "payload": {"price": 10, "brand": "apex"}},
        {"object_id": "all-b", "text": "bb", "payload": {"price": 20, "brand": "acme"}},
    ]
    assert client.post(UPSERT, json={"items": items}).status_code == 200


def ids_of(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [found["object_id"] for found in answer.json()["search_results"]]


def search_and_click(
    client: httpx.Client, user_id: str, session_id: str, object_id: str, query: str = "a"
) -> None:
    shown = client.post(
        SEARCH,
        json={"search_query": query, "user_id": user_id, "session_id": session_id, "create_session": True},
    )
    assert object_id in ids_of(shown)
    sent = client.post(EVENTS, json={"session_id": session_id, "events": [{"object_id": object_id}]})
    assert sent.json()["events"][0]["disposition"] == "accepted"


# Sessions


def test_a_registered_session_comes_back_with_numbered_results(client):
    fill(client)
    body = {
        "session_id": "s1",
        "search_query": "aab",
        "search_results": [
            {"object_id": "all-a", "rank": 0.25, "meta": {"shelf": 3}},
            {"object_id": "all-b"},
        ],
        "search_meta": {"page": "home"},
        "user_id": "ada",
        "created_at": 1_760_000_000,
    }

    registered = client.post(SESSION, json=body)
    read = client.get(SESSION, params={"session_id": "s1"})

    assert registered.status_code == 201
    assert registered.json() == read.json()
    assert read.json() == {
        "session_id": "s1",
        "search_query": "aab",
        "user_id": "ada",
        "created_at": 1_760_000_000,
        "collection": "default",
        "search_results": [
            {
                "object_id": "all-a",
                "rank": 0.25,
                "meta": {"shelf": 3},
                "position": 1,
                "personalised": False,
                "propensity": 1.0,
            },
            {
                "object_id": "all-b",
                "rank": None,
                "meta": None,
                "position": 2,
                "personalised": False,
                "propensity": 1.0,
            },
        ],
        "search_meta": {"page": "home"},
        "request": None,
        "pages": [],
        "is_irrelevant": False,
        "events": [],
    }


def test_the_same_session_again_changes_nothing(client):
    fill(client)
    body = {"session_id": "s1", "search_query": "a", "user_id": "ada", "created_at": 1_760_000_000}
    first = client.post(SESSION, json=body)

    again = client.post(SESSION, json=body)

    assert again.status_code == 201
    assert again.json() == first.json()


def test_the_same_session_with_other_results_is_a_conflict(client):
    fill(client)
    body = {"session_id": "s1", "search_query": "a", "search_results": [{"object_id": "all-a"}]}
    client.post(SESSION, json=body)

    for results in ([{"object_id": "all-b"}], [{"object_id": "all-a", "position": 7}]):
        other = client.post(SESSION, json=body | {"search_results": results})
        assert other.status_code == 409
        assert "other results" in problem_of(other)["detail"]
    assert client.post(SESSION, json=body).status_code == 201


def test_a_session_id_that_is_taken_is_a_conflict_that_does_not_tell_whose_it_is(client):
    fill(client)
    client.post(SESSION, json={"session_id": "s1", "search_query": "a private thing", "user_id": "ada"})

    answers = [
        client.post(SESSION, json={"session_id": "s1", "search_query": "other", "user_id": "bob"}),
        client.post(
            SEARCH,
            json={"search_query": "a", "user_id": "bob", "session_id": "s1", "create_session": True},
        ),
        client.post(SEARCH, json={"search_query": "a", "user_id": "bob", "session_id": "s1", "offset": 1}),
    ]

    for answer in answers:
        assert answer.status_code == 409
        assert problem_of(answer)["type"] == "urn:embedding-studio:conflict"
        assert "ada" not in answer.text
        assert "private" not in answer.text


def test_a_session_for_an_unknown_collection_is_not_found(client):
    answer = client.post(SESSION, json={"session_id": "s1", "collection": "nowhere"})

    assert answer.status_code == 404
    assert problem_of(answer)["type"] == "urn:embedding-studio:collection-not-found"


@pytest.mark.parametrize("milliseconds", [1_760_000_000_000, 10**30])
def test_milliseconds_are_refused_with_a_sentence_that_says_so(client, milliseconds):
    session = client.post(SESSION, json={"session_id": "s1", "created_at": milliseconds})
    events = client.post(
        EVENTS, json={"session_id": "s1", "events": [{"object_id": "o", "created_at": milliseconds}]}
    )

    assert pointers_of(session) == ["#/created_at"]
    assert pointers_of(events) == ["#/events/0/created_at"]
    assert "looks like milliseconds" in session.json()["detail"]


@pytest.mark.parametrize(
    ("vectors", "word"),
    [
        ([[1, 0]], "dimensions"),
        ([[0, 0, 0]], "zero"),
        ([[1, 2, 3], [1, 2]], "one length"),
        ([], "shape"),
        ([[]], "shape"),
        ([[1, "2", 3]], "numbers"),
        ([[True, False, True]], "numbers"),
        ([[[1, 2, 3]]], "numbers"),
        ([[1e39, 0, 0]], "finite"),
        ([[10**400, 0, 0]], "whole number"),
        ("abc", "numbers"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused_with_their_place_and_a_reason(client, vectors, word):
    fill(client)

    session = client.post(SESSION, json={"session_id": "s1", "query_vectors": vectors})
    upsert = client.post(UPSERT, json={"items": [{"object_id": "o1", "vectors": vectors}]})

    assert pointers_of(session) == ["#/query_vectors"]
    assert pointers_of(upsert) == ["#/items/0/vectors"]
    assert word in session.json()["detail"]
    assert word in upsert.json()["detail"]
    assert client.get(SESSION, params={"session_id": "s1"}).status_code == 404


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_know_are_refused(client, number):
    fill(client)
    bodies = {
        UPSERT: '{"items": [{"object_id": "o", "vectors": [[1, NUMBER, 0]]}]}',
        DELETE: '{"object_ids": ["o"], "collection": NUMBER}',
        SEARCH: '{"search_query": "a", "max_distance": NUMBER}',
        SESSION: '{"session_id": "s1", "search_meta": {"deep": [{"x": NUMBER}]}}',
    }

    for path, body in bodies.items():
        answer = client.post(
            path, content=body.replace("NUMBER", number), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 422, path
        problem_of(answer)


@pytest.mark.parametrize("text", ["a\\u0000b", "a\\ud800b"])
def test_text_that_a_database_cannot_keep_is_refused(client, text):
    fill(client)
    bodies = {
        UPSERT: '{"items": [{"object_id": "o", "text": "TEXT"}]}',
        DELETE: '{"object_ids": ["TEXT"]}',
        SEARCH: '{"search_query": "TEXT"}',
        SESSION: '{"session_id": "s1", "search_meta": {"deep": [{"TEXT": 1}]}}',
        EVENTS: '{"session_id": "s1", "events": [{"object_id": "o", "event_type": "TEXT"}]}',
    }

    for path, body in bodies.items():
        answer = client.post(
            path, content=body.replace("TEXT", text), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 422, path
    assert client.get(SESSION, params={"session_id": "a\x00b"}).status_code == 422


def test_json_that_is_nested_too_deeply_is_refused(client):
    def nested(levels: int) -> dict:
        return {"in": nested(levels - 1)} if levels else {}

    fill(client)

    fits = client.post(SESSION, json={"session_id": "s1", "search_meta": nested(60)})
    deep = client.post(SESSION, json={"session_id": "s2", "search_meta": nested(70)})
    filtered = client.post(SEARCH, json={"search_query": "a", "filter": nested(70)})

    assert fits.status_code == 201
    assert pointers_of(deep) == ["#/search_meta"]
    assert pointers_of(filtered) == ["#/filter"]


# Events


def test_every_event_is_told_what_became_of_it(client):
    fill(client)
    at = 1_760_000_000
    session = {"session_id": "s1", "created_at": at, "search_results": [{"object_id": "all-a"}]}
    client.post(SESSION, json=session)
    told = [
        ("all-a", "click", "e1", at + 5, "accepted"),
        ("all-a", "click", "e1", at + 9, "duplicate"),
        ("all-a", "purchase", "e1", at + 5, "conflict"),
        ("all-b", "click", "e1", at + 5, "conflict"),
        ("all-b", "purchase", "e2", at + 6, "unknown_object"),
        ("all-a", "click", "e3", at - 60, "accepted"),  # a clock that is behind
        ("all-a", "click", "e4", at - 61, "too_early"),
        ("all-a", "item_click", "e5", at + 5, "unknown_type"),
        ("all-a", "Click", "e6", at + 5, "unknown_type"),
        ("all-a", "view", "e7", at + 5, "accepted"),
    ]
    fields = ("object_id", "event_type", "event_id", "created_at", "disposition")
    receipts = [dict(zip(fields, each, strict=True)) for each in told]
    events = [{name: value for name, value in each.items() if name != "disposition"} for each in receipts]

    answer = client.post(EVENTS, json={"session_id": "s1", "events": events})
    again = client.post(EVENTS, json={"session_id": "s1", "events": events[2:4]})
    unknown = client.post(EVENTS, json={"session_id": "gone", "events": events[:1]})

    assert answer.status_code == 200
    assert answer.json() == {"session_id": "s1", "events": receipts}
    assert [each["disposition"] for each in again.json()["events"]] == ["conflict", "conflict"]
    assert [each["disposition"] for each in unknown.json()["events"]] == ["waiting"]
    kept = client.get(SESSION, params={"session_id": "s1"}).json()["events"]
    assert sorted(each["event_id"] for each in kept) == ["e1", "e2", "e3", "e4", "e5", "e6", "e7"]


@pytest.mark.parametrize("wrong", [True, "12", 3.0, "yesterday", [1], None])
def test_what_is_no_time_is_refused_with_a_sentence_that_shows_one(client, wrong):
    answer = client.post(SESSION, json={"session_id": "s1", "created_at": wrong})

    assert pointers_of(answer) == ["#/created_at"]
    assert "whole UTC seconds, such as 1760000000, or in ISO 8601" in answer.json()["detail"]


def test_a_search_of_ubi_is_taken_as_it_stands(client):
    """Times in ISO 8601, positions from 0 on."""
    fill(client)
    results = [{"object_id": "all-b", "position": 1}, {"object_id": "all-a", "position": 0}]
    session = {"session_id": "q1", "created_at": "2024-12-10T00:01:29.378Z", "search_results": results}

    answer = client.post(SESSION, json=session)

    assert answer.json()["created_at"] == 1_733_788_889
    shown = client.get(SESSION, params={"session_id": "q1"}).json()["search_results"]
    assert [(each["object_id"], each["position"]) for each in shown] == [("all-a", 1), ("all-b", 2)]


def test_a_position_that_cannot_be_kept_is_refused_with_its_place(client):
    fill(client)

    answer, kept = (
        client.post(
            SESSION,
            json={"session_id": "s1", "search_results": [{"object_id": "all-a", "position": position}]},
        )
        for position in (1_000_000_001, 1_000_000_000)
    )

    assert pointers_of(answer) == ["#/search_results/0/position"]
    assert kept.status_code == 201, kept.text


@pytest.mark.parametrize("ahead", [99_999_999_000, "9999-12-31T23:59:59Z"])
def test_what_lies_ahead_is_of_now_and_the_receipt_says_so(client, ahead):
    fill(client)
    before = int(time.time())
    session = {"session_id": "s1", "created_at": ahead, "search_results": [{"object_id": "all-a"}]}
    event = {"object_id": "all-a", "created_at": before + 4_000}

    registered = client.post(SESSION, json=session).json()
    [told] = client.post(EVENTS, json={"session_id": "s1", "events": [event]}).json()["events"]
    [again] = client.post(EVENTS, json={"session_id": "s1", "events": [event]}).json()["events"]

    assert before - 1 <= registered["created_at"] < told["created_at"] <= int(time.time())
    assert (told["disposition"], again["disposition"]) == ("accepted", "duplicate")


def test_an_event_without_id_sent_twice_counts_once(client):
    fill(client)
    client.post(SESSION, json={"session_id": "s1", "created_at": 1_760_000_000})
    sent = {"session_id": "s1", "events": [{"object_id": "all-a", "created_at": 1_760_000_005}]}

    first, second = client.post(EVENTS, json=sent).json(), client.post(EVENTS, json=sent).json()

    assert first["events"][0]["disposition"] == "accepted"
    assert second["events"][0]["disposition"] == "duplicate"
    assert first["events"][0]["event_id"] == second["events"][0]["event_id"] != ""


def test_more_events_than_allowed_are_refused_and_none_is_kept(make_context):
    with serving(create_app(make_context(max_events_per_request=3))) as client:
        fill(client)
        client.post(SESSION, json={"session_id": "s1"})
        events = [{"object_id": "all-a", "event_id": str(number)} for number in range(4)]

        too_many = client.post(EVENTS, json={"session_id": "s1", "events": events})
        kept = client.get(SESSION, params={"session_id": "s1"}).json()["events"]
        enough = client.post(EVENTS, json={"session_id": "s1", "events": events[:3]})

    assert pointers_of(too_many) == ["#/events"]
    assert "at most 3" in too_many.json()["detail"]
    assert kept == []
    assert enough.status_code == 200


def test_events_of_several_sessions_are_pushed_at_once(client):
    fill(client)
    for key in ("s1", "s2"):
        client.post(SESSION, json={"session_id": key, "search_results": [{"object_id": "all-a"}]})
    events = [
        {"session_id": key, "object_id": "all-a", "event_id": f"of {key}"}
        for key in ("s2", "gone", "s1", "s2")
    ]

    answer = client.post(EVENTS_OF_SESSIONS, json={"events": events})

    assert answer.status_code == 200
    told = [(each["session_id"], each["disposition"]) for each in answer.json()["events"]]
    assert told == [
        ("s2", "accepted"),
        ("gone", "waiting"),
        ("s1", "accepted"),
        ("s2", "duplicate"),
    ]
    assert len(client.get(SESSION, params={"session_id": "s2"}).json()["events"]) == 1


def test_sessions_are_recorded_many_at_once_and_continued_when_they_come_again(client):
    fill(client)
    client.post(SESSION, json={"session_id": "s3", "user_id": "eve"})
    shown = [{"object_id": "all-a"}, {"object_id": "all-b"}]
    sessions = [
        {"session_id": "s1", "user_id": "ada", "search_query": "a", "search_results": shown[:1]},
        {"session_id": "s2", "search_results": shown, "events": [{"object_id": "all-b", "event_id": "e"}]},
        {"session_id": "s3", "user_id": "ada", "search_results": shown},
    ]

    first = client.post(SESSIONS, json={"sessions": sessions})
    sessions[0]["search_results"] = shown
    again = client.post(SESSIONS, json={"sessions": sessions[:1]})

    assert [each["disposition"] for each in first.json()["sessions"]] == ["recorded", "recorded", "taken"]
    assert [each["disposition"] for each in again.json()["sessions"]] == ["continued"]
    stored = [client.get(SESSION, params={"session_id": key}).json() for key in ("s1", "s2", "s3")]
    assert [[r["object_id"] for r in each["search_results"]] for each in stored] == [
        ["all-a", "all-b"],
        ["all-a", "all-b"],
        [],
    ]
    assert [len(each["events"]) for each in stored] == [0, 1, 0]


def test_a_batch_in_which_something_is_wrong_is_refused_whole(make_context):
    with serving(create_app(make_context(max_events_per_request=3))) as client:
        fill(client)
        sessions: list[dict] = [{"session_id": "s1"}, {"session_id": "s2", "query_vectors": [[1.0]]}]
        event = {"session_id": "s1", "object_id": "all-a"}
        long = [{"session_id": "s1", "events": [{"object_id": "all-a"}] * 3}]

        misfit = client.post(SESSIONS, json={"sessions": sessions})
        many = client.post(SESSIONS, json={"sessions": long})
        many_events = client.post(EVENTS_OF_SESSIONS, json={"events": [event] * 4})
        nowhere = client.post(
            SESSIONS,
            json={"sessions": [*sessions[:1], {"session_id": "s3", "collection": "nowhere"}]},
        )
        kept = [client.get(SESSION, params={"session_id": key}).status_code for key in ("s1", "s2", "s3")]

    assert pointers_of(misfit) == ["#/sessions/1/query_vectors"]
    assert pointers_of(many) == ["#/sessions"]
    assert "4 sessions and events at once" in many.json()["detail"]
    assert pointers_of(many_events) == ["#/events"]
    assert nowhere.status_code == 404
    assert kept == [404, 404, 404]


# Orders


def test_a_session_is_put_to_use_and_its_order_can_be_read_retried_and_cancelled(client):
    fill(client)
    client.post(SESSION, json={"session_id": "s1", "user_id": "ada"})

    before = client.get(f"{ORDERS}/s1")
    placed = client.post(USE, json={"session_id": "s1"})
    read = client.get(f"{ORDERS}/s1")
    retried = client.post(f"{ORDERS}/s1/retry")
    cancelled = client.delete(f"{ORDERS}/s1")
    after = client.get(f"{ORDERS}/s1")

    assert before.status_code == after.status_code == 404
    assert problem_of(before)["type"] == "urn:embedding-studio:order-not-found"
    assert placed.status_code == read.status_code == retried.status_code == 200
    assert placed.json() == read.json()
    assert {name: read.json()[name] for name in ("session_id", "user_id", "collection", "status")} == {
        "session_id": "s1",
        "user_id": "ada",
        "collection": "default",
        "status": "pending",
    }
    assert retried.json()["attempts"] == 0
    assert cancelled.status_code == 204
    assert cancelled.content == b""


def test_an_order_that_nobody_placed_cannot_be_retried_or_cancelled(client):
    fill(client)
    client.post(SESSION, json={"session_id": "s1"})

    assert client.post(USE, json={"session_id": "gone"}).status_code == 404
    assert client.post(f"{ORDERS}/s1/retry").status_code == 404
    assert client.delete(f"{ORDERS}/s1").status_code == 404


def test_an_order_that_is_being_learnt_cannot_be_cancelled(make_context):
    context = make_context()
    with serving(create_app(context)) as client:
        fill(client)
        client.post(SESSION, json={"session_id": "s1", "user_id": "ada"})
        client.post(USE, json={"session_id": "s1"})
        assert context.storage.queue.claim(users=1, lease_seconds=60) is not None

        answer = client.delete(f"{ORDERS}/s1")

    assert answer.status_code == 409
    problem_of(answer)


def test_orders_are_listed_by_status_in_pages_and_counted(client):
    fill(client)
    for number in range(5):
        client.post(SESSION, json={"session_id": f"s{number}", "user_id": f"u{number}"})
        client.post(USE, json={"session_id": f"s{number}"})

    first = client.get(ORDERS, params={"status": "pending", "limit": 3}).json()
    second = client.get(ORDERS, params={"limit": 3, "offset": first["next_page_offset"]}).json()
    done = client.get(ORDERS, params={"status": "done"}).json()
    whole = client.get(ORDERS, params={"limit": 5}).json()

    assert [order["session_id"] for order in first["orders"]] == ["s4", "s3", "s2"]
    assert first["next_page_offset"] == 3
    assert [order["session_id"] for order in second["orders"]] == ["s1", "s0"]
    assert second["next_page_offset"] is None
    assert done == {"orders": [], "next_page_offset": None}
    assert whole["next_page_offset"] is None
    assert client.get("/api/v1/improvement/summary").json() == {
        "orders": {"pending": 5, "processing": 0, "done": 0, "failed": 0, "refused": 0}
    }


def test_an_irrelevant_session_says_so(client):
    fill(client)
    client.post(SESSION, json={"session_id": "s1", "user_id": "ada"})

    marked = client.post(IRRELEVANT, json={"session_id": "s1"})

    assert marked.status_code == 204
    assert client.get(SESSION, params={"session_id": "s1"}).json()["is_irrelevant"] is True
    assert client.post(IRRELEVANT, json={"session_id": "gone"}).status_code == 404


def test_what_a_user_did_can_be_looked_at_and_taken_back(service, client):
    fill(client)
    shown = client.post(SEARCH, json={"search_query": "b", "user_id": "ada", "create_session": True}).json()
    session_id = shown["session_id"]
    client.post(EVENTS, json={"session_id": session_id, "events": [{"object_id": "all-a"}]})
    service[0].state.context.improver().improve_once()

    [listed] = client.get(SESSIONS, params={"user_id": "ada"}).json()["sessions"]
    state = client.get("/api/v1/users/ada/state").json()
    drawn = client.get("/api/v1/users/ada/map").json()

    assert (listed["session_id"], listed["search_query"], listed["results"]) == (session_id, "b", 3)
    assert [each["event_type"] for each in listed["events"]] == ["click"]
    assert listed["order"]["status"] == "done"
    assert [each["clicked_ids"] for each in state["queries"]] == [["all-a"]]
    assert "all-a" in {each["object_id"] for each in state["moved"]}
    assert all(0 < each["degrees"] <= 20.001 for each in state["moved"])
    assert {each["identity"] for each in drawn["points"]} == {session_id, "all-a", "a-and-b", "all-b"}

    taken = client.delete(EVENTS, params={"session_id": session_id, "object_id": "all-a"})
    service[0].state.context.improver().improve_once()

    assert taken.json() == {"taken_back": 1}
    state = client.get("/api/v1/users/ada/state").json()
    assert (state["queries"], state["moved"]) == ([], [])
    [listed] = client.get(SESSIONS).json()["sessions"]
    assert [each["event_type"] for each in listed["events"]] == ["taken_back"]
    assert listed["order"]["status"] == "refused"
    assert client.delete(EVENTS, params={"session_id": "gone", "object_id": "all-a"}).status_code == 404


def test_sessions_come_latest_first_and_page_by_page(client):
    fill(client)
    for number in range(5):
        client.post(SESSION, json={"session_id": f"s:{number}", "created_at": 100 + number})

    pages, before = [], None
    while not pages or before:
        page = client.get(SESSIONS, params={"limit": 2} | ({"before": before} if before else {})).json()
        pages.append([each["session_id"] for each in page["sessions"]])
        before = page["next_before"]

    assert pages == [["s:4", "s:3"], ["s:2", "s:1"], ["s:0"]]
    for wrong in ("x", "1:", ":s", "1" * 19 + ":s", "-1:s"):
        assert client.get(SESSIONS, params={"before": wrong}).status_code == 422


def test_a_collections_gate_is_set_and_set_back(client):
    fill(client)

    changed = client.patch("/api/v1/collections/default", json={"gate_threshold": 0.5}).json()
    kept = client.patch("/api/v1/collections/default", json={}).json()
    back = client.patch("/api/v1/collections/default", json={"gate_threshold": None}).json()

    assert [each["gate_threshold"] for each in (changed, kept, back)] == [0.5, 0.5, None]
    assert client.patch("/api/v1/collections/gone", json={"gate_threshold": 0.5}).status_code == 404
    assert client.patch("/api/v1/collections/default", json={"gate_threshold": 1}).status_code == 422


def test_the_settings_of_learning_are_told_with_what_presets_did(client):
    told = client.get("/api/v1/settings").json()
    settings = {each["name"]: each for each in told["settings"]}
    rate = settings["ADJUSTMENT_RATE"]

    assert {"QUERY_SHIFT", "GATE_THRESHOLD", "SHARED_MIN_USERS", "NUM_ITERATIONS"} <= settings.keys()
    assert not [name for name in settings if "KEY" in name or "URL" in name or "SECRET" in name]
    assert (rate["value"], rate["default"], rate["preset"]) == (0.1, 0.1, "balanced")
    assert [(each["name"], each["value"]) for each in rate["presets"]] == [
        ("conservative", 0.03),
        ("balanced", 0.1),
        ("aggressive", 0.3),
    ]
    assert settings["QUERY_SHIFT"]["presets"] == []
    for name in ("ADJUSTMENT_RATE", "NUM_ITERATIONS"):
        for preset in settings[name]["presets"]:
            assert {(each["collection"], each["clicks"]) for each in preset["effects"]} == {
                (each["collection"], each["clicks"]) for each in told["served"]
            }
    assert rate["presets"][1]["effects"] == told["served"]  # balanced is what is served
    assert "benchmarks/presets.py" in told["measured_by"]


def test_the_doctor_says_over_http_what_it_says_at_the_machine(client):
    fill(client)

    found = client.get("/api/v1/doctor").json()["findings"]

    assert {"settings", "keys", "embedder", "storage", "collection default", "queue"} <= {
        each["what"] for each in found
    }
    assert {each["grade"] for each in found} <= {"OK", "WARN", "FAIL"}


# Search


def test_a_search_ranks_by_distance_and_declares_its_direction(client):
    fill(client)

    answer = client.post(SEARCH, json={"search_query": "a", "limit": 2})

    found = answer.json()
    assert [
        {**result, "distance": pytest.approx(result["distance"], abs=1e-6)}
        for result in found["search_results"]
    ] == [
        {
            "object_id": "all-a",
            "distance": pytest.approx(0, abs=1e-6),
            "payload": {"price": 30, "brand": "acme"},
            "position": 1,
            "personalised": False,
            "explanation": None,
        },
        {
            "object_id": "a-and-b",
            "distance": pytest.approx(1 - 2**-0.5, abs=1e-6),  # 45 degrees
            "payload": {"price": 10, "brand": "apex"},
            "position": 2,
            "personalised": False,
            "explanation": None,
        },
    ]
    del found["search_results"]
    assert found == {
        "session_id": None,
        "next_page_offset": 2,
        "personalised": False,
        "metric_type": "cosine",
        "metric_aggregation_type": "min",
        "distance_direction": "smaller_is_nearer",
        "is_sorted": None,
    }


@pytest.mark.parametrize("query", ["b", [0, 1, 0], [[0, 1, 0]], [[0, 2, 0], [0, 1, 0]]])
def test_a_query_is_a_text_a_vector_or_several(client, query):
    fill(client)

    assert ids_of(client.post(SEARCH, json={"search_query": query})) == ["all-b", "a-and-b", "all-a"]


@pytest.mark.parametrize("query", [[0, 0, 0], [1, 2], [], [[1, 2, 3], [1]], {"a": 1}, 7, None, [None, 1, 2]])
def test_a_query_that_is_none_of_them_is_refused_with_a_sentence(client, query):
    fill(client)

    answer = client.post(SEARCH, json={"search_query": query})

    assert pointers_of(answer) == ["#/search_query"]


def test_pages_follow_each_other(client):
    fill(client)

    first = client.post(SEARCH, json={"search_query": "a", "limit": 2})
    second = client.post(
        SEARCH, json={"search_query": "a", "limit": 2, "offset": first.json()["next_page_offset"]}
    )

    assert ids_of(first) + ids_of(second) == ["all-a", "a-and-b", "all-b"]
    assert second.json()["search_results"][0]["position"] == 3
    assert second.json()["next_page_offset"] is None


def test_a_search_keeps_to_filter_distance_and_order(client):
    fill(client)

    acme = {"query": {"term": {"field": "brand", "value": "acme"}}}
    assert ids_of(client.post(SEARCH, json={"search_query": "a", "filter": acme})) == ["all-a", "all-b"]
    assert ids_of(client.post(SEARCH, json={"search_query": "a", "max_distance": 0.5})) == [
        "all-a",
        "a-and-b",
    ]
    rising, falling = (
        ids_of(client.post(SEARCH, json={"search_query": "a", "sort_by": {"field": "price", "order": order}}))
        for order in ("asc", "desc")
    )
    assert rising == ["a-and-b", "all-b", "all-a"]
    assert falling == ["all-a", "all-b", "a-and-b"]


@pytest.mark.parametrize(
    "given",
    [{}, {"query": {"trem": {"field": "brand", "value": "acme"}}}, {"query": {"term": {"field": "x"}}}],
)
def test_a_misspelt_filter_is_refused_and_not_ignored(client, given):
    fill(client)

    answer = client.post(SEARCH, json={"search_query": "a", "filter": given})

    assert pointers_of(answer) == ["#/filter"]


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"limit": 0}, "#/limit"),
        ({"limit": 1_001}, "#/limit"),
        ({"offset": -1}, "#/offset"),
        ({"exploration_ratio": 1.5}, "#/exploration_ratio"),
        ({"sort_by": {"field": "price", "order": "up"}}, "#/sort_by/order"),
        ({"sort_by": {"field": ""}}, "#/sort_by/field"),
        ({"user_id": ""}, "#/user_id"),
        ({"user_id": 5}, "#/user_id"),
        ({"user_id": "u" * 513}, "#/user_id"),
        ({"filter": []}, "#/filter"),
    ],
)
def test_a_field_out_of_bounds_is_refused(client, wrong, pointer):
    fill(client)

    assert pointers_of(client.post(SEARCH, json={"search_query": "a"} | wrong)) == [pointer]


def test_a_search_in_an_unknown_collection_is_not_found(client):
    answer = client.post(SEARCH, json={"search_query": "a", "collection": "nowhere"})

    assert answer.status_code == 404
    assert "nowhere" in problem_of(answer)["detail"]


def test_a_recorded_search_is_a_session_with_what_was_shown_on_all_its_pages(client):
    fill(client)

    first = client.post(
        SEARCH, json={"search_query": "a", "limit": 2, "user_id": "ada", "create_session": True}
    )
    session_id = first.json()["session_id"]
    client.post(
        SEARCH,
        json={"search_query": "a", "limit": 2, "offset": 2, "user_id": "ada", "session_id": session_id},
    )

    session = client.get(SESSION, params={"session_id": session_id}).json()
    assert session["user_id"] == "ada"
    assert session["search_query"] == "a"
    assert [(shown["object_id"], shown["position"]) for shown in session["search_results"]] == [
        ("all-a", 1),
        ("a-and-b", 2),
        ("all-b", 3),
    ]


# Learning, seen through the service


def test_what_a_user_clicked_moves_that_users_results_and_nobody_elses(make_context):
    context = make_context()
    with serving(create_app(context)) as client:
        fill(client)
        plain = client.post(SEARCH, json={"search_query": "a"}).json()
        search_and_click(client, "ada", "s1", "all-b")

        context.improver().improve_once(users=10)

        adas = client.post(SEARCH, json={"search_query": "a", "user_id": "ada", "explain": True}).json()
        bobs = client.post(SEARCH, json={"search_query": "a", "user_id": "bob", "explain": True}).json()
        anyones = client.post(SEARCH, json={"search_query": "a"}).json()
        order = client.get(f"{ORDERS}/s1").json()

    distance = {found["object_id"]: found["distance"] for found in plain["search_results"]}
    clicked = next(found for found in adas["search_results"] if found["object_id"] == "all-b")
    assert order["status"] == "done"
    assert anyones == plain
    assert [found["distance"] for found in bobs["search_results"]] == list(distance.values())
    assert not bobs["personalised"]
    assert "s1" not in str(bobs)
    assert adas["personalised"]
    assert clicked["personalised"]
    assert clicked["distance"] < distance["all-b"]
    assert clicked["explanation"]["base_distance"] == pytest.approx(distance["all-b"], abs=1e-6)
    assert clicked["explanation"]["influences"][0]["session_id"] == "s1"


def test_a_page_of_results_is_written_as_its_model_would_write_it(make_context):
    context = make_context()
    payload = {
        "n": 2**70,
        "small": 1e-7,
        "large": 1e22,
        "s": '\u65e5\u2028\x7f\x1f"\U0001f98a',
        "l": [None, {}],
    }
    with serving(create_app(context)) as client:
        fill(client)
        client.post(PAYLOADS, json={"payloads": [{"object_id": "all-b", "payload": payload}]})
        search_and_click(client, "ada", "s1", "all-b")
        context.improver().improve_once(users=10)
        ada: dict[str, Any] = {"search_query": "a", "user_id": "ada", "limit": 2}
        asked = [ada, ada | {"explain": True, "create_session": True}, ada | {"sort_by": {"field": "price"}}]
        answers = [client.post(SEARCH, json=body) for body in asked]

    for answer in answers:
        page = FoundPage.model_validate_json(answer.content)
        assert page.model_dump_json() == answer.text
        assert payload in [found.payload for found in page.search_results] or page.is_sorted
    assert [found.explanation is None for found in page.search_results] == [True, True]
    assert "influences" in answers[1].text


def test_exploration_shows_the_plain_list_again_and_its_open_slots_are_counted(make_context):
    context = make_context()
    with serving(create_app(context)) as client:
        fill(client)
        search_and_click(client, "ada", "s1", "a-and-b", query="aaab")
        context.improver().improve_once(users=10)
        body = {"search_query": "aaab", "user_id": "ada", "limit": 1}

        own, plain, either = (
            ids_of(client.post(SEARCH, json=body | {"exploration_ratio": ratio})) for ratio in (0, 1, 0.5)
        )
        metrics = client.get("/metrics").text

    assert (own, plain) == (["a-and-b"], ["all-a"])
    assert either in (own, plain)
    assert 'embedding_studio_search_requests_total{personalised="true",status="200"} 3.0' in metrics
    assert "embedding_studio_exploration_slots_total 1.0" in metrics  # at 0 and 1 nothing is left to chance


def test_a_forgotten_user_is_searched_for_like_anybody(make_context):
    context = make_context()
    with serving(create_app(context)) as client:
        fill(client)
        search_and_click(client, "ada", "s1", "all-b")
        context.improver().improve_once(users=10)

        forgotten = client.delete("/api/v1/users/ada")
        again = client.delete("/api/v1/users/ada")
        adas = client.post(SEARCH, json={"search_query": "a", "user_id": "ada"}).json()
        session = client.get(SESSION, params={"session_id": "s1"})

    assert forgotten.json()["sessions"] == forgotten.json()["removed"]["query_memory"] == 1
    assert again.json()["sessions"] == sum(again.json()["removed"].values()) == 0
    assert any("backups" in each for each in again.json()["not_reached"])
    assert not adas["personalised"]
    assert session.status_code == 404


def test_the_write_key_sees_nothing_of_a_users_past(make_context):
    write = {b"Authorization": f"Bearer {KEYS['write_api_key']}".encode()}
    admin = {b"Authorization": f"Bearer {KEYS['admin_api_key']}".encode()}
    with serving(create_app(make_context(**KEYS))) as client:
        client.headers = admin
        fill(client)
        search_and_click(client, "ada", "s1", "all-b")

        client.headers = write
        found = client.post(SEARCH, json={"search_query": "a", "user_id": "ada"})
        explained = client.post(SEARCH, json={"search_query": "a", "user_id": "ada", "explain": True})
        session = client.get(SESSION, params={"session_id": "s1"})

        client.headers = admin
        allowed = client.post(SEARCH, json={"search_query": "a", "user_id": "ada", "explain": True})

    assert found.status_code == allowed.status_code == 200
    assert explained.status_code == session.status_code == 403


# Engines that search elsewhere


def ranked(client: httpx.Client, *candidates: Any, **more: Any) -> httpx.Response:
    body = {"search_query": "a", "candidates": [{"object_id": each} for each in candidates], **more}
    return client.post(RANK, json=body)


def test_candidates_come_back_in_the_order_for_a_user_and_clicks_on_them_are_learnt(service, client):
    fill(client)
    found = ["all-a", "a-and-b", "gone", "all-b"]
    first = ranked(client, *found, user_id="ada", create_session=True, session_id="s1").json()
    client.post(EVENTS, json={"session_id": "s1", "events": [{"object_id": "all-b"}]})
    service[0].state.context.improver().improve_once()

    again, of_another = (ranked(client, *found, user_id=user).json() for user in ("ada", "bob"))

    assert (first["session_id"], first["personalised"], first["unknown"]) == ("s1", False, ["gone"])
    for untouched in (first, of_another):
        assert [each["object_id"] for each in untouched["results"]] == found
    assert again["personalised"]
    assert [each["object_id"] for each in again["results"]] == ["all-a", "all-b", "gone", "a-and-b"]
    assert again["results"][1] == {
        "object_id": "all-b",
        "position": 2,
        "given_position": 4,
        "distance_change": pytest.approx(-0.9, abs=0.2),
        "personalised": True,
    }


def test_a_query_comes_back_as_clicks_bend_it(service, client):
    fill(client)
    search_and_click(client, "ada", "s1", "a-and-b")
    service[0].state.context.improver().improve_once()

    adas, bobs = (
        client.post(BEND, json={"search_query": "a", "user_id": user}).json() for user in ("ada", "bob")
    )

    assert bobs == {"query_vectors": [[1, 0, 0]], "personalised": False, "moved": [], "factors": []}
    [[a, b, c]] = adas["query_vectors"]
    assert (a**2 + b**2, c) == (pytest.approx(1), 0)
    assert a > b > 0
    assert {each["object_id"] for each in adas["moved"]} <= {"all-a", "a-and-b", "all-b"}
    assert all(0 < each["gate"] <= 1 for each in adas["moved"])


def test_wrong_candidates_are_named_by_their_places(client):
    fill(client)

    assert pointers_of(ranked(client, "all-a", "all-b", "all-a")) == ["#/candidates/2/object_id"]
    assert pointers_of(client.post(RANK, json={"search_query": "a"})) == ["#/candidates"]
    wrong = {"search_query": "a", "candidates": [{"object_id": "x", "vectors": [1, 2]}]}
    assert pointers_of(client.post(RANK, json=wrong)) == ["#/candidates/0/vectors"]
    for path, body in ((RANK, {"candidates": []}), (BEND, {})):
        assert pointers_of(client.post(path, json={"search_query": [1, 2], **body})) == ["#/search_query"]
        answer = client.post(path, json={"search_query": "a", "collection": "gone", **body})
        assert answer.status_code == 404
    assert ranked(client, "all-a", user_id="u", create_session=True, session_id="s").status_code == 200
    assert ranked(client, "all-a", user_id="v", create_session=True, session_id="s").status_code == 409


# Objects


def test_objects_are_stored_counted_replaced_and_deleted(client):
    stored = client.post(
        UPSERT, json={"items": [{"object_id": "o1", "text": "a"}, {"object_id": "o2", "text": "b"}]}
    )
    replaced = client.post(
        UPSERT, json={"items": [{"object_id": "o1", "text": "c", "payload": {"new": True}}]}
    )
    found = client.post(SEARCH, json={"search_query": "c", "limit": 1}).json()["search_results"][0]
    deleted = client.post(DELETE, json={"object_ids": ["o1", "o3"]})

    assert stored.json() == {"indexed": 2, "updated": 0, "unchanged": 0}
    assert replaced.json() == {"indexed": 1, "updated": 0, "unchanged": 0}
    assert (found["object_id"], found["payload"]) == ("o1", {"new": True})
    assert found["distance"] == pytest.approx(0, abs=1e-6)
    assert deleted.json() == {"deleted": 1}
    assert ids_of(client.post(SEARCH, json={"search_query": "c"})) == ["o2"]


def test_an_unchanged_text_is_not_embedded_again(client):
    items: list[dict[str, Any]] = [{"object_id": "o1", "text": "a"}, {"object_id": "o2", "text": "b"}]
    client.post(UPSERT, json={"items": items})

    items[1]["payload"] = {"price": 5}
    again = client.post(UPSERT, json={"items": [*items, {"object_id": "o3", "text": "c"}]})

    assert again.json() == {"indexed": 1, "updated": 1, "unchanged": 1}


def test_vectors_are_taken_as_they_are_brought_beside_texts(client):
    items = [
        {"object_id": "o1", "vectors": [[1, 0, 0], [0, 0, 1]], "item_info": {"source": "s3"}},
        {"object_id": "o2", "text": "b"},
        {"object_id": "o3", "vectors": [0, 1, 1]},
    ]

    answer = client.post(UPSERT, json={"items": items})

    assert answer.json() == {"indexed": 3, "updated": 0, "unchanged": 0}
    assert ids_of(client.post(SEARCH, json={"search_query": [0, 0, 1]})) == ["o1", "o3", "o2"]


@pytest.mark.parametrize(
    ("item", "pointer"),
    [
        ({"object_id": "o2"}, "#/items/1"),
        ({"object_id": "o2", "text": "a", "vectors": [[1, 0, 0]]}, "#/items/1"),
        ({"object_id": "o1", "text": "a"}, "#/items/1/object_id"),
        ({"object_id": "o2", "text": " \n"}, "#/items/1/text"),
        ({"object_id": "o2", "vectors": [[1, 0]]}, "#/items/1/vectors"),
        ({"object_id": "", "text": "a"}, "#/items/1/object_id"),
        ({"object_id": "o2", "text": "a", "payload": [1]}, "#/items/1/payload"),
    ],
)
def test_one_wrong_item_is_pointed_at_and_nothing_is_stored(client, item, pointer):
    answer = client.post(UPSERT, json={"items": [{"object_id": "o1", "text": "a"}, item]})

    assert pointers_of(answer) == [pointer]
    assert client.post(SEARCH, json={"search_query": "a"}).json().get("search_results", []) == []


def test_payloads_are_replaced_alone_and_unknown_ids_are_named(client):
    fill(client)

    answer = client.post(
        PAYLOADS,
        json={
            "payloads": [
                {"object_id": "all-a", "payload": {"price": 5}},
                {"object_id": "no-z", "payload": {}},
                {"object_id": "no-y", "payload": {}},
            ]
        },
    )
    again = client.post(
        UPSERT, json={"items": [{"object_id": "all-a", "text": "aaa", "payload": {"price": 30}}]}
    )

    assert answer.json() == {"updated": 1, "unknown": ["no-y", "no-z"]}
    assert again.json() == {"indexed": 0, "updated": 1, "unchanged": 0}


def test_objects_are_read_in_the_order_asked_for(client):
    fill(client)
    client.post(PAYLOADS, json={"payloads": [{"object_id": "all-b", "payload": {"new": [1, None]}}]})

    asked = {"object_ids": ["all-b", "unknown", "a-and-b"]}
    answer = client.post(OBJECTS, json=asked)
    without = client.post(OBJECTS, json={**asked, "with_vectors": False})

    assert [each["vectors"] for each in without.json()["objects"]] == [None, None]
    assert answer.json() == {
        "objects": [
            {"object_id": "all-b", "payload": {"new": [1, None]}, "vectors": [[0, 2, 0]]},
            {"object_id": "a-and-b", "payload": {"price": 10, "brand": "apex"}, "vectors": [[1, 1, 0]]},
        ]
    }


def test_a_collection_is_scrolled_to_its_end(client):
    fill(client)
    acme = {"query": {"term": {"field": "brand", "value": "acme"}}}

    first = client.post(SCROLL, json={"limit": 2}).json()
    second = client.post(SCROLL, json={"limit": 2, "after": first["next_after"]}).json()
    whole = client.post(SCROLL, json={"limit": 3}).json()
    some = client.post(SCROLL, json={"filter": acme, "with_vectors": True}).json()

    assert [each["object_id"] for each in first["objects"]] == ["a-and-b", "all-a"]
    assert first["objects"][0] == {
        "object_id": "a-and-b",
        "payload": {"price": 10, "brand": "apex"},
        "vectors": None,
    }
    assert [each["object_id"] for each in second["objects"]] == ["all-b"]
    assert (first["next_after"], second["next_after"], whole["next_after"]) == ("all-a", None, None)
    assert whole["objects"] == first["objects"] + second["objects"]
    assert [(each["object_id"], each["vectors"]) for each in some["objects"]] == [
        ("all-a", [[3, 0, 0]]),
        ("all-b", [[0, 2, 0]]),
    ]


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        (PAYLOADS, {"payloads": [{"object_id": "a"}]}, "#/payloads/0/payload"),
        (PAYLOADS, {"payloads": [{"object_id": "a", "payload": {}}] * 2}, "#/payloads/1/object_id"),
        (PAYLOADS, {"payloads": [{"object_id": "a", "payload": [1]}]}, "#/payloads/0/payload"),
        (PAYLOADS, {"payloads": [{"object_id": str(n), "payload": {}} for n in range(1001)]}, "#/payloads"),
        (OBJECTS, {"object_ids": [str(n) for n in range(1001)]}, "#/object_ids"),
        (OBJECTS, {"object_ids": [""]}, "#/object_ids/0"),
        (SCROLL, {"limit": 0}, "#/limit"),
        (SCROLL, {"limit": 1001}, "#/limit"),
        (SCROLL, {"after": ""}, "#/after"),
        (SCROLL, {"filter": {"query": {"trem": 1}}}, "#/filter"),
    ],
)
def test_what_is_asked_of_objects_and_cannot_be_is_pointed_at(client, path, body, pointer):
    fill(client)

    assert pointers_of(client.post(path, json=body)) == [pointer]


def test_objects_for_an_unknown_collection_do_not_make_one(client):
    answer = client.post(UPSERT, json={"collection": "typo", "items": [{"object_id": "o1", "text": "a"}]})

    assert answer.status_code == 404
    assert client.get(COLLECTIONS).json() == {"collections": [], "embedder": "letters"}
    bodies: dict[str, dict[str, Any]] = {
        DELETE: {"object_ids": ["o1"]},
        OBJECTS: {"object_ids": []},
        PAYLOADS: {"payloads": []},
        SCROLL: {},
    }
    for path, body in bodies.items():
        assert client.post(path, json=body | {"collection": "typo"}).status_code == 404


def test_without_an_embedder_vectors_serve_and_texts_are_refused(make_context):
    with serving(create_app(make_context(embedder="none"))) as client:
        client.post(COLLECTIONS, json={"name": "default", "index": {"dimensions": 2}})
        brought = client.post(UPSERT, json={"items": [{"object_id": "o1", "vectors": [[1, 0]]}]})
        text = client.post(UPSERT, json={"items": [{"object_id": "o2", "text": "a"}]})
        found = client.post(SEARCH, json={"search_query": [1, 0]})
        asked = client.post(SEARCH, json={"search_query": "a"})

    assert brought.json() == {"indexed": 1, "updated": 0, "unchanged": 0}
    assert ids_of(found) == ["o1"]
    assert pointers_of(text) == ["#/items/0/text"]
    assert pointers_of(asked) == ["#/search_query"]


# Collections


def test_a_collection_is_made_shown_listed_aliased_and_dropped(client):
    body = {
        "name": "shoes",
        "index": {"dimensions": 5, "metric_type": "euclid", "metric_aggregation_type": "avg"},
    }

    made = client.post(COLLECTIONS, json=body)
    again = client.post(COLLECTIONS, json=body)
    aliased = client.put(f"{COLLECTIONS}/aliases/best", json={"collection": "shoes"})
    shown = client.get(f"{COLLECTIONS}/best")
    listed = client.get(COLLECTIONS)
    dropped = client.delete(f"{COLLECTIONS}/shoes")
    after = client.get(f"{COLLECTIONS}/shoes")

    assert made.status_code == again.status_code == 201
    assert made.json() == again.json()
    assert made.json() == {
        "name": "shoes",
        "index": {
            "dimensions": 5,
            "metric_type": "euclid",
            "metric_aggregation_type": "avg",
        },
        "embedder": None,
        "gate_threshold": None,
        "own_past": None,
        "aliases": [],
        "attached": None,
        "filled": None,
        "objects": 0,
    }
    assert aliased.json() == {"alias": "best", "collection": "shoes"}
    assert shown.json() == made.json() | {"aliases": ["best"]}
    assert listed.json() == {"collections": [shown.json()], "embedder": "letters"}
    assert dropped.status_code == 204
    assert after.status_code == 404


def test_a_collection_whose_gate_was_fitted_shows_it_and_may_be_made_again(service, client):
    body = {"name": "shoes", "index": {"dimensions": 5}}
    client.post(COLLECTIONS, json=body)

    service[0].state.context.storage.collections.set_gate_threshold("shoes", 0.9)
    shown = client.get(f"{COLLECTIONS}/shoes")
    again = client.post(COLLECTIONS, json=body)

    assert shown.json()["gate_threshold"] == 0.9
    assert (again.status_code, again.json()) == (201, shown.json())


def test_a_collection_of_the_same_name_and_another_kind_is_a_conflict(client):
    client.post(COLLECTIONS, json={"name": "shoes", "index": {"dimensions": 5}})

    answer = client.post(COLLECTIONS, json={"name": "shoes", "index": {"dimensions": 7}})

    assert answer.status_code == 409
    problem_of(answer)


def test_a_collection_for_the_services_embedder_has_its_size(client):
    made = client.post(COLLECTIONS, json={"name": "texts", "embedder": "letters"})

    assert made.json()["index"]["dimensions"] == 3
    assert made.json()["embedder"] == "letters"


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({}, "#/index/dimensions"),
        ({"index": {"dimensions": 0}}, "#/index/dimensions"),
        ({"index": {"dimensions": 5, "metric_type": "hamming"}}, "#/index/metric_type"),
        ({"embedder": "another"}, "#/embedder"),
        ({"embedder": "letters", "index": {"dimensions": 4}}, "#/index/dimensions"),
    ],
)
def test_a_collection_that_cannot_be_is_refused(client, wrong, pointer):
    assert pointers_of(client.post(COLLECTIONS, json={"name": "texts"} | wrong)) == [pointer]


def test_an_alias_of_nothing_and_a_collection_that_is_not_there_are_not_found(client):
    assert client.put(f"{COLLECTIONS}/aliases/best", json={"collection": "gone"}).status_code == 404
    assert client.delete(f"{COLLECTIONS}/gone").status_code == 404


# Quotes and the like


@pytest.mark.parametrize("nasty", NASTY)
def test_whatever_an_id_holds_it_comes_back_as_it_was_and_does_no_harm(client, nasty):
    fill(client)
    assert client.post(
        UPSERT, json={"items": [{"object_id": nasty, "text": "cc", "payload": {nasty: nasty}}]}
    ).is_success
    search_and_click(client, "ada", "of ada", "all-a")

    by_filter = {"query": {"term": {"field": "brand", "value": nasty}}}
    by_field = {"query": {"term": {"field": nasty, "value": "acme"}}}
    found = client.post(
        SEARCH,
        json={"search_query": "c", "user_id": nasty, "session_id": nasty, "create_session": True, "limit": 1},
    )
    sent = client.post(
        EVENTS, json={"session_id": nasty, "events": [{"object_id": nasty, "event_id": nasty}]}
    )
    session = client.get(SESSION, params={"session_id": nasty})

    assert ids_of(found) == [nasty]
    assert found.json()["search_results"][0]["payload"] == {nasty: nasty}
    assert sent.json()["events"][0]["disposition"] == "accepted"
    assert (session.json()["session_id"], session.json()["user_id"]) == (nasty, nasty)
    assert ids_of(client.post(SEARCH, json={"search_query": "a", "filter": by_filter})) == []
    assert ids_of(client.post(SEARCH, json={"search_query": "a", "filter": by_field})) == []
    assert len(ids_of(client.post(SEARCH, json={"search_query": "a", "sort_by": {"field": nasty}}))) == 4
    assert client.get(f"{ORDERS}/{quote(nasty, safe='')}").json()["session_id"] == nasty
    assert client.delete(f"/api/v1/users/{quote(nasty, safe='')}").json()["sessions"] == 1
    assert client.get(SESSION, params={"session_id": "of ada"}).json()["user_id"] == "ada"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/v1/users/ann?collection=default"),
        ("GET", "/api/v1/improvement/orders?state=failed"),
        ("GET", "/api/v1/collections?alias=live"),
        ("POST", f"{SEARCH}?limit=1"),
    ],
)
def test_a_parameter_that_a_route_does_not_take_is_refused_and_not_ignored(client, method, path):
    answer = client.request(method, path, json={"search_query": [1, 0, 0]} if method == "POST" else None)

    [wrong] = problem_of(answer)["errors"]
    assert answer.status_code == 422
    assert wrong == {
        "parameter": path.rpartition("?")[2].partition("=")[0],
        "detail": "this parameter is not known here; is it misspelt?",
    }


def test_what_is_kept_about_a_user_is_handed_out_as_lines(make_context):
    context = make_context()
    with serving(create_app(context)) as client:
        fill(client)
        search_and_click(client, "ada", "s1", "all-b")
        context.improver().improve_once(users=10)

        export = client.get("/api/v1/users/ada/export")
        nobody = client.get("/api/v1/users/export/export")

    kinds = [json.loads(line)["kind"] for line in export.text.splitlines()]
    assert export.headers["content-type"].startswith("application/x-ndjson")
    assert set(kinds) >= {"session", "order", "memory", "vectors"}
    assert (nobody.status_code, nobody.text) == (200, "")
