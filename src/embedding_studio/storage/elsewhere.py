"""Personal search where originals and copies are in different places: composed of what the ports give."""

from collections.abc import Container, Mapping, Sequence
from hashlib import blake2b

import numpy as np

from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.objects import Collection, Neighbour
from embedding_studio.embeddings.personal import blend
from embedding_studio.embeddings.similarity import distances, similarities_of
from embedding_studio.storage.ports import NOTHING_NAMED, BaseIndex, Vectors


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
    named: Mapping[str, float] = NOTHING_NAMED,
) -> list[Neighbour]:
    """Return what ``Personal.nearest`` does, of a base index and of a user's copies of some objects in it.

    The index is asked for as many more as there are copies, for these stand elsewhere, and as are named.

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
    near = objects.nearest(collection, queries, limit + len(moved) + len(named), filter=filter)
    moved_ids = {item.object_id for item in moved}
    found = [each for each in near if each.object_id not in moved_ids]
    absent = named.keys() - moved_ids - {each.object_id for each in found}
    beyond = objects.get(collection, sorted(absent)) if absent else []
    if moved or beyond:
        own = [copies[item.object_id] for item in moved] + [item.parts for item in beyond]
        blended = blend(
            similarities_of(index, queries, [item.parts for item in moved + beyond]),
            similarities_of(index, queries, own),
            np.array([gates[item.object_id] for item in moved] + [0.0] * len(beyond)),
        )
        found += [
            Neighbour(item.object_id, distance, item.payload)
            for item, distance in zip(moved + beyond, distances(index, blended).tolist(), strict=True)
            if filter is None or filter.matches(item.payload)
        ]
    return the_nearest(found, limit, named)


def the_nearest(found: Sequence[Neighbour], limit: int, named: Container[str] = ()) -> list[Neighbour]:
    """Return the ``limit`` nearest and all that are named, by (distance, object_id)."""
    return [found[n] for n in places_of_nearest([(e.distance, e.object_id) for e in found], limit, named)]


def places_of_nearest(
    stand: Sequence[tuple[float, str]], limit: int, named: Container[str] = ()
) -> list[int]:
    """Return where the ``limit`` nearest are, and all that are named, nearest first.

    >>> places_of_nearest([(0.3, "far"), (0.1, "a"), (0.2, "b")], 1, {"far"})
    [1, 0]
    """
    kept, room = [], limit
    for place in sorted(range(len(stand)), key=stand.__getitem__):
        is_named = stand[place][1] in named
        if is_named or room > 0:
            kept.append(place)
        room -= not is_named
    return kept
