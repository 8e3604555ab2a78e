"""Settings that a log advises. Axes: U users · T searches of each · I objects · D dimensions."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_studio import CatalogueObject, Context, SearchIndexInfo, Session, SessionEvent
from embedding_studio.domain.sessions import RecordedSession, SearchResultItem
from embedding_studio.errors import CollectionNotFoundError, EmbeddingStudioError, InvalidInputError
from embedding_studio.evaluation.judging import Compared, Judged, reasons_against, verdict
from embedding_studio.evaluation.replay import Difference
from embedding_studio.settings import load_settings
from embedding_studio.settings_file import write_settings
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.tuned_settings import (
    Choices,
    Range,
    Tried,
    _best,
    _put_back,
    _sampled,
    _space,
    tune_settings,
)
from test_cli import command, refusal, stored  # noqa: F401, fixtures
from test_replay import read, row, steps

U, T, I, D = 64, 6, 30, 7
QUERIES = 9
FIRST_SECOND = 1_700_000_000
DAY = 90_000
"""Of a little more than a day: who comes back does so later."""

OFF = {"query_shift": 0.0, "adjustment_rate": 0.01}
"""Next to nothing is learnt."""


def made(storage, *, is_random, users=U, seed=3):
    """Record a log in which users come back for a favourite, or click anything."""
    rng = np.random.default_rng(seed)
    collection = storage.collections.create("made", SearchIndexInfo(dimensions=D))
    objects = rng.normal(size=(I, D)).astype(np.float32)
    objects /= np.linalg.norm(objects, axis=1, keepdims=True)
    storage.objects.upsert(collection, [CatalogueObject(f"o{i}", objects[i : i + 1]) for i in range(I)])
    queries = rng.normal(size=(QUERIES, D)).astype(np.float32)
    plain = np.argsort(-(queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ objects.T, axis=1)
    favourites = rng.integers(1, 5, size=users)  # a place among the results, not the first
    for t in range(T):
        for u in range(users):
            query = u % QUERIES
            clicked = rng.integers(I) if is_random else plain[query, favourites[u]]
            session = Session(
                session_id=f"s{t}-{u}",
                user_id=f"u{u}",
                collection="made",
                search_query=f"query {query}",
                created_at=FIRST_SECOND + t * DAY + u,
                search_results=tuple(
                    SearchResultItem(object_id=f"o{i}", position=at)
                    for at, i in enumerate(plain[query, :10].tolist(), start=1)
                ),
            )
            storage.clickstream.record([RecordedSession(session, queries[query : query + 1])])
            event = SessionEvent(
                session_id=session.session_id, object_id=f"o{clicked}", created_at=session.created_at + 9
            )
            storage.clickstream.push_events([event])


def context(*, is_random=False, users=U, **settings):
    opened = Context(load_settings(embedder="none", **settings), storage=MemoryStorage())
    made(opened.storage, is_random=is_random, users=users)
    return opened


def tuned(opened, **options):
    return tune_settings(opened, "made", **({"trials": 4} | options))


@pytest.fixture(scope="module")
def won():
    return tuned(context(**OFF))


def test_settings_that_win_on_later_searches_are_recommended(won):
    judged = won.judged["past"]

    assert won.is_recommended
    assert won.told.startswith("Set ")
    assert set(won.changes) <= set(won.before)
    assert won.changes["query_shift"] > 0
    assert (judged.searches, judged.users) == (107, U)  # the last third of 5 x 64
    assert won.judge_from == 1000 * (FIRST_SECOND + 4 * DAY + 21)  # of the search number 213 of 320
    assert judged.found_to_in_force.difference.low > 0
    assert judged.found_to_plain.difference.low > 0
    assert judged.found_to_plain.users_worse <= 0.1


def test_the_settings_in_force_are_among_those_tried_and_equal_ones_are_tried_once(won):
    tried = [repr(each.settings) for each in won.trials]

    assert tried.count("{}") == 1
    assert len(tried) == len(set(tried))
    assert f"{len(tried)} different settings were tried" in won.notes[0]


def test_the_settings_in_force_are_what_is_begun_with_and_reported():
    in_force = {"query_shift": 0.4, "adjustment_rate": 0.2, "gate_threshold": 0.8, "shared_min_users": 5}

    found = tuned(context(**in_force), share=3, trials=1)

    assert found.before == in_force | {"learn_own_past": True}
    assert found.after.keys() == found.before.keys()


class Reckoned:
    """Tries settings by a formula instead of a replay."""

    max_worse = 0.1

    def __init__(self, difference, users_worse=lambda _: 0.0):
        self._difference = difference
        self._users_worse = users_worse
        self.all = []

    def tried(self, several, show):  # noqa: ARG002, as the real one
        found = [Tried(each, self._difference(each), self._users_worse(each)) for each in several]
        self.all += found
        return found

    def value(self, tried):
        return tried.difference

    def best_first(self):
        return sorted(self.all, key=lambda each: -each.difference)


def test_changes_that_gain_nothing_are_put_back():
    trying: Any = Reckoned(
        lambda given: 0.1 * ("a" in given) + 0.0009 * ("b" in given) + 0.002 * ("c" in given)
    )

    assert _put_back(trying, {"a": 1, "b": 2, "c": 3}, nobody) == {"a": 1, "c": 3}


def test_changes_that_gain_something_only_together_are_kept():
    """Either alone can go, but not both."""
    trying: Any = Reckoned(lambda given: 0.1 * ("a" in given or "b" in given))

    assert _put_back(trying, {"a": 1, "b": 2}, nobody) == {"a": 1, "b": 2}


def test_the_best_is_taken_that_harms_no_more_users_than_may_be_and_wins_against_plain_search():
    trying: Any = Reckoned(lambda given: given["a"], users_worse=lambda given: given["a"])
    trying.tried([{"a": 0.2}, {"a": 0.1}, {"a": 0.05}], nobody)
    losing: Any = Reckoned(lambda given: given["a"])
    losing.tried([{"a": 0.0}, {"a": -0.1}], nobody)

    assert _best(trying) == {"a": 0.1}
    assert _best(losing) == {}


def nobody(what, done, total):
    """Take notice of no progress."""


def test_an_equal_seed_gives_an_equal_answer_whatever_the_number_of_processes(won):
    again = tuned(context(**OFF), processes=2)

    assert again.to_json() == won.to_json()


def test_of_clicks_at_random_nothing_is_recommended():
    opened = context(is_random=True, learn_own_past=False)

    found = tuned(opened)

    assert not found.is_recommended
    assert found.changes == {}
    assert found.told.startswith("Leave it as it is: ")


def test_of_too_few_users_or_searches_it_is_said_so():
    with pytest.raises(InvalidInputError, match=r"clicks of users who .*, by 19 users, which is too few"):
        tuned(context(users=19))
    with pytest.raises(
        InvalidInputError, match=r"to judge them on there are 2 searches .*begin at another time"
    ):
        tuned(context(), judge_from=1000 * (FIRST_SECOND + 5 * DAY + 62))
    with pytest.raises(InvalidInputError, match="to choose settings on there are 0 searches"):
        tuned(context(), judge_from=0)


def test_of_a_log_in_which_nobody_came_back_it_is_said_what_it_takes():
    opened = Context(load_settings(embedder="none"), storage=MemoryStorage())
    opened.storage.collections.create("made", SearchIndexInfo(dimensions=D))

    with pytest.raises(InvalidInputError, match=r"no search to tune on: it takes .*--share"):
        tuned(opened)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trials": 0}, "give 1 or more"),
        ({"max_worse": 1.5}, "from 0 to 1"),
        ({"max_worse": math.nan}, "from 0 to 1"),
        ({"share": 1}, "give 2 or more"),
        ({"searches": 10}, "give 100 or more"),
    ],
)
def test_what_cannot_be_used_is_said_before_the_work(options, said):
    with pytest.raises(InvalidInputError, match=said):
        tuned(Context(load_settings(embedder="none"), storage=MemoryStorage()), **options)


def test_without_optuna_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)

    with pytest.raises(EmbeddingStudioError, match=r"pip install 'embedding-studio\[tune\]'"):
        tuned(Context(load_settings(embedder="none"), storage=MemoryStorage()))


def test_a_collection_that_is_not_there_is_named():
    opened = Context(load_settings(embedder="none"), storage=MemoryStorage())

    with pytest.raises(CollectionNotFoundError, match="made"):
        tuned(opened)


def test_what_people_decide_is_not_tried_unless_they_ask():
    in_force = load_settings(shared_min_users=5, learn_own_past=False, query_shift=3)

    assert set(_space(in_force, None, has_own_gate=True)) == {"query_shift", "adjustment_rate"}
    asked = _space(in_force, 3, has_own_gate=False)
    assert asked["shared_min_users"] == Choices((5, 3))
    assert asked["query_shift"] == Range(0.0, 3)  # what is in force can always be found again


def test_a_sample_is_of_whole_users_and_all_are_learnt_from(tmp_path):
    each = steps(read(tmp_path, [row(n, f"u{n % 7}", "x", 100 * n, ("b", 100 * n)) for n in range(1, 50)]))

    sampled = _sampled(each, "all", 0.5, 3)

    measured = {step.search.user_id for step in sampled if step.slices}
    assert [step.due for step in sampled] == [step.due for step in each]
    assert 0 < len(measured) < 7
    assert measured.isdisjoint(step.search.user_id for step in sampled if not step.slices)


def compared(mean, low, high, *, better=0.5, worse=0.0):
    return Compared(Difference(mean, low, high), Difference(mean, low, high), better, worse)


WON, LOST, EVEN = compared(0.1, 0.05, 0.15), compared(-0.1, -0.15, -0.05), compared(0.01, -0.01, 0.03)


def judged(*, in_force=EVEN, to_plain=WON, to_in_force=WON):
    return Judged("all", 300, 100, in_force, to_plain, to_in_force)


@pytest.mark.parametrize(
    ("came_out", "said"),
    [
        (judged(), None),
        (judged(to_in_force=EVEN), "chance may have done it"),
        (judged(to_in_force=LOST), "chance may have done it"),
        (judged(to_plain=EVEN), "does not win against plain search"),
        (judged(to_plain=compared(0.1, 0.05, 0.15, worse=0.11)), "11.0% of the users fare worse"),
        (judged(to_in_force=compared(0.1, 0.05, 0.15, better=0.19)), "a difference to 19 users"),
        (judged(to_plain=compared(0.01, 0.001, 0.02, better=0.04)), "all but 4 users it is as good as plain"),
        (judged(to_in_force=None, to_plain=None), "none does better"),
    ],
)
def test_only_what_wins_against_both_and_harms_few_is_recommended(came_out, said):
    reasons = reasons_against(came_out, max_worse=0.1)

    assert (said is None) == (reasons == [])
    told = verdict({"query_shift": 0.5}, reasons, came_out)
    assert told.startswith("Set QUERY_SHIFT=0.5: " if said is None else "Leave it as it is: ")
    assert (said or "") in told


def test_that_learning_does_not_pay_is_said():
    came_out = judged(in_force=LOST, to_in_force=WON, to_plain=EVEN)

    assert "learning does not pay" in verdict({}, reasons_against(came_out, 0.1), came_out)


def test_a_settings_file_keeps_what_else_it_says(tmp_path):
    file = tmp_path / ".env"
    file.write_text(
        "# mine\nADMIN_API_KEY=a-secret-of-many-letters\nexport query_shift=2\nGATE_THRESHOLD=0.5\n"
    )
    file.chmod(0o600)

    write_settings(file, {"query_shift": 0.25, "learn_own_past": False})

    assert file.read_text() == (
        "# mine\nADMIN_API_KEY=a-secret-of-many-letters\nGATE_THRESHOLD=0.5\n"
        "QUERY_SHIFT=0.25\nLEARN_OWN_PAST=false\n"
    )
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_settings_file_that_was_written_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"query_shift": 0.25, "learn_own_past": False, "shared_min_users": 4, "adjustment_rate": 0.033}

    write_settings(tmp_path / ".env", changes)

    settings = load_settings()
    assert {name: getattr(settings, name) for name in changes} == changes


def test_a_settings_file_that_cannot_be_read_or_written_stays_as_it_is(tmp_path):
    file = tmp_path / ".env"
    file.write_bytes(b"\xff\xfe")

    with pytest.raises(InvalidInputError, match="no settings file"):
        write_settings(file, {"query_shift": 1})
    with pytest.raises(InvalidInputError, match="cannot be written"):
        write_settings(tmp_path / "nowhere" / ".env", {"query_shift": 1})

    assert file.read_bytes() == b"\xff\xfe"
    assert list(tmp_path.iterdir()) == [file]


def test_the_command_writes_what_it_recommends_and_says_why(command, stored, monkeypatch):  # noqa: F811
    made(stored, is_random=False)
    monkeypatch.setenv("QUERY_SHIFT", "0")
    monkeypatch.setenv("ADJUSTMENT_RATE", "0.01")
    options = ("--settings", "--trials", 2, "--processes", 1, "--write", ".env")

    looked = command("tune", "made", *options, "--dry-run", "--json")
    is_there = Path(".env").exists()
    ended = command("tune", "made", *options)

    assert looked.exit_code == 0, looked.output
    assert not is_there
    changes = json.loads(looked.stdout)["changes"]
    assert ended.exit_code == 0, ended.output
    written = dict(line.split("=") for line in Path(".env").read_text().splitlines())
    assert {name.lower(): json.loads(value) for name, value in written.items()} == changes
    assert f"\nSet {' '.join(f'{name.upper()}={value}' for name, value in changes.items())}: " in ended.stdout
    assert "found to in force" in ended.stdout
    assert ".env has them now" in " ".join(ended.stderr.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trials", 3, "--judge-from", "2026-01-01"], "--trials, --judge-from is for tuning settings"),
        (["--settings", "--reset"], "--reset takes back what a collection has stored"),
        (["--settings", "--judge-from", "soon"], "--judge-from is 'soon'; give a date"),
        (["--settings", "--log", "nowhere.gz"], "nowhere.gz: it cannot be opened"),
        (["--settings", "--write", "nowhere/.env"], "nowhere/.env cannot be written"),
        (["--settings", "--write", "broken"], "broken is no settings file"),
        (["--settings"], "there is no search to tune on: it takes searches with a click"),
        (
            ["--settings", "--log", "undated"],
            "nothing in the log can be used: 2 x a session without a usable timestamp; mend what is named",
        ),
    ],
)
def test_the_command_says_in_a_sentence_what_is_wrong(command, stored, options, said):  # noqa: F811
    stored.collections.create("made", SearchIndexInfo(dimensions=D))
    Path("broken").write_bytes(b"\xff")
    Path("undated").write_text('{"session_id": "1", "user_id": "u", "query": "x"}\n' * 2)

    assert said in refusal(command("tune", "made", *options))
