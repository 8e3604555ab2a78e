"""A user's state as a function of their sessions: the whole of what is learnt.

Axes: Q parts of a query · C clicked objects · P parts of an object · D dimensions.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import accumulate
from typing import TypeVar

import numpy as np

from embedding_studio.domain.improvement import ImprovementInput
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.objects import PersonalState, QueryMemory, SeenObject, SharedVote
from embedding_studio.domain.sessions import (
    ANONYMOUS,
    DEFAULT_EVENT_WEIGHTS,
    RecordedSession,
    Session,
    SessionForImprovementStatus,
)
from embedding_studio.embeddings.improvement.vectors_adjuster import VectorsAdjuster
from embedding_studio.embeddings.personal import clicked_mean, likeness, query_mean
from embedding_studio.embeddings.trust_region import MAX_ANGLE_DEGREES, into_trust_region
from embedding_studio.errors import (
    EmbeddingStudioError,
    InvalidInputError,
    SessionRefusedError,
    StorageUnavailableError,
    counted,
)
from embedding_studio.feedback.inputs import improvement_input
from embedding_studio.feedback.time_limit import StoppedError
from embedding_studio.storage.ports import OrderOutcome, Vectors

logger = logging.getLogger(__name__)

DONE = SessionForImprovementStatus.DONE
REFUSED = SessionForImprovementStatus.REFUSED
FAILED = SessionForImprovementStatus.FAILED

DIRECTION_DECIMALS = 2
"""Coarse enough that a text embedded in another batch, which differs in its last bits, is the same query."""

LOOKED_AT = 10
"""What stands further down is hardly looked at, and is kept only if it was clicked."""

MOST_SEEN = 50
"""Of so many objects a vote tells, those clicked most and then looked at most: every search of others looks
at what is shared of near queries, so whoever clicked thousands would make it slow, and fill its pages."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Folded:
    """What sessions come to.

    Attributes:
        states: user_id -> state, for every user of whom there was a session.
        outcomes: session_id -> done, refused or failed; what failed may go well another time.
    """

    states: dict[str, PersonalState]
    outcomes: dict[str, OrderOutcome]


def fold(
    recorded: Iterable[RecordedSession],
    originals: Mapping[str, Vectors],
    adjuster: VectorsAdjuster,
    index: SearchIndexInfo,
    *,
    event_weights: Mapping[str, float] = DEFAULT_EVENT_WEIGHTS,
    max_angle_degrees: float | None = MAX_ANGLE_DEGREES,
    is_shared: bool = False,
) -> Folded:
    """Return the state of each user whose sessions these are, from the originals on.

    It depends on nothing else: the order of ``recorded`` and the other users in it change nothing.

    Args:
        recorded: sessions with events; folded in order of (created_at, session_id).
        originals: object_id -> [P, D] of all objects that the sessions show; one that is missing
            no longer exists.
        max_angle_degrees: the trust region, held here too, whatever the adjuster does; None: no bound.
        is_shared: whether what users clicked is counted together with what others did.
    """
    of_user: dict[str, list[tuple[RecordedSession, ImprovementInput]]] = defaultdict(list)
    states: dict[str, PersonalState] = {}
    outcomes: dict[str, OrderOutcome] = {}
    for each in sorted(recorded, key=lambda each: (each.session.created_at, each.session.session_id)):
        session = each.session
        if session.user_id is None:
            outcomes[session.session_id] = OrderOutcome(session.session_id, REFUSED, ANONYMOUS)
            continue
        try:
            states.setdefault(session.user_id, PersonalState())
            of_user[session.user_id].append((each, improvement_input(each, originals, index, event_weights)))
        except SessionRefusedError as error:
            outcomes[session.session_id] = outcome_of(session.session_id, error)

    adjusted = _adjust(
        adjuster, [[given for _, given in sessions if _has_contrast(given)] for sessions in of_user.values()]
    )
    vectors: dict[str, dict[str, Vectors]] = {}
    for user_id, sessions in of_user.items():
        vectors[user_id] = {}
        memories = []
        seen = []
        for each, given in sessions:
            after = adjusted.get(given.session_id, given)
            if isinstance(after, Exception):
                outcomes[given.session_id] = outcome_of(given.session_id, after)
                continue
            moved = _moved(after, vectors[user_id], originals)
            vectors[user_id].update(moved)
            memories.append(
                _memory(each, given, moved if after.moved_ids is None else after.moved_ids, index)
            )
            seen.append(_seen(each.session, memories[-1].clicked_ids))
            outcomes[given.session_id] = OrderOutcome(given.session_id, DONE, _remark(given, moved))
        states[user_id] = PersonalState(tuple(memories), votes=_votes(memories, seen) if is_shared else ())
    for user_id, bounded in _bounded(vectors, originals, index, max_angle_degrees).items():
        states[user_id] = replace(states[user_id], vectors=bounded)
    return Folded(states, outcomes)


def outcome_of(session_id: str, error: Exception) -> OrderOutcome:
    """Return what becomes of a session on an error: refused if it lies in the session, else failed."""
    if isinstance(error, SessionRefusedError | InvalidInputError):
        return OrderOutcome(session_id, REFUSED, str(error))
    logger.error("a session could not be learnt from; its order says why", exc_info=error)
    return OrderOutcome(session_id, FAILED, detail_of(error))


def detail_of(error: Exception) -> str:
    try:
        return str(error) if isinstance(error, EmbeddingStudioError) else f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001, an exception that cannot say what it is, is one all the same
        return type(error).__name__


def attempt(work: Callable[[], T]) -> T | Exception:
    """Return what ``work`` returns, or the exception it raised, unless that is for the worker to see to."""
    try:
        return work()
    except (StorageUnavailableError, StoppedError):
        raise
    except Exception as error:  # noqa: BLE001, whatever a plugin or one session does, the others are learnt
        return error


def _adjust(
    adjuster: VectorsAdjuster, of_user: Sequence[Sequence[ImprovementInput]]
) -> dict[str, ImprovementInput | Exception]:
    """Return each session as adjusted, or what went wrong with it.

    All in one call; if that fails, each user alone; if that fails, without the sessions that fail alone.
    """
    inputs = [given for of_one in of_user for given in of_one]
    if not inputs:
        return {}
    together = attempt(partial(_adjusted, adjuster, inputs))
    if not isinstance(together, Exception):
        return {after.session_id: after for after in together}
    logger.error("%d sessions could not be adjusted together", len(inputs), exc_info=together)
    if len(of_user) > 1:
        return {key: after for of_one in of_user for key, after in _adjust(adjuster, [of_one]).items()}
    alone = {given.session_id: attempt(partial(_adjusted, adjuster, [given])) for given in inputs}
    culprits = {key: after for key, after in alone.items() if isinstance(after, Exception)}
    sound = [given for given in inputs if given.session_id not in culprits]
    if culprits and sound:
        return {**culprits, **_adjust(adjuster, [sound])}
    return {given.session_id: culprits.get(given.session_id, together) for given in inputs}


def _adjusted(adjuster: VectorsAdjuster, inputs: list[ImprovementInput]) -> list[ImprovementInput]:
    """Return what the adjuster makes of the inputs, once it is seen to keep its promise."""
    adjusted = adjuster.adjust_vectors(inputs)
    moved = []
    if len(adjusted) != len(inputs):
        given_back = counted(len(adjusted), "session")
        raise EmbeddingStudioError(f"the adjuster gave back {given_back} for {len(inputs)}")
    for given, after in zip(inputs, adjusted, strict=True):
        elements = given.clicked_elements + given.non_clicked_elements
        elements_after = after.clicked_elements + after.non_clicked_elements
        if given.session_id != after.session_id or len(elements) != len(elements_after):
            raise EmbeddingStudioError(f"the adjuster gave back other sessions than {given.session_id!r}")
        for element, element_after in zip(elements, elements_after, strict=True):
            if element.id != element_after.id or element.vector.shape != element_after.vector.shape:
                raise EmbeddingStudioError(f"the adjuster gave back another object than {element.id!r}")
            if element_after.vector is not element.vector:
                moved.append(element_after.vector)
    if moved and not np.isfinite(np.concatenate(moved)).all():
        raise EmbeddingStudioError("the adjuster gave back vectors that are not finite")
    return adjusted


def _has_contrast(given: ImprovementInput) -> bool:
    return bool(given.clicked_elements and given.non_clicked_elements)


def _moved(
    after: ImprovementInput, before: Mapping[str, Vectors], originals: Mapping[str, Vectors]
) -> dict[str, Vectors]:
    """Return object_id -> vectors [P, D] of the objects that one session changed."""
    moved = {}
    for element in (*after.clicked_elements, *after.non_clicked_elements):
        was = before.get(element.id)
        if was is None:
            was = originals[element.id]
        if element.vector is not was and (element.vector != was).any():
            moved[element.id] = element.vector
    return moved


def _memory(
    recorded: RecordedSession, given: ImprovementInput, moved: Iterable[str], index: SearchIndexInfo
) -> QueryMemory:
    queries = given.query.vector
    clicked = sorted(given.clicked_elements, key=lambda element: element.id)
    alike = likeness(index, queries, [element.vector for element in clicked])
    return QueryMemory(
        session_id=given.session_id,
        search_query=recorded.session.search_query,
        created_at=recorded.session.created_at,
        query=query_mean(index, queries),
        clicked_mean=clicked_mean(
            index,
            queries,
            [element.vector for element in clicked],
            [element.weight for element in clicked],
            [element.vector for element in given.non_clicked_elements],
        ),
        clicked_ids=tuple(element.id for element in clicked),
        moved_ids=tuple(sorted(moved)),
        likeness=tuple(alike.tolist()) if (alike < 1).any() else (),
    )


def _seen(session: Session, clicked_ids: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return object_id -> (clicks, looks) of one session, as ``SeenObject`` means them.

    A result is looked at with probability 1 / position where it stood first, as in ``improvement_input``.
    """
    clicked = set(clicked_ids)
    looks: dict[str, float] = {}
    for result in session.search_results:
        position = result.position
        if position is not None and (position <= LOOKED_AT or result.object_id in clicked):
            looks[result.object_id] = max(1.0 / position, looks.get(result.object_id, 0.0))
    return {
        object_id: (float(object_id in clicked), looks.get(object_id, 0.0))
        for object_id in {*looks, *clicked}
    }


def _votes(
    memories: Sequence[QueryMemory], seen: Sequence[Mapping[str, tuple[float, float]]]
) -> tuple[SharedVote, ...]:
    """Return what one user says to others: one vote for each query, however often it was asked.

    Args:
        seen: object_id -> (clicks, looks), for each of the memories.
    """
    of_query: dict[str, list[tuple[QueryMemory, Mapping[str, tuple[float, float]]]]] = defaultdict(list)
    for memory, objects in zip(memories, seen, strict=True):
        of_query[_query_key(memory)].append((memory, objects))
    return tuple(
        SharedVote(
            query_key,
            asked[-1][0].query,
            np.stack([memory.clicked_mean for memory, _ in asked])
            .mean(axis=0, dtype=np.float64)
            .astype(np.float32),
            asked[-1][0].created_at,
            _mean_seen([objects for _, objects in asked]),
        )
        for query_key, asked in of_query.items()
    )


def _mean_seen(asked: Sequence[Mapping[str, tuple[float, float]]]) -> tuple[SeenObject, ...]:
    """Return what was done with objects on average, by object_id, of ``MOST_SEEN`` at most."""
    clicks: dict[str, float] = defaultdict(float)
    looks: dict[str, float] = defaultdict(float)
    for objects in asked:
        for object_id, (clicked, looked) in objects.items():
            clicks[object_id] += clicked
            looks[object_id] += looked
    most_first = sorted(clicks, key=lambda object_id: (-clicks[object_id], -looks[object_id], object_id))
    return tuple(
        SeenObject(object_id, clicks[object_id] / len(asked), looks[object_id] / len(asked))
        for object_id in sorted(most_first[:MOST_SEEN])
    )


def _query_key(memory: QueryMemory) -> str:
    """Return what is equal for the same text, whitespace and case apart, with the same direction.

    Whoever registers a session may bring any vector with any text: their vote must not stand where those of
    others do who mean the text.
    """
    text = " ".join(memory.search_query.casefold().split())
    length = float(np.linalg.norm(memory.query)) or 1.0
    direction = np.round(memory.query / length, DIRECTION_DECIMALS) + 0.0  # 0.0, for it makes -0 be 0
    return sha256(text.encode() + b"\0" + direction.astype(np.float32).tobytes()).hexdigest()


def _remark(given: ImprovementInput, moved: Mapping[str, Vectors]) -> str | None:
    if moved:
        return None
    if given.non_clicked_elements:
        return "remembered; nothing had to move: what was clicked stands clear of what was passed over"
    return "remembered; nothing moved: there was no result passed over to compare with"


def _bounded(
    vectors: Mapping[str, Mapping[str, Vectors]],
    originals: Mapping[str, Vectors],
    index: SearchIndexInfo,
    max_angle_degrees: float | None,
) -> dict[str, dict[str, Vectors]]:
    """Return user_id -> object_id -> [P, D] within the trust region, where it differs from the original."""
    flat = [
        (user_id, object_id, personal)
        for user_id, of_user in vectors.items()
        for object_id, personal in of_user.items()
    ]
    bounded: dict[str, dict[str, Vectors]] = {}
    if not flat:
        return bounded
    moved = np.concatenate([personal for _, _, personal in flat])
    before = np.concatenate([originals[object_id] for _, object_id, _ in flat])
    if max_angle_degrees is not None:
        moved = into_trust_region(index, before, moved, max_angle_degrees)
    ends = list(accumulate(len(personal) for _, _, personal in flat))
    differs = np.logical_or.reduceat((moved != before).any(axis=1), [0, *ends[:-1]]).tolist()
    for (user_id, object_id, personal), end, is_personal in zip(flat, ends, differs, strict=True):
        if is_personal:
            bounded.setdefault(user_id, {})[object_id] = moved[end - len(personal) : end]
    return bounded
