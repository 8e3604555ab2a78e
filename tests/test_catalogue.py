import gzip
import io
import json
import sys
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace

import pytest

from embedding_studio.catalogue import CatalogueText, read_catalogue, read_python_documentation
from embedding_studio.errors import InvalidDataError

FILMS_CSV = 'id,title,plot,year,price\n007,Up,"A house\nflies",2009,9.50\n8,Heat,,1995,\n'


def read(path, *, id_column="id", text_columns=("title",)):
    return list(read_catalogue(path, id_column=id_column, text_columns=text_columns))


def test_csv_rows_keep_their_ids_as_written_and_their_numbers_as_numbers(tmp_path):
    path = tmp_path / "films.csv"
    path.write_text(FILMS_CSV, encoding="utf-8-sig")

    up, heat = read(path, text_columns=["title", "plot"])

    assert up == CatalogueText(
        "007", "Up\nA house\nflies", {"title": "Up", "plot": "A house\nflies", "year": 2009, "price": 9.5}
    )
    assert heat == CatalogueText("8", "Heat", {"title": "Heat", "plot": None, "year": 1995, "price": None})


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("12", 12),
        ("-0.5", -0.5),
        ("1e3", 1000.0),
        ("007", "007"),
        ("+1", "+1"),
        ("1e999", "1e999"),
        ("NaN", "NaN"),
        ("١٢", "١٢"),
        ("", None),
    ],
)
def test_a_csv_value_is_a_number_where_json_would_read_one(tmp_path, written, kept):
    path = tmp_path / "one.csv"
    path.write_text(f"id,title,n\na,A,{written}\n", encoding="utf-8")

    (only,) = read(path)

    assert only.payload["n"] == kept
    assert type(only.payload["n"]) is type(kept)


def test_json_lines_keep_their_types(tmp_path):
    path = tmp_path / "films.jsonl"
    row = {"id": 7, "title": "Up", "tags": ["air", "old age"], "cast": {"lead": "Carl"}, "seen": True}
    path.write_text(json.dumps(row) + "\n\n" + json.dumps({"id": "8", "title": None, "tags": []}) + "\n")

    up, untitled = read(path, text_columns=["title", "tags"])

    assert up == CatalogueText("7", "Up\nair, old age", {key: row[key] for key in row if key != "id"})
    assert untitled == CatalogueText("8", "", {"title": None, "tags": []})


@pytest.mark.parametrize("name", ["films.ndjson.gz", "films.JSONL.GZ"])
def test_packed_files_are_read(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b'{"id": "a", "title": "Up"}\n'))

    assert read(path) == [CatalogueText("a", "Up", {"title": "Up"})]


def test_a_tab_separated_file_is_read(tmp_path):
    path = tmp_path / "films.tsv"
    path.write_text("id\ttitle\na\tUp, up\n")

    assert read(path) == [CatalogueText("a", "Up, up", {"title": "Up, up"})]


def test_standard_input_is_json_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"id": "a", "title": "Up"}\n')))

    assert read("-") == [CatalogueText("a", "Up", {"title": "Up"})]


def test_parquet_values_become_json(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "films.parquet"
    table = pa.table(
        {
            "id": [7, 8, 9],
            "title": ["Up", "Heat", None],
            "rating": [0.5, float("nan"), None],
            "price": [Decimal("9.50"), None, None],
            "shown_at": [datetime(2009, 5, 29, 20, tzinfo=UTC), None, None],
            "tags": [["air"], [], None],
        }
    )
    parquet.write_table(table, path)

    up, heat, untitled = read(path)

    assert up == CatalogueText(
        "7",
        "Up",
        {
            "title": "Up",
            "rating": 0.5,
            "price": 9.5,
            "shown_at": "2009-05-29T20:00:00+00:00",
            "tags": ["air"],
        },
    )
    assert heat.payload["rating"] is None
    assert untitled.text == ""


def test_parquet_bytes_are_refused_by_name(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "films.parquet"
    parquet.write_table(pa.table({"id": ["a"], "title": ["Up"], "poster": [b"\x89PNG"]}), path)

    with pytest.raises(InvalidDataError, match=r"row 1, column 'poster': a bytes has no place in JSON"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "id,name\na,Up\n", "line 2: no column 'title'; there are 'id', 'name'"),
        ("a.csv", "id,title\na,Up\nb\n", "line 3: 1 values for 2 columns, 'id', 'title'"),
        (
            "a.csv",
            'id,title\na,"Up\nand away"\na,Heat\n',
            "line 4: the id 'a' stands in line 2 too",
        ),
        ("a.csv", "id,title\n ,Up\n", "line 2, column 'id': an id is a text or a whole number; there is ' '"),
        ("a.csv", 'id,title\na,"Up\n', "line 2: not CSV as it should be"),
        ("a.csv", "id,id\na,b\n", "line 1: column names, each once, are needed"),
        ("a.csv", "", "line 1: column names, each once, are needed"),
        ("a.csv", f"id,title\n{'x' * 513},Up\n", "has 513 characters; at most 512 fit"),
        ("a.jsonl", '{"id": "a", "title": "Up"}\n{"id": "b"', "line 2: not JSON"),
        ("a.jsonl", '{"id": "a", "title": "Up", "n": NaN}', "line 1: not JSON: NaN is no JSON; write null"),
        ("a.jsonl", '["a", "Up"]', "line 1: a JSON object is needed"),
        ("a.jsonl", '{"id": true, "title": "Up"}', "line 1, column 'id': an id is a text or a whole number"),
        ("a.jsonl", '{"id": "a", "title": {"en": "Up"}}', "column 'title': {'en': 'Up'} is no text to embed"),
        ("a.jsonl", '{"id": "a"}', "line 1: no column 'title'; there are 'id'"),
        ("a.jsonl.gz", "not gzip", "cannot be read"),
        ("a.xlsx", "", "not a kind of file that is read; these are .csv"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_its_place(tmp_path, name, content, told):
    path = tmp_path / name
    path.write_text(content)

    with pytest.raises(InvalidDataError) as caught:
        read(path)

    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_wrong_encoding_are_told(tmp_path):
    latin = tmp_path / "latin.csv"
    latin.write_bytes("id,title\na,Amélie\n".encode("latin-1"))

    with pytest.raises(InvalidDataError, match="there is no such file"):
        read(tmp_path / "absent.csv")
    with pytest.raises(InvalidDataError, match="not UTF-8 text"):
        read(latin)


def test_a_damaged_parquet_file_is_told(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "films.parquet"
    path.write_bytes(b"PAR1 and then nothing")

    with pytest.raises(InvalidDataError, match="cannot be read as Parquet"):
        read(path)


def test_no_text_column_is_refused(tmp_path):
    with pytest.raises(InvalidDataError, match="name at least one to embed"):
        read(tmp_path / "films.csv", text_columns=[])


def test_rows_are_yielded_before_the_file_is_read_to_its_end(tmp_path):
    path = tmp_path / "films.jsonl"
    path.write_text('{"id": "a", "title": "Up"}\nno JSON at all\n')

    rows = read_catalogue(path, id_column="id", text_columns=["title"])

    assert next(rows).object_id == "a"
    with pytest.raises(InvalidDataError, match="line 2"):
        next(rows)


@pytest.fixture(scope="module")
def documentation():
    return {entry.object_id: entry for entry in read_python_documentation()}


def test_things_have_the_names_by_which_one_imports_them(documentation):
    # defined in: encoder of a package, a private module, a compiled module, a module of another name
    for object_id in (
        "json.JSONEncoder",
        "httpx.Client",
        "itertools.groupby",
        "os.path.join",
        "os.path.exists",
    ):
        assert object_id in documentation
    for object_id in ("str.split", "len", "asyncio.gather", "collections.OrderedDict.move_to_end"):
        assert object_id in documentation
    assert "json.encoder.JSONEncoder" not in documentation
    assert not [object_id for object_id in documentation if "._" in object_id or object_id.startswith("_")]


def test_an_entry_says_what_it_is(documentation):
    entry = documentation["json.dumps"]

    assert entry.text.startswith(
        "json dumps (obj, skipkeys, ensure_ascii, check_circular, allow_nan, indent, separators, default)\n"
        "Serialize obj to a JSON formatted str."
    )
    assert entry.payload["kind"] == "function"
    assert entry.payload["module"] == "json"
    assert entry.payload["package"] == "python"
    assert entry.payload["signature"].startswith("(obj, *, skipkeys=False, ensure_ascii=True")
    assert entry.payload["summary"].startswith("Serialize obj to a JSON formatted str")
    assert entry.payload["source"].startswith("json/__init__.py:")


def test_every_entry_has_words_beside_its_name_and_no_more_than_embed_quickly(documentation):
    lengths = [len(entry.text.partition("\n")[2].split()) for entry in documentation.values()]

    assert min(lengths) >= 1
    assert max(lengths) == 60


def test_the_documentation_is_about_ten_thousand_objects_library_first(documentation):
    packages = [entry.payload["package"] for entry in documentation.values()]

    assert 7_000 < len(documentation) < 13_000
    assert packages.index("numpy") > packages.count("python") > 5_000
    assert {"python", "numpy", "pydantic"} <= set(packages)


def test_a_limited_list_is_the_beginning_of_the_whole(documentation):
    first = list(read_python_documentation(limit=57))

    assert first == list(documentation.values())[:57]
