"""The laws of the simulation of months (benchmarks/months.py), on a small world."""

import importlib
import math
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import PersonalState, SeenObject, SharedVote
from embedding_studio.evaluation.clicks import ClickModel, click_model
from embedding_studio.evaluation.collection_folder import JudgedCollection, JudgedQuery
from embedding_studio.storage.memory import MemoryStorage

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
months = importlib.import_module("months")
page_of = importlib.import_module("months_page")

DIMENSIONS, TOPICS, ITEMS_OF_TOPIC, USERS = 13, 5, 24, 25
PLAN = months.Plan(days=70, users=USERS, later=0.4, leaving=0.2, changing=0.5)
NOBODY_CLICKS = ClickModel(mistake=0.0, attraction=0.0)
STANDARD = click_model("standard")
NAMES = ["plain", "counts", "own", "shared, 7 days", "shared, for ever", "shared, 7 days, explored .1"]


def small_world(seed):
    """Topics in a space of their own; half of a topic's objects are relevant to its query."""
    rng = np.random.default_rng(17)
    topics = np.eye(DIMENSIONS, dtype=np.float32)[:TOPICS]
    parts, grades = {}, [{} for _ in topics]
    for number in range(TOPICS * ITEMS_OF_TOPIC):
        name, topic = f"object-{number:03}", number % TOPICS
        vector = topics[topic] + rng.normal(size=DIMENSIONS) / 3
        parts[name] = (vector / np.linalg.norm(vector)).astype(np.float32)[None]
        if number // TOPICS % 2:
            grades[topic][name] = 1 + number % 3
    queries = [JudgedQuery(f"topic {number}", topics[number], grades[number]) for number in range(TOPICS)]
    collection = JudgedCollection("small", tuple(parts), tuple(parts.values()), tuple(queries))
    demand = np.arange(TOPICS, 0, -1) / sum(range(TOPICS + 1))
    return months.world_of(collection, [(queries, demand)] * USERS, seed, PLAN)


@pytest.fixture(scope="module")
def world():
    return small_world(3)


@pytest.fixture(scope="module")
def lives(world):
    return {name: [months.live(world, months.METHODS[name], STANDARD)] for name in NAMES}


def test_where_nobody_clicks_every_method_is_plain_search_for_all_months(world):
    plain = months.live(world, months.METHODS["plain"], NOBODY_CLICKS)

    for name in ("counts", "own", "shared, 7 days, explored .1"):
        lived = months.live(world, months.METHODS[name], NOBODY_CLICKS)
        assert (lived.pages, lived.clicks) == (plain.pages, 0), name


def test_what_is_not_there_yet_or_no_more_is_never_shown_and_what_comes_is(world, lives):
    for name in NAMES:
        [lived] = lives[name]
        shown = {each for page in lived.pages for each in page}
        for asked, page in zip(world.asked, lived.pages, strict=True):
            assert len(page) == len(set(page)) == 10
            assert all(world.is_there(each, asked.day) for each in page), name
        assert shown & world.comes.keys(), name


def test_the_same_seed_is_the_same_half_year_and_another_seed_another(world, lives):
    again = small_world(3)

    assert [(each.at, each.user, each.grades) for each in again.asked] == [
        (each.at, each.user, each.grades) for each in world.asked
    ]
    name = "shared, 7 days, explored .1"
    [lived] = lives[name]
    assert months.live(again, months.METHODS[name], STANDARD).pages == lived.pages
    assert [each.at for each in small_world(4).asked] != [each.at for each in world.asked]


def test_what_was_clicked_changes_what_is_shown(lives):
    pages = {name: lived.pages for name, [lived] in lives.items()}

    assert len({tuple(each) for each in pages.values()}) == len(NAMES)


def test_without_exploration_a_search_that_is_repeated_shows_the_same(world, lives):
    for name in NAMES:
        [lived] = lives[name]
        assert (lived.pages == lived.unexplored) == ("explored" not in name)


def test_a_vote_of_many_half_lives_ago_says_nothing_of_objects_and_for_ever_all():
    query = np.array([1.0, 0.0, 0.0], dtype=np.float32)

    def clicks_counted(half_life):
        storage = MemoryStorage(shared_half_life=half_life)
        collection = storage.collections.create("months", SearchIndexInfo(dimensions=3))
        for number, days_ago in enumerate((60, 0, 0)):
            seen = (SeenObject("old" if days_ago else "new", 1.0, 1.0),)
            vote = SharedVote("key", query, query, months.START - days_ago * months.DAY, seen)
            with storage.personal.learning(collection, [f"user-{number}"]) as transaction:
                transaction.replace_states({f"user-{number}": PersonalState(votes=(vote,))})
        [memory] = storage.personal.near_memories(collection, None, query, 0.75, shared_by=2).shared
        return {each.object_id: each.clicks for each in memory.seen}

    assert clicks_counted(months.DAY) == pytest.approx({"new": 2.0, "old": 0.0}, abs=1e-12)
    assert clicks_counted(60 * months.DAY) == {"new": 2.0, "old": 0.5}
    assert clicks_counted(math.inf) == {"new": 2.0, "old": 1.0}


def test_what_a_query_means_changes_once_for_all_and_never_asks_for_both_halves(world):
    halves: dict[str, tuple[set[str], set[str]]] = {}
    days: dict[str, tuple[list[int], list[int]]] = {}
    for asked in world.asked:
        halves.setdefault(asked.query.text, (set(), set()))[asked.changed].update(asked.grades)
        days.setdefault(asked.query.text, ([], []))[asked.changed].append(asked.at)
    changed = [text for text in halves if halves[text][True]]

    assert 0 < len(changed) < TOPICS
    for text in changed:
        assert not halves[text][False] & halves[text][True]
        assert max(days[text][False]) < min(days[text][True])


def test_a_new_interest_is_counted_from_its_first_search(world):
    for number in range(USERS):
        drifts = [
            each.since_drift for each in world.asked if each.user == number and each.since_drift is not None
        ]
        for before, after in zip([-1, *drifts], drifts, strict=False):
            assert after in {0, before + 1}


def test_looks_that_all_objects_share_are_equal_and_those_of_one_are_not():
    assert months.gini_of(np.full(7, 2.0)) == pytest.approx(0)
    assert months.gini_of(np.array([0, 0, 0, 0, 5.0])) == pytest.approx(0.8)
    assert months.gini_of(np.array([1.0, 3.0])) == pytest.approx(0.25)


def test_an_object_that_came_is_found_at_the_search_that_first_shows_it(world):
    text, name = next(
        (asked.query.text, each)
        for asked in world.asked
        for each in asked.grades
        if world.comes.get(each, 0) > 21
    )
    alone = replace(world, comes={name: world.comes[name]})
    of_query = [
        row for row, each in enumerate(world.asked) if each.query.text == text and name in each.grades
    ]
    pages: list[tuple[str, ...]] = [() for _ in world.asked]
    pages[of_query[2]] = (name,)
    never = months.Lived([() for _ in pages], [], 0)

    found = months.findings(alone, months.Lived(pages, [], 0))

    assert 3 in found
    assert set(months.findings(alone, never)) == {None}


def test_the_figures_are_differences_to_plain_search_and_the_page_tells_them(world, lives, tmp_path):
    figures = months.summary([world], lives)
    methods = figures["methods"]

    assert methods["plain"]["measures"]["all"]["to plain"]["mean"] == 0
    assert methods["own"]["cost"]["mean"] == 0
    assert methods["shared, 7 days, explored .1"]["cost"]["mean"] < 0
    mine, plain = (methods[name]["measures"]["later"]["mean"] for name in ("shared, 7 days", "plain"))
    assert methods["shared, 7 days"]["measures"]["later"]["to plain"]["mean"] == pytest.approx(mine - plain)

    report = {"plan": months.asdict(PLAN), "clicks": "standard", "folders": {"small": figures}}
    told = page_of.markdown(
        report, months.MEASURES, "python months.py", tmp_path / "a.svg", tmp_path / "a.md"
    )
    assert all(f"| {name} |" in told for name in NAMES[1:])
    assert "](a.svg)" in told
    ET.fromstring(page_of.picture(report))  # noqa: S314, of our own making
