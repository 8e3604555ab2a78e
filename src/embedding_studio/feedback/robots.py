"""Whose sessions are a robot's: nothing is learnt from any of them, with the reason (``Improver``).

Each rule asks for what no user of a real log came near to. Of the 19,013 users of half of Best Buy's log none
clicked in more than 6 searches within an hour, nor one object for more than 2 different queries; of 56,477
result pages of Yandex's, 3 % had more than half of their ten results clicked, and 1 % at least eight.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256

from embedding_studio.domain.sessions import RecordedSession, Session

MOST_AN_HOUR = 240
"""Searches with clicks: one every fifteen seconds."""
HOUR_SECONDS = 3_600

ENOUGH_PAGES = 10
SMALLEST_PAGE = 3
CLICKED_SHARE = 0.8
"""Of a page's results; whoever clicked so many preferred none."""

ENOUGH_QUERIES = 20
SAME_SHARE = 0.9

MOST_KEYS_TOLD = 2


def reason_to_quarantine(
    recorded: Sequence[RecordedSession], weights: Mapping[str, float], times: Sequence[int], *, after: int
) -> str | None:
    """Return why a user's sessions are a robot's; None if they are not.

    Args:
        recorded: those that would count.
        weights: how much an event of each type says; one of weight 0 is no click.
        times: UTC seconds of sessions that count or counted, ``MOST_AN_HOUR`` more than would count.
        after: UTC seconds; a person has looked at what was up to then.
    """
    clicked = [
        (each, set(each.session.clicked(weights))) for each in recorded if each.session.created_at > after
    ]
    clicked = [(each, ids) for each, ids in clicked if ids]
    why = (
        _floods(sorted(at for at in times if at > after))
        or _clicks_everything([(each.session, ids) for each, ids in clicked])
        or _clicks_one_object(clicked)
    )
    return why and why + _by_which_keys([each for each, _ in clicked])


def _floods(times: Sequence[int]) -> str | None:
    for first, last in zip(times, times[MOST_AN_HOUR:], strict=False):
        if last - first < HOUR_SECONDS:
            return f"clicks in more than {MOST_AN_HOUR} searches within an hour"
    return None


def _clicks_everything(clicked: Sequence[tuple[Session, set[str]]]) -> str | None:
    pages = [({result.object_id for result in session.search_results}, ids) for session, ids in clicked]
    pages = [(shown, ids) for shown, ids in pages if len(shown) >= SMALLEST_PAGE]
    whole = sum(len(shown & ids) >= CLICKED_SHARE * len(shown) for shown, ids in pages)
    if whole < ENOUGH_PAGES or 2 * whole < len(pages):
        return None
    return f"clicks on all that was shown, or nearly all, in {whole} of {len(pages)} searches"


def _clicks_one_object(clicked: Sequence[tuple[RecordedSession, set[str]]]) -> str | None:
    sessions_of = Counter(object_id for _, ids in clicked for object_id in ids)
    for object_id, number in sessions_of.most_common(1):
        queries = {_query(each) for each, ids in clicked if object_id in ids}
        if len(queries) >= ENOUGH_QUERIES and number >= SAME_SHARE * len(clicked):
            return f"clicks on one object for each of {len(queries)} different queries"
    return None


def _by_which_keys(clicked: Sequence[RecordedSession]) -> str:
    """Return by which keys sessions came: a stolen one may have made them up."""
    senders = Counter(each.sender for each in clicked if each.sender)
    told = [f"{number:,} by the key {sender}" for sender, number in senders.most_common(MOST_KEYS_TOLD)]
    return f" (of those that count {' and '.join(told)})" if told else ""


def _query(recorded: RecordedSession) -> str:
    """Return what is equal for equal queries: their text, or, where they have none, their vectors."""
    text = " ".join(recorded.session.search_query.casefold().split())
    vectors = recorded.query_vectors
    return text if text or vectors is None else sha256(vectors.tobytes()).hexdigest()
