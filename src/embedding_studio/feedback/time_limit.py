"""A time limit for adjusters, which may be anybody's code."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from queue import SimpleQueue

from embedding_studio.domain.improvement import ImprovementInput
from embedding_studio.embeddings.improvement.vectors_adjuster import VectorsAdjuster
from embedding_studio.errors import EmbeddingStudioError, StorageUnavailableError

SECONDS_TO_STOP = 2.0
"""So long an adjuster may go on once its worker is told to stop."""

POLL_SECONDS = 0.1

TOGETHER = 6
MOST_HUNG_FOR_ONE, MOST_HUNG = 3, 10
"""In one pass, before a user, or everybody left, is given up."""


class AdjusterTimeoutError(EmbeddingStudioError):
    """An adjuster took longer than it may."""


class StoppedError(EmbeddingStudioError):
    """A worker is to stop, and its adjuster does not come to an end."""


class TimeLimited:
    """An adjuster that gives up on another one after some time; for one pass of learning.

    Each call runs in another thread, for nothing else can be left behind; one that hangs ends with the
    process. So calls for a user for whom it hung some times, and all after some more, are given up before
    they begin.

    Args:
        seconds: a call may take so long, and a fortieth of it more for each session; one for several users,
            which is made again user by user, ``TOGETHER`` times as long at the most.
    """

    def __init__(self, adjuster: VectorsAdjuster, seconds: float, stop: threading.Event | None) -> None:
        self._adjuster = adjuster
        self._seconds = seconds
        self._stop = stop or threading.Event()
        self._hung: Counter[str | None] = Counter()

    def adjust_vectors(self, improvement_inputs: list[ImprovementInput]) -> list[ImprovementInput]:
        """Return what the adjuster returns.

        Raises:
            AdjusterTimeoutError: it takes too long, or did so too often.
            StoppedError: its worker was told to stop, and waited for it a little longer.
        """
        users = {each.user_id for each in improvement_inputs}
        for_whom = next(iter(users)) if len(users) == 1 else None
        seconds = self._limit(for_whom, len(improvement_inputs))
        results: list[list[ImprovementInput] | BaseException] = []
        is_done = threading.Event()

        def adjust() -> None:
            try:
                results.append(self._adjuster.adjust_vectors(improvement_inputs))
            except BaseException as error:  # noqa: BLE001, it is raised where it is waited for
                results.append(error)

        _do_aside(adjust, is_done)
        ends = time.monotonic() + seconds
        stops: float | None = None
        while not is_done.wait(POLL_SECONDS):
            now = time.monotonic()
            if self._stop.is_set():
                stops = now + SECONDS_TO_STOP if stops is None else stops
                if now >= stops:
                    raise StoppedError("the worker was told to stop while its adjuster was at work")
            if now >= ends:
                self._hung[for_whom] += 1
                raise AdjusterTimeoutError(
                    f"the adjuster took longer than {seconds:.3g} s and was left alone; does it hang?"
                )
        return _returned(results[0])

    def _limit(self, for_whom: str | None, sessions: int) -> float:
        """Return how many seconds a call may take, for one user or, None, for several."""
        if self._hung.total() >= MOST_HUNG or (for_whom and self._hung[for_whom] >= MOST_HUNG_FOR_ONE):
            raise AdjusterTimeoutError("the adjuster took too long too often, and was not called any more")
        seconds = self._seconds * (1 + sessions / 40)
        return seconds if for_whom else min(seconds, TOGETHER * self._seconds)


_Work = tuple[Callable[[], None], threading.Event]

_idle: list[SimpleQueue[_Work]] = []
"""Of threads that wait for work, what each takes it from. One that hangs does not come back to it."""
os.register_at_fork(after_in_child=_idle.clear)  # where there are no such threads


def _do_aside(work: Callable[[], None], is_done: threading.Event) -> None:
    """Let a thread do something that may never end; a thread that came to an end is used again."""
    try:
        given = _idle.pop()
    except IndexError:
        given = SimpleQueue()
        threading.Thread(target=_work_on, args=(given,), name="adjuster", daemon=True).start()
    given.put((work, is_done))


def _work_on(given: SimpleQueue[_Work]) -> None:
    while True:
        work, is_done = given.get()
        work()
        _idle.append(given)  # before the caller goes on, who may have more work at once
        is_done.set()
        del work, is_done  # with what they hold, until there is more


def _returned(result: list[ImprovementInput] | BaseException) -> list[ImprovementInput]:
    if isinstance(
        result, SystemExit | StorageUnavailableError
    ):  # which would mean something else to a worker
        raise EmbeddingStudioError(f"the adjuster raised {result!r}") from result
    if isinstance(result, BaseException):
        raise result
    return result
