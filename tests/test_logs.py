"""Each dialect against a file made by hand, the joiner, and what a broken file costs."""

import csv
import functools
import gzip
import io
import json
import operator
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from embedding_studio.errors import InvalidDataError, InvalidInputError
from embedding_studio.logs import Event, Left, Search, Shown, entries, flat, join, joining, open_log, rows
from embedding_studio.logs.rows import read_rows

LOGS = Path(__file__).parent / "logs"
MAPPED = "query=search_term,user=who,object=sku,time=when,type=what,results=shown"
AT = 1767607200
"""2026-01-05T10:00:00Z"""


def entries_of(name, *, columns=None, **options):
    """Return the dialect of a file, its entries by line, and the reasons by line."""
    log = open_log(str(LOGS / name), columns=flat.mapping(columns), **options)
    entries, left = defaultdict(list), {}
    for place, entry in log.entries:
        line = int(place.rpartition(":")[2])
        if isinstance(entry, Left):
            left[line] = entry.reason
        else:
            entries[line].append(entry)
    return log.dialect, dict(entries), left


def second(position):
    return {"position": position}


def test_ubi_is_read_with_all_its_spellings():
    assert entries_of("ubi.ndjson") == (
        "ubi",
        {
            1: [Search(AT, "red shoe", "ada", "q1", ("b", "a", "7"))],
            2: [Search(AT + 60, "hat", "bob", "q2", ("a",))],
            3: [Search(AT + 120, "sock", "cid", "q3", ("c", "d"))],
            4: [Event(AT + 5, "a", "click", "ada", "q1", meta=second(2))],
            5: [Event(AT + 9, "7", "add_to_cart", "ada", "q1")],
            7: [Event(AT + 120, "c", "click", "ada", query="belt")],
        },
        {
            6: "an event about no object",
            8: "no usable time (timestamp)",
            9: "a query without a user_query",
            10: "an event without a usable object_id",
            11: "an event without a usable action_name",
        },
    )


def test_algolia_is_read_event_by_event_and_body_by_body():
    assert entries_of("algolia.ndjson") == (
        "algolia",
        {
            1: [
                Event(AT + 5, "a", "click", "ada", "q1", meta=second(1)),
                Event(AT + 5, "b", "click", "ada", "q1", meta=second(4)),
            ],
            2: [Event(AT + 9, "a", "purchase", "ada", "q1")],
            3: [Event(AT + 10, "c", "view", "bob"), Event(AT + 11, "c", "add_to_cart", "bob")],
        },
        {
            4: "an event about filters",
            5: "userToken has 1 to 129 letters, digits or characters of _=/+-",
            6: "positions belong to a click, count from 1 on, and are as many as objectIDs",
            7: "eventType is click, view or conversion; eventSubtype, of a conversion, addToCart or purchase",
            8: "objectIDs are a list of 1 to 20 ids",
            9: "eventName has 1 to 64 characters",
            10: "no usable time (timestamp)",
        },
    )


def test_metarank_is_read():
    assert entries_of("metarank.jsonl") == (
        "metarank",
        {
            2: [Search(AT, "red shoe", "ada", "r1", ("b", "a"))],
            3: [Event(AT + 5, "a", "click", "ada", "r1", event_id="e1")],
        },
        {
            1: "what is known of an item or a user",
            4: "a ranking without a field `query`: what was searched is unknown",
            5: "an interaction without a usable item and type",
            6: "a ranking without a usable id",
            7: "a row whose event is no ranking and no interaction",
        },
    )


def test_segment_is_read():
    assert entries_of("segment.ndjson") == (
        "segment",
        {
            2: [Search(AT, "red shoe", "ada")],
            3: [Shown(AT + 1, "ada", ("b", "a"))],
            4: [Event(AT + 5, "a", "click", "ada", event_id="m3/a", meta=second(2))],
            5: [
                Event(AT + 9, "a", "purchase", "ada", event_id="m4/a"),
                Event(AT + 9, "b", "purchase", "ada", event_id="m4/b"),
            ],
        },
        {
            1: "a call that tracks nothing (page, identify, ...)",
            6: "a track about no product",
            7: "a track without a userId or anonymousId, so the search that it belongs to is unknown",
            8: "Products Searched without a query",
            9: "no usable time (timestamp, originalTimestamp, sentAt, receivedAt)",
            10: "a track without an event and its properties",
        },
    )


def test_google_analytics_is_read_with_its_lists_in_order():
    assert entries_of("ga4.ndjson") == (
        "ga4",
        {
            2: [Search(AT, "red shoe", "ada")],
            3: [Shown(AT + 1, "ada", ("b", "a", "c"))],
            4: [Event(AT + 5, "a", "click", "ada", meta=second(2))],
            5: [Event(AT + 9, "a", "purchase", "ada"), Event(AT + 9, "b", "purchase", "ada")],
        },
        {
            1: "an event about no search and no item",
            6: "an event without a user_id or user_pseudo_id, so the search that it belongs to is unknown",
            7: "a search without a search_term",
            8: "an event without a usable item_id",
            9: "no usable time (event_timestamp)",
        },
    )


FLAT = {
    2: [Search(AT, "red shoe", "ada", shown=("b", "a"))],
    3: [Event(AT + 5, "a", "click", "ada", query="red shoe")],
    4: [Event(AT + 9, "a", "purchase", "ada", query="red  shoe")],
    5: [
        Search(AT + 20, "hat", "bob", shown=("c", "a")),
        Event(AT + 20, "c", "click", "bob", query="hat"),
    ],
}


def test_a_table_is_read_by_its_mapping_and_a_quote_too_many_costs_its_own_line():
    dialect, entries, left = entries_of("flat.csv", columns=MAPPED)

    assert (dialect, entries) == ("flat", FLAT)
    assert left == {
        6: "a row without a query (search_term) and without an object (sku)",
        7: "no usable time (when)",
        8: "a line that has not a value for each column",
        9: "a line that has not a value for each column",
    }


@pytest.mark.parametrize("separator", ["\t", "|"])
def test_a_quote_that_encloses_nothing_is_part_of_its_value(tmp_path, separator):
    path = tmp_path / "a.tsv"
    rows = ["time,query,object", '2026-01-05,"gift,a', '2026-01-05,24" tv,a', '2026-01-05,"red ""5"" shoe",a']
    path.write_text("\n".join(rows).replace(",", separator))

    entries = [entry for _, entry in open_log(str(path), columns=flat.mapping(None)).entries]
    queries = [entry.query for entry in entries if isinstance(entry, Event)]
    assert queries == ['"gift', '24" tv', 'red "5" shoe']


def test_what_a_database_writes_for_nothing_is_no_user(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("time\tuser\tquery\n2026-01-05\t\\N\tred\n")

    [(_, search)] = open_log(str(path), columns=flat.mapping(None)).entries

    assert isinstance(search, Search)
    assert search.user_id is None


def test_our_own_sessions_are_read_whole():
    dialect, entries, left = entries_of("own.jsonl")

    assert dialect == "own"
    first, *clicks = entries[1]
    assert [(each.object_id, each.rank, each.propensity) for each in first.session.search_results] == [
        ("b", None, 1.0),
        ("a", 0.25, 0.5),
    ]
    assert clicks == [Event(AT + 5, "a", "click", "ada", "s1"), Event(AT, "b", "click", "ada", "s1")]
    assert entries[2][1:] == [Event(AT, "c", "purchase", None, "s2", event_id="e1", meta=second(1))]
    assert entries[3][0].query_vectors.tolist() == [[1.0, 0.5]]
    assert left == {
        4: "a session without a usable query",
        5: "a session without a usable session_id",
        6: "no usable time (timestamp)",
        7: "a session with a result without a usable object_id",
        8: "a session whose propensity is not as it should be",
        9: "a session with a click without a usable object_id, event_type or time (t)",
        10: "a session whose query_vectors are no lists of numbers",
        11: "a session with a meta or request that is no JSON object that can be stored",
    }


# Files


def test_packed_files_are_found_by_their_first_bytes(tmp_path):
    plain = (LOGS / "metarank.jsonl").read_bytes()
    (tmp_path / "a.log").write_bytes(gzip.compress(plain))
    (tmp_path / "b.log").write_bytes(zstandard.compress(plain[:300]) + zstandard.compress(plain[300:]))

    wanted = list(read_rows(LOGS / "metarank.jsonl"))
    assert [list(read_rows(tmp_path / name)) for name in ("a.log", "b.log")] == [wanted, wanted]


def test_a_packed_file_that_breaks_off_keeps_what_came_before(tmp_path):
    lines = b"".join(b'{"n": %d}\n' % n for n in range(5_000))
    for packed in (gzip.compress(lines), zstandard.compress(lines)):
        (tmp_path / "a.jsonl").write_bytes(packed[: len(packed) // 2])

        rows = list(read_rows(tmp_path / "a.jsonl"))

        kept = [row for _, row in rows if isinstance(row, dict)]
        assert kept == [{"n": n} for n in range(len(kept))]
        assert [str(row) for _, row in rows[len(kept) :]] in (
            [],  # Zstandard may end at a line without telling
            ["the rest of the file, which cannot be unpacked"],
            ["a line that is no JSON"],
            ["a line that is no JSON", "the rest of the file, which cannot be unpacked"],
        )


def test_parquet_and_standard_input_are_read(tmp_path, monkeypatch):
    rows = [
        {"time": AT, "user": "ada", "query": "hat", "object": None},
        {"time": AT + 1, "user": "ada", "query": "hat", "object": "a"},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'\xef\xbb\xbf{"a": 1}\n\n[2]\n')))

    assert list(read_rows(tmp_path / "a.parquet")) == list(enumerate(rows, start=1))
    first, last = read_rows("-")
    assert (first, last[0], str(last[1])) == ((1, {"a": 1}), 3, "a line that is no JSON object")


@given(st.text('a1,; \t\r"\\é\0\u2028', max_size=8), st.sampled_from(",;"))
def test_a_line_of_a_table_is_read_as_the_reader_of_csv_does(line, delimiter):
    try:
        [expected] = csv.reader([line], delimiter=delimiter, strict=True)
    except (csv.Error, ValueError) as error:
        with pytest.raises(type(error)):
            rows.values_of(line, delimiter)
    else:
        assert rows.values_of(line, delimiter) == expected


@given(st.lists(st.one_of(st.text("ab\0é", max_size=3), st.sampled_from([7, None, "x" * 513, "é" * 257]))))
def test_the_objects_of_a_list_are_those_of_each_alone(listed):
    alone = [entries.id_of(each) for each in listed]

    assert entries.objects_of(listed) == tuple(dict.fromkeys(each for each in alone if each is not None))


def test_a_line_of_a_table_that_is_not_utf_8_is_told_as_such(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x,y\ncaf\xe9,1\nhat,2\n")

    first, last = read_rows(tmp_path / "a.csv")

    assert (first[0], str(first[1])) == (2, "a line that is not UTF-8")
    assert last == (3, {"x": "hat", "y": "2"})


def test_a_line_may_hold_a_list_of_rows(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"a": 1}, 2, {"a": 3}]\n[]\n{"a": 4}\n')

    rows = [(number, str(row)) for number, row in read_rows(tmp_path / "a.json")]

    assert rows == [
        (1, "{'a': 1}"),
        (1, "a line that is no JSON object"),
        (1, "{'a': 3}"),
        (3, "{'a': 4}"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("absent.jsonl", None, "cannot be opened"),
        ("a.jsonl", b"", "no log of a known format; its first row has nothing that can be read"),
        ("a.jsonl", b'{"x": 1}\n', "its first row has 'x'. Say which column is what, as --map query=COLUMN"),
        ("a.jsonl", b'{"user_id": "u", "events": [{"object_id": "a"}]}\n', "no log of a known format"),
        ("a.json", b'[\n{"x": 1}\n]\n', "one JSON value over many lines"),
        ("a.json", b'[{"x": 1},\n {"x": 2}]\n', "one JSON value over many lines"),
        ("a.csv", b"x,x\n1,2\n", "column names, each once, are needed"),
        ("a.csv", b"\xff,\n", "column names, each once, are needed"),
        ("a.csv", "time,query\n".encode("utf-16"), "it is UTF-16, and UTF-8 is needed"),
        ("a.jsonl", '{"x": 1}\n'.encode("utf-16"), "it is UTF-16, and UTF-8 is needed"),
        ("a.csv", b"x,y\n1,2\n", "no log of a known format"),
        ("a.parquet", b"no", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_no_log_gets_a_sentence(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(InvalidDataError) as told:
        open_log(str(tmp_path / name), columns=flat.mapping(None))

    assert sentence in str(told.value)


def test_strict_stops_at_the_first_row_that_cannot_be_used_and_names_it():
    with pytest.raises(InvalidDataError, match=r"metarank\.jsonl:4: a ranking without a field `query`"):
        entries_of("metarank.jsonl", is_strict=True)


def test_a_mapping_names_fields_that_there_are():
    assert flat.mapping("query=q, user = who")["user"] == "who"
    for wrong in ("colour=c", "query", "query="):
        with pytest.raises(InvalidInputError, match="write FIELD=COLUMN, where FIELD is one of query, user"):
            flat.mapping(wrong)


@pytest.mark.parametrize("name", ["ubi.ndjson", "segment.ndjson", "own.jsonl", "flat.csv"])
@given(data=st.data())
def test_a_garbled_byte_costs_the_lines_that_it_touches_and_no_other(tmp_path_factory, name, data):
    lines = (LOGS / name).read_bytes().splitlines(keepends=True)
    is_table = name.endswith("csv")
    number = data.draw(st.integers(int(is_table), len(lines) - 1))
    at = data.draw(st.integers(0, len(lines[number]) - 1))
    byte = data.draw(st.binary(max_size=1))
    garbled = lines[number][:at] + byte + lines[number][at + 1 :]
    path = tmp_path_factory.mktemp("garbled") / name
    path.write_bytes(b"".join([*lines[:number], garbled, *lines[number + 1 :]]))

    def by_text(file):
        log = open_log(str(file), dialect="flat" if is_table else name.split(".")[0], columns=columns)
        return [(int(place.rpartition(":")[2]), repr(entry)) for place, entry in log.entries]

    columns = flat.mapping(MAPPED)
    before, after = by_text(LOGS / name), by_text(path)

    more = (b"".join(lines).count(b"\n") - path.read_bytes().count(b"\n")) * -1
    assert [each for each in after if each[0] <= number] == [each for each in before if each[0] <= number]
    rest = number + 1 + (1 if more < 0 else 0)  # a line without its end takes the next one with it
    assert [(line - more, entry) for line, entry in after if line - more > rest] == [
        each for each in before if each[0] > rest
    ]


STRANGE = (
    *(None, True, "", "\0", "nan", "-1", "\u00b2", "x" * 600, "9" * 400, "9" * 5_000, "9" * 400 + ".0"),
    *([], {}, ["a"], [["a"]], {"a": ["b"]}, [None], -5, 1e300, 2**64 - 1, json.loads("[" * 300 + "]" * 300)),
)
"""Of a kind that nobody expects, or too large."""


def places_in(value, place=()):
    """Yield where values stand in a row, at any depth."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield (*place, key)
        yield from places_in(each, (*place, key))


@pytest.mark.parametrize("name", sorted(each.name for each in LOGS.glob("*json*")))
@given(data=st.data())
def test_a_strange_value_anywhere_costs_no_other_row(tmp_path_factory, name, data):
    lines = (LOGS / name).read_bytes().splitlines(keepends=True)
    number = data.draw(st.integers(0, len(lines) - 1))
    row = json.loads(lines[number])
    *outer, last = data.draw(st.sampled_from(sorted(places_in(row), key=repr)))
    functools.reduce(operator.getitem, outer, row)[last] = data.draw(st.sampled_from(STRANGE))
    path = tmp_path_factory.mktemp("strange") / name
    path.write_bytes(b"".join([*lines[:number], json.dumps(row).encode() + b"\n", *lines[number + 1 :]]))

    def by_line(file):
        log = open_log(str(file), columns=flat.mapping(None))
        told = [(int(place.rpartition(":")[2]), entry) for place, entry in log.entries]
        assert "\\x00" not in repr(told)
        return log.dialect, [(line, repr(entry)) for line, entry in told if line != number + 1]

    assert by_line(path) == by_line(LOGS / name)


# Joining


def joined(*entries):
    return [entry for _, entry in join((str(number), entry) for number, entry in enumerate(entries))]


def test_an_event_belongs_to_the_latest_search_of_its_user_that_showed_the_object():
    entries = [
        Search(AT, "shoe", "ada"),
        Shown(AT + 1, "ada", ("b", "a")),
        Search(AT + 100, "hat", "ada"),
        Shown(AT + 101, "ada", ("c",)),
        Shown(AT + 102, "ada", ("d", "c")),
        Search(AT + 103, "belt", "bob"),
        Event(AT + 110, "a", user_id="ada"),
        Event(AT + 111, "d", user_id="ada"),
        Event(AT + 112, "x", user_id="ada"),
        Event(AT + 113, "x", user_id="bob"),
        Event(AT + 113, "x", user_id="eve"),
        Event(AT + 113, "x"),
        Event(AT + 103 + 1801, "x", user_id="bob"),
        Shown(AT, "eve", ("c",)),
    ]

    found = joined(*entries)

    searches = {each.query: each for each in found if isinstance(each, Search)}
    assert {query: each.shown for query, each in searches.items()} == {
        "shoe": ("b", "a"),
        "hat": ("c", "d"),
        "belt": (),
    }
    belong = {each.search_id: query for query, each in searches.items()}
    assert [(each.object_id, belong[each.search_id]) for each in found if isinstance(each, Event)] == [
        ("a", "shoe"),
        ("d", "hat"),
        ("x", "belt"),
    ]
    assert sorted(each.reason for each in found if isinstance(each, Left)) == sorted(
        [joining.NOT_SHOWN, joining.NO_SEARCH, joining.NO_USER, joining.NO_SEARCH, joining.NO_LIST]
    )


@given(order=st.permutations(range(9)))
def test_the_order_of_rows_does_not_matter(order):
    entries = [
        Search(AT, "shoe", "ada"),
        Shown(AT + 1, "ada", ("b", "a")),
        Event(AT + 5, "a", user_id="ada"),
        Search(AT + 9, "hat", "bob"),
        Event(AT + 9, "z", user_id="bob"),
        Event(AT + 20, "z", user_id="bob", query="cap"),
        Event(AT + 21, "y", user_id="bob", query="cap "),
        Event(AT + 22, "y", search_id="q7"),
        Search(AT + 30, "x", "eve", "q7"),
    ]

    shuffled = joined(*(entries[n] for n in order))

    def without_repeats(found):
        """Of a search that events make, the first to come has the time."""
        return {(type(each), each.search_id, getattr(each, "object_id", None), each.query) for each in found}

    assert without_repeats(shuffled) == without_repeats(joined(*entries))


def test_a_search_comes_before_its_events_and_each_search_once(monkeypatch):
    monkeypatch.setattr(joining, "ROWS_IN_ORDER", 3)
    monkeypatch.setattr(joining, "SEARCHES_OF_USER", 2)
    entries = []
    for n in range(40):
        user = f"u{n % 2}"
        entries += [Search(AT + 900 * n, f"q{n}", user), Event(AT + 900 * n + 5, "a", user_id=user)]

    found = joined(*entries)

    seen = set()
    for each in found:
        if isinstance(each, Search):
            assert each.search_id not in seen
            seen.add(each.search_id)
        else:
            assert each.search_id in seen
    assert len(seen) == 40
    assert len(found) == 80


def test_an_event_that_knows_its_text_makes_a_search_of_its_user_text_and_half_hour():
    found = joined(
        Event(AT, "a", user_id="ada", query="red  shoe"),
        Event(AT + 60, "b", user_id="ada", query="red shoe"),
        Event(AT + 60, "b", user_id="bob", query="red shoe"),
        Event(AT + 1800, "b", user_id="ada", query="red shoe"),
    )

    made = [each.search_id for each in found if isinstance(each, Search)]
    assert made[0] == made[1]
    assert len(set(made)) == 3
    assert {each.query for each in found if isinstance(each, Search)} == {"red shoe"}
    assert [each.search_id for each in found if isinstance(each, Event)] == made
