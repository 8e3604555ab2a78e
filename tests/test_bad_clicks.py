"""Clicks of wrong clocks, out of order, sent twice, and of robots: over HTTP, and learnt."""

import time
from contextlib import closing, nullcontext
from typing import Any

import pytest

from embedding_studio.api.app import create_app
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.keys import Scope, new_key
from embedding_studio.domain.sessions import SessionEvent
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.postgres import PostgresStorage
from test_api_routes import EVENTS_OF_SESSIONS, SESSION, SESSIONS, fill, search_and_click
from test_api_service import EVENTS, SEARCH, letters_context, serving

ORDERS, QUARANTINE = "/api/v1/improvement/orders", "/api/v1/quarantine"
ADMIN = "the-admin-key-0123456789-0123456789"
WRITE = "the-write-key-0123456789-0123456789"
FAR_AHEAD = 99_999_999_000
SHOWN = [{"object_id": "all-a"}, {"object_id": "a-and-b"}, {"object_id": "all-b"}]


@pytest.fixture
def context(tmp_path, new_postgres_storage):
    with new_postgres_storage() as storage:
        yield letters_context(tmp_path, storage)


@pytest.fixture
def client(context):
    with serving(create_app(context)) as client:
        fill(client)
        yield client


def improve(context):
    while context.improver().improve_once().users:
        pass


def is_personal(client, user_id):
    return client.post(SEARCH, json={"search_query": "a", "user_id": user_id}).json()["personalised"]


def is_raised(client, object_id, *, user_id):
    """Return whether a user finds an object nearer than a stranger does."""
    near = []
    for each in (user_id, "stranger"):
        answer = client.post(SEARCH, json={"search_query": "a", "user_id": each}).json()
        near += [found["distance"] for found in answer["search_results"] if found["object_id"] == object_id]
    return near[0] < near[1]


def searches(number, *, text="a", clicked=("all-a",), user_id="ada", **fields):
    """Return so many searches with clicks; ``text`` may say which it is."""
    return [
        {
            "session_id": f"z{place:03}",
            "user_id": user_id,
            "search_query": text.format(place),
            "search_results": SHOWN,
            "events": [{"object_id": each} | fields for each in clicked],
        }
        | fields
        for place in range(number)
    ]


def dispositions(answer):
    assert answer.status_code == 200, answer.text
    return [each["disposition"] for each in answer.json()["events"]]


def test_sessions_dated_far_ahead_do_not_switch_off_learning(client, context):
    given = searches(200, created_at=FAR_AHEAD)
    for start in (0, 100):
        assert client.post(SESSIONS, json={"sessions": given[start : start + 100]}).status_code == 200
    search_and_click(client, "ada", "0", "all-b")  # of the same second, and by its id before all others

    improve(context)

    assert client.get(f"{ORDERS}/0").json()["status"] == "done"
    assert is_raised(client, "all-b", user_id="ada")


def test_an_event_that_comes_before_its_session_is_learnt_once_that_comes(client, context):
    event = {"session_id": "s1", "object_id": "all-b", "event_id": "e1"}
    other = {"session_id": "s1", "object_id": "all-a", "event_id": "e1"}

    early = client.post(EVENTS_OF_SESSIONS, json={"events": [event, event, other]})
    waiting = client.get("/metrics").text
    search = {"search_query": "a", "user_id": "ada", "session_id": "s1", "create_session": True}
    assert client.post(SEARCH, json=search).status_code == 200
    improve(context)

    assert dispositions(early) == ["waiting", "duplicate", "conflict"]
    assert "embedding_studio_waiting_events 1.0" in waiting
    assert 'embedding_studio_events_total{disposition="waiting",kind="click"} 1.0' in waiting
    assert dispositions(client.post(EVENTS_OF_SESSIONS, json={"events": [event, other]})) == [
        "duplicate",
        "conflict",
    ]
    assert client.get(f"{ORDERS}/s1").json()["status"] == "done"
    assert is_raised(client, "all-b", user_id="ada")


@pytest.mark.parametrize("kind", ["memory", "postgres"])
def test_one_sender_leaves_others_as_many_places_to_wait_as_it_takes(kind, request):
    """Found by an audit: one key that sent events of sessions that never came took the places of all."""
    if kind == "memory":
        opened: Any = nullcontext(MemoryStorage(waiting_events=20))
    else:
        opened = closing(PostgresStorage(request.getfixturevalue("postgres_url"), waiting_events=20))
    with opened as storage:
        push = storage.clickstream.push_events

        flood = push([SessionEvent(session_id=f"s{n}", object_id="a") for n in range(21)], sender="one")
        again = push([SessionEvent(session_id="s-1", object_id="a")], sender="one")
        others = [push([SessionEvent(session_id=f"t{n}", object_id="a")], sender="two") for n in range(4)]
        nobody = push([SessionEvent(session_id="u", object_id="a")])
        number = storage.clickstream.waiting_events()

    assert flood == ["waiting"] * 10 + ["unknown_session"] * 11
    assert again == ["unknown_session"]
    assert others == [["waiting"]] * 4
    assert nobody == ["waiting"]
    assert number == 15


def test_one_key_leaves_room_for_the_events_of_another(tmp_path):
    storage = MemoryStorage(waiting_events=4)
    context = letters_context(tmp_path, storage, admin_api_key=ADMIN, write_api_key=WRITE)
    with serving(create_app(context)) as client:
        events = [{"session_id": f"s{n}", "object_id": "all-a"} for n in range(4)]

        def pushed(key):
            headers = {"Authorization": f"Bearer {key}"}
            return dispositions(client.post(EVENTS_OF_SESSIONS, json={"events": events}, headers=headers))

        of_one = pushed(WRITE)
        events = [{"session_id": f"t{n}", "object_id": "all-a"} for n in range(4)]
        of_other = pushed(ADMIN)

    assert of_one == ["waiting"] * 2 + ["unknown_session"] * 2
    assert of_other == ["waiting"] + ["unknown_session"] * 3


def test_what_a_collector_sends_before_its_search_waits_for_it(client):
    now = int(time.time() * 1000)
    event = {
        "action_name": "item_hover",
        "client_id": "ada",
        "query_id": "q1",
        "timestamp": now,
        "event_attributes": {"object": {"object_id": "all-b"}},
    }
    query = {"query_id": "q1", "client_id": "ada", "user_query": "a", "query_response_hit_ids": ["all-b"]}

    early = client.post("/ubi_events", json=event).json()
    client.post("/ubi_queries", json=query | {"timestamp": now})
    later = client.post("/ubi_events", json=event | {"timestamp": now - 1000}).json()

    assert (early["events"], early["left_out"]) == ({"waiting": 1}, {})
    assert later["events"] == {"unknown_type": 1}
    session = client.get(SESSION, params={"session_id": "q1"}).json()
    assert [each["object_id"] for each in session["events"]] == ["all-b", "all-b"]


def test_what_becomes_of_events_that_are_sent_with_their_sessions_is_told(client):
    session = {"session_id": "s1", "search_results": SHOWN}
    events = [
        {"object_id": "all-a", "event_id": "e1"},
        {"object_id": "all-a", "event_id": "e1"},
        {"object_id": "all-b", "event_id": "e1"},
        {"object_id": "all-b", "event_type": "Click"},
        {"object_id": "elsewhere"},
    ]
    taken = session | {"user_id": "eve", "events": events}

    answer = client.post(SESSIONS, json={"sessions": [session | {"events": events}, taken]})

    assert answer.status_code == 200
    first, second = answer.json()["sessions"]
    assert [each["disposition"] for each in first["events"]] == [
        "accepted",
        "duplicate",
        "conflict",
        "unknown_type",
        "unknown_object",
    ]
    assert [each["event_type"] for each in first["events"]] == ["click", "click", "click", "Click", "click"]
    assert (second["disposition"], second["events"]) == ("taken", [])
    assert 'disposition="conflict",kind="click"} 1.0' in client.get("/metrics").text


ROBOTS: dict[str, dict[str, Any]] = {
    "clicks on all that is shown": {"number": 10, "clicked": ["all-a", "a-and-b", "all-b"]},
    "clicks on one object whatever is asked": {"number": 20, "text": "a {}"},
    "clicks in hundreds of searches an hour": {"number": 300},
}


@pytest.mark.parametrize("robot", ROBOTS)
def test_a_robot_is_told_of_and_released(client, context, robot):
    given = searches(**ROBOTS[robot])
    for start in range(0, len(given), 100):
        assert client.post(SESSIONS, json={"sessions": given[start : start + 100]}).status_code == 200
    search_and_click(client, "bob", "of bob", "all-b")
    improve(context)

    [caught] = client.get(QUARANTINE).json()["users"]
    assert (caught["user_id"], caught["collection"]) == ("ada", "default")
    order = client.get(f"{ORDERS}/z000").json()
    last = client.get(f"{ORDERS}/{given[-1]['session_id']}").json()
    assert order["status"] == last["status"] == "refused"
    assert caught["reason"] in last["detail"]
    assert is_personal(client, "ada") is False
    assert is_personal(client, "bob") is True
    assert "embedding_studio_quarantined_users 1.0" in client.get("/metrics").text

    assert client.delete(f"{QUARANTINE}/ada").status_code == 204
    improve(context)

    assert client.get(QUARANTINE).json()["users"] == []
    assert client.get(f"{ORDERS}/{given[-1]['session_id']}").json()["status"] == "done"
    assert is_personal(client, "ada") is True


def test_a_user_is_quarantined_by_hand(client, context):
    search_and_click(client, "ada", "s1", "all-b")
    improve(context)
    before = is_personal(client, "ada")

    assert client.put(f"{QUARANTINE}/ada", json={"reason": "sells all-b"}).status_code == 204
    improve(context)

    [told] = client.get(QUARANTINE).json()["users"]
    assert (told["user_id"], told["reason"]) == ("ada", "sells all-b")
    assert told["collection"] is None
    assert (before, is_personal(client, "ada")) == (True, False)
    assert "sells all-b" in client.get(f"{ORDERS}/s1").json()["detail"]


def test_the_list_of_who_is_quarantined_has_pages(client):
    for user_id in ("ada", "bob", "a/b"):
        client.put(f"{QUARANTINE}/{user_id}", json={})

    first = client.get(QUARANTINE, params={"limit": 2}).json()
    rest = client.get(QUARANTINE, params={"limit": 2, "offset": first["next_page_offset"]}).json()

    named = [each["user_id"] for each in first["users"] + rest["users"]]
    assert sorted(named) == ["a/b", "ada", "bob"]
    assert rest["next_page_offset"] is None


def test_what_a_stolen_key_said_in_the_name_of_others_is_let_count_no_more(tmp_path, new_postgres_storage):
    def headers(key):
        return {"Authorization": f"Bearer {key}"}

    with new_postgres_storage() as storage:
        context = letters_context(tmp_path, storage, admin_api_key=ADMIN)
        [key_id, stolen], [_, own] = (made_key(storage) for _ in range(2))
        with serving(create_app(context)) as client:
            client.headers.update(headers(ADMIN))
            fill(client)
            honest = {"search_query": "a", "user_id": "ada", "session_id": "honest", "create_session": True}
            assert client.post(SEARCH, json=honest, headers=headers(own)).status_code == 200
            click = {"session_id": "honest", "events": [{"object_id": "all-b"}]}
            assert client.post(EVENTS, json=click, headers=headers(own)).status_code == 200
            improve(context)
            before = client.get("/api/v1/users/ada/state").json()

            flood = searches(241, clicked=("all-a", "all-b"))
            for start in range(0, 241, 50):
                body = {"sessions": flood[start : start + 50]}
                assert client.post(SESSIONS, json=body, headers=headers(stolen)).status_code == 200
            mallory = honest | {"user_id": "bob", "session_id": "by a search"}
            assert client.post(SEARCH, json=mallory, headers=headers(stolen)).status_code == 200
            click = {"session_id": "by a search", "events": [{"object_id": "all-b"}]}
            assert client.post(EVENTS, json=click, headers=headers(stolen)).status_code == 200
            improve(context)
            [caught] = client.get(QUARANTINE).json()["users"]
            spoilt = is_personal(client, "bob")

            unknown = client.post("/api/v1/keys/gone/disregard")
            disregarded = client.post(f"/api/v1/keys/{key_id}/disregard")
            improve(context)

            assert (
                f"240 searches within an hour (of those that count 200 by the key {key_id})"
                in caught["reason"]
            )
            assert (caught["user_id"], spoilt) == ("ada", True)
            assert (unknown.status_code, disregarded.json()) == (404, {"sessions": 242})
            assert client.get(QUARANTINE).json()["users"] == []
            assert client.get("/api/v1/users/ada/state").json() == before
            assert not is_personal(client, "bob")


def made_key(storage):
    """Return the id of a new key as a shop's server has it, and the key."""
    kept, key = new_key("a shop", [Scope.SEARCH, Scope.EVENTS], now=utc_timestamp())
    storage.keys.add(kept)
    return kept.key_id, key
