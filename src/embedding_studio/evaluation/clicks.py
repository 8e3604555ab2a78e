"""Simulated clicks: a result is looked at with probability 1/rank, and then clicked by its grade.

Source: the examination hypothesis with a position bias of 1/rank [joachims2017], and the click
probability eps + (1 - eps)(2^g - 1)/(2^gmax - 1) that counterfactual learning to rank measures with
[ai2018].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding_studio.errors import InvalidInputError

CAP = 3
"""Cranfield has grades up to 4; there ``capped`` comes nearer to numbers published with three grades."""


@dataclass(frozen=True, slots=True)
class ClickModel:
    """How a user clicks.

    Attributes:
        mistake: eps, the probability of clicking an irrelevant result that was looked at.
        attraction: factor on the relevance, in (0, 1].
        sees_everything: every result is looked at.
        top_grade: grades above it count as it, in gmax too; None: they count as they are.
    """

    mistake: float
    attraction: float = 1.0
    sees_everything: bool = False
    top_grade: int | None = None

    def probability(self, grade: int, highest_grade: int) -> float:
        """Return P(click | looked at, grade); ``highest_grade`` is gmax."""
        top = highest_grade if self.top_grade is None else min(highest_grade, self.top_grade)
        relevance = self.attraction * float(2 ** min(grade, top) - 1) / float(2**top - 1)
        return self.mistake + (1 - self.mistake) * relevance

    def clicked(
        self,
        shown: Sequence[str],
        grades: Mapping[str, int],
        *,
        highest_grade: int,
        draws: NDArray[np.float64],
    ) -> list[str]:
        """Return the results that are clicked, in the order shown.

        Args:
            draws: [2, at least the number shown], uniform in [0, 1): for looking and for clicking.
        """
        if self.sees_everything:
            return [object_id for object_id in shown if grades.get(object_id, 0) > 0]
        return [
            object_id
            for slot, object_id in enumerate(shown)
            if draws[0, slot] < 1 / (slot + 1)
            and draws[1, slot] < self.probability(grades.get(object_id, 0), highest_grade)
        ]


CLICK_MODELS: Mapping[str, ClickModel] = {
    "standard": ClickModel(mistake=0.1),
    "capped": ClickModel(mistake=0.1, top_grade=CAP),
    "noisy": ClickModel(mistake=0.3, attraction=0.7),
    "perfect": ClickModel(mistake=0.0, sees_everything=True),
}


def click_model(name: str) -> ClickModel:
    """Return the click model of this name.

    Raises:
        InvalidInputError: there is none.
    """
    if name not in CLICK_MODELS:
        raise InvalidInputError(f"there are no clicks called {name!r}; choose from {', '.join(CLICK_MODELS)}")
    return CLICK_MODELS[name]


def click_draws(seed: int, user: int, session: int, positions: int) -> NDArray[np.float64]:
    """Return [2, positions], the same for every method, so that methods are compared on the same chances."""
    return np.random.default_rng((seed, user, session)).random((2, positions))
