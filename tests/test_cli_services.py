"""Commands over a running service (``--url``): the same answers as from the database, and nothing heavy."""

import json
import os
import pty
import re
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from embedding_studio import CatalogueText, SessionEvent
from embedding_studio.api.app import create_app
from embedding_studio.bootstrap import Context
from embedding_studio.cli import COMMANDS, HIDDEN, app
from embedding_studio.cli.console import announce, payload_line
from embedding_studio.domain.explanations import Explanation, Influence, SharedInfluence
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.sessions import SearchRequest
from embedding_studio.search import why
from test_api_service import letters_context, serving
from test_cli import command, refusal, told  # noqa: F401, a fixture

PAYLOADS: dict[str, dict[str, Any]] = {
    "a": {"title": "the letter a", "n": 1},
    "ab": {"n": 2},
    "bc": {"n": 3, "tags": ["x", "y"]},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    app = create_app(letters_context(folder))
    with serving(app) as http:
        yield app, str(http.base_url), folder


@pytest.fixture
def shop(served, monkeypatch):
    """The context of a service, whose storage is also that of commands without ``--url``."""
    app, _, folder = served
    app.state.context = context = letters_context(folder)
    collection = context.collection()
    texts = [CatalogueText(name, name, payload) for name, payload in PAYLOADS.items()]
    context.index_objects("default", texts)
    context.storage.collections.set_alias("live", collection.name)
    page = context.search.search("aaab", user_id="ada", create_session=True)
    context.clickstream_dao.push_events([SessionEvent(session_id=page.session_id, object_id="bc")])
    context.improver().improve_once()
    monkeypatch.setattr(Context, "open_storage", lambda _: context.storage)
    return context


@pytest.fixture
def both(command, served, shop, monkeypatch):  # noqa: F811
    """Return what runs a command on the database and over the service, and returns how both ended."""

    def run(*arguments):
        monkeypatch.setenv("PLUGINS_PATH", str(served[2] / "letters.py"))
        here = command(*arguments)
        monkeypatch.setenv("PLUGINS_PATH", "")
        return here, command(*arguments, "--url", served[1])

    return run


READING = [
    ("search", "aaab"),
    ("search", "aaab", "-u", "ada"),
    ("search", "aaab", "-u", "ada", "--explain"),
    ("search", "aaab", "-u", "ada", "--explain", "--json"),
    ("search", "aaab", "-u", "ada", "--json", "--limit", "1", "--offset", "1", "--max-distance", "0.9"),
    ("search", "[1, 0, 0]", "--json", "--filter", '{"query": {"term": {"field": "n", "value": 3}}}'),
    ("search", "aaab", "-c", "none"),
    ("search", "aaab", "--filter", "[1]"),
    ("search", "aaab", "--filter", "{"),
    ("objects", "get", "a", "bc", "--json"),
    ("objects", "get", "a", "none"),
    ("get", "a", "bc"),
    ("objects", "list"),
    ("objects", "list", "--limit", "2", "--json"),
    ("objects", "list", "--filter", '{"query": {"term": {"field": "n", "value": 3}}}'),
    ("objects", "export", "--vectors"),
    ("export",),
    ("collections",),
    ("collections", "--json"),
    ("collections", "list", "--json"),
    ("collections", "show", "live"),
    ("collections", "show", "live", "--json"),
    ("collections", "show", "none"),
    ("users", "export", "ada"),
    ("users", "export", "nobody"),
]


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_what_is_read_through_a_service_is_what_the_database_says(both, arguments):
    here, there = both(*arguments)

    assert here.exception is None or isinstance(here.exception, SystemExit), here.exception
    assert there.exception is None or isinstance(there.exception, SystemExit), there.exception
    assert (there.exit_code, there.stdout) == (here.exit_code, here.stdout)
    assert _words(there.stderr) == _words(here.stderr)


def _words(said: str) -> str:
    """Return a sentence without the place in a body that a service names before it."""
    return re.sub(r"error: (#/\w+: )?", "error: ", " ".join(said.split()))


@pytest.mark.parametrize("is_served", [False, True])
def test_what_is_changed_is_changed(command, served, shop, monkeypatch, is_served):  # noqa: F811
    if is_served:
        monkeypatch.setenv("EMBEDDING_STUDIO_URL", served[1])
    else:
        monkeypatch.setenv("PLUGINS_PATH", str(served[2] / "letters.py"))
    collections = shop.storage.collections

    created = command("collections", "create", "films", "--dimensions", "3", "--metric", "dot")
    letters = command("collections", "create", "letters", "--embedder", "letters") if is_served else created
    aliased = command("collections", "alias", "new", "films")
    aliases = collections.aliases()
    unaliased = command("collections", "unalias", "new")
    again = command("collections", "drop-alias", "new")
    films = collections.get("films")
    dropped = command("collections", "drop", "films")
    deleted = told(command("objects", "delete", "a", "none", "--json"))
    receipt = told(command("users", "forget", "ada", "--json"))
    forgotten = command("forget", "ada")

    for ended in (created, letters, aliased, unaliased, dropped, forgotten):
        assert ended.exit_code == 0, ended.output
    assert films.index == SearchIndexInfo(dimensions=3, metric_type="dot")
    assert aliases == {"live": "default", "new": "films"}
    assert "there is no alias 'new'" in refusal(again)
    assert "films" not in {each.name for each in collections.list()}
    assert deleted == {"deleted": 1}
    assert (receipt["user"], receipt["removed"]["sessions"]) == ("ada", 1)
    assert receipt["not_reached"]
    assert list(shop.storage.clickstream.scan(user_id="ada")) == []
    assert "note:" not in forgotten.stderr


def test_a_command_that_asks_no_service_says_so(command, shop, served, monkeypatch):  # noqa: F811
    monkeypatch.setenv("EMBEDDING_STUDIO_URL", served[1])

    assert "EMBEDDING_STUDIO_URL is for commands with --url" in command("migrate").stderr
    assert command("export", "--sessions").exit_code == 2
    assert command("collections", "--url", served[1], "show", "live").exit_code == 2


def test_a_service_that_does_not_answer_is_told_in_a_sentence(command, monkeypatch):  # noqa: F811
    monkeypatch.setattr(time, "sleep", lambda _: None)

    said = refusal(command("search", "x", "--url", "http://127.0.0.1:1"))

    assert "error: the service at http://127.0.0.1:1 cannot be reached" in said
    assert "give one such as" in refusal(command("search", "x", "--url", "localhost:8000"))


def test_a_key_that_may_not_read_why_still_searches(command, shop, served, monkeypatch):  # noqa: F811
    settings = shop.settings
    shop.__dict__["settings"] = settings.model_copy(
        update={
            name: type(settings)(**{name: f"{name}-0123456789-0123456789-0"}, _env_file=None).__dict__[name]
            for name in ("admin_api_key", "write_api_key")
        }
    )
    ask = ("search", "aaab", "-u", "ada", "--url", served[1])
    monkeypatch.setenv("EMBEDDING_STUDIO_API_KEY", "write_api_key-0123456789-0123456789-0")

    few = command(*ask)
    wanted = command(*ask, "--explain")
    monkeypatch.delenv("EMBEDDING_STUDIO_API_KEY")
    nobody = command(*ask)

    assert "moved by clicks" in few.stdout
    assert "you clicked" not in few.stdout
    assert "needs one with the scope admin" in refusal(wanted)
    assert "asks for a key" in refusal(nobody)


# The table


def in_terminal(columns, *arguments) -> list[str]:
    """Return the lines that a command prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, columns))
    program = [sys.executable, "-c", "from embedding_studio.cli import app; app()", *arguments]
    environment = {name: each for name, each in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    environment |= {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(program, stdin=theirs, stdout=theirs, env=environment) as running:
        os.close(theirs)
        printed = b""
        while chunk := _read(ours):
            printed += chunk
    os.close(ours)
    assert running.returncode == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", printed.decode()).splitlines()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux's way to say that nobody writes any more
        return b""


def test_a_search_says_why_in_the_width_that_the_terminal_has(served, shop):
    ask = ("search", "aaab", "-u", "ada", "--url", served[1])

    wide, narrow = in_terminal(120, *ask), in_terminal(60, *ask)

    assert any("you clicked it for 'aaab'" in line for line in wide)
    assert any(re.search(r"│ the letter a · n: 1 +│", line) for line in wide)
    assert any("n: 3 · tags: x, y" in line for line in wide)
    assert {len(line) for line in narrow} == {60}


def test_a_page_that_no_click_moved_has_no_column_for_why(both):
    here, _ = both("search", "aaab", "-u", "bob")

    assert "why" not in here.stdout


PAST = Influence("s1", "warm coat", 1_760_000_000, 0.9, ("coat-1", "hat"), -0.2)
WEAK = Influence("s2", "rain", 1_760_000_000, 0.5, ("boots",), 0.1)
VECTORS = Influence("s3", "", 1_760_000_000, 0.5, tuple("abcde"), -0.3)


@pytest.mark.parametrize(
    ("object_id", "influences", "shared", "said"),
    [
        ("coat-1", (PAST, WEAK), None, "you clicked it for 'warm coat'"),
        ("boots", (PAST, WEAK), None, "you clicked it for 'rain'"),
        ("x", (WEAK, PAST), None, "nearer by what you clicked for 'warm coat' (coat-1, hat)"),
        ("x", (WEAK,), None, "further away by what you clicked for 'rain' (boots)"),
        ("x", (VECTORS,), None, "nearer by what you clicked for an earlier search (a, b, c and 2 more)"),
        ("x", (), SharedInfluence(3, 0.9, 0.5, -0.3), "others clicked it (3 searched for this)"),
        ("x", (), SharedInfluence(3, 0.9, 1.0, -0.3), "nearer by what others clicked (3 searched for this)"),
        ("x", (), SharedInfluence(3, 0.9, 1.0, 0.0), ""),
        (
            "hat",
            (PAST,),
            SharedInfluence(3, 0.9, 0.5, -0.3),
            "you clicked it for 'warm coat'; others clicked it (3 searched for this)",
        ),
        ("x", (), None, ""),
    ],
)
def test_an_explanation_is_a_sentence(object_id, influences, shared, said):
    assert why(object_id, Explanation(0.6, 0.5, 0.4, 0.1, influences, shared)) == said


def test_without_an_explanation_there_is_no_sentence():
    assert why("x", None) == ""


@pytest.mark.parametrize(
    ("payload", "line"),
    [
        ({}, ""),
        ({"n": 1, "name": "x", "title": "t"}, "t · n: 1 · name: x"),
        ({"title": 7, "name": "x"}, "x · title: 7"),
        ({"text": "a\n  b", "deep": {"ö": [1]}, "none": None}, 'text: a b · deep: {"ö": [1]} · none: null'),
        ({"text": "x" * 99}, f"text: {'x' * 59}…"),
    ],
)
def test_a_payload_is_a_line_with_what_names_the_object_first(payload, line):
    assert payload_line(payload) == line


def test_where_a_service_answers_is_one_line_of_its_log_however_long(capsys):
    said = "it serves on http://127.0.0.1:5000 " * 5

    announce(said)

    assert capsys.readouterr().err == f"{said}\n"


def test_the_defaults_of_a_search_are_those_of_the_library():
    options = {each.name: each.default for each in get_command(app).commands["search"].params}  # type: ignore[attr-defined]

    assert (options["limit"], options["offset"]) == (SearchRequest().limit, SearchRequest().offset)


# Start


def test_asking_a_service_loads_nothing_heavy(served, shop):
    program = (
        "import sys\nfrom embedding_studio.cli import app\n"
        f"app(['search', 'aaab', '--url', {served[1]!r}], standalone_mode=False)\n"
        "heavy = ('numpy', 'psycopg', 'onnxruntime', 'tokenizers', 'fastapi', 'embedding_studio.bootstrap')\n"
        "print([name for name in heavy if name in sys.modules])"
    )

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert ran.stdout.splitlines()[-1] == "[]"


def test_the_version_is_told_without_loading_a_command():
    program = (
        "import sys\nfrom embedding_studio.cli import app\napp(['--version'], standalone_mode=False)\n"
        "print([name for name in sys.modules if name.startswith('embedding_studio.cli.')])"
    )

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert ran.stdout.splitlines()[-1] == "['embedding_studio.cli.console']"


def test_the_old_names_of_commands_work_and_are_not_listed():
    commands = get_command(app).commands  # type: ignore[attr-defined]

    listed = CliRunner().invoke(app, ["--help"]).stdout

    assert set(COMMANDS) >= HIDDEN
    for name in COMMANDS:
        assert commands[name].hidden == (name in HIDDEN)
        assert bool(re.search(rf"│ {name} ", listed)) == (name not in HIDDEN)
    assert commands["collections"].commands["drop-alias"].hidden


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("sea", {"search"}),
        ("re", {"replay", "recall", "restore", "reconcile"}),
        ("collections ", {"list", "show", "create", "drop", "alias", "unalias", "rename-embedder"}),
        ("objects de", {"delete"}),
        ("search --ur", {"--url"}),
        ("collections create x --metric ", {"cosine", "dot", "euclid"}),
    ],
)
def test_the_shell_completes_commands_and_options(typed, completed):
    words = f"embedding-studio {typed}"
    environment = os.environ | {
        "_EMBEDDING_STUDIO_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    program = "import sys; sys.argv[0] = 'embedding-studio'; from embedding_studio.cli import app; app()"

    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )

    assert set(ran.stdout.split()) == completed, ran.stderr


def test_the_json_of_a_search_has_the_fields_of_the_answer(both):
    here, _ = both("search", "aaab", "--json")

    page = json.loads(here.stdout)
    assert set(page) == {
        "results",
        "session_id",
        "next_page_offset",
        "personalised",
        "metric_type",
        "metric_aggregation_type",
        "is_sorted",
    }


# A catalogue, sent


def write_rows(name, *rows):
    Path(name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def test_a_catalogue_is_sent_as_it_would_be_stored(both, shop):
    write_rows(
        "o.jsonl", {"id": "a", "text": "abba"}, {"id": "cc", "text": "cc"}, {"id": "none", "text": " "}
    )

    here, there = both("index", "o.jsonl", "--json", "--prune")
    again = both("index", "o.jsonl", "--dry-run", "--json")

    assert told(here) | {"seconds": 0} == {
        "indexed": 2,
        "updated": 0,
        "unchanged": 0,
        "empty": 1,
        "seconds": 0,
        "pruned": 2,
    }
    assert told(there) | {"seconds": 0} == told(here) | {
        "indexed": 0,
        "unchanged": 2,
        "pruned": 0,
        "seconds": 0,
    }
    assert told(again[0]) == told(again[1])
    assert shop.storage.objects.get(shop.collection(), ["a"])[0].payload == {"text": "abba"}


def test_vectors_are_sent_into_a_collection_made_for_them(command, served, shop, monkeypatch):  # noqa: F811
    monkeypatch.setenv("EMBEDDING_STUDIO_URL", served[1])
    write_rows(
        "v.jsonl", {"id": "x", "v": [[1, 0, 2], [0, 1, 0]], "n": 1}, {"id": "y", "v": [[0, 0, 1]], "n": 2}
    )
    write_rows("long.jsonl", {"id": "x", "v": [[1, 0, 2, 3]]})
    write_rows("p.jsonl", {"id": "x", "n": 5}, {"id": "gone", "n": 6})
    sent = ("index", "v.jsonl", "-c", "ready", "--vector-column", "v", "--metric", "dot", "--json")

    first, second = told(command(*sent)), told(command(*sent))
    replaced = told(command("payloads", "p.jsonl", "-c", "ready", "--json"))
    too_long = refusal(command("index", "long.jsonl", "-c", "ready", "--vector-column", "v"))
    other = command("index", "v.jsonl", "-c", "ready", "--vector-column", "v", "--metric", "euclid")
    ready = shop.storage.collections.get("ready")
    x, y = shop.storage.objects.get(ready, ["x", "y"])

    assert (first["indexed"], second["indexed"]) == (2, 2)
    assert ready.index == SearchIndexInfo(dimensions=3, metric_type="dot")
    assert x.parts.tolist() == [[1, 0, 2], [0, 1, 0]]
    assert (x.payload, y.payload) == ({"n": 5}, {"n": 2})
    assert replaced == {"updated": 1, "unknown": 1}
    assert "4" in too_long
    assert "3" in too_long
    assert "euclid" in refusal(other)


def test_what_a_service_cannot_be_asked_is_said(command, served, shop, monkeypatch):  # noqa: F811
    monkeypatch.setenv("EMBEDDING_STUDIO_URL", served[1])
    write_rows("o.jsonl", {"id": "a", "text": "abba"})

    assert "collections create films --embedder" in refusal(command("index", "o.jsonl", "-c", "films"))
    assert command("index", "o.jsonl", "--metric", "dot").exit_code == 2
    assert command("index", "o.jsonl", "--prune", "--dry-run").exit_code == 2
    assert "no such file" in refusal(command("index", "none.jsonl"))
