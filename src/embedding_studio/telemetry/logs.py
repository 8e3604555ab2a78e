"""Log lines, as text or as JSON: of a request they name its id, and of no line is a user's data a part.

What an exception of somebody else's code says may hold what was sent, such as a row that a database
refuses, or a text that a plugin cannot read. So a line has its type and its place, and what it says
where it is one of our own, or of the operating system.
"""

import json
import logging
import sys
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import MemoryHandler
from types import TracebackType
from typing import Literal

from embedding_studio.errors import EmbeddingStudioError
from embedding_studio.telemetry.traces import current_trace_id
from embedding_studio.telemetry.troubles import OnceASecond

LogFormat = Literal["text", "json"]

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being answered, in whichever thread."""

ACCESS_FIELDS = ("method", "route", "status", "ms")
"""What a line about an answer has beside its message, given as ``extra``."""

LEFT_OUT = "(what it says is left out of the log, for it may hold what was sent)"


class TextLines(logging.Formatter):
    """``WARNING embedding_studio.api.app [the request's id]: what happened``."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's name
        request_id = REQUEST_ID.get()
        of_request = "" if request_id is None else f" [{request_id}]"
        return f"{record.levelname} {record.name}{of_request}: {record.message}"

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # another handler's, with what exceptions say
        return super().format(record)

    def formatException(  # noqa: N802, as above
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        return "" if ei[1] is None else exception_text(ei[1])


class JsonLines(TextLines):
    """An object a line: ``time``, ``level``, ``logger``, ``message``, and what else there is.

    >>> record = logging.LogRecord("shop", logging.INFO, "shop.py", 1, "%d sold", (3,), None)
    >>> record.created = 0.5
    >>> JsonLines().format(record)
    '{"time": "1970-01-01T00:00:00.500Z", "level": "INFO", "logger": "shop", "message": "3 sold"}'
    """

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": REQUEST_ID.get(),
            "trace_id": current_trace_id(),
            **{name: getattr(record, name, None) for name in ACCESS_FIELDS},
            "exception": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({name: each for name, each in told.items() if each is not None})


class EarlyLines(MemoryHandler):
    """Log lines for stderr, kept until it is known in which format."""

    def __init__(self) -> None:
        super().__init__(capacity=1_000, flushLevel=logging.CRITICAL + 1)
        self.addFilter(OnceASecond())
        self.log_format: LogFormat = "text"

    def write(self) -> None:
        """Write what there is, and from now on each line as it comes."""
        target = logging.StreamHandler(sys.stderr)
        target.setFormatter(JsonLines() if self.log_format == "json" else TextLines())
        self.setTarget(target)
        self.flush()
        self.capacity = 1


def are_json() -> bool:
    """Return whether the log lines of this process are JSON."""
    handlers = logging.getLogger().handlers
    return any(each.log_format == "json" for each in handlers if isinstance(each, EarlyLines))


def exception_text(error: BaseException) -> str:
    """Return where an exception and those before it were raised, the first first, and what ours say."""
    return "\n".join(
        "".join(
            [
                "Traceback (most recent call last):\n" if each.__traceback__ else "",
                *traceback.format_tb(each.__traceback__),
                f"{type(each).__qualname__}: {_said(each)}",
            ]
        )
        for each in reversed(list(_chain(error)))
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, EmbeddingStudioError | OSError) else LEFT_OUT
