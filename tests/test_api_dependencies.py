"""What routes ask for."""

import asyncio
from contextvars import ContextVar

import pytest

from embedding_studio.api.dependencies import Threads, in_thread

WHO: ContextVar[str] = ContextVar("WHO", default="anybody")


def test_a_function_has_in_a_thread_the_variables_of_its_caller():
    async def ask(threads, name):
        WHO.set(name)
        return await in_thread(threads.others, WHO.get)

    async def ask_both():
        threads = Threads()
        return await asyncio.gather(ask(threads, "ada"), ask(threads, "bob"))

    assert asyncio.run(ask_both()) == ["ada", "bob"]


@pytest.mark.parametrize(
    ("raised", "seen"), [(ZeroDivisionError, ZeroDivisionError), (StopIteration, RuntimeError)]
)
def test_what_is_raised_in_a_thread_is_raised_to_its_caller(raised, seen):
    def fail():
        raise raised

    with pytest.raises(seen):
        asyncio.run(in_thread(Threads().others, fail))
