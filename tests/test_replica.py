"""Searches on a real streaming replica: what a user did is seen at once, what others did a little later."""

import math
from collections import Counter
from contextlib import ExitStack, closing
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.domain.sessions import SearchResultItem, Session, SessionEvent
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.errors import InvalidSettingError
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import SearchService
from embedding_studio.storage.postgres import PostgresStorage
from embedding_studio.storage.postgres import codes as pg_codes
from embedding_studio.storage.postgres import replica as pg_replica
from streaming import Replica

I, D = 61, 5
ODD = PayloadFilter.parse({"query": {"term": {"field": "odd", "value": 1}}})


@pytest.fixture(scope="module")
def replica(postgres_server):
    with closing(Replica(postgres_server)) as running:
        yield running


@pytest.fixture(params=[40, 3000], ids=["with codes", "without codes"])
def world(request, replica, postgres_url, monkeypatch):
    """Return a storage that searches on the replica, one that does not, and what is told of the replica."""
    monkeypatch.setattr(pg_codes, "LARGE", request.param)
    monkeypatch.setattr(pg_replica, "LAG_SECONDS", 1e9)  # only the first search asks what was written before
    told = Counter()
    with ExitStack() as stack:
        direct = stack.enter_context(closing(PostgresStorage(postgres_url)))
        direct.objects.upsert(direct.collections.create("things", SearchIndexInfo(dimensions=D)), catalogue())
        replica.catch_up()
        read_url = replica.url_of(postgres_url)
        tell = lambda outcome: told.update([outcome])  # noqa: E731
        split = stack.enter_context(
            closing(PostgresStorage(postgres_url, read_url=read_url, tell_replica=tell))
        )
        stack.callback(replica.go_on)
        yield split, direct, told


def catalogue():
    rng = np.random.default_rng(5)
    return [
        CatalogueObject(f"o{n}", rng.normal(size=(1 + n % 3, D)).astype(np.float32), {"odd": n % 2})
        for n in range(I)
    ]


QUERY = catalogue()[0].parts[:1]


def found(storage, user_id=None, limit=I, **more):
    page = SearchService(storage).search(QUERY, collection="things", user_id=user_id, limit=limit, **more)
    return [(each.object_id, each.distance) for each in page.results]


def click(storage, user_id, clicked, *, session_id="s"):
    results = [SearchResultItem(object_id=object_id) for object_id, _ in found(storage, limit=9)]
    session = Session(session_id=session_id, user_id=user_id, collection="things", search_results=results)
    storage.clickstream.register_session(session, QUERY)
    storage.clickstream.push_events([SessionEvent(session_id=session_id, object_id=clicked)])


def learn(storage):
    while Improver(storage, PassiveAggressiveAdjuster).improve_once().users:
        pass


def test_on_a_replica_the_same_is_found_as_on_the_database(world, replica):
    split, direct, told = world
    click(direct, "ann", found(direct)[4][0])
    learn(direct)
    replica.catch_up()

    for user_id in (None, "ann", "bob"):
        assert found(split, user_id) == found(direct, user_id)
        assert found(split, user_id, filter=ODD, limit=7) == found(direct, user_id, filter=ODD, limit=7)
    assert found(split, "ann") != found(split)
    assert told.keys() == {"used"}


def test_a_users_own_click_is_seen_however_far_the_replica_is_behind(world, replica):
    split, direct, told = world
    clicked = found(direct)[4][0]
    before = found(split, "ann")
    replica.pause()
    told.clear()
    click(direct, "ann", clicked)
    learn(direct)

    after = found(split, "ann")
    others = found(split, "bob")

    assert after == found(direct, "ann") != before
    assert others == before
    assert told == {"behind": 1, "used": 1}
    replica.go_on()
    replica.catch_up()
    assert found(split, "ann") == after
    assert told == {"behind": 1, "used": 2}


def test_what_was_forgotten_about_a_user_is_not_found_on_a_replica_that_is_behind(world, replica):
    split, direct, told = world
    before = found(direct, "ann")
    click(direct, "ann", before[4][0])
    learn(direct)
    replica.catch_up()
    assert found(split, "ann") != before
    replica.pause()
    told.clear()
    direct.clickstream.forget_user("ann")
    learn(direct)

    assert found(split, "ann") == before
    assert told == {"used": 1}


def test_objects_that_come_and_go_are_seen_once_the_replica_has_them(world, replica):
    split, direct, told = world
    collection = direct.collections.get("things")
    assert found(split) == found(direct)
    replica.pause()
    nearest = CatalogueObject("new", QUERY.copy(), {"odd": 1})
    direct.objects.upsert(collection, [nearest])
    direct.objects.delete(collection, ["o7"])

    old = [object_id for object_id, _ in found(split)]
    replica.go_on()
    replica.catch_up()
    new = [object_id for object_id, _ in found(split)]

    assert "o7" in old
    assert "new" not in old
    assert "o7" not in new
    assert "new" in new[:2]
    assert told.keys() == {"used"}


def test_a_replica_is_not_used_that_knows_less_than_what_was_there_some_time_ago(world, replica, monkeypatch):
    split, direct, told = world
    replica.pause()
    direct.objects.upsert(
        direct.collections.get("things"), [CatalogueObject("new", QUERY.copy(), {"odd": 1})]
    )
    monkeypatch.setattr(pg_replica, "LAG_SECONDS", 0)

    ids = [object_id for object_id, _ in found(split)]

    assert "new" in ids[:2]
    assert told == {"behind": 1}


class Log:
    """A database whose log stands somewhere; ``meanwhile`` happens while it is asked where."""

    def __init__(self):
        self.stands, self.meanwhile = "0/1", lambda: None

    def read(self, _):
        place, meanwhile, self.meanwhile = self.stands, self.meanwhile, lambda: None
        meanwhile()
        return (place,)


def test_what_a_search_has_to_see_is_never_older_than_two_seconds(monkeypatch):
    log, clock, beside = Log(), [0.0], []
    monkeypatch.setattr(pg_replica, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    searches = pg_replica.Searches(cast("Any", log))

    def needed():
        return searches._place_reached()

    def search_beside():
        beside.append(needed())

    log.meanwhile = search_beside  # at the start
    assert needed() == "0/1"
    clock[0], log.stands = 3600.0, "0/2"  # nobody searched for an hour, and then two at once
    log.meanwhile = search_beside
    assert needed() == "0/2"
    assert beside == ["0/1", "0/2"]
    for tenth in range(1, 100):  # some search all the time
        clock[0], log.stands = 3600 + 19 * tenth / 10, f"0/{tenth + 2}"
        first = int(needed()[2:]) - 2
        clock[0] += 0.7
        second = int(needed()[2:]) - 2
        assert tenth - first <= 1
        assert 3600 + 1.9 * second > clock[0] - 2 - 1e-6


def test_codes_that_were_brought_up_to_date_by_the_database_are_not_asked_of_an_older_replica(world, replica):
    split, direct, told = world
    collection = direct.collections.get("things")
    assert found(split) == found(direct)
    replica.pause()
    direct.objects.update_payloads(collection, {"o2": {"odd": 1}})
    split.objects.codes(collection)  # reads from the database what is new
    told.clear()

    ids = {object_id for object_id, _ in found(split, filter=ODD)}

    assert "o2" in ids
    assert told == {"behind": 1}


def test_while_a_replica_is_away_the_database_searches(postgres_server, postgres_url, monkeypatch):
    monkeypatch.setattr(pg_replica, "AWAY_SECONDS", 0)  # each search looks again
    told = Counter()
    with ExitStack() as stack:
        lost = stack.enter_context(closing(Replica(postgres_server)))
        tell = lambda outcome: told.update([outcome])  # noqa: E731
        split = stack.enter_context(
            closing(PostgresStorage(postgres_url, read_url=lost.url_of(postgres_url), tell_replica=tell))
        )
        split.objects.upsert(split.collections.create("things", SearchIndexInfo(dimensions=D)), catalogue())
        lost.catch_up()
        whole = found(split)
        lost.stop()

        away = found(split), found(split), split.vitals().replica_lag
        lost.start()
        back = found(split), split.vitals().replica_lag

    assert away == (whole, whole, math.inf)
    assert back == (whole, 0)
    assert told == {"used": 2, "away": 2}


def test_how_far_a_replica_is_behind_is_told(world, replica):
    split, direct, _ = world
    replica.catch_up()
    before = split.vitals().replica_lag
    replica.pause()
    direct.objects.delete(direct.collections.get("things"), ["o1"])

    assert before == 0
    assert 0 < split.vitals().replica_lag < 600
    assert direct.vitals().replica_lag is None


def test_a_service_starts_whose_replica_is_not_there(postgres_url):
    told = Counter()
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    with closing(
        PostgresStorage(postgres_url, read_url=nowhere, tell_replica=lambda outcome: told.update([outcome]))
    ) as split:
        split.objects.upsert(split.collections.create("things", SearchIndexInfo(dimensions=D)), catalogue())

        assert len(found(split)) == I

    assert told == {"away": 1}


def test_an_address_of_a_replica_that_is_none_is_named(postgres_url):
    with pytest.raises(InvalidSettingError, match="DATABASE_READ_URL is no address"):
        PostgresStorage(postgres_url, read_url="redis://somewhere")


@pytest.mark.parametrize("world", [40], ids=["with codes"], indirect=True)
def test_each_of_200_users_sees_their_own_click_on_a_replica_that_lags(world, replica):
    """It shows what was written half a second ago, and what is found has to be what the database finds."""
    split, direct, told = world
    users = [f"user {n}" for n in range(200)]
    clicked = found(direct)[4][0]
    before = found(split)
    told.clear()
    replica.lag(0.5)
    try:
        for user_id in users:
            click(direct, user_id, clicked, session_id=f"of {user_id}")
            learn(direct)

            seen = found(split, user_id)

            assert seen == found(direct, user_id) != before
    finally:
        replica.lag(0)
    assert told["behind"]
    assert told.keys() <= {"behind", "used"}
    replica.catch_up()
    told.clear()
    assert [found(split, user_id) for user_id in users] == [found(direct, user_id) for user_id in users]
    assert told == {"used": len(users)}
