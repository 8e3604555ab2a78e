"""Catalogue files as other people's programs write them: what is read, what is refused, how it is told."""

import datetime as dt
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from embedding_studio.catalogue import CatalogueFile, OnDuplicate, Reading
from embedding_studio.domain.index import SearchIndexInfo
from embedding_studio.errors import InvalidDataError


def read(path, **reading: Any):
    """Return (id, text, payload) of each object, with a text column ``text``."""
    with CatalogueFile(path, Reading(**{"text_columns": ("text",), **reading})) as catalogue:
        return [(each.object_id, each.text, each.payload) for each in catalogue.texts()]


def texts(path, **reading: Any):
    return [text for _, text, _ in read(path, **reading)]


def notes(path, **reading: Any):
    return CatalogueFile(path, Reading(**{"text_columns": ("text",), **reading})).notes


def refusal(path, **reading: Any):
    with pytest.raises(InvalidDataError) as caught:
        read(path, **reading)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path.parent) + "/")


# Tables


@pytest.mark.parametrize(
    ("column", "kept"),
    [
        (["12", "-0.5", "", "1.50"], [12, -0.5, None, 1.5]),
        (["1e-05", "2.5E+3"], [1e-05, 2500.0]),
        (["02134", "10001", "1E5", "1.10"], ["02134", "10001", "1E5", "1.10"]),
        (["10001", "1.10", "02134"], ["10001", "1.10", "02134"]),
        (["1", "+1"], ["1", "+1"]),
        (["1", "NaN"], ["1", "NaN"]),
        (["1", "1e999"], ["1", "1e999"]),
        (["1", " 2"], ["1", " 2"]),
        (["9223372036854775807", "1"], [2**63 - 1, 1]),
        (["9223372036854775808", "1"], ["9223372036854775808", "1"]),
        (["1" * 5000, "1"], ["1" * 5000, "1"]),
        (["١٢", "1"], ["١٢", "1"]),
        (["True", "FALSE", "", "true"], [True, False, None, True]),
        (["true", "1"], ["true", "1"]),
        (["yes", "no"], ["yes", "no"]),
        (["2024-02-01", "2024-02-01T10:00:00Z"], ["2024-02-01", "2024-02-01T10:00:00Z"]),
        (['["sale", 1]', "[]", ""], [["sale", 1], [], None]),
        (['{"en": "x"}', "[1]"], [{"en": "x"}, [1]]),
        (["[new] coat", "[1]"], ["[new] coat", "[1]"]),
        (["[" * 100_000, "[1]"], ["[" * 100_000, "[1]"]),
        (["", ""], [None, None]),
    ],
)
def test_a_column_of_a_table_has_one_type(tmp_path, column, kept):
    path = tmp_path / "a.csv"
    rows = [[str(n), "shoe", value] for n, value in enumerate(column)]
    path.write_text("id,text,n\n" + "".join(",".join(map(quoted, row)) + "\n" for row in rows))

    payloads = [payload["n"] for _, _, payload in read(path)]

    assert payloads == kept
    assert [type(value) for value in payloads] == [type(value) for value in kept]


def quoted(value):
    return '"' + value.replace('"', '""') + '"'


def test_what_names_or_is_embedded_is_text_whatever_it_looks_like(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,text,tags\n1,1984,"[""x"", ""y""]"\n2,2001,[]\n')

    assert read(path, text_columns=("text", "tags")) == [
        ("1", "1984\nx, y", {"text": "1984", "tags": ["x", "y"]}),
        ("2", "2001", {"text": "2001", "tags": []}),
    ]


def test_why_a_column_is_of_texts_is_noted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,text,price\n1,red,9.5\n2,blue,7\n3,green,N/A\n")

    assert notes(path) == ["the column 'price' is of texts, not of numbers, since line 4 has 'N/A'"]


def test_numbers_with_a_comma_stay_texts_and_that_is_said(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("id;text;price;size;tags\na;x;12,50;1,5;3,4\nb;x;3;1.200,75;x\nc;x;9,99;2;5,6\n")

    assert [payload["price"] for *_, payload in read(path)] == ["12,50", "3", "9,99"]
    assert [note.split(" numbers with")[0] for note in notes(path)] == [
        f"the column {column!r} is of texts, though they look like" for column in ("price", "size")
    ]


def test_numbers_with_a_comma_for_thousands_stay_texts_and_that_is_said(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text('id,text,price\na,x,"1,778.66"\nb,x,393.91\nc,x,"1,200"\n')

    [noted] = notes(path)

    assert [payload["price"] for *_, payload in read(path)] == ["1,778.66", "393.91", "1,200"]
    assert noted.startswith("the column 'price' is of texts, though they look like numbers with a comma")


@pytest.mark.parametrize(
    ("name", "content", "read_as"),
    [
        ("a.csv", "id;text;price\n1;red, shoe;9,50\n", {"text": "red, shoe", "price": "9,50"}),
        ("a.csv", "id\ttext\tprice\n1\tred shoe\t9.5\n", {"text": "red shoe", "price": 9.5}),
        ("a.csv", "id|text|price\n1|red shoe|9.5\n", {"text": "red shoe", "price": 9.5}),
        ("a.csv", "sep=;\nid;text\n1;red shoe\n", {"text": "red shoe"}),
        ("a.csv", "\ufeffid , text\r\n1,red shoe\r\n", {"text": "red shoe"}),
        ("a.csv", "id,text\r1,red shoe\r", {"text": "red shoe"}),
        ("a.csv", 'id,text\n1,"red\nshoe"\n,\n', {"text": "red\nshoe"}),
        ("a.csv", "id,text,\n1,red shoe,x\n", {"text": "red shoe"}),
        ("a.tsv", "id,text\n1,red shoe\n", {"text": "red shoe"}),
        ("a.tsv", 'id\ttext\n1\t"Tis a pity\n', {"text": '"Tis a pity'}),
        ("a.tsv", "id\ttext\tyear\n1\tred\t\\N\n", {"text": "red", "year": None}),
        ("a.tsv", '"id"\t"text"\n"1"\t"red"\n', {"text": "red"}),
        ("a.tsv", 'id\ttext\n1\t"red\tshoe"\n', {"text": "red\tshoe"}),
        ("a.tsv", 'id\ttext\n1\t"a 5"" screen"\n', {"text": 'a 5" screen'}),
        ("a.tsv", 'id\ttext\n1\t"Grey, buttoned"\n', {"text": "Grey, buttoned"}),
        ("a.tsv", 'id\ttext\n1\t"Heroes"\n', {"text": '"Heroes"'}),
    ],
)
def test_the_dialect_of_a_table_is_found(tmp_path, name, content, read_as):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")

    assert read(path) == [("1", read_as["text"], read_as)]


def test_quotes_of_a_tsv_are_characters_where_some_could_not_enclose_values(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('id\ttext\n1\t"Tis a pity\n2\tblue hat\n3\t"a, b"\n4\tx, y\n5\tgreen bag"\n')

    assert texts(path) == ['"Tis a pity', "blue hat", '"a, b"', "x, y", 'green bag"']


@pytest.mark.parametrize("separator", ["|", "~"])
def test_quotes_enclose_no_rows_where_others_than_commas_separate_columns(tmp_path, separator):
    path = tmp_path / "a.csv"
    rows = ["id,text", '1,"Tis a pity', "2,blue hat", '3,green bag"', "", "4,red shoe"]
    path.write_text("\n".join(rows).replace(",", separator))

    assert texts(path, separator=separator) == ['"Tis a pity', "blue hat", 'green bag"', "red shoe"]


def test_a_value_of_a_csv_that_may_be_several_rows_is_noted_with_its_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,red\n2,"Tis a pity\n3,green bag"\n')

    [noted] = notes(path)

    assert noted.startswith("line 3: a value in quotes goes on over lines that would be rows of their own")


def test_a_value_over_several_lines_that_could_be_no_rows_is_not_noted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,red\n2,"Tis\na pity"\n')

    assert notes(path) == []


@pytest.mark.parametrize(("said", "is_refused"), [("zenith", True), ("acme", False), ("", False)])
def test_a_row_that_says_another_value_than_its_folder_is_refused(tmp_path, said, is_refused):
    folder = tmp_path / "out" / "brand=acme"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text(f"id,text,brand\n1,red,{said}\n")

    if is_refused:
        assert "line 2: the column 'brand' is 'zenith' in the row and 'acme' by its folder" in refusal(
            tmp_path / "out"
        )
    else:
        assert read(tmp_path / "out") == [("1", "red", {"text": "red", "brand": "acme"})]


def test_a_separator_is_told_where_none_is_found(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id~text\n1~red shoe\n")

    assert refusal(path) == (
        "a.csv, line 1: no column 'id'; there are 'id~text' where ',' separates columns "
        "(--delimiter names another separator)"
    )
    assert texts(path, separator="~") == ["red shoe"]


def test_a_value_may_be_long(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"id,text\n1,{'word ' * 30_000}\n")

    assert [len(text) for text in texts(path)] == [149_999]


# JSON Lines


def test_what_a_row_leaves_out_is_empty_where_another_row_has_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "text": "red"}\n{"id": 2, "title": "x"}\n{"id": 3.0, "title": "y"}\n')

    assert read(path, text_columns=("text", "title")) == [
        ("1", "red", {"text": "red"}),
        ("2", "x", {"title": "x"}),
        ("3", "y", {"title": "y"}),
    ]
    assert "no column 'heading'; there are 'id', 'text', 'title'" in refusal(path, text_columns=("heading",))


@pytest.mark.parametrize("name", ["a.json", "a.ndjson.zst", "a.jsonl.gz", "a.csv.zst"])
def test_packed_files_are_read_whatever_packs_them(tmp_path, name):
    path = tmp_path / name
    content = b"id,text\n1,red\n" if ".csv" in name else b'{"id": "1", "text": "red"}\n'
    pack: Any = {".zst": zstandard.compress, ".gz": gzip.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(content) + pack(b"\n"))

    assert texts(path) == ["red"]


@pytest.mark.parametrize("pack", [zstandard.compress, gzip.compress])
def test_a_packed_file_that_is_cut_off_is_told(tmp_path, pack):
    path = tmp_path / "a.jsonl.zst"
    packed = pack(b"".join(b'{"id": "%d", "text": "red"}\n' % n for n in range(1000)))

    for cut in (len(packed) - 1, len(packed) // 2, 20):
        path.write_bytes(packed[:cut])
        assert "a.jsonl.zst: cannot be read: " in refusal(path)


# What cannot be kept


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "id,text\n1,x\n2,b\0\n", "line 3, column 'text': a text may not hold the character NUL"),
        ("a.csv", "id,text,n\n1,x,y\n2,x,\0\n3,x,\0\n", "line 3, column 'n': a text may not hold the char"),
        ("a.csv", "id,text\n1\0,x\n", "line 2, column 'id': a text may not hold the character NUL"),
        ("a.csv", "id,text,\0\n1,x,y\n", "line 1: a name of a column that cannot be kept: a text"),
        ("a.jsonl", '{"id": "\\ud83d", "text": "x"}', "line 1, column 'id': a text may not hold half"),
        ("a.jsonl", '{"id": 1, "text": "\\ud83d"}', "line 1, column 'text': a text may not hold half"),
        ("a.jsonl", '{"id": 1, "text": "x", "n": {"a": ["\\u0000"]}}', "line 1, column 'n': a text may not"),
        ("a.jsonl", '{"id": 1, "text": "x", "\\u0000": 1}', "line 1: a key that cannot be kept: a text"),
        ("a.jsonl", '{"id": 1, "text": "x", "n": 1e999}', "line 1, column 'n': inf is no number"),
        ("a.jsonl", '{"id": 1, "text": "x", "n": ' + "1" * 5001 + "}", "line 1: not JSON: a number of 5001"),
        (
            "a.jsonl",
            '{"id": 1, "text": "x", "n": ' + "[" * 70 + "]" * 70 + "}",
            "line 1, column 'n': it is nested",
        ),
        ("a.jsonl", '{"id": 1, "text": "x", "n": ' + "[" * 99999 + "]" * 99999 + "}", "line 1: it is nested"),
        ("a.jsonl", '{"id": 1, "text": "x", "text": "y"}', "line 1: not JSON: more than one key is"),
        ("a.jsonl", '[\n{"id": 1, "text": "x"}\n]', "it is one JSON value, and an object a line"),
        ("a.jsonl", '[{"id": 1, "text": "x"}]', "it is one JSON value, and an object a line is needed"),
        ("a.jsonl", '{\n"id": 1, "text": "x"\n}', "it is one JSON value, and an object a line is needed"),
        (
            "a.jsonl",
            '{"id": null, "text": "x"}\n{"text": "x"}\n',
            "line 1, column 'id': there is no id (and 1",
        ),
        ("a.csv", "id,text\n1,x\n2\n3\n", "line 3: 1 value for 2 columns, 'id', 'text' (and 1 more so)"),
        ("a.csv", 'id,text\n1,x\n2,"b" c\n', "line 3: not CSV as it should be"),
        ("a.csv", 'id,text\n1,x\n2,"b\n3,c\n', "line 3: not CSV as it should be"),
        ("a.csv", "text,text\n1,x\n", "line 1: no column 'id'"),
    ],
)
def test_what_cannot_be_kept_is_told_with_file_line_and_column(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_text(content, newline="")

    assert f"{name}, {said}" in refusal(path) or f"{name}, line 1: {said}" in refusal(path)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_an_encoding_that_is_not_utf_8_is_told_with_its_line(tmp_path, name):
    path = tmp_path / name
    table = (
        'id,text\n1,red\n2,"Amélie"\n' if name == "a.csv" else '{"id":1,"text":"x"}\n\n{"id":2,"text":"é"}\n'
    )
    path.write_bytes(table.encode("windows-1252"))

    assert "line 3" in refusal(path)
    assert "not UTF-8 (byte 0xe9); say what it is, as in --encoding windows-1252" in refusal(path)
    assert "é" in texts(path, encoding="windows-1252")[1]
    path.write_bytes(table.encode("utf-16"))
    assert f"{name}, line 1: it is UTF-16, and UTF-8 is read; give --encoding utf-16" in refusal(path)
    assert "é" in texts(path, encoding="utf-16")[1]
    path.write_bytes(table.encode("utf-16-le"))
    assert "it is UTF-16, and UTF-8 is read; give --encoding utf-16-le" in refusal(path)
    assert "no encoding of texts" in refusal(path, encoding="klingon")


def test_a_header_that_is_not_utf_8_is_told(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("id,größe\n1,red\n".encode("latin-1"))

    assert "a.csv, line 1: not UTF-8 (byte 0xf6); say what it is" in refusal(path, text_columns=("größe",))


def test_faults_of_each_kind_are_counted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,x\n1,x\n,x\n ,x\n2,x,x\n1,x\n")

    assert refusal(path) == (
        "a.csv, line 3: the id '1' stands in line 2 too; it names one object (--on-duplicate says which row "
        "counts) (and 1 more so); line 4, column 'id': there is no id (and 1 more so); "
        "line 6: 3 values for 2 columns, 'id', 'text'"
    )


# Which columns


def test_the_payload_is_of_the_columns_that_are_asked_for(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,text,price,photo\n1,red,9.5,\0\n")

    assert read(path, drop_columns=("photo", "text")) == [("1", "red", {"price": 9.5})]
    assert read(path, payload_columns=("price", "id")) == [("1", "red", {"id": "1", "price": 9.5})]
    assert "no column 'fotos'; there are 'id', 'text'" in refusal(path, drop_columns=("fotos",))
    assert "no column 'fotos'" in refusal(path, payload_columns=("fotos",))


VARIANTS = """handle,text,size,price,image
shirt,A shirt,S,60,a.jpg
pot,A pot,,9.99,b.jpg
shirt,,M,60,
shirt,,L,65,
"""


@pytest.mark.parametrize(
    ("which", "shirt"),
    [
        ("first", ("shirt", "A shirt", {"text": "A shirt", "size": "S", "price": 60, "image": "a.jpg"})),
        ("last", ("shirt", "", {"text": None, "size": "L", "price": 65, "image": None})),
        (
            "merge",
            (
                "shirt",
                "A shirt",
                {"text": "A shirt", "image": "a.jpg", "size": ["S", "M", "L"], "price": [60, 65]},
            ),
        ),
    ],
)
def test_of_rows_with_one_id_that_counts_which_was_chosen(tmp_path, which, shirt):
    path = tmp_path / "a.csv"
    path.write_text(VARIANTS)

    objects = read(path, id_column="handle", on_duplicate=OnDuplicate(which))

    assert shirt in objects
    assert len(objects) == 2
    assert "line 4: the id 'shirt' stands in line 2 too" in refusal(path, id_column="handle")


def test_a_merged_column_is_of_lists_in_every_object_and_vectors_become_parts(tmp_path):
    path = tmp_path / "a.jsonl"
    rows: list[dict[str, Any]] = [
        {"id": "a", "vector": [1, 0], "size": "S", "tags": ["x"]},
        {"id": "b", "vector": [0, 1], "size": "S"},
        {"id": "a", "vector": [1, 1], "size": "M", "tags": ["x", "y"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = Reading(vector_column="vector", on_duplicate=OnDuplicate.MERGE)

    objects = {each.object_id: each for each in CatalogueFile(path, reading).objects(SearchIndexInfo())}

    assert objects["a"].payload == {"size": ["S", "M"], "tags": ["x", "y"]}
    assert objects["b"].payload == {"size": ["S"]}
    assert objects["a"].parts.tolist() == [[1, 0], [1, 1]]
    assert CatalogueFile(path, reading).notes == [
        "1 row has the id of another; of an object's rows one is made, with lists in 'size', 'tags'"
    ]


# Parquet


def write_parquet(path, **columns: Any):
    parquet.write_table(pa.table({"id": ["1"], "text": ["red"]} | columns), path)
    return path


UTC_NANOSECONDS = pa.timestamp("ns", "UTC")
A_UUID = UUID("0190a6f0-0000-7000-8000-000000000001")


@pytest.mark.parametrize(
    ("array", "kept"),
    [
        (pa.array([1700000000123456789], pa.timestamp("ns")), "2023-11-14T22:13:20.123456789"),
        (pa.array([1700000000123456000], UTC_NANOSECONDS), "2023-11-14T22:13:20.123456+00:00"),
        (pa.array([1700000000], pa.timestamp("s", "America/New_York")), "2023-11-14T17:13:20-05:00"),
        (pa.array([10**15], pa.timestamp("ms")), "33658-09-27T01:46:40"),
        (pa.array([5], pa.time64("ns")), "00:00:00.000000005"),
        (pa.array([5], pa.time32("s")), "00:00:05"),
        (pa.array([dt.date(2009, 5, 29)]), "2009-05-29"),
        (pa.array([dt.date(2009, 5, 29)], pa.date64()), "2009-05-29"),
        (pa.array([1500], pa.duration("ms")), 1.5),
        (pa.array([Decimal("9.50")]), 9.5),
        (pa.array([Decimal(12345678901234567890)]), 12345678901234567890),
        (pa.array([float("inf")]), None),
        (pa.array([0.5], pa.float16()), 0.5),
        (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
        (pa.array([True]), True),
        (pa.array([None]), None),
        (pa.array(["Amélie".encode()]), "Amélie"),
        (pa.array([b"ab"], pa.binary(2)), "ab"),
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([A_UUID.bytes], pa.binary(16))), str(A_UUID)),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), {"a": 1}),
        (pa.array([[1, None]], pa.list_(pa.int64(), 2)), [1, None]),
        (pa.array([[{"t": dt.date(2009, 5, 29)}, None]]), [{"t": "2009-05-29"}, None]),
    ],
)
def test_every_type_of_parquet_has_its_place_in_json(tmp_path, array, kept):
    path = write_parquet(tmp_path / "a.parquet", n=array)

    [(_, _, payload)] = read(path)

    assert payload["n"] == kept
    assert type(payload["n"]) is type(kept)


def test_nested_values_of_parquet_stay_with_their_rows(tmp_path):
    path = tmp_path / "a.parquet"
    tags = [["a", None], None, [], ["b"]]
    maker = [{"name": "x"}, None, {"name": None}, {"name": "y"}]
    table = {"id": [0, 1, 2, 3], "text": ["x"] * 4, "tags": tags, "maker": maker}
    parquet.write_table(pa.table(table), path, row_group_size=3)

    payloads = [payload for _, _, payload in read(path, drop_columns=("text",))]

    assert payloads == [{"tags": t, "maker": m} for t, m in zip(tags, maker, strict=True)]


def test_spark_s_far_times_do_not_wrap_around(tmp_path):
    path = tmp_path / "a.parquet"
    far = pa.array(["2023-11-14T22:13:20", "9999-12-31T00:00:00"]).cast(pa.timestamp("us"))
    table = pa.table({"id": ["1", "2"], "text": ["red", "blue"], "seen": far})
    parquet.write_table(table, path, use_deprecated_int96_timestamps=True)

    assert [payload["seen"] for _, _, payload in read(path)] == ["2023-11-14T22:13:20", "9999-12-31T00:00:00"]


@pytest.mark.parametrize(
    ("ids", "read_as"),
    [
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([A_UUID.bytes], pa.binary(16))), str(A_UUID)),
        (pa.array([b"sku-1"]), "sku-1"),
        (pa.array([Decimal("17.00")]), "17"),
        (pa.array([Decimal("12345678901234567890.0000")], pa.decimal128(30, 4)), "12345678901234567890"),
        (pa.array([17.0]), "17"),
        (pa.array([17], pa.uint8()), "17"),
        (pa.array([dt.date(2009, 5, 29)]), "2009-05-29"),
        (pa.array(["007"]), "007"),
    ],
)
def test_an_id_is_text_whatever_type_it_comes_in(tmp_path, ids, read_as):
    assert [each[0] for each in read(write_parquet(tmp_path / "a.parquet", id=ids))] == [read_as]


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (pa.array([b"\x89PNG"]), "it holds bytes that are no UTF-8 text, as in row 1"),
        (
            pa.array([{"bytes": b"\x89PNG", "path": "a.png"}]),
            "it holds bytes that are no UTF-8 text, as in row 1",
        ),
        (pa.array([b"a\0"]), "it holds bytes that are no text, as in row 1"),
    ],
)
def test_a_column_without_a_place_in_json_is_left_out_with_a_note(tmp_path, array, why):
    path = write_parquet(tmp_path / "a.parquet", image=array)

    assert read(path) == [("1", "red", {"text": "red"})]
    assert notes(path) == [f"the column 'image' is left out: {why}"]
    assert notes(path, drop_columns=("image",)) == []
    assert f"a.parquet, column 'image': {why}" in refusal(path, text_columns=("image",))


def test_two_columns_of_one_name_are_refused_unless_they_are_left_out(tmp_path):
    path = tmp_path / "a.parquet"
    columns = [pa.array([value]) for value in ("1", "red", "x", "y")]
    parquet.write_table(pa.Table.from_arrays(columns, names=["id", "text", "n", "n"]), path)

    assert "a.parquet: more than one column is named 'n'" in refusal(path)
    assert read(path, drop_columns=("n",)) == [("1", "red", {"text": "red"})]


# Folders


def test_a_folder_of_parts_is_one_file(tmp_path):
    folder = tmp_path / "out.parquet"
    for n, brand in enumerate(["acme", "__HIVE_DEFAULT_PARTITION__"]):
        (folder / f"brand={brand}").mkdir(parents=True)
        write_parquet(folder / f"brand={brand}" / "part-0.snappy.parquet", id=[str(n)])
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.crc").touch()

    assert read(folder) == [
        ("1", "red", {"text": "red", "brand": None}),
        ("0", "red", {"text": "red", "brand": "acme"}),
    ]
    write_parquet(folder / "part-1.parquet")
    assert "out.parquet, part-1.parquet, row 1: the id '1' stands in brand=" in refusal(folder)
    (folder / "a.csv").touch()
    assert "all parts of one kind; there are '.csv', '.parquet'" in refusal(folder)


def test_the_parts_of_a_table_have_one_type_a_column(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for n, code in enumerate(["10001", "02134"]):
        (folder / f"part-{n}.csv").write_text(f"id,text,zip\n{n},red,{code}\n")

    assert [payload["zip"] for _, _, payload in read(folder)] == ["10001", "02134"]
    (tmp_path / "empty").mkdir()
    assert "empty: a folder is read whose files are all parts of one kind; there are none" in refusal(
        tmp_path / "empty"
    )


# Any bytes at all

ROWS = [{"id": str(n), "text": f"größe {n}", "n": n, "tags": ["x"], "vector": [1.0, n]} for n in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
TABLE = 'id,text,n,vector\n1,"größe, x",2,"[1, 2]"\n2,"a ""b""",3.5,"[2, 3]"\n'.encode()
WHOLE = {
    "a.csv": TABLE,
    "a.tsv": TABLE.replace(b",", b"\t"),
    "a.jsonl": LINES,
    "a.csv.gz": gzip.compress(TABLE),
    "a.jsonl.zst": zstandard.compress(LINES),
}


def as_parquet():
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", [*WHOLE, "a.parquet"])
@given(
    cuts=st.lists(
        st.tuples(st.floats(0, 1), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=4
    ),
    is_vectors=st.booleans(),
    which=st.sampled_from(OnDuplicate),
)
def test_garbled_bytes_are_rows_or_a_sentence(tmp_path_factory, name, cuts, is_vectors, which):
    """Bytes are put in the place of others, up to cutting the file off."""
    path = Path(tmp_path_factory.getbasetemp()) / name
    garbled = bytearray(WHOLE.get(name) or as_parquet())
    for place, inserted, removed in cuts:
        at = int(place * len(garbled))
        garbled[at : at + removed] = inserted
    path.write_bytes(garbled)
    vectors = {"vector_column": "vector"} if is_vectors else {"text_columns": ("text",)}
    reading: Any = Reading(on_duplicate=which, **vectors)

    try:
        catalogue = CatalogueFile(path, reading)
    except InvalidDataError:
        return
    rows = catalogue.objects(SearchIndexInfo(metric_type="euclid")) if is_vectors else catalogue.texts()
    objects: list[Any] = list(rows)

    assert len(objects) == catalogue.number > 0
    for each in objects:
        json.dumps([each.object_id, each.payload], ensure_ascii=False, allow_nan=False).encode()
        assert not is_vectors or np.isfinite(each.parts).all()


# What nobody may lose

DEEP = "[" * 99 + "]" * 99


@pytest.mark.parametrize("cell", ['["\\u0000"]', '["\\ud83d"]', "[1e400]", '{"a": 1, "a": 2}', DEEP])
def test_what_cannot_be_kept_as_json_is_kept_as_the_text_that_it_is(tmp_path, cell):
    path = tmp_path / "a.csv"
    path.write_text("id\ttext\tmore\n1\ta\t[1]\n2\tb\t" + cell + "\n")

    assert [payload["more"] for _, _, payload in read(path)] == ["[1]", cell]
    assert "'more' is of texts" in notes(path)[0]


def test_merging_leaves_the_lists_of_a_row_as_they_are(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"id": 1, "text": "a", "rgb": [255, 255, 0], "seen": [True, None, ""]},
        {"id": 2, "text": "b", "rgb": [0, 0, 0], "seen": True},
        {"id": 2, "text": "b", "rgb": [0, 0, 0], "seen": 1},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))

    merged = [payload for _, _, payload in read(path, on_duplicate=OnDuplicate.MERGE)]

    assert [each["rgb"] for each in merged] == [[255, 255, 0], [0, 0, 0]]
    assert [list(map(repr, each["seen"])) for each in merged] == [["True", "None", "''"], ["True", "1"]]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_that_folders_tell_may_be_named_as_others_are(tmp_path, kind):
    part = tmp_path / "brand=acme" / f"part-0.{kind}"
    part.parent.mkdir()
    if kind == "csv":
        part.write_text("id,text\n1,a\n")
    else:
        parquet.write_table(pa.table({"id": [1], "text": ["a"]}), part)

    assert read(tmp_path, payload_columns=("brand",)) == [("1", "a", {"brand": "acme"})]
    assert texts(tmp_path, text_columns=("text", "brand")) == ["a\nacme"]
    assert read(tmp_path, drop_columns=("brand",)) == [("1", "a", {"text": "a"})]


def test_a_table_of_delta_lake_is_refused_for_it_holds_rows_that_were_deleted(tmp_path):
    parquet.write_table(pa.table({"id": [1], "text": ["a"]}), tmp_path / "part-0.parquet")
    (tmp_path / "_delta_log").mkdir()

    with pytest.raises(InvalidDataError, match="Delta Lake"):
        read(tmp_path)
