"""The pages that people open. They load nothing from elsewhere, and speak to the routes beside them."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import FileResponse, RedirectResponse

PAGES = Path(__file__).parent / "pages"
DOCS, CONSOLE, DEMO = "docs", "console", "demo"
BESIDE = ("shared", "vendor", "clients")
"""Folders without a page of their own: what all pages load, what others wrote (``make vendor``), and what
pages of other sites load."""

KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".ts": "text/plain",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".txt": "text/plain",
}
FILES = {path.relative_to(PAGES).as_posix(): path for path in PAGES.rglob("*") if path.suffix in KINDS}

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cache-Control": "no-cache",
}


def pages(*shown: str) -> APIRouter:
    """Return the routes of some pages; the root leads to the last one.

    Args:
        shown: folders of ``pages``, each with an index.html that is served under the folder's name.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def root() -> RedirectResponse:
        return RedirectResponse(shown[-1])  # relative, for a proxy may have stripped a prefix

    for folder in shown:
        router.add_api_route(f"/{folder}", _page_of(folder))
    for folder in (*shown, *BESIDE):
        router.add_api_route(f"/{folder}/{{name:path}}", _file_of(folder))
    return router


def _page_of(folder: str) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return _answer(request, f"{folder}/index.html")

    return page


def _file_of(folder: str) -> Callable[[Request, str], Awaitable[Response]]:
    async def file(request: Request, name: str) -> Response:
        if not name and f"{folder}/index.html" in FILES:
            return RedirectResponse(f"../{folder}")  # its links are relative to the root
        return _answer(request, f"{folder}/{name}")

    return file


def _answer(request: Request, name: str) -> Response:
    if name not in FILES:
        raise HTTPException(404)
    path = FILES[name]
    answer = FileResponse(path, media_type=KINDS[path.suffix], headers=HEADERS, stat_result=path.stat())
    if request.headers.get("if-none-match") == (tag := answer.headers["etag"]):
        return Response(status_code=304, headers=HEADERS | {"ETag": tag})
    return answer
