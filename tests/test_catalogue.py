import gzip
import io
import json
import sys
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedding_studio.catalogue import (
    CatalogueFile,
    CatalogueText,
    Reading,
    read_python_documentation,
    write_objects,
)
from embedding_studio.domain.index import MetricType, SearchIndexInfo
from embedding_studio.domain.objects import CatalogueObject
from embedding_studio.errors import InvalidDataError, InvalidInputError

FILMS_CSV = 'id,title,plot,year,price\n007,Up,"A house\nflies",2009,9.50\n8,Heat,,1995,\n'


def read(path, *, text_columns=("title",), **reading: Any):
    with CatalogueFile(path, Reading(text_columns=tuple(text_columns), **reading)) as catalogue:
        return list(catalogue.texts())


def test_csv_rows_keep_their_ids_as_written_and_their_numbers_as_numbers(tmp_path):
    path = tmp_path / "films.csv"
    path.write_text(FILMS_CSV, encoding="utf-8-sig")

    up, heat = read(path, text_columns=["title", "plot"])

    assert up == CatalogueText(
        "007", "Up\nA house\nflies", {"title": "Up", "plot": "A house\nflies", "year": 2009, "price": 9.5}
    )
    assert heat == CatalogueText("8", "Heat", {"title": "Heat", "plot": None, "year": 1995, "price": None})


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


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "id,name\na,Up\n", "line 1: no column 'title'; there are 'id', 'name'"),
        ("a.csv", "id,title\na,Up\nb\n", "line 3: 1 value for 2 columns, 'id', 'title'"),
        (
            "a.csv",
            'id,title\na,"Up\nand away"\na,Heat\n',
            "line 4: the id 'a' stands in line 2 too",
        ),
        ("a.csv", "id,title\n ,Up\n", "line 2, column 'id': there is no id"),
        ("a.csv", 'id,title\na,"Up\n', "line 2: not CSV as it should be"),
        ("a.csv", "id,title,title\na,b,c\n", "line 1: more than one column is named 'title'"),
        ("a.csv", "", "it is empty; there is no row in it"),
        ("a.csv", "id,title\n", "it is empty; there is no row in it"),
        ("a.jsonl", "\n", "it is empty; there is no row in it"),
        ("a.csv", f"id,title\n{'x' * 513},Up\n", "has 513 bytes; at most 512 fit"),
        ("a.jsonl", '{"id": "a", "title": "Up"}\n{"id": "b"', "line 2: not JSON"),
        ("a.jsonl", '{"id": "a", "title": "Up", "n": NaN}', "line 1: not JSON: NaN is no JSON; write null"),
        ("a.jsonl", '"a"', "line 1: a JSON object is needed"),
        (
            "a.jsonl",
            '{"id": true, "title": "Up"}',
            "line 1, column 'id': an id is a text or a number; there is True",
        ),
        ("a.jsonl", '{"id": "a", "title": {"en": "Up"}}', "column 'title': {'en': 'Up'} is no text to embed"),
        ("a.jsonl", '{"id": "a"}', "no column 'title'; there are 'id'"),
        ("a.jsonl.gz", "not gzip", "line 1: not JSON"),
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
    with pytest.raises(InvalidDataError, match=r"line 2, column 'title': not UTF-8 \(byte 0xe9\)"):
        read(latin)
    assert [each.text for each in read(latin, encoding="latin-1")] == ["Amélie"]


def test_a_damaged_parquet_file_is_told(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "films.parquet"
    path.write_bytes(b"PAR1 and then nothing")

    with pytest.raises(InvalidDataError, match="cannot be read as Parquet"):
        read(path)


def test_no_row_is_given_before_the_file_is_read_to_its_end(tmp_path):
    path = tmp_path / "films.jsonl"
    path.write_text('{"id": "a", "title": "Up"}\nno JSON at all\n')

    with pytest.raises(InvalidDataError, match="line 2"):
        CatalogueFile(path, Reading(text_columns=("title",)))


# Vectors


def read_with_vectors(path, index=SearchIndexInfo(), **reading: Any):  # noqa: B008, it is frozen
    by_default: dict[str, Any] = {"vector_column": "vector"}
    with CatalogueFile(path, Reading(**{**by_default, **reading})) as catalogue:
        return list(catalogue.objects(index))


def told(objects):
    return [(each.object_id, each.parts.tolist(), each.payload) for each in objects]


ROWS_WITH_VECTORS = [
    {"id": "a", "vector": [1, 0.5, -2], "title": "Up", "year": 2009},
    {"id": "b", "vector": [0.25, 0, 1e-3], "title": None, "year": 1995},
]
AS_TOLD = [
    ("a", [[1, 0.5, -2]], {"title": "Up", "year": 2009}),
    ("b", [[0.25, 0, np.float32(1e-3)]], {"title": None, "year": 1995}),
]


def test_vectors_stand_in_a_column_of_json_lines_of_numbers_or_of_parts(tmp_path):
    path = tmp_path / "films.jsonl"
    several = {"id": "c", "vector": [[1, 0, 0], [0, 1, 0]]}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS_WITH_VECTORS, several]))

    objects = read_with_vectors(path)

    assert told(objects) == [*AS_TOLD, ("c", [[1, 0, 0], [0, 1, 0]], {})]
    assert {each.parts.dtype for each in objects} == {np.dtype(np.float32)}
    assert {each.content_hash for each in objects} == {None}


def test_vectors_stand_in_a_column_of_csv_as_json(tmp_path):
    path = tmp_path / "films.csv"
    path.write_text('id,vector,title,year\na,"[1, 0.5, -2]",Up,2009\nb,"[[0.25, 0, 1e-3]]",,1995\n')

    assert told(read_with_vectors(path)) == AS_TOLD


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed", "float16", "float64", "parts"])
def test_vectors_stand_in_a_column_of_parquet(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "films.parquet"
    kinds = {
        "list": pa.list_(pa.float32()),
        "large_list": pa.large_list(pa.float32()),
        "fixed": pa.list_(pa.float32(), 3),
        "float16": pa.list_(pa.float16()),
        "float64": pa.list_(pa.float64()),
        "parts": pa.list_(pa.list_(pa.float32())),
    }
    rows: list[Any] = [row["vector"] for row in ROWS_WITH_VECTORS]
    if kind == "parts":
        rows = [[row, row[::-1]] for row in rows]
    if kind == "float16":
        rows = [[np.float16(number) for number in row] for row in rows]
    columns = {name: [row[name] for row in ROWS_WITH_VECTORS] for name in ("id", "title", "year")}
    parquet.write_table(pa.table(columns | {"vector": pa.array(rows, type=kinds[kind])}), path)

    objects = read_with_vectors(path)

    assert [each.payload for each in objects] == [payload for _, _, payload in AS_TOLD]
    for item, row in zip(objects, rows, strict=True):
        np.testing.assert_array_equal(item.parts, np.atleast_2d(np.array(row, dtype=np.float32)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_vectors_stand_in_a_file_of_numpy_in_the_order_of_rows(tmp_path, dtype):
    path = tmp_path / "films.csv"
    path.write_text(FILMS_CSV)
    matrix = np.array([[1, 0.5, -2], [0.25, 0, 3]], dtype=dtype)
    np.save(tmp_path / "films.npy", matrix)

    up, heat = read_with_vectors(path, vector_column=None, npy=tmp_path / "films.npy")

    assert (up.object_id, up.parts.tolist()) == ("007", [[1, 0.5, -2]])
    assert up.payload == {"title": "Up", "plot": "A house\nflies", "year": 2009, "price": 9.5}
    assert (heat.object_id, heat.parts.tolist()) == ("8", [[0.25, 0, 3]])


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("[1, 2]", "line 2, column 'vector' have 2 dimensions, the collection has 3"),
        ('"abc"', "line 2, column 'vector': not a JSON list of numbers"),
        ("7", "line 2, column 'vector': a vector is a list of numbers, or several such lists in a list"),
        ("null", "line 2, column 'vector': a vector is a list of numbers"),
        ('[1, "2", 3]', "line 2, column 'vector': a vector is a list of numbers"),
        ("[1, true, 3]", "line 2, column 'vector': a vector is a list of numbers"),
        ("[1, null, 3]", "line 2, column 'vector': a vector is a list of numbers"),
        ("[[1, 2, 3], [1, 2]]", "line 2, column 'vector' are not an array of numbers"),
        ("[]", "line 2, column 'vector' have the shape (1, 0)"),
        ("[1, NaN, 3]", "line 2: not JSON: NaN is no JSON"),
        ("[1, 1e39, 3]", "part 0 of {path}, line 2, column 'vector' is not finite"),
        (f"[1, 1{'0' * 400}, 3]", "line 2: not JSON: a number of 401 digits; at most 308 are kept"),
        ("[0, 0, 0]", "part 0 of {path}, line 2, column 'vector' is zero, which has no direction"),
    ],
)
def test_a_vector_that_cannot_be_used_is_told_with_file_line_and_column(tmp_path, second, said):
    path = tmp_path / "films.jsonl"
    path.write_text(f'{{"id": "a", "vector": [1, 2, 3]}}\n{{"id": "b", "vector": {second}}}\n')

    with pytest.raises(InvalidInputError) as caught:
        read_with_vectors(path)

    assert said.format(path=path) in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_csv_vector_that_cannot_be_used_is_told(tmp_path):
    path = tmp_path / "films.csv"
    path.write_text('id,vector\na,"[1, NaN]"\n')

    with pytest.raises(InvalidDataError, match=r"line 2, column 'vector': not a JSON list .* NaN is no JSON"):
        read_with_vectors(path)


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        ([[1.0, 0.0], None], "row 2, column 'vector': a vector is a list of numbers"),
        ([[1.0, 0.0], [None, 1.0]], "part 0 of .*row 2, column 'vector' is not finite"),
        ([["a", "b"], ["a", "b"]], "row 1, column 'vector': a vector is a list of numbers"),
        ([1.0, 2.0], "row 1, column 'vector': a vector is a list of numbers"),
    ],
)
def test_a_parquet_vector_that_cannot_be_used_is_told(tmp_path, vectors, said):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "films.parquet"
    parquet.write_table(pa.table({"id": ["a", "b"], "vector": vectors}), path)

    with pytest.raises(InvalidInputError, match=said):
        read_with_vectors(path)


def test_a_vector_may_be_zero_where_direction_does_not_count(tmp_path):
    path = tmp_path / "films.jsonl"
    path.write_text('{"id": "a", "vector": [0, 0, 0]}\n')

    (only,) = read_with_vectors(path, index=SearchIndexInfo(metric_type=MetricType.EUCLID))

    assert only.parts.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (np.ones((3, 2)), "3 vectors for the 2 rows of"),
        (np.ones((1, 2)), "1 vector for the 2 rows of"),
        (np.ones(2), "an array [rows, dimensions] of float16, float32 or float64 is needed"),
        (np.ones((2, 2), dtype=np.int64), "an array [rows, dimensions] of float16, float32 or float64"),
        (np.array([[1, 0], [np.nan, 0]]), "vectors.npy, row 2 is not finite"),
        (np.ones((2, 4001)), "vectors.npy, row 1: 4001 dimensions; at most 4000"),
    ],
)
def test_a_file_of_numpy_that_cannot_be_used_is_told(tmp_path, matrix, said):
    path, npy = tmp_path / "films.csv", tmp_path / "vectors.npy"
    path.write_text(FILMS_CSV)
    np.save(npy, matrix)

    with pytest.raises(InvalidInputError) as caught:
        read_with_vectors(path, vector_column=None, npy=npy)

    assert said in str(caught.value)


def test_what_is_no_file_of_numpy_is_told(tmp_path):
    path, npy = tmp_path / "films.csv", tmp_path / "vectors.npy"
    path.write_text(FILMS_CSV)
    npy.write_text("1 2 3")

    with pytest.raises(InvalidDataError, match=r"not a \.npy file of numbers"):
        read_with_vectors(path, vector_column=None, npy=npy)
    with pytest.raises(InvalidDataError, match="there is no such file"):
        read_with_vectors(path, vector_column=None, npy=tmp_path / "absent.npy")
    np.save(npy, np.ones((2, 3)))


def test_payloads_are_all_columns_but_the_id(tmp_path):
    path = tmp_path / "films.csv"
    path.write_text("sku,price,colour\n7,9.5,red\n8,,\n")

    assert list(CatalogueFile(path, Reading(id_column="sku")).payloads()) == [
        ("7", {"price": 9.5, "colour": "red"}),
        ("8", {"price": None, "colour": None}),
    ]


def test_objects_are_counted(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"id": ["a", "b", "c"]}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text('id,title\n\na,"Up\nand away"\nb,Heat\n')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"id": "a"}\n\n{"id": "b"}'))

    counted = [
        CatalogueFile(tmp_path / name, Reading()).number for name in ("a.parquet", "a.csv", "a.jsonl.gz")
    ]

    assert counted == [3, 2, 2]


# Writing

WRITTEN = [
    CatalogueObject(
        "größe 靴", np.array([[0.1, -2.5e-8, 16777217]], dtype=np.float32), {"tags": ["x", None]}
    ),
    CatalogueObject("2", np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32), {"maker": {"name": "o'N"}}),
]


@pytest.mark.parametrize("name", ["films.jsonl", "films.jsonl.gz", "films.ndjson"])
def test_what_is_written_is_read_back_exactly(tmp_path, name):
    path = tmp_path / name

    written = write_objects(path, WRITTEN, id_column="id", vector_column="vector")

    assert written == 2
    assert told(read_with_vectors(path)) == told(WRITTEN)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_vectors_are_written_short_and_read_back_to_the_last_bit(tmp_path):
    bits = np.random.default_rng(3).integers(0, 2**32, size=(2000, 7), dtype=np.uint32)
    vectors = bits.view(np.float32)
    vectors = vectors[(np.abs(vectors) < 1e18).all(axis=1)]  # finite, also when squared
    objects = [CatalogueObject(str(n), vector[None]) for n, vector in enumerate(vectors)]
    index = SearchIndexInfo(metric_type=MetricType.EUCLID)

    write_objects(tmp_path / "o.jsonl", objects, id_column="id", vector_column="vector")
    back = read_with_vectors(tmp_path / "o.jsonl", index=index)
    write_objects(tmp_path / "tenth.jsonl", WRITTEN[:1], id_column="id", vector_column="vector")

    assert len(back) > 100
    assert np.concatenate([each.parts for each in back]).tobytes() == vectors.tobytes()
    assert "[0.1,-2.5e-08,16777216.0]" in (tmp_path / "tenth.jsonl").read_text()


def test_nothing_half_written_stays_and_what_was_there_is_kept(tmp_path):
    path = tmp_path / "films.jsonl"
    path.write_text("from before")

    def breaking():
        yield WRITTEN[0]
        raise InvalidInputError("gone")

    with pytest.raises(InvalidInputError, match="gone"):
        write_objects(path, breaking(), id_column="id", vector_column=None)

    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("films.jsonl", "from before")]


def test_a_payload_that_has_a_column_of_its_own_is_not_overwritten(tmp_path):
    taken = [CatalogueObject("a", np.ones((1, 2), dtype=np.float32), {"id": 7})]

    with pytest.raises(InvalidDataError, match="object 'a' has a field 'id' of its own"):
        write_objects(tmp_path / "films.jsonl", taken, id_column="id", vector_column=None)
    write_objects(tmp_path / "films.jsonl", taken, id_column="object", vector_column=None)

    assert (tmp_path / "films.jsonl").read_text() == '{"object":"a","id":7}\n'


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(InvalidDataError, match=r"lines are written as \.jsonl"):
        write_objects(tmp_path / "films.csv", WRITTEN, id_column="id", vector_column=None)
    with pytest.raises(InvalidDataError, match="cannot be written"):
        write_objects(tmp_path / "absent" / "films.jsonl", WRITTEN, id_column="id", vector_column=None)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidDataError, match="cannot be written"):
        write_objects(tmp_path / "file" / "films.jsonl", WRITTEN, id_column="id", vector_column=None)


# Documentation


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


def test_the_documentation_is_some_thousand_objects_library_first(documentation):
    packages = [entry.payload["package"] for entry in documentation.values()]

    assert 5_500 < len(documentation) < 9_000
    assert packages.index("httpx") > packages.count("python") > 5_000
    assert {"python", "click", "httpx", "rich", "typer"} == set(packages)


def test_a_limited_list_is_the_beginning_of_the_whole(documentation):
    first = list(read_python_documentation(limit=57))

    assert first == list(documentation.values())[:57]
