"""Personal search where originals and copies are in different places: composed of what the ports give."""

from collections.abc import Mapping
from hashlib import blake2b

import numpy as np

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import Collection, Neighbour
from embedding_studio.embeddings.personal import blend
from embedding_studio.embeddings.similarity import distances, similarities_of
from embedding_studio.storage.ports import BaseIndex, Vectors


def digest_of(parts: Vectors) -> str:
    """Return what tells one original, [P, D] float32, from another."""
    return blake2b(parts.tobytes(), digest_size=16).hexdigest()


def nearest_of_user(
    objects: BaseIndex,
    copies: Mapping[str, Vectors],
    collection: Collection,
    queries: Vectors,
    limit: int,
    *,
    gates: Mapping[str, float],
    filter: PayloadFilter | None = None,  # noqa: A002, the port's name
    made_of: Mapping[str, str | None] | None = None,
) -> list[Neighbour]:
    """Return what ``Personal.nearest`` does, of a base index and of a user's copies of some objects in it.

    The index is asked for so many more results as there are copies, for these stand elsewhere.

    Args:
        copies: object_id -> [P, D]; of objects for which there are gates.
        made_of: object_id -> digest of the original that the copy was made of; a copy of another one than
            there is now does not count. None: all are of what there is.
    """
    index = collection.index
    moved = [
        item
        for item in objects.get(collection, list(copies))
        if made_of is None or made_of.get(item.object_id) == digest_of(item.parts)
    ]
    near = objects.nearest(collection, queries, limit + len(moved), filter=filter)
    moved_ids = {item.object_id for item in moved}
    found = [each for each in near if each.object_id not in moved_ids]
    if moved:
        blended = blend(
            similarities_of(index, queries, [item.parts for item in moved]),
            similarities_of(index, queries, [copies[item.object_id] for item in moved]),
            np.array([gates[item.object_id] for item in moved]),
        )
        found += [
            Neighbour(item.object_id, distance, item.payload)
            for item, distance in zip(moved, distances(index, blended).tolist(), strict=True)
            if filter is None or filter.matches(item.payload)
        ]
    return sorted(found, key=lambda each: (each.distance, each.object_id))[:limit]
