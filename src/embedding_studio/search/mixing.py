"""How two lists become one page: exploration.

A strategy takes a user's own list and the plain one, and says of each slot what it shows.
"""

from collections.abc import Iterable, Iterator, Sequence

from embedding_studio.domain.objects import Neighbour

Slot = tuple[Neighbour, bool, float]
"""What it shows, whether that is of the user's own list, and how probably."""


def slots_of(
    ranked: Sequence[Neighbour],
    plain: Sequence[Neighbour],
    shown: Iterable[str],
    draws: Iterable[float],
    ratio: float,
) -> Iterator[Slot]:
    """Yield for each draw what its slot shows, whether that is of the user's own list, and how probably.

    With probability ``ratio`` a slot shows what comes next in the plain list, else what comes next in
    the user's own; no object twice, and when one list is at its end the other goes on.
    """
    taken = set(shown)
    i = k = 0
    for draw in draws:
        while i < len(ranked) and ranked[i].object_id in taken:
            i += 1
        while k < len(plain) and plain[k].object_id in taken:
            k += 1
        own = ranked[i] if i < len(ranked) else None
        other = plain[k] if k < len(plain) else None
        if other is None or (own is not None and own.object_id == other.object_id):
            if own is None:
                return
            slot = own, True, 1.0
        elif own is None:
            slot = other, False, 1.0
        else:
            slot = (other, False, ratio) if draw < ratio else (own, True, 1.0 - ratio)
        taken.add(slot[0].object_id)
        yield slot
