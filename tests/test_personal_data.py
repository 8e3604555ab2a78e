"""What a user is handed, and what is left of them: every table and column of a real database is searched."""

import json
from collections import Counter

import psycopg
import pytest
from psycopg import sql

from conftest import new_database
from embedding_studio.personal_data import BEYOND, exported
from embedding_studio.storage.ports import QuarantineDecision
from test_backup import context, fill, learn, search_and_click, vectors

ANN = "ann <7f3\"9'>"


@pytest.fixture
def shop(postgres_server):
    """The URL of a database in which something was learnt of Ann and others, and something is pending."""
    with new_database(postgres_server) as url:
        with context(url) as opened:
            fill(opened.storage)
            for k in range(3):
                search_and_click(opened.storage, f"s-ann-{k}", ANN, f"o{k}", vectors(1, 5, seed=k))
            learn(opened)
            quarantine(opened.storage)
            search_and_click(opened.storage, "s-ann-pending", ANN, "o9", vectors(1, 5))
        yield url


def quarantine(storage):
    """Ann was released, and found to be a robot after that; what was learnt of her stays all the same."""
    storage.quarantine.decide(ANN, QuarantineDecision(is_quarantined=False, reason="known", decided_at=1))
    for collection in storage.collections.list():
        state = storage.personal.state(collection, ANN)
        with storage.personal.learning(collection, [ANN]) as transaction:
            transaction.replace_states({ANN: state}, {ANN: "clicks everything"})


def tables(url):
    """Return (schema, table, columns) of everything in the database that is not PostgreSQL's own."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT table_schema, table_name, array_agg(column_name::text) FROM information_schema.columns"
            " WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"
            " GROUP BY 1, 2 ORDER BY 1, 2"
        ).fetchall()


def found(url, text):
    """Return (schema, table, column) wherever a text stands, in bytes too."""
    places = set()
    with psycopg.connect(url) as connection:
        for schema, table, columns in tables(url):
            for column in columns:
                query = sql.SQL(
                    "SELECT 1 FROM {table} WHERE strpos({column}::text, {text}) > 0"
                    " OR strpos({column}::text, {escaped}) > 0 OR strpos({column}::text, {hexadecimal}) > 0"
                ).format(
                    table=sql.Identifier(schema, table),
                    column=sql.Identifier(column),
                    text=text,
                    escaped=json.dumps(text)[1:-1],
                    hexadecimal=text.encode().hex(),
                )
                if connection.execute(query).fetchone():
                    places.add((schema, table, column))
    return places


def test_a_forgotten_user_stands_nowhere_in_the_database_and_the_receipt_counts_what_went(shop):
    ids = [ANN, *(f"s-ann-{k}" for k in (0, 1, 2, "pending"))]
    before = {table for each in ids for _, table, _ in found(shop, each)}
    rest = found(shop, "user 1 'é\\")
    with context(shop) as opened:
        kept = opened.storage.orders.counts()

        removed = opened.storage.clickstream.forget_user(ANN)

        left = opened.storage.orders.counts()
    assert {table for table, number in removed.items() if number} == before
    assert len(before) >= 8
    assert [found(shop, each) for each in ids] == [set()] * len(ids)
    assert found(shop, "user 1 'é\\") == rest
    assert sum(kept.values()) - sum(left.values()) == removed["sessions_for_improvement"] == 4


TOLD = {
    "sessions": lambda lines: sum(each["kind"] == "session" for each in lines),
    "session_events": lambda lines: sum(len(each.get("clicks", ())) for each in lines),
    "sessions_for_improvement": lambda lines: sum(each["kind"] == "order" for each in lines),
    "personal_parts": lambda lines: sum(len(each["parts"]) for each in lines if each["kind"] == "vectors"),
    "quarantine_decisions": lambda lines: sum("decided_at" in each for each in lines),
    "quarantined": lambda lines: sum("since" in each for each in lines),
    "query_memory": lambda lines: sum(each["kind"] == "memory" for each in lines),
    "shared_votes": lambda lines: sum(each["kind"] == "vote" for each in lines),
}
"""How many rows of each table that has rows of users an export tells."""

NOT_TOLD = {"queue", "waiting_events"}
"""That a user's pending orders are to be learnt from, which these say themselves; and what waits for sessions
that are nobody's yet."""


def test_an_export_tells_every_row_of_every_table_that_has_rows_of_users(shop):
    of_users = {table for _, table, columns in tables(shop) if {"user_id", "session_id"} & {*columns}}
    with context(shop) as opened:
        lines = [json.loads(line) for line in exported(opened.storage, ANN)]
        removed = opened.storage.clickstream.forget_user(ANN)
        nothing = list(exported(opened.storage, ANN))

    assert of_users == set(removed) == TOLD.keys() | NOT_TOLD
    assert {table: count(lines) for table, count in TOLD.items()} == {table: removed[table] for table in TOLD}
    assert [table for table, number in removed.items() if not number] == ["waiting_events"]
    assert Counter(each["kind"] for each in lines)["session"] == 4
    assert "user 1" not in json.dumps(lines)
    [session] = [each for each in lines if each.get("session_id") == "s-ann-0" and each["kind"] == "session"]
    assert session["query"] == "ein\tText\n\\."
    assert session["query_vectors"] == [pytest.approx(vectors(1, 5, seed=0)[0].tolist())]
    assert nothing == []


def test_what_is_not_reached_is_told():
    assert [each.split(":")[0].split()[0] for each in BEYOND] == [
        "backups",
        "what",
        "events",
        "what",
    ]
