"""Half a year of a search that learns: users drift, objects come and go, popularity feeds on itself.

    python benchmarks/months.py ../shared/data/cranfield ../shared/data/movielens --seeds 10 11 12
    python benchmarks/months.py FOLDER... --markdown PAGE --picture SVG --json OUT

FOLDER is a collection folder with judgements or ratings. Each method lives through the same half year: the
same users ask the same at the same second, over the same catalogue, and look and click by the same draws. The
product's own code searches, learns and explores, on ``MemoryStorage``. ``months_page.py`` writes the page.

Axes: N searches.

Sources: clicks as in ``evaluation/clicks.py``; how often queries are asked follows a power law
[petersen2016, "Power law distributions in information retrieval"]; 40 % of the queries of a log find again
what their user found before [teevan2007, "Information re-retrieval: repeat queries in Yahoo's logs"]; showing
and clicking in a loop narrows what is shown [chaney2018, "How algorithmic confounding in recommendation
systems increases homogeneity and decreases utility"].
"""

import argparse
import json
import math
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedding_studio.bootstrap import Context
from embedding_studio.domain.objects import CatalogueObject, Collection, Neighbour
from embedding_studio.domain.sessions import SessionEvent
from embedding_studio.embedders import Embedder
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.errors import InvalidInputError
from embedding_studio.evaluation.clicks import ClickModel, click_draws, click_model
from embedding_studio.evaluation.collection_folder import JudgedCollection, JudgedQuery, load_collection
from embedding_studio.evaluation.metrics import CUTOFF, RESAMPLES, ndcg_at_10
from embedding_studio.evaluation.taste import has_ratings, load_tastes
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import GATE_THRESHOLD, SearchService
from embedding_studio.search.mixing import slots_of
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import SHARED_HALF_LIFE
from embedding_studio.tuning import OwnPastKeeper, guard_gate
from months_page import SHARED, markdown, picture

Floats = NDArray[np.float64]

DAY, WEEK = 86_400, 7
DELIVERY = 14
"""Days after which the catalogue changes."""
START = 1_735_689_600
"""1 January 2025, in UTC seconds: the product dates no session ahead of its clock."""
SECONDS_TO_CLICK = 20
NAME = "months"
DEEP = 100
"""So far down plain search is known to the counts of clicks."""


@dataclass(frozen=True)
class Plan:
    """The numbers of the model. Each has a reason; none was fitted.

    Attributes:
        days: half a year, so that a half-life of a quarter has two of its lengths.
        users: so many ever come, evenly from one mean stay before the first day on.
        stay_days: mean of an exponential: most users are gone after two months, as in a shop.
        days_between: mean days from a user's search to the next.
        interest_days: mean of an exponential after which a user wants something else: the drift.
        other: share of searches for something but the present interest; then about half are repeats.
        wishes: different queries asked; few enough that the most asked has hundreds of searches.
        relevant: fewest relevant objects of a query that is asked.
        items: so many objects of a larger folder are kept: all that are relevant, and others at random.
        later, leaving: shares of the objects that come after the start, and that go.
        changing: share of the queries whose meaning changes for all: first half of what is relevant is
            wanted, then the other half, as with a fashion or a season.
    """

    days: int = 180
    users: int = 200
    stay_days: float = 60.0
    days_between: float = 5.0
    interest_days: float = 30.0
    other: float = 0.5
    wishes: int = 40
    relevant: int = 6
    items: int = 1_500
    later: float = 0.3
    leaving: float = 0.15
    changing: float = 0.3


@dataclass(frozen=True, eq=False)
class Asked:
    """One search, the same for every method.

    Attributes:
        at: UTC seconds.
        turn: which search of this user, from 0.
        grades: what the user wants of what is in the catalogue on that day.
        since_drift: which search for the present interest, from 0, if that took another's place; else None.
        changed: whether what is wanted by this query is by now something else for all.
    """

    user: int
    turn: int
    at: int
    day: int
    query: JudgedQuery
    grades: Mapping[str, int]
    since_drift: int | None
    changed: bool

    @property
    def session_id(self) -> str:
        return f"user-{self.user}-{self.turn:04}"


@dataclass(frozen=True, eq=False)
class World:
    """What happens in half a year.

    Attributes:
        comes, goes: object id -> day from which on it is there, or gone; absent: from the start, and never.
        asked: in the order of time.
    """

    name: str
    seed: int
    plan: Plan
    collection: JudgedCollection
    highest_grade: int
    comes: Mapping[str, int]
    goes: Mapping[str, int]
    asked: Sequence[Asked]

    def is_there(self, object_id: str, day: int) -> bool:
        return self.comes.get(object_id, 0) <= day < self.goes.get(object_id, self.plan.days)


@dataclass(frozen=True)
class Method:
    """What users live with.

    Attributes:
        kind: ``plain``, ``counts`` or ``product``.
        shared_by: ``SHARED_MIN_USERS``.
        half_life: days; inf: what others clicked never ages.
        exploration: ``EXPLORATION_RATIO``.
    """

    kind: str = "product"
    shared_by: int = 0
    half_life: float = SHARED_HALF_LIFE / DAY
    exploration: float = 0.0


@dataclass(frozen=True, eq=False)
class Lived:
    """What users were shown.

    Attributes:
        pages: [N], ids, best first.
        unexplored: [N], what they would have been shown at the same moment without exploration.
        clicks: how many there were.
    """

    pages: list[tuple[str, ...]]
    unexplored: list[tuple[str, ...]]
    clicks: int


# --- the half year ----------------------------------------------------------------------------------


def load_world(folder: Path, seed: int, embedder: Embedder, plan: Plan) -> World:
    """Return the half year of a folder and a seed."""
    if has_ratings(folder):
        collection, users = load_tastes(folder, users=plan.users, sessions=12, embedder=embedder, seed=seed)
        of_user = [{query.text: query for query in user.issued} for user in users]
        choices = [(list(own.values()), np.ones(len(own)) / len(own)) for own in of_user]
    else:
        collection = load_collection(folder, embedder=embedder, seed=seed)
        asked = [query for query in collection.queries if len(query.grades) >= plan.relevant]
        if not asked:
            raise InvalidInputError(f"no query of {folder} has {plan.relevant} relevant items")
        order = np.random.default_rng((seed, 0)).permutation(len(asked))[: plan.wishes]
        demand = 1 / np.arange(1, len(order) + 1)
        wishes = [asked[row] for row in order]
        collection = _smaller(collection, wishes, seed, plan.items)
        choices = [(wishes, demand / demand.sum())] * plan.users
    return world_of(collection, choices, seed, plan)


def _smaller(
    collection: JudgedCollection, wishes: Sequence[JudgedQuery], seed: int, most: int
) -> JudgedCollection:
    relevant = {name for query in wishes for name in query.grades}
    others = [name for name in collection.item_ids if name not in relevant]
    room = max(0, most - len(relevant))
    kept = relevant | set(np.random.default_rng((seed, 3)).permutation(others)[:room].tolist())
    rows = [row for row, name in enumerate(collection.item_ids) if name in kept]
    return replace(
        collection,
        item_ids=tuple(collection.item_ids[row] for row in rows),
        parts=tuple(collection.parts[row] for row in rows),
    )


def world_of(
    collection: JudgedCollection,
    choices: Sequence[tuple[Sequence[JudgedQuery], Floats]],
    seed: int,
    plan: Plan,
) -> World:
    """Return the half year of users who ask one of their queries, each with its probability."""
    rng = np.random.default_rng((seed, 1))
    ids = rng.permutation(sorted(collection.item_ids)).tolist()
    last = plan.days // DELIVERY
    comes = {name: DELIVERY * int(rng.integers(1, last)) for name in ids[: round(plan.later * len(ids))]}
    leaving = rng.permutation(ids)[: round(plan.leaving * len(ids))].tolist()
    goes = {
        name: DELIVERY * int(rng.integers(comes.get(name, 0) // DELIVERY + 1, last + 2)) for name in leaving
    }
    highest = max(grade for queries, _ in choices for query in queries for grade in query.grades.values())
    world = World(collection.name, seed, plan, collection, highest, comes, goes, ())
    asked = [each for number, own in enumerate(choices) for each in _asked_by(number, own, world)]
    return replace(world, asked=sorted(asked, key=lambda each: each.at))


def _asked_by(number: int, choice: tuple[Sequence[JudgedQuery], Floats], world: World) -> Iterable[Asked]:
    """Yield what one user asks, in the order of time."""
    plan, (queries, demand) = world.plan, choice
    rng = np.random.default_rng((world.seed, 2, number))
    at = float(rng.uniform(-plan.stay_days, plan.days))
    end = min(at + rng.exponential(plan.stay_days), plan.days)
    at = max(at, 0.0)
    interest = int(rng.choice(len(queries), p=demand))
    changes_at = at + rng.exponential(plan.interest_days)
    since: int | None = None
    turn = 0
    while (at := at + rng.exponential(plan.days_between)) < end:
        if at >= changes_at and len(queries) > 1:
            others = demand * (np.arange(len(queries)) != interest)
            interest = int(rng.choice(len(queries), p=others / others.sum()))
            changes_at = at + rng.exponential(plan.interest_days)
            since = 0
        is_other = rng.random() < plan.other
        query = queries[int(rng.choice(len(queries), p=demand)) if is_other else interest]
        wanted, changed = _wanted(query, at, world)
        day = int(at)
        grades = {name: grade for name, grade in wanted.items() if world.is_there(name, day)}
        since_drift = None if is_other else since
        yield Asked(number, turn, START + int(at * DAY), day, query, grades, since_drift, changed)
        turn += 1
        since = since if since is None or is_other else since + 1


def _wanted(query: JudgedQuery, at: float, world: World) -> tuple[Mapping[str, int], bool]:
    """Return what is wanted by a query on a day, and whether that is no longer what it was at the start."""
    share, when = np.random.default_rng([world.seed, *sha256(query.text.encode()).digest()[:8]]).random(2)
    if share >= world.plan.changing:
        return query.grades, False
    changed = at >= world.plan.days * (1 + when) / 3
    half = {
        name: grade
        for name, grade in query.grades.items()
        if sha256(f"{world.seed}\0{query.text}\0{name}".encode()).digest()[0] % 2 == changed
    }
    return half, bool(changed)


# --- what users live with ---------------------------------------------------------------------------


class Living(Protocol):
    def change(self, come: Sequence[CatalogueObject], gone: Sequence[str]) -> None: ...

    def serve(self, asked: Asked) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the page as it is shown, and as it would be without exploration."""
        ...

    def learn(self, clicked: Sequence[tuple[Asked, Sequence[str]]]) -> None: ...


class Plain:
    """Plain search; or counts: what was clicked most for exactly this query comes first."""

    def __init__(self, world: World, method: Method) -> None:
        self._storage = MemoryStorage()
        self._collection: Collection | None = None
        self._world, self._method = world, method
        self._found: dict[str, list[Neighbour]] = {}
        self._clicks: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._there: set[str] = set()

    def change(self, come: Sequence[CatalogueObject], gone: Sequence[str]) -> None:
        self._collection = _with_delivery(self._storage, self._collection, self._world, come, gone)
        self._there = self._there.union(item.object_id for item in come).difference(gone)
        self._found.clear()

    def serve(self, asked: Asked) -> tuple[tuple[str, ...], tuple[str, ...]]:
        plain = self._plain(asked.query)
        counted = self._clicks.get(asked.query.text, {})
        if not counted:
            page = tuple(each.object_id for each in plain[:CUTOFF])
            return page, page
        place = {each.object_id: row for row, each in enumerate(plain)}
        first = sorted(
            self._there & counted.keys(), key=lambda name: (-counted[name], place.get(name, DEEP), name)
        )
        own = [Neighbour(name, 0.0, {}) for name in first]
        own += [each for each in plain if each.object_id not in counted]
        ratio = self._method.exploration
        draws = _draws(asked) if ratio else np.ones(CUTOFF)
        slots = slots_of(own, plain, (), draws, ratio)
        return tuple(slot.object_id for slot, _, _ in slots), tuple(each.object_id for each in own[:CUTOFF])

    def learn(self, clicked: Sequence[tuple[Asked, Sequence[str]]]) -> None:
        if self._method.kind == "counts":
            for asked, object_ids in clicked:
                for object_id in object_ids:
                    self._clicks[asked.query.text][object_id] += 1

    def _plain(self, query: JudgedQuery) -> list[Neighbour]:
        if query.text not in self._found:
            assert self._collection is not None
            found = self._storage.objects.nearest(self._collection, query.vector[None], DEEP)
            self._found[query.text] = found
        return self._found[query.text]


class Product:
    """The product as it serves and learns: each night from the clicks of the day.

    How much the past counts is fitted once a fortnight, where a worker does so once a day.
    """

    def __init__(self, world: World, method: Method) -> None:
        self._world, self._method = world, method
        self._storage = MemoryStorage(shared_half_life=method.half_life * DAY)
        self._collection: Collection | None = None
        self._search = SearchService(
            self._storage, shared_min_users=method.shared_by, exploration_ratio=method.exploration
        )
        self._improver = Improver(self._storage, PassiveAggressiveAdjuster, is_shared=method.shared_by > 0)
        self._own_past = OwnPastKeeper(self._storage, gate_threshold=GATE_THRESHOLD)

    def change(self, come: Sequence[CatalogueObject], gone: Sequence[str]) -> None:
        self._collection = _with_delivery(self._storage, self._collection, self._world, come, gone)
        self._improve()
        self._own_past.fit(START)

    def serve(self, asked: Asked) -> tuple[tuple[str, ...], tuple[str, ...]]:
        who: dict[str, Any] = {
            "collection": NAME,
            "user_id": f"user-{asked.user}",
            "limit": CUTOFF,
            "now": asked.at,
        }
        vector = asked.query.vector
        page = self._search.search(vector, **who, session_id=asked.session_id, create_session=True)
        shown = tuple(each.object_id for each in page.results)
        if not self._method.exploration:
            return shown, shown
        page = self._search.search(vector, **who, exploration_ratio=0.0)
        return shown, tuple(each.object_id for each in page.results)

    def learn(self, clicked: Sequence[tuple[Asked, Sequence[str]]]) -> None:
        self._storage.clickstream.push_events(
            [
                SessionEvent(
                    session_id=asked.session_id, object_id=object_id, created_at=asked.at + SECONDS_TO_CLICK
                )
                for asked, object_ids in clicked
                for object_id in object_ids
            ]
        )
        self._improve()

    def _improve(self) -> None:
        while (report := self._improver.improve_once(users=500)).users:
            assert not report.failed, report.failed


def _with_delivery(
    storage: MemoryStorage,
    collection: Collection | None,
    world: World,
    come: Sequence[CatalogueObject],
    gone: Sequence[str],
) -> Collection:
    is_new = collection is None
    if collection is None:
        collection = storage.collections.create(NAME, world.collection.index)
    storage.objects.upsert(collection, come)
    storage.objects.delete(collection, gone)
    return guard_gate(storage, collection, [item.object_id for item in come]) if is_new else collection


def _draws(asked: Asked) -> Floats:
    return np.random.default_rng((asked.user, asked.turn)).random(CUTOFF)


def live(world: World, method: Method, clicks: ClickModel) -> Lived:
    """Return what users were shown who lived with a method."""
    living: Living = Product(world, method) if method.kind == "product" else Plain(world, method)
    parts = dict(zip(world.collection.item_ids, world.collection.parts, strict=True))
    by_day: dict[int, list[Asked]] = defaultdict(list)
    for each in world.asked:
        by_day[each.day].append(each)
    lived = Lived([], [], 0)
    clicks_made = 0
    for day in range(world.plan.days):
        if day % DELIVERY == 0:
            come = [name for name in parts if world.comes.get(name, 0) == day]
            gone = [name for name, when in world.goes.items() if when == day]
            if come or gone:
                living.change([CatalogueObject(name, parts[name]) for name in come], gone)
        clicked = []
        for asked in by_day[day]:
            shown, unexplored = living.serve(asked)
            lived.pages.append(shown)
            lived.unexplored.append(unexplored)
            draws = click_draws(world.seed, asked.user, asked.turn, CUTOFF)
            chosen = clicks.clicked(shown, asked.grades, highest_grade=world.highest_grade, draws=draws)
            if chosen:
                clicked.append((asked, chosen))
                clicks_made += len(chosen)
        if clicked:
            living.learn(clicked)
    return Lived(lived.pages, lived.unexplored, clicks_made)


# --- what is measured -------------------------------------------------------------------------------

MEASURES: Mapping[str, str] = {
    "all": "every search",
    "steady": "queries by which the same is wanted all the time",
    "changed": "queries by which everybody wants something else by now",
    "later": "every search, where only objects that came after the start count as relevant",
    "newest": "the same, where only objects count that came within the last four weeks",
    "newcomer": "the first search of a user",
    "drift 1": "the first search for a new interest, where it took the place of another",
    "drift 2": "the second search for it",
    "drift 3+": "the later searches for it",
    "unexplored": "every search, had its own page not been explored",
}
NEWEST = 28
"""Days."""
FINDINGS = (1, 3, 10)
"""Searches for a query within which an object that came is shown."""
PERIOD = 30
"""Days over which a curve is averaged."""


def values_of(world: World, lived: Lived) -> dict[str, Floats]:
    """Return measure -> [N], NaN where a search has no part in it."""
    asked = world.asked
    shown = _quality(lived.pages, [each.grades for each in asked])
    unexplored = shown
    if lived.unexplored != lived.pages:
        unexplored = _quality(lived.unexplored, [each.grades for each in asked])

    def where(rows: Iterable[bool]) -> Floats:
        return np.where(np.fromiter(rows, bool, len(asked)), shown, np.nan)

    def of_those_who_came(within: int) -> Floats:
        grades = [
            {
                name: grade
                for name, grade in each.grades.items()
                if each.day - world.comes.get(name, -within) < within
            }
            for each in asked
        ]
        return _quality(lived.pages, grades)

    changing = {each.query.text for each in asked if each.changed}
    drift = [-1 if each.since_drift is None else each.since_drift for each in asked]
    return {
        "all": shown,
        "steady": where(each.query.text not in changing for each in asked),
        "changed": where(each.changed for each in asked),
        "later": of_those_who_came(world.plan.days),
        "newest": of_those_who_came(NEWEST),
        "newcomer": where(each.turn == 0 for each in asked),
        "drift 1": where(number == 0 for number in drift),
        "drift 2": where(number == 1 for number in drift),
        "drift 3+": where(number > 1 for number in drift),
        "unexplored": unexplored,
    }


def _quality(pages: Sequence[Sequence[str]], grades: Sequence[Mapping[str, int]]) -> Floats:
    """Return [N], nDCG@10; NaN where nothing is relevant."""
    found = ndcg_at_10(pages, grades)
    found[[not each for each in grades]] = np.nan
    return found


def gini(world: World, lived: Lived, period: int) -> float:
    """Return how unequally looks fall on the objects that are there, in one period of ``PERIOD`` days.

    A place is looked at as often as 1 / rank. 0: all objects alike; 1: one has all.
    """
    looks: dict[str, float] = defaultdict(float)
    days = range(period * PERIOD, (period + 1) * PERIOD)
    for asked, page in zip(world.asked, lived.pages, strict=True):
        if asked.day in days:
            for rank, name in enumerate(page, start=1):
                looks[name] += 1 / rank
    there = [name for name in world.collection.item_ids if any(world.is_there(name, day) for day in days)]
    return gini_of(np.array([looks[name] for name in there]))


def gini_of(amounts: Floats) -> float:
    """Return the Gini coefficient, in [0, 1).

    >>> gini_of(np.array([3.0, 3.0, 3.0])), gini_of(np.array([0.0, 0.0, 0.0, 8.0]))
    (0.0, 0.75)
    """
    N = len(amounts)
    ranks = np.arange(1, N + 1)
    return float(((2 * ranks - N - 1) * np.sort(amounts)).sum() / (N * amounts.sum()))


def findings(world: World, lived: Lived) -> list[int | None]:
    """Return for each object that came, and query that wants it, at which search it is first shown; or None.

    Only where the query was asked by three users before it came, so that others have clicks for it, and ten
    times afterwards while it is there and wanted.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, asked in enumerate(world.asked):
        rows[asked.query.text].append(row)
    found: list[int | None] = []
    for of_query in rows.values():
        names = {name for row in of_query for name in world.asked[row].grades if name in world.comes}
        for name in sorted(names):
            before = {world.asked[row].user for row in of_query if world.asked[row].day < world.comes[name]}
            after = [row for row in of_query if name in world.asked[row].grades]
            if len(before) >= 3 and len(after) >= FINDINGS[-1]:
                shown = (number for number, row in enumerate(after, start=1) if name in lived.pages[row])
                found.append(next(shown, None))
    return found


def difference(
    worlds: Sequence[World], mine: Sequence[Floats], other: Sequence[Floats], rng: np.random.Generator
) -> dict[str, float]:
    """Return how two methods differ, mean over searches; the interval is 95 % over users of all worlds.

    A user is resampled with all searches. That users of one world hear of each other is not accounted for.
    """
    each = np.concatenate(mine) - np.concatenate(other)
    names = np.concatenate([[world.seed * 100_000 + asked.user for asked in world.asked] for world in worlds])
    counted = np.isfinite(each)
    if not counted.any():
        return {"searches": 0}
    _, users = np.unique(names[counted], return_inverse=True)
    sums, searches = np.bincount(users, each[counted]), np.bincount(users)
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    low, high = np.quantile((drawn @ sums) / (drawn @ searches), [0.025, 0.975])
    return {
        "mean": float(each[counted].mean()),
        "low": float(low),
        "high": float(high),
        "searches": int(counted.sum()),
        "users": len(sums),
    }


def summary(worlds: Sequence[World], lives: Mapping[str, Sequence[Lived]]) -> dict[str, Any]:
    """Return all figures of one folder; the first method is plain search.

    Args:
        lives: method -> what users were shown, in each world.
    """
    rng = np.random.default_rng(0)
    values = {
        name: [values_of(world, lived) for world, lived in zip(worlds, each, strict=True)]
        for name, each in lives.items()
    }
    plain, bases = next(iter(lives)), ("counts", "own", SHARED)
    periods = worlds[0].plan.days // PERIOD
    weeks = math.ceil(worlds[0].plan.days / WEEK)
    in_week = np.concatenate([[asked.day // WEEK for asked in world.asked] for world in worlds])
    in_period = np.concatenate([[asked.day // PERIOD for asked in world.asked] for world in worlds])
    told: dict[str, Any] = {}
    for name, each in lives.items():
        met: dict[str, Any] = {}
        for measure in MEASURES:
            mine = [of_world[measure] for of_world in values[name]]
            base = "all" if measure == "unexplored" else measure
            met[measure] = {"mean": float(np.nanmean(np.concatenate(mine)))} | {
                f"to {other}": difference(worlds, mine, [of_world[base] for of_world in values[other]], rng)
                for other in (plain, *bases)
                if other in values
            }
        gains = {
            measure: np.concatenate([of_world[measure] for of_world in values[name]])
            - np.concatenate([of_world[measure] for of_world in values[plain]])
            for measure in ("all", "later")
        }
        first = [
            number for world, lived in zip(worlds, each, strict=True) for number in findings(world, lived)
        ]
        told[name] = {
            "measures": met,
            "cost": difference(
                worlds,
                [of_world["all"] for of_world in values[name]],
                [of_world["unexplored"] for of_world in values[name]],
                rng,
            ),
            "worlds": [float(np.nanmean(of_world["all"])) for of_world in values[name]],
            "by week": {key: _means(gain, in_week, weeks) for key, gain in gains.items()},
            "by month": {key: _means(gain, in_period, periods) for key, gain in gains.items()}
            | {
                "gini": [
                    float(np.mean([gini(*pair, period) for pair in zip(worlds, each, strict=True)]))
                    for period in range(periods)
                ]
            },
            "found": {
                within: sum(number is not None and number <= within for number in first)
                for within in FINDINGS
            },
            "to be found": len(first),
            "clicks": sum(lived.clicks for lived in each),
        }
    return {
        "seeds": [world.seed for world in worlds],
        "items": len(worlds[0].collection.item_ids),
        "searches": sum(len(world.asked) for world in worlds),
        "users": sum(len({asked.user for asked in world.asked}) for world in worlds),
        "methods": told,
    }


def _means(values: Floats, groups: NDArray[np.int64], number: int) -> list[float | None]:
    """Return the mean of each group, None for one without any."""
    each = [values[(groups == group) & np.isfinite(values)] for group in range(number)]
    return [float(of_group.mean()) if len(of_group) else None for of_group in each]


# --- the command ------------------------------------------------------------------------------------

USERS_OF_SHARED = 3
METHODS: Mapping[str, Method] = {
    "plain": Method("plain"),
    "counts": Method("counts"),
    "counts, explored .1": Method("counts", exploration=0.1),
    "own": Method(),
    "own, explored .1": Method(exploration=0.1),
    "shared, 7 days": Method(shared_by=USERS_OF_SHARED, half_life=7),
    "shared, 30 days": Method(shared_by=USERS_OF_SHARED, half_life=30),
    "shared, 90 days": Method(shared_by=USERS_OF_SHARED, half_life=90),
    "shared, for ever": Method(shared_by=USERS_OF_SHARED, half_life=math.inf),
    "shared, 7 days, explored .1": Method(shared_by=USERS_OF_SHARED, half_life=7, exploration=0.1),
    "shared, 30 days, explored .1": Method(shared_by=USERS_OF_SHARED, half_life=30, exploration=0.1),
    "shared, 30 days, explored .2": Method(shared_by=USERS_OF_SHARED, half_life=30, exploration=0.2),
}


def lives_of(
    worlds: Sequence[World],
    names: Sequence[str],
    clicks: str,
    *,
    processes: int = 1,
    keep: Path | None = None,
) -> dict[str, list[Lived]]:
    """Return method -> what users were shown, in each world; each life is a task for a process.

    Args:
        keep: a folder for lives, so that a run that was ended goes on where it was.
    """
    tasks = [(world, name) for name in names for world in worlds]
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        futures = [pool.submit(_kept, world, METHODS[name], clicks, keep) for world, name in tasks]
        lived = []
        for (world, name), future in zip(tasks, futures, strict=True):
            lived.append(future.result())
            print(f"{world.name}, seed {world.seed}: {name}", file=sys.stderr, flush=True)
    return {
        name: lived[number * len(worlds) : (number + 1) * len(worlds)] for number, name in enumerate(names)
    }


def _kept(world: World, method: Method, clicks: str, keep: Path | None) -> Lived:
    told = repr((world.name, world.seed, world.plan, method, clicks))
    file = keep and keep / f"{sha256(told.encode()).hexdigest()[:16]}.json"
    if file is not None and file.exists():
        kept = json.loads(file.read_text())
        return Lived([*map(tuple, kept["pages"])], [*map(tuple, kept["unexplored"])], kept["clicks"])
    lived = live(world, method, click_model(clicks))
    if file is not None:
        file.write_text(json.dumps(asdict(lived)))
    return lived


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="collection folders with judgements or ratings")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="each is a half year of its own")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    parser.add_argument("--clicks", default="standard", help="a click model of `embedding-studio evaluate`")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="lives that are there are not lived again"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers to this file")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write the page here")
    parser.add_argument("--picture", type=Path, metavar="SVG", help="write the curves here")
    given = parser.parse_args()
    names = list(dict.fromkeys(["plain", *given.methods]))
    plan = Plan()
    report: dict[str, Any] = {"plan": asdict(plan), "clicks": given.clicks, "folders": {}}
    for folder in given.folders:
        with Context() as context:
            assert context.embedder is not None
            worlds = [load_world(folder, seed, context.embedder, plan) for seed in given.seeds]
        lives = lives_of(worlds, names, given.clicks, processes=given.processes, keep=given.keep)
        report["folders"][worlds[0].name] = summary(worlds, lives)
    command = f"python {shlex.join(sys.argv)}"
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    if given.picture:
        given.picture.write_text(picture(report))
    page = markdown(report, MEASURES, command, given.picture, given.markdown or Path())
    if given.markdown:
        given.markdown.write_text(page)
    else:
        print(page)


if __name__ == "__main__":
    main()
