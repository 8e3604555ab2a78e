"""What a body says, whichever of two readers reads it."""

import json

from hypothesis import given
from hypothesis import strategies as st

from embedding_studio.api.bodies import LARGE_NUMBER, _parsed

NUMBERS = st.one_of(
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.integers(10**18, 10**40).map(lambda number: -number),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.recursive(
    st.one_of(NUMBERS, st.text(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=9,
)


@given(value=VALUES, indent=st.sampled_from([None, 0, 1, "\t"]), colon=st.sampled_from([":", ": ", " :\n"]))
def test_a_body_is_read_as_it_was_written_with_whole_numbers_of_any_size(value, indent, colon):
    text = json.dumps(value, indent=indent, separators=(",", colon), ensure_ascii=False)

    read = _parsed(text.encode())

    assert read == value
    assert json.dumps(read) == json.dumps(value)  # no whole number has become a float


@given(number=st.integers(2**64, 10**60), before=st.sampled_from(["", "-"]))
def test_a_large_number_alone_is_one(number, before):
    text = f"{before}{number}"

    assert LARGE_NUMBER.search(text.encode())
    assert _parsed(text.encode()) == int(text)
