"""The port behind which vectors are moved."""

from typing import Protocol, runtime_checkable

from embedding_studio.domain.improvement import ImprovementInput


@runtime_checkable
class VectorsAdjuster(Protocol):
    """Turns sessions into moved vectors."""

    def adjust_vectors(self, improvement_inputs: list[ImprovementInput]) -> list[ImprovementInput]:
        """Return the same sessions with the vectors that their objects have after each.

        Args:
            improvement_inputs: sessions of any number of users, those of one user in order of time.
                Elements hold *original* vectors; the fold starts there, and the trust region is
                centred there. Any number of clicked, skipped and parts, none of them padded.

        Returns:
            One input for each given, in the same order, with the same elements. A session's elements
            carry their vectors as they stand after that session, so the last input that holds an
            object holds its final vector. An object that did not move keeps the very same array.
            Queries are never moved. A session without a clicked or without a skipped element moves
            nothing. Which other users are in the list changes nothing.

        Raises:
            InvalidVectorsError: axes disagree, or a vector is not finite, or is zero under cosine.
        """
        ...
