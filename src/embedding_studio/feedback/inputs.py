"""From recorded sessions to what adjusters take.

Axes: Q parts of a query · P parts of an object · D dimensions.
"""

from collections.abc import Iterable, Mapping, Sequence

from embedding_studio.domain.improvement import ImprovementElement, ImprovementInput
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.sessions import RecordedSession, Session
from embedding_studio.embedders import Embedder, embed_texts, query_embedding
from embedding_studio.embeddings.preparation import check_vectors
from embedding_studio.errors import (
    EmbedderUnavailableError,
    EmbeddingError,
    InvalidVectorsError,
    SessionRefusedError,
)
from embedding_studio.storage.ports import Vectors

EMBEDDING_SECONDS = 30.0
"""So long learning waits for an endpoint: others wait for the worker."""


def improvement_input(
    recorded: RecordedSession,
    originals: Mapping[str, Vectors],
    index: SearchIndexInfo,
    event_weights: Mapping[str, float],
) -> ImprovementInput:
    """Return one session with the originals of what was clicked and of what was passed over.

    Clicked is what an event of positive weight speaks for, among the results shown; in a session
    that recorded no results, among all objects. Passed over are the other results, each weighing
    1 / position: the further down, the less likely it was seen
    (docs/how-it-learns.md, "Personal vectors").

    Args:
        originals: object_id -> [P, D]; what is missing there has been deleted, and is left out.

    Raises:
        SessionRefusedError: nothing usable is left; the message is the reason.
    """
    session = recorded.session
    query = _query(recorded, index)
    weights = session.clicked(event_weights)
    if not weights:
        raise SessionRefusedError("no clicks: no event of the session speaks for an object")
    positions = _positions(session)
    counted = [object_id for object_id in weights if object_id in positions] if positions else list(weights)
    if not counted:
        raise SessionRefusedError("none of the objects clicked was among the results shown")
    clicked = tuple(
        ImprovementElement(object_id, originals[object_id], weights[object_id])
        for object_id in sorted(counted)
        if object_id in originals
    )
    if not clicked:
        raise SessionRefusedError("none of the objects clicked exists any more")
    skipped = tuple(
        ImprovementElement(object_id, originals[object_id], 1.0 / position)
        for object_id, position in positions.items()
        if object_id not in weights and object_id in originals
    )
    return ImprovementInput(session.session_id, query, clicked, skipped, session.user_id)


def objects_of(sessions: Iterable[Session], event_weights: Mapping[str, float]) -> set[str]:
    """Return the ids of all objects whose originals ``improvement_input`` needs."""
    needed: set[str] = set()
    for session in sessions:
        needed.update(result.object_id for result in session.search_results)
        if not session.search_results:
            needed.update(session.clicked(event_weights))
    return needed


def embed_queries(
    embedder: Embedder, texts: Iterable[str]
) -> tuple[dict[str, Vectors], dict[str, EmbeddingError]]:
    """Return text -> [Q, D], embedded in one batch, and text -> reason for those that have no vectors.

    If the batch fails, each text is tried alone; when two in succession fail, it is the embedder that
    is at fault, and the rest is not tried.
    """
    in_order = sorted(texts)
    try:
        return _embed(embedder, in_order), {}
    except EmbeddingError as error:
        embedder_is_down = error
    embedded: dict[str, Vectors] = {}
    reasons: dict[str, EmbeddingError] = {}
    failed_in_succession = 0
    for text in in_order:
        if failed_in_succession == 2:
            reasons[text] = embedder_is_down
            continue
        try:
            embedded |= _embed(embedder, [text])
            failed_in_succession = 0
        except EmbeddingError as error:
            reasons[text] = error
            failed_in_succession += 1
    return embedded, reasons


def _embed(embedder: Embedder, texts: Sequence[str]) -> dict[str, Vectors]:
    embed = query_embedding(embedder, seconds=EMBEDDING_SECONDS)
    try:
        return dict(zip(texts, embed_texts(embedder, texts, embed=embed), strict=True))
    except EmbeddingError:
        raise
    except OSError as error:  # of a plugin's: it is not reached
        raise EmbedderUnavailableError(f"the embedder raised {type(error).__name__}") from error
    except Exception as error:
        raise EmbeddingError(f"the embedder raised {type(error).__name__}") from error


def _query(recorded: RecordedSession, index: SearchIndexInfo) -> ImprovementElement:
    session = recorded.session
    if recorded.query_vectors is None:
        if not session.search_query.strip():
            raise SessionRefusedError("the session has neither a query text nor query vectors")
        raise SessionRefusedError(
            "the query has no vectors, and no embedder of this collection could give it any; "
            "register sessions with query vectors, or set EMBEDDER"
        )
    try:
        vectors = check_vectors(index, recorded.query_vectors, f"the query of session {session.session_id!r}")
    except InvalidVectorsError as error:
        raise SessionRefusedError(str(error)) from error
    return ImprovementElement(session.session_id, vectors)


def _positions(session: Session) -> dict[str, int]:
    """Return object_id -> where it was shown first, from the top down."""
    positions: dict[str, int] = {}
    for slot, result in enumerate(session.search_results, start=1):
        position = result.position or slot
        positions[result.object_id] = min(position, positions.get(result.object_id, position))
    return positions
