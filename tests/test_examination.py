"""The click model of benchmarks/examination.py. Axes: N pairs of query and document · R ranks."""

import runpy
from pathlib import Path

import numpy as np
import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "examination.py"))
Counts, count, fit, surprise = (SCRIPT[name] for name in ("Counts", "count", "fit", "surprise"))


def expected_counts(examination, attractiveness, shown):
    return Counts(shown, shown * np.outer(attractiveness, examination), 0)


def test_clicks_count_at_their_rank_and_those_outside_the_page_are_told():
    page = {"query": "q", "results": ["a", "b"], "clicks": [{"object_id": "b"}, {"object_id": "gone"}]}
    turned = {"query": "q", "results": ["b", "a"], "clicks": []}

    counts = count([page, page, turned], {("q", "a"): 0, ("q", "b"): 1}, 2)

    assert counts.shown.tolist() == [[2, 1], [1, 2]]
    assert counts.clicked.tolist() == [[0, 0], [0, 2]]
    assert counts.outside == 2


def test_the_curve_behind_the_clicks_is_found_again():
    examination = np.array([1.0, 0.6, 0.35])
    attractiveness = np.array([0.9, 0.5, 0.2, 0.05])

    looked, _ = fit(expected_counts(examination, attractiveness, np.full((4, 3), 1e7)))

    assert looked / looked[0] == pytest.approx(examination, abs=1e-3)


def test_the_attractiveness_under_a_curve_that_is_given_is_found_again():
    examination = np.array([1.0, 0.6, 0.35])
    attractiveness = np.array([0.9, 0.5, 0.2, 0.05])
    counts = expected_counts(examination, attractiveness, np.full((4, 3), 1e7))

    looked, attracts = fit(counts, examination)

    assert looked is examination
    assert attracts == pytest.approx(attractiveness, abs=1e-3)


def test_a_coin_surprises_by_one_bit():
    counts = Counts(np.array([[4.0]]), np.array([[2.0]]), 0)

    assert surprise(counts, np.array([1.0]), np.array([0.5])).tolist() == [4.0]
