"""Which sessions are learnt from. Any callable from session to bool can stand in for it."""

from collections.abc import Mapping
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from embedding_studio.domain.sessions import (
    ANONYMOUS,
    CLOCK_SECONDS,
    DEFAULT_EVENT_WEIGHTS,
    TAKEN_BACK,
    Session,
)

MIN_SESSION_SECONDS = 0
MAX_CLICKS = 10

IRRELEVANT = "the session was marked irrelevant"
TOO_EARLY = (
    f"no clicks: its events are dated more than {CLOCK_SECONDS} s before the search; are the clocks right?"
)
NO_EVENTS = "no clicks: the session has no events"
WAS_TAKEN_BACK = "what was clicked was taken back"


class SessionFilter(Protocol):
    """Says of a session whether it is learnt from."""

    def __call__(self, session: Session, /) -> bool: ...


class SessionSelection(BaseModel):
    """The session filter that is used unless a plugin brings its own.

    Attributes:
        min_session_seconds: from the search to the last event; a shorter session counts as a bounce.
        max_clicks: different objects that some event speaks for; with more the preference is unclear.
        event_weights: how much an event of each type says; one of weight 0 is no click.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_session_seconds: int = Field(default=MIN_SESSION_SECONDS, ge=0)
    max_clicks: int = Field(default=MAX_CLICKS, ge=1)
    event_weights: Mapping[str, float] = DEFAULT_EVENT_WEIGHTS

    def __call__(self, session: Session, /) -> bool:
        return self.refusal(session) is None

    def refusal(self, session: Session) -> str | None:
        """Return why nothing is learnt from a session; None if it counts."""
        if session.user_id is None:
            return ANONYMOUS
        if session.is_irrelevant:
            return IRRELEVANT
        clicks = len(session.clicked(self.event_weights))
        if clicks == 0:
            return _no_clicks(session)
        if clicks > self.max_clicks:
            return f"too many clicks: {clicks} objects, more than {self.max_clicks}, so none is preferred"
        if session.duration_seconds < self.min_session_seconds:
            return (
                f"too short: {session.duration_seconds} s from search to last event, "
                f"fewer than {self.min_session_seconds} s"
            )
        return None


def _no_clicks(session: Session) -> str:
    kinds = sorted({event.event_type for event in session.events})
    if not kinds:
        return NO_EVENTS
    if TAKEN_BACK in kinds:
        return WAS_TAKEN_BACK
    if not any(map(session.counts, session.events)):
        return TOO_EARLY
    return f"no clicks: the session has only {', '.join(kinds)}, which say nothing of an object"


def refusal_by(session_filter: SessionFilter, session: Session) -> str | None:
    """Return why a filter of any kind refuses a session; None if the session counts."""
    if isinstance(session_filter, SessionSelection):
        return session_filter.refusal(session)
    if session_filter(session):
        return None
    name = getattr(session_filter, "__name__", type(session_filter).__name__)
    return f"the session filter {name!r} refused it"
