"""The loop around learning: all that is due, then wait for a click or for the interval."""

import logging
import math
import threading
import time
from collections.abc import Callable

from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.errors import AttachedUnavailableError, CollectionNotFoundError, EmbeddingStudioError
from embedding_studio.feedback.improve import Improver
from embedding_studio.retention import Retention
from embedding_studio.storage.attached import ByCollection, reconcile
from embedding_studio.storage.attached.filling import Filling
from embedding_studio.storage.ports import Storage
from embedding_studio.telemetry.metrics import WorkerMetrics
from embedding_studio.tuning import OwnPastKeeper

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 1800
USERS_PER_BATCH = 100
TIDY_EVERY_SECONDS = 3_600
RECONCILE_EVERY_SECONDS = 60

_POLL_SECONDS = 1.0
"""Bound on one wait: so late are a stop, an order given back for later, and one whose notice was lost."""

_FIRST_RETRY_SECONDS = 0.5
_LAST_RETRY_SECONDS = 30.0

_LAST_DELIVERY_SECONDS = 5.0
"""After a stop an engine that is being written may take so long; what it was not sent is sent later."""


class Worker:
    """Learns until it is told to stop. Any number of workers may run on one storage.

    Args:
        interval_seconds: looks for orders at least so often.
        users_per_batch: so many users are learnt in one transaction.
        wake_on_click: also looks as soon as a user is marked; False: every ``interval_seconds`` only.
        metrics: count what is done.
        own_past: is fitted where no user is due; None: stays as it is.
        retention: removes what is too old, once a day; None: nothing is.
    """

    def __init__(
        self,
        improver: Improver,
        storage: Storage,
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        users_per_batch: int = USERS_PER_BATCH,
        wake_on_click: bool = True,
        metrics: WorkerMetrics | None = None,
        own_past: OwnPastKeeper | None = None,
        retention: Retention | None = None,
    ) -> None:
        self._improver = improver
        self._storage = storage
        self._interval_seconds = interval_seconds
        self._users_per_batch = users_per_batch
        self._wake_on_click = wake_on_click
        self._metrics = metrics or WorkerMetrics()
        self._own_past = own_past
        self._tidied_at = 0.0
        self._reconciled_at = -math.inf
        self._retention = retention

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set; the batch in hand is finished first, unless its adjuster hangs."""
        retry_seconds = _FIRST_RETRY_SECONDS
        filler = None
        if isinstance(self._storage.objects, ByCollection):  # beside learning, which waits for no engine
            given = (self._storage.objects.filling, stop)
            filler = threading.Thread(target=_fill, args=given, name="outbox", daemon=True)
            filler.start()
        while not stop.is_set():
            try:
                self._drain(stop)
                self._tidy(time.time())
                self._reconcile(time.monotonic(), stop.is_set)
                if self._own_past is not None and self._own_past.is_due(now := utc_timestamp()):
                    self._own_past.fit(now, stop.is_set)
                if self._retention is not None and self._retention.is_due(now := utc_timestamp()):
                    self._retention.prune(now, stop)
                retry_seconds = _FIRST_RETRY_SECONDS
                self._wait(stop)
            except EmbeddingStudioError as error:
                self._metrics.count_failed_pass()
                logger.warning("learning failed, trying again in %.1f s: %s", retry_seconds, error)
                stop.wait(retry_seconds)
                retry_seconds = min(2 * retry_seconds, _LAST_RETRY_SECONDS)
        if filler is not None:
            filler.join(_LAST_DELIVERY_SECONDS)

    def _drain(self, stop: threading.Event) -> None:
        while not stop.is_set():
            report = self._improver.improve_once(users=self._users_per_batch, stop=stop)
            if not report.users:
                return
            self._metrics.count_pass(
                seconds=report.seconds,
                done=report.learnt,
                refused=len(report.refused),
                failed=len(report.failed),
                given_up=report.given_up,
                delays=report.delays,
            )
            logger.info(
                "learnt from %d sessions of %d users in %.3f s; refused %d, failed %d",
                report.learnt, report.users, report.seconds, len(report.refused), len(report.failed),
            )  # fmt: skip

    def _tidy(self, now: float) -> None:
        """Drop, once an hour, events whose sessions never came."""
        if now >= self._tidied_at + TIDY_EVERY_SECONDS:
            self._tidied_at = now
            self._storage.clickstream.drop_waiting(now)

    def _reconcile(self, now: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Look, once a minute, whether what was learnt from is still the same in attached stores."""
        if now < self._reconciled_at + RECONCILE_EVERY_SECONDS:
            return
        self._reconciled_at = now
        for collection in self._storage.collections.list():
            if collection.attached is not None and not is_over():
                try:
                    found = reconcile(self._storage, collection, is_over=is_over)
                except (AttachedUnavailableError, CollectionNotFoundError) as error:
                    logger.warning("whether objects of %s changed is not known: %s", collection.name, error)
                else:
                    self._metrics.count_originals(changed=found.changed, gone=found.gone)

    def _wait(self, stop: threading.Event) -> None:
        if self._wake_on_click:
            self._storage.queue.wait(min(self._interval_seconds, _POLL_SECONDS))
        else:
            stop.wait(self._interval_seconds)


def _fill(filling: Filling, stop: threading.Event) -> None:
    """Send the engines that are filled what they lack, until ``stop`` is set."""
    while not stop.wait(_POLL_SECONDS):
        try:
            filling.deliver_all()
        except EmbeddingStudioError as error:
            logger.warning("what changed is not told to engines yet, trying again: %s", error)
