"""The HTTP service."""

import gc
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_studio.cli.console import announce, end_within, on_stop, untraced_context
from embedding_studio.cli.learning import settle
from embedding_studio.cli.succession import Inheritance, inherited, succession
from embedding_studio.errors import InvalidSettingError
from embedding_studio.settings import MOST_PROCESSES, Settings
from embedding_studio.telemetry.listener import is_loopback
from embedding_studio.telemetry.traces import tracing

if TYPE_CHECKING:
    from embedding_studio.api.connections import Server
    from embedding_studio.bootstrap import Context
    from embedding_studio.cli.processes import Lifeline

LONGEST_END_SECONDS = 15.0
"""Of a service that was told to end: for requests under way, and then for what a worker is at."""


def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Default: HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Default: PORT; 0 takes a free one.")
    ] = None,
    worker: Annotated[bool, typer.Option(help="Learn too.")] = True,
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_PROCESSES, help="So many answer requests. Default: SERVE_PROCESSES."),
    ] = None,
) -> None:
    """Serve the HTTP API, by default with a worker inside; of several processes it is one of its own."""
    with untraced_context() as context, ExitStack() as stack:
        require_key(context.settings, host)
        host, port = host or context.settings.host, context.settings.port if port is None else port
        left = inherited(host, port)
        listening = left.listening if left else stack.enter_context(bound(context.settings, host, port))
        number = processes or context.settings.serve_processes
        if number > 1:
            _serve_in_processes(context, listening, host, left, number, worker=worker)
            return
        with tracing():
            server = _server(context, worker=worker)
            url = url_of(listening)
            listening.listen()  # whoever reads what follows may call at once, and waits for uvicorn
            announce(f"Embedding Studio serves on {url} (documentation: {url}/docs)")
            if left is not None:
                left.door.close()
                server.when_started = left.take_over
            server.run(sockets=[listening])


def _serve_in_processes(
    context: "Context",
    listening: socket.socket,
    host: str,
    left: Inheritance | None,
    number: int,
    *,
    worker: bool,
) -> None:
    from embedding_studio.api import app, connections  # noqa: F401, once for all processes
    from embedding_studio.cli.processes import Parent

    with succession(listening, host, left.door if left else None) as handed_on:
        parent = Parent(context, handed_on, url_of(listening), number, worker, left)
        on_stop(parent.stop)
        gc.freeze()  # what was imported stays in memory that all share
        parent.run()


def serve_beside(context: "Context", lifeline: "Lifeline") -> None:
    """Be one of several processes that serve; the worker is another."""
    with (
        context.telling_siblings(lifeline.siblings) as numbers,
        socket.create_server(("127.0.0.1", 0)) as own,
    ):
        server = _server(context, worker=False)
        server.when_started = lambda: lifeline.tell_ready(numbers, url_of(own))
        server.run(sockets=[lifeline.listening, own])


@contextmanager
def bound(settings: Settings, host: str | None, port: int | None) -> Iterator[socket.socket]:
    """Listen before anything slow is done, so that a taken port is reported at once."""
    require_key(settings, host)
    host = host or settings.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its name, for asyncio answers without delay only on what says that it is TCP; else the body of an
    # answer waits for the client's acknowledgement of the head, some 40 ms on Linux.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, settings.port if port is None else port))
        except OSError as error:
            raise InvalidSettingError(
                f"cannot listen on {host}:{settings.port if port is None else port} ({error.strerror}); "
                "choose another PORT, or 0 for a free one"
            ) from error
        yield listening


def require_key(settings: Settings, host: str | None) -> None:
    """Return if there is a key, or none is needed, for the service is for this machine alone."""
    host = host or settings.host
    if settings.admin_api_key is None and not is_loopback(host):
        raise InvalidSettingError(
            f"without keys the service listens on this machine only, not on {host}: "
            "set ADMIN_API_KEY (and WRITE_API_KEY for browsers), or HOST=127.0.0.1"
        )


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _end(server: "Server", context: "Context") -> None:
    """Let a service end."""
    server.should_exit = True
    context.give_up()
    end_within(LONGEST_END_SECONDS, "a request, or what is learnt,")


def _server(context: "Context", *, worker: bool) -> "Server":
    from embedding_studio.api.app import create_app
    from embedding_studio.api.connections import server

    application = create_app(context, background=context.worker().run if worker else None)
    settle()
    made = server(application, context.settings)
    made.when_to_end = partial(_end, made, context)
    on_stop(made.when_to_end)  # until it runs
    return made
