"""The reference formula, against what AdamW must do in one step and against itself."""

import numpy as np
import pytest

from embedding_studio.evaluation.reference import reference_update

WEIGHT_DECAY = 0.01  # the default of torch.optim.AdamW, which the reference page does not change


def world(seed: int, items: int, parts: int = 1) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    query = rng.normal(size=7).astype(np.float32)
    return query / np.linalg.norm(query), [
        rng.normal(size=(parts, 7)).astype(np.float32) for _ in range(items)
    ]


def loss(query: np.ndarray, items: list[np.ndarray], clicked: list[bool]) -> float:
    alike = np.array(
        [float(item[0] @ query / np.linalg.norm(item[0]) / np.linalg.norm(query)) for item in items]
    )
    flags = np.array(clicked)
    return float(-np.mean(alike[flags] ** 3) + np.mean(alike[~flags] ** 3))


def test_the_first_step_moves_each_coordinate_by_the_rate_against_the_gradient() -> None:
    query, items = world(0, 3)
    clicked = [False, True, False]
    rate = 0.01

    [moved] = reference_update(query[None, :], [items], [clicked], adjustment_rate=rate, num_iterations=1)

    for i, item in enumerate(items):
        for d in range(7):
            step = np.zeros(7)
            step[d] = 1e-4
            up = [each.astype(np.float64) + step * (k == i) for k, each in enumerate(items)]
            down = [each.astype(np.float64) - step * (k == i) for k, each in enumerate(items)]
            slope = loss(query, up, clicked) - loss(query, down, clicked)
            expected = item[0, d] * (1 - rate * WEIGHT_DECAY) - rate * np.sign(slope)
            assert moved[i][0, d] == pytest.approx(expected, abs=1e-5)


def test_at_the_documented_rate_every_skip_ends_opposite_the_query() -> None:
    query, items = world(1, 5)

    [moved] = reference_update(query[None, :], [items], [[True, False, False, False, False]])

    cosines = [float(item[0] @ query / np.linalg.norm(item[0])) for item in moved]
    assert cosines[0] > 0.5
    assert max(cosines[1:]) < 0


def test_a_session_moves_the_same_alone_and_beside_sessions_of_other_sizes() -> None:
    one, other = world(2, 3, parts=1), world(3, 5, parts=2)
    flags = [[True, False, False], [False, True, False, True, False]]

    together = reference_update(np.stack([one[0], other[0]]), [one[1], other[1]], flags, num_iterations=3)
    alone = reference_update(one[0][None, :], [one[1]], flags[:1], num_iterations=3)

    np.testing.assert_allclose(np.stack(together[0]), np.stack(alone[0]), atol=1e-5)
    assert [item.shape for item in together[1]] == [(2, 7)] * 5
    assert all(np.isfinite(item).all() for session in together for item in session)
