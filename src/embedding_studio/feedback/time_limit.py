"""A time limit for adjusters, which may be anybody's code."""

import threading
import time

from embedding_studio.domain.improvement import ImprovementInput
from embedding_studio.embeddings.improvement.vectors_adjuster import VectorsAdjuster
from embedding_studio.errors import EmbeddingStudioError

SECONDS_TO_STOP = 2.0
"""So long an adjuster may go on once its worker is told to stop."""

POLL_SECONDS = 0.1


class AdjusterTimeoutError(EmbeddingStudioError):
    """An adjuster took longer than it may."""


class StoppedError(EmbeddingStudioError):
    """A worker is to stop, and its adjuster does not come to an end."""


class TimeLimited:
    """An adjuster that gives up on another one after some time.

    Each call runs in a thread, for nothing else can be left behind; one that hangs ends with the process.
    """

    def __init__(self, adjuster: VectorsAdjuster, seconds: float, stop: threading.Event | None) -> None:
        self._adjuster = adjuster
        self._seconds = seconds
        self._stop = stop or threading.Event()

    def adjust_vectors(self, improvement_inputs: list[ImprovementInput]) -> list[ImprovementInput]:
        """Return what the adjuster returns.

        Raises:
            AdjusterTimeoutError: it takes too long.
            StoppedError: its worker was told to stop, and waited for it a little longer.
        """
        results: list[list[ImprovementInput] | BaseException] = []
        is_done = threading.Event()

        def adjust() -> None:
            try:
                results.append(self._adjuster.adjust_vectors(improvement_inputs))
            except BaseException as error:  # noqa: BLE001, it is raised where it is waited for
                results.append(error)
            is_done.set()

        threading.Thread(target=adjust, name="adjuster", daemon=True).start()
        ends = time.monotonic() + self._seconds
        stops: float | None = None
        while not is_done.wait(POLL_SECONDS):
            now = time.monotonic()
            if self._stop.is_set():
                stops = now + SECONDS_TO_STOP if stops is None else stops
                if now >= stops:
                    raise StoppedError("the worker was told to stop while its adjuster was at work")
            if now >= ends:
                raise AdjusterTimeoutError(
                    f"the adjuster took longer than {self._seconds:g} s and was left alone; does it hang?"
                )
        [result] = results
        if isinstance(result, BaseException):
            raise result
        return result
