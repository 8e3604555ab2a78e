"""What a route may ask for. Looking it up is ``async``, which spares a hop to another thread."""

import asyncio
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import Context as Variables
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Annotated, TypeVar, TypeVarTuple

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError

from embedding_studio.api.problems import wrong_body
from embedding_studio.bootstrap import Context
from embedding_studio.telemetry.metrics import ServiceMetrics

T = TypeVar("T")
Given = TypeVarTuple("Given")

IN_URL = ("api_key", "user_token")
"""What a guard may read there, which it says nothing of."""

THREADS = 40
"""Of each kind; as many as anyio has for routes without a body."""


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "request")


@dataclass(frozen=True, slots=True)
class Threads:
    """Threads for requests: for what may wait for an embedder others, so that nothing else waits for it."""

    text_searches: Executor = field(default_factory=_threads)
    text_upserts: Executor = field(default_factory=_threads)
    others: Executor = field(default_factory=_threads)


async def in_thread(threads: Executor, function: Callable[[*Given], T], *given: *Given) -> T:
    """Return what a function returns in a thread, where it has the context variables of its caller.

    ``anyio.to_thread`` takes nearly twice as long to get there: it lets other tasks go first, twice.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(threads, _called, copy_context(), function, *given)


def _called(variables: Variables, function: Callable[[*Given], T], *given: *Given) -> T:
    try:
        return variables.run(function, *given)
    except StopIteration as error:  # which asyncio's future would not take, and so never end
        raise RuntimeError("a function that was called in a thread raised StopIteration") from error


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


async def _metrics(request: Request) -> ServiceMetrics:
    metrics: ServiceMetrics = request.app.state.metrics
    return metrics


async def check_parameters(request: Request) -> None:
    """Return if the route takes all that the URL asks for, so that nothing is done to more than was meant.

    Raises:
        RequestValidationError: it does not.
    """
    if request.scope["query_string"]:
        refuse_others(request, {*_parameters(request.scope["route"].dependant)})


def refuse_others(request: Request, taken: Collection[str] = ()) -> None:
    """Return if the URL asks for nothing but some parameters, and what a guard reads there.

    Raises:
        RequestValidationError: it does.
    """
    if not request.scope["query_string"]:
        return
    told = "this parameter is not known here; is it misspelt?"
    wrong = [
        {"type": "value_error", "loc": ("query", name), "msg": told}
        for name in dict(request.query_params)
        if name not in taken and name not in IN_URL
    ]
    if wrong:
        raise RequestValidationError(wrong)


def _parameters(asked: Dependant) -> Iterator[str]:
    """Yield what is asked of the URL, by a route and by what it depends on."""
    yield from (each.alias for each in asked.query_params)
    for each in asked.dependencies:
        yield from _parameters(each)


async def threads_of(request: Request) -> Threads:
    threads: Threads = request.app.state.threads
    return threads


InContext = Annotated[Context, Depends(_context)]
InMetrics = Annotated[ServiceMetrics, Depends(_metrics)]
InThreads = Annotated[Threads, Depends(threads_of)]


def threads_for(query: object, context: Context, threads: Threads) -> Executor:
    """Return the threads in which is searched for a query.

    Raises:
        RequestValidationError: it is a text, and texts cannot be embedded.
    """
    if not isinstance(query, str):
        return threads.others
    check_embedder(context, "search_query")
    return threads.text_searches


def check_embedder(context: Context, *place: str | int) -> None:
    """Return if texts can be embedded.

    Raises:
        RequestValidationError: they cannot; of the text at this place of the body.
    """
    if context.embedder is None:
        raise wrong_body("this service has no embedder for texts; send vectors", *place)
