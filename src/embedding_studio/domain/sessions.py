"""What users searched, were shown and did."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Self, TypedDict, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain import DEFAULT_COLLECTION as DEFAULT_COLLECTION  # noqa: PLC0414, from here too
from embedding_studio.domain import DEFAULT_LIMIT
from embedding_studio.domain.filters import PayloadFilter, check_field
from embedding_studio.domain.limits import MAX_ID_LENGTH
from embedding_studio.domain.storable import check_id, check_text, plain_json
from embedding_studio.errors import InvalidInputError, shown

DEFAULT_EVENT_WEIGHTS: Mapping[str, float] = {
    "click": 1.0,
    "add_to_cart": 2.0,
    "purchase": 3.0,
    "view": 0.0,
    "impression": 0.0,
}
"""How much an event of each type says for its object; a type that is not listed says nothing."""

Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH), AfterValidator(check_id)]
Text = Annotated[str, AfterValidator(check_text)]
Json = Annotated[dict[str, Any], AfterValidator(plain_json)]

TAKEN_BACK = "taken_back"
"""Type of the events that a user took back; nothing is learnt from it."""

CLOCK_SECONDS = 60
"""A visitor's clock may be behind by so much: an event dated up to so long before its search counts."""

MAX_LIMIT = 1_000

MAX_REACH = 10_000
"""Results beyond this position are not served: whoever needs more reads the collection."""

MAX_POSITION = 1_000_000_000
"""Of a result; those that are shown later come after it, and PostgreSQL keeps 32 bits."""

SortBy = tuple[str, Literal["ascending", "descending"]]
"""A payload field, where a dot steps into an object, and the direction."""


Model = TypeVar("Model", bound=BaseModel)


def trusted(model: type[Model], **values: Any) -> Model:
    """Return a value of what was checked already, as fast as can be.

    Args:
        values: of the fields, all that have no default among them.
    """
    defaults, fields = _defaults(model)
    made = object.__new__(model)
    _set_values(made, {**defaults, **values})
    _set_fields(made, fields)
    _set_extra(made, None)
    _set_private(made, None)
    return made


_set_values, _set_fields, _set_extra, _set_private = (
    vars(BaseModel)[slot].__set__
    for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)
"""Write all that a model is made of, in two thirds of the time of ``object.__setattr__``."""


@cache
def _defaults(model: type[BaseModel]) -> tuple[dict[str, Any], set[str]]:
    """Return the defaults of a model's fields, in their order, and the names of all."""
    return {name: field.default for name, field in model.model_fields.items()}, set(model.model_fields)


class SearchResultItem(BaseModel):
    """One result as it was shown.

    Attributes:
        rank: the distance under which it was ranked, if known.
        position: 1 is the top; filled from the order of the list when absent.
        personalised: whether the user's state took part in its score.
        propensity: probability with which this object was served in this slot.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    object_id: Id
    rank: float | None = Field(default=None, allow_inf_nan=False)
    meta: Json | None = None
    position: int | None = Field(default=None, ge=1, le=MAX_POSITION)
    personalised: bool = False
    propensity: float = Field(default=1.0, gt=0, le=1)


def listed(object_ids: Sequence[str]) -> tuple[SearchResultItem, ...]:
    """Return results of which no more is known than their order; their ids are ids, each once."""
    return tuple(
        [
            trusted(SearchResultItem, object_id=object_id, position=position)
            for position, object_id in enumerate(object_ids, start=1)
        ]
    )


class SessionEvent(BaseModel):
    """Something a user did with one object.

    ``event_id`` makes an event sent twice count once; without one it is derived from the other
    fields, so two equal clicks within one second are one. ``created_at`` is now where it lies ahead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    session_id: Id
    object_id: Id
    event_type: Text = Field(default="click", min_length=1, max_length=64)
    created_at: int = Field(default_factory=utc_timestamp, ge=0)
    event_id: str = Field(default="", max_length=MAX_ID_LENGTH)
    meta: Json | None = None

    @model_validator(mode="after")
    def _name_the_event(self) -> Self:
        if self.event_id:
            check_id(self.event_id, "event_id")
        else:
            named = name_of_event(self.session_id, self.object_id, self.event_type, self.created_at)
            object.__setattr__(self, "event_id", named)
        object.__setattr__(self, "created_at", not_ahead(self.created_at))
        return self


def check_kind(given: object, kind: type[BaseModel], what: str) -> None:
    """Return if something is what it should be.

    Raises:
        InvalidInputError: it is not; the message begins with ``what``.
    """
    if not isinstance(given, kind):
        raise InvalidInputError(f"{what} is {shown(given)}, a {type(given).__name__}; give a {kind.__name__}")


def name_of_event(session_id: str, object_id: str, event_type: str, created_at: int) -> str:
    """Return the id of an event that was given none."""
    told = "\x1f".join((session_id, object_id, event_type, str(created_at)))
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def not_ahead(at: int, *, before: int = 0) -> int:
    """Return a time; now for one ahead, for it has come: a wrong clock would put it last for years."""
    return now - before if at > (now := utc_timestamp()) else at


class SearchOptions(TypedDict, total=False):
    """What a search may ask for by keyword; ``SearchRequest`` has the defaults."""

    limit: int
    offset: int
    max_distance: float | None
    filter: PayloadFilter | Mapping[str, Any] | None
    sort_by: SortBy | Mapping[str, str] | None
    exploration_ratio: float | None


def _describe_recorded(schema: dict[str, Any]) -> None:
    """Let a JSON schema say what a recorded request is, which the service answers: nothing is open in it."""
    schema["description"] = (
        "What a search asked for beside its query, kept so that it can be ranked again.\n\n"
        "Attributes:\n"
        "    filter: as it is sent over HTTP; ``PayloadFilter.parse`` reads it.\n"
        "    sort_by: a payload field, and the direction.\n"
        "    settings: fingerprint of the settings in force; where it is equal, so is what they "
        "do to a ranking."
    )
    schema["required"] = ["limit"]
    del schema["properties"]["limit"]["default"]
    schema["properties"]["exploration_ratio"] = {
        "type": "number",
        "title": "Exploration Ratio",
        "default": 0.0,
    }


class SearchRequest(BaseModel):
    """What a search asks for beside its query: over HTTP, on the command line, in Python, and in the log.

    ``SearchService.rank_again`` ranks the page of a recorded one again. ``check`` looks at its bounds, and
    nothing does when it is made: what was recorded can be read whatever the bounds are by then.

    Attributes:
        limit: results on the page.
        offset: results before the page.
        max_distance: inclusive; of the distance that results are ranked by.
        filter: as it is sent over HTTP; a ``PayloadFilter`` may be given.
        sort_by: reorders all within ``max_distance``, or the nearest ``search.SORT_WINDOW``. Numbers stand
            before texts, objects without a value last, equal ones by distance. Such a page does not explore.
        exploration_ratio: share of a personalised page's slots that show the plain search's next result;
            None: the service's own, which is what is recorded then.
        settings: fingerprint of the settings in force, set when it is recorded; where it is equal, so is
            what they do to a ranking.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_describe_recorded)

    limit: int = DEFAULT_LIMIT
    offset: int = 0
    max_distance: float | None = None
    filter: dict[str, Any] | None = None
    sort_by: SortBy | None = None
    exploration_ratio: float | None = None
    settings: str = ""

    @field_validator("filter", mode="before")
    @classmethod
    def _as_sent(cls, given: Any) -> Any:
        return given.as_sent() if isinstance(given, PayloadFilter) else given

    @field_validator("sort_by", mode="before")
    @classmethod
    def _as_pair(cls, given: Any) -> Any:
        """Return a pair for what is sent over HTTP, ``{"field": "price", "order": "asc"}``, or logged."""
        if isinstance(given, list):  # as JSON has it
            return tuple(given)
        if not isinstance(given, Mapping):
            return given
        if given.keys() - {"field", "order"} or "field" not in given:
            raise ValueError('it has the keys "field" and "order"')
        order = given.get("order", "asc")
        return given["field"], _DIRECTIONS.get(order, order) if isinstance(order, str) else order

    @property
    def payload_filter(self) -> PayloadFilter | None:
        """The filter, parsed.

        Raises:
            InvalidFilterError: it is none.
        """
        return None if self.filter is None else PayloadFilter.parse(self.filter)

    def having(self, **options: Unpack[SearchOptions]) -> Self:
        """Return this request with other options.

        Raises:
            InvalidInputError: one is of another type.

        >>> SearchRequest(limit=5).having(offset=5).limit
        5
        """
        if unknown := options.keys() - SearchOptions.__annotations__.keys():
            raise TypeError(
                f"a search has no option {', '.join(sorted(unknown))}; "
                f"there are {', '.join(SearchOptions.__annotations__)}"
            )
        changed: dict[str, Any] = dict(options)
        try:
            return self.model_validate(dict(self) | changed) if changed else self
        except ValidationError as error:
            [problem, *_] = error.errors()
            name = str(problem["loc"][0])
            raise InvalidInputError(
                f"{name} is {shown(changed[name])}; {problem['msg'].removeprefix('Value error, ')}"
            ) from error

    def check(self) -> None:
        """Return if a service may be asked for this.

        Raises:
            InvalidInputError: an option is out of bounds.
        """
        if not 1 <= self.limit <= MAX_LIMIT:
            raise InvalidInputError(f"limit is {self.limit}; ask for 1 to {MAX_LIMIT} results")
        if self.offset < 0 or self.offset + self.limit > MAX_REACH:
            raise InvalidInputError(
                f"offset is {self.offset} and limit {self.limit}; pages lie between 0 and {MAX_REACH}, "
                "so narrow the search by a filter or max_distance"
            )
        if self.max_distance is not None and not math.isfinite(self.max_distance):
            raise InvalidInputError(
                f"max_distance is {self.max_distance}; give a finite number, or leave it out"
            )
        if self.exploration_ratio is not None and not 0 <= self.exploration_ratio <= 1:
            raise InvalidInputError(
                f"exploration_ratio is {self.exploration_ratio}; give a share from 0 to 1"
            )
        if self.sort_by is not None:
            _check_sort(self.sort_by)


_DIRECTIONS = {"asc": "ascending", "desc": "descending"}


def _check_sort(given: SortBy) -> None:
    if len(given) != 2 or given[1] not in _DIRECTIONS.values():
        raise InvalidInputError(
            f"sort_by is {shown(given)}; give a payload field and 'ascending' or 'descending'"
        )
    try:
        check_field(given[0])
    except ValueError as error:
        raise InvalidInputError(f"sort_by is {shown(given)}; {error}") from error


class FurtherPage(BaseModel):
    """A page that a session showed after its first, kept so that it can be ranked again.

    Attributes:
        request: of the search that showed it.
        created_at: UTC seconds of that search.
        object_ids: what it showed; of one that is recorded, what its session showed there for the first time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: SearchRequest
    created_at: int = Field(ge=0)
    object_ids: tuple[Id, ...] = ()


def pages_with(
    there: Sequence[FurtherPage], given: Iterable[FurtherPage], new: AbstractSet[str]
) -> tuple[FurtherPage, ...]:
    """Return the pages of a session after further ones; a page that shows nothing new is left out.

    Args:
        new: what the session has not shown so far.
    """
    pages, left = list(there), set(new)
    for page in given:
        first_shown = tuple(object_id for object_id in page.object_ids if object_id in left)
        if first_shown:
            pages.append(page.model_copy(update={"object_ids": first_shown}))
            left.difference_update(first_shown)
    return tuple(pages)


class Session(BaseModel):
    """One query and the results shown for it, in order.

    Attributes:
        created_at: UTC seconds; where it lies ahead, a second ago, so that searches of a right clock that
            come in the same second are the later ones.
        request: of the search that recorded the session; None where another system searched.
        pages: those after the first that showed something new, in the order in which they were shown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    session_id: Id
    search_query: Text = ""
    user_id: Id | None = None
    created_at: int = Field(default_factory=utc_timestamp, ge=0)
    collection: Id = DEFAULT_COLLECTION
    search_results: tuple[SearchResultItem, ...] = ()
    search_meta: Json | None = None
    request: SearchRequest | None = None
    pages: tuple[FurtherPage, ...] = ()
    is_irrelevant: bool = False
    events: tuple[SessionEvent, ...] = ()

    @model_validator(mode="after")
    def _number_the_results(self) -> Self:
        if any(result.position is None for result in self.search_results):
            numbered = tuple(
                result
                if result.position is not None
                else trusted(SearchResultItem, **vars(result) | {"position": slot})
                for slot, result in enumerate(self.search_results, start=1)
            )
            object.__setattr__(self, "search_results", numbered)
        object.__setattr__(self, "created_at", not_ahead(self.created_at, before=1))
        return self

    @property
    def duration_seconds(self) -> int:
        """Seconds from the search to the last event that counts; 0 without one, or if it is dated before."""
        latest = max((each.created_at for each in self.events if self.counts(each)), default=self.created_at)
        return max(latest - self.created_at, 0)

    def as_further_pages(self) -> list[FurtherPage]:
        """Return the pages that this session adds to one of the same id that is recorded already."""
        if self.request is None:
            return list(self.pages)
        shown = tuple(result.object_id for result in self.search_results)
        again = FurtherPage(request=self.request, created_at=self.created_at, object_ids=shown)
        return [*self.pages, again]

    def shown_before(self, offset: int, page: int | None = None) -> set[str]:
        """Return what was shown at the positions up to ``offset``.

        Args:
            page: by the pages before this one, of which 0 is the first; None: by all.
        """
        later = () if page is None else self.pages[max(page - 1, 0) :]
        not_yet = {object_id for each in later for object_id in each.object_ids}
        return {
            result.object_id
            for result in self.search_results
            if result.position is not None and result.position <= offset and result.object_id not in not_yet
        }

    def counts(self, event: SessionEvent) -> bool:
        """Return whether an event is not dated so long before its search that one of the times is wrong."""
        return event.created_at >= self.created_at - CLOCK_SECONDS

    def clicked(self, weights: Mapping[str, float] = DEFAULT_EVENT_WEIGHTS) -> dict[str, float]:
        """Return the objects that some event speaks for, each with its weightiest event's weight (> 0)."""
        clicked: dict[str, float] = {}
        for event in self.events:
            weight = weights.get(event.event_type, 0.0) if self.counts(event) else 0.0
            if weight > clicked.get(event.object_id, 0.0) and math.isfinite(weight):
                clicked[event.object_id] = weight
        return clicked


@dataclass(frozen=True, slots=True, eq=False)
class RecordedSession:
    """A session with the vectors of its query.

    Attributes:
        query_vectors: [Q, D] float32; None where the query is not embedded yet.
        sender: by which key it came; empty: by none that is known.
    """

    session: Session
    query_vectors: NDArray[np.float32] | None = None
    sender: str = ""


class SessionDisposition(StrEnum):
    """What became of a session that was sent."""

    RECORDED = "recorded"
    CONTINUED = "continued"  # it was there; what it shows for the first time and new events were added
    TAKEN = "taken"  # its id is that of another user's, query's or collection's; nothing was stored


class EventDisposition(StrEnum):
    """What became of an event that was sent."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"  # not stored: it is there already
    CONFLICT = "conflict"  # not stored: its id is that of an event of another type, or on another object
    WAITING = "waiting"  # stored for a day, to be joined to its session when that is recorded
    UNKNOWN_SESSION = "unknown_session"  # not stored: nothing to join it to, and no room to wait
    TOO_EARLY = "too_early"  # stored but not learnt from: dated more than a minute before its search
    UNKNOWN_TYPE = "unknown_type"  # stored but not learnt from: EVENT_WEIGHTS does not have its type
    UNKNOWN_OBJECT = "unknown_object"  # stored but not learnt from: it was not among the results shown


class Recording(NamedTuple):
    """What became of a session that was sent, and of each event that came with it; of none if it is taken."""

    disposition: SessionDisposition
    events: tuple[EventDisposition, ...] = ()


def disposition_of_type(
    became: EventDisposition, event_type: str, weights: Mapping[str, float]
) -> EventDisposition:
    """Return what to tell of an event: one that is accepted may be of an unknown type."""
    is_unknown = became is EventDisposition.ACCEPTED and event_type not in weights
    return EventDisposition.UNKNOWN_TYPE if is_unknown else became


ANONYMOUS = "the session is anonymous: there is no user whose results could change"
"""Why nothing is learnt from a session without a user."""


class SessionForImprovementStatus(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    DONE = "done"
    FAILED = "failed"  # attempts used up; can be retried by hand
    REFUSED = "refused"  # nothing to learn from it; ``detail`` says why


class SessionForImprovementCreateSchema(BaseModel):
    """A wish to learn from one session."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    session_id: Id


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
