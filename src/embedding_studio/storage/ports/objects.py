"""The base index: objects and their originals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import (
    JSON,
    CatalogueObject,
    Collection,
    Neighbour,
)
from embedding_studio.errors import InvalidInputError
from embedding_studio.storage.ports.vectors import Vectors

RECALL_TARGET = 0.99
"""The share of the true nearest that a search is to find."""

WIDEST_MARGIN = 100
"""In standard errors."""


def check_margin(margin: float | None) -> None:
    """Return if a margin can be stored.

    Raises:
        InvalidInputError: it is not above 0, or above ``WIDEST_MARGIN``.
    """
    if margin is not None and not 0 < margin <= WIDEST_MARGIN:
        raise InvalidInputError(
            f"the margin is {margin}; give a number of standard errors above 0 and up to {WIDEST_MARGIN}, or "
            "set RECALL_TARGET=1 to compare all"
        )


@dataclass(frozen=True, slots=True)
class CodesInfo:
    """How a collection is searched.

    Attributes:
        parts: for which there are codes; 0 where all are compared, so that nothing can be missed.
        margin: in standard errors: an object is left out where its estimated nearness misses that of the
            nearest by so much; None where that does not matter.
    """

    parts: int
    bytes_in_memory: int
    margin: float | None


class BaseIndex(Protocol):
    """Objects and their originals: what the embedding model made of a catalogue. It knows no user."""

    def upsert(self, collection: Collection, objects: Sequence[CatalogueObject]) -> None:
        """Store objects and their originals, replacing those of equal id.

        All are looked at first, and stored by thousands, each in one transaction, so that learning and
        clicks never wait long; where one fails, those before it are stored, and to repeat it does no harm.

        Users' copies of an object whose parts change are dropped with the old originals, and an order
        is placed for each user who was shown or clicked an object that is new or whose parts change, in
        a session that has an order: their state is folded again.

        Raises:
            InvalidVectorsError: wrong dimensions, not finite, no part, or zero under cosine; the
                message names the object. Nothing is stored.
            InvalidInputError: an id or a payload that cannot be stored. Nothing is stored.
        """
        ...

    def update_payloads(self, collection: Collection, payloads: Mapping[str, JSON]) -> list[str]:
        """Replace the payloads of those that exist, all or none; return the other ids, sorted.

        Vectors and users' copies stay, and no order is placed. Of a content hash the text's part stays.
        """
        ...

    def delete(self, collection: Collection, object_ids: Sequence[str]) -> int:
        """Remove objects with all copies of them; return how many were there. Orders as in ``upsert``."""
        ...

    def get(self, collection: Collection, object_ids: Sequence[str]) -> list[CatalogueObject]:
        """Return those that exist, in the order asked for."""
        ...

    def originals(self, collection: Collection, object_ids: Iterable[str]) -> dict[str, Vectors]:
        """Return object_id -> [P, D] for those that exist, to learn from them.

        Whatever changes one of them later marks the users who met it, if the sessions in which they did
        were recorded before this call.
        """
        ...

    def scroll(
        self,
        collection: Collection,
        *,
        after: str | None = None,
        limit: int = 1000,
        filter: PayloadFilter | None = None,  # noqa: A002, the field's name in the documented request
    ) -> list[CatalogueObject]:
        """Return the first ``limit`` objects by object_id, in the order of its UTF-8 bytes.

        Args:
            after: only ids beyond this one, which need not exist; None: from the first.

        A page shorter than ``limit`` is the last. Each page is of its own instant: an object that is
        stored or removed between two pages may be missing from the whole, or in it.
        """
        ...

    def content_hashes(self, collection: Collection, object_ids: Sequence[str]) -> dict[str, str]:
        """Return object_id -> content hash for those that exist and have one."""
        ...

    def count(self, collection: Collection) -> int: ...

    def nearest(
        self,
        collection: Collection,
        queries: Vectors,
        limit: int,
        *,
        filter: PayloadFilter | None = None,  # noqa: A002, the field's name in the documented request
        max_distance: float | None = None,
        margin: float | None = None,
    ) -> list[Neighbour]:
        """Return the ``limit`` nearest objects by (distance, object_id); fewer only if fewer match.

        Args:
            queries: [Q, D] float32, the parts of one query.
            max_distance: inclusive.
            margin: instead of the collection's (see ``CodesInfo``); infinite: compare all, at whatever cost.

        The distance of an object is under the collection's metric and aggregation over all pairs of
        query part and object part, and by its originals. A longer list begins with the shorter one.
        """
        ...

    def codes(self, collection: Collection) -> CodesInfo:
        """Return how the collection is searched."""
        ...

    def set_margin(self, collection: Collection, margin: float | None) -> None:
        """Let every search from now on use a margin; None: that of the storage's own recall target.

        Raises:
            InvalidInputError: it is not above 0, or above ``WIDEST_MARGIN``.
        """
        ...
