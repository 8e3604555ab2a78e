"""One service in several processes: a parent keeps the socket and restarts whichever of them ends.

They are forks of the parent, which has imported what they need and opened nothing but that socket: so they
start in a tenth of a second, and share the memory of what was imported. A process and its parent hold the two
ends of a pair of sockets. Over it the parent tells where the siblings of the process answer, and the process
where it answers itself, once it serves. When the parent is killed, all its processes read the end of their
sockets; they go on answering until another service has taken over the port (``succession``), and end as by
SIGTERM.
"""

import json
import multiprocessing
import os
import secrets
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from typing import TYPE_CHECKING, Any

import typer

from embedding_studio.cli.console import announce, end_within, sentences, tell
from embedding_studio.cli.succession import Inheritance, Succession
from embedding_studio.telemetry.siblings import Siblings
from embedding_studio.telemetry.traces import tracing

if TYPE_CHECKING:
    from embedding_studio.bootstrap import Context

FORKS = multiprocessing.get_context("fork")
WORKER = "worker"

LOOK_SECONDS = 0.05
SECONDS_TO_END = 25.0
"""After SIGTERM; a process takes at most ten for its requests, and eight for its worker."""
STEADY_SECONDS = 5.0
"""A process that served for so long is restarted at once."""
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
ENDS = {signal.SIGTERM, signal.SIGINT}


# The parent


@dataclass(slots=True)
class _Process:
    """One of the processes, over all its starts.

    Attributes:
        name: its number, or ``WORKER``.
        tells: what it said when it was ready; None: it is not.
        due_at: when it is to be started; None: it runs, or waits for the first.
        failures: how often it ended early, one after another.
    """

    name: str
    running: ForkProcess | None = None
    lifeline: socket.socket | None = None
    heard: bytes = b""
    tells: dict[str, Any] | None = None
    was_ready: bool = False
    ready_at: float = 0.0
    due_at: float | None = None
    failures: int = 0


@dataclass(slots=True)
class Parent:
    """Starts processes, and restarts those that end.

    Args:
        context: of which nothing was made yet but the settings; each process makes the rest for itself.
        succession: of the port, which is bound; it listens once the first process serves.
        url: of the socket, for people.
        learns: whether one of the processes is a worker.
        left: the port, where it was handed over: taken over once the first process serves.
    """

    context: "Context"
    succession: Succession
    url: str
    processes: int
    learns: bool
    left: Inheritance | None = None
    is_over: bool = False
    _processes: list[_Process] = field(default_factory=list)
    _token: str = field(default_factory=secrets.token_urlsafe)

    def run(self) -> None:
        """Keep the processes running until ``is_over``.

        Raises:
            typer.Exit: none of them can be started; it has said why.
        """
        # Ignored, as whoever started this may have left it, nothing says that a process has ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        names = [*map(str, range(1, self.processes + 1)), *([WORKER] if self.learns else [])]
        self._processes = [_Process(name) for name in names]
        self._processes[0].due_at = 0.0  # the others once it is ready, so that trouble is reported once
        with tempfile.TemporaryFile() as limits:
            _fill(limits.fileno())
            try:
                while not self.is_over:
                    self._look(limits.fileno())
                    self._wait()
            finally:
                self._end()

    def stop(self) -> None:
        """Let ``run`` come to its end."""
        self.is_over = True

    def _wait(self) -> None:
        """Return once a process says something or ends, and soon in any case."""
        lifelines = [each.lifeline for each in self._processes if each.lifeline is not None]
        select.select(lifelines, [], [], LOOK_SECONDS)

    def _look(self, limits: int) -> None:
        for each in self._processes:
            if each.running is not None:
                self._hear(each)
                if (status := each.running.exitcode) is not None:
                    self._bury(each, status)
            if each.due_at is not None and time.monotonic() >= each.due_at:
                try:
                    self._start(each, limits)
                except OSError as error:  # no memory for a fork, or too many files; others serve meanwhile
                    if not any(other.was_ready for other in self._processes):
                        raise
                    self._put_off(each)
                    tell("warning", f"{_called(each)} of this service cannot be started just now: {error}")

    def _start(self, process: _Process, limits: int) -> None:
        mine, theirs = socket.socketpair()
        siblings = Siblings(process.name, self._token, limits, is_first=process is self._processes[0])
        process.lifeline = mine
        forked = FORKS.Process(target=self._become, args=(theirs, siblings))
        # Else it takes one that comes at once for the parent's.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
        try:
            forked.start()
        except OSError:
            process.lifeline = None
            mine.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
            theirs.close()
        process.running, process.due_at = forked, None
        mine.setblocking(False)
        self._tell_addresses(process)

    def _become(self, lifeline: socket.socket, siblings: Siblings) -> None:
        """Be one of the processes, in a fork of the parent."""
        for each in ENDS:
            signal.signal(each, lambda number, _: sys.exit(128 + number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
        if self.left is not None:
            self.left.let_go()  # as the parent's ends of lifelines, which none but the parent may hold
        for process in self._processes:
            if process.lifeline is not None:
                process.lifeline.close()
        try:
            with sentences(), tracing(), self.context as context:
                be(context, Lifeline(lifeline, self.succession, siblings))
        except typer.Exit as ended:
            sys.exit(ended.exit_code)

    def _hear(self, process: _Process) -> None:
        """Read what a process tells of itself, which is once that it is ready."""
        assert process.lifeline is not None  # noqa: S101, it runs
        with suppress(BlockingIOError, ConnectionError):
            process.heard += process.lifeline.recv(65_536)
        if process.tells is not None or not process.heard.endswith(b"\n"):
            return
        is_new = not any(each.was_ready for each in self._processes)
        process.tells, process.was_ready, process.ready_at = json.loads(process.heard), True, time.monotonic()
        if is_new:
            if self.left is not None:
                self.left.take_over()
            announce(f"Embedding Studio serves on {self.url} (documentation: {self.url}/docs)")
            for each in self._processes[1:]:
                each.due_at = 0.0
        for each in self._processes:
            if each.running is not None:
                self._tell_addresses(each)

    def _bury(self, process: _Process, status: int) -> None:
        """Let a process that has ended be restarted, or end with it.

        Raises:
            typer.Exit: it could not be started, and it is not gone on without it.
        """
        assert process.lifeline is not None  # noqa: S101, it ran
        process.lifeline.close()
        served = process.tells is not None
        process.running = process.lifeline = process.tells = None
        process.heard = b""
        if self.is_over:
            return
        if status - 128 in ENDS:  # told to end by others than this parent, before it served
            status = 128 - status
        if status > 0 and not served and not self._goes_on_without(process):
            raise typer.Exit(status)
        if served and time.monotonic() - process.ready_at >= STEADY_SECONDS:
            process.failures, process.due_at = 0, time.monotonic()
        else:
            self._put_off(process)
        how = f"by signal {-status}" if status < 0 else f"with {status}"
        tell("warning", f"{_called(process)} of this service ended {how}; it is restarted")

    def _put_off(self, process: _Process) -> None:
        """Let a process be started after a while, which is longer each time."""
        process.failures += 1
        doublings = min(process.failures - 1, 10)  # no float is as large as after some hours of failures
        wait = min(FIRST_WAIT_SECONDS * 2**doublings, LONGEST_WAIT_SECONDS)
        process.due_at = time.monotonic() + wait

    def _goes_on_without(self, process: _Process) -> bool:
        """Return whether others serve; of a worker, whether it could be started before."""
        if process.name == WORKER:
            return process.was_ready
        return any(each.tells is not None for each in self._processes if each.name != WORKER)

    def _tell_addresses(self, process: _Process) -> None:
        told = {each.name: each.tells["numbers"] for each in self._processes if each.tells is not None}
        first = self._processes[0].tells
        self._tell(process, {"numbers": told, "first": None if first is None else first["own"]})

    def _tell(self, process: _Process, what: dict[str, Any]) -> None:
        assert process.lifeline is not None  # noqa: S101, it runs
        with suppress(OSError):  # it has ended, or reads nothing, and then knows what it was sent before
            process.lifeline.send(json.dumps(what).encode() + b"\n")

    def _end(self) -> None:
        self.succession.listening.close()  # as each process does, so that who comes now is refused
        running = [each.running for each in self._processes if each.running is not None]
        for each in running:
            each.terminate()
        ends = time.monotonic() + SECONDS_TO_END
        for each in running:
            each.join(max(0.0, ends - time.monotonic()))
            if each.exitcode is None:
                each.kill()
                each.join()


def _called(process: _Process) -> str:
    return "the worker" if process.name == WORKER else f"process {process.name}"


def _fill(limits: int) -> None:
    """Make a file memory for ``api.rate_limits``, which has a key before all else."""
    from embedding_studio.api.rate_limits import BYTES

    os.ftruncate(limits, BYTES)
    os.pwrite(limits, secrets.token_bytes(64), 0)


# Its processes


class Lifeline:
    """The end of a process of the pair of sockets that it has with its parent."""

    def __init__(self, end: socket.socket, succession: Succession, siblings: Siblings) -> None:
        self._socket = end
        self._succession = succession
        self.listening = succession.listening
        self.siblings = siblings
        threading.Thread(target=self._follow, name="lifeline", daemon=True).start()

    def tell_ready(self, numbers: str, own: str | None = None) -> None:
        """Tell the parent that this process serves.

        Args:
            numbers: the URL at which it tells its numbers to its siblings.
            own: that at which it alone answers.
        """
        with suppress(OSError):  # the parent has ended, which the thread learns, too
            self._socket.sendall(json.dumps({"numbers": numbers, "own": own}).encode() + b"\n")

    def _follow(self) -> None:
        """Learn where the siblings answer, until the parent has ended; and end when there is a successor."""
        with suppress(OSError):
            for line in self._socket.makefile("rb"):
                told = json.loads(line)
                self.siblings.first = told["first"]
                self.siblings.numbers = told["numbers"]
        self._succession.wait()
        end_within(SECONDS_TO_END, "this one of several")
        os.kill(os.getpid(), signal.SIGTERM)


def be(context: "Context", lifeline: Lifeline) -> None:
    """Be the process that ``lifeline`` names, until it is to end."""
    if lifeline.siblings.name == WORKER:
        from embedding_studio.cli.learning import learn_beside

        learn_beside(context, lifeline)
    else:
        from embedding_studio.cli.serving import serve_beside

        serve_beside(context, lifeline)
