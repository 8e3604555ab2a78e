"""What one process of a service keeps is answered by that one, whichever was asked."""

from typing import TYPE_CHECKING, Any

from fastapi import Depends, Request, Response
from starlette.exceptions import HTTPException

from embedding_studio.telemetry.siblings import Siblings

if TYPE_CHECKING:  # most processes have no siblings
    import httpx

SECONDS = 30.0
HANDED_ON = ("authorization", "content-type", "host", "x-request-id")
GIVEN_BACK = ("content-type", "retry-after", "www-authenticate")


class AnsweredElsewhere(Exception):  # noqa: N818, it is no error
    """Another process has answered."""

    def __init__(self, answer: "httpx.Response") -> None:
        super().__init__(answer.status_code)
        self.answer = answer


async def _ask_the_first(request: Request) -> None:
    """Return if this is the process that keeps it.

    Raises:
        AnsweredElsewhere: it is not; with the answer of that process.
        HTTPException: 503, that one does not answer.
    """
    siblings: Siblings | None = request.app.state.siblings
    if siblings is None or siblings.is_first:
        return
    if not request.path_params.get("report_id", "0").isalnum():
        return  # no report has such an id; and the dots in one would lead to another route there
    import httpx

    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    try:
        if siblings.first is None:
            raise httpx.ConnectError("it is being started")
        async with httpx.AsyncClient(base_url=siblings.first, timeout=SECONDS, trust_env=False) as client:
            answer = await client.request(
                request.method,
                path,
                content=await request.body(),
                headers={name: request.headers[name] for name in HANDED_ON if name in request.headers},
            )
    except httpx.TransportError as error:
        raise HTTPException(
            503,
            "the process of this service that keeps reports is being started; try again in a moment",
            headers={"Retry-After": "2"},
        ) from error
    raise AnsweredElsewhere(answer)


def give_back(request: Request, answered: AnsweredElsewhere) -> Response:  # noqa: ARG001, as FastAPI calls it
    answer = answered.answer
    headers = {name: answer.headers[name] for name in GIVEN_BACK if name in answer.headers}
    return Response(answer.content, answer.status_code, headers)


BY_THE_FIRST: Any = Depends(_ask_the_first)
"""A guard, to stand behind one that looks at the key."""
