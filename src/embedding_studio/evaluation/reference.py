"""The update formula of the reference page exactly as it stands there, to compare with.

AdamW on ``-mean(clicked^3) + mean(skipped^3)``, every skip a full negative, no trust region, copies
scored for whatever the user asks. It is measured, never served.

Axes: S sessions · I items of a session · P parts of an item · D dimensions.
Source: docs/how-it-learns.md, eq. 7; what it does to rankings stands in docs/does-it-help.md.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embedding_studio.errors import EmbeddingStudioError

Vectors = NDArray[np.float32]


def reference_update(
    queries: Vectors,
    items: Sequence[Sequence[Vectors]],
    clicked: Sequence[Sequence[bool]],
    *,
    adjustment_rate: float = 0.1,
    num_iterations: int = 10,
    softmin_temperature: float = 1.0,
) -> list[list[Vectors]]:
    """Return the items' vectors after the update, session by session.

    Args:
        queries: [S, D].
        items: for each session, for each item shown, [P, D].
        clicked: for each session, whether each item was clicked; one clicked and one skipped at least.
    """
    try:
        import torch
    except ImportError as error:
        raise EmbeddingStudioError(
            "the reference formula needs torch; pip install 'embedding-studio[torch]'"
        ) from error

    S, D = queries.shape
    I = max(len(session) for session in items)
    P = max(len(parts) for session in items for parts in session)
    packed = np.zeros((S, I, P, D), np.float32)
    is_part = np.zeros((S, I, P), bool)
    for s, session in enumerate(items):
        for i, parts in enumerate(session):
            packed[s, i, : len(parts)] = parts
            is_part[s, i, : len(parts)] = True
    is_clicked = np.zeros((S, I), bool)
    for s, flags in enumerate(clicked):
        is_clicked[s, : len(flags)] = flags

    part = torch.from_numpy(is_part)
    item = part.any(dim=2)
    clicks = torch.from_numpy(is_clicked)
    skips = item & ~clicks
    query = torch.nn.functional.normalize(torch.from_numpy(queries), dim=-1)
    vectors = torch.from_numpy(packed).requires_grad_()
    optimizer = torch.optim.AdamW([vectors], lr=adjustment_rate)
    for _ in range(num_iterations):
        optimizer.zero_grad()
        lengths = vectors.norm(dim=-1).clamp_min(1e-8)
        similarities = torch.einsum("sipd,sd->sip", vectors, query) / lengths  # [S, I, P]
        weights = torch.exp(-similarities / softmin_temperature) * part
        weights = weights / weights.sum(dim=2, keepdim=True).clamp_min(1e-12)
        cubes = (weights * similarities).sum(dim=2) ** 3  # [S, I]
        gained = (cubes * clicks).sum(dim=1) / clicks.sum(dim=1)
        lost = (cubes * skips).sum(dim=1) / skips.sum(dim=1)
        loss = (lost - gained).sum()  # a sum: who else is in the batch changes nothing
        loss.backward()
        optimizer.step()
    moved = vectors.detach().numpy()
    return [
        [moved[s, i, : len(parts)].copy() for i, parts in enumerate(session)]
        for s, session in enumerate(items)
    ]
