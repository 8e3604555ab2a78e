"""What an operator wants to know in one look: does everything answer, and how is each collection searched?"""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from embedding_studio.bootstrap import Context
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.objects import Collection
from embedding_studio.domain.sessions import SessionForImprovementStatus
from embedding_studio.errors import EmbeddingStudioError, counted
from embedding_studio.settings import ADVISED_KEY_CHARACTERS
from embedding_studio.storage.attached import ByCollection, backlog_of
from embedding_studio.storage.ports import QueueInfo
from embedding_studio.storage.postgres.nearest import margin_for
from embedding_studio.telemetry.listener import is_loopback

Grade = Literal["OK", "WARN", "FAIL"]

CLOCK_SECONDS = 5
"""The database's clock may differ from ours by so much; events are dated by ours, and leases by its."""
LAG_SECONDS = 10
"""A replica that is further behind is reported."""
A_WORKER = "`embedding-studio worker`, or `serve` with a worker inside"
LITTLE_DISK = 2**30
TOO_LITTLE_DISK = 2**27
"""Bytes that are free."""


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
    findings = [*_findings("settings", partial(_settings, context))]
    if findings[0].grade == "FAIL":
        return findings
    findings += _findings("keys", partial(_keys, context))
    findings += _findings("embedder", partial(_embedder, context, load=load_embedder))
    findings += _findings("storage", partial(_storage, context))
    if findings[-1].grade == "FAIL":
        return findings
    findings += _findings("replica", partial(_replica, context))
    findings += _findings("clock", partial(_clock, context))
    findings += _findings("disk", partial(_disk, context))
    findings += _findings("collections", partial(_collections, context))
    findings += _findings("engines", partial(_engines, context))
    findings += _findings("queue", partial(_queue, context))
    findings += _findings("orders", partial(_orders, context))
    findings += _findings("quarantine", partial(_quarantine, context))
    return findings


def _findings(what: str, look: Examination) -> Iterator[Finding]:
    """Yield what a look finds; an error is a finding too."""
    try:
        yield from look()
    except EmbeddingStudioError as error:
        yield Finding("FAIL", what, str(error))


def _settings(context: Context) -> Iterator[Finding]:
    changed = sorted(name.upper() for name in context.settings.model_fields_set)
    yield Finding("OK", "settings", f"set: {', '.join(changed)}" if changed else "all by default")


def _keys(context: Context) -> Iterator[Finding]:
    settings = context.settings
    keys = {
        name: key.get_secret_value()
        for name, key in (
            ("ADMIN_API_KEY", settings.admin_api_key),
            ("WRITE_API_KEY", settings.write_api_key),
        )
        if key is not None
    }
    if "ADMIN_API_KEY" not in keys:
        is_open = not is_loopback(settings.host)
        told = "ADMIN_API_KEY is not set: the service is for this machine only"
        yield Finding(
            "WARN" if is_open else "OK",
            "keys",
            f"{told}; set it to listen on {settings.host}" if is_open else told,
        )
    elif short := [name for name, key in keys.items() if len(key) < ADVISED_KEY_CHARACTERS]:
        yield Finding(
            "WARN",
            "keys",
            f"{' and '.join(short)} can be guessed; take {ADVISED_KEY_CHARACTERS} characters or more, as of "
            "`openssl rand -hex 32`",
        )
    else:
        yield Finding("OK", "keys", f"set: {', '.join(keys)}")


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


def _replica(context: Context) -> Iterator[Finding]:
    lag = context.storage.vitals().replica_lag
    if lag is None:
        return
    if lag == math.inf:
        told = "does not answer, so the database searches; does what DATABASE_READ_URL names run?"
    else:
        told = f"shows what was true {lag:,.1f} s ago"
        if lag > LAG_SECONDS:
            told += "; the database searches for whom it misses something; is its machine fast enough?"
    yield Finding("WARN" if lag > LAG_SECONDS else "OK", "replica", told)


def _clock(context: Context) -> Iterator[Finding]:
    before = time.time()
    theirs = context.storage.vitals().clock
    ahead = theirs - (before + time.time()) / 2
    told = f"the database's is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} ours"
    if abs(ahead) > CLOCK_SECONDS:
        yield Finding("WARN", "clock", f"{told}; let NTP set both")
    else:
        yield Finding("OK", "clock", told)


def _disk(context: Context) -> Iterator[Finding]:
    size = f"the database takes {context.storage.vitals().bytes / 1e9:,.2f} GB"
    folder = context.settings.data_dir / "postgres"
    if context.settings.database_url is not None or not folder.exists():
        yield Finding(
            "OK", "disk", f"{size}, wherever it is; what is free there is for its own server to say"
        )
        return
    free = shutil.disk_usage(folder).free
    told = f"{size}, and {free / 1e9:,.1f} GB are free beside it"
    if free < LITTLE_DISK:
        grade: Grade = "FAIL" if free < TOO_LITTLE_DISK else "WARN"
        told += "; free some, or move DATA_DIR: on a full disk events are refused"
        yield Finding(grade, "disk", told)
    else:
        yield Finding("OK", "disk", told)


def _queue(context: Context) -> Iterator[Finding]:
    queue = context.storage.queue.info()
    told = f"{counted(queue.waiting, 'user waits', 'users wait', spec=',')} to be learnt, "
    told += f"{counted(queue.held, 'is', 'are', spec=',')} in hand"
    if queue.oldest_seconds > context.settings.late_seconds:
        told += f", the first for {queue.oldest_seconds:,.0f} s"
        if queue.workers:
            told += "; more workers may run beside what is seen below"
        yield Finding("WARN", "queue", told)
    else:
        yield Finding("OK", "queue", told)
    yield _worker(context, queue)


def _worker(context: Context, queue: QueueInfo) -> Finding:
    grade: Grade = "OK"
    if queue.workers:
        told = "one is seen" if queue.workers == 1 else f"{queue.workers:,} are seen"
    elif queue.oldest_seconds > context.settings.late_seconds:
        grade = "WARN"
        told = f"none is seen, and the first user waits for {queue.oldest_seconds:,.0f} s; run {A_WORKER}"
    else:
        told = f"none is seen just now; what is clicked waits for {A_WORKER}"
    done = context.storage.orders.list(status=SessionForImprovementStatus.DONE, limit=1)
    if done:
        ago = max(0, utc_timestamp() - done[0].updated_at)
        told += f"; the last session was learnt {ago:,} s ago"
    return Finding(grade, "worker", told)


def _collections(context: Context) -> Iterator[Finding]:
    collections = context.storage.collections.list()
    if not collections:
        yield Finding("WARN", "collections", "there is none yet; `embedding-studio index` makes one")
    for each in collections:
        what = f"collection {each.name}"
        yield from _findings(what, partial(_collection, context, each, what))


def _collection(context: Context, collection: Collection, what: str) -> Iterator[Finding]:
    objects = context.storage.objects.count(collection)
    if objects == 0:
        yield Finding("WARN", what, "holds no objects")
        return
    number = counted(objects, "object", spec=",")
    if isinstance(context.storage.objects, ByCollection):
        examined = context.storage.objects.examined(collection)
        if examined is not None:
            yield Finding(
                "WARN" if examined.advice else "OK",
                what,
                "; ".join([number, examined.told, *examined.advice]),
            )
            return
    codes = context.storage.objects.codes(collection)
    target = context.settings.recall_target
    told = number
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


def _engines(context: Context) -> Iterator[Finding]:
    for each in backlog_of(context.storage):
        told = f"what finds {each.collection!r} has everything"
        if each.objects:
            told = f"what finds {each.collection!r} lacks {counted(each.objects, 'object', spec=',')}"
            told += f", of the first for {each.oldest_seconds:,.0f} s"
        if each.refused:
            told += f"; it refused {each.refused:,}, one of them so: {each.error}"
        elif is_late := each.oldest_seconds > context.settings.late_seconds:
            told += "; does it answer, and does a worker run?"
        yield Finding("WARN" if each.refused or is_late else "OK", "engine", told)


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
    is_late = waited > settings.late_seconds
    told = f"the oldest pending order waits for {waited:,} s"
    yield Finding("WARN" if is_late else "OK", "pending orders", told)


def _quarantine(context: Context) -> Iterator[Finding]:
    number = context.storage.quarantine.count()
    if number:
        users = counted(number, "user", spec=",")
        told = f"nothing is learnt from {users}; `embedding-studio quarantine` says why"
        yield Finding("WARN", "quarantine", told)
