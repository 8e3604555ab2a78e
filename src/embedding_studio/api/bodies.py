"""Bodies: who may send one, how large it may be, and what it says.

The key is looked at before a body is read. What it will cost to read a body is known before: its size, and
how many lists and objects it holds. Lists stop at the first item that is wrong. So no body holds up other
requests, and a large one is read in a thread, of which few are at it at once.
"""

import codecs
import inspect
import json
import re
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, TypeVar

import anyio
import orjson
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from embedding_studio.api.problems import wrong_body

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
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
    """A route that looks at the key first, then at the body."""

    def get_route_handler(self) -> Handler:
        if self.body_field is None:
            return super().get_route_handler()
        kind: type[Body] = self.body_field.field_info.annotation  # type: ignore[assignment]
        # FastAPI puts those of the decorator first, before those of the function, and asks all of them again.
        guards = Guards(self.dependant.dependencies[: len(self.dependencies)])
        handle = super().get_route_handler()

        async def handle_body(request: Request) -> Response:
            await guards.pass_by(request)
            _check_type(request, takes_text=kind.takes_text)
            return await handle(ReadRequest(request, await read(request, kind.model_validate)))

        return handle_body


class Guards:
    """Dependencies that ask for nothing but the request and each other, and so are asked before the body.

    FastAPI looks at each request how each of them is to be called, which takes longer than to call them.

    Raises:
        TypeError: one asks for more, or is not ``async``.
    """

    def __init__(self, dependants: Sequence[Dependant]) -> None:
        self._steps: dict[Callable[..., Any], tuple[str | None, list[tuple[str, Callable[..., Any]]]]] = {}
        for dependant in dependants:
            self._add(dependant)

    def _add(self, dependant: Dependant) -> None:
        call = dependant.call
        others = (
            *dependant.path_params,
            *dependant.query_params,
            *dependant.header_params,
            *dependant.cookie_params,
            *dependant.body_params,
            *filter(None, (dependant.response_param_name, dependant.background_tasks_param_name)),
        )
        if call is None or others or not _is_async(call):
            raise TypeError(
                f"{call} asks for more than the request, or is not async; so it cannot guard a route"
            )
        given = []
        for each in dependant.dependencies:
            self._add(each)
            assert each.name is not None and each.call is not None  # noqa: S101, PT018, it was added
            given.append((each.name, each.call))
        request = dependant.request_param_name or dependant.http_connection_param_name
        self._steps.setdefault(call, (request, given))

    async def pass_by(self, request: Request) -> None:
        """Return if a request may pass; who guards raises if it may not."""
        found: dict[Callable[..., Any], Any] = {}
        for call, (name, given) in self._steps.items():
            known = {each: found[of] for each, of in given}
            found[call] = await call(**known) if name is None else await call(**known, **{name: request})


def _is_async(call: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)


class ReadRequest(Request):
    """A request whose body is read already."""

    def __init__(self, request: Request, value: Any) -> None:
        others = [(name, given) for name, given in request.scope["headers"] if name != b"content-type"]
        headers = [*others, (b"content-type", b"application/json")]
        super().__init__({**request.scope, "headers": headers}, request.receive)
        self._value = value

    async def body(self) -> bytes:
        return b"read"

    async def json(self) -> Any:
        return self._value


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
    containers = body.count(b"[") + body.count(b"{")
    if containers > max(FEW_CONTAINERS, len(body) // BYTES_PER_CONTAINER):
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
