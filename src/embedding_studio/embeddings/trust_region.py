"""How far a personal vector may stand from its original."""

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import MetricType, SearchIndexInfo

Vectors = NDArray[np.float32]

MAX_ANGLE_DEGREES = 20.0
"""Ten to twenty degrees measured best for the passive-aggressive step; more only lets mistakes go further."""

ROUNDING = 1e-6
"""Radians, and share of the norm: what is outside by less counts as inside, so that vectors once brought
in stay as they are. It is some ten units in the last place of a float32."""

FLOAT32_ERROR = 2e-7
"""Of a cosine or a norm from float32 products, relative."""


def into_trust_region(
    index: SearchIndexInfo, originals: Vectors, moved: Vectors, max_angle_degrees: float
) -> Vectors:
    """Return the moved vectors, those outside brought to the nearest point of their trust region.

    cosine, dot: the region is all of the original's norm at no more than the angle to it; the nearest
    point lies on the arc from the original to the moved vector. euclid: the ball of radius
    2 sin(angle / 2) |original| about the original, the chord that subtends the angle; the nearest point
    lies on the line. For vectors of equal norm the two say the same.

    Where no nearest point is singled out (the moved vector is zero or the original's antipode) and where
    the region is one point (the original is zero), the result is the original.

    Args:
        originals: [P, D].
        moved: [P, D].
        max_angle_degrees: in (0, 180].

    Returns:
        [P, D], outside by no more than ``ROUNDING``; the very same array when nothing was outside, so a
        second application changes no bit.
    """
    if index.metric_type is MetricType.EUCLID:
        return _into_balls(originals, moved, np.deg2rad(max_angle_degrees))
    return _into_caps(originals, moved, np.deg2rad(max_angle_degrees))


def _into_caps(originals: Vectors, moved: Vectors, max_angle: float) -> Vectors:
    """Bring directions within the angle, and norms to those of the originals."""
    norms, moved_norms = (np.sqrt(np.vecdot(vectors, vectors)) for vectors in (originals, moved))
    # Products in float32 settle most rows; the others, and the doubtful, are looked at closely.
    limit = np.cos(min(max_angle + ROUNDING, np.pi)) + FLOAT32_ERROR
    is_settled = (np.abs(moved_norms - norms) <= (ROUNDING - FLOAT32_ERROR) * norms) & (
        np.vecdot(originals, moved) >= limit * norms * moved_norms
    )
    rows = np.flatnonzero(~is_settled)
    brought = _into_caps_closely(originals[rows], moved[rows], max_angle)
    if np.array_equal(brought, moved[rows]):
        return moved
    result = moved.copy()
    result[rows] = brought
    return result


def _into_caps_closely(originals: Vectors, moved: Vectors, max_angle: float) -> Vectors:
    original, other = originals.astype(np.float64), moved.astype(np.float64)
    norm, other_norm = (np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (original, other))
    a = np.divide(original, norm, out=np.zeros_like(original), where=norm > 0)
    b = np.divide(other, other_norm, out=np.zeros_like(other), where=other_norm > 0)
    # Kahan's formula: exact for small and for large angles, where the arc cosine is not.
    angle = 2 * np.arctan2(np.linalg.norm(b - a, axis=1), np.linalg.norm(b + a, axis=1))[:, None]
    aside = b - np.vecdot(a, b)[:, None] * a
    aside_norm = np.linalg.norm(aside, axis=1, keepdims=True)
    aside = np.divide(aside, aside_norm, out=np.zeros_like(aside), where=aside_norm > 0)
    edge = norm * (np.cos(max_angle) * a + np.sin(max_angle) * aside)
    inside = angle <= max_angle + ROUNDING
    keeps_norm = np.abs(other_norm - norm) <= ROUNDING * norm
    has_nearest = (other_norm > 0) & (inside | (aside_norm > ROUNDING))
    nearest = np.select(
        [~has_nearest, inside & keeps_norm, inside], [original, other, norm * b], default=edge
    )
    return np.asarray(nearest, dtype=np.float32)


def _into_balls(originals: Vectors, moved: Vectors, max_angle: float) -> Vectors:
    """Bring positions within the distance that the angle stands for."""
    original = originals.astype(np.float64)
    norm = np.linalg.norm(original, axis=1, keepdims=True)
    radius = 2 * np.sin(max_angle / 2) * norm
    step = moved - original
    length = np.linalg.norm(step, axis=1, keepdims=True)
    outside = length > radius + ROUNDING * norm
    if not outside.any():
        return moved
    edge = original + step * np.divide(radius, length, out=np.zeros_like(length), where=length > 0)
    return np.where(outside, edge, moved).astype(np.float32)
