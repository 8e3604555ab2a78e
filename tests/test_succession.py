"""A port handed from the processes of a service whose parent was killed to the next service."""

import socket
from contextlib import ExitStack, contextmanager

import pytest

from embedding_studio.cli import succession
from embedding_studio.cli.processes import FORKS
from embedding_studio.cli.serving import bound
from embedding_studio.settings import load_settings

HOST = "127.0.0.1"


@pytest.fixture
def left_alone():
    """Return a port, and what makes so many processes whose parent, which has it, was killed."""
    settings = load_settings(embedder="none")
    processes = []
    with bound(settings, HOST, 0) as listening, succession.succession(listening, HOST, None) as handed_on:
        listening.listen()

        def kill_the_parent(number):
            processes.extend(FORKS.Process(target=handed_on.wait) for _ in range(number))
            for each in processes:
                each.start()
            return processes

        yield listening.getsockname()[1], kill_the_parent
        for each in processes:
            each.kill()
            each.join()


@contextmanager
def inherited(port):
    left = succession.inherited(HOST, port)
    yield left
    if left is not None:
        for each in (left.listening, left.door):
            each.close()
        left.let_go()


def test_of_services_that_are_started_at_once_one_has_the_port(left_alone):
    port, kill_the_parent = left_alone
    processes = kill_the_parent(3)

    with inherited(port) as first, inherited(port) as second:
        with socket.create_connection((HOST, port)) as caller:
            first.listening.accept()[0].close()
            heard = caller.recv(1)
        first.take_over()
        for each in processes:
            each.join(60)

    assert second is None
    assert heard == b""
    assert not any(each.is_alive() for each in processes)


def test_a_service_whose_start_failed_leaves_the_port_to_the_next(left_alone):
    port, kill_the_parent = left_alone
    kill_the_parent(1)

    for _ in range(5):
        with inherited(port) as left:
            assert left is not None


def test_a_door_that_many_stand_at_is_open_to_a_successor(left_alone):
    port, kill_the_parent = left_alone
    door = succession._name(HOST, port)
    with ExitStack() as stack:
        callers = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(200)]
        for each in callers:
            each.setblocking(False)
        come_in = [each.connect_ex(door) == 0 for each in callers]
        kill_the_parent(2)

        with inherited(port) as left:
            assert left is not None
    assert any(come_in)
    assert not all(come_in)  # so many wait there while the parent lives that one more may not
