"""The page that shows every route. It loads nothing from elsewhere, and asks for what is beside it."""

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, RedirectResponse

FOLDER = Path(__file__).parent / "pages"
KINDS = {"docs.html": "text/html", "docs.css": "text/css", "docs.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def root() -> RedirectResponse:
    return RedirectResponse("docs")  # relative, for a proxy may have stripped a prefix


@router.get("/docs")
@router.get("/docs/{name}")
async def docs(name: str = "docs.html") -> FileResponse:
    if name not in KINDS:
        raise HTTPException(404)
    return FileResponse(FOLDER / name, media_type=KINDS[name], headers=HEADERS)
