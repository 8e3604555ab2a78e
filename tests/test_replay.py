import gzip
import json
import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from typer.testing import CliRunner

from embedding_studio import CatalogueObject, SearchIndexInfo
from embedding_studio.cli import app
from embedding_studio.domain.sessions import (
    RecordedSession,
    SearchRequest,
    SearchResultItem,
    Session,
    SessionEvent,
)
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.errors import EmbeddingStudioError, InvalidInputError
from embedding_studio.evaluation.replay import replay
from embedding_studio.evaluation.replay_processes import OpenMethod, play
from embedding_studio.evaluation.replay_steps import steps_of
from embedding_studio.evaluation.replayed_methods import Counts, Plain, PlainSearch, Served
from embedding_studio.evaluation.session_log import read_session_log
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import SearchService
from embedding_studio.storage.memory import MemoryStorage
from evaluation_world import WordEmbedder
from test_cli import command, refusal, stored  # noqa: F401, fixtures

INDEX = SearchIndexInfo(dimensions=3)
OBJECTS = {"a": [1, 0, 0], "b": [0.97, 0.24, 0], "c": [0.5, 0.87, 0], "d": [0, 0, 1]}
QUERIES = {text: np.array([[1, 0.1, 0]], np.float32) for text in ("x", " X ")} | {
    "y": np.array([[0, 0, 1]], np.float32)
}


def row(number, user_id, query, at, *clicks, results=()):
    return {
        "session_id": f"s{number}",
        "user_id": user_id,
        "query": query,
        "timestamp": at,
        "results": list(results),
        "clicks": [{"object_id": object_id, "t": t} for object_id, t in clicks],
    }


LOG = [
    row(1, "u", "x", 100, ("b", 110)),
    row(2, "v", " X ", 105, ("b", 300)),  # before the click of u
    row(3, "w", "x", 120, ("b", 130)),  # after it
    row(4, "u", "x", 400, ("c", 410)),
    row(5, "u", "y", 500, ("d", 510)),
]


def read(tmp_path, rows):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return read_session_log(path, known=OBJECTS)


def world():
    storage = MemoryStorage()
    collection = storage.collections.create("default", INDEX)
    objects = [CatalogueObject(i, np.array([each], np.float32)) for i, each in OBJECTS.items()]
    storage.objects.upsert(collection, objects)
    return storage, collection


def served(shared_by):
    storage, collection = world()
    search = SearchService(storage, shared_min_users=shared_by)
    improver = Improver(storage, PassiveAggressiveAdjuster, is_shared=shared_by > 0)
    return Served(storage, collection, search, improver, is_shared=shared_by > 0, own_past=None)


METHODS: dict[str, OpenMethod] = {
    "plain": Plain,
    "default": partial(served, 0),
    "shared": partial(served, 2),
    "counts": Counts,
}


def steps(log):
    storage, collection = world()
    plain = PlainSearch(SearchService(storage), collection)
    return steps_of(
        log, plain=plain, index=INDEX, gate_threshold=0.75, query_vectors=QUERIES, measure_from=None
    ).each


def replayed(log, **options):
    storage, collection = world()
    plain = PlainSearch(SearchService(storage), collection)
    return replay(
        log, METHODS, plain=plain, index=INDEX, gate_threshold=0.75, query_vectors=QUERIES, **options
    )


def test_ranks_means_and_differences_are_those_that_one_finds_by_hand(tmp_path):
    found = replayed(read(tmp_path, LOG))

    assert found.ranks["plain"] == {"s1": [2], "s2": [2], "s3": [2], "s4": [3], "s5": [1]}
    # s3 sees the click of u, s4 the three of u, w and v; in s4 c stands third, for b was clicked
    assert found.ranks["counts"] == {"s1": [2], "s2": [2], "s3": [1], "s4": [3], "s5": [1]}
    rank = found.methods["counts"]["all"].metrics["reciprocal_rank"]
    assert rank.mean == pytest.approx((1 / 2 + 1 / 2 + 1 + 1 / 3 + 1) / 5)
    assert rank.difference.mean == pytest.approx(0.5 / 5)
    assert found.methods["counts"]["all"].metrics["hit@1"].difference.mean == pytest.approx(1 / 5)
    assert found.methods["counts"]["all"].metrics["ndcg@10"].difference.mean == pytest.approx(
        (1 - 1 / np.log2(3)) / 5
    )
    assert found.methods["counts"]["all"].users_better == pytest.approx(1 / 3)
    assert found.methods["counts"]["all"].users_worse == 0
    plain = found.methods["plain"]["all"].metrics["reciprocal_rank"].difference
    assert (plain.mean, plain.low, plain.high) == (0, 0, 0)


def test_slices_are_of_what_a_user_and_all_asked_before(tmp_path):
    sizes = replayed(read(tmp_path, LOG)).slices

    assert {name: (size.searches, size.users) for name, size in sizes.items()} == {
        "all": (5, 3),
        "past": (2, 1),
        "repeated": (1, 1),
        "new": (1, 1),
        "tail": (5, 3),
    }


def test_what_was_clicked_is_learnt_by_the_product_before_the_next_search(tmp_path):
    ranks = replayed(read(tmp_path, [*LOG[:1], row(2, "u", "x", 200, ("b", 210))])).ranks

    assert ranks["plain"]["s2"] == [2]
    assert ranks["default"]["s2"] == [1]


def test_nothing_comes_from_the_future(tmp_path):
    changed = [*LOG[:3], row(4, "w", "y", 400, ("a", 401)), row(6, "v", "x", 450, ("a", 460))]

    before, after = replayed(read(tmp_path, LOG)), replayed(read(tmp_path, changed))

    for method, ranks in before.ranks.items():
        assert {i: ranks[i] for i in ("s1", "s2", "s3")} == {
            i: after.ranks[method][i] for i in ("s1", "s2", "s3")
        }


def test_what_was_searched_before_the_measuring_is_learnt_and_not_measured(tmp_path):
    found = replayed(read(tmp_path, LOG), measure_from=120_000)

    assert found.ranks["counts"] == {"s3": [1], "s4": [3], "s5": [1]}
    assert any("not measured (2)" in note for note in found.notes)


def test_equal_seeds_give_equal_intervals_and_few_searches_are_said_to_be_few(tmp_path):
    log = read(tmp_path, LOG)

    first, again = (replayed(log, seed=3).to_json() for _ in range(2))

    assert first == again
    assert "5 measured searches of 3 users are too few to tell" in first["warnings"][0]
    assert "what was shown was not logged for 5 of 5" in first["warnings"][1]


def test_what_was_shown_is_said_to_bias(tmp_path):
    found = replayed(read(tmp_path, [row(1, "u", "x", 100, ("b", 110), results="bac")]))

    assert "whose first result was clicked in 100%" in found.warnings[-1]


def test_what_cannot_be_used_is_counted_with_a_reason(tmp_path):
    bad = [
        LOG[0],
        LOG[0],
        [1],
        row(6, None, "x", 100),
        row(7, "u", "x", None),
        row(8, "u", "", 100),
        row(9, "u", "x", 100, ("nothing", 110), ("b", 90), ("b", None), ("b", "soon")),
        {"user_id": "u"},
        row(10, "u", "never embedded", 100, ("a", 110)),
        row("n" * 600, "u", "x", 100),
    ]

    log = read(tmp_path, bad)
    found = replayed(log)

    assert found.ranks["plain"] == {"s1": [2], "s9": [2]}
    assert found.left_out == {
        "a session whose session_id was there before": 1,
        "a line that is no JSON object": 1,
        "a session without a user: no later searches could be changed by it": 1,
        "a session without a usable timestamp": 1,
        "a session without a query": 1,
        "a click on an object that the collection does not have": 1,
        "a click before its search": 1,
        "a click without a usable time": 1,
        "a session without a usable session_id": 2,
        "a session whose query has no usable vectors": 1,
    }
    assert log.assumed == {"a click without a time is one at the time of its search": 1}


def test_a_broken_file_is_read_as_far_as_it_goes(tmp_path):
    whole = gzip.compress(b"".join(json.dumps(each).encode() + b"\n" for each in LOG * 50))
    (tmp_path / "cut.gz").write_bytes(whole[:-9])
    (tmp_path / "odd").write_bytes(b'\xff\n\n{"a\n' + json.dumps(LOG[0]).encode())

    cut = read_session_log(tmp_path / "cut.gz", known=OBJECTS)
    odd = read_session_log(tmp_path / "odd", known=OBJECTS)

    assert cut.left_out["the rest of the file, which cannot be unpacked"] == 1
    assert ([each.session_id for each in odd.sessions], odd.left_out) == (
        ["s1"],
        {"a line that is no JSON": 2},
    )


def test_seconds_and_milliseconds_are_the_same_log(tmp_path):
    seconds = [row(1, "u", "x", 1317337009, ("b", 1317337019))]
    milliseconds = [row(1, "u", "x", 1317337009000, ("b", 1317337019000))]

    first, second = read(tmp_path, seconds), read(tmp_path, milliseconds)

    assert (first.sessions[0].at, first.sessions[0].clicks) == (
        second.sessions[0].at,
        second.sessions[0].clicks,
    )
    assert (first.units, second.units) == ({"seconds": 1}, {"milliseconds": 1})


def test_a_log_in_which_nothing_was_clicked_says_so(tmp_path):
    with pytest.raises(InvalidInputError, match="no search to measure: 1 x not measured: a search after"):
        replayed(read(tmp_path, [row(1, "u", "x", 100)]))


@pytest.fixture
def words(stored, monkeypatch):  # noqa: F811, the fixture
    """Return the storage of commands whose queries are embedded by their words."""
    monkeypatch.setattr("embedding_studio.bootstrap.embedder_by_name", lambda *_, **__: WordEmbedder())
    return stored


def test_the_command_replays_a_file_and_what_was_recorded_and_says_what_it_left_out(command, words, tmp_path):  # noqa: F811
    (tmp_path / "o.jsonl").write_text(
        "".join(json.dumps({"id": f"o{n}", "text": f"word{n} thing"}) + "\n" for n in range(7))
    )
    rows = [row(n, f"u{n % 5}", "thing", 1317337009000 + n * 1000, ("o6", None)) for n in range(11)]
    with gzip.open(tmp_path / "log.gz", "wt") as file:
        file.write("no JSON\n" + "".join(json.dumps(each) + "\n" for each in rows))

    indexed = command("index", "o.jsonl", "--text-column", "text", "-c", "films")
    ended = command(
        *("replay", "log.gz", "-c", "films", "--measure-from", "1317337011000", "--json", "out.json"),
        *("--method", "plain", "--method", "shared", "--method", "counts", "--with", "SHARED_MIN_USERS=2"),
    )

    assert indexed.exit_code == 0, indexed.output
    assert ended.exit_code == 0, ended.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found["methods"]) == ["plain", "shared", "counts", "SHARED_MIN_USERS=2"]
    difference = found["methods"]["counts"]["all"]["reciprocal_rank"]["difference"]
    assert difference["mean"] > 0.5
    assert difference["low"] - 1e-9 <= difference["mean"] <= difference["high"] + 1e-9
    assert found["methods"]["counts"]["all"]["users_worse"] == 0
    assert found["left_out"] == {"a line that is no JSON": 1}
    assert "left out: 1 x a line that is no JSON" in ended.stderr
    assert words.queue.claim(users=1, lease_seconds=1) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["nowhere.gz"], "nowhere.gz: it cannot be opened"),
        (["--measure-from", "soon"], "--measure-from is 'soon'; give a date"),
        (["--with", "NONSENSE=1"], "'NONSENSE=1' names no setting"),
        (["--with", 'EVENT_WEIGHTS={"click": 1}'], "EVENT_WEIGHTS is not JSON"),
        (["--with", f'EVENT_WEIGHTS={{"click":{"9" * 5_000}}}'], "EVENT_WEIGHTS is not JSON"),
        ([], "there is no search to measure: the log is empty"),
    ],
)
def test_the_command_says_in_a_sentence_what_is_wrong(command, words, options, said):  # noqa: F811
    words.collections.create("default", INDEX)

    assert said in refusal(command("replay", *options))


@pytest.mark.parametrize("processes", [2, 7])
def test_processes_change_no_figure(tmp_path, processes):
    log = read(tmp_path, LOG)

    together, apart = replayed(log), replayed(log, processes=processes)

    assert together == apart


class Failing(Plain):
    def learn(self, clicks):
        if clicks:
            raise ZeroDivisionError("the plugin is at fault")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_method_that_fails_is_named_in_a_sentence(tmp_path, processes):
    with pytest.raises(EmbeddingStudioError, match="'bad' cannot be replayed: ZeroDivisionError: the plugin"):
        play(steps(read(tmp_path, LOG)), {"plain": Plain, "bad": Failing}, processes=processes)


def test_a_process_that_is_killed_is_told_in_a_sentence(tmp_path):
    with pytest.raises(EmbeddingStudioError, match="a process that replayed a method ended"):
        play(steps(read(tmp_path, LOG)), {"plain": Plain, "killed": killed}, processes=2)


def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    return Plain()


def test_ctrl_c_is_for_the_command_and_not_for_the_processes_that_it_started(tmp_path):
    """Else each of them writes a traceback to the terminal."""
    played = play(steps(read(tmp_path, LOG)), {"one": interrupted, "other": interrupted}, processes=2)

    assert played["one"] == played["other"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def slow():
    time.sleep(2)
    return Plain()


def test_no_process_is_left_when_a_method_failed(tmp_path):
    with pytest.raises(EmbeddingStudioError, match="'bad' cannot be replayed"):
        play(steps(read(tmp_path, LOG)), {"slow": slow, "bad": Failing}, processes=2)

    assert multiprocessing.active_children() == []


def test_of_ten_places_those_are_kept_that_stay_among_the_ten(tmp_path):
    found = replayed(read(tmp_path, LOG))

    assert {name: slices["all"].places_kept for name, slices in found.methods.items()} == {
        "plain": 4,
        "default": 4,
        "shared": 4,
        "counts": 4,
    }


START = 1317337009
"""UTC seconds of the first search that commands replay."""


def things(command):  # noqa: F811, the fixture's value
    """Index seven things, and return the lines of a log of eleven searches for which the last is clicked."""
    Path("o.jsonl").write_text(
        "".join(json.dumps({"id": f"o{n}", "text": f"word{n} thing"}) + "\n" for n in range(7))
    )
    assert command("index", "o.jsonl", "--text-column", "text", "-c", "films").exit_code == 0
    rows = [row(n, f"u{n % 5}", "thing", START + 100 * n, ("o6", None)) for n in range(11)]
    return "".join(json.dumps(each) + "\n" for each in rows).encode()


def done(ended):
    assert ended.exit_code == 0, ended.output
    return json.loads(Path("out.json").read_text()), " ".join(ended.stderr.split())


def test_a_collections_own_log_is_replayed_without_a_file(command, words):  # noqa: F811
    things(command)
    vectors = WordEmbedder().embed(["thing"])
    for n in range(13):
        session = Session(
            session_id=f"s{n}",
            search_query="thing",
            user_id=f"u{n % 5}",
            created_at=START + 100 * n,
            collection="films",
            search_results=tuple(SearchResultItem(object_id=f"o{shown}") for shown in range(7)),
            request=SearchRequest(filter={"key": "n", "match": {"value": 1}}) if n == 11 else SearchRequest(),
            is_irrelevant=n == 12,
            events=(SessionEvent(session_id=f"s{n}", object_id="o6", created_at=START + 100 * n + 9),),
        )
        words.clickstream.record([RecordedSession(session, vectors)])

    found, said = done(command("replay", "-c", "films", "--processes", 1, "--json", "out.json"))

    assert found["sessions"] == 12
    assert found["slices"]["all"]["searches"] == 11
    assert found["left_out"] == {
        "a session that was marked irrelevant": 1,
        "not measured: a search with a filter, a sorting or a maximum distance": 1,
    }
    plain, counts = (found["methods"][name]["all"]["reciprocal_rank"]["mean"] for name in ("plain", "counts"))
    assert counts == pytest.approx((plain + 10) / 11)  # all but the first search come after a click
    assert "11 measured searches of 5 users are too few to tell" in said
    assert "answered with a logged list" in said
    assert words.personal.state(words.collections.get("films"), "u1").memories == ()


@pytest.mark.parametrize(
    ("options", "searches"),
    [
        (["--from", START + 200], 9),
        (["--until", (START + 200) * 1000], 2),
        (["--from", "2011-09-29T22:58:29Z", "--until", "2011-09-29T23:00:09+00:00"], 1),
        (["--from", START + 100, "--until", START + 500, "--measure-from", START + 300], 2),
    ],
)
def test_a_part_of_a_log_is_replayed(command, words, options, searches):  # noqa: F811
    Path("log").write_bytes(things(command))

    found, _ = done(
        command("replay", "log", "-c", "films", "--method", "counts", "--json", "out.json", *options)
    )

    assert found["slices"]["all"]["searches"] == searches


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_a_log_comes_by_the_standard_input(command, words, packed):  # noqa: F811
    log = packed(things(command))
    arguments = [
        "replay",
        "-",
        "-c",
        "films",
        "--method",
        "plain",
        "--method",
        "counts",
        "--json",
        "out.json",
    ]

    found, _ = done(CliRunner().invoke(app, arguments, input=log))

    assert found["slices"]["all"]["searches"] == 11


def test_from_what_a_method_learnt_nothing_is_told(command, words):  # noqa: F811
    Path("log").write_bytes(things(command))

    found, said = done(
        command("replay", "log", "-c", "films", "--with", "MIN_SESSION_SECONDS=60", "--json", "out.json")
    )

    [note] = [each for each in found["notes"] if "learnt nothing" in each]
    assert note in said
    assert note.startswith(
        "MIN_SESSION_SECONDS=60 learnt nothing from 10 sessions in which something was cli"
    )
    assert "too short: 0 s from search to last event" in note


def test_pages_say_everything_and_escape_what_came_from_elsewhere(command, words):  # noqa: F811
    Path("log").write_bytes(things(command))
    Path("about").write_text("From <our> shop.\n\nOf a | year.\n")

    ended = command(
        *("replay", "log", "-c", "films", "--method", "plain", "--method", "counts", "--json", "out.json"),
        *("--with", "DATA_DIR=<b>|", "--html", "page.html", "--markdown", "page.md", "--about", "about"),
    )

    found, _ = done(ended)
    page, text = Path("page.html").read_text(), Path("page.md").read_text()
    for each in (page, text):
        assert "films: 11 searches of 5 users" in each
        assert found["slices"]["past"]["meaning"] in each
        assert found["notes"][0] in each
        assert "too few to tell" in each
    assert "<b>" not in page
    assert "&lt;b&gt;|" in page
    assert "<p>From &lt;our&gt; shop.</p><p>Of a | year.</p>" in page
    assert "src=" not in page
    assert "href=" not in page
    picture = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])  # noqa: S314
    slices = len(found["slices"])
    assert len(picture.findall("{*}circle")) == 2 * slices  # plain search differs in nothing from itself
    rows = [line for line in text.splitlines() if line.startswith("| ") and "counts" in line]
    assert len(rows) == slices
    assert "From <our> shop." in text


def test_a_text_about_a_log_that_cannot_be_read_is_named(command, words):  # noqa: F811
    things(command)

    assert "--about is nowhere, which cannot be read" in refusal(
        command("replay", "-c", "films", "--about", "nowhere")
    )
