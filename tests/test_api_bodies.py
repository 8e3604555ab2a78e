"""What a body says, whichever of two readers reads it."""

import json
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from embedding_studio.api.app import create_app
from embedding_studio.api.bodies import LARGE_NUMBER, Body, BodyRoute, _parsed
from embedding_studio.api.dependencies import Threads
from test_api_service import EVENTS, SEARCH, letters_context

NUMBERS = st.one_of(
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.integers(10**18, 10**40).map(lambda number: -number),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.recursive(
    st.one_of(NUMBERS, st.text(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=9,
)


@given(value=VALUES, indent=st.sampled_from([None, 0, 1, "\t"]), colon=st.sampled_from([":", ": ", " :\n"]))
def test_a_body_is_read_as_it_was_written_with_whole_numbers_of_any_size(value, indent, colon):
    text = json.dumps(value, indent=indent, separators=(",", colon), ensure_ascii=False)

    read = _parsed(text.encode())

    assert read == value
    assert json.dumps(read) == json.dumps(value)  # no whole number has become a float


@given(number=st.integers(2**64, 10**60), before=st.sampled_from(["", "-"]))
def test_a_large_number_alone_is_one(number, before):
    text = f"{before}{number}"

    assert LARGE_NUMBER.search(text.encode())
    assert _parsed(text.encode()) == int(text)


class Count(Body):
    number: int


@pytest.fixture
def asked(monkeypatch):
    """Return the list of routes that were asked whether a request is theirs."""
    asked = []
    matches = APIRoute.matches

    def note(route, scope):
        asked.append(route.path)
        return matches(route, scope)

    monkeypatch.setattr(APIRoute, "matches", note)
    return asked


def test_what_takes_a_body_is_led_to_its_route_and_no_other_is_asked(asked, tmp_path):
    context = letters_context(tmp_path)
    context.collection()
    client = TestClient(create_app(context), headers={"host": "localhost"})

    assert client.post(SEARCH, json={"search_query": "a"}).status_code == 200
    assert client.post(f"{SEARCH}?limti=3", json={"search_query": "a"}).status_code == 422
    assert client.post(SEARCH, json={"search_query": 1}).status_code == 422
    assert client.post(EVENTS, json={"session_id": "s", "events": []}).status_code == 200
    assert asked == []

    assert client.get(SEARCH).headers["allow"] == "POST"
    assert client.post(f"{SEARCH}/x", json={}).status_code == 404
    assert asked


def test_a_route_asks_for_each_thing_once_its_guard_before_the_body_is_read():
    asked = []
    router = APIRouter(route_class=BodyRoute)

    async def key():
        asked.append("key")
        return 3

    async def guard(key: Annotated[int, Depends(key)]):
        asked.append(f"guard, of key {key}")

    async def owner(key: Annotated[int, Depends(key)]):
        asked.append("owner")
        return key

    @router.post("/{name}", dependencies=[Depends(guard)], response_model=Count)
    def count(name: str, body: Count, owner: Annotated[int, Depends(owner)]):
        asked.append(name)
        return Count(number=body.number + owner)

    app = FastAPI()
    app.state.threads = Threads()
    app.include_router(router)
    client = TestClient(app)

    assert client.post("/apples", json={"number": 4}).json() == {"number": 7}
    assert asked == ["key", "guard, of key 3", "owner", "apples"]
    asked.clear()
    assert client.post("/apples", content="4").status_code == 415
    assert asked == ["key", "guard, of key 3"]


def with_a_page(body: Count, page: int) -> None: ...


def alone(body: Count) -> None: ...


async def of_a_page(page: int) -> None: ...


@pytest.mark.parametrize(("endpoint", "guards"), [(with_a_page, []), (alone, [Depends(of_a_page)])])
def test_a_route_that_takes_a_body_may_not_ask_for_what_it_is_not_given(endpoint, guards):
    router = APIRouter(route_class=BodyRoute)

    with pytest.raises(TypeError, match="asks for more"):
        router.post("/", dependencies=guards)(endpoint)
