"""What users searched, were shown and did."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from embedding_studio.datetime_utils import utc_timestamp

DEFAULT_COLLECTION = "default"

DEFAULT_EVENT_WEIGHTS: Mapping[str, float] = {
    "click": 1.0,
    "add_to_cart": 2.0,
    "purchase": 3.0,
    "view": 0.0,
    "impression": 0.0,
}
"""How much an event of each type says for its object; a type that is not listed says nothing."""

MAX_ID_LENGTH = 512


class SearchResultItem(BaseModel):
    """One result as it was shown.

    Attributes:
        rank: the distance under which it was ranked, if known.
        position: 1 is the top; filled from the order of the list when absent.
        personalised: whether the user's state took part in its score.
        propensity: probability with which this object was served in this slot.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    object_id: str = Field(min_length=1, max_length=MAX_ID_LENGTH)
    rank: float | None = None
    meta: dict[str, Any] | None = None
    position: int | None = Field(default=None, ge=1)
    personalised: bool = False
    propensity: float = Field(default=1.0, gt=0, le=1)


class SessionEvent(BaseModel):
    """Something a user did with one object.

    ``event_id`` makes an event sent twice count once; without one it is derived from the other
    fields, so two equal clicks within one second are one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    session_id: str = Field(min_length=1, max_length=MAX_ID_LENGTH)
    object_id: str = Field(min_length=1, max_length=MAX_ID_LENGTH)
    event_type: str = Field(default="click", min_length=1, max_length=64)
    created_at: int = Field(default_factory=utc_timestamp, ge=0)
    event_id: str = Field(default="", max_length=MAX_ID_LENGTH)
    meta: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _name_the_event(self) -> Self:
        if not self.event_id:
            told = "\x1f".join((self.session_id, self.object_id, self.event_type, str(self.created_at)))
            object.__setattr__(self, "event_id", hashlib.sha256(told.encode()).hexdigest()[:32])
        return self


class SearchRequest(BaseModel):
    """What a search asked for beside its query, kept so that its first page can be ranked again.

    Attributes:
        filter: as it is sent over HTTP; ``PayloadFilter.parse`` reads it.
        sort_by: a payload field, and the direction.
        settings: fingerprint of the settings in force; where it is equal, so is what they do to a ranking.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: int
    offset: int = 0
    max_distance: float | None = None
    filter: dict[str, Any] | None = None
    sort_by: tuple[str, Literal["ascending", "descending"]] | None = None
    exploration_ratio: float = 0.0
    settings: str = ""


class Session(BaseModel):
    """One query and the results shown for it, in order.

    Attributes:
        request: of the search that recorded the session; None where another system searched.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    session_id: str = Field(min_length=1, max_length=MAX_ID_LENGTH)
    search_query: str = ""
    user_id: str | None = Field(default=None, min_length=1, max_length=MAX_ID_LENGTH)
    created_at: int = Field(default_factory=utc_timestamp, ge=0)
    collection: str = Field(default=DEFAULT_COLLECTION, min_length=1, max_length=MAX_ID_LENGTH)
    search_results: tuple[SearchResultItem, ...] = ()
    search_meta: dict[str, Any] | None = None
    request: SearchRequest | None = None
    is_irrelevant: bool = False
    events: tuple[SessionEvent, ...] = ()

    @model_validator(mode="after")
    def _number_the_results(self) -> Self:
        if any(result.position is None for result in self.search_results):
            numbered = tuple(
                result if result.position is not None else result.model_copy(update={"position": slot})
                for slot, result in enumerate(self.search_results, start=1)
            )
            object.__setattr__(self, "search_results", numbered)
        return self

    @property
    def duration_seconds(self) -> int:
        """Seconds from the search to the last event; 0 without events."""
        return max((event.created_at for event in self.events), default=self.created_at) - self.created_at

    def clicked(self, weights: Mapping[str, float] = DEFAULT_EVENT_WEIGHTS) -> dict[str, float]:
        """Return the objects that some event speaks for, each with its weightiest event's weight (> 0)."""
        clicked: dict[str, float] = {}
        for event in self.events:
            weight = weights.get(event.event_type, 0.0)
            if weight > clicked.get(event.object_id, 0.0) and math.isfinite(weight):
                clicked[event.object_id] = weight
        return clicked


@dataclass(frozen=True, slots=True, eq=False)
class RecordedSession:
    """A session with the vectors of its query.

    Attributes:
        query_vectors: [Q, D] float32; None where nobody has embedded the query yet.
    """

    session: Session
    query_vectors: NDArray[np.float32] | None = None


class SessionDisposition(StrEnum):
    """What became of a session that was sent."""

    RECORDED = "recorded"
    CONTINUED = "continued"  # it was there; what it shows for the first time and new events were added
    TAKEN = "taken"  # its id is that of another user's, query's or collection's; nothing was stored


class EventDisposition(StrEnum):
    """What became of an event that was sent."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    UNKNOWN_SESSION = "unknown_session"  # not stored: there is nothing to join it to
    UNKNOWN_OBJECT = "unknown_object"  # stored but not learnt from: it was not among the results shown


ANONYMOUS = "the session is anonymous: there is no user whose results could change"
"""Why nothing is learnt from a session of nobody."""


class SessionForImprovementStatus(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    DONE = "done"
    FAILED = "failed"  # attempts used up; can be retried by hand
    REFUSED = "refused"  # nothing to learn from it; ``detail`` says why


class SessionForImprovementCreateSchema(BaseModel):
    """A wish to learn from one session."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    session_id: str = Field(min_length=1, max_length=MAX_ID_LENGTH)


class SessionForImprovement(BaseModel):
    """An order: a session waiting to be learnt from, or what became of it. One per session.

    Attributes:
        priority: 1 where something below position 3 was clicked, else 0; higher is claimed first.
        attempts: how often a worker has tried to learn from its user since that was last asked for.
        not_before: UTC seconds before which no worker tries it: again after a failure, or, while it is
            processing, instead of a worker that ended.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    session_id: str
    user_id: str | None
    collection: str
    status: SessionForImprovementStatus = SessionForImprovementStatus.PENDING
    priority: int = 0
    attempts: int = 0
    detail: str | None = None
    created_at: int = Field(default_factory=utc_timestamp)
    updated_at: int = Field(default_factory=utc_timestamp)
    not_before: float = 0.0


def get_result_position(session: Session, object_id: str) -> int:
    """Return where an object was shown, 1 for the top; 0 if it was not shown."""
    for result in session.search_results:
        if result.object_id == object_id and result.position is not None:
            return result.position
    return 0
