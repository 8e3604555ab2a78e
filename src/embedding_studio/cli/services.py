"""Whom a command asks: a service that runs (``--url``), or what the database here says. Both answer alike."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from embedding_studio.cli.console import URL_VARIABLE, opened_context, sentences

if TYPE_CHECKING:
    from embedding_studio.cli.in_process import InProcess
    from embedding_studio.client import Client

Service: TypeAlias = "Client | InProcess"

KEY_VARIABLE = "EMBEDDING_STUDIO_API_KEY"
"""Not an option, which other users of the machine could read."""

PATIENCE_SECONDS = 60.0

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar=URL_VARIABLE,
        show_envvar=True,
        help=f"Ask the service there, with the key in {KEY_VARIABLE}, instead of the database here.",
    ),
]


@contextmanager
def opened_service(url: str | None) -> Iterator[Service]:
    """Yield what a command asks; an error becomes a sentence."""
    if not url:
        with opened_context() as context:
            from embedding_studio.cli.in_process import InProcess

            yield InProcess(context)
        return
    from embedding_studio.client import Client

    key = os.environ.get(KEY_VARIABLE) or None
    with sentences(), Client(url, api_key=key, timeout=PATIENCE_SECONDS) as client:
        yield client
