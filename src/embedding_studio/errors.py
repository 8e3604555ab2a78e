"""Everything that this package raises on purpose.

    EmbeddingStudioError
    ├── InvalidInputError (ValueError)          the caller can mend it
    │   ├── InvalidVectorsError                 shape, finiteness, zero vectors
    │   ├── InvalidFilterError                  a payload filter that means nothing
    │   ├── InvalidSettingError                 a setting that cannot work
    │   └── InvalidDataError                    a catalogue or collection file that cannot be read
    ├── NotFoundError (LookupError)
    │   ├── CollectionNotFoundError
    │   ├── SessionNotFoundError
    │   ├── OrderNotFoundError
    │   └── KeyNotFoundError
    ├── ConflictError (ValueError)              it exists already, or its state forbids the wish
    ├── SessionRefusedError (ValueError)        why nothing is learnt from one session
    ├── StorageError (RuntimeError)
    │   ├── StorageUnavailableError             the database cannot be reached
    │   │   ├── AttachedUnavailableError        the store that a collection is attached to fails
    │   │   ├── StorageTimeoutError             it gave up on a statement, or on waiting for a lock
    │   │   └── StorageNotWritableError         its disk is full, or it is read-only
    │   └── UnsupportedDatabaseError            no pgvector, too old, or a processor it does not run on
    ├── AbandonedError (RuntimeError)           no caller waits for the answer any more
    ├── EmbeddingError (RuntimeError)           an embedder is absent or failed
    │   ├── EmbedderUnavailableError            it does not answer, or not in time; it may later
    │   └── PartTooLongError                    it reads shorter parts, which it splits texts into from now on
    ├── ServiceError (RuntimeError)             what a client asked failed, or its answer cannot be read
    │   ├── ServiceUnavailableError             it cannot be reached, or cannot serve just now
    │   ├── TooManyRequestsError                this key or user asks more often than it allows
    │   └── AccessDeniedError                   the key or the user's token is missing, wrong, or for less
    └── PluginError (ImportError)

The HTTP status of each stands in one table, in ``api/app.py``.
"""

import re
from collections.abc import Mapping
from typing import Any

SHOWN_CHARACTERS = 80


def shown(value: object) -> str:
    """Return how a message shows what was given: never more than a line of it.

    >>> shown("x" * 100)[-3:]
    'xx…'
    """
    told = repr(value[:SHOWN_CHARACTERS]) if isinstance(value, str) else repr(value)
    return told if len(told) <= SHOWN_CHARACTERS else f"{told[:SHOWN_CHARACTERS]}…"


def plural(number: int, one: str, many: str = "") -> str:
    """Return the word behind a number, or the words that agree with it.

    >>> plural(1, "row"), plural(0, "row"), plural(2, "query", "queries")
    ('row', 'rows', 'queries')
    """
    return one if number == 1 else many or f"{one}s"


def counted(number: int, one: str, many: str = "", *, spec: str = "") -> str:
    """Return a number, written as ``spec`` says, with the words that agree with it.

    >>> counted(1, "row"), counted(2_000, "row", spec=","), counted(1, "row has", "rows have")
    ('1 row', '2,000 rows', '1 row has')
    """
    return f"{number:{spec}} {plural(number, one, many)}"


class EmbeddingStudioError(Exception):
    """Every error of this package; its message says what happened and what to do.

    Attributes:
        problem: what a service answered (RFC 9457), where the error is a client's: ``status``, ``detail``,
            and in ``errors`` what is wrong, place by place. None: it did not come so.
        request_id: under which that service's log says more.
    """

    problem: Mapping[str, Any] | None = None
    request_id: str | None = None


class InvalidInputError(EmbeddingStudioError, ValueError):
    """Something the caller gave cannot be used."""


class InvalidVectorsError(InvalidInputError):
    """Vectors whose axes disagree, that are not finite, or are zero where a direction is needed."""


class InvalidFilterError(InvalidInputError):
    """A payload filter that is misspelt or has no meaning."""


class InvalidSettingError(InvalidInputError):
    """A setting that cannot work."""


class InvalidDataError(InvalidInputError):
    """A file or row that cannot be read as what it should be."""


class NotFoundError(EmbeddingStudioError, LookupError):
    """What was asked for is not there."""


class CollectionNotFoundError(NotFoundError):
    """No collection or alias has this name."""


class SessionNotFoundError(NotFoundError):
    """No session has this id."""


class OrderNotFoundError(NotFoundError):
    """No improvement order exists for this session."""


class ReportNotFoundError(NotFoundError):
    """No report has this id."""


class KeyNotFoundError(NotFoundError):
    """No API key has this id."""


class ConflictError(EmbeddingStudioError, ValueError):
    """It exists already with other content, or its present state forbids the wish."""


class SessionRefusedError(EmbeddingStudioError, ValueError):
    """Nothing can be learnt from one session; the message is the reason that its order records."""


class StorageError(EmbeddingStudioError, RuntimeError):
    """The database failed; the driver's error is the cause."""


class StorageUnavailableError(StorageError):
    """The database cannot be reached."""


class AttachedUnavailableError(StorageUnavailableError):
    """The store that a collection is attached to does not answer in time, or what it was in is gone."""


class StorageTimeoutError(StorageUnavailableError):
    """The database gave up: a statement took longer than it may, or waited for a lock too long."""


class StorageNotWritableError(StorageUnavailableError):
    """The database can be read and not written: its disk is full, or it is read-only."""


class UnsupportedDatabaseError(StorageError):
    """The database, or the processor under it, lacks what this package needs."""


class AbandonedError(EmbeddingStudioError, RuntimeError):
    """Whoever asked has gone, so the rest was not done."""


class EmbeddingError(EmbeddingStudioError, RuntimeError):
    """An embedder is absent, or failed to embed."""


class EmbedderUnavailableError(EmbeddingError):
    """An embedder does not answer, or not in time.

    Attributes:
        retry_after_seconds: when to try again, if that is known.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class PartTooLongError(EmbeddingError):
    """A part of a text was too long, and the embedder splits into shorter ones from now on."""


class ServiceError(EmbeddingStudioError, RuntimeError):
    """What a client asked of a service failed there, or the answer is not one of Embedding Studio."""


class ServiceUnavailableError(ServiceError):
    """A service cannot be reached, did not answer in time, or says that it cannot serve just now."""


class TooManyRequestsError(ServiceError):
    """A service lets this key or this user ask no more for a moment."""


class AccessDeniedError(ServiceError):
    """A service asks for a key or a user's token, does not know the one that was sent, or it is for less."""


class PluginError(EmbeddingStudioError, ImportError):
    """A plugin cannot be found or loaded."""


def kind_of(error: type[Exception]) -> str:
    """Return the name of an error class in words, as a service names it in a problem's ``type``.

    >>> kind_of(LookupError)
    'lookup'
    >>> kind_of(CollectionNotFoundError)
    'collection not found'
    """
    return " ".join(re.findall(r"[A-Z][a-z]*", error.__name__.removesuffix("Error"))).lower()
