"""Bodies: who may send one, how large it may be, and what it says.

The key is looked at before a body is read. What it will cost to read a body is known before: its size, and
how many lists and objects it holds. Lists stop at the first item that is wrong. So no body holds up other
requests, and a large one is read in a thread, of which few are at it at once.
"""

import codecs
import inspect
import json
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, TypeVar

import anyio
import orjson
from fastapi import APIRouter
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, FailFast, Field, TypeAdapter, ValidationError, model_validator
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from embedding_studio.api.dependencies import in_thread, refuse_others, threads_of
from embedding_studio.api.problems import wrong_body

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Found = dict[Callable[..., Any], Any]
"""What each dependency has returned."""
T = TypeVar("T")

SMALL_BYTES = 16_384
"""A body up to here is read at once: in less time than it takes to hand it to a thread."""

READERS = 2
"""So many threads read large bodies: more would only take the processor from each other."""

LARGE_NUMBER = re.compile(rb"(?<![0-9.eE+-])-?[0-9]{19,}+(?![.eE])")
"""What may be a whole number of more than 64 bits, of which the faster reader makes a float."""

KINDS = bytes(48 if 48 <= byte <= 57 else 44 if byte in b"[,:- \t\n\r" else 120 for byte in range(256))
"""Of bytes: digits, what a number may begin after or with, and others."""
MANY_DIGITS = b"," + 19 * b"0"
"""By kinds; to look for it takes a twentieth of the time that the expression takes."""

MOST_DIGITS = 4_300
"""Of a whole number: Python takes time that grows with their square, and reads no more."""

FEW_CONTAINERS = 50_000
BYTES_PER_CONTAINER = 12
"""More lists and objects than that take so many bytes of a body each, over all."""

MOST_ITEMS = 100_000
"""Of any list in a body; where fewer are allowed, that is said too."""

MOST_UNKNOWN_FIELDS = 20
"""So many are named one by one."""


class Body(BaseModel):
    """What a request carries; a field that is not known is refused, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    takes_text: ClassVar[bool] = False
    """Whether it may come as ``text/plain``, in which ``navigator.sendBeacon`` sends JSON."""

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, given: Any) -> Any:
        if not isinstance(given, dict) or len(given) <= MOST_UNKNOWN_FIELDS:
            return given
        if len(given) > len(cls.model_fields) + MOST_UNKNOWN_FIELDS:
            raise ValueError(f"{len(given)} fields are too many; there are {', '.join(cls.model_fields)}")
        return given


Many = Annotated[tuple[T, ...], Field(max_length=MOST_ITEMS), FailFast()]
"""A list of a body, read up to its first item that is wrong."""


class BodyRoute(APIRoute):
    """A route that looks at the key first, then at the body, and asks for each thing once.

    FastAPI reads the body first, and finds out with each request how what a route asks for is to be called,
    which takes longer than to call it.
    """

    handler: Handler
    """What answers a request, without the layers that FastAPI puts around it."""

    def get_route_handler(self) -> Handler:
        field = self.body_field
        if field is None:
            self.handler = super().get_route_handler()
        else:
            kind: type[Body] = field.field_info.annotation  # type: ignore[assignment]
            self.handler = self._body_handler(field.name, kind)
        return self.handler

    def _body_handler(self, body_name: str, kind: type[Body]) -> Handler:
        asked = self.dependant
        _check_kinds(asked, asked.query_params)
        # FastAPI puts those of the decorator first, before those of the function.
        guards = Dependencies(asked.dependencies[: len(self.dependencies)])
        others = Dependencies(asked.dependencies[len(self.dependencies) :])
        names = _named(asked)
        answer = self._answer()

        async def handle_body(request: Request) -> Response:
            found: Found = {}
            await guards.ask(request, found)
            refuse_others(request)
            _check_type(request, takes_text=kind.takes_text)
            given: dict[str, Any] = {body_name: await read(request, kind.model_validate)}
            await others.ask(request, found)
            given |= _of_path(asked, request)
            given |= {name: found[call] for name, call in names}
            if asked.request_param_name is not None:
                given[asked.request_param_name] = request
            return await answer(request, given)

        return handle_body

    def _answer(self) -> Callable[[Request, dict[str, Any]], Awaitable[Response]]:
        """Return what calls the function of the route; its answer is written where it was made."""
        endpoint, status = self.endpoint, self.status_code or HTTPStatus.OK
        to_json = None if self.response_model is None else TypeAdapter(self.response_model).dump_json

        def written(made: Any) -> Response:
            if isinstance(made, Response):
                return made
            content = None if to_json is None else to_json(made, by_alias=True)
            return Response(content, status, media_type="application/json")

        async def answer_here(_: Request, given: dict[str, Any]) -> Response:
            return written(await endpoint(**given))

        async def answer_in_thread(request: Request, given: dict[str, Any]) -> Response:
            threads = await threads_of(request)
            return await in_thread(threads.others, lambda: written(endpoint(**given)))

        return answer_here if inspect.iscoroutinefunction(endpoint) else answer_in_thread


class StraightRoutes(BaseRoute):
    """Leads to routes that take a body, and nothing of the path, by their path.

    FastAPI asks one route after the other, each twice, and keeps two lists for each request of what to
    close after it. No such route has anything to close.

    Args:
        routers: whose routes it leads to; with what stands before their paths.
    """

    def __init__(self, prefix: str, routers: Iterable[APIRouter]) -> None:
        self._routes = {
            (method, prefix + route.path): route
            for router in routers
            for route in router.routes
            if isinstance(route, BodyRoute) and route.body_field and not route.param_convertors
            for method in route.methods or ()
        }

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if (route := self._routes.get((scope.get("method", ""), path))) is None:
            return Match.NONE, {}
        return Match.FULL, {"endpoint": route.endpoint, "path_params": {}, "route": route}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await scope["route"].handler(Request(scope, receive, send))
        await response(scope, receive, send)


class Dependencies:
    """Dependencies that ask for nothing but the request and each other, in an order that lets them.

    Raises:
        TypeError: one asks for more, or is not ``async``.
    """

    def __init__(self, dependants: Sequence[Dependant]) -> None:
        self._steps: dict[Callable[..., Any], tuple[str | None, list[tuple[str, Callable[..., Any]]]]] = {}
        for dependant in dependants:
            self._add(dependant)

    def _add(self, dependant: Dependant) -> None:
        call = dependant.call
        _check_kinds(dependant, dependant.path_params, dependant.query_params, dependant.body_params)
        if call is None or not _is_async(call):
            raise TypeError(f"{call} is not async; a route that takes a body cannot ask for it")
        for each in dependant.dependencies:
            self._add(each)
        request = dependant.request_param_name or dependant.http_connection_param_name
        self._steps.setdefault(call, (request, _named(dependant)))

    async def ask(self, request: Request, found: Found) -> None:
        """Add to ``found`` what is not there yet; a guard raises where the request may not pass."""
        for call, (name, given) in self._steps.items():
            if call not in found:
                known = {each: found[of] for each, of in given} if given else {}
                if name is not None:
                    known[name] = request
                found[call] = await call(**known)


def _named(asked: Dependant) -> list[tuple[str, Callable[..., Any]]]:
    """Return under which name a function is given what each dependency returns; guards have none."""
    return [(each.name, each.call) for each in asked.dependencies if each.name and each.call]


def _check_kinds(asked: Dependant, *more: Sequence[object]) -> None:
    """Return if neither headers, cookies nor the answer is asked for, nor what else is listed.

    Raises:
        TypeError: it is.
    """
    names = (asked.response_param_name, asked.background_tasks_param_name)
    if any(names) or any((asked.header_params, asked.cookie_params, *more)):
        raise TypeError(f"{asked.call} asks for more than a route that takes a body can give")


def _of_path(asked: Dependant, request: Request) -> dict[str, Any]:
    values, wrong = request_params_to_args(asked.path_params, request.path_params)
    if wrong:
        raise RequestValidationError(wrong)
    return values


def _is_async(call: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)


async def read(request: Request, validate: Callable[[Any], T]) -> T:
    """Return what a body says.

    Raises:
        RequestValidationError: it is no JSON, or not what is asked for.
    """
    body = await request.body()
    if len(body) <= SMALL_BYTES:
        return _read(body, validate)
    return await anyio.to_thread.run_sync(_read, body, validate, limiter=_readers(request))


def _readers(request: Request) -> anyio.CapacityLimiter:
    """Return the limit on threads that read, made where there is a loop."""
    state = request.app.state
    if not hasattr(state, "readers"):
        state.readers = anyio.CapacityLimiter(READERS)
    readers: anyio.CapacityLimiter = state.readers
    return readers


def _check_type(request: Request, *, takes_text: bool) -> None:
    packing = request.headers.get("content-encoding", "identity").strip().lower()
    if packing not in {"", "identity"}:
        raise HTTPException(415, f"the request has content-encoding: {packing}; send its JSON as it is")
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given == "application/json" or (given.startswith("application/") and given.endswith("+json")):
        return
    if takes_text and given == "text/plain":
        return
    sent = f"content-type: {given}" if given else "no content-type"
    taken = " (or text/plain, as sendBeacon does)" if takes_text else ""
    raise HTTPException(
        415, f"the request has {sent}; send its JSON as content-type: application/json{taken}"
    )


def _read(body: bytes, validate: Callable[[Any], T]) -> T:
    given = _parsed(body.removeprefix(codecs.BOM_UTF8))
    try:
        return validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([each | {"loc": ("body", *each["loc"])} for each in found]) from None


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(
            f"a number of {len(digits):,} digits; write one of more than {MOST_DIGITS:,} as a text"
        )
    return int(digits)


_thorough = partial(json.loads, parse_int=_whole_number)


def _parsed(body: bytes) -> Any:
    if not body.strip():
        raise wrong_body("the request has no body; send a JSON object")
    most = max(FEW_CONTAINERS, len(body) // BYTES_PER_CONTAINER)
    if len(body) > most and (containers := body.count(b"[") + body.count(b"{")) > most:
        raise wrong_body(f"the body holds some {containers} lists and objects; send less at once")
    # The slower one keeps whole numbers of any size, and of what the faster one refuses half a surrogate pair
    # and NaN, to be refused with their place.
    is_large = MANY_DIGITS in (b"," + body).translate(KINDS) and LARGE_NUMBER.search(body)
    readers: list[Callable[[bytes], Any]] = [_thorough] if is_large else [orjson.loads]
    if len(body) <= SMALL_BYTES:
        readers.append(_thorough)
    for loads in readers:
        try:
            return loads(body)
        except (ValueError, RecursionError) as error:
            fault = error
    raise wrong_body(f"the body is not JSON: {fault}")
