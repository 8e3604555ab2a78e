"""How far a personal vector may stand from its original."""

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import MetricType, SearchIndexInfo

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]

MAX_ANGLE_DEGREES = 20.0
"""Ten to twenty degrees measured best for the passive-aggressive step; more only lets mistakes go further."""

ROUNDING = 1e-6
"""Radians, and share of the norm: what is outside by less counts as inside, so that vectors once brought
in stay as they are. It is some ten units in the last place of a float32."""

FLOAT32_ERROR = 2e-7
"""Of a cosine or a norm from float32 products, relative."""

SMALLEST_SINE = 1e-3
"""A vector nearer than this to the original's antipode counts as the antipode: it is on no side."""


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
    if is_settled.all():
        return moved
    rows = np.flatnonzero(~is_settled)
    doubtful = moved[rows]
    brought = _into_caps_closely(originals[rows], doubtful, max_angle)
    if np.array_equal(brought, doubtful):
        return moved
    result = moved.copy()
    result[rows] = brought
    return result


def _into_caps_closely(originals: Vectors, moved: Vectors, max_angle: float) -> Vectors:
    """Do the same at the accuracy of float64, for which the products are exact enough at any angle."""
    original, other = originals.astype(np.float64), moved.astype(np.float64)
    norms, moved_norms = (np.sqrt(np.vecdot(vectors, vectors)) for vectors in (original, other))
    keep, pull = nearest_in_caps(norms, moved_norms, np.vecdot(original, other), max_angle)
    other *= keep[:, None]
    original *= pull[:, None]
    other += original
    return other.astype(np.float32)


def nearest_in_caps(
    norms: Floats, moved_norms: Floats, products: Floats, max_angle: float
) -> tuple[Floats, Floats]:
    """Return keep and pull [N]: keep x moved + pull x original is the nearest in the region (cosine, dot).

    Args:
        norms: [N], of the originals.
        moved_norms: [N].
        products: [N], the inner product of each original and moved vector.
        max_angle: radians, in (0, pi].
    """
    scale = np.divide(norms, moved_norms, out=np.zeros_like(norms), where=moved_norms > 0)
    both = norms * moved_norms
    cosine = np.divide(products, both, out=np.zeros_like(norms), where=both > 0).clip(-1, 1)
    inside = cosine >= np.cos(min(max_angle + ROUNDING, np.pi))
    sine = np.sqrt((1 - cosine) * (1 + cosine))
    has_nearest = (scale > 0) & (inside | (cosine > 0) | (sine > SMALLEST_SINE))
    # With a and b the directions, s the sine of their angle and c its cosine, the edge on b's side is
    # a cos(max) + (b - c a) sin(max) / s.
    aside = np.divide(np.sin(max_angle), sine, out=np.zeros_like(sine), where=has_nearest & ~inside)
    keeps_norm = np.abs(moved_norms - norms) <= ROUNDING * norms
    keep = np.where(inside, np.where(keeps_norm, 1, scale), scale * aside)
    pull = np.where(inside, 0, np.cos(max_angle) - cosine * aside)
    return np.where(has_nearest, keep, 0), np.where(has_nearest, pull, 1)


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
