"""Methods taken through the steps of a log, several at once, each in a process of its own."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

from embedding_studio.errors import EmbeddingStudioError
from embedding_studio.evaluation.collection_folder import Progress
from embedding_studio.evaluation.replay_steps import SHOWN, Step
from embedding_studio.evaluation.replayed_methods import ReplayedMethod

STEPS_AT_ONCE = 100
POLL_SECONDS = 0.2

OpenMethod = Callable[[], ReplayedMethod]
"""Opens a method that has seen nothing yet. For another process it must be possible to pickle it."""


@dataclass(frozen=True, slots=True)
class Played:
    """How one method ranked, of each measured search in the order of the steps.

    Attributes:
        ranks: of each clicked object, from 1; None where it was not found.
        places_kept: how many of plain search's first ``SHOWN`` are among as many of the method.
        untaught: session_id -> why nothing was learnt from it.
    """

    ranks: list[list[int | None]]
    places_kept: list[int]
    untaught: Mapping[str, str]


def play(
    steps: Sequence[Step],
    methods: Mapping[str, OpenMethod],
    *,
    processes: int,
    progress: Progress | None = None,
) -> dict[str, Played]:
    """Return how each method ranks; the number of processes changes nothing but the time it takes.

    Raises:
        EmbeddingStudioError: a method failed; the message says which, and how.
    """
    total = len(steps) * len(methods)
    tell = progress or _ignored
    if min(processes, len(methods)) <= 1:
        played: dict[str, Played] = {}
        for number, (name, open_method) in enumerate(methods.items()):
            tell_of_one = partial(_tell_in_turn, tell, number * len(steps), total)
            played[name] = _played(name, open_method, steps, tell_of_one)
        return played
    with _pool(steps, min(processes, len(methods))) as (pool, done):
        with _uninterrupted():
            futures = {
                name: pool.submit(_play_here, name, open_method) for name, open_method in methods.items()
            }
        waiting = set(futures.values())
        while waiting:
            ended, waiting = wait(waiting, POLL_SECONDS, return_when=FIRST_EXCEPTION)
            for future in ended:
                future.result()  # raises what went wrong, before the others have ended
            tell("replay", done.value, total)
        return {name: future.result() for name, future in futures.items()}


def ranks_of(ranking: Sequence[str], clicked: Sequence[str]) -> list[int | None]:
    """Return where each clicked object stands, from 1; None where it does not.

    >>> ranks_of(["a", "b"], ["b", "c"])
    [2, None]
    """
    rank = {object_id: rank for rank, object_id in enumerate(ranking, start=1)}
    return [rank.get(object_id) for object_id in clicked]


def _ignored(what: str, done: int, total: int) -> None:
    """Take notice of no progress."""


def _tell_in_turn(tell: Progress, before: int, total: int, done: int) -> None:
    tell("replay", before + done, total)


def _played(name: str, open_method: OpenMethod, steps: Sequence[Step], tell: Callable[[int], None]) -> Played:
    try:
        method = open_method()
        ranks, kept = [], []
        for number, step in enumerate(steps, start=1):
            method.learn(step.due)
            if step.slices:
                ranking = method.rank(step.search)
                ranks.append(ranks_of(ranking, step.clicked))
                kept.append(len(set(ranking[:SHOWN]).intersection(step.search.plain[:SHOWN])))
            if number % STEPS_AT_ONCE == 0 or number == len(steps):
                tell(number)
    except EmbeddingStudioError:
        raise
    except Exception as error:
        raise EmbeddingStudioError(
            f"the method {name!r} cannot be replayed: {type(error).__name__}: {error}"
        ) from error
    return Played(ranks, kept, dict(method.untaught))


@dataclass(frozen=True, slots=True)
class _Task:
    """What the processes of a pool share.

    Attributes:
        done: how many steps, of all methods together.
        is_over: whether no caller waits for them any more.
    """

    steps: Sequence[Step]
    done: "Synchronized[int]"
    is_over: Event


_tasks: list[_Task] = []
"""In a process of a pool, the one that it was started for."""


@contextmanager
def _pool(steps: Sequence[Step], processes: int) -> Iterator[tuple[ProcessPoolExecutor, "Synchronized[int]"]]:
    """Yield processes that know the steps, and how many they did; on an error they end soon.

    They are spawned: a fork would inherit the locks of threads that it does not have.
    """
    context = multiprocessing.get_context("spawn")
    task = _Task(steps, context.Value("q", 0), context.Event())
    try:
        with ProcessPoolExecutor(processes, context, _begin, (task,)) as pool:
            try:
                yield pool, task.done
            finally:
                task.is_over.set()
                pool.shutdown(cancel_futures=True)
    except BrokenProcessPool as error:
        raise EmbeddingStudioError(
            "a process that replayed a method ended before it was done; is there memory enough? "
            "--processes 1 needs the least"
        ) from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let processes that start here never hear Ctrl-C: they are told to end, and say nothing."""
    if not hasattr(signal, "pthread_sigmask"):  # as on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(task: _Task) -> None:
    _tasks.append(task)


def _play_here(name: str, open_method: OpenMethod) -> Played:
    [task] = _tasks
    told = 0

    def tell(number: int) -> None:
        nonlocal told
        if task.is_over.is_set():
            raise EmbeddingStudioError(f"the method {name!r} was stopped")
        with task.done:
            task.done.value += number - told
        told = number

    return _played(name, open_method, task.steps, tell)
