import pytest
from pydantic import ValidationError

from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.sessions import SearchResultItem, Session, SessionEvent, get_result_position
from embedding_studio.feedback.selection import TOO_EARLY, SessionSelection, refusal_by


def session_of(
    *events: tuple[str, str, int], user_id: str | None = "ann", is_irrelevant: bool = False
) -> Session:
    """Return a session that began at 100 s; an event is (object, type, time)."""
    return Session(
        session_id="s",
        user_id=user_id,
        created_at=100,
        search_results=tuple(SearchResultItem(object_id=f"o{i}") for i in range(12)),
        is_irrelevant=is_irrelevant,
        events=tuple(
            SessionEvent(session_id="s", object_id=object_id, event_type=kind, created_at=at)
            for object_id, kind, at in events
        ),
    )


CLICK = ("o1", "click", 100)
ELEVEN_CLICKS = tuple((f"o{i}", "click", 105) for i in range(11))
HUNDRED_VIEWS = tuple((f"o{i % 12}", "view", 101 + i) for i in range(100))


@pytest.mark.parametrize(
    ("session", "says"),
    [
        (session_of(), "no clicks: the session has no events"),
        (session_of(*HUNDRED_VIEWS), "no clicks: the session has only view"),
        (session_of(("o1", "misspelt", 105)), "only misspelt"),
        (session_of(("o1", "taken_back", 105)), "what was clicked was taken back"),
        (session_of(*HUNDRED_VIEWS, ("o1", "taken_back", 105)), "what was clicked was taken back"),
        (session_of(*ELEVEN_CLICKS), "too many clicks: 11 objects, more than 10"),
        (session_of(CLICK, user_id=None), "anonymous"),
        (session_of(CLICK, is_irrelevant=True), "irrelevant"),
    ],
)
def test_a_session_from_which_nothing_can_be_learnt_is_refused_with_the_reason(session, says):
    selection = SessionSelection()

    assert says in selection.refusal(session)
    assert not selection(session)


@pytest.mark.parametrize(
    "session",
    [
        session_of(CLICK),
        session_of(*ELEVEN_CLICKS[:10]),
        session_of(*HUNDRED_VIEWS, CLICK),
        session_of(*[("o1", "click", 100 + i) for i in range(30)]),
        session_of(("o1", "purchase", 100)),
    ],
    ids=["one quick click", "ten clicks", "a click among views", "one object over and over", "a purchase"],
)
def test_a_session_with_a_clear_preference_counts(session):
    assert SessionSelection().refusal(session) is None
    assert SessionSelection()(session)


@pytest.mark.parametrize(("last_event_at", "counts"), [(109, False), (110, True)])
def test_a_session_shorter_than_the_setting_is_a_bounce(last_event_at, counts):
    session = session_of(CLICK, ("o2", "view", last_event_at))

    selection = SessionSelection(min_session_seconds=10)

    assert selection(session) is counts
    assert counts or "too short: 9 s" in selection.refusal(session)


def test_event_types_count_as_their_weights_say():
    session = session_of(("o1", "view", 100), ("o2", "like", 100))

    assert SessionSelection(event_weights={"like": 0.5})(session)
    assert not SessionSelection(event_weights={"click": 1.0})(session)


@pytest.mark.parametrize("wrong", [{"min_session_seconds": -1}, {"max_clicks": 0}, {"min_seconds": 5}])
def test_a_selection_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValidationError):
        SessionSelection(**wrong)


def test_the_filter_of_the_reference_page_runs_as_it_is_written():
    def should_use_session_for_improvement(session):
        # Skip sessions with no clicks
        if len(session.events) == 0:
            return False
        # Skip very short sessions (possibly bounces)
        if session.duration_seconds < 10:
            return False
        # Skip ambiguous sessions (too many clicks without clear preference)
        if len(session.events) > 10:
            return False
        # Prioritize sessions with clicks on lower-ranked results
        # (These indicate potential ranking issues)
        for event in session.events:
            result_position = get_result_position(session, event.object_id)
            if result_position > 3:  # Clicked something not in top 3
                return True
        return True  # Default: use session

    counts = session_of(("o5", "click", 110))

    assert refusal_by(should_use_session_for_improvement, counts) is None
    for refused in (session_of(), session_of(CLICK), session_of(*ELEVEN_CLICKS, ("o1", "click", 120))):
        assert refusal_by(should_use_session_for_improvement, refused) == (
            "the session filter 'should_use_session_for_improvement' refused it"
        )
    assert refusal_by(SessionSelection(), session_of()) == SessionSelection().refusal(session_of())


@pytest.mark.parametrize(("seconds", "refusal"), [(0, None), (-3, None), (-60, None), (-61, TOO_EARLY)])
def test_a_click_dated_up_to_a_minute_before_its_search_counts_as_at_it(seconds, refusal):
    click = SessionEvent(session_id="s", object_id="a", created_at=1_000_000 + seconds)
    session = Session(session_id="s", user_id="ada", created_at=1_000_000, events=(click,))

    assert SessionSelection().refusal(session) == refusal
    assert session.duration_seconds == 0


def test_what_is_dated_ahead_is_of_now():
    before = utc_timestamp()
    session = Session(session_id="s", created_at=99_999_999_000)
    event = SessionEvent(session_id="s", object_id="a", created_at=99_999_999_000)
    again = SessionEvent(session_id="s", object_id="a", created_at=99_999_999_000)

    assert before - 1 <= session.created_at < event.created_at <= utc_timestamp()
    assert event.event_id == again.event_id  # made of what was sent
