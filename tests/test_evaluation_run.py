"""An evaluation as a whole: simulated users, the product, the reference formula, and what is reported."""

import io
import json
import re
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from embedding_studio.cli import app
from embedding_studio.domain.improvement import ImprovementInput
from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.errors import InvalidDataError, InvalidInputError
from embedding_studio.evaluation import Evaluation, evaluate, html_report, markdown, table
from embedding_studio.evaluation.clicks import CLICK_MODELS, click_draws
from embedding_studio.evaluation.collection_folder import JudgedCollection, JudgedQuery, load_collection
from embedding_studio.evaluation.methods import (
    METHODS,
    Catalogue,
    Product,
    Ranked,
    ServedSession,
    UngatedCopies,
)
from embedding_studio.evaluation.run import compare
from embedding_studio.evaluation.taste import load_tastes
from embedding_studio.evaluation.users import SimulatedUser, simulate_users
from embedding_studio.feedback import time_limit
from embedding_studio.feedback.improve import Improver
from embedding_studio.storage.memory import MemoryStorage
from embedding_studio.storage.ports import Storage
from evaluation_world import WordEmbedder, write_collection, write_ratings

EMBEDDER = WordEmbedder()

REAL = Path(__file__).parents[2] / "shared" / "data"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real collections are not at {REAL}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("evaluation") / "small")


@pytest.fixture(scope="module")
def collection(folder: Path) -> JudgedCollection:
    return load_collection(folder, embedder=EMBEDDER, seed=0)


@pytest.fixture(scope="module")
def users(collection: JudgedCollection) -> list[SimulatedUser]:
    return simulate_users(collection, users=13, sessions=5, embedder=EMBEDDER, seed=0)


class PlainSearch:
    """A method that learns nothing, and notes what it was given."""

    def __init__(self, storage: Storage, collection: JudgedCollection) -> None:  # noqa: ARG002, as methods are
        self._catalogue = Catalogue(collection)
        self.learnt: list[ServedSession] = []
        self.is_closed = False

    def serve(self, user_id: str, query: JudgedQuery, number: int) -> list[str]:  # noqa: ARG002, as methods are
        return [object_id for object_id, _ in self.rank(user_id, query)]

    def learn(self, sessions: Sequence[ServedSession]) -> None:
        self.learnt += sessions

    def rank(self, user_id: str | None, query: JudgedQuery) -> list[Ranked]:  # noqa: ARG002, as above
        return self._catalogue.nearest(query, {})

    def close(self) -> None:
        self.is_closed = True


def without_times(evaluation: Evaluation) -> dict:
    told = evaluation.to_json()
    for method in told["methods"].values():
        del method["milliseconds_per_session"]
    return told


def test_equal_runs_give_equal_numbers(folder: Path) -> None:
    one, again, other = (
        evaluate(folder, embedder=EMBEDDER, methods=["default", "copies"], users=7, sessions=4, seed=seed)
        for seed in (1, 1, 2)
    )

    assert without_times(one) == without_times(again)
    assert without_times(one) != without_times(other)


def test_a_method_that_learns_nothing_differs_from_plain_search_in_nothing(
    collection: JudgedCollection, users: list[SimulatedUser]
) -> None:
    found = compare(collection, users, {"plain": PlainSearch}).methods["plain"]

    assert set(found.after) == {1, 3, 5}
    for slices in found.after.values():
        assert set(slices) == {"same", "para", "near", "far"}
        for measured in slices.values():
            assert measured.identical == 1
            assert measured.kept == 10
            assert measured.ndcg == measured.plain
            assert (measured.difference.low, measured.difference.mean, measured.difference.high) == (0, 0, 0)


def test_methods_are_compared_on_the_same_queries_and_the_same_clicks(
    collection: JudgedCollection, users: list[SimulatedUser]
) -> None:
    opened: list[PlainSearch] = []

    def open_plain(storage: Storage, judged: JudgedCollection) -> PlainSearch:
        opened.append(PlainSearch(storage, judged))
        return opened[-1]

    compare(collection, users, {"one": open_plain, "other": open_plain}, seed=3)

    one, other = ([(s.user_id, s.number, s.shown, s.clicked) for s in method.learnt] for method in opened)
    assert one == other
    assert all(method.is_closed for method in opened)
    expected = [
        clicked
        for number in range(5)
        for user in users
        if (
            clicked := CLICK_MODELS["standard"].clicked(
                opened[0].serve("", user.issued[number], number),
                user.issued[number].grades,
                highest_grade=2,
                draws=click_draws(3, user.number, number, 10),
            )
        )
    ]
    assert [list(clicked) for _, _, _, clicked in one] == expected


def test_differences_to_another_baseline_are_paired_to_its_own_rankings(
    collection: JudgedCollection, users: list[SimulatedUser]
) -> None:
    methods = {name: METHODS[name] for name in ("default", "copies")}
    to_plain = compare(collection, users, methods)
    to_copies = compare(collection, users, methods, baseline="copies")

    assert (to_plain.baseline, to_copies.baseline) == ("plain", "copies")
    default, copies = to_plain.methods["default"], to_plain.methods["copies"]
    for sessions, slices in to_copies.methods["default"].after.items():
        for slice_name, found in slices.items():
            before, other = default.after[sessions][slice_name], copies.after[sessions][slice_name]
            assert (found.plain, found.ndcg) == (before.plain, before.ndcg)
            assert found.difference.mean == pytest.approx(before.ndcg - other.ndcg)
    for slices in to_copies.methods["copies"].after.values():
        for found in slices.values():
            assert (found.difference.low, found.difference.high, found.identical) == (0, 0, 1)


def test_a_baseline_need_not_be_among_the_methods_reported(folder: Path) -> None:
    beside, alone = (
        evaluate(folder, embedder=EMBEDDER, methods=methods, users=5, sessions=3, baseline="copies")
        for methods in (["copies", "default"], ["default"])
    )

    assert list(alone.methods) == ["default"]
    assert without_times(alone)["methods"]["default"] == without_times(beside)["methods"]["default"]


@pytest.mark.parametrize("clicks", CLICK_MODELS)
def test_the_default_helps_where_users_ask_again_and_leaves_other_searches_alone(
    folder: Path, clicks: str
) -> None:
    after = evaluate(folder, embedder=EMBEDDER, clicks=clicks, users=20, seed=0).methods["default"].after[10]

    assert after["same"].difference.mean >= 0
    assert after["para"].difference.mean >= 0
    assert after["far"].identical == 1
    assert 0 < after["same"].kept < after["far"].kept == 10
    if clicks == "perfect":
        assert after["same"].difference.low > 0.1
        assert after["para"].difference.low > 0


@pytest.mark.parametrize("metric", MetricType)
@pytest.mark.parametrize("aggregation", MetricAggregationType)
@pytest.mark.parametrize("method", ["default", "copies"])
def test_under_every_metric_and_aggregation_learning_helps_and_unrelated_searches_stay_as_they_were(
    folder: Path, metric: MetricType, aggregation: MetricAggregationType, method: str
) -> None:
    found = evaluate(
        folder,
        embedder=EMBEDDER,
        methods=[method],
        users=20,
        seed=0,
        metric=metric,
        aggregation=aggregation,
        parts=2,
    )

    after = found.methods[method].after[10]
    assert (found.metric, found.aggregation, found.parts) == (metric, aggregation, 2)
    assert after["same"].difference.mean > 0
    if method == "default":
        assert after["far"].identical == 1


def test_plain_search_ranks_by_the_metric_and_the_aggregation_of_the_collection(folder: Path) -> None:
    split = load_collection(folder, embedder=EMBEDDER, seed=0, most_parts=2)
    query = split.queries[0]

    def nearest(kind: type[Product], metric: MetricType, aggregation: MetricAggregationType) -> list[Ranked]:
        return kind(MemoryStorage(), split.compared_by(metric, aggregation, seed=0)).rank(None, query)

    found = set()
    for metric in MetricType:
        for aggregation in MetricAggregationType:
            by_service = nearest(Product, metric, aggregation)
            assert nearest(UngatedCopies, metric, aggregation) == by_service
            found.add(tuple(by_service))
    assert len(found) == 6


def test_a_machine_on_which_an_adjuster_takes_long_gets_its_figures_all_the_same(
    collection: JudgedCollection, users: list[SimulatedUser], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(PassiveAggressiveAdjuster):
        def adjust_vectors(self, improvement_inputs: list[ImprovementInput]) -> list[ImprovementInput]:
            time.sleep(4 * time_limit.POLL_SECONDS)
            return super().adjust_vectors(improvement_inputs)

    monkeypatch.setitem(Improver.__init__.__kwdefaults__, "adjuster_seconds", 0.001)
    product = Product(MemoryStorage(), collection, adjuster=Slow)
    query = collection.queries[0]
    shown = product.serve("u", query, 0)

    product.learn([ServedSession("u", 0, query, tuple(shown), (shown[1],))])

    assert next(each for each, _ in product.rank("u", query)) == shown[1]


def test_the_reference_formula_is_refused_for_what_it_does_not_say(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match="given for cosine, not for dot; leave out the method"):
        evaluate(folder, embedder=EMBEDDER, methods=["reference"], users=2, metric=MetricType.DOT)


def test_what_others_clicked_helps_users_who_have_not_searched_yet(folder: Path) -> None:
    methods = ["default", "shared"]
    found = evaluate(folder, embedder=EMBEDDER, methods=methods, users=13, sessions=3, others=5).methods

    assert list(found["default"].after) == list(found["shared"].after) == [0, 1, 3]
    assert all(each.identical == 1 for each in found["default"].after[0].values())
    assert found["shared"].after[0]["same"].difference.mean > 0
    alone, beside_others = (found[name].after[1]["same"].difference.mean for name in methods)
    assert beside_others > alone


def test_without_others_nothing_is_measured_before_the_first_session(folder: Path) -> None:
    found = evaluate(folder, embedder=EMBEDDER, methods=["shared"], users=3, sessions=1).methods

    assert list(found["shared"].after) == [1]


def test_the_reference_formula_does_harm_even_to_the_query_that_was_clicked(folder: Path) -> None:
    found = evaluate(folder, embedder=EMBEDDER, methods=["reference", "default"], users=11, seed=0).methods

    assert found["reference"].after[10]["same"].difference.high < 0
    assert found["default"].after[10]["same"].difference.mean > 0


def live(method: Product, users: Sequence[SimulatedUser]) -> list[list[Ranked]]:
    """Return what each user finds after three sessions in which they clicked all that is relevant."""
    for number in range(3):
        served = []
        for user in users:
            query = user.issued[number]
            shown = method.serve(str(user.number), query, number)
            clicked = tuple(object_id for object_id in shown if object_id in query.grades)
            served.append(ServedSession(str(user.number), number, query, tuple(shown), clicked))
        method.learn([session for session in served if session.clicked])
    return [
        method.rank(str(user.number), query)
        for user in users
        for queries in user.slices.values()
        for query in queries
    ]


@pytest.mark.parametrize("kind", [Product, UngatedCopies])
def test_postgresql_and_memory_give_the_same_ranking(
    collection: JudgedCollection,
    users: list[SimulatedUser],
    new_postgres_storage: Callable[[], AbstractContextManager[Storage]],
    kind: type[Product],
) -> None:
    in_memory = live(kind(MemoryStorage(), collection), users)
    with new_postgres_storage() as storage:
        in_postgres = live(kind(storage, collection), users)

    assert [[object_id for object_id, _ in ranked] for ranked in in_postgres] == [
        [object_id for object_id, _ in ranked] for ranked in in_memory
    ]
    np.testing.assert_allclose(
        [[distance for _, distance in ranked] for ranked in in_postgres],
        [[distance for _, distance in ranked] for ranked in in_memory],
        atol=1e-5,
    )


def test_an_evaluation_in_a_database_gives_the_same_numbers_and_leaves_nothing_behind(
    folder: Path, new_postgres_storage: Callable[[], AbstractContextManager[Storage]]
) -> None:
    in_memory = evaluate(folder, embedder=EMBEDDER, users=5, sessions=3)
    with new_postgres_storage() as storage:
        still_open = _Lent(**vars(storage))
        in_postgres = evaluate(
            folder, embedder=EMBEDDER, users=5, sessions=3, open_storage=lambda: still_open
        )
        left = storage.collections.list(), storage.orders.list()

    assert without_times(in_postgres) == without_times(in_memory)
    assert left == ([], [])


class _Lent(Storage):
    """A storage that stays open when whoever borrowed it closes it."""

    def close(self) -> None:
        """Leave it open."""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"methods": ["defualt"]},
            "no method 'defualt' to evaluate; choose from reference, torch, copies, default",
        ),
        ({"methods": []}, "no method is named"),
        ({"clicks": "wild"}, "no clicks called 'wild'; choose from standard, capped, noisy, perfect"),
        ({"users": 0}, "0 users with 10 sessions"),
        ({"sessions": 0}, "200 users with 0 sessions"),
        ({"parts": 0}, "0 parts of an item are none"),
        ({"others": -1}, "-1 other users are fewer than none"),
        (
            {"baseline": "plane"},
            "no baseline 'plane' to compare with; choose from plain, reference, torch, copies, default",
        ),
    ],
)
def test_a_wish_that_means_nothing_is_refused_before_anything_is_read(arguments, sentence: str) -> None:
    with pytest.raises(InvalidInputError, match=sentence):
        evaluate("nowhere", embedder=EMBEDDER, **arguments)


def test_progress_is_told_of_every_session(folder: Path) -> None:
    told = []

    evaluate(
        folder,
        embedder=EMBEDDER,
        users=3,
        sessions=2,
        progress=lambda what, done, total: told.append((what, done, total)),
    )

    assert told[-2:] == [("default", 1, 2), ("default", 2, 2)]


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> Evaluation:
    return evaluate(folder, embedder=EMBEDDER, methods=["reference", "default"], users=7, sessions=4, seed=1)


def test_the_table_holds_every_method_checkpoint_and_slice(evaluation: Evaluation) -> None:
    console = Console(width=160, file=io.StringIO(), record=True)

    console.print(table(evaluation))

    rows = re.findall(r"(reference|default) *│ *(\d+) │ (\w+)", console.export_text())
    assert rows == [
        (method, sessions, slice_name)
        for method in ("reference", "default")
        for sessions in ("1", "3", "4")
        for slice_name in ("same", "para", "near", "far")
    ]


def test_the_markdown_page_begins_with_its_command_and_holds_every_number(evaluation: Evaluation) -> None:
    page = markdown([evaluation, replace(evaluation, collection="another")], "embedding-studio evaluate here")

    assert "$ embedding-studio evaluate here\n" in page
    assert "## small: 120 items, 7 users with 4 sessions" in page
    assert "## another: 120 items" in page
    difference = evaluation.methods["default"].after[4]["same"].difference
    row = next(line for line in page.splitlines() if line.startswith("| default | 4 |"))
    assert f"{difference.mean:+.3f}".replace("0.", ".", 1) in row
    assert f"({difference.better:.0%} / {difference.worse:.0%})" in row
    assert "0, identical lists" in row


def test_the_command_line_takes_metric_aggregation_parts_and_baseline(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    options = "--adjuster copies --baseline default --metric euclid --aggregation avg --parts 2"
    sizes = "--users 3 --sessions 2"

    ran = CliRunner().invoke(
        app, ["evaluate", str(folder), *options.split(), *sizes.split(), "--json", str(tmp_path / "out.json")]
    )

    assert ran.exit_code == 0, ran.stderr
    [told] = json.loads((tmp_path / "out.json").read_text())
    assert (told["metric"], told["aggregation"], told["parts"]) == ("euclid", "avg", 2)
    assert told["baseline"] == "default"
    assert list(told["methods"]) == ["copies"]


def test_headings_say_what_is_not_the_cosine_of_single_vectors_compared_with_plain_search(
    evaluation: Evaluation,
) -> None:
    other = replace(
        evaluation,
        metric=MetricType.DOT,
        aggregation=MetricAggregationType.AVG,
        parts=4,
        baseline="copies",
    )
    expected = (
        "clicks, seed 1, dot (norms of items log-normal, sigma 0.1), up to 4 parts an item, avg over parts, "
        "compared with copies"
    )

    page = markdown([evaluation, other], "embedding-studio evaluate here")

    assert str(table(other).title).endswith(expected)
    assert f"{expected}\n" in page
    assert "clicks, seed 1\n" in page
    assert "Where a heading names another baseline" in page
    assert f"{expected}</h2>" in html_report([other])
    assert "nDCG@10 minus copies" in html_report([other])
    assert {"metric": "dot", "aggregation": "avg", "parts": 4}.items() <= other.to_json().items()


def test_the_html_report_is_one_file_with_pictures_that_asks_for_nothing_else(evaluation: Evaluation) -> None:
    page = html_report([evaluation])

    assert page.count("<svg") == 1
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "<script" not in page
    assert page.count("<tr>") == 1 + 2 * 3 * 4
    assert page == html_report([evaluation])


def test_a_collection_name_cannot_break_the_report(evaluation: Evaluation) -> None:
    page = html_report([replace(evaluation, collection="<b>&")])

    assert "&lt;b&gt;&amp;: 120 items" in page
    assert "<b>" not in page


def test_tastes_are_measured_on_what_each_user_liked(tmp_path: Path) -> None:
    folder = write_ratings(tmp_path / "films")

    found = evaluate(folder, embedder=EMBEDDER, users=9, sessions=6, clicks="perfect", seed=0)

    assert found.users == 9
    after = found.methods["default"].after[6]
    assert set(after) >= {"same", "para", "unseen"}
    assert after["same"].difference.mean > 0


def test_films_are_not_split(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="holds ratings of films, which are not split"):
        evaluate(write_ratings(tmp_path / "films"), embedder=EMBEDDER, parts=2)


def test_what_a_user_liked_later_is_never_clicked(tmp_path: Path) -> None:
    collection, users = load_tastes(
        write_ratings(tmp_path / "films"), users=9, sessions=6, embedder=EMBEDDER, seed=0
    )

    assert len(users) == 9
    for user in users:
        earlier, later = user.slices["same"][0].grades, user.slices["unseen"][0].grades
        assert earlier
        assert later
        assert not earlier.keys() & later.keys()
        assert user.issued[0].grades == earlier
        assert later.keys() <= set(collection.item_ids)
        assert {*earlier.values(), *later.values()} == {1}  # a film is liked or not, whatever its stars


def test_ratings_that_cannot_be_read_get_one_clear_sentence(tmp_path: Path) -> None:
    folder = write_ratings(tmp_path / "films")
    (folder / "interactions.tsv").write_text("1\t2\tgreat\t3\n")

    with pytest.raises(InvalidDataError, match="line 1 needs user, item, rating and seconds"):
        evaluate(folder, embedder=EMBEDDER)


def test_ratings_that_nobody_repeats_cannot_be_measured(tmp_path: Path) -> None:
    folder = write_ratings(tmp_path / "films")
    (folder / "interactions.tsv").write_text("1\tfilm-0\t5\t3\n")

    with pytest.raises(InvalidDataError, match=r"no user in .* likes 6 films of one genre"):
        evaluate(folder, embedder=EMBEDDER)


def test_the_command_evaluates_every_combination_that_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    options = "--users 2 --sessions 1 --clicks noisy --clicks perfect --metric dot --metric cosine"

    ran = CliRunner().invoke(app, ["evaluate", str(folder), *shlex.split(options), "--json", str(told)])

    assert ran.exit_code == 0, ran.output
    found = [(each["metric"], each["clicks"]) for each in json.loads(told.read_text())]
    assert found == [("dot", "noisy"), ("dot", "perfect"), ("cosine", "noisy"), ("cosine", "perfect")]


def test_what_is_given_for_cosine_alone_is_left_out_of_a_comparison_under_another_metric(
    folder: Path, tmp_path: Path
) -> None:
    told = tmp_path / "told.json"
    options = "--compare --users 2 --sessions 1 --metric dot"

    ran = CliRunner().invoke(app, ["evaluate", str(folder), *shlex.split(options), "--json", str(told)])

    assert ran.exit_code == 0, ran.output
    assert set(json.loads(told.read_text())[0]["methods"]) == {"default", "shared", "torch", "copies"}


@real_data
@pytest.mark.parametrize("name", ["cranfield", "nfcorpus"])
def test_on_real_judgements_the_default_helps_and_the_reference_formula_harms(name: str) -> None:
    from embedding_studio.embedders.minilm import MiniLMEmbedder

    found = evaluate(
        REAL / name,
        embedder=MiniLMEmbedder(),
        methods=["default", "reference"],
        users=60,
        seed=1,
    ).methods

    default, reference = found["default"].after[10], found["reference"].after[10]
    assert default["same"].difference.low > 0
    assert default["para"].difference.low > 0
    assert default["near"].difference.mean > -0.01
    assert default["far"].identical == 1
    assert reference["same"].difference.high < 0


@real_data
@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("cranfield", MetricType.COSINE),
        ("cranfield", MetricType.EUCLID),
        ("nfcorpus", MetricType.COSINE),
    ],
)
def test_with_noisy_clicks_on_real_judgements_the_mean_stays_above_plain_search(
    name: str, metric: MetricType
) -> None:
    from embedding_studio.embedders.minilm import MiniLMEmbedder

    found = evaluate(
        REAL / name,
        embedder=MiniLMEmbedder(),
        clicks="noisy",
        users=60,
        seed=1,
        metric=metric,
    )

    after = found.methods["default"].after[10]
    assert after["same"].difference.mean >= 0
    assert after["para"].difference.mean >= 0
    assert after["far"].identical == 1
