"""A client of the HTTP service, for programs and for the command line: ``Client`` and ``AsyncClient``.

calls     what can be asked          answers   what is answered
service   address, key, retries      failures  what went wrong, as an error of the library
clients   both clients

It imports httpx and little else: no numpy, no model, no driver of a database.
"""

from embedding_studio.client.answers import (
    BentAnswer,
    CollectionInfo,
    EventReceipt,
    Forgotten,
    FoundObject,
    FoundPage,
    Indexed,
    Moved,
    PayloadsReplaced,
    Ranked,
    RankedAnswer,
    Readiness,
    SearchIndexInfo,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovement,
    SessionReceipt,
    StoredObject,
)
from embedding_studio.client.clients import AsyncClient, Client

__all__ = [
    "AsyncClient",
    "BentAnswer",
    "Client",
    "CollectionInfo",
    "EventReceipt",
    "Forgotten",
    "FoundObject",
    "FoundPage",
    "Indexed",
    "Moved",
    "PayloadsReplaced",
    "Ranked",
    "RankedAnswer",
    "Readiness",
    "SearchIndexInfo",
    "SearchResultItem",
    "Session",
    "SessionEvent",
    "SessionForImprovement",
    "SessionReceipt",
    "StoredObject",
]
