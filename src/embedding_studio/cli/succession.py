"""A port that goes from a service whose parent was killed to the next; meanwhile its processes answer.

Beside its port a service of several processes has a door: a socket of the system (Linux, an abstract one)
whose name says the port. Nothing answers there while the parent lives. Once it has ended, one of its
processes hands the port and the door to a service of the same user, one at a time; and all of them end once
that one serves, or when none came in time.
"""

import os
import secrets
import select
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SECONDS_TO_COME = 30.0
"""For a successor, before the processes of a parent that was killed end by themselves."""
SECONDS_TO_ANSWER = 0.5
"""For whoever is behind a door: a service whose parent lives does not."""
LOOK_SECONDS = 0.01
_SERVES = b"!"
_NEXT = b" next "
_CREDENTIALS = struct.Struct("iII")


@dataclass(frozen=True, slots=True)
class Succession:
    """What the processes of a service have in common, to hand its port on.

    Attributes:
        door: listens; None: there is no such thing on this system.
        _over: a pipe; once there is something to be read, a successor serves. Who hands over locks it.
    """

    listening: socket.socket
    door: socket.socket | None
    _over: tuple[int, int]

    def wait(self) -> None:
        """Return once a successor serves, or none came in time; in a process whose parent has ended."""
        ends = time.monotonic() + SECONDS_TO_COME
        over = self._over[0]
        if self.door is not None:
            _let_go_of_pipes()
        while self.door is not None and (left := ends - time.monotonic()) > 0:
            ready, _, _ = select.select([self.door.fileno(), over], [], [], left)
            if over in ready:
                return
            if ready:
                self._hand_over(self.door)

    def _hand_over(self, door: socket.socket) -> None:
        import fcntl  # here, as below: what it stands for is Linux's

        with suppress(OSError), door.accept()[0] as successor:  # unless another process accepted it
            successor.settimeout(SECONDS_TO_COME)
            if not _is_of_this_user(successor) or not _is_successor(successor, door):
                return
            fcntl.lockf(self._over[1], fcntl.LOCK_EX | fcntl.LOCK_NB)  # unless another hands it over
            try:
                socket.send_fds(successor, [_SERVES], [self.listening.fileno(), door.fileno()])
                if successor.recv(1):
                    os.write(self._over[1], _SERVES)
            finally:
                fcntl.lockf(self._over[1], fcntl.LOCK_UN)


@dataclass(frozen=True, slots=True)
class Inheritance:
    """A port that processes of a service whose parent was killed have handed over."""

    listening: socket.socket
    door: socket.socket
    _predecessor: socket.socket

    def take_over(self) -> None:
        """Let those who answered until now end, for the successor does."""
        with suppress(OSError):
            self._predecessor.send(_SERVES)
        self.let_go()

    def let_go(self) -> None:
        """Be no successor any more, as in a fork of one: once that is killed another may come."""
        self._predecessor.close()


@contextmanager
def succession(listening: socket.socket, host: str, door: socket.socket | None) -> Iterator[Succession]:
    """Yield how a port is handed on: by the door that was inherited with it, or one of its own."""
    door = door or _door(host, listening.getsockname()[1])
    over = os.pipe()
    try:
        yield Succession(listening, door, over)
    finally:
        for each in over:
            os.close(each)
        if door is not None:
            door.close()


def _door(host: str, port: int) -> socket.socket | None:
    if sys.platform != "linux":
        return None
    door = socket.socket(socket.AF_UNIX)
    try:
        door.bind(_name(host, port))
    except OSError:  # processes of another service still have it
        door.close()
        return None
    door.listen()
    door.setblocking(False)
    return door


def inherited(host: str, port: int) -> Inheritance | None:
    """Return a port that is handed over; None: nothing does so."""
    if sys.platform != "linux" or port == 0:
        return None
    caller = socket.socket(socket.AF_UNIX)
    caller.settimeout(SECONDS_TO_ANSWER)
    try:
        _call(caller, _name(host, port))
        if not _is_of_this_user(caller):
            raise PermissionError
        _, given, _, _ = socket.recv_fds(caller, 1, 2)
        number, door = given
        for each in given:
            os.set_inheritable(each, False)
    except (OSError, ValueError):
        caller.close()
        return None
    # By its name, as ``bound`` makes it.
    listening = socket.socket(-1, -1, socket.IPPROTO_TCP, number)
    return Inheritance(listening, socket.socket(fileno=door), caller)


def _call(caller: socket.socket, door: bytes) -> None:
    """Connect to a door, under a name that whoever only stands there does not have.

    Raises:
        OSError: there is no such door, or many stand there and none is sent away.
    """
    caller.bind(door + _NEXT + secrets.token_bytes(8))
    ends = time.monotonic() + SECONDS_TO_ANSWER
    while True:
        try:
            caller.connect(door)
        except BlockingIOError:  # those who came while the parent lived are sent away one by one
            if time.monotonic() > ends:
                raise
            time.sleep(LOOK_SECONDS)
        else:
            return


def _let_go_of_pipes() -> None:
    """Write to pipes no more: who started the parent may start another only once these have ended."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            if stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
                os.dup2(nowhere.fileno(), stream.fileno())


def _name(host: str, port: int) -> bytes:
    return f"\0embedding-studio {os.getuid()} {host}:{port}".encode()


def _is_successor(caller: socket.socket, door: socket.socket) -> bool:
    name: bytes | str = caller.getpeername()  # text where it has none
    return isinstance(name, bytes) and name.startswith(door.getsockname() + _NEXT)


def _is_of_this_user(peer: socket.socket) -> bool:
    told = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user_id, _ = _CREDENTIALS.unpack(told)
    return bool(user_id == os.getuid())
