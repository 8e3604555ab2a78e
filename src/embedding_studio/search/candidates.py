"""Candidates that another search found, in the order for one user.

Of n candidates of which the vectors are known, in the order given, b_i is how far the i-th is from the query
for anybody, and p_i for this user, after the shift, the blend and the factors of ``personal``. The order that
was found says more than b_i, for it may come of words, of stock, of what the shop wants to sell. So the i-th
keeps what its place is worth, and clicks change that by as much as they change its distance:

    s_i = b_(i) + p_i - b_i                                                                         eq. 15

with b_(i) the i-th smallest of all b. Where no click bears on the query p_i = b_i, and the order stays; where
it was by b_i to begin with, it becomes that by p_i.

Axes: P parts of an object · D dimensions · R candidates of which the vectors are known.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.limits import MAX_CANDIDATES
from embedding_studio.domain.storable import check_id
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.errors import InvalidInputError, shown
from embedding_studio.search.ranking import Lists
from embedding_studio.search.results import RankedResult
from embedding_studio.storage.ports import Vectors


def check_candidates(candidates: Sequence[str], limit: int | None) -> None:
    """Return if so many may be ranked, each once.

    Raises:
        InvalidInputError: they may not, or an id is none.
    """
    if len(candidates) > MAX_CANDIDATES:
        raise InvalidInputError(
            f"{len(candidates):,} candidates are too many; send the first {MAX_CANDIDATES:,} at most"
        )
    if limit is not None and limit < 1:
        raise InvalidInputError(f"limit is {limit}; ask for one result at least, or leave it out for all")
    places: dict[str, int] = {}
    for place, object_id in enumerate(candidates):
        check_id(object_id, "a candidate")
        if (first := places.setdefault(object_id, place)) != place:
            raise InvalidInputError(
                f"the candidate {shown(object_id)} stands at {first} and at {place}; send each once"
            )


def vectors_brought(
    index: SearchIndexInfo, candidates: Sequence[str], vectors: Mapping[str, ArrayLike]
) -> dict[str, Vectors]:
    """Return object_id -> [P, D], of the candidates that came with vectors.

    Raises:
        InvalidInputError: of what is no candidate.
        InvalidVectorsError: they cannot be used under this index.
    """
    if strangers := sorted(vectors.keys() - set(candidates)):
        raise InvalidInputError(f"there are vectors of {shown(strangers[0])}, which is no candidate")
    return {name: check_vectors(index, given, f"candidate {name!r}") for name, given in vectors.items()}


def ranked_candidates(
    lists: Lists, candidates: Sequence[str], brought: Mapping[str, Vectors]
) -> tuple[tuple[RankedResult, ...], tuple[str, ...]]:
    """Return all candidates by eq. 15, and those without vectors, which keep their places."""
    missing = [name for name in candidates if name not in brought]
    stored = {each.object_id: each.parts for each in lists.storage.objects.get(lists.collection, missing)}
    known = {**stored, **brought}
    unknown = tuple(name for name in missing if name not in stored)
    places = [place for place, name in enumerate(candidates) if name in known]
    order, changes = list(range(len(candidates))), np.zeros(len(candidates))
    if lists.bend is not None and places:
        before, after = lists.before_and_after(
            lists.bend, {candidates[place]: known[candidates[place]] for place in places}
        )
        changes[places] = after - before
        best_first = np.argsort(np.sort(before) + (after - before), kind="stable")
        for place, best in zip(places, best_first.tolist(), strict=True):
            order[place] = places[best]
    results = (
        RankedResult(
            candidates[given],
            position,
            given + 1,
            float(changes[given]),
            personalised=lists.bend is not None and candidates[given] in known,
        )
        for position, given in enumerate(order, start=1)
    )
    return tuple(results), unknown
