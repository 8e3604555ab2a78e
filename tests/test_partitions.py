"""Log and state over hash partitions: the program's statements are the same, and so is what they do."""

from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg import sql

from conftest import new_database
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.domain.sessions import SessionEvent
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import SearchService
from embedding_studio.storage.postgres import PostgresStorage

SCRIPT = Path(__file__).parents[1] / "deploy/postgres/partitions.sql"
USERS = [f"user {n}" for n in range(23)]
I, D = 41, 7


def catalogue():
    rng = np.random.default_rng(11)
    return [CatalogueObject(f"o{n}", rng.normal(size=(1, D)).astype(np.float32)) for n in range(I)]


def partition(url):
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SCRIPT.read_text())


def filled_partitions(url):
    """Return table -> how many of its partitions hold rows."""
    with psycopg.connect(url) as connection:
        connection.execute("SET search_path = pg_catalog")  # so that names tell their schemas
        leaves = connection.execute(
            "SELECT inhparent::regclass::text, inhrelid::regclass::text FROM pg_inherits "
            "JOIN pg_class ON pg_class.oid = inhrelid WHERE relkind = 'r'"
        ).fetchall()
        any_row = sql.SQL("SELECT FROM {} LIMIT 1")
        filled = Counter({parent: 0 for parent, _ in leaves})
        for parent, leaf in leaves:
            filled[parent] += connection.execute(any_row.format(sql.Identifier(*leaf.split(".")))).rowcount
        return filled


def live(storage, users):
    """Let users search, click what stands third and be learnt."""
    search = SearchService(storage, shared_min_users=3)
    for number, user_id in enumerate(users):
        query = catalogue()[number].parts
        session_id = f"of {user_id}"
        shown = search.search(
            query, user_id=user_id, create_session=True, session_id=session_id, limit=9, now=5
        )
        clicked = SessionEvent(session_id=session_id, object_id=shown.results[3].object_id, created_at=20)
        storage.clickstream.push_events([clicked])
    while Improver(storage, PassiveAggressiveAdjuster, is_shared=True).improve_once(users=7).users:
        pass


def seen(storage):
    """Return what each user finds, what became of their sessions, and how many orders there are."""
    search = SearchService(storage, shared_min_users=3)
    lists = {
        user_id: [
            (each.object_id, each.distance)
            for each in search.search(catalogue()[number].parts, user_id=user_id, limit=I).results
        ]
        for number, user_id in enumerate(USERS)
    }
    counts = {status.value: number for status, number in storage.orders.counts().items() if number}
    return lists, counts


@pytest.fixture
def worlds(postgres_server):
    """Return (storage, URL) without partitions, and with, where half was there before it was spread."""
    with ExitStack() as stack:
        opened = []
        for is_spread in (False, True):
            url = stack.enter_context(new_database(postgres_server))
            storage = stack.enter_context(closing(PostgresStorage(url)))
            collection = storage.collections.create("default", SearchIndexInfo(dimensions=D))
            storage.objects.upsert(collection, catalogue())
            live(storage, USERS[:11])
            if is_spread:
                partition(url)
                partition(url)  # what is spread stays so
            live(storage, USERS[11:])
            opened.append((storage, url))
        yield opened


def test_over_partitions_all_is_learnt_found_and_forgotten_as_in_one_table(worlds):
    (plain, _), (spread, url) = worlds

    filled = filled_partitions(url)
    assert {name.split(".")[1] for name in filled} == {
        *("sessions", "session_events", "sessions_for_improvement", "waiting_events"),
        *("queue", "personal_parts", "query_memory", "shared_votes"),
    }
    assert all(filled[f"embedding_studio.{name}"] > 4 for name in ("sessions", "session_events"))
    assert filled[f"collection_{spread.collections.get('default').collection_id}.query_memory"] > 4
    assert seen(spread) == seen(plain)
    assert seen(spread)[1] == {"done": len(USERS)}
    assert spread.personal.state(spread.collections.get("default"), USERS[0]).memories

    forgotten = []
    for storage in (plain, spread):
        forgotten.append([storage.clickstream.forget_user(user_id) for user_id in (USERS[3], USERS[17])])
        live(storage, ["newcomer"])

    assert forgotten[0] == forgotten[1]
    assert seen(spread) == seen(plain)
    assert seen(spread)[1] == {"done": len(USERS) - 1}
