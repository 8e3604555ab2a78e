import asyncio
import gzip
import io
import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

import embedding_studio
from embedding_studio import datetime_utils
from embedding_studio.bootstrap import Context
from embedding_studio.cli import app, console
from embedding_studio.cli.evaluation import Baseline, Clicks, Method
from embedding_studio.cli.searching import _vector_or_text
from embedding_studio.cli.serving import bound
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.domain.sessions import Session
from embedding_studio.errors import EmbeddingError
from embedding_studio.evaluation import CLICK_MODELS, METHODS, PLAIN
from embedding_studio.settings import Settings, load_settings

QUICKSTART = Path(__file__).parents[1] / "docs" / "quickstart.md"

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_as_empty_ones(closed):
    run = 'exec "$0" -c "from embedding_studio.cli import app; app()" index - --dry-run'

    ended = subprocess.run(
        ["sh", "-c", f"{run} {closed}", sys.executable], capture_output=True, text=True, input="", check=False
    )

    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr == ("" if "2>" in closed else "error: -: it is empty; there is no row in it\n")


def test_the_verbs_are_those_that_people_know():
    assert (
        sorted(
            [
                "evaluate",
                "replay",
                "index",
                "payloads",
                "objects",
                "get",
                "delete",
                "export",
                "import",
                "search",
                "serve",
                "worker",
                "improve",
                "demo",
                "migrate",
                "settings",
                "tune",
                "recall",
                "doctor",
                "attach",
                "reconcile",
                "collections",
                "keys",
                "quarantine",
                "forget",
                "users",
                "prune",
                "backup",
                "restore",
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
    monkeypatch.setenv("ADMIN_API_KEY", "very-secret-0123456789")

    listed = CliRunner().invoke(app, ["settings", "--json"])

    assert set(json.loads(listed.stdout)) == set(Settings.model_fields)
    assert "very-secret-0123456789" not in listed.stdout


def test_what_evaluate_offers_is_what_there_is_to_evaluate():
    assert {each.value for each in Method} == set(METHODS)
    assert {each.value for each in Baseline} == {PLAIN, *METHODS}
    assert {each.value for each in Clicks} == set(CLICK_MODELS)


def test_the_service_answers_without_waiting_for_acknowledgements():
    """Else the body of each answer waits some 40 ms for the client to acknowledge the head."""

    async def accepted_without_delay():
        with bound(load_settings(embedder="none"), None, 0) as listening:
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


# Objects by file


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Return what runs a command in a folder of its own and returns how it ended."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("EMBEDDER", "none")
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    loggers = logging.getLogger().handlers[:]
    yield lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])
    for each, handler in handlers.items():
        signal.signal(each, handler)
    logging.getLogger().handlers[:] = loggers


@pytest.fixture
def stored(monkeypatch, memory):
    """Return the storage of all commands, in memory."""
    monkeypatch.setattr(Context, "open_storage", lambda _: memory)
    return memory


def told(ended):
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


def refusal(ended):
    assert ended.exit_code == 1, ended.output
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return " ".join(ended.stderr.split())


def write(name, *rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def count(storage, name="default"):
    return storage.objects.count(storage.collections.get(name))


ROWS = [{"id": f"o{n}", "vector": [1, n, 0.5], "title": f"number {n}", "n": n} for n in range(7)]


def test_a_collection_is_made_for_the_vectors_that_a_file_brings(command, stored):
    write("o.jsonl", *ROWS)

    options = ("--vector-column", "vector", "--metric", "dot", "--aggregation", "avg", "-c", "films")
    report = told(command("index", "o.jsonl", *options, "--json"))
    found = command("search", "[1, 1, 0.5]", "-c", "films", "--limit", "1", "--json")

    films = stored.collections.get("films")
    assert (report["indexed"], report["unchanged"]) == (7, 0)
    assert report["seconds"] == round(report["seconds"], 2)
    assert "pruned" not in report
    assert (films.index.dimensions, films.index.metric_type, films.embedder) == (3, "dot", None)
    assert films.index.metric_aggregation_type == "avg"
    [best] = told(found)["results"]
    assert (best["object_id"], best["payload"]) == ("o6", {"title": "number 6", "n": 6})


def test_vectors_of_a_file_of_numpy_are_those_of_the_rows(command, stored, monkeypatch):
    monkeypatch.setenv("EMBEDDER", "a model that is nowhere")
    Path("o.csv").write_text("sku,price\n7,1.5\n8,2\n")
    np.save("o.npy", np.array([[1, 0], [0, 1]], dtype=np.float16))

    told(command("index", "o.csv", "--id-column", "sku", "--vectors", "o.npy", "--json"))

    default = stored.collections.get("default")
    seven, eight = stored.objects.get(default, ["7", "8"])
    assert (seven.parts.tolist(), seven.payload) == ([[1, 0]], {"price": 1.5})
    assert (eight.parts.tolist(), eight.payload) == ([[0, 1]], {"price": 2})
    assert default.embedder is None


class FailingEmbedder:
    """An embedder that fails once its size is known."""

    name = "failing"
    dimensions = 3

    def split(self, text):
        return [text]

    def embed(self, texts, **_):
        if "b" in texts:
            raise EmbeddingError("gone")
        return np.ones((len(texts), 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("texts", "name", "kept"),
    [
        ("b", "films", ["before"]),
        ("b", "before", ["before"]),
        (["a"] * 256 + ["b"], "films", ["before", "films"]),
    ],
    ids=["nothing stored", "made before", "a batch stored"],
)
def test_an_attempt_that_stored_nothing_leaves_no_collection(command, stored, texts, name, kept):
    stored.collections.create("before", SearchIndexInfo(dimensions=3), embedder="failing")
    write("o.jsonl", *({"id": n, "text": text} for n, text in enumerate(texts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Context, "embedder", FailingEmbedder(), raising=False)

        assert "gone" in refusal(command("index", "o.jsonl", "-c", name))

    assert [each.name for each in stored.collections.list()] == kept


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ('{"vector": [1]}', ["--vector-column", "vector"], "o.jsonl: no column 'id'; there are 'vector'"),
        ('{"id": "a"}', ["--vector-column", "vector"], "o.jsonl: no column 'vector'; there are 'id'"),
        (
            '{"id": "a", "vector": [0]}',
            ["--vector-column", "vector"],
            "o.jsonl, line 1, column 'vector' is zero",
        ),
        ('{"id": "a"}\n{"id": "b"}\n', ["--vectors", "o.npy"], "3 vectors for the 2 rows of o.jsonl"),
        ("", ["--vector-column", "vector"], "o.jsonl: it is empty; there is no row in it"),
        ("", ["--vectors", "absent.npy"], "absent.npy: there is no such file"),
        ('{"id": "a"}', [], "o.jsonl: no column 'text'; there are 'id'"),
        ("", ["--prune"], "o.jsonl: it is empty; there is no row in it"),
    ],
)
def test_a_file_is_looked_at_before_anything_is_made(command, stored, content, options, said):
    Path("o.jsonl").write_text(content)
    np.save("o.npy", np.ones((3, 2)))

    assert said in refusal(command("index", "o.jsonl", *options))
    assert stored.collections.list() == []


def test_vectors_that_do_not_fit_a_collection_that_is_there_are_refused_with_their_place(command, stored):
    write("o.jsonl", *ROWS)
    write("wrong.jsonl", {"id": "w", "vector": [1, 2]})
    told(command("index", "o.jsonl", "--vector-column", "vector", "--json"))

    other_size = command("index", "wrong.jsonl", "--vector-column", "vector")
    other_metric = command("index", "o.jsonl", "--vector-column", "vector", "--metric", "dot")

    assert "wrong.jsonl, line 1, column 'vector' have 2 dimensions, the collection has 3" in refusal(
        other_size
    )
    assert "'default' exists as" in refusal(other_metric)
    assert count(stored) == 7


def test_of_a_file_with_a_wrong_row_nothing_is_stored(command, stored):
    rows = [{"id": str(n), "vector": [1, n]} for n in range(2_500)]
    write("o.jsonl", *rows, {"id": "wrong", "vector": [1, "2"]})

    said = refusal(command("index", "o.jsonl", "--vector-column", "vector", "--prune"))

    assert "o.jsonl, line 2501, column 'vector': a vector is a list of numbers" in said
    assert stored.collections.list() == []


@pytest.mark.parametrize(
    "options",
    [["--vector-column", "v", "--vectors", "v.npy"], ["--vector-column", "v", "--text-column", "text"]],
)
def test_options_that_exclude_each_other_exit_with_2(command, options):
    assert command("index", "o.jsonl", *options).exit_code == 2


def test_pruning_removes_what_the_file_does_not_name_and_a_dry_run_only_says_so(command, stored):
    write("o.jsonl", *ROWS)
    write("fewer.jsonl", *ROWS[:3], {"id": "new", "vector": [1, 1, 1]})
    brings = ("--vector-column", "vector", "--json")

    before = told(command("index", "o.jsonl", *brings, "--prune", "--dry-run"))
    shown = before.pop("first")
    nothing = stored.collections.list()
    told(command("index", "o.jsonl", *brings))
    rehearsed = told(command("index", "fewer.jsonl", *brings, "--prune", "--dry-run"))
    still = count(stored)
    pruned = told(command("index", "fewer.jsonl", *brings, "--prune"))

    assert (before, nothing) == ({"would_index": 7, "would_leave_out": 0, "would_prune": 0}, [])
    assert shown[4] == {"object_id": "o4", "vectors": "1 x 3", "payload": {"title": "number 4", "n": 4}}
    assert len(shown) == 5
    assert (rehearsed["would_index"], rehearsed["would_prune"], still) == (4, 4, 7)
    assert (pruned["indexed"], pruned["pruned"]) == (4, 4)
    assert told(command("get", "new", "o2", "--json"))[0] == {
        "id": "new",
        "payload": {},
        "vectors": [[1, 1, 1]],
    }
    assert count(stored) == 4


def test_a_dry_run_shows_objects_as_they_would_be_stored_without_a_model(command, stored, monkeypatch):
    monkeypatch.setenv("EMBEDDER", "a model that is nowhere")
    Path("o.csv").write_text("id;text;zip;price;photo\na;red [shoe];02134;9.5;x\nb;;10001;7;y\n")

    as_json = told(command("index", "o.csv", "--drop-column", "photo", "--dry-run", "--json"))
    as_table = command("index", "o.csv", "--payload-column", "price", "--dry-run")

    assert as_json == {
        "would_index": 1,
        "would_leave_out": 1,
        "first": [
            {
                "object_id": "a",
                "text": "red [shoe]",
                "payload": {"text": "red [shoe]", "zip": "02134", "price": 9.5},
            },
            {"object_id": "b", "text": "", "payload": {"text": None, "zip": "10001", "price": 7}},
        ],
    }
    assert "red [shoe]" in as_table.stdout
    assert '{"price": 9.5}' in as_table.stdout
    assert stored.collections.list() == []


def test_a_file_that_is_refused_costs_no_model_and_no_database(command, monkeypatch):
    monkeypatch.setenv("EMBEDDER", "a model that is nowhere")
    monkeypatch.setattr(Context, "open_storage", lambda _: pytest.fail("a database is opened"))
    Path("o.csv").write_text("id,text\na,red\na,blue\nb,gre\0en\nb,\n")

    said = refusal(command("index", "o.csv", "--metric", "dot"))

    assert said == (
        "error: o.csv, line 3: the id 'a' stands in line 2 too; it names one object (--on-duplicate says "
        "which row counts) (and 1 more so); line 4, column 'text': a text may not hold the character NUL "
        "(U+0000)"
    )
    assert "absent.csv: there is no such file" in refusal(command("payloads", "absent.csv"))


def test_a_delimiter_is_one_character(command):
    assert command("index", "o.csv", "--delimiter", "||").exit_code == 2


def test_of_rows_with_one_id_the_one_that_was_chosen_is_stored_and_it_is_noted(command, stored):
    write("o.jsonl", *ROWS[:2], {**ROWS[0], "n": 7})

    ended = command(
        "index", "o.jsonl", "--vector-column", "vector", "--on-duplicate", "last", "--payload-column", "n"
    )

    assert "note: 1 row has the id of another; of an object's rows the last counts" in ended.stderr
    assert told(command("get", "o0", "--json"))[0]["payload"] == {"n": 7}


def test_an_empty_file_prunes_nothing(command, stored):
    write("o.jsonl", *ROWS)
    write("empty.jsonl")
    told(command("index", "o.jsonl", "--vector-column", "vector", "--json"))

    said = refusal(command("index", "empty.jsonl", "--vector-column", "vector", "--prune"))

    assert "empty.jsonl: it is empty; there is no row in it" in said
    assert count(stored) == 7


def test_payloads_are_replaced_and_vectors_stay(command, stored):
    write("o.jsonl", *ROWS)
    Path("prices.csv").write_text("id,price\no1,9.5\nunknown,1\n")
    told(command("index", "o.jsonl", "--vector-column", "vector", "--json"))

    report = told(command("payloads", "prices.csv", "--json"))

    assert report == {"updated": 1, "unknown": 1}
    assert told(command("get", "o1", "o0", "--json")) == [
        {"id": "o1", "payload": {"price": 9.5}, "vectors": [[1, 1, 0.5]]},
        {"id": "o0", "payload": {"title": "number 0", "n": 0}, "vectors": [[1, 0, 0.5]]},
    ]
    assert "absent" in refusal(command("payloads", "prices.csv", "-c", "absent"))


def test_objects_are_shown_and_deleted_and_an_unknown_one_is_told(command, stored):
    write("o.jsonl", *ROWS)
    told(command("index", "o.jsonl", "--vector-column", "vector", "--json"))

    shown = command("get", "o1", "unknown")
    deleted = told(command("delete", "o1", "o2", "unknown", "--json"))

    assert '{"title": "number 1", "n": 1}' in shown.stdout
    assert "'default' has no object 'unknown'" in refusal(shown)
    assert deleted == {"deleted": 2}
    assert count(stored) == 5


def test_an_export_is_written_to_standard_output_where_no_file_is_named(command, stored):
    write("o.jsonl", *ROWS)
    told(command("index", "o.jsonl", "--vector-column", "vector", "--json"))

    few = '{"query": {"field": "n", "range": {"lt": 2}}}'
    lines = command("export", "--filter", few).stdout.splitlines()

    assert [json.loads(line) for line in lines] == [
        {"id": "o0", "title": "number 0", "n": 0},
        {"id": "o1", "title": "number 1", "n": 1},
    ]


def exported(command, name, *options):
    ended = command("export", "-o", name, *options)
    assert ended.exit_code == 0, ended.output
    return gzip.decompress(Path(name).read_bytes()) if name.endswith(".gz") else Path(name).read_bytes()


def test_what_was_exported_and_indexed_again_is_the_same(command, monkeypatch, postgres_url):
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    rng = np.random.default_rng(11)
    odd = ["o'1", "%s {0} \\ $1", "靴 größe 🙂", " spaces ", "7", "x" * 512]
    rows = [
        {
            "id": object_id,
            "vector": rng.normal(size=(1 + n % 3, 5)).tolist(),
            "tags": ["x", None, True],
            "deep": {"n": n, "x": 0.1 * n, "word": "größe\n"},
        }
        for n, object_id in enumerate([*odd, *map(str, range(1_000, 2_100))])
    ]
    write("o.jsonl", *rows)
    told(command("index", "o.jsonl", "--vector-column", "vector", "--aggregation", "avg", "--json"))

    first = exported(command, "first.jsonl.gz", "--vectors")
    told(
        command(
            "index",
            "first.jsonl.gz",
            "--vector-column",
            "vector",
            "--aggregation",
            "avg",
            "-c",
            "again",
            "--json",
        )
    )
    second = exported(command, "second.jsonl", "--vectors", "-c", "again")
    without = [json.loads(line) for line in exported(command, "without.jsonl").splitlines()]

    assert first == second
    assert without == sorted(
        [{name: value for name, value in row.items() if name != "vector"} for row in rows],
        key=lambda row: row["id"],
    )
    vectors = {row["id"]: row["vector"] for row in map(json.loads, first.splitlines())}
    for row in rows:
        np.testing.assert_array_equal(
            np.atleast_2d(np.array(vectors[row["id"]], dtype=np.float32)),
            np.array(row["vector"], dtype=np.float32),
        )


def test_the_quickstarts_commands_for_vectors_of_ones_own_run(command, stored):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    section = QUICKSTART.read_text().partition("## Bring your own vectors\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^embedding-studio (.*)$", section, re.MULTILINE)
    vectors = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    table = {"sku": ["sku-17", "sku-18", "sku-19"], "price": [70, 80, 90]}
    parquet.write_table(pa.table(table | {"embedding": vectors.tolist()}), "products.parquet")
    Path("products.csv").write_text("sku,price\nsku-17,70\nsku-18,80\nsku-19,90\n")
    Path("prices.csv").write_text("sku,price\nsku-17,60\n")
    np.save("products.npy", vectors)

    ended = [(line, command(*shlex.split(line))) for line in commands]

    assert len(commands) >= 6
    assert [(line, each.output) for line, each in ended if each.exit_code != 0] == []
    assert "EMBEDDER=none" in section
    assert len(gzip.decompress(Path("products.jsonl.gz").read_bytes()).splitlines()) == 3


# Recall and doctor


@pytest.fixture
def films(command, monkeypatch, postgres_url):
    """A database with a collection that has codes; returns what runs commands on it."""
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    np.save("o.npy", np.random.default_rng(5).normal(size=(3_000, 66)).astype(np.float32))
    write("o.jsonl", *({"id": f"o{n}"} for n in range(3_000)))
    told(command("index", "o.jsonl", "--vectors", "o.npy", "-c", "films", "--json"))
    return command


def test_recall_is_measured_and_a_table_and_a_sentence_tell_it(films):
    options = ("films", "--queries", "20", "--k", "5", "--target", "0.8")

    rehearsed = told(films("recall", *options, "--dry-run", "--json"))
    shown = films("recall", *options)
    again = told(films("recall", *options, "--dry-run", "--json"))
    checked = told(films("doctor", "--json"))

    assert (rehearsed["queries"], rehearsed["recorded"], rehearsed["k"]) == (20, 0, 5)
    assert shown.exit_code == 0, shown.output
    assert "from now on" in shown.stdout
    assert "20 objects slightly changed" in shown.stderr
    assert f"With a margin of {rehearsed['after']:g} 'films' finds" in shown.stdout
    assert again["before"] == rehearsed["after"] != rehearsed["before"]
    assert {each["grade"] for each in checked} == {"OK"}


def test_recall_of_a_collection_that_is_compared_as_a_whole_is_one(command, stored):
    write("o.jsonl", *ROWS)
    told(command("index", "o.jsonl", "--vector-column", "vector", "--json"))

    shown = command("recall")

    assert shown.stdout == "All objects of 'default' are compared: recall is 1 by construction.\n"


def test_a_recall_below_one_is_not_measured_where_all_are_compared(command, stored, monkeypatch):
    monkeypatch.setenv("RECALL_TARGET", "1")

    assert "RECALL_TARGET is 1, so all are compared" in refusal(command("recall", "--target", "0.9"))


def test_the_doctor_prints_a_line_for_each_thing(command, stored):
    shown = command("doctor", "--embedder")

    assert shown.exit_code == 0, shown.output
    assert re.search(r"OK +│ settings", shown.stdout)
    assert re.search(r"OK +│ storage +│ in the memory of this process", shown.stdout)
    assert re.search(r"WARN +│ collections +│ there is none yet", shown.stdout)


def test_the_doctor_exits_with_1_and_says_what_fails(command, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://ann:secret@127.0.0.1:1/shop")

    storage = command("doctor", "--json")
    monkeypatch.setenv("RECALL_TARGET", "2")
    settings = command("doctor", "--json")

    assert storage.exit_code == settings.exit_code == 1
    assert [each["grade"] for each in json.loads(storage.stdout)] == ["OK", "OK", "OK", "FAIL"]
    [failed] = json.loads(settings.stdout)
    assert failed["told"].startswith("RECALL_TARGET: Input should be less than or equal to 1")
    assert "secret" not in storage.stdout


def test_a_user_is_quarantined_listed_and_released(command, stored):
    added = command("quarantine", "add", "[/ada]", "--reason", "sells [bold]x[/]")
    listed = command("quarantine")
    [told] = json.loads(command("quarantine", "--json").stdout)
    released = command("quarantine", "release", "[/ada]")
    empty = command("quarantine", "--json")
    wrong = command("quarantine", "add", "")

    assert added.exit_code == released.exit_code == 0
    assert "sells [bold]x[/]" in listed.stdout
    assert (told["user_id"], told["collection"], told["reason"]) == ("[/ada]", None, "sells [bold]x[/]")
    assert "Released '[/ada]'" in released.stderr
    assert json.loads(empty.stdout) == []
    assert wrong.exit_code == 1


# Any text, on any terminal

MARKED = "[/etc/hosts] [bold]x[/] :smile: \\[ ]"


def test_texts_with_brackets_are_printed_as_they_are(command, stored):
    write("o.jsonl", {"id": "[/x]", "vector": [1, 0], "title": MARKED})
    told(command("index", "o.jsonl", "--vector-column", "vector", "-c", "[/c]", "--json"))
    stored.collections.set_alias("[red]", "[/c]")

    found = command("search", "[1, 0]", "-c", "[/c]", "--explain", "-u", "[/ada]")
    shown = command("get", "[/x]", "-c", "[red]")
    listed = command("collections")
    examined = command("doctor")
    wrong = command("get", "[/unknown]", "-c", "[/c]")
    forgotten = command("forget", "[/ada]")

    for ended in (found, shown):
        assert ended.exit_code == 0, ended.output
        assert "[/x]" in ended.stdout
    assert MARKED in found.stdout
    assert MARKED in json.loads(re.search(r"{.*}", shown.stdout)[0])["title"]
    assert "[/c]" in listed.stdout
    assert "[red]" in listed.stdout
    assert "[/c]" in examined.stdout
    assert "no object '[/unknown]'" in refusal(wrong)
    assert "Forgot '[/ada]'" in forgotten.stderr


HOSTILE = "\x1b]0;PWNED\x07\x1b[31m \x9b2J\x7f \u202egpj.exe\u2066"
SHOWN = r"\x1b]0;PWNED\x07\x1b[31m \x9b2J\x7f \u202egpj.exe\u2066"


def test_no_text_commands_the_terminal_that_it_is_printed_on(command, stored):
    write("o.jsonl", {"id": f"o{HOSTILE}", "vector": [1, 0], "title": HOSTILE})
    told(command("index", "o.jsonl", "--vector-column", "vector", "-c", "films", "--json"))
    command("quarantine", "add", f"u{HOSTILE}", "--reason", f"for {HOSTILE}")
    of_films = ("-c", "films")

    shown = {
        name: command(*arguments)
        for name, arguments in {
            "search": ("search", "[1, 0]", *of_films, "--explain"),
            "search in JSON": ("search", "[1, 0]", *of_films, "--json"),
            "get": ("get", f"o{HOSTILE}", *of_films),
            "list": ("objects", "list", *of_films),
            "quarantine": ("quarantine",),
            "forget": ("users", "forget", f"u{HOSTILE}"),
            "unknown": ("get", HOSTILE, *of_films),
            "no file": ("import", f"a {HOSTILE} file", *of_films),
        }.items()
    }

    for name, ended in shown.items():
        assert commands_in(ended.stdout + ended.stderr) == set(), name
    assert f"o{SHOWN}" in shown["search"].stdout
    assert r"for \x1b]0;PWNED\x07" in shown["quarantine"].stdout
    assert f"a {SHOWN} file" in shown["no file"].stderr
    [found] = told(shown["search in JSON"])["results"]
    assert (found["object_id"], found["payload"]["title"]) == (f"o{HOSTILE}", HOSTILE)


def commands_in(printed: str) -> set[str]:
    """Return what commands a terminal: control characters but a line's end and a tab, and overrides."""
    bidirectional = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return {
        each
        for each in printed
        if each not in "\n\t"
        and (unicodedata.category(each) == "Cc" or unicodedata.bidirectional(each) in bidirectional)
    }


def test_every_character_that_commands_a_terminal_is_shown_and_no_other(capsys):
    every = "".join(map(chr, range(0x2100)))  # no Unicode beyond has more of either kind

    as_shown, as_json = console.visible(every), console.as_json_line(every)
    console.tell("note", every)
    console.announce(every)
    with console.shown_progress() as show:
        show(HOSTILE, 1, 1)
    with console.bar(HOSTILE, 1) as move:
        move(1)

    said = capsys.readouterr()
    for each in (as_shown, as_json, said.out, said.err):
        assert commands_in(each) == set()
    assert said.err.count(r"\x1b]0;PWNED") == 2
    assert json.loads(as_json) == every
    left = set(every) - commands_in(every)
    assert all(console.visible(each) == each for each in left)
    assert console.visible(HOSTILE) == SHOWN


@pytest.mark.parametrize(
    "text",
    [
        "[solved] blue hat",
        "[sale] warm jacket",
        "[",
        "[]",
        "[[]]",
        "[1, 2",
        "[1, true]",
        '["39"]',
        "[1, [2]]",
        "[null]",
        "[" * 100_000,
        f"[{'9' * 5_000}]",
    ],
)
def test_a_query_is_a_text_unless_it_is_numbers(text):
    assert _vector_or_text(text) == text


@pytest.mark.parametrize(
    ("text", "vectors"), [("[39]", [39]), (" [1, 0.5]", [1, 0.5]), ("[[1, 2], [3, 4]]", [[1, 2], [3, 4]])]
)
def test_a_query_of_numbers_is_vectors(text, vectors):
    assert _vector_or_text(text) == vectors


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("[1]", "a filter is a JSON object"),
        ("{", "--filter is not JSON"),
        ("[" * 100_000, "--filter is not JSON"),
        ('{"query": {"trem": 1}}', "filter.query: ['trem'] is no kind of query"),
        (json.dumps({"query": {"term": {"field": "a", "value": "x" * 9_000}}}), "more than 1,024 characters"),
    ],
)
@pytest.mark.parametrize("arguments", [("search", "x"), ("export",)])
def test_a_wrong_filter_is_told_in_a_sentence(command, stored, arguments, given, said):
    stored.collections.create("default", SearchIndexInfo(dimensions=2))

    sentence = refusal(command(*arguments, "--filter", given))

    assert said in sentence
    assert len(sentence) < 600


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp936", "utf-8"])
def test_what_is_printed_can_be_written_in_any_encoding(command, monkeypatch, postgres_url, encoding):
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    title = "größe 靴 🙂 it\u2019s"
    write("o.jsonl", {"id": "靴🙂", "vector": [1, 0], "title": title})
    told(command("index", "o.jsonl", "--vector-column", "vector", "--json"))
    program = [sys.executable, "-c", "from embedding_studio.cli import app; app()"]

    def ran(*arguments):
        return subprocess.run(
            [*program, *arguments],
            env=os.environ | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )

    as_json, table, wrong = ran("search", "[1, 0]", "--json"), ran("search", "[1, 0]"), ran("get", "没有🙂")

    assert as_json.returncode == table.returncode == 0, as_json.stderr + table.stderr
    [found] = json.loads(as_json.stdout.decode(encoding))["results"]
    assert (found["object_id"], found["payload"]["title"]) == ("靴🙂", title)
    assert wrong.returncode == 1
    assert b"Traceback" not in wrong.stderr
    wrong.stderr.decode(encoding)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("option", [[], ["--markdown"]])
def test_what_finds_no_room_to_be_written_is_told_in_a_sentence(option):
    program = [sys.executable, "-c", "from embedding_studio.cli import app; app()", "settings", *option]

    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, check=False)

    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert "could not be: No space left on device" in ran.stderr


def test_collections_are_made_named_and_dropped(command, stored):
    made = command("collections", "create", "films", "--dimensions", "3", "--metric", "dot")
    command("collections", "alias", "live", "films")
    [listed] = told(command("collections", "--json"))

    assert made.exit_code == 0, made.output
    assert (listed["name"], listed["dimensions"], listed["metric_type"]) == ("films", 3, "dot")
    assert listed["aliases"] == ["live"]
    said = refusal(command("collections", "create", "films", "--dimensions", "4"))
    assert "exists as dot/min of 3 dimensions, brought by callers" in said
    assert "asked for is cosine/min of 4 dimensions" in said
    assert "(" not in said
    assert "size is unknown" in refusal(command("collections", "create", "other"))
    assert command("collections", "drop-alias", "live").exit_code == 0
    assert "there is no alias 'live'" in refusal(command("collections", "drop-alias", "live"))
    assert command("collections", "drop", "films").exit_code == 0
    assert stored.collections.list() == []


def test_a_wrong_setting_is_told_and_all_are_listed_all_the_same(command, monkeypatch):
    monkeypatch.setenv("PORT", "abc")

    ended = command("settings")

    assert "PORT: Input should be a valid integer" in refusal(ended)
    assert "GATE_THRESHOLD" in ended.stdout
    assert "Where the service listens" in ended.stdout


def test_a_port_that_is_none_exits_with_2(command):
    assert command("serve", "--port", "99999").exit_code == 2


@pytest.mark.parametrize("option", ["--html", "--json", "--markdown"])
@pytest.mark.parametrize("arguments", [("evaluate", "folder"), ("replay",)])
def test_where_nothing_can_be_written_is_told_before_the_work(command, arguments, option):
    assert "no/such/x.html cannot be written" in refusal(command(*arguments, option, "no/such/x.html"))


def test_the_version_is_told(command):
    assert command("--version").stdout == f"{embedding_studio.__version__}\n"


def test_a_user_is_exported_and_forgotten_with_a_receipt(command, stored, tmp_path):
    stored.collections.create("default", SearchIndexInfo(dimensions=2))
    session = Session(session_id="s1", user_id="ann", search_query="wing")
    stored.clickstream.register_session(session)

    wrote = command("users", "export", "ann", "-o", tmp_path / "ann.jsonl")
    receipt = told(command("users", "forget", "ann", "--json"))

    assert wrote.exit_code == 0
    assert json.loads((tmp_path / "ann.jsonl").read_text())["query"] == "wing"
    assert receipt["removed"]["sessions"] == 1
    assert receipt["not_reached"]
    assert "sessions_for_improvement" in command("forget", "ann").stdout
    assert command("users", "export", "ann").stdout == ""


def test_what_is_older_than_an_age_is_pruned(command, stored):
    stored.collections.create("default", SearchIndexInfo(dimensions=2))
    for session_id, at in (("old", 1), ("new", datetime_utils.utc_timestamp())):
        stored.clickstream.register_session(Session(session_id=session_id, created_at=at))

    wrong = command("prune", "--older-than", "180")
    went = told(command("prune", "--older-than", "180d", "--json"))

    assert wrong.exit_code == 1
    assert "such as 180d" in wrong.stderr
    assert went == {"sessions": 1, "events": 0}
    assert [each.session.session_id for each in stored.clickstream.scan()] == ["new"]


def test_long_work_says_in_lines_how_far_it_is_where_there_is_no_terminal(monkeypatch):
    printed = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=printed))
    monkeypatch.setattr(console, "LINE_SECONDS", 0)

    with console.bar("Indexing films", 3000) as move:
        move(1000)
        move(1500)

    assert printed.getvalue().splitlines()[:2] == [
        "Indexing films: 1,000 of 3,000",
        "Indexing films: 2,500 of 3,000",
    ]
