"""Logs into a collection: what is stored, what is counted, and that twice is once."""

import json
import logging
import re
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from embedding_studio import importing
from embedding_studio.bootstrap import Context
from embedding_studio.cli import app
from embedding_studio.cli.importing import Format
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject, PersonalState
from embedding_studio.domain.sessions import (
    RecordedSession,
    SearchRequest,
    SearchResultItem,
    Session,
    SessionEvent,
)
from embedding_studio.importing import Importer, join_recorded
from embedding_studio.logs import DIALECTS, Event, Left, Search, flat, open_log, write_sessions
from embedding_studio.settings import Settings, load_settings
from embedding_studio.storage.memory import MemoryStorage

LOGS = Path(__file__).parent / "logs"
MAPPED = "query=search_term,user=who,object=sku,time=when,type=what,results=shown"
AT = 1767607200
"""2026-01-05T10:00:00Z"""


def with_objects(storage):
    collection = storage.collections.create("games", SearchIndexInfo(dimensions=2))
    angles = {"a": 0.0, "b": 1.0, "c": 2.0, "7": 3.0}
    storage.objects.upsert(
        collection,
        [
            CatalogueObject(name, np.array([[np.cos(at), np.sin(at)]], np.float32))
            for name, at in angles.items()
        ],
    )
    return collection


def importing_file(storage, collection, path, *, columns=None, **options):
    log = open_log(str(path), columns=flat.mapping(columns))
    return Importer(storage, collection, **options).run(log.entries)


def placed(entries):
    return ((f"log:{n}", each) for n, each in enumerate(entries))


def recorded(storage, collection):
    return [each.session for each in storage.clickstream.scan(collection=collection)]


def state_of(storage, collection):
    return recorded(storage, collection), storage.orders.counts()


def done(report):
    return (
        dict(report.sessions),
        dict(report.events),
        {why: (n.number, n.first) for why, n in report.left_out.items()},
    )


def test_a_log_is_stored_and_each_row_accounted_for(storage):
    collection = with_objects(storage)

    report = importing_file(storage, collection, LOGS / "ubi.ndjson")

    source = LOGS / "ubi.ndjson"
    assert done(report) == (
        {"recorded": 4},
        {"accepted": 3},
        {
            "an event about no object": (1, f"{source}:6"),
            "no usable time (timestamp)": (1, f"{source}:8"),
            "a query without a user_query": (1, f"{source}:9"),
            "an event without a usable object_id": (1, f"{source}:10"),
            "an event without a usable action_name": (1, f"{source}:11"),
        },
    )
    first = storage.clickstream.get_session("q1")
    assert (first.user_id, first.search_query, first.created_at) == ("ada", "red shoe", AT)
    assert [(each.object_id, each.position) for each in first.search_results] == [
        ("b", 1),
        ("a", 2),
        ("7", 3),
    ]
    assert [(each.object_id, each.event_type, each.meta) for each in first.events] == [
        ("a", "click", {"position": 2}),
        ("7", "add_to_cart", None),
    ]
    [made] = [each for each in recorded(storage, collection) if each.search_query == "belt"]
    assert (made.user_id, [each.object_id for each in made.events]) == ("ada", ["c"])


@pytest.mark.parametrize(
    "name", ["ubi.ndjson", "metarank.jsonl", "segment.ndjson", "ga4.ndjson", "own.jsonl", "flat.csv"]
)
def test_the_same_log_again_changes_nothing(storage, name):
    collection = with_objects(storage)
    columns = MAPPED if name == "flat.csv" else None
    first = importing_file(storage, collection, LOGS / name, columns=columns)
    before = state_of(storage, collection)

    again = importing_file(storage, collection, LOGS / name, columns=columns)

    assert state_of(storage, collection) == before
    assert again.sessions.keys() == {"continued"}
    assert again.events == {"duplicate": sum(first.events.values())}
    assert again.left_out == first.left_out


@pytest.mark.parametrize("ahead", [0, 10**6])
def test_what_is_stored_unchecked_is_as_if_it_was_checked(monkeypatch, ahead):
    monkeypatch.setattr("embedding_studio.domain.sessions.utc_timestamp", lambda: AT)
    storage = MemoryStorage()
    collection = with_objects(storage)
    at = AT - 9 + ahead
    entries = [
        Search(at, "red  shoe", "ann", "s1", ("b", "a")),
        Event(at + 1, "a", "click", "ann", "s1", meta={"position": 2}),
        Event(at + 2, "b", "view", None, "s1", event_id="e1"),
    ]

    Importer(storage, collection).run(placed(entries))

    [session] = recorded(storage, collection)
    sent = [
        SessionEvent(session_id="s1", object_id="a", created_at=at + 1, meta={"position": 2}),
        SessionEvent(session_id="s1", object_id="b", event_type="view", created_at=at + 2, event_id="e1"),
    ]
    checked = Session(
        session_id="s1",
        search_query="red  shoe",
        user_id="ann",
        created_at=at,
        collection="games",
        search_results=[SearchResultItem(object_id="b"), SearchResultItem(object_id="a")],
        events=sorted(sent, key=lambda each: (each.created_at, each.event_id)),
    )
    assert session == checked
    assert session.model_dump_json() == checked.model_dump_json()


def test_an_import_that_was_killed_is_run_again_and_ends_as_if_it_had_not_been(storage, monkeypatch):
    monkeypatch.setattr(importing, "BATCH", 2)
    collection = with_objects(storage)
    whole = MemoryStorage()
    wanted = importing_file(whole, with_objects(whole), LOGS / "segment.ndjson")

    def killed():
        for number, each in enumerate(
            open_log(str(LOGS / "segment.ndjson"), columns={**flat.mapping(None)}).entries
        ):
            if number == 5:
                raise KeyboardInterrupt
            yield each

    with pytest.raises(KeyboardInterrupt):
        Importer(storage, collection).run(killed())
    importing_file(storage, collection, LOGS / "segment.ndjson")

    assert recorded(storage, collection) == recorded(whole, whole.collections.get("games"))
    assert wanted.events["accepted"] == 3


def test_events_before_their_search_in_the_file_find_it(storage, monkeypatch):
    monkeypatch.setattr(importing, "BATCH", 1)
    collection = with_objects(storage)
    entries = [
        Event(AT + 5, "a", "click", "ada", "q1"),
        Event(AT + 6, "a", "click", "ada", "q9"),
        Event(AT + 7, "b", "click", "ada", "q8", query="hat"),
        Search(AT, "shoe", "ada", "q1", ("b", "a")),
    ]

    report = Importer(storage, collection).run(placed(entries))

    assert done(report) == (
        {"recorded": 2},
        {"accepted": 2},
        {importing.NO_SUCH_SEARCH: (1, "log:1")},
    )
    assert [each.object_id for each in storage.clickstream.get_session("q1").events] == ["a"]
    assert storage.clickstream.get_session("q8").search_query == "hat"


IDS = st.sampled_from([f"q{n}" for n in range(6)])
OF_ANN = Search(AT, "shoe", "ann", "q2", ("a",))
"""Which eve recorded before."""
SHOWN = {"q0": ("a", "b"), "q1": (), "q3": ("c",), "q4": ("b",), "q5": ()}
ENTRIES = st.one_of(
    st.sampled_from([Search(AT, f"text of {name}", f"user of {name}", name, SHOWN[name]) for name in SHOWN]),
    st.builds(
        Event,
        st.integers(AT - 70, AT + 9),
        st.sampled_from(["a", "b", "c", "gone"]),
        st.sampled_from(["click", "stare"]),
        st.sampled_from(["ada", None]),
        IDS,
    ),
    st.just(Left("nothing")),
)


@given(entries=st.lists(ENTRIES, max_size=25), batch=st.integers(1, 4), lanes=st.integers(2, 4))
def test_in_several_lanes_the_same_is_stored_and_told_as_in_one(entries, batch, lanes):
    outcomes = []
    for number in (1, lanes):
        storage = MemoryStorage()
        collection = with_objects(storage)
        of_eve = Session(session_id="q2", user_id="eve", search_query="x", collection="games", created_at=AT)
        storage.clickstream.record([RecordedSession(of_eve)])
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(importing, "BATCH", batch)
            report = Importer(storage, collection, lanes=number).run(placed([OF_ANN, *entries]))
        outcomes.append((done(report), report.notes, recorded(storage, collection)))

    assert outcomes[0] == outcomes[1]


def test_lanes_that_store_for_the_same_users_at_once_lose_nothing(storage, monkeypatch):
    monkeypatch.setattr(importing, "BATCH", 20)
    collection = with_objects(storage)
    entries = [
        each
        for n in range(400)
        for each in (
            Search(AT + n, "shoe", f"user {n % 7}", f"q{n}", ("b", "a")),
            Event(AT + n + 1, "a", "click", f"user {n % 7}", f"q{n}"),
        )
    ]

    report = Importer(storage, collection, lanes=3).run(placed(entries))

    assert done(report) == ({"recorded": 400}, {"accepted": 400}, {})
    assert all(len(each.events) == 1 for each in recorded(storage, collection))


def test_events_that_wait_for_a_search_are_bounded(memory, monkeypatch):
    monkeypatch.setattr(importing, "BATCH", 1)
    monkeypatch.setattr(importing, "LATE_EVENTS", 1)
    collection = with_objects(memory)
    entries = [Event(AT + n, "a", "click", "ada", "q1") for n in range(3)] + [Search(AT, "x", "ada", "q1")]

    report = Importer(memory, collection).run(placed(entries))

    assert report.left_out[importing.NO_SUCH_SEARCH].number == 2
    assert report.events == {"accepted": 1}


def test_what_cannot_be_learnt_from_is_told(memory):
    collection = with_objects(memory)
    memory.clickstream.record(
        [RecordedSession(Session(session_id="q2", user_id="eve", search_query="x", collection="games"))]
    )
    entries = [
        Search(AT, "shoe", "ada", "q1", ("b", "a")),
        Search(AT, "shoe", "ada", "q2"),
        Event(AT + 1, "gone", "click", "ada", "q1"),
        Event(AT + 1, "c", "click", "ada", "q1"),
        Event(AT + 1, "a", "stare", "ada", "q1"),
        Event(AT - 61, "a", "click", "ada", "q1"),
        Event(AT + 1, "a", "click", "ada", "q2"),
    ]

    report = Importer(memory, collection).run(placed(entries))

    assert done(report) == (
        {"recorded": 1, "taken": 1},
        {"unknown_type": 1, "too_early": 1, "unknown_object": 1},
        {
            importing.TAKEN: (1, "log:1"),
            importing.NO_SUCH_OBJECT: (1, "log:2, 'gone'"),
            importing.EVENT_OF_TAKEN: (1, "log:6"),
        },
    )
    assert report.notes == [
        "all searches are one user's; is the column of users the right one?",
        "1 event is of type 'stare', which says nothing for an object by EVENT_WEIGHTS",
        "1 event is more than 60 s earlier than the search that it names; it is not learnt from",
        "1 event is on an object that its search did not show; it is not learnt from",
    ]


def test_a_log_without_users_is_told(memory):
    report = Importer(memory, with_objects(memory)).run([("log:1", Search(AT, "shoe", None, "q1"))])

    assert report.notes == [
        "no search names a user, so nothing personal is learnt; is the column of users mapped?"
    ]


def test_a_part_of_a_log_with_types_by_other_names(memory):
    collection = with_objects(memory)
    entries = [
        Search(AT, "shoe", "ada", "q1"),
        Search(AT + 100, "hat", "ada", "q2"),
        Event(AT + 1, "a", "click", "ada", "q1"),
        Event(AT + 101, "a", "conversion", "ada", "q2"),
        Event(AT + 200, "a", "click", "ada", "q2"),
    ]

    report = Importer(
        memory, collection, event_types={"conversion": "purchase"}, since=AT + 100, until=AT + 200
    ).run(placed(entries))

    assert done(report) == (
        {"recorded": 1},
        {"accepted": 1},
        {importing.TOO_EARLY: (2, "log:0"), importing.TOO_LATE: (1, "log:4")},
    )
    assert [each.event_type for each in memory.clickstream.get_session("q2").events] == ["purchase"]


def test_a_rehearsal_reads_and_stores_nothing(memory):
    collection = with_objects(memory)

    report = importing_file(memory, collection, LOGS / "segment.ndjson", is_rehearsal=True)

    assert (report.sessions, report.events) == ({"read": 1}, {"read": 3})
    assert recorded(memory, collection) == []


def test_a_rehearsal_knows_the_searches_that_are_recorded_and_all_that_the_log_has(memory, monkeypatch):
    monkeypatch.setattr(importing, "SEARCHES_REMEMBERED", 1)
    collection = with_objects(memory)
    Importer(memory, collection).run(placed([Search(AT, "hat", "ada", "q0")]))
    searches = [Search(AT, "shoe", "ada", f"q{n}") for n in (1, 2, 3)]
    entries = [*searches, *(Event(AT + 1, "a", "click", "ada", f"q{n}") for n in (0, 1, 3, 9))]

    rehearsed, real = (
        Importer(memory, collection, is_rehearsal=rehearsal).run(placed(entries))
        for rehearsal in (True, False)
    )

    assert (rehearsed.events, real.events) == ({"read": 3}, {"accepted": 3})
    assert rehearsed.left_out == real.left_out == {importing.NO_SUCH_SEARCH: importing.LeftOut(1, "log:6")}


UNSTORABLE = {"x": "a\0b"}
DEEP = json.loads('{"a":' * 100 + "1" + "}" * 100)


@pytest.mark.parametrize(
    "wrong",
    [
        {"results": [{"object_id": "a", "meta": UNSTORABLE}]},
        {"results": [{"object_id": "a", "meta": DEEP}]},
        {"results": [{"object_id": "a", "rank": "nan"}]},
        {"clicks": [{"object_id": "a", "meta": UNSTORABLE}]},
        {"search_meta": DEEP},
        {"request": {"limit": 5, "filter": UNSTORABLE}},
        {"request": {"limit": 5, "max_distance": "nan"}},
        {"query_vectors": [[1e300, 1.0]]},
        {"timestamp": "9" * 400},
    ],
)
def test_a_session_that_cannot_be_stored_is_left_out_and_the_next_one_is_stored(storage, tmp_path, wrong):
    row = {"session_id": "s1", "user_id": "ada", "query": "x", "timestamp": AT, "results": ["a"]}
    collection = with_objects(storage)
    rows = [row | wrong, row | {"session_id": "s2", "search_meta": {"x": "\\u0000"}}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))

    report = importing_file(storage, collection, tmp_path / "log.jsonl")

    assert [each.number for each in report.left_out.values()] == [1]
    assert [each.session_id for each in recorded(storage, collection)] == ["s2"]


def test_a_click_is_learnt_from_where_nobody_logged_what_was_shown(tmp_path):
    storage = MemoryStorage(order_on={"click"})
    collection = with_objects(storage)
    vectors = [[float(np.cos(0.4)), float(np.sin(0.4))]]
    row = {
        "session_id": "s1",
        "user_id": "ada",
        "query": "x",
        "timestamp": AT,
        "results": [],
        "query_vectors": vectors,
    }
    (tmp_path / "log.jsonl").write_text(json.dumps(row | {"clicks": [{"object_id": "b", "t": AT + 5}]}))
    context = Context(load_settings(embedder="none"), storage=storage)

    importing_file(storage, collection, tmp_path / "log.jsonl")
    learnt = context.improver().improve_once()

    assert learnt.learnt == 1
    assert storage.personal.state(collection, "ada") != PersonalState()


def test_what_is_exported_is_imported_to_the_same(storage, tmp_path):
    collection = with_objects(storage)
    shown = (
        SearchResultItem(object_id="a", rank=0.5, position=1, personalised=True, propensity=0.25),
        SearchResultItem(object_id="b", position=4, meta={"badge": "new"}),
    )
    events = (
        SessionEvent(
            session_id="s1", object_id="b", created_at=AT + 3, meta={"position": 4, "cart": 2**53 + 1}
        ),
        SessionEvent(session_id="s1", object_id="a", event_type="purchase", created_at=AT, event_id="e7"),
    )
    given = {"collection": "games", "created_at": AT}
    cheap = {"query": {"term": {"field": "price", "value": 3}}}
    request = SearchRequest(limit=5, filter=cheap, sort_by=("price", "ascending"), settings="f00d")
    storage.clickstream.record(
        [
            RecordedSession(
                Session(session_id="s1", user_id="ada", search_query=" shoe ", search_results=shown, **given)
            ),
            RecordedSession(
                Session(session_id="s2", search_query="", search_meta={"page": 1}, **given),
                np.array([[1, 0.1]], np.float32),
            ),
            RecordedSession(
                Session(
                    session_id="s3",
                    user_id="bob",
                    is_irrelevant=True,
                    search_query="hat",
                    request=request,
                    **given,
                )
            ),
        ]
    )
    storage.clickstream.push_events(events)
    path = tmp_path / "sessions.jsonl.gz"

    written = write_sessions(path, storage.clickstream.scan(collection=collection), vectors=False)

    other = MemoryStorage()
    importing_file(other, with_objects(other), path)
    same = list(other.clickstream.scan())
    assert written == 3
    assert [each.session for each in same] == recorded(storage, collection)
    assert np.array_equal(same[1].query_vectors, np.array([[1, 0.1]], np.float32))
    before = state_of(storage, collection)
    importing_file(storage, collection, path)
    assert state_of(storage, collection) == before


def test_numbers_of_more_than_64_bits_are_exported(memory, tmp_path):
    collection = with_objects(memory)
    session = Session(session_id="s1", collection="games", search_meta={"cart": 2**70})
    memory.clickstream.record([RecordedSession(session, np.array([[0.1, 1]], np.float32))])

    write_sessions(tmp_path / "a.jsonl", memory.clickstream.scan(collection=collection), vectors=True)

    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert row["search_meta"] == {"cart": 2**70}
    assert np.array_equal(np.float32(row["query_vectors"]), np.array([[0.1, 1]], np.float32))


def test_an_event_without_a_search_finds_the_one_that_is_recorded(storage):
    collection = with_objects(storage)
    at = {"s1": AT, "s2": AT + 60, "s3": AT + 120, "s4": AT - 3600}
    shown = {"s1": ("a", "b"), "s2": ("c",), "s3": (), "s4": ("7",)}
    storage.clickstream.record(
        [
            RecordedSession(
                Session(
                    session_id=each,
                    user_id="ada",
                    collection="games",
                    created_at=at[each],
                    search_results=[SearchResultItem(object_id=name) for name in shown[each]],
                )
            )
            for each in at
        ]
    )
    events = [Event(AT + 200, name, user_id="ada") for name in ("a", "c", "7")]
    events += [
        Event(AT + 200, "a", user_id="bob"),
        Event(AT + 200, "a", user_id="ada", search_id="s3"),
        Event(AT, "a"),
    ]

    found = [each for _, each in join_recorded(storage.clickstream, collection, placed(events))]

    wanted = ("s1", "s2", "s3", None, "s3", None)
    assert found == [replace(each, search_id=found) for each, found in zip(events, wanted, strict=True)]


def test_the_searches_of_a_user_are_read_once_for_all_events_of_a_half_hour(memory, monkeypatch):
    collection = with_objects(memory)
    scan, read = memory.clickstream.scan, []

    def counted(**given):
        read.append(given)
        return scan(**given)

    monkeypatch.setattr(memory.clickstream, "scan", counted)
    events = [Event(AT + second, name, user_id="ada") for second in range(5) for name in "abc"]

    joined = list(join_recorded(memory.clickstream, collection, placed(events)))

    assert [each for _, each in joined] == events
    assert len(read) == 1


# The command


def test_the_formats_that_import_offers_are_those_that_are_read():
    assert {each.value for each in Format} == {"auto", "flat", *DIALECTS}


@pytest.fixture
def command(monkeypatch, tmp_path, memory):
    """Return what runs a command over a storage in memory, and that storage."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("EMBEDDER", "none")
    monkeypatch.setattr(Context, "open_storage", lambda _: memory)
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    loggers = logging.getLogger().handlers[:]
    with_objects(memory)
    yield lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments]), memory
    for each, handler in handlers.items():
        signal.signal(each, handler)
    logging.getLogger().handlers[:] = loggers


def test_import_tells_what_became_of_what(command):
    run, storage = command

    ran = run("import", LOGS / "metarank.jsonl", LOGS / "flat.csv", "-c", "games", "--json")

    assert ran.exit_code == 1
    assert "no log of a known format; its first row has 'when', 'who', 'search_term'" in ran.stderr
    assert list(storage.clickstream.scan()) == []

    ran = run("import", LOGS / "flat.csv", "--map", MAPPED, "-c", "games", "--json")

    assert ran.exit_code == 0
    report = json.loads(ran.stdout)
    assert (report["sessions"], report["events"]) == ({"recorded": 2}, {"accepted": 3})
    assert "flat.csv is read as flat." in ran.stderr.replace("\n", "")

    ran = run("import", LOGS / "metarank.jsonl", "-c", "games")

    assert ran.exit_code == 0
    assert "a ranking without a field `query`" in ran.stdout
    assert "metarank.jsonl is read as metarank." in ran.stderr.replace("\n", "")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--strict"], "a ranking without a field `query`"),
        (["-c", "absent"], "absent"),
        (["--since", "soon"], "--since is 'soon'; give a date"),
        (["--event-type", "purchase"], "write THEIRS=OURS"),
        (["--event-type", "bought=" + "x" * 65], "a type of event has 1 to 64 characters"),
        (["--map", "colour=c"], "write FIELD=COLUMN"),
        (["-", "-"], "standard input is read once"),
    ],
)
def test_import_says_what_is_wrong_in_a_sentence(command, options, sentence):
    run, _ = command

    ran = run("import", LOGS / "metarank.jsonl", "-c", "games", *options)

    assert ran.exit_code == 1
    assert sentence in ran.stderr.replace("\n", " ")


def test_sessions_are_exported_by_the_command_and_imported_packed_from_a_pipe(command):
    run, storage = command
    run("import", LOGS / "own.jsonl", "-c", "games")
    before = [each.session for each in storage.clickstream.scan()]

    exported = run("export", "--sessions", "-c", "games", "-o", "sessions.jsonl.gz")
    again = run("import", "sessions.jsonl.gz", "-c", "games", "--json")

    assert (exported.exit_code, exported.stderr) == (0, "Wrote 3 sessions.\n")
    assert json.loads(again.stdout)["sessions"] == {"continued": 3}
    assert [each.session for each in storage.clickstream.scan()] == before
    assert run("export", "--sessions", "--filter", '{"a": 1}').exit_code == 2


def test_the_commands_of_the_page_on_logs_run_and_print_what_it_says(command):
    run, storage = command
    page = (Path(__file__).parents[1] / "docs" / "your-own-log.md").read_text()
    default = storage.collections.create("default", SearchIndexInfo(dimensions=2))
    vectors = np.eye(2, dtype=np.float32)
    objects = [CatalogueObject(each, vectors[:1]) for each in ("sku-17", "sku-19", "a", "c")]
    storage.objects.upsert(default, objects)
    Path("clicks.csv").write_text(page.partition("```csv\n")[2].partition("```")[0])
    Path("log.jsonl").write_bytes((LOGS / "own.jsonl").read_bytes())
    printed = json.loads(page.partition("```json\n")[2].partition("```")[0])
    lines = re.findall(r"^embedding-studio (?!index)(.*)$", page, re.MULTILINE)

    ended = {line: run(*shlex.split(line)) for line in lines}

    assert len(lines) == 6
    assert [(line, each.output) for line, each in ended.items() if each.exit_code != 0] == []
    assert [json.loads(each.stdout) for line, each in ended.items() if "--map" in line] == [printed]
