"""The pieces of an evaluation: collections read from folders, users, clicks, paraphrases and numbers."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.errors import InvalidDataError
from embedding_studio.evaluation.clicks import CLICK_MODELS, click_draws
from embedding_studio.evaluation.collection_folder import load_collection
from embedding_studio.evaluation.metrics import ndcg_at_10, paired_difference
from embedding_studio.evaluation.paraphrases import carrier, content_words, shortened, shuffled
from embedding_studio.evaluation.sentences import split_at_sentences
from embedding_studio.evaluation.users import simulate_users
from evaluation_world import WordEmbedder, write_collection

EMBEDDER = WordEmbedder()


def test_a_folder_of_plain_files_and_one_of_gzipped_files_are_the_same_collection(tmp_path: Path) -> None:
    plain = write_collection(tmp_path / "plain")
    gzipped = tmp_path / "gzipped"
    gzipped.mkdir()
    for path in plain.iterdir():
        (gzipped / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))

    one = load_collection(plain, embedder=EMBEDDER, seed=0)
    other = load_collection(gzipped, embedder=EMBEDDER, seed=0)

    assert one.item_ids == other.item_ids
    assert [query.text for query in one.queries] == [query.text for query in other.queries]
    np.testing.assert_array_equal(np.concatenate(one.parts), np.concatenate(other.parts))


def test_files_of_other_programs_are_the_same_collection(tmp_path: Path) -> None:
    plain = write_collection(tmp_path / "plain")
    other = tmp_path / "other"
    other.mkdir()
    for path in plain.iterdir():
        text = path.read_text()
        if path.name == "queries.tsv":
            text = "query-id\ttext\n" + text
        if path.name == "qrels.tsv":  # as a data frame writes it, or TREC
            text = "query-id\tcorpus-id\tscore\n" + re.sub(r"\t(\S+)\t(\d+)\n", r"\t0\t\1\t\2.0\n", text)
        (other / path.name).write_text(text.replace("\n", "\r\n"), encoding="utf-8-sig", newline="")

    one = load_collection(plain, embedder=EMBEDDER, seed=0)
    same = load_collection(other, embedder=EMBEDDER, seed=0)

    assert one.item_ids == same.item_ids
    assert [(each.text, each.grades) for each in one.queries] == [
        (each.text, each.grades) for each in same.queries
    ]


def test_ids_of_a_data_frame_begin_at_0(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "small")
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    number = {item["id"]: n for n, item in enumerate(items)}
    numbered = [json.dumps(item | {"id": number[item["id"]]}) for item in items]
    qrels = [line.split("\t") for line in (folder / "qrels.tsv").read_text().splitlines()]
    (folder / "items.jsonl").write_text("\n".join(numbered))
    (folder / "qrels.tsv").write_text("\n".join(f"{q}\t{number[item]}\t{grade}" for q, item, grade in qrels))

    assert load_collection(folder, embedder=EMBEDDER, seed=0).item_ids == tuple(map(str, range(len(items))))


def test_vectors_beside_the_texts_are_used_as_they_are(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "small")
    rows = len((folder / "items.jsonl").read_text().splitlines())
    stored = np.random.default_rng(0).normal(size=(rows, EMBEDDER.dimensions)).astype(np.float16)
    np.save(folder / "items.f16.npy", stored)

    collection = load_collection(folder, embedder=EMBEDDER, seed=0)

    np.testing.assert_array_equal(np.concatenate(collection.parts), stored.astype(np.float32))


def test_items_in_parts_are_embedded_whatever_vectors_stand_beside_the_texts(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "small")
    texts = [json.loads(line)["text"] for line in (folder / "items.jsonl").read_text().splitlines()]
    np.save(folder / "items.npy", -EMBEDDER.embed(texts))

    whole = load_collection(folder, embedder=EMBEDDER, seed=0, most_parts=1)
    split = load_collection(folder, embedder=EMBEDDER, seed=0, most_parts=3)

    np.testing.assert_array_equal(np.concatenate(whole.parts), EMBEDDER.embed(texts))
    assert whole.most_parts == 1
    assert [len(parts) for parts in split.parts] == [2] * len(texts)  # as many as there are sentences
    sentences = [
        half for text in texts for half in (text[: text.index(".") + 1], text[text.index(".") + 2 :])
    ]
    np.testing.assert_array_equal(np.concatenate(split.parts), EMBEDDER.embed(sentences))


def test_a_text_is_cut_between_sentences_into_parts_of_about_equal_length() -> None:
    text = "a b . c d e f . g h . i j k l m n . o p"

    assert split_at_sentences(text, 1) == [text]
    assert split_at_sentences(text, 2) == ["a b . c d e f . g h .", "i j k l m n . o p"]
    assert split_at_sentences(text, 99) == ["a b .", "c d e f .", "g h .", "i j k l m n .", "o p"]
    assert split_at_sentences("no end of it 3.5", 4) == ["no end of it 3.5"]
    assert split_at_sentences("", 4) == [""]


@given(st.text("ab .!?\n", max_size=80), st.integers(1, 9))
def test_splitting_loses_no_word_and_makes_no_empty_part_of_a_text_with_words(
    text: str, most_parts: int
) -> None:
    parts = split_at_sentences(text, most_parts)

    assert 1 <= len(parts) <= most_parts
    assert " ".join(parts).split() == text.split()


@pytest.mark.parametrize("metric", [MetricType.DOT, MetricType.EUCLID])
def test_where_norms_count_each_item_has_one_of_its_own_drawn_from_the_seed_and_its_id(
    tmp_path: Path, metric: MetricType
) -> None:
    loaded = load_collection(write_collection(tmp_path / "small"), embedder=EMBEDDER, seed=0, most_parts=2)

    def norms(seed: int) -> np.ndarray:
        compared = loaded.compared_by(metric, MetricAggregationType.AVG, seed=seed)
        for before, after in zip(loaded.parts, compared.parts, strict=True):
            np.testing.assert_allclose(np.vecdot(before, after), np.linalg.norm(after, axis=1), rtol=1e-6)
        assert compared.queries is loaded.queries
        assert compared.index == SearchIndexInfo(
            dimensions=101, metric_type=metric, metric_aggregation_type=MetricAggregationType.AVG
        )
        return np.linalg.norm(np.stack(compared.parts), axis=2)

    np.testing.assert_array_equal(norms(1), norms(1))
    assert (norms(1) != norms(2)).all()
    np.testing.assert_allclose(norms(1)[:, 0], norms(1)[:, 1], rtol=1e-6)
    logarithms = np.log(norms(1)[:, 0])  # 120 draws: a mean within 3 sigma / sqrt(120)
    assert abs(logarithms.mean()) < 0.03
    assert logarithms.std() == pytest.approx(0.1, abs=0.02)


def test_for_cosine_vectors_stay_as_they_are(tmp_path: Path) -> None:
    loaded = load_collection(write_collection(tmp_path / "small"), embedder=EMBEDDER, seed=0)

    compared = loaded.compared_by(MetricType.COSINE, MetricAggregationType.MIN, seed=0)

    assert compared.parts is loaded.parts


def test_embedding_tells_its_progress(tmp_path: Path) -> None:
    told = []

    collection = load_collection(
        write_collection(tmp_path / "small"),
        embedder=EMBEDDER,
        seed=0,
        progress=lambda what, done, total: told.append((what, done, total)),
    )

    I = len(collection.item_ids)
    assert ("embedding items", I, I) in told


def test_of_many_queries_a_sample_with_enough_relevant_items_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "items.jsonl").write_text("".join(f'{{"id": "{n}", "text": "word{n}"}}\n' for n in range(5)))
    (folder / "queries.tsv").write_text("".join(f"q{n}\ttext {n}\n" for n in range(1900)))
    judged = [f"q{n}\t{item}\t1\n" for n in range(1900) for item in range(5 if n % 2 else 1)]
    (folder / "qrels.tsv").write_text("".join(judged))

    sample = load_collection(folder, embedder=EMBEDDER, seed=3)
    again = load_collection(folder, embedder=EMBEDDER, seed=3)
    other = load_collection(folder, embedder=EMBEDDER, seed=4)

    assert len(sample.queries) == 900
    assert all(len(query.grades) == 5 for query in sample.queries)
    assert [query.text for query in sample.queries] == [query.text for query in again.queries]
    assert [query.text for query in sample.queries] != [query.text for query in other.queries]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("items.jsonl", None, r"has no items\.jsonl"),
        ("qrels.tsv", None, r"has no qrels\.tsv"),
        ("items.jsonl", "not json\n", r"items\.jsonl, line 1 is not JSON"),
        ("items.jsonl", '{"id": "a"}\n', r'line 1 needs "id" and "text"'),
        (
            "items.jsonl",
            '{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n',
            r"line 2 repeats the item id 'a'",
        ),
        ("queries.tsv", "no tab here\n", r"queries\.tsv, line 1 needs a query id, a tab"),
        ("qrels.tsv", "nobody\tpanels-0\t1\n", r"line 1 judges the query 'nobody'"),
        ("qrels.tsv", "panels-a\tnothing\t1\n", r"line 1 judges the item 'nothing'"),
        (
            "items.jsonl",
            '{"id": true, "text": "x"}\n',
            r'line 1 needs an "id" that is a text or a whole number',
        ),
        ("items.jsonl", '{"id": "", "text": "x"}\n', r'line 1 needs an "id"'),
        ("items.jsonl", '{"id": "a", "text": "\\ud83d"}\n', r'line 1, "text": a text may not hold half'),
        ("items.jsonl", "[" * 100_000 + "\n", r"items\.jsonl, line 1 is not JSON"),
        ("qrels.tsv", "panels-a\tpanels-0\t0.5\n", r"line 1 needs a query id, an item id and a whole grade"),
        ("qrels.tsv", "panels-a\tpanels-0\tinf\n", r"line 1 needs a query id, an item id and a whole grade"),
        ("qrels.tsv", "panels-a\tpanels-0\tvery\n", r"line 1 needs a query id, an item id and a whole grade"),
        ("qrels.tsv", "panels-a\tpanels-0\t0\n", r"no query of .* has a relevant item"),
    ],
)
def test_a_file_that_cannot_be_used_gets_one_clear_sentence(
    tmp_path: Path, name: str, content: str | None, sentence: str
) -> None:
    folder = write_collection(tmp_path / "broken")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)

    with pytest.raises(InvalidDataError, match=sentence) as raised:
        load_collection(folder, embedder=EMBEDDER, seed=0)

    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("wreck", "sentence"),
    [
        (lambda stored: stored[:-1], r"rows for \d+ lines"),
        (
            lambda stored: np.where(np.arange(len(stored))[:, None] == 3, np.nan, stored),
            r"row 3 .* is not finite",
        ),
        (lambda stored: np.where(np.arange(len(stored))[:, None] == 3, 0, stored), r"row 3 .* is all zeros"),
        (lambda stored: stored.astype(int), r"it must be floats"),
        (lambda stored: stored[:, :7], r"queries\.npy has 7 dimensions, the embedder"),
        (lambda stored: -stored, r"queries\.npy was not made by the embedder"),
    ],
)
def test_vectors_that_cannot_be_used_get_one_clear_sentence(tmp_path: Path, wreck, sentence: str) -> None:
    folder = write_collection(tmp_path / "broken")
    texts = [line.split("\t")[1] for line in (folder / "queries.tsv").read_text().splitlines()]
    np.save(folder / "queries.npy", wreck(EMBEDDER.embed(texts)))

    with pytest.raises(InvalidDataError, match=sentence):
        load_collection(folder, embedder=EMBEDDER, seed=0)


def test_a_damaged_gzip_file_gets_one_clear_sentence(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "broken")
    whole = gzip.compress((folder / "items.jsonl").read_bytes())
    (folder / "items.jsonl").unlink()
    (folder / "items.jsonl.gz").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(InvalidDataError, match=r"items\.jsonl\.gz cannot be read"):
        load_collection(folder, embedder=EMBEDDER, seed=0)


def test_a_folder_that_is_not_there_gets_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError, match="there is no folder"):
        load_collection(tmp_path / "nowhere", embedder=EMBEDDER, seed=0)


def test_users_are_the_same_under_the_same_seed_and_others_under_another(tmp_path: Path) -> None:
    collection = load_collection(write_collection(tmp_path / "small"), embedder=EMBEDDER, seed=0)

    def told(seed: int) -> str:
        users = simulate_users(collection, users=7, sessions=10, embedder=EMBEDDER, seed=seed)
        return json.dumps(
            [
                [
                    [query.text for query in user.issued],
                    {s: [q.text for q in qs] for s, qs in user.slices.items()},
                ]
                for user in users
            ]
        )

    assert told(1) == told(1)
    assert told(1) != told(2)


def test_a_user_begins_with_the_anchor_and_is_measured_on_what_was_never_issued(tmp_path: Path) -> None:
    collection = load_collection(write_collection(tmp_path / "small"), embedder=EMBEDDER, seed=0)

    users = simulate_users(collection, users=7, sessions=10, embedder=EMBEDDER, seed=5)

    for user in users:
        issued = {query.text for query in user.issued}
        assert len(user.issued) == 10
        assert user.slices["same"] == (user.issued[0],)
        for unseen in ("para", "near", "far"):
            assert not issued & {query.text for query in user.slices[unseen]}
        cosines = [float(far.vector @ query.vector) for far in user.slices["far"] for query in user.issued]
        assert max(cosines) < 0.25
        assert 1 <= len(user.slices["near"]) <= 3


def test_more_users_leave_the_first_ones_as_they_were(tmp_path: Path) -> None:
    collection = load_collection(write_collection(tmp_path / "small"), embedder=EMBEDDER, seed=0)

    few = simulate_users(collection, users=3, sessions=5, embedder=EMBEDDER, seed=5)
    many = simulate_users(collection, users=11, sessions=5, embedder=EMBEDDER, seed=5)

    assert [[q.text for q in user.issued] for user in many[:3]] == [
        [q.text for q in user.issued] for user in few
    ]


def test_a_collection_without_neighbouring_queries_has_no_users(tmp_path: Path) -> None:
    folder = tmp_path / "lonely"
    folder.mkdir()
    (folder / "items.jsonl").write_text('{"id": "a", "text": "one"}\n')
    (folder / "queries.tsv").write_text("q1\tone\nq2\ttwo\nq3\tthree\n")
    (folder / "qrels.tsv").write_text("q1\ta\t1\nq2\ta\t1\nq3\ta\t1\n")
    collection = load_collection(folder, embedder=EMBEDDER, seed=0)

    with pytest.raises(InvalidDataError, match="users cannot be simulated on it"):
        simulate_users(collection, users=2, sessions=3, embedder=EMBEDDER, seed=0)


def test_perfect_clicks_are_on_everything_relevant_and_nothing_else() -> None:
    draws = click_draws(0, 1, 2, 5)

    clicked = CLICK_MODELS["perfect"].clicked(
        ["a", "b", "c", "d", "e"], {"b": 1, "e": 3, "z": 3}, highest_grade=3, draws=draws
    )

    assert clicked == ["b", "e"]


def test_what_was_not_looked_at_is_not_clicked_and_grades_decide_the_rest() -> None:
    draws = np.array([[0.0, 0.51, 0.0, 0.0], [0.09, 0.0, 0.11, 0.49]])

    clicked = CLICK_MODELS["standard"].clicked(
        ["irrelevant", "unseen", "irrelevant too", "middling"],
        {"unseen": 3, "middling": 2},
        highest_grade=3,
        draws=draws,
    )

    # P(click) is .1 without relevance and .1 + .9 * 3/7 = .486 for grade 2 of 3
    assert clicked == ["irrelevant"]


@pytest.mark.parametrize(
    ("name", "grade", "expected"), [("standard", 2, 0.1 + 0.9 * 3 / 7), ("noisy", 3, 0.79)]
)
def test_the_click_probability_follows_its_formula(name: str, grade: int, expected: float) -> None:
    assert CLICK_MODELS[name].probability(grade, 3) == pytest.approx(expected)


def test_grades_above_three_count_as_three_only_where_clicks_are_capped() -> None:
    standard, capped = CLICK_MODELS["standard"], CLICK_MODELS["capped"]

    assert standard.probability(2, 4) == pytest.approx(0.1 + 0.9 * 3 / 15)
    assert capped.probability(2, 4) == pytest.approx(0.1 + 0.9 * 3 / 7)
    assert capped.probability(4, 4) == capped.probability(3, 4) == pytest.approx(1.0)


def test_draws_depend_on_seed_user_and_session_and_on_nothing_else() -> None:
    np.testing.assert_array_equal(click_draws(1, 2, 3, 10), click_draws(1, 2, 3, 10))
    assert (
        len({float(click_draws(*key, 10)[0, 0]) for key in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]}) == 4
    )


@given(st.text(max_size=60))
def test_paraphrases_depend_on_the_text_alone_and_keep_its_words(text: str) -> None:
    words = content_words(text)

    assert shuffled(text) == shuffled(text)
    assert shortened(text) == shortened(text)
    if len(words) < 2:
        assert shuffled(text) is None
        assert shortened(text) is None
    else:
        assert sorted(str(shuffled(text)).split()) == sorted(words)
        assert len(content_words(str(shortened(text)))) <= len(words) - 1 or "'" in text or "." in text


def test_the_carrier_phrase_holds_the_whole_text() -> None:
    assert carrier("thin panels ?") == "i am looking for information about thin panels"


def test_ndcg_has_linear_gains_and_a_logarithmic_discount() -> None:
    values = ndcg_at_10([["x", "b", "a"], [], ["b"]], [{"a": 2, "b": 1}, {"a": 1}, {"c": 1}])

    ideal = 2 / np.log2(2) + 1 / np.log2(3)
    np.testing.assert_allclose(values, [(1 / np.log2(3) + 2 / np.log2(4)) / ideal, 0, 0])


def test_ndcg_looks_no_further_than_the_tenth_result() -> None:
    ranking = [f"r{n}" for n in range(11)]

    values = ndcg_at_10([ranking, ranking], [{"r10": 1}, {"r9": 1}])

    np.testing.assert_allclose(values, [0, 1 / np.log2(11)])


def test_a_paired_difference_counts_users_that_are_better_and_worse() -> None:
    differences = np.array([0.5, 0.02, 0.0, -0.005, -0.02])

    found = paired_difference(differences, np.random.default_rng(0))

    assert found.mean == pytest.approx(0.099)
    assert (found.better, found.worse) == (0.4, 0.2)
    assert found.low < found.mean < found.high


def test_equal_differences_have_an_interval_of_no_width() -> None:
    found = paired_difference(np.full(13, 0.25), np.random.default_rng(0))

    assert (found.low, found.mean, found.high) == (0.25, 0.25, 0.25)
