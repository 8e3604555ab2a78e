"""What mypy has to refuse. Where it no longer does, an ``ignore`` is unused, and that is an error."""

from typing import assert_type

from embedding_studio import Client, Context, SessionEvent, context


def a_wrong_type() -> None:
    assert_type(context, str)  # type: ignore[assert-type]
    assert_type(context.search.search("q").results, list[str])  # type: ignore[assert-type]
    assert_type(context.improver().improve_once().learnt, str)  # type: ignore[assert-type]


def a_wrong_call() -> None:
    context.search.search("q", user="ada")  # type: ignore[call-arg]
    context.searching  # type: ignore[attr-defined] # noqa: B018
    SessionEvent(session_id="s")  # type: ignore[call-arg]
    Context(settings="fast")  # type: ignore[arg-type]


def a_wrong_call_of_a_client(client: Client) -> None:
    client.search("q", user="ada")  # type: ignore[call-arg]
    assert_type(client.search("q").results, list[str])  # type: ignore[assert-type]
