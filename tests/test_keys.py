"""Keys and users' tokens, as whoever wants more than they are given would try them (FAULTS F10, F14)."""

import asyncio
import base64
import dataclasses
import hashlib
import hmac
import json
import logging
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from embedding_studio import CatalogueObject, Context, SearchIndexInfo
from embedding_studio.api import keyring, rate_limits, user_tokens
from embedding_studio.api.app import create_app
from embedding_studio.api.keyring import KeyRing
from embedding_studio.api.rate_limits import BYTES, PLACES, Buckets, shared_memory
from embedding_studio.cli import app as cli
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.keys import Scope, new_key, parsed_key, renewed
from embedding_studio.domain.sessions import Session
from embedding_studio.errors import InvalidInputError, InvalidSettingError, StorageUnavailableError
from embedding_studio.logs.joining import WINDOW_SECONDS, name_of
from embedding_studio.settings import load_settings
from embedding_studio.storage.memory import MemoryStorage
from test_api_service import EVENTS, SEARCH, SESSION, letters_context, operations, problem_of, serving

SECRET = "a-secret-of-who-signs-users-in-0123456789"  # noqa: S105
ADMIN = "the-admin-key-0123456789-0123456789"
WRITE = "the-write-key-0123456789-0123456789"
ALL_SCOPES = frozenset(Scope)

IRRELEVANT = "/api/v1/clickstream/session/irrelevant"
SESSIONS = "/api/v1/clickstream/sessions"
EVENTS_OF_SESSIONS = "/api/v1/clickstream/events"
KEYS = "/api/v1/keys"
RANK = "/api/v1/embeddings/rank"
QUERY = {"search_query": [[1, 0, 0]]}

NEEDS: dict[str, Scope | None] = {
    "similarity_search": Scope.SEARCH,
    "rank_candidates": Scope.SEARCH,
    "bend_query": Scope.ADMIN,
    "upsert_objects": Scope.OBJECTS,
    "delete_objects": Scope.OBJECTS,
    "update_payloads": Scope.OBJECTS,
    "get_objects": Scope.OBJECTS,
    "scroll_objects": Scope.OBJECTS,
    "register_session": Scope.EVENTS,
    "get_session": Scope.ADMIN,
    "list_sessions": Scope.ADMIN,
    "take_back_events": Scope.EVENTS,
    "push_events": Scope.EVENTS,
    "record_sessions": Scope.EVENTS,
    "push_events_of_sessions": Scope.EVENTS,
    "mark_session_irrelevant": Scope.EVENTS,
    "use_session_for_improvement": Scope.ADMIN,
    "get_improvement_summary": Scope.ADMIN,
    "list_orders": Scope.ADMIN,
    "get_order": Scope.ADMIN,
    "retry_order": Scope.ADMIN,
    "cancel_order": Scope.ADMIN,
    "list_collections": Scope.OBJECTS,
    "create_collection": Scope.ADMIN,
    "set_alias": Scope.ADMIN,
    "drop_alias": Scope.ADMIN,
    "get_collection": Scope.OBJECTS,
    "update_collection": Scope.ADMIN,
    "drop_collection": Scope.ADMIN,
    "get_user_state": Scope.ADMIN,
    "get_user_map": Scope.ADMIN,
    "get_findings": Scope.ADMIN,
    "get_settings": Scope.ADMIN,
    "start_report": Scope.ADMIN,
    "list_reports": Scope.ADMIN,
    "get_report": Scope.ADMIN,
    "stop_report": Scope.ADMIN,
    "export_user": Scope.ADMIN,
    "forget_user": Scope.ADMIN,
    "list_quarantined_users": Scope.ADMIN,
    "quarantine_user": Scope.ADMIN,
    "release_user": Scope.ADMIN,
    "list_keys": Scope.ADMIN,
    "create_key": Scope.ADMIN,
    "rotate_key": Scope.ADMIN,
    "revoke_key": Scope.ADMIN,
    "disregard_key": Scope.ADMIN,
    "push_algolia_events": Scope.EVENTS,
    "forget_algolia_user": Scope.ADMIN,
    "push_ubi_queries": Scope.EVENTS,
    "push_ubi_events": Scope.EVENTS,
    "get_health": None,
    "get_readiness": None,
    "get_metrics": Scope.ADMIN,
}
"""operation_id -> the scope that its caller must have; None: no key."""

BEACONS = {"push_events", "push_events_of_sessions"}
"""Those that take the key out of the URL."""


@pytest.fixture
def make_context(tmp_path):
    return partial(letters_context, tmp_path, embedder="none")


@pytest.fixture
def context(make_context):
    """A service with both keys of the environment, whose write key asks for tokens."""
    made = make_context(
        admin_api_key=ADMIN,
        write_api_key=WRITE,
        write_api_key_requires_user_token=True,
        user_token_secret=SECRET,
    )
    for name in ("default", "shoes"):
        collection = made.storage.collections.create(name, SearchIndexInfo(dimensions=3))
        objects = [
            CatalogueObject(each, np.array([[1, 0, at]], np.float32), {}) for at, each in enumerate("abc")
        ]
        made.storage.objects.upsert(collection, objects)
    return made


@pytest.fixture
def client(context):
    with serving(create_app(context)) as opened:
        yield opened


def bearer(key: str, token: str | None = None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} | ({} if token is None else {"X-User-Token": token})


def token_of(user_id, *, secret=SECRET, algorithm="HS256", headers=None, seconds=60, **claims):
    told = {"sub": user_id, "exp": utc_timestamp() + seconds} | claims
    told = {name: each for name, each in told.items() if each is not None}
    return jwt.encode(told, secret, algorithm=algorithm, headers=headers)


def kept(context: Context, *scopes: Scope, **given) -> str:
    """Return a key that the database knows."""
    record, key = new_key("a client", scopes, now=utc_timestamp(), **given)
    context.storage.keys.add(record)
    return key


def a_session_of(context: Context, client, user_id: str | None, session_id: str, **body) -> None:
    given = {
        "session_id": session_id,
        "search_query": "q",
        "search_results": [{"object_id": "a", "rank": 0.25, "meta": {"shelf": "secret"}}, {"object_id": "b"}],
    }
    answer = client.post(SESSION, json=given | {"user_id": user_id} | body, headers=bearer(ADMIN))
    assert answer.status_code == 201, answer.text


def events_in(client, session_id: str) -> list[str]:
    found = client.get(SESSION, params={"session_id": session_id}, headers=bearer(ADMIN))
    return [each["object_id"] for each in found.json()["events"]]


def a_click(session_id: str, object_id: str = "a") -> dict:
    return {"session_id": session_id, "events": [{"object_id": object_id}]}


# Who may do what


def test_every_route_is_in_the_table(client):
    assert set(operations(client)) == set(NEEDS)


@pytest.mark.parametrize("scope", Scope)
def test_a_key_does_what_its_scope_says_and_nothing_else(context, client, scope):
    key = kept(context, scope)
    for name, (method, path) in operations(client).items():
        needed = NEEDS[name]
        may = needed is None or scope in {Scope.ADMIN, needed}

        answer = client.request(method, path, headers=bearer(key))

        assert (answer.status_code not in {401, 403}) == may, (name, answer.text)
        if not may:
            assert answer.headers["www-authenticate"].endswith('error="insufficient_scope"')
            assert f"the scope {needed}" in problem_of(answer)["detail"]


def test_no_route_but_health_is_for_nobody_and_none_is_for_a_token_alone(client):
    for name, (method, path) in operations(client).items():
        for headers in ({}, {"X-User-Token": token_of("ann")}):
            status = client.request(method, path, headers=headers).status_code

            assert (status == 401) == (NEEDS[name] is not None), name


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((each, 200) for each in ("localhost:8000", "127.0.0.1", "[::1]:80", "192.168.0.7", "studio:8000")),
        *((each, 421) for each in ("evil.example", "evil.example:8000", "evil.example.", "1.evil.example")),
    ],
)
def test_an_open_service_is_called_by_no_name_that_another_site_may_have(make_context, host, status):
    with serving(create_app(make_context())) as client:
        answer = client.get("/api/v1/collections", headers={"Host": host})
        alive = client.get("/healthz", headers={"Host": host})

    assert (answer.status_code, alive.status_code) == (status, 200)


def test_with_a_key_a_service_is_called_by_any_name(client):
    headers = bearer(ADMIN) | {"Host": "search.shop.example"}

    assert client.get("/api/v1/collections", headers=headers).status_code == 200


def test_a_key_in_the_url_is_for_beacons_alone(context, client):
    key = kept(context, Scope.ADMIN)
    for name, (method, path) in operations(client).items():
        status = client.request(method, path, params={"api_key": key}).status_code

        assert (status == 401) == (NEEDS[name] is not None and name not in BEACONS), name


def test_a_key_may_have_several_scopes(context, client):
    key = kept(context, Scope.EVENTS, Scope.SEARCH)

    assert client.post(SEARCH, json=QUERY, headers=bearer(key)).status_code == 200
    assert client.post(EVENTS, json=a_click("s"), headers=bearer(key)).status_code == 200
    assert client.get(KEYS, headers=bearer(key)).status_code == 403


# Keys that are wrong


def damaged(key: str) -> Iterator[str]:
    yield from (key[:-1], key + "a", key.upper(), f" {key}x", key.replace("es_", "es-"))
    yield key[:-1] + ("a" if key[-1] != "a" else "b")
    head, _, secret = key.rpartition("_") if key.count("_") == 3 else ("", "", "")
    yield f"{head or 'es_admin_abcdefghij23'}_{'A' * 43}{secret[43:]}"
    yield "es_admin_abcdefghij23_" + "A" * 43
    yield "es_admin__"


def test_a_key_that_is_nearly_right_is_not_known(context, client):
    key = kept(context, Scope.ADMIN)
    for wrong in damaged(key):
        answer = client.get("/api/v1/collections", headers={"Authorization": f"Bearer {wrong}".encode()})

        assert answer.status_code == 401, wrong
    assert client.get("/api/v1/collections", headers=bearer(key)).status_code == 200


def test_the_scope_that_is_written_in_a_key_gives_nothing(context, client):
    key = kept(context, Scope.SEARCH).replace("es_search_", "es_admin_")

    assert client.get(KEYS, headers=bearer(key)).status_code == 403


def test_a_key_that_expired_is_not_known(context, client):
    record, key = new_key("old", [Scope.ADMIN], expires_at=utc_timestamp() - 1, now=utc_timestamp() - 9)
    context.storage.keys.add(record)

    assert client.get(KEYS, headers=bearer(key)).status_code == 401


def test_a_key_that_expires_while_it_is_held_is_not_known_any_more(context, client, monkeypatch):
    key = kept(context, Scope.ADMIN, expires_at=utc_timestamp() + 1000)
    before = client.get(KEYS, headers=bearer(key)).status_code
    monkeypatch.setattr("embedding_studio.api.guard.utc_timestamp", lambda: utc_timestamp() + 1001)

    assert (before, client.get(KEYS, headers=bearer(key)).status_code) == (200, 401)


def test_a_key_that_is_revoked_here_is_not_known_at_once(context, client):
    key = kept(context, Scope.SEARCH)
    before = client.post(SEARCH, json=QUERY, headers=bearer(key))
    key_id, _ = parsed_key(key) or ("", "")

    revoked = client.delete(f"{KEYS}/{key_id}", headers=bearer(ADMIN))
    after = client.post(SEARCH, json=QUERY, headers=bearer(key))

    assert (before.status_code, revoked.status_code, after.status_code) == (200, 200, 401)
    assert revoked.json()["status"] == "revoked"


def test_a_key_that_is_revoked_elsewhere_is_not_known_within_seconds(context, client):
    key = kept(context, Scope.SEARCH)
    assert client.post(SEARCH, json=QUERY, headers=bearer(key)).status_code == 200

    context.storage.keys.revoke(parsed_key(key)[0], now=utc_timestamp())  # as another process would
    began = time.monotonic()
    while client.post(SEARCH, json=QUERY, headers=bearer(key)).status_code == 200:
        assert time.monotonic() < began + keyring.LIFE_SECONDS + 10


def test_wrong_keys_of_one_address_are_slowed_and_right_ones_are_not(context, client):
    began = time.monotonic()
    answers = [client.get("/api/v1/collections", headers=bearer(f"wrong-{each}")) for each in range(100)]
    statuses = [each.status_code for each in answers]
    seconds = time.monotonic() - began

    assert statuses[:20] == [401] * 20
    assert statuses.count(401) <= 20 + seconds
    assert {each.headers["retry-after"] for each in answers if each.status_code == 429} == {"1"}
    assert client.get("/api/v1/collections", headers=bearer(ADMIN)).status_code == 200


# Keys and storage


class Storage(MemoryStorage):
    """One whose keys can be away, and that counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.is_away = False
        self.real, self.keys = self.keys, self  # type: ignore[assignment]

    def __getattr__(self, name):
        def call(*args, **given):
            self.asked.append(name)
            if self.is_away:
                raise StorageUnavailableError("connection to 10.0.0.7 refused")
            return getattr(self.real, name)(*args, **given)

        if name in {"add", "get", "has_any", "list", "note_use", "replace", "revoke"}:
            return call
        raise AttributeError(name)


def test_while_the_database_is_away_keys_of_the_environment_work_and_others_are_no_wrong_ones(make_context):
    storage = Storage()
    context = make_context(storage, admin_api_key=ADMIN)
    key = kept(context, Scope.ADMIN)
    storage.is_away = True
    with serving(create_app(context)) as client:
        ours = client.get("/api/v1/collections", headers=bearer(ADMIN))
        theirs = client.get("/api/v1/collections", headers=bearer(key))
        nobodys = client.get("/api/v1/collections", headers=bearer("wrong"))

    assert (ours.status_code, theirs.status_code, nobodys.status_code) == (200, 503, 401)
    assert "retry-after" in theirs.headers
    assert "10.0.0.7" not in theirs.text


def test_many_requests_with_a_key_ask_the_database_once_and_write_once(make_context):
    storage = Storage()
    context = make_context(storage, admin_api_key=ADMIN)
    key = kept(context, Scope.OBJECTS)
    with serving(create_app(context)) as client:
        client.get("/healthz")
        began = time.monotonic()
        for _ in range(50):
            assert client.get("/api/v1/collections", headers=bearer(key)).status_code == 200
        lives = (time.monotonic() - began) / keyring.LIFE_SECONDS

    assert storage.asked.count("get") <= lives + 1
    assert storage.asked.count("note_use") == 1
    assert storage.real.list()[0].last_used_at == pytest.approx(utc_timestamp(), abs=60)


def test_requests_at_once_with_a_key_that_is_not_held_ask_for_it_once():
    storage = Storage()
    record, _ = new_key("one", [Scope.SEARCH], now=1)
    storage.real.add(record)
    ring = KeyRing(lambda: storage.keys)

    async def ask():
        return await asyncio.gather(*(ring.find(record.key_id) for _ in range(30)))

    assert asyncio.run(ask()) == [record] * 30
    assert storage.asked == ["get"]


def test_however_many_wrong_keys_are_asked_for_one_request_at_a_time_is_made_of_the_database():
    storage = Storage()
    record, _ = new_key("one", [Scope.SEARCH], now=1)
    storage.real.add(record)
    ring = KeyRing(lambda: storage.keys)
    wrong = [f"wrong{number:07}" for number in range(500)]

    async def ask():
        return await asyncio.gather(*(ring.find(each) for each in [*wrong, record.key_id]))

    assert asyncio.run(ask()) == [None] * 500 + [record]
    assert len(storage.asked) == 1


def test_a_key_that_is_revoked_here_while_it_is_read_is_not_held():
    storage = MemoryStorage()
    record, _ = new_key("one", [Scope.SEARCH], now=1)
    storage.keys.add(record)
    ring, reads, goes_on = KeyRing(lambda: slow), threading.Event(), threading.Event()

    class Slow:
        def get(self, key_id):
            found = storage.keys.get(key_id)
            reads.set()
            goes_on.wait(10)
            return found

    slow: Any = Slow()

    async def ask():
        first = asyncio.create_task(ring.find(record.key_id))
        await asyncio.to_thread(reads.wait, 10)
        storage.keys.revoke(record.key_id, now=2)
        ring.forget(record.key_id)
        goes_on.set()
        await first
        return await ring.find(record.key_id)

    assert asyncio.run(ask()).status(3) == "revoked"


def test_a_service_without_keys_is_open_until_there_ever_was_one(make_context, monkeypatch):
    monkeypatch.setattr(keyring, "LIFE_SECONDS", 0.0)
    storage = Storage()
    context = make_context(storage)
    with serving(create_app(context)) as client:
        opened = client.get("/api/v1/collections").status_code
        storage.is_away = True
        away = client.get("/api/v1/collections").status_code
        storage.is_away = False
        key = kept(context, Scope.ADMIN)
        closed = client.get("/api/v1/collections").status_code
        storage.keys.revoke(parsed_key(key)[0], now=utc_timestamp())
        after = client.get("/api/v1/collections").status_code

    assert (opened, away, closed, after) == (200, 200, 401, 401)


def test_where_it_is_not_known_whether_there_are_keys_nothing_is_open(make_context):
    storage = Storage()
    storage.is_away = True
    with serving(create_app(make_context(storage))) as client:
        assert client.get("/api/v1/collections").status_code == 503


def test_an_old_key_and_its_new_one_are_good_together_until_the_old_one_ends(context, client):
    made = client.post(
        KEYS,
        json={"name": "shop", "scopes": ["search"], "collections": ["shoes"], "expires_at": 4_000_000_000},
        headers=bearer(ADMIN),
    )
    old = made.json()
    rotated = client.post(f"{KEYS}/{old['key_id']}/rotate", json={"old_seconds": 3600}, headers=bearer(ADMIN))
    new = rotated.json()
    query = QUERY | {"collection": "shoes"}

    both = [client.post(SEARCH, json=query, headers=bearer(each["key"])).status_code for each in (old, new)]
    client.delete(f"{KEYS}/{old['key_id']}", headers=bearer(ADMIN))
    after = [client.post(SEARCH, json=query, headers=bearer(each["key"])).status_code for each in (old, new)]
    again = client.post(f"{KEYS}/{old['key_id']}/rotate", json={}, headers=bearer(ADMIN))
    listed = {each["key_id"]: each for each in client.get(KEYS, headers=bearer(ADMIN)).json()["keys"]}

    assert (made.status_code, rotated.status_code) == (201, 201)
    assert (both, after) == ([200, 200], [401, 200])
    assert again.status_code == 409
    assert [listed[each["key_id"]]["status"] for each in (old, new)] == ["revoked", "active"]
    assert listed[old["key_id"]]["expires_at"] == pytest.approx(utc_timestamp() + 3600, abs=60)
    assert (new["name"], new["scopes"], new["collections"]) == ("shop", ["search"], ["shoes"])


def test_a_key_is_shown_once_and_kept_as_a_hash(context, client):
    key = client.post(KEYS, json={"name": "x", "scopes": ["search"]}, headers=bearer(ADMIN)).json()["key"]
    _, secret = parsed_key(key)
    [record] = context.storage.keys.list()

    assert re.fullmatch(r"es_search_[a-z2-9]{12}_[A-Za-z0-9_-]{43}", key)
    assert record.secret_hash == hashlib.sha256(secret.encode()).digest()
    assert secret not in repr(record)
    assert secret not in client.get(KEYS, headers=bearer(ADMIN)).text
    assert client.get(KEYS, headers=bearer(ADMIN)).headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"name": " "}, "1 to 100 printable"),
        ({"name": "a\nb"}, "1 to 100 printable"),
        ({"scopes": []}, "at least one scope"),
        ({"scopes": [Scope.ADMIN], "collections": ["a"]}, "may do everything"),
        ({"scopes": [Scope.ADMIN], "requires_user_token": True}, "may do everything"),
        ({"collections": [""]}, "name of a collection"),
        ({"collections": [str(number) for number in range(101)]}, "at most 100"),
        ({"expires_at": 7}, "lies ahead"),
        ({"expires_at": 10**15}, "lies ahead"),
    ],
)
def test_a_key_that_says_what_it_cannot_mean_is_not_made(given, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        new_key(**{"name": "x", "scopes": [Scope.SEARCH], "now": 7} | given)


def test_two_keys_are_never_alike():
    record, first = new_key("x", [Scope.SEARCH, Scope.ADMIN, Scope.ADMIN], now=7)
    other, second = renewed(record, now=8)

    assert record.scopes == (Scope.SEARCH, Scope.ADMIN)
    assert parsed_key(first) == (record.key_id, first[-43:])
    assert len({first, second}) == len({record.key_id, other.key_id}) == 2
    assert dataclasses.replace(other, key_id=record.key_id, secret_hash=record.secret_hash, created_at=7) == (
        record
    )


# Collections


def test_a_key_for_one_collection_reaches_no_other_by_any_name(context, client):
    context.storage.collections.set_alias("boots", "shoes")
    key = kept(context, Scope.SEARCH, Scope.OBJECTS, Scope.EVENTS, collections=["shoes"])
    a_session_of(context, client, "ann", "elsewhere")
    a_session_of(context, client, "ann", "here", collection="boots")
    headers = bearer(key)

    reached = {
        name: client.post(SEARCH, json=QUERY | {"collection": name}, headers=headers).status_code
        for name in ("shoes", "boots", "default", "nothing")
    }
    bodies = {
        "/api/v1/embeddings/upsert": {"items": []},
        "/api/v1/embeddings/delete": {"object_ids": ["a"]},
        "/api/v1/embeddings/payloads": {"payloads": []},
        "/api/v1/embeddings/objects": {"object_ids": ["a"]},
        "/api/v1/embeddings/scroll": {},
        SESSION: {"session_id": "new"},
        SESSIONS: {"sessions": [{"session_id": "new"}]},
        RANK: QUERY | {"candidates": [{"object_id": "a"}]},
        "/1/events": {"events": [{"index": "default", "eventName": "x", "eventType": "click"}]},
    }
    others = {path: client.post(path, json=body, headers=headers) for path, body in bodies.items()}
    told = client.get("/api/v1/collections", headers=headers).json()["collections"]
    one = [client.get(f"/api/v1/collections/{name}", headers=headers).status_code for name in reached]
    pushed = client.post(
        EVENTS_OF_SESSIONS,
        json={"events": [{"session_id": each, "object_id": "a"} for each in ("elsewhere", "gone", "here")]},
        headers=headers,
    ).json()["events"]

    assert reached == {"shoes": 200, "boots": 200, "default": 403, "nothing": 403}
    assert one == [200, 200, 403, 403]
    assert [each["name"] for each in told] == ["shoes"]
    assert {path: each.status_code for path, each in others.items() if path != "/1/events"} == dict.fromkeys(
        [path for path in bodies if path != "/1/events"], 403
    )
    assert "shoes" in problem_of(others[SESSION])["detail"]
    assert [each["disposition"] for each in pushed] == ["unknown_session", "unknown_session", "accepted"]
    assert events_in(client, "elsewhere") == []
    assert len(context.storage.objects.get(context.storage.collections.get("default"), ["a"])) == 1
    for session_id in ("elsewhere", "gone"):
        marked = client.post(IRRELEVANT, json={"session_id": session_id}, headers=headers)
        assert marked.status_code == 404


def test_collectors_do_not_tell_a_bound_key_which_other_collections_there_are(context, client):
    headers = bearer(kept(context, Scope.EVENTS, collections=["default"]))
    query = {"user_query": "q", "timestamp": utc_timestamp()}
    told = [
        client.post("/ubi_queries", json=query | {"query_id": name, "application": name}, headers=headers)
        for name in ("shoes", "nothing")
    ]

    assert [each.status_code for each in told] == [200, 200]
    assert context.clickstream_dao.get_session("shoes").collection == "default"


# One user


def test_a_token_lets_a_browser_act_for_its_user(context, client):
    headers = bearer(WRITE, token_of("ann"))
    named = client.post(SEARCH, json=QUERY | {"user_id": "ann", "create_session": True}, headers=headers)
    unnamed = client.post(SEARCH, json=QUERY | {"create_session": True}, headers=headers)
    sessions = [each.json()["session_id"] for each in (named, unnamed)]
    client.post(SESSION, json={"session_id": "s3", "search_query": "q"}, headers=headers)
    client.post(SESSIONS, json={"sessions": [{"session_id": "s4", "user_id": "ann"}]}, headers=headers)

    assert [context.clickstream_dao.get_session(each).user_id for each in [*sessions, "s3", "s4"]] == (
        ["ann"] * 4
    )
    pushed = client.post(EVENTS, json=a_click(sessions[0]), headers=headers).json()["events"]
    assert [each["disposition"] for each in pushed] == ["accepted"]
    assert client.post(IRRELEVANT, json={"session_id": "s3"}, headers=headers).status_code == 204


def test_without_a_token_a_browser_is_nobody(context, client):
    plain = client.post(SEARCH, json=QUERY | {"create_session": True}, headers=bearer(WRITE))
    as_ann = client.post(SEARCH, json=QUERY | {"user_id": "ann"}, headers=bearer(WRITE))
    session_id = plain.json()["session_id"]

    assert (plain.status_code, plain.json()["personalised"]) == (200, False)
    assert context.clickstream_dao.get_session(session_id).user_id is None
    assert as_ann.status_code == 401
    assert "X-User-Token" in problem_of(as_ann)["detail"]
    pushed = client.post(EVENTS, json=a_click(session_id), headers=bearer(WRITE)).json()["events"]
    assert [each["disposition"] for each in pushed] == ["accepted"]


def attempts(user_id: str | None, session_id: str) -> dict[str, tuple[str, Any]]:
    """What somebody tries who guessed the id of a session."""
    named = {} if user_id is None else {"user_id": user_id}
    continued = QUERY | {"offset": 1, "session_id": session_id}
    return {
        "click": (EVENTS, a_click(session_id)),
        "clicks": (EVENTS_OF_SESSIONS, {"events": [{"session_id": session_id, "object_id": "a"}]}),
        "irrelevant": (IRRELEVANT, {"session_id": session_id}),
        "continue": (SEARCH, continued | named),
        "algolia": (
            "/1/events",
            {
                "events": [
                    {
                        "index": "default",
                        "eventName": "x",
                        "eventType": "click",
                        "userToken": user_id or "eve",
                        "queryID": session_id,
                        "objectIDs": ["a"],
                    }
                ]
            },
        ),
        "ubi": (
            "/ubi_events",
            {
                "action_name": "click",
                "query_id": session_id,
                "timestamp": utc_timestamp(),
                "event_attributes": {"object": {"object_id": "a"}},
            }
            | ({} if user_id is None else {"client_id": user_id}),
        ),
        "ubi with the search after it": (
            "/ubi_queries",
            [
                {
                    "action_name": "click",
                    "query_id": session_id,
                    "timestamp": utc_timestamp(),
                    "event_attributes": {"object": {"object_id": "a"}},
                },
                {"query_id": session_id, "user_query": "q", "timestamp": utc_timestamp()},
            ],
        ),
    }


TELLS_OF_A_TAKEN_ID = {"ubi with the search after it"}
"""What records a search: an id that is taken cannot be free."""


def seen_by(answer) -> tuple[int, str]:
    """Return what is the same of two requests that differ by a session's id alone."""
    told = answer.text.replace("guessed", "ID").replace("nowhere", "ID")
    return answer.status_code, re.sub(r"[0-9a-f]{9,}", "", told)  # times, and the ids that events are given


@pytest.mark.parametrize("eve", [None, "eve"])
def test_a_guessed_session_gives_nothing_and_does_not_even_tell_that_it_is_there(context, client, eve):
    a_session_of(context, client, "ann", "guessed")
    before = client.get(SESSION, params={"session_id": "guessed"}, headers=bearer(ADMIN)).json()
    headers = bearer(WRITE, eve and token_of(eve))

    for name, (path, body) in attempts(eve, "guessed").items():
        other_path, other_body = attempts(eve, "nowhere")[name]
        guessed = client.post(path, json=body, headers=headers)
        nowhere = client.post(other_path, json=other_body, headers=headers)

        if name not in TELLS_OF_A_TAKEN_ID:
            assert seen_by(guessed) == seen_by(nowhere), name
        assert "ann" not in guessed.text.replace("annot", "")
        assert "shelf" not in guessed.text

    after = client.get(SESSION, params={"session_id": "guessed"}, headers=bearer(ADMIN)).json()
    assert after == before


@pytest.mark.parametrize("eve", [None, "eve"])
@pytest.mark.parametrize("query", ["q", "another"])
def test_registering_over_a_session_of_another_is_a_conflict_that_tells_nothing_of_it(
    context, client, eve, query
):
    a_session_of(context, client, "ann", "guessed")
    before = client.get(SESSION, params={"session_id": "guessed"}, headers=bearer(ADMIN)).json()
    headers = bearer(WRITE, eve and token_of(eve))

    registered = client.post(SESSION, json={"session_id": "guessed", "search_query": query}, headers=headers)
    recorded = client.post(
        SESSIONS,
        json={"sessions": [{"session_id": "guessed", "search_query": query, "events": [{"object_id": "a"}]}]},
        headers=headers,
    )
    searched = client.post(
        SEARCH, json=QUERY | {"create_session": True, "session_id": "guessed"}, headers=headers
    )

    assert (registered.status_code, searched.status_code) == (409, 409)
    assert [each["disposition"] for each in recorded.json()["sessions"]] == ["taken"]
    for answer in (registered, recorded, searched):
        assert "ann" not in answer.text
        assert "shelf" not in answer.text
    after = client.get(SESSION, params={"session_id": "guessed"}, headers=bearer(ADMIN)).json()
    assert after == before


def test_nobody_learns_by_guessing_what_another_searched(context, client):
    at = utc_timestamp()
    click = {
        "action_name": "click",
        "client_id": "ann",
        "user_query": "a ring",
        "timestamp": at,
        "event_attributes": {"object": {"object_id": "a"}},
    }
    client.post("/ubi_events", json=click, headers=bearer(ADMIN))
    seen = {}
    for text in ("a ring", "a boat"):
        guess = name_of("ann", text, at // WINDOW_SECONDS)
        named = {"session_id": guess, "search_query": "x"}
        create = QUERY | {"session_id": guess, "create_session": True}
        asked = [
            (SESSION, named),
            (SESSIONS, {"sessions": [named]}),
            (SEARCH, create),
            (RANK, create | {"candidates": [{"object_id": "a"}]}),
            ("/ubi_queries", {"query_id": guess, "user_query": "x", "timestamp": at}),
            ("/ubi_events", click | {"client_id": "eve", "query_id": guess}),
        ]
        headers = bearer(WRITE, token_of("eve"))
        seen[text] = [client.post(path, json=body, headers=headers).status_code for path, body in asked]

    assert seen == {"a ring": [403] * 6, "a boat": [403] * 6}


def test_another_users_id_is_refused_wherever_it_stands(context, client):
    headers = bearer(WRITE, token_of("eve"))
    bodies = {
        SEARCH: QUERY | {"user_id": "ann"},
        RANK: QUERY | {"user_id": "ann", "candidates": [{"object_id": "a"}]},
        SESSION: {"session_id": "s", "user_id": "ann"},
        SESSIONS: {"sessions": [{"session_id": "r"}, {"session_id": "s", "user_id": "ann"}]},
        "/ubi_queries": {"user_query": "q", "query_id": "s", "user_id": "ann", "timestamp": 1},
        "/ubi_events": {
            "action_name": "click",
            "user_query": "q",
            "client_id": "ann",
            "timestamp": 1,
            "event_attributes": {"object": {"object_id": "a"}},
        },
    }
    for path, body in bodies.items():
        answer = client.post(path, json=body, headers=headers)

        assert answer.status_code == 403, path
        assert "ann" not in problem_of(answer)["detail"]
    assert context.clickstream_dao.owners(["r", "s"]) == {}


def test_the_write_key_without_tokens_reads_nothing_back_of_a_session_that_it_registers_again(make_context):
    context = make_context(admin_api_key=ADMIN, write_api_key=WRITE)
    context.storage.collections.create("default", SearchIndexInfo(dimensions=3))
    with serving(create_app(context)) as client:
        a_session_of(context, client, "ann", "s1", search_meta={"page": "secret"})
        again = client.post(
            SESSION,
            json={
                "session_id": "s1",
                "user_id": "ann",
                "search_query": "q",
                "search_results": [{"object_id": "a"}],
            },
            headers=bearer(WRITE),
        )

    assert again.status_code == 201
    assert "secret" not in again.text
    assert [each["object_id"] for each in again.json()["search_results"]] == ["a"]
    assert "0.25" not in again.text


def test_a_beacon_has_its_key_and_token_in_the_url(context, client):
    a_session_of(context, client, "ann", "s1")
    beacon = {"Content-Type": "text/plain;charset=UTF-8"}
    algolia = attempts("ann", "s1")["algolia"][1]
    for user_id, disposition in (("eve", "unknown_session"), ("ann", "accepted")):
        in_url = {"api_key": WRITE, "user_token": token_of(user_id)}
        sent = client.post(EVENTS, params=in_url, content=json.dumps(a_click("s1")), headers=beacon)

        assert [each["disposition"] for each in sent.json()["events"]] == [disposition]
    in_url = {"X-Algolia-API-Key": WRITE, "user_token": token_of("ann")}
    sent = client.post("/1/events", params=in_url, content=json.dumps(algolia), headers=beacon)

    assert sum(sent.json()["events"].values()) == 1, sent.text


# Tokens that are wrong


def unsigned(claims: dict, **header: str) -> str:
    def part(told: dict) -> str:
        return base64.urlsafe_b64encode(json.dumps(told).encode()).rstrip(b"=").decode()

    return f"{part({'typ': 'JWT'} | header)}.{part(claims)}."


def ann(**more) -> dict:
    return {"sub": "ann", "exp": utc_timestamp() + 60} | more


WRONG_TOKENS = {
    "unsigned": lambda: unsigned(ann(), alg="none"),
    "unsigned, in capitals": lambda: unsigned(ann(), alg="NONE"),
    "unsigned, says that it is signed": lambda: unsigned(ann(), alg="HS256"),
    "of another secret": lambda: token_of("ann", secret=SECRET[::-1]),
    "of another algorithm": lambda: token_of("ann", algorithm="HS512", secret=SECRET * 2),
    "expired": lambda: token_of("ann", seconds=-30),
    "without an end": lambda: token_of("ann", exp=None),
    "not yet": lambda: token_of("ann", nbf=utc_timestamp() + 100),
    "of nobody": lambda: token_of(None),
    "of an empty name": lambda: token_of(""),
    "of a NUL": lambda: token_of("a\0"),
    "of a name that is too long": lambda: token_of("a" * 600),
    "no token": lambda: "ann",
    "empty parts": lambda: "..",
    "not ASCII": lambda: "ä.ö.ü",
    "long": lambda: "a" * 5000,
    "deep": lambda: (
        unsigned({}, alg="HS256").split(".")[0] + "." + base64.urlsafe_b64encode(b"[" * 900).decode()
    ),
}


@pytest.mark.parametrize("wrong", WRONG_TOKENS)
def test_a_wrong_token_opens_nothing_whatever_key_it_comes_with(context, client, wrong):
    token = WRONG_TOKENS[wrong]()
    for key in (WRITE, ADMIN, kept(context, Scope.SEARCH)):
        headers = {b"Authorization": f"Bearer {key}".encode(), b"X-User-Token": token.encode()}
        answer = client.post(SEARCH, json=QUERY, headers=headers)

        assert answer.status_code == 401, answer.text
        assert "X-User-Token" in problem_of(answer)["detail"]
        assert token not in answer.text


def test_a_changed_token_is_of_nobody(client):
    head, claims, signature = token_of("eve").split(".")
    forged = base64.urlsafe_b64encode(json.dumps(ann()).encode()).rstrip(b"=").decode()

    for token in (
        f"{head}.{forged}.{signature}",
        f"{head}.{claims}.{signature[:-4]}AAAA",
        f"{head}.{claims}",
    ):
        assert client.post(SEARCH, json=QUERY, headers=bearer(WRITE, token)).status_code == 401


def test_clocks_may_differ_by_seconds(client):
    statuses = [
        client.post(SEARCH, json=QUERY, headers=bearer(WRITE, token_of("ann", seconds=seconds))).status_code
        for seconds in (-5, -20)
    ]

    assert statuses == [200, 401]


def test_a_token_where_none_can_be_checked_is_refused_and_not_overlooked(make_context):
    with serving(create_app(make_context(admin_api_key=ADMIN))) as client:
        answer = client.post(SEARCH, json=QUERY, headers=bearer(ADMIN, token_of("ann")))

    assert answer.status_code == 401
    assert "USER_TOKEN_SECRET" in problem_of(answer)["detail"]


def test_audience_issuer_and_claim_are_those_of_the_settings(make_context):
    context = make_context(
        admin_api_key=ADMIN,
        user_token_secret=SECRET,
        user_token_audience="search",
        user_token_issuer="https://shop.example",
        user_token_claim="uid",
    )
    context.storage.collections.create("default", SearchIndexInfo(dimensions=3))
    right: dict[str, Any] = {"aud": ["search", "other"], "iss": "https://shop.example", "uid": "ann"}
    wrong: list[dict[str, Any]] = [
        {"aud": "other"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"uid": None},
        {"uid": 7},
    ]
    with serving(create_app(context)) as client:
        statuses = [
            client.post(SEARCH, json=QUERY, headers=bearer(ADMIN, token_of(None, **right | each))).status_code
            for each in [{}, *wrong]
        ]

    assert statuses == [200] + [401] * len(wrong)


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node here")
def test_what_the_page_signs_in_node_is_a_token(client):
    page = (Path(__file__).parents[1] / "docs" / "security.md").read_text()
    code = page.split("```js\n")[1].split("```")[0]
    given = f"{code}\nprocess.stdout.write(userToken('ann', {SECRET!r}));"
    signed_there = subprocess.run(["node", "-e", given], capture_output=True, text=True, check=True).stdout
    statuses = [
        client.post(SEARCH, json=QUERY | {"user_id": name}, headers=bearer(WRITE, signed_there)).status_code
        for name in ("ann", "eve")
    ]

    assert statuses == [200, 403]


def test_the_address_that_a_proxy_tells_is_the_one_that_is_slowed(client):
    def wrong(address: str) -> int:
        headers = bearer("wrong") | {"X-Forwarded-For": address}
        return client.get("/api/v1/collections", headers=headers).status_code

    began = time.monotonic()
    while wrong("192.0.2.7") != 429:
        assert time.monotonic() < began + 60

    assert wrong("192.0.2.8") == 401


# Public keys


def a_key_pair():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


PAIR, OTHER_PAIR = a_key_pair(), a_key_pair()
WEAK_PAIR = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505, it is refused


def jwks(**pairs) -> str:
    def listed(name, pair):
        told = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(pair.public_key()))
        return told | {"kid": name, "use": "sig", "alg": "RS256"}

    return json.dumps({"keys": [listed(name, pair) for name, pair in pairs.items()]})


def signed(user_id, pair=PAIR, kid="one", **given):
    return token_of(
        user_id, secret=pair, algorithm="RS256", headers={} if kid is None else {"kid": kid}, **given
    )


@contextmanager
def serving_with_jwks(make_context, source: str) -> Iterator:
    context = make_context(
        admin_api_key=ADMIN,
        write_api_key=WRITE,
        write_api_key_requires_user_token=True,
        user_token_jwks=source,
    )
    context.storage.collections.create("default", SearchIndexInfo(dimensions=3))
    with serving(create_app(context)) as client:

        def status(token: str) -> int:
            query = QUERY | {"user_id": "ann"}
            return client.post(SEARCH, json=query, headers=bearer(WRITE, token)).status_code

        yield status


def test_a_token_is_checked_by_public_keys_and_by_no_other_algorithm(make_context, tmp_path):
    (tmp_path / "jwks.json").write_text(jwks(one=PAIR))
    public = PAIR.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def signed_by_the_public_key(secret: bytes) -> str:  # PyJWT itself refuses to make one
        head = unsigned(ann(), alg="HS256", kid="one").rstrip(".")
        signature = hmac.digest(secret, head.encode(), "sha256")
        return f"{head}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"

    with serving_with_jwks(make_context, str(tmp_path / "jwks.json")) as status:
        assert status(signed("ann")) == 200
        assert status(signed("ann", kid=None)) == 200  # there is but one
        assert status(signed("eve")) == 403
        wrong = [
            signed("ann", pair=OTHER_PAIR),
            signed("ann", kid="two"),
            signed("ann", seconds=-30),
            token_of("ann"),
            unsigned(ann(), alg="none", kid="one"),
            signed_by_the_public_key(public),
            signed_by_the_public_key((tmp_path / "jwks.json").read_bytes()),
            token_of("ann", secret=PAIR, algorithm="RS512", headers={"kid": "one"}),
        ]
        assert [status(token) for token in wrong] == [401] * len(wrong)


def test_keys_at_a_url_are_read_when_they_are_needed_and_kept_while_it_is_away(make_context, monkeypatch):
    monkeypatch.setattr("embedding_studio.api.user_tokens.PAUSE_SECONDS", 0.0)
    told: dict[str, Any] = {"content": jwks(one=PAIR), "status": 200}
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(told["status"])
            self.end_headers()
            self.wfile.write(told["content"].encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = f"http://127.0.0.1:{server.server_port}/jwks.json"
        with serving_with_jwks(make_context, source) as status:
            told["status"] = 500
            unavailable = status(signed("ann"))
            told["status"] = 200
            first = [status(signed("ann")) for _ in range(5)]
            asked_for_first = len(asked)
            told["content"] = jwks(two=OTHER_PAIR, one=PAIR)
            second = status(signed("ann", pair=OTHER_PAIR, kid="two"))
            told["status"] = 500
            unknown = status(signed("ann", kid="three"))
            still = status(signed("ann"))
        server.shutdown()

    assert unavailable == 503
    assert (first, asked_for_first) == ([200] * 5, 2)
    assert (second, unknown, still) == (200, 401, 200)


def test_nobody_waits_for_old_keys_to_be_read_again(tmp_path, monkeypatch):
    path = tmp_path / "jwks.json"
    path.write_text(jwks(one=PAIR))
    keys = user_tokens.PublicKeys(str(path))
    goes_on = threading.Event()
    monkeypatch.setattr(user_tokens, "FRESH_SECONDS", -1.0)
    monkeypatch.setattr(user_tokens, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(keys, "_read", lambda: goes_on.wait(10) and keys._keys)

    async def ask():
        try:
            return await asyncio.wait_for(keys.key_for(signed("ann", kid="one")), 5)
        finally:
            goes_on.set()

    assert asyncio.run(ask()) is not None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be used"),
        ("[]", 'a list "keys"'),
        ('{"keys": []}', "no RSA key"),
        ('{"keys": [{"kty": "oct", "k": "AAAA"}]}', "no RSA key"),
        (jwt.algorithms.RSAAlgorithm.to_jwk(PAIR), 'a list "keys"'),
        ('{"keys": [' + str(jwt.algorithms.RSAAlgorithm.to_jwk(PAIR)) + "]}", "private key"),
        (jwks(one=WEAK_PAIR), "no RSA key of at least 2048"),
        (None, "cannot be used"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_told_at_once(make_context, tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "jwks.json").write_text(content)

    with pytest.raises(InvalidSettingError, match=sentence):
        create_app(make_context(user_token_jwks=str(tmp_path / "jwks.json")))


# Settings


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"admin_api_key": "a", "write_api_key": "a"}, "ADMIN_API_KEY: has 1 character,.*at least 16"),
        ({"admin_api_key": WRITE, "write_api_key": WRITE}, "^ADMIN_API_KEY and WRITE_API_KEY are equal"),
        ({"user_token_secret": "x" * 31}, "USER_TOKEN_SECRET: has 31 characters.*at least 32"),
        ({"user_token_secret": SECRET, "user_token_jwks": "x"}, "signed in one way"),
        ({"write_api_key_requires_user_token": True}, "needs USER_TOKEN_SECRET or USER_TOKEN_JWKS"),
        ({"user_token_jwks": "http://shop.example/jwks"}, "an https URL"),
    ],
)
def test_keys_that_protect_nothing_are_refused(given, sentence):
    with pytest.raises(InvalidSettingError, match=sentence) as refused:
        load_settings(_env_file=None, **given)

    assert WRITE not in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_short_key_is_warned_of(caplog):
    load_settings(_env_file=None, admin_api_key="0123456789abcdef")

    assert "ADMIN_API_KEY has 16 characters" in caplog.text
    assert "0123456789abcdef" not in caplog.text


# How often


def test_where_there_is_no_room_for_a_bucket_the_fullest_goes(monkeypatch):
    monkeypatch.setattr(rate_limits, "ROWS", 1)
    buckets = Buckets("keys", per_second=1, burst=2, memory=shared_memory(), clock=lambda: 0.0)
    first = [f"user {n}" for n in range(PLACES)]

    for each in first:
        buckets.take(each)
        if each != "user 3":
            buckets.take(each)
    buckets.take("another")

    assert [buckets.take(each) for each in first if each != "user 3"] == [1] * (PLACES - 1)
    assert buckets.take("user 3") == 0


def test_a_bucket_is_one_for_all_processes_that_have_its_file(tmp_path):
    (tmp_path / "limits").write_bytes(bytes(BYTES))
    with (tmp_path / "limits").open("r+b") as file:
        one, other = (
            Buckets("keys", per_second=1, burst=3, memory=shared_memory(file.fileno()), clock=lambda: 5.0)
            for _ in range(2)
        )

        assert [each.take("ann") for each in (one, other, one, other, one)] == [0, 0, 0, 1, 1]
        assert other.take("bob") == 0


def test_a_bucket_of_one_kind_leaves_those_of_others_alone():
    memory = shared_memory()
    keys, users = (Buckets(kind, 1, 1, memory=memory, clock=lambda: 0.0) for kind in ("keys", "users"))

    assert [keys.take("ann"), users.take("ann"), keys.take("ann"), users.take("ann")] == [0, 0, 1, 1]


@pytest.mark.parametrize("setting", ["key_requests_per_second", "user_requests_per_second"])
def test_who_asks_too_often_is_told_when_to_ask_again_and_others_are_not(make_context, setting):
    context = make_context(
        admin_api_key=ADMIN, write_api_key=WRITE, user_token_secret=SECRET, **{setting: 0.2}
    )
    context.storage.collections.create("default", SearchIndexInfo(dimensions=3))
    ann, bob = bearer(WRITE, token_of("ann")), bearer(ADMIN, token_of("bob"))
    with serving(create_app(context)) as client:
        answers = [client.post(SEARCH, json=QUERY, headers=ann) for _ in range(3)]
        others = client.post(SEARCH, json=QUERY, headers=bob)
        metrics = client.get("/metrics", headers=bearer(ADMIN)).text

    assert [each.status_code for each in answers] == [200, 200, 429]  # as many as in ten seconds
    assert 1 <= int(answers[2].headers["retry-after"]) <= 5  # one in five seconds
    assert others.status_code == 200
    assert 'embedding_studio_refused_requests_total{reason="rate"} 1.0' in metrics


def test_requests_with_wrong_tokens_are_counted_for_their_key(make_context):
    context = make_context(write_api_key=WRITE, user_token_secret=SECRET, key_requests_per_second=0.2)
    headers = bearer(WRITE, token_of("ann", secret=f"{SECRET}x"))
    with serving(create_app(context)) as client:
        statuses = [client.post(SEARCH, json=QUERY, headers=headers).status_code for _ in range(3)]

    assert statuses == [401, 401, 429]


# What is seen of keys


def test_no_log_and_no_answer_has_a_key_or_a_token(context, client, caplog):
    caplog.set_level(logging.DEBUG, logger="embedding_studio")
    caplog.set_level(logging.DEBUG, logger="uvicorn")
    key, token = kept(context, Scope.EVENTS), token_of("ann")
    answers = [
        client.post(EVENTS, params={"api_key": key, "user_token": token}, json=a_click("s")),
        client.post(EVENTS, params={"api_key": key, "user_token": f"{token}x"}, json=a_click("s")),
        client.get("/metrics", headers=bearer(key)),
        client.get("/nothing", params={"api_key": key}),
        client.post(SEARCH, json=QUERY, headers=bearer(WRITE, token)),
    ]

    told = caplog.text + "".join(answer.text for answer in answers)
    for secret in (key, key[-43:], token, WRITE, ADMIN):
        assert secret not in told


# The command line


def test_keys_are_made_listed_replaced_and_revoked_by_commands(monkeypatch, tmp_path):
    storage = MemoryStorage()
    monkeypatch.setattr(Context, "open_storage", lambda _: storage)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str):
        return CliRunner().invoke(cli, ["keys", *arguments])

    made = run(
        "create",
        "the shop",
        "--scope",
        "search",
        "--scope",
        "events",
        "-c",
        "shoes",
        "--expires-in-days",
        "30",
    )
    key_id, _ = parsed_key(made.stdout.strip())
    rotated = json.loads(run("rotate", key_id, "--old-days", "1", "--json").stdout)
    revoked = run("revoke", key_id)
    storage.collections.create("default", SearchIndexInfo(dimensions=3))
    session = Session(session_id="s", user_id="ada", collection="default")
    storage.clickstream.register_session(session, sender=key_id)
    disregarded = [json.loads(run("disregard", each, "--json").stdout) for each in (key_id, "WRITE_API_KEY")]
    listed = {each["key_id"]: each for each in json.loads(run("list", "--json").stdout)}
    table = run("list").stdout
    refused = run("create", "browser", "--scope", "search", "--requires-user-token")
    nobodys = run("revoke", "gone")
    nor = run("disregard", "gone")

    assert made.stdout.strip() not in made.stderr
    assert listed[key_id]["status"] == "revoked"
    assert listed[rotated["key_id"]] == {each: rotated[each] for each in rotated if each != "key"}
    assert listed[rotated["key_id"]]["collections"] == ["shoes"]
    assert "revoked" in table
    assert "the shop" in revoked.stderr
    assert rotated["key"] not in table
    assert (refused.exit_code, "USER_TOKEN_SECRET" in refused.stderr) == (1, True)
    assert (nobodys.exit_code, "'gone'" in nobodys.stderr) == (1, True)
    assert (nor.exit_code, "'gone'" in nor.stderr) == (1, True)
    assert disregarded == [{"sessions": 1}, {"sessions": 0}]
    assert len(storage.keys.list()) == 2
