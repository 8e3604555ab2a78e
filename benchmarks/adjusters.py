"""How fast the adjusters are, beside the documented formula under autograd.

    python benchmarks/adjusters.py            all sizes; some minutes and 6 GB
    python benchmarks/adjusters.py --quick    the sizes that the aims are about
    python benchmarks/adjusters.py --json OUT

Axes: B sessions · I results of a session · P parts of a result · D dimensions.

Everything is measured in one run, through the documented door: a list of sessions goes in, a list comes
out. ``share`` is how much of the time the door itself takes (laying flat, and new elements for what moved).
``GB/s`` is the least that must be moved (each vector read once, each that moves written once; for the
gradient that, and per iteration read and write of vectors and both moments and read of gradients) by the
time taken; the bandwidth it is to be held against is that of copying 256 MB, measured in the same run.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from embedding_studio.domain.improvement import ImprovementElement, ImprovementInput
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.embeddings.improvement import fold as fold_module
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.embeddings.improvement.torch_based_adjuster import TorchBasedAdjuster

ITERATIONS = 10
CLICKED = 2  # of a rectangular session, the third and the sixth result


class ReferenceAdjuster:
    """The documented formula: one rectangular batch, autograd, ``torch.optim.AdamW``."""

    def adjust_vectors(self, sessions: list[ImprovementInput]) -> list[ImprovementInput]:
        queries = torch.from_numpy(np.stack([s.query.vector[0] for s in sessions]))
        clicked = torch.from_numpy(np.stack([[e.vector for e in s.clicked_elements] for s in sessions]))
        skipped = torch.from_numpy(np.stack([[e.vector for e in s.non_clicked_elements] for s in sessions]))
        clicked.requires_grad_()
        skipped.requires_grad_()
        optimizer = torch.optim.AdamW([clicked, skipped], lr=0.1)
        for _ in range(ITERATIONS):
            optimizer.zero_grad()
            loss = -torch.mean(self.similarity(queries, clicked) ** 3) + torch.mean(
                self.similarity(queries, skipped) ** 3
            )
            loss.backward()
            optimizer.step()
        return [
            ImprovementInput(
                s.session_id,
                s.query,
                tuple(
                    ImprovementElement(e.id, v, e.weight) for e, v in zip(s.clicked_elements, c, strict=True)
                ),
                tuple(
                    ImprovementElement(e.id, v, e.weight)
                    for e, v in zip(s.non_clicked_elements, n, strict=True)
                ),
                s.user_id,
            )
            for s, c, n in zip(sessions, clicked.detach().numpy(), skipped.detach().numpy(), strict=True)
        ]

    @staticmethod
    def similarity(queries: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        similarities = torch.nn.functional.cosine_similarity(queries[:, None, None], vectors, dim=-1)
        weights = torch.exp(-similarities)
        return (weights / weights.sum(dim=2, keepdim=True) * similarities).sum(dim=2)


class SessionBySession:
    """The same, one session at a time: the only way in which it takes ragged sessions."""

    def adjust_vectors(self, sessions: list[ImprovementInput]) -> list[ImprovementInput]:
        return [ReferenceAdjuster().adjust_vectors([session])[0] for session in sessions]


def sessions_like_searches(
    B: int, P: int, D: int, *, ragged: bool, rng: np.random.Generator
) -> list[ImprovementInput]:
    """Return sessions of distinct users, results by falling similarity around 0.5 as a search shows them."""
    made = []
    for b in range(B):
        I = int(rng.integers(5, 16)) if ragged else 10
        query = rng.normal(size=D).astype(np.float32)
        query /= np.linalg.norm(query)
        best = np.sort(rng.normal(0.5, 0.05, I))[::-1]
        elements = []
        for i in range(I):
            parts = int(rng.integers(1, 2 * P)) if ragged and P > 1 else P
            noise = rng.normal(size=(parts, D)).astype(np.float32)
            noise -= (noise @ query)[:, None] * query
            noise /= np.linalg.norm(noise, axis=1, keepdims=True)
            cosines = (best[i] - 0.1 * np.arange(parts))[:, None].astype(np.float32)
            vectors = cosines * query + np.sqrt(1 - cosines**2) * noise
            clicked = i in {2, 5}
            elements.append(ImprovementElement(f"o{i}", vectors, 1.0 if clicked else 1 / (i + 1)))
        made.append(
            ImprovementInput(
                f"s{b}",
                ImprovementElement(f"s{b}", query),
                tuple(e for i, e in enumerate(elements) if i in {2, 5}),
                tuple(e for i, e in enumerate(elements) if i not in {2, 5}),
                f"u{b}",
            )
        )
    return made


def seconds(action: Callable[[], object], *, at_most: float = 3.0) -> float:
    """Return the median time of an action, of up to seven runs after one to warm up."""
    taken: list[float] = []
    began = time.perf_counter()
    action()
    while len(taken) < 7 and (not taken or time.perf_counter() - began < at_most):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
