"""Simulated users: who searches for what, in which order, and what is measured for them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding_studio.embedders import Embedder
from embedding_studio.errors import InvalidDataError
from embedding_studio.evaluation.collection_folder import (
    JudgedCollection,
    JudgedQuery,
    Progress,
    Vectors,
    embed,
)
from embedding_studio.evaluation.paraphrases import carrier, shortened, shuffled

NEIGHBOUR_COSINE = 0.45
RELATED_COSINE = 0.30
RELATED_SHARE = 0.10  # of the items relevant to either query, those relevant to both
UNRELATED_COSINE = 0.25
MAX_NEIGHBOURS = 6
MAX_HELD_OUT = 3
INTERESTS = 2
FAR_QUERIES = 5
LATER_SESSIONS = {"anchor": 0.40, "carrier": 0.20, "neighbour": 0.25, "interest": 0.15}


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedUser:
    """What one user searches for, and what is measured for them.

    Attributes:
        number: from 0; the draws of clicks depend on it.
        issued: the query of each session, in order.
        slices: the queries to measure, by slice; a slice may be absent.
    """

    number: int
    issued: tuple[JudgedQuery, ...]
    slices: Mapping[str, tuple[JudgedQuery, ...]]


def wording(user: SimulatedUser, number: int) -> JudgedQuery:
    """Return the user's first wish in one of the wordings they issue it in, in turn."""
    wish = user.issued[0]
    wordings = list({query.text: query for query in user.issued if query.grades == wish.grades}.values())
    return wordings[number % len(wordings)]


def simulate_users(
    collection: JudgedCollection,
    *,
    users: int,
    sessions: int,
    embedder: Embedder,
    seed: int,
    progress: Progress | None = None,
) -> list[SimulatedUser]:
    """Return users around as many different anchor queries as there are.

    An anchor has at least two neighbours (cosine >= 0.45; or >= 0.30 and at least 10 % of the items
    relevant to either relevant to both) and two queries that have nothing to do with it. Of at most
    six neighbours half may be issued, up to three of the others are held out. The first session is
    the anchor; later ones are the anchor (40 %), its carrier phrase (20 %), a neighbour (25 %) or
    another interest (15 %).

    Measured are: same (the anchor), para (two paraphrases that are never issued), near (the
    neighbours held out), far (five queries with a cosine below 0.25 to everything issued).

    Raises:
        InvalidDataError: no query can be an anchor.
    """
    cosines = _cosines(collection)
    neighbours = _neighbours(collection, cosines)
    unrelated = cosines < UNRELATED_COSINE
    anchors = np.flatnonzero((neighbours.sum(axis=1) >= 2) & (unrelated.sum(axis=1) >= INTERESTS))
    if not len(anchors):
        raise InvalidDataError(
            f"no query of {collection.name} has two neighbours (cosine >= {NEIGHBOUR_COSINE}) and two "
            "unrelated queries; users cannot be simulated on it"
        )
    order = np.random.default_rng(seed).permutation(anchors)
    chosen = [int(order[number % len(order)]) for number in range(users)]
    paraphrases = _paraphrases(collection, sorted(set(chosen)), embedder, progress)
    return [
        _user(
            number,
            anchor,
            sessions=sessions,
            collection=collection,
            cosines=cosines,
            nearest=_nearest(cosines[anchor], neighbours[anchor]),
            paraphrases=paraphrases[anchor],
            rng=np.random.default_rng((seed, number)),
        )
        for number, anchor in enumerate(chosen)
    ]


def _user(
    number: int,
    anchor: int,
    *,
    sessions: int,
    collection: JudgedCollection,
    cosines: Vectors,
    nearest: NDArray[np.int64],
    paraphrases: Mapping[str, JudgedQuery],
    rng: np.random.Generator,
) -> SimulatedUser:
    queries = collection.queries
    nearest = rng.permutation(nearest)
    training, held_out = nearest[: len(nearest) // 2], nearest[len(nearest) // 2 :]
    interests = rng.permutation(np.flatnonzero(cosines[anchor] < UNRELATED_COSINE))[:INTERESTS]
    issued = [queries[anchor]]
    kinds = rng.choice(list(LATER_SESSIONS), size=sessions - 1, p=list(LATER_SESSIONS.values()))
    for kind in kinds:
        if kind == "carrier":
            issued.append(paraphrases["carrier"])
        elif kind == "neighbour":
            issued.append(queries[rng.choice(training)])
        elif kind == "interest":
            issued.append(queries[rng.choice(interests)])
        else:
            issued.append(queries[anchor])
    slices = {
        "same": (queries[anchor],),
        "para": tuple(paraphrases[kind] for kind in ("shuffled", "shortened") if kind in paraphrases),
        "near": tuple(queries[row] for row in held_out[:MAX_HELD_OUT]),
        "far": _far(collection, issued, rng),
    }
    return SimulatedUser(number, tuple(issued), {name: found for name, found in slices.items() if found})


def _far(
    collection: JudgedCollection, issued: list[JudgedQuery], rng: np.random.Generator
) -> tuple[JudgedQuery, ...]:
    cosines = (
        _unit(np.stack([query.vector for query in collection.queries]))
        @ _unit(np.stack([query.vector for query in issued])).T
    )  # [queries, sessions]
    far = np.flatnonzero((cosines < UNRELATED_COSINE).all(axis=1))
    return tuple(collection.queries[row] for row in rng.permutation(far)[:FAR_QUERIES])


def _paraphrases(
    collection: JudgedCollection, anchors: list[int], embedder: Embedder, progress: Progress | None
) -> dict[int, dict[str, JudgedQuery]]:
    texts: list[tuple[int, str, str]] = []
    for anchor in anchors:
        text = collection.queries[anchor].text
        for write in (carrier, shuffled, shortened):
            paraphrase = write(text)
            if paraphrase is not None:
                texts.append((anchor, write.__name__, paraphrase))
    vectors = embed([text for _, _, text in texts], "paraphrases", embedder, progress)
    found: dict[int, dict[str, JudgedQuery]] = {anchor: {} for anchor in anchors}
    for (anchor, kind, text), vector in zip(texts, vectors, strict=True):
        found[anchor][kind] = JudgedQuery(text, vector, collection.queries[anchor].grades)
    return found


def _neighbours(collection: JudgedCollection, cosines: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return [queries, queries]: whether two queries ask for much the same."""
    relevant = np.zeros((len(collection.queries), len(collection.item_ids)), np.float32)
    column = {item_id: number for number, item_id in enumerate(collection.item_ids)}
    for row, query in enumerate(collection.queries):
        relevant[row, [column[item_id] for item_id in query.grades]] = 1
    both = relevant @ relevant.T
    counts = relevant.sum(axis=1)
    shared = both / np.maximum(counts[:, None] + counts[None, :] - both, 1)
    near: NDArray[np.bool_] = (cosines >= NEIGHBOUR_COSINE) | (
        (cosines >= RELATED_COSINE) & (shared >= RELATED_SHARE)
    )
    np.fill_diagonal(near, False)
    return near


def _nearest(cosines: Vectors, neighbours: NDArray[np.bool_]) -> NDArray[np.int64]:
    rows = np.flatnonzero(neighbours)
    return rows[np.argsort(-cosines[rows], kind="stable")][:MAX_NEIGHBOURS]


def _cosines(collection: JudgedCollection) -> NDArray[np.float32]:
    vectors = _unit(np.stack([query.vector for query in collection.queries]))
    return vectors @ vectors.T


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths: Vectors = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / lengths
