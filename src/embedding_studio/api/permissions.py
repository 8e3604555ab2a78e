"""What a caller may touch: what is its user's, in its collections; not whether there is more."""

from collections.abc import Iterable
from dataclasses import replace

from embedding_studio.api.guard import USER_TOKEN_HEADER, Caller, Refused
from embedding_studio.bootstrap import Context
from embedding_studio.errors import CollectionNotFoundError, SessionNotFoundError
from embedding_studio.importing import NO_SUCH_SEARCH
from embedding_studio.logs import Entry, Event, Left, Placed, Search
from embedding_studio.logs.joining import MADE, made_search
from embedding_studio.storage.ports import Collections


def user_of(caller: Caller, given: str | None) -> str | None:
    """Return for which user a request is: the one that it names, or else that of the caller's token.

    Raises:
        Refused: 401, it names one and there is no token; 403, the token is another's.
    """
    if not caller.is_one_user or given == caller.user_id:
        return given
    if given is None:
        return caller.user_id
    if caller.user_id is None:
        raise Refused(
            401,
            f"this key speaks for a user only with the user's token; send it as {USER_TOKEN_HEADER}, or "
            "leave the user out",
            reason="user_token",
        )
    raise Refused(
        403,
        f"the token in {USER_TOKEN_HEADER} is of another user than the request; send that user's, or leave "
        "the user out",
        reason="user",
    )


def require_collection(context: Context, caller: Caller, name: str) -> None:
    """Return if the caller may use what a name stands for.

    Raises:
        Refused: 403.
    """
    if not may_use(context.storage.collections, caller, name):
        raise Refused(
            403,
            f"this key is for the collections {', '.join(map(repr, caller.collections))} alone",
            reason="collection",
        )


def may_use(collections: Collections, caller: Caller, name: str) -> bool:
    """Return whether a name stands for one of the caller's collections: an alias is the same one."""
    if not caller.collections or name in caller.collections:
        return True
    wanted = _resolved(collections, name)
    return wanted is not None and wanted in {_resolved(collections, each) for each in caller.collections}


def check_new(caller: Caller, session_id: str | None) -> None:
    """Return if a session may be registered under an id.

    One that is derived of another's user, text and time would tell by a conflict that it was searched.

    Raises:
        Refused: 403.
    """
    if caller.is_bound and session_id is not None and session_id.startswith(MADE):
        raise Refused(
            403, f"session ids that begin with {MADE} are the service's own; give another", reason="session"
        )


def own_sessions(context: Context, caller: Caller, session_ids: Iterable[str]) -> dict[str, bool]:
    """Return of sessions that are there whether they are the caller's own."""
    collections = context.storage.collections
    owners = context.storage.clickstream.owners(set(session_ids))
    allowed = {
        name: may_use(collections, caller, name) for name in {each.collection for each in owners.values()}
    }
    return {
        session_id: allowed[owner.collection] and (not caller.is_one_user or owner.user_id == caller.user_id)
        for session_id, owner in owners.items()
    }


def require_session(context: Context, caller: Caller, session_id: str) -> None:
    """Return if a session is one that the caller may touch.

    Raises:
        SessionNotFoundError: it is another's, or there is none; which of both is not said.
    """
    if caller.is_bound and not own_sessions(context, caller, [session_id]).get(session_id):
        raise SessionNotFoundError(f"no session {session_id!r} of this caller was registered")


def own_entries(context: Context, caller: Caller, entries: Iterable[Placed]) -> list[Placed]:
    """Return what another system's rows say, as far as it is of the caller's own user and sessions.

    Rows without a user are of the token's. An event whose search is another's is left out as one whose
    search is unknown; so is one that would wait for its search, which may become another's.
    """
    told = list(entries)
    if not caller.is_bound:
        return told
    of_user = [(place, _of_user(caller, entry)) for place, entry in told]
    for _, entry in of_user:
        if isinstance(entry, Search) or (isinstance(entry, Event) and entry.query is not None):
            check_new(caller, entry.search_id)
    brought = {entry.search_id for _, entry in of_user if isinstance(entry, Search)}
    named = {entry.search_id for _, entry in of_user if isinstance(entry, Event)}
    is_own = own_sessions(context, caller, [each for each in named if each is not None])
    kept: list[Placed] = []
    for place, entry in of_user:
        made = None
        is_known = not isinstance(entry, Event) or entry.search_id in {None, *brought}
        if isinstance(entry, Event) and entry.search_id is not None:
            is_known = is_own.get(entry.search_id, is_known)
            made = None if is_known or entry.search_id in is_own else made_search(entry)
        if made is not None:
            kept.append((place, made))
            brought.add(made.search_id)
        kept.append((place, entry if is_known or made is not None else Left(NO_SUCH_SEARCH)))
    return kept


def _of_user(caller: Caller, entry: Entry | Left) -> Entry | Left:
    if isinstance(entry, Search | Event):
        return replace(entry, user_id=user_of(caller, entry.user_id))
    return entry


def _resolved(collections: Collections, name: str) -> str | None:
    try:
        return collections.get(name).name
    except CollectionNotFoundError:
        return None
