import asyncio
import json
import socket

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from embedding_studio.cli import Baseline, Clicks, Method, _bound, app
from embedding_studio.evaluation import CLICK_MODELS, METHODS, PLAIN
from embedding_studio.settings import Settings, load_settings

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


def test_the_verbs_are_those_that_people_know():
    assert (
        sorted(
            [
                "evaluate",
                "index",
                "search",
                "serve",
                "worker",
                "improve",
                "demo",
                "migrate",
                "settings",
                "tune",
                "collections",
                "forget",
            ]
        )
        == COMMANDS
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_explains_itself(name):
    command = get_command(app).commands[name]  # type: ignore[attr-defined]

    assert command.help
    assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


def test_settings_are_listed_with_secrets_hidden(monkeypatch):
    monkeypatch.setenv("ADMIN_API_KEY", "very-secret")

    listed = CliRunner().invoke(app, ["settings", "--json"])

    assert set(json.loads(listed.stdout)) == set(Settings.model_fields)
    assert "very-secret" not in listed.stdout


def test_what_evaluate_offers_is_what_there_is_to_evaluate():
    assert {each.value for each in Method} == set(METHODS)
    assert {each.value for each in Baseline} == {PLAIN, *METHODS}
    assert {each.value for each in Clicks} == set(CLICK_MODELS)


def test_the_service_answers_without_waiting_for_acknowledgements():
    """Else the body of each answer waits some 40 ms for the client to acknowledge the head."""

    async def accepted_without_delay():
        with _bound(load_settings(embedder="none"), None, 0) as listening:
            found = asyncio.get_running_loop().create_future()

            async def accept(_, writer):
                connection = writer.get_extra_info("socket")
                found.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                writer.close()

            async with await asyncio.start_server(accept, sock=listening):
                _, writer = await asyncio.open_connection(*listening.getsockname())
                delayless = await found
                writer.close()
                await writer.wait_closed()
                return delayless

    assert asyncio.run(accepted_without_delay())


def test_a_wrong_option_exits_with_2():
    assert CliRunner().invoke(app, ["search", "x", "--limit", "0"]).exit_code == 2
