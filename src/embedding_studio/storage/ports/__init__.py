"""What the product needs of its storage, a file an owner.

collections  names                     objects     the base index, which knows no user
clickstream  the log                   personal    state: own vectors, query memory, votes
queue        whose state is stale      orders      the journal
quarantine   who is not learnt from    keys        API keys
storage      a storage as a whole      vectors     their type

Two implementations keep this promise and pass one contract suite (``tests/contract``): ``postgres`` (the
product) and ``memory`` (its twin, for tests and for evaluation). Every method that writes is one transaction.
Originals are written by ``BaseIndex`` alone, personal state by ``LearningTransaction`` alone.

A method that takes a ``Collection`` takes what ``Collections.get`` returned; it may be kept, for
its number never changes (its ``gate_threshold`` and ``own_past`` may). Methods that take a name resolve
aliases.
"""

from embedding_studio.storage.ports.clickstream import (
    ORDER_ON,
    WAITING_EVENTS,
    WAITING_EVENTS_OF_SESSION,
    WAITING_SECONDS,
    Clickstream,
    EventContent,
    Removed,
    SessionOwner,
    admit,
    require_shown,
    room_of,
)
from embedding_studio.storage.ports.collections import Collections, OutdatedError
from embedding_studio.storage.ports.keys import Keys, require_active
from embedding_studio.storage.ports.objects import (
    RECALL_TARGET,
    WIDEST_MARGIN,
    BaseIndex,
    CodesInfo,
    check_margin,
)
from embedding_studio.storage.ports.orders import MAX_DETAIL_LENGTH, OrderOutcome, Orders, PassedOver
from embedding_studio.storage.ports.personal import (
    MOST_HALF_LIVES,
    NOTHING_NAMED,
    SHARED_HALF_LIFE,
    SHARED_QUERIES,
    SHARED_VOTES,
    LearningTransaction,
    Personal,
)
from embedding_studio.storage.ports.quarantine import Quarantine, QuarantineDecision, QuarantinedUser
from embedding_studio.storage.ports.queue import (
    LONGEST_OUTAGE_WAIT_SECONDS,
    Claim,
    Queue,
    QueueEntry,
    QueueInfo,
)
from embedding_studio.storage.ports.storage import (
    LOCK_SECONDS,
    POOL_SIZE,
    STATEMENT_SECONDS,
    Backend,
    Storage,
    StorageParts,
    Vitals,
)
from embedding_studio.storage.ports.vectors import Vectors

__all__ = [
    "LOCK_SECONDS",
    "LONGEST_OUTAGE_WAIT_SECONDS",
    "MAX_DETAIL_LENGTH",
    "MOST_HALF_LIVES",
    "NOTHING_NAMED",
    "ORDER_ON",
    "POOL_SIZE",
    "RECALL_TARGET",
    "SHARED_HALF_LIFE",
    "SHARED_QUERIES",
    "SHARED_VOTES",
    "STATEMENT_SECONDS",
    "WAITING_EVENTS",
    "WAITING_EVENTS_OF_SESSION",
    "WAITING_SECONDS",
    "WIDEST_MARGIN",
    "Backend",
    "BaseIndex",
    "Claim",
    "Clickstream",
    "CodesInfo",
    "Collections",
    "EventContent",
    "Keys",
    "LearningTransaction",
    "OrderOutcome",
    "Orders",
    "OutdatedError",
    "PassedOver",
    "Personal",
    "Quarantine",
    "QuarantineDecision",
    "QuarantinedUser",
    "Queue",
    "QueueEntry",
    "QueueInfo",
    "Removed",
    "SessionOwner",
    "Storage",
    "StorageParts",
    "Vectors",
    "Vitals",
    "admit",
    "check_margin",
    "require_active",
    "require_shown",
    "room_of",
]
