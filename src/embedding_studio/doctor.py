"""What an operator wants to know in one look: does everything answer, and how is each collection searched?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from embedding_studio.bootstrap import Context
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.objects import Collection
from embedding_studio.domain.sessions import SessionForImprovementStatus
from embedding_studio.errors import EmbeddingStudioError
from embedding_studio.storage.postgres.nearest import margin_for

Grade = Literal["OK", "WARN", "FAIL"]

LATE_SECONDS = 60
"""A click is learnt from within a second where a worker runs and clicks wake it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: a grade, what was looked at, and a sentence on it."""

    grade: Grade
    what: str
    told: str


Examination = Callable[[], Iterator[Finding]]


def examine(context: Context, *, load_embedder: bool = False) -> list[Finding]:
    """Return what was found. The tables are brought up to date, as by everything that opens them.

    Args:
        load_embedder: embed a word, which loads a model or asks an endpoint.
    """
    findings = [*_told("settings", partial(_settings, context))]
    if findings[0].grade == "FAIL":
        return findings
    findings += _told("embedder", partial(_embedder, context, load=load_embedder))
    findings += _told("storage", partial(_storage, context))
    if findings[-1].grade == "FAIL":
        return findings
    findings += _told("collections", partial(_collections, context))
    findings += _told("orders", partial(_orders, context))
    findings += _told("quarantine", partial(_quarantine, context))
    return findings


def _told(what: str, look: Examination) -> Iterator[Finding]:
    """Yield what a look finds; an error is a finding too."""
    try:
        yield from look()
    except EmbeddingStudioError as error:
        yield Finding("FAIL", what, str(error))


def _settings(context: Context) -> Iterator[Finding]:
    changed = sorted(name.upper() for name in context.settings.model_fields_set)
    yield Finding("OK", "settings", f"set: {', '.join(changed)}" if changed else "all by default")


def _embedder(context: Context, *, load: bool) -> Iterator[Finding]:
    embedder = context.embedder
    if embedder is None:
        yield Finding("OK", "embedder", "none: callers bring vectors")
    elif load:
        [vector] = embedder.embed(["word"])
        yield Finding("OK", "embedder", f"{embedder.name} embeds, in {len(vector)} dimensions")
    else:
        yield Finding("OK", "embedder", f"{embedder.name}, not loaded now; --embedder tries it")


def _storage(context: Context) -> Iterator[Finding]:
    yield Finding("OK", "storage", context.storage.about())


def _collections(context: Context) -> Iterator[Finding]:
    collections = context.storage.collections.list()
    if not collections:
        yield Finding("WARN", "collections", "there is none yet; `embedding-studio index` makes one")
    for each in collections:
        what = f"collection {each.name}"
        yield from _told(what, partial(_collection, context, each, what))


def _collection(context: Context, collection: Collection, what: str) -> Iterator[Finding]:
    objects = context.storage.objects.count(collection)
    if objects == 0:
        yield Finding("WARN", what, "holds no objects")
        return
    codes = context.storage.objects.codes(collection)
    target = context.settings.recall_target
    told = f"{objects:,} objects"
    if codes.margin is None or codes.parts == 0:
        yield Finding("OK", what, f"{told}, all compared by each search: recall is 1 by construction")
    elif target == 1:
        yield Finding("OK", what, f"{told}, all compared by each search, for RECALL_TARGET is 1")
    else:
        told += (
            f", searched by codes of {codes.parts:,} parts, {codes.bytes_in_memory / 1e6:,.1f} MB in each "
            f"process that searches it, with a margin of {codes.margin:.3g} standard errors"
        )
        if codes.margin == margin_for(target):
            told += (
                f" for RECALL_TARGET={target:g}; `embedding-studio recall {collection.name}` measures what "
                "it finds"
            )
            yield Finding("WARN", what, told)
        else:
            yield Finding("OK", what, f"{told}, as measured")
    embedder = context.embedder
    if embedder is not None and not collection.is_embedded_by(embedder.name):
        yield Finding(
            "WARN",
            what,
            f"was embedded by {collection.embedder!r}, and EMBEDDER is {embedder.name!r}: texts are refused",
        )


def _orders(context: Context) -> Iterator[Finding]:
    orders = context.storage.orders
    counts = orders.counts()
    told = ", ".join(f"{number:,} {status.value}" for status, number in counts.items())
    failed = counts[SessionForImprovementStatus.FAILED]
    grade: Grade = "WARN" if failed else "OK"
    if failed:
        told += "; GET /api/v1/improvement/orders?status=failed says why"
    yield Finding(grade, "orders", told)
    pending = counts[SessionForImprovementStatus.PENDING]
    oldest = orders.list(status=SessionForImprovementStatus.PENDING, limit=1, offset=max(0, pending - 1))
    if not oldest:
        return
    waited = max(0, utc_timestamp() - oldest[0].updated_at)
    settings = context.settings
    is_late = waited > (LATE_SECONDS if settings.improve_on_click else settings.improvement_seconds_interval)
    told = f"the oldest pending order waits for {waited:,} s"
    if is_late:
        told += "; does `embedding-studio worker`, or `serve` with a worker inside, run?"
    yield Finding("WARN" if is_late else "OK", "pending orders", told)


def _quarantine(context: Context) -> Iterator[Finding]:
    number = context.storage.quarantine.count()
    if number:
        told = f"nothing is learnt from {number:,} users; `embedding-studio quarantine` says why"
        yield Finding("WARN", "quarantine", told)
