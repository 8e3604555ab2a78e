"""What was clicked becomes what is found: worker, improve."""

import gc
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_studio.cli.console import (
    AsJson,
    announce,
    end_within,
    err,
    on_stop,
    opened_context,
    print_value,
)
from embedding_studio.errors import counted, plural

if TYPE_CHECKING:
    from embedding_studio.bootstrap import Context
    from embedding_studio.cli.processes import Lifeline

SECONDS_TO_END = 8.0
"""After a worker was told to stop; the users of one that a plugin holds up stay due."""

GC_THRESHOLDS = (10_000, 10, 100)
"""All is looked through for cycles once that ten million objects are more than there were."""


def worker() -> None:
    """Learn from orders until SIGTERM or Ctrl-C; any number of workers may run."""
    with opened_context() as context, context.telling_metrics() as url:
        told = (
            "The worker is ready." if url is None else f"The worker is ready, and tells its numbers at {url}"
        )
        _learn(context, lambda: announce(told))


def learn_beside(context: "Context", lifeline: "Lifeline") -> None:
    """Be the worker of a service of several processes."""
    with context.telling_siblings(lifeline.siblings) as numbers:
        # The port is closed once all have let go of it, and who comes meanwhile would wait in vain.
        _learn(context, lambda: lifeline.tell_ready(numbers), lifeline.listening.close)


def settle() -> None:
    """Let Python look through all that it holds seldom, once everything is loaded.

    Looking for cycles holds up all threads: searched through each time, what is loaded was a quarter of
    learning, and a body of 100,000 results, none of which is in a cycle, some 50 ms again and again.
    """
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _learn(
    context: "Context", when_ready: Callable[[], None], when_to_end: Callable[[], None] = lambda: None
) -> None:
    stop = threading.Event()

    def end() -> None:
        stop.set()
        when_to_end()
        context.give_up()
        end_within(SECONDS_TO_END, "what is learnt")

    on_stop(end)
    learning = context.worker()
    settle()
    when_ready()
    learning.run(stop)


def improve(
    *,
    everyone: Annotated[
        bool, typer.Option("--everyone", help="Re-learn all users, as after a setting has changed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Learn about all users whose state is stale, once."""
    users = learnt = 0
    refused: dict[str, str] = {}
    failed: dict[str, str] = {}
    with opened_context() as context:
        improver = context.improver()
        if everyone:
            names = [each.name for each in context.storage.collections.list()]
            ordered = sum(map(context.storage.collections.order_for_everyone, names))
            err.print(
                f"{counted(ordered, 'user is', 'users are')} to be re-learnt, here or by whatever other "
                f"worker takes {plural(ordered, 'the user', 'them')} first."
            )
        while (report := improver.improve_once(users=context.settings.users_per_batch)).users:
            users += report.users
            learnt += report.learnt
            refused |= report.refused
            failed |= report.failed
    print_value({"users": users, "learnt": learnt, "refused": refused, "failed": failed}, as_json=as_json)
