"""Reports that take minutes: each is made by a process of its own, beside the one that serves.

The process that serves keeps them, so they end with it. They say again at any time what
`embedding-studio recall`, `tune` (also with `--settings`) and `replay` would print.
"""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from embedding_studio.bootstrap import Context
from embedding_studio.datetime_utils import utc_timestamp
from embedding_studio.domain.objects import JSON
from embedding_studio.errors import ConflictError, EmbeddingStudioError, ReportNotFoundError

logger = logging.getLogger(__name__)

MOST_KEPT = 50
MOST_WAITING = 10
TOLD_EVERY_SECONDS = 0.2
STOP_SECONDS = 5.0
PROGRAM = f"from {__name__} import main; main()"

Show = Callable[[str, int, int], None]


class ReportKind(StrEnum):
    RECALL = "recall"
    TUNE = "tune"
    REPLAY = "replay"
    SETTINGS = "settings"


class ReportStatus(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ReportProgress:
    """How far the step is that is done now: ``done`` of ``total``."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Report:
    """A report, as far as it is.

    Attributes:
        dry_run: whether what it finds is only reported, and nothing set by it.
        started_at, ended_at: UTC seconds; while it waits, when it was asked for, and None.
        result: what the command prints as JSON; None until it is done.
        detail: why it failed.
    """

    report_id: str
    kind: ReportKind
    collection: str
    dry_run: bool
    started_at: int
    status: ReportStatus = ReportStatus.WAITING
    ended_at: int | None = None
    progress: ReportProgress | None = None
    result: JSON | None = None
    detail: str | None = None


class Reports:
    """The reports of one process, made one after the other as they were asked for; safe for threads.

    Args:
        context: whose settings say where the collections are; of one that was given a storage there are
            no reports. Queries without vectors are embedded by the model that the settings name.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._reports: dict[str, Report] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._watches: dict[str, threading.Thread] = {}

    def start(self, kind: ReportKind, collection: str, *, dry_run: bool = True) -> Report:
        """Begin a report, or let it wait for those asked for before it, and return it; it goes on by itself.

        Raises:
            ConflictError: too many wait, or none can be made.
        """
        if not self._context.stores_by_settings:
            raise ConflictError(
                "the storage of this service was given to it by a program, and a report is made by a process "
                "that knows settings alone"
            )
        report = Report(uuid.uuid4().hex, kind, collection, dry_run, utc_timestamp())
        with self._lock:
            if len(self._of(ReportStatus.WAITING)) >= MOST_WAITING:
                raise ConflictError(f"{MOST_WAITING} reports wait to be made; wait for one, or stop one")
            self._reports[report.report_id] = report
            try:
                self._begin_next()
            except OSError:
                del self._reports[report.report_id]
                raise
            ended = [each.report_id for each in self._reports.values() if each.ended_at is not None]
            for oldest in ended[: max(0, len(self._reports) - MOST_KEPT)]:
                del self._reports[oldest]
            return self._reports[report.report_id]

    def ahead(self, report_id: str) -> int:
        """Return how many reports are made before one that waits; 0 of one that does not."""
        with self._lock:
            waiting = [each.report_id for each in self._of(ReportStatus.WAITING)]
            running = len(self._of(ReportStatus.RUNNING))
        return running + waiting.index(report_id) if report_id in waiting else 0

    def _of(self, status: ReportStatus) -> "list[Report]":
        return [each for each in self._reports.values() if each.status is status]

    def _begin_next(self) -> None:
        """Begin what waits longest, if nothing is being made; the lock is held.

        Raises:
            OSError: its process cannot be started.
        """
        if self._of(ReportStatus.RUNNING) or not (waiting := self._of(ReportStatus.WAITING)):
            return
        # -P: nothing is imported from the folder in which the service was started.
        process = subprocess.Popen(  # noqa: S603, the program is ours
            [sys.executable, "-P", "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        report = replace(waiting[0], status=ReportStatus.RUNNING, started_at=utc_timestamp())
        watch = threading.Thread(target=self._follow, args=(report, process), name="report", daemon=True)
        self._reports[report.report_id] = report
        self._processes[report.report_id], self._watches[report.report_id] = process, watch
        watch.start()

    def list(self) -> list[Report]:
        """Return all that are kept, the latest first."""
        with self._lock:
            return list(self._reports.values())[::-1]

    def get(self, report_id: str) -> Report:
        """Return a report.

        Raises:
            ReportNotFoundError: none is kept under this id.
        """
        with self._lock:
            if report_id not in self._reports:
                raise ReportNotFoundError(
                    f"no report {report_id!r} is kept here; a service keeps its own {MOST_KEPT} latest"
                )
            return self._reports[report_id]

    def stop(self, report_id: str) -> Report:
        """Stop a report that waits or is being made; of one that ended it is known how it ended.

        Raises:
            ReportNotFoundError: none is kept under this id.
        """
        self.get(report_id)
        with self._lock:
            self._drop(report_id)
            process, watch = self._processes.get(report_id), self._watches.get(report_id)
        if process is not None and watch is not None:
            _end_process(process)
            watch.join()
        return self.get(report_id)

    def close(self) -> None:
        """Stop the report that is being made, if one is, and those that wait."""
        with self._lock:
            for report_id in list(self._reports):
                self._drop(report_id)
        for report_id in list(self._processes):
            self.stop(report_id)

    def _follow(self, report: Report, process: "subprocess.Popen[bytes]") -> None:
        """Hand the process what it needs, and keep what it tells until its end."""
        assert process.stdin is not None  # noqa: S101, both are pipes
        assert process.stdout is not None  # noqa: S101, as above
        ended: tuple[ReportStatus, str | None] = ReportStatus.FAILED, "the service could not follow it"
        try:
            with suppress(BrokenPipeError), process.stdin as given, process.stdout as told:
                pickle.dump((self._context.settings, report), given)
                given.flush()  # and stays open: its end tells the process that no caller waits any more
                for line in told:
                    self._keep(report.report_id, line)
            status = process.wait()
            if status == -signal.SIGTERM:
                ended = ReportStatus.STOPPED, None
            else:
                ended = (
                    ReportStatus.FAILED,
                    f"the process that made it ended with {status}; the service's log may say why",
                )
        finally:
            _end_process(process)
            self._end(report.report_id, ended[0], detail=ended[1])
            with self._lock:
                del self._processes[report.report_id], self._watches[report.report_id]
                self._begin_waiting()

    def _begin_waiting(self) -> None:
        """Begin what waits longest; what cannot be begun has failed. The lock is held."""
        while waiting := self._of(ReportStatus.WAITING):
            try:
                self._begin_next()
            except OSError as error:
                self._reports[waiting[0].report_id] = replace(
                    waiting[0], status=ReportStatus.FAILED, ended_at=utc_timestamp(), detail=str(error)
                )
            else:
                return

    def _drop(self, report_id: str) -> None:
        """Let a report wait no longer; the lock is held."""
        if (report := self._reports[report_id]).status is ReportStatus.WAITING:
            self._reports[report_id] = replace(report, status=ReportStatus.STOPPED, ended_at=utc_timestamp())

    def _keep(self, report_id: str, line: bytes) -> None:
        try:
            told = json.loads(line)
        except ValueError:
            logger.warning("the process of report %s wrote what is no JSON: %.200r", report_id, line)
            return
        if "result" in told:
            self._end(report_id, ReportStatus.DONE, result=told["result"])
        elif "error" in told:
            self._end(report_id, ReportStatus.FAILED, detail=told["error"])
        else:
            self._change(report_id, progress=ReportProgress(**told))

    def _end(self, report_id: str, status: ReportStatus, **changes: Any) -> None:
        self._change(report_id, status=status, ended_at=utc_timestamp(), **changes)

    def _change(self, report_id: str, **changes: Any) -> None:
        """Change a report unless it has ended."""
        with self._lock:
            report = self._reports[report_id]
            if report.status is ReportStatus.RUNNING:
                self._reports[report_id] = replace(report, **changes)


def _end_process(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def make(context: Context, report: Report, show: Show) -> JSON:
    """Return what a report finds, as its command prints it as JSON."""
    # Here, for whoever serves loads none of it.
    from embedding_studio import tuning
    from embedding_studio.evaluation.replay import replay
    from embedding_studio.recall import measure_recall
    from embedding_studio.replaying import Replayed, World
    from embedding_studio.tuned_settings import tune_settings

    storage, settings, name = context.storage, context.settings, report.collection
    if report.kind is ReportKind.RECALL:
        return asdict(measure_recall(storage, name, target=settings.recall_target, dry_run=report.dry_run))
    if report.kind is ReportKind.TUNE:
        tuned = tuning.tune(storage, name, dry_run=report.dry_run)
        return tuning.as_json(*tuned)
    if report.kind is ReportKind.SETTINGS:
        return tune_settings(context, name, progress=show).to_json()
    collection = storage.collections.get(name)
    world = World(context, collection)
    log = world.log(None)
    return replay(
        log,
        world.methods(list(Replayed)),
        plain=world.plain(),
        index=collection.index,
        gate_threshold=world.gate_threshold,
        query_vectors=world.embedded(log, show),
        processes=1,  # whoever is served needs the others
        progress=show,
    ).to_json()


def main() -> None:
    """Make the report that stdin asks for; tell progress and result on stdout, as JSON, a line each."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no line of ours
    settings, report = pickle.load(sys.stdin.buffer)  # noqa: S301, from the process that started this one
    threading.Thread(target=_end_with_the_service, daemon=True).start()
    told_at = 0.0

    def tell(line: JSON) -> None:
        told.write(json.dumps(line) + "\n")
        told.flush()

    def show(what: str, done: int, total: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= TOLD_EVERY_SECONDS:
            told_at = time.monotonic()
            tell({"what": what, "done": done, "total": total})

    try:
        with Context(settings) as context:
            tell({"result": make(context, report, show)})
    except EmbeddingStudioError as error:
        tell({"error": str(error)})


def _end_with_the_service() -> None:
    """End when the service does, however it ends: nothing more comes from it but the end of stdin."""
    while os.read(0, 1):  # not by sys.stdin, whose lock would be held at the end of this process
        pass
    os._exit(1)
