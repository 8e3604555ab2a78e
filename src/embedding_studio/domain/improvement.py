"""What an adjuster receives and returns."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class ImprovementElement:
    """A query or a shown object with its vectors.

    Attributes:
        id: object id (or the query's session id); equal ids within one user are one object.
        vector: [P, D] float32, one row a part; [D] is taken as one part.
        weight: > 0. For a clicked object how much its event says (1 is a click); for a skipped one
            the probability that it was seen at all (1 / position).
    """

    id: str
    vector: NDArray[np.float32]
    weight: float = 1.0

    def __post_init__(self) -> None:
        vector = np.ascontiguousarray(self.vector, dtype=np.float32)
        if vector is not self.vector or vector.ndim == 1:
            object.__setattr__(self, "vector", vector.reshape(1, -1) if vector.ndim == 1 else vector)

    def moved_to(self, vector: NDArray[np.float32]) -> "ImprovementElement":
        """Return the element with another vector, [P, D] float32 and contiguous, which is not looked at.

        It fills the slots itself: the constructor takes nearly three times as long, and an adjuster makes
        thousands.
        """
        moved = object.__new__(ImprovementElement)
        _set_id(moved, self.id)
        _set_vector(moved, vector)
        _set_weight(moved, self.weight)
        return moved


_set_id, _set_vector, _set_weight = (
    vars(ImprovementElement)[name].__set__ for name in ("id", "vector", "weight")
)


@dataclass(frozen=True, slots=True, eq=False)
class ImprovementInput:
    """One session, ready to be learnt from.

    Attributes:
        query: its vectors are the query's parts and are never moved.
        user_id: sessions of one user are folded in the order of the list; None stands alone.
        moved_ids: of an adjusted session, the objects that it moved in any sweep; None where the adjuster
            does not say: then those whose vectors it changed.
    """

    session_id: str
    query: ImprovementElement
    clicked_elements: tuple[ImprovementElement, ...] = field(default=())
    non_clicked_elements: tuple[ImprovementElement, ...] = field(default=())
    user_id: str | None = None
    moved_ids: frozenset[str] | None = None
