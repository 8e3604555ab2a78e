"""What is kept about one user, as it is handed to them, and what is left when they are forgotten."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from embedding_studio.domain.objects import Collection, PersonalState
from embedding_studio.domain.storable import as_json
from embedding_studio.errors import CollectionNotFoundError, OrderNotFoundError
from embedding_studio.logs import session_row
from embedding_studio.storage.ports import Storage

MOST_COLLECTIONS = 1_000_000

BEYOND = (
    "backups written before: forget the user again after restoring one",
    "what PostgreSQL keeps of removed rows: in files until it vacuums, in statistics until it analyses",
    "events whose search is not recorded yet: they name no user, and are dropped after a day",
    "what others keep: your own logs and those of your proxy",
)
"""What forgetting a user does not reach."""


def exported(storage: Storage, user_id: str) -> Iterator[bytes]:
    """Yield lines of JSON: all that is kept about a user, each with its ``kind``.

    A ``session`` is what was searched, shown and done, as ``export --sessions`` writes it, and by which key
    it came; an ``order`` what
    became of it; a ``quarantine`` why nothing is learnt from them, or that they were released; a ``memory``,
    a ``vectors`` and a ``vote`` are what was learnt from them in a collection.
    """
    for recorded in storage.clickstream.scan(user_id=user_id):
        sender = {"sender": recorded.sender} if recorded.sender else {}
        yield _line("session", {**session_row(recorded, vectors=True), **sender})
        try:
            order = storage.orders.get(recorded.session.session_id)
        except OrderNotFoundError:
            continue
        yield _line("order", order.model_dump(mode="json"))
    for decision in storage.quarantine.decisions([user_id]).values():
        yield _line("quarantine", asdict(decision))
    for found in storage.quarantine.list(user_id=user_id, limit=MOST_COLLECTIONS):
        if found.collection is not None:
            yield _line("quarantine", asdict(found))
    for collection in storage.collections.list():
        try:
            state = storage.personal.state(collection, user_id)
        except CollectionNotFoundError:
            continue  # dropped since
        yield from _learnt(collection, state)


def _learnt(collection: Collection, state: PersonalState) -> Iterator[bytes]:
    name = {"collection": collection.name}
    for memory in state.memories:
        yield _line("memory", name | asdict(memory))
    for object_id, parts in state.vectors.items():
        yield _line("vectors", name | {"object_id": object_id, "parts": parts})
    for vote in state.votes:
        yield _line("vote", name | asdict(vote))


def _line(kind: str, row: Mapping[str, Any]) -> bytes:
    return as_json({"kind": kind, **row}) + b"\n"
