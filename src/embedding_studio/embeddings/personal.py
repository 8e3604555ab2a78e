"""How what was clicked before bends a search: gate, query shift, and blend of original and personal.

q is the query, q_j a remembered one with the mean mu_j of the original vectors clicked for it, c0 the
threshold of the gate, alpha the strength of the shift, and w_j k_j stands for k_j in eq. 2, with w_j how much
the past counts (``own_past``):

    k_j  = clip((closeness(q, q_j) - c0) / (1 - c0), 0, 1)                                      eq. 1
    q'   = |q| normalise(q/|q| + alpha sum_j k_j mu_j / (1 + sum_j k_j)), euclid: q for q/|q|   eq. 2
    g_d  = max {w_j min(1, 2 k_j) : session j moved d}                                          eq. 5
    s(d) = (1 - g_d) s(q', original_d) + g_d s(q', personal_d)                                  eq. 6

What n_j others clicked for near queries, mu_j on average, takes part in eq. 2 as one memory more, with

    k = 2 S / (2 + S),   mu = sum_j k_j n_j mu_j / S,   S = sum_j k_j n_j                       eq. 9

and so counts, however many they are, for less than two searches of the user's own.

What they did with an object d itself, c_dj clicks and e_dj looks in the votes for query j, brings it nearer
or sends it away. The gap from the least distance that an object of its length can have is multiplied by

    f_d = ((b e_d + 3 b) / (c_d + 3 b))^0.4,    c_d = sum_j k_j^3 c_dj,  e_d = sum_j k_j^3 e_dj     eq. 11

where k_j opens from the threshold 1 - 1.8 (1 - c0) on, for queries that say the same in other words; with
the click rate b that may be expected of anything over the one observed, both smoothed by 3 looks, where a
look is 1 / position, as often as a place is looked at. Where most clicks were on what no vote knows a place
of (e_d is 0), clicks cannot be held against places, and how many there are decides; x_d are those for the
very same query, if they are by enough users, else 0:

    f_d = 0.1 / (0.1 + c_d) * 0.03 / (0.03 + x_d)                                                   eq. 12

Where lengths count, as for dot and in means over parts, a pull towards what all results have in common would
favour whatever is long. With c_d what was clicked (weighted) and a_d all that was shown, if not all of it was
clicked, and l_d the lengths with which these count in a search (all 1 for cosine and single parts),

    mu_j = mean_d c_d - min(1, std_d l_d / (0.05 mean_d l_d)) mean_d a_d                        eq. 10

A click on something unlike its query tells little of what else is wanted. It counts by r_d in a pull, which
is as long as what was clicked is like the query; what such a click lacks in pull it has for the object
itself, whose gap from the least distance is multiplied by the least f_d of all these queries:

    r_d = clip(cos(q_j, c_d) / 0.3, 0, 1),    mu_j = max_d r_d (mean_d c_d - ...),
    f_d = 1 - 0.9 min(1, alpha) w_j k_j (1 - r_d)                                               eq. 13

When every gate is closed nothing of this remains, and the search is the plain one in every bit.

Axes: J remembered queries · N queries of a log · Q parts of a query · P parts of an object · D dimensions.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.objects import SharedObject
from embedding_studio.embeddings.similarity import pair_similarities
from embedding_studio.errors import InvalidInputError

MOST_SHARED = 2.0
"""In searches of the user's own. With 1 others' clicks gain some .003 of nDCG@10 less; with 4 a little more
where thirty others clicked, but then a user must ask four times to be heard beside them."""

SHARED_REACH = 1.8
"""From so many times as far as a user's own past, what others clicked bears on a query: one that is asked in
other words, or misspelt, by somebody else."""

FULL_CONTRAST = 0.05
"""Lengths that differ by so much of their mean let clicked results count by their difference alone."""

SHARE_ROUNDING = 1e-9
"""Relative; queries that are the same to all intents are not told apart by it."""

LENGTH_ROUNDING = 1e-6
"""Relative; lengths that differ by less are equal."""

CLICK_RATE = 0.5
"""b: clicks a look. With less an object that everybody sees and hardly anybody clicks stays in front."""

EXPECTED_LOOKS = 3.0
"""What is observed has to stand up against so many; fewer let single wrong clicks through."""

EXPECTED_CLICKS, EXPECTED_EXACT_CLICKS = 0.1, 0.03
"""The same where most places are not known."""

OBJECT_STRENGTH = 0.4

NEARNESS_POWER = 3
"""What was clicked for a query half as near says an eighth of what an object is worth for this one."""

EXACT = 0.999
"""A gate as wide as this is that of the very same query, up to the last bits of another batch."""

LIKE = 0.3
"""Cosine from which on what was clicked is like its query. With .4 as little changes on Cranfield and
NFCorpus; from .5 on pulls that help are shortened."""

UNLIKE_STRENGTH = 0.9
"""With this much less distance an object without any likeness stands first when the query is asked again."""

REACH = 0.3
"""Of the ordinary distance between two queries, how much may lie between two that are near."""

LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 0.6, 0.99

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
Number = TypeVar("Number", float, Floats)


def gates(index: SearchIndexInfo, query: Vectors, remembered: Vectors, threshold: float) -> Floats:
    """Return how near a query is to each remembered one (eq. 1).

    Closeness is the cosine for cosine and dot, and 1 - |q - q_j|^2 / (2 |q| |q_j|) for euclid, which is
    the cosine where the norms are equal and less elsewhere. A zero query is near nothing.

    Args:
        query: [D], the mean over the query's parts (``query_mean``), as are the remembered ones.
        remembered: [J, D].
        threshold: closeness below 1 up to which the gate stays closed.

    Returns:
        [J], in [0, 1]; 0 is closed.
    """
    return gates_at(closeness_of(index, query, remembered), threshold)


def gates_at(closeness: Floats, threshold: float) -> Floats:
    """Return eq. 1, [J], given how near a query is to each remembered one: [J], from ``closeness_of``."""
    opened: Floats = np.minimum(np.maximum((closeness - threshold) / (1 - threshold), 0.0), 1.0)
    return opened


def closeness_of(index: SearchIndexInfo, query: Vectors, remembered: Vectors) -> Floats:
    """Return the closeness of eq. 1, [J]: at most 1, and -inf where one of the two is zero."""
    return _closeness(index, query.astype(np.float64), remembered.astype(np.float64))


def shared_threshold(threshold: float) -> float:
    """Return the threshold for what others clicked, given that for a user's own past.

    >>> round(shared_threshold(0.75), 9)
    0.55
    """
    return 1 - SHARED_REACH * (1 - threshold)


def gate_threshold_of(index: SearchIndexInfo, queries: Vectors) -> float:
    """Return the threshold c0 at which the gate is as wide as fits these queries.

        1 - c0 = 0.3 median {1 - closeness(q_i, q_j) : i < j}

    Two queries of a log mostly have nothing to do with each other, so the median is how far apart that
    is for their embedding model. What all vectors of a model have in common changes no gate: it scales
    every distance 1 - cosine, and c0 with them. With 0.3 it is .74 to .76 for the model and the
    collections that the default of .75 measured best on. A high quantile of the cosines instead, such
    as 99.9 %, closes the gate where people reword what they ask, because rewordings are then what it
    finds (docs/tuning.md, "The gate and your embedding model").

    Args:
        queries: [N, D], from ``query_mean``. One that occurs twice counts once, a zero one not at all.

    Returns:
        From 0.6 to 0.99, as a closeness.

    Raises:
        InvalidInputError: there are not two different queries.
    """
    different = queries[queries.any(axis=1)].astype(np.float64)
    if index.metric_type is not MetricType.EUCLID:
        different = _directions(different)
    different = np.unique(different, axis=0)
    if len(different) < 2:
        raise InvalidInputError("the gate is fitted to at least two different queries")
    pairs = [_closeness(index, query, different[n:]) for n, query in enumerate(different[:-1], start=1)]
    threshold = 1 - REACH * (1 - float(np.median(np.concatenate(pairs))))
    return min(max(threshold, LOWEST_THRESHOLD), HIGHEST_THRESHOLD)


def query_mean(index: SearchIndexInfo, queries: Vectors) -> Vectors:
    """Return the one vector by which a query of several parts is remembered.

    Args:
        queries: [Q, D].

    Returns:
        [D]; for cosine of length 1, or zero where the parts cancel out (such a query is near nothing).
    """
    if index.metric_type is not MetricType.COSINE:
        return np.asarray(queries.mean(axis=0, dtype=np.float64), dtype=np.float32)
    directions = _directions(queries)
    mean = directions[0] if len(directions) == 1 else _directions(directions.mean(axis=0))
    return mean.astype(np.float32)


def clicked_mean(
    index: SearchIndexInfo,
    queries: Vectors,
    clicked: Sequence[Vectors],
    weights: Sequence[float],
    passed_over: Sequence[Vectors] = (),
) -> Vectors:
    """Return what a query is pulled towards for what was clicked: mu in eq. 2.

    It is the weighted mean of the originals clicked, each by how like the query it is (eq. 13); where
    something was passed over, less as much of the mean of all shown as lengths differ there (eq. 10).
    An object counts by its part nearest to the query (MIN) or the mean of its parts (AVG). For cosine and
    dot parts count by their direction alone.

    Args:
        queries: [Q, D].
        clicked: C arrays [P, D], originals; at least one.
        weights: [C], > 0.
        passed_over: arrays [P, D], originals of what was shown and not clicked.

    Returns:
        [D]; for cosine and dot at most of length 1, or 2 where the mean of all is taken out, and less the
        more the clicked objects differ; zero where all of them are unlike the query.
    """
    looked_at = (*clicked, *passed_over) if _lengths_count(index) else clicked
    shown = [_standing_for(index, queries, parts) for parts in looked_at]
    directions = np.stack([direction for direction, _ in shown])
    alike = _likeness(index, queries, directions[: len(clicked)])
    if not alike.any():
        return np.zeros(directions.shape[1], dtype=np.float32)
    mean = np.average(directions[: len(clicked)], axis=0, weights=alike * np.asarray(weights))
    if len(shown) > len(clicked):
        mean -= _contrast(np.array([length for _, length in shown])) * directions.mean(axis=0)
    return np.asarray(alike.max() * mean, dtype=np.float32)


def likeness(index: SearchIndexInfo, queries: Vectors, clicked: Sequence[Vectors]) -> Floats:
    """Return how much what was clicked tells of a query: [C], in [0, 1] (eq. 13).

    Args:
        queries: [Q, D].
        clicked: C arrays [P, D], originals; at least one.
    """
    return _likeness(index, queries, np.stack([_standing_for(index, queries, each)[0] for each in clicked]))


def _likeness(index: SearchIndexInfo, queries: Vectors, clicked: Floats) -> Floats:
    query = _directions(query_mean(index, queries))
    alike: Floats = np.clip(_directions(clicked) @ query / LIKE, 0.0, 1.0)
    return alike


def unlike_factors(
    counts: Floats, clicked: Sequence[Sequence[str]], likenesses: Sequence[Sequence[float]]
) -> dict[str, float]:
    """Return object_id -> what its distance is multiplied by where a click on it pulls too little (eq. 13).

    Args:
        counts: [J], gates times weights, times alpha where it is below 1.
        clicked: for each remembered query the ids clicked.
        likenesses: how like the query each of them is; empty: all are fully so.

    >>> unlike_factors(np.array([1.0, 0.5]), [["a", "b"], ["b"]], [[0.0, 1.0], []])
    {'a': 0.1}
    """
    factors: dict[str, float] = {}
    for count, object_ids, alike in zip(counts.tolist(), clicked, likenesses, strict=True):
        for object_id, like in zip(object_ids, alike, strict=bool(alike)):
            factor = 1 - UNLIKE_STRENGTH * count * (1 - like)
            if factor < factors.get(object_id, 1.0):
                factors[object_id] = factor
    return factors


def _lengths_count(index: SearchIndexInfo) -> bool:
    """Return whether a search multiplies by lengths: for dot, and for means over directions."""
    return index.metric_type is MetricType.DOT or (
        index.metric_type is MetricType.COSINE and index.metric_aggregation_type is MetricAggregationType.AVG
    )


def _standing_for(index: SearchIndexInfo, queries: Vectors, parts: Vectors) -> tuple[Floats, float]:
    """Return the [D] by which an object counts in a mean, and the length with which it counts in a search."""
    vectors = parts.astype(np.float64)
    directions = vectors if index.metric_type is MetricType.EUCLID else _directions(parts)
    lengthy = directions if index.metric_type is MetricType.COSINE else vectors
    if index.metric_aggregation_type is MetricAggregationType.MIN:
        alike = pair_similarities(index.metric_type, queries, parts) if len(parts) > 1 else np.zeros((1, 1))
        best = alike.max(axis=0).argmax()
        return directions[best], float(np.linalg.norm(lengthy[best]))
    return directions.mean(axis=0), float(np.linalg.norm(lengthy.mean(axis=0)))


def _contrast(lengths: Floats) -> float:
    """Return how much of what all results have in common is taken out of a pull, in [0, 1] (eq. 10)."""
    if not lengths.any():
        return 0.0
    differing = float(lengths.std() / lengths.mean())
    return min(1.0, differing / FULL_CONTRAST) if differing > LENGTH_ROUNDING else 0.0


def shift_query(
    index: SearchIndexInfo, queries: Vectors, gates: Floats, clicked_means: Vectors, strength: float
) -> Vectors:
    """Return the query shifted towards what was clicked for near ones (eq. 2), each part by the same rule.

    The norm is kept under every metric, for euclid too: there a shorter query would have lengths count for
    more, and directions for less, than in the plain search.

    Args:
        queries: [Q, D].
        gates: [J], from ``gates``.
        clicked_means: [J, D], from ``clicked_mean``.
        strength: alpha, at least 0.

    Returns:
        [Q, D]; with the norms of the given ones. The very same array when all gates are 0 or the strength is.
    """
    opened = float(gates.sum())
    if opened == 0 or strength == 0:
        return queries
    pull = strength * (gates @ clicked_means.astype(np.float64)) / (1 + opened)
    given = queries.astype(np.float64)
    of_given = _lengths(given)
    if index.metric_type is not MetricType.EUCLID:
        given = given / np.where(of_given > 0, of_given, 1.0)
    bent = given + pull
    lengths = _lengths(bent)
    scale = of_given / np.where(lengths > 0, lengths, 1.0)
    # A pull that cancels the query out leaves no direction; then the query stays as it is.
    shifted = np.where(lengths > 0, scale * bent, queries)
    return shifted.astype(np.float32)


def shared_evidence(
    gates: Floats, users: Sequence[int], clicked_means: Vectors, *, min_users: int
) -> tuple[float, Vectors] | None:
    """Return what others clicked for near queries as one memory: its gate and its clicked mean (eq. 9).

    No user counts for more than one part in ``min_users`` of the mean: where a few stand so much nearer than
    the others that one would, there is nothing to tell, for it would be what that one clicked.

    Args:
        gates: [M], of the queries that others asked, from ``gates``.
        users: M numbers, how many users clicked for each; no user is counted twice.
        clicked_means: [M, D], the mean of what they clicked.

    Returns:
        A gate in (0, 2) that grows with the number of users and the nearness of their queries, and [D]; or
        None.

    >>> shared_evidence(np.array([1.0, 0.5]), [2, 2], np.array([[1, 0], [0, 3]], np.float32), min_users=3)
    (1.2, array([0.667, 1.   ], dtype=float32))
    >>> shared_evidence(np.array([1.0, 0.1]), [1, 9], np.array([[1, 0], [0, 3]], np.float32), min_users=3)
    """
    if not _are_enough(gates, users, min_users):
        return None
    votes = gates * users
    total = float(votes.sum())
    mean = votes @ clicked_means.astype(np.float64) / total
    return MOST_SHARED * total / (MOST_SHARED + total), mean.astype(np.float32)


def object_factors(
    gates: Floats, users: Sequence[int], seen: Sequence[Sequence[SharedObject]], *, min_users: int
) -> dict[str, float]:
    """Return object_id -> what its distance is multiplied by for what others did with it (eqs. 11 and 12).

    As in the mean, no user counts for more than one part in ``min_users``, or there is nothing to tell.

    Args:
        gates: [M], of the queries that others asked, by ``shared_threshold``.
        users: M numbers, as in ``shared_evidence``.
        seen: for each of these queries what its users did with objects.
        min_users: so many must have clicked an object for the very same query for x_d to count.

    Returns:
        Above 0: below 1 for what is clicked more often than may be expected where it stood; above 1 for less.
        Only what differs from 1.

    >>> seen = [[SharedObject("a", 3, 3.0, 1.0), SharedObject("b", 0, 0.0, 3.0)]]
    >>> object_factors(np.array([0.9]), [3], seen, min_users=3)
    {'a': 0.761, 'b': 1.245}
    >>> object_factors(np.array([0.9]), [2], seen, min_users=3)
    {}
    """
    weights = gates**NEARNESS_POWER
    if not _are_enough(weights, users, min_users):
        return {}
    clicks: dict[str, float] = defaultdict(float)
    looks: dict[str, float] = defaultdict(float)
    voters: dict[str, int] = defaultdict(int)
    exact: dict[str, float] = defaultdict(float)
    for gate, weight, objects in zip(gates.tolist(), weights.tolist(), seen, strict=True):
        for each in objects:
            clicks[each.object_id] += weight * each.clicks
            looks[each.object_id] += weight * each.looks
            if gate >= EXACT:
                voters[each.object_id] += each.users
                exact[each.object_id] += each.clicks
    nowhere = sum(clicked for name, clicked in clicks.items() if looks[name] == 0)
    counts_decide = nowhere > sum(clicks.values()) / 2
    smoothing = CLICK_RATE * EXPECTED_LOOKS
    factors = {}
    for name, clicked in clicks.items():
        if counts_decide:
            factor = EXPECTED_CLICKS / (EXPECTED_CLICKS + clicked)
            if voters[name] >= min_users:
                factor *= EXPECTED_EXACT_CLICKS / (EXPECTED_EXACT_CLICKS + exact[name])
        else:
            factor = ((CLICK_RATE * looks[name] + smoothing) / (clicked + smoothing)) ** OBJECT_STRENGTH
        if factor != 1:
            factors[name] = factor
    return factors


def _are_enough(weights: Floats, users: Sequence[int], min_users: int) -> bool:
    """Return whether no user has more than one part in so many of what all say.

    Args:
        weights: [M], of what each user says for a query, all 0 where nothing is said.
        users: M numbers.
    """
    most = float(weights.max())
    return most > 0 and float((weights * users).sum()) >= min_users * most * (1 - SHARE_ROUNDING)


def weighed_distances(
    index: SearchIndexInfo, queries: Vectors, found: Floats, factors: Floats, objects: Sequence[Vectors]
) -> Floats:
    """Return the distances of objects after their factors (eqs. 11 and 12).

    The least distance is 0 for cosine and euclid, and for dot minus the product of the lengths.

    Args:
        queries: [Q, D].
        found: [R], their distances.
        factors: [R], from ``object_factors``; 1 for none.
        objects: for dot R arrays [P, D], their originals; else they are not looked at.

    Returns:
        [R].
    """
    if index.metric_type is not MetricType.DOT:
        return factors * found
    longest = np.max if index.metric_aggregation_type is MetricAggregationType.MIN else np.mean
    of_query = float(longest(_lengths(queries.astype(np.float64))))
    of_objects = np.array([float(longest(_lengths(parts.astype(np.float64)))) for parts in objects])
    return np.where(factors == 1, found, factors * (found + of_query * of_objects) - of_query * of_objects)


class ObjectGates(Mapping[str, float]):
    """object_id -> how much a user's own vectors of an object count (eq. 5), for those that count at all.

    Attributes:
        groups: pairs of ids and what they count, in (0, 1]; the last to say something of an object says most.
    """

    def __init__(self, groups: Sequence[tuple[tuple[str, ...], float]] = ()) -> None:
        self.groups = groups

    @classmethod
    def of(cls, gates: Mapping[str, float]) -> "ObjectGates":
        return gates if isinstance(gates, cls) else cls([((name,), gate) for name, gate in gates.items()])

    @cached_property
    def _widest(self) -> dict[str, float]:
        widest: dict[str, float] = {}
        for object_ids, gate in self.groups:
            widest |= dict.fromkeys(object_ids, gate)
        return widest

    def __getitem__(self, object_id: str) -> float:
        return self._widest[object_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._widest)

    def __len__(self) -> int:
        return len(self._widest)

    def __bool__(self) -> bool:
        return any(object_ids for object_ids, _ in self.groups)


def object_gates(gates: Floats, moved: Sequence[tuple[str, ...]], weights: Floats) -> ObjectGates:
    """Return eq. 5.

    Args:
        gates: [J].
        moved: for each remembered query the ids of the objects that its session moved.
        weights: [J], how much each of these queries counts.

    >>> moved, weights = [("a",), ("a", "b"), ("c",)], np.array([1.0, 0.8, 1.0])
    >>> dict(object_gates(np.array([0.25, 0.75, 0.0]), moved, weights))
    {'a': 0.8, 'b': 0.8}
    """
    counts = weights * np.minimum(1.0, 2.0 * gates)
    narrowest_first = np.argsort(counts, kind="stable").tolist()
    return ObjectGates([(moved[j], float(counts[j])) for j in narrowest_first if counts[j] > 0])


def blend(original_similarity: Number, personal_similarity: Number, gate: Number) -> Number:
    """Return eq. 6; the original's similarity in every bit where the gate is 0."""
    return (1 - gate) * original_similarity + gate * personal_similarity


def _closeness(index: SearchIndexInfo, query: Floats, others: Floats) -> Floats:
    """Return how near a query [D] is to each of others [J, D]: [J], as ``gates`` says, -inf for zero."""
    lengths = np.sqrt(np.vecdot(query, query) * np.vecdot(others, others))
    if index.metric_type is MetricType.EUCLID:
        alike = lengths - np.square(others - query).sum(axis=1) / 2
    else:
        alike = others @ query
    closeness: Floats = np.where(lengths > 0, alike / np.where(lengths > 0, lengths, 1.0), -np.inf)
    return closeness


def _directions(vectors: NDArray[np.floating]) -> Floats:
    """Return vectors [..., D] at length 1; zero stays zero."""
    exact = vectors.astype(np.float64)
    lengths = _lengths(exact)
    directions: Floats = exact / np.where(lengths > 0, lengths, 1.0)
    return directions


def _lengths(vectors: Floats) -> Floats:
    """Return [..., 1] of [..., D]; for one query ``np.linalg.norm`` takes twice as long."""
    lengths: Floats = np.sqrt(np.vecdot(vectors, vectors))[..., None]
    return lengths
