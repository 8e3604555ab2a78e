"""What PostgreSQL keeps: no NUL character, no half of a surrogate pair, no number that is not finite."""

import json
import math
from typing import Any

import numpy as np
import orjson

MAX_JSON_DEPTH = 64


def as_json(value: Any) -> bytes:
    """Return JSON, in which arrays of numbers are lists.

    >>> as_json({"x": [0.1, 2**70]})
    b'{"x": [0.1, 1180591620717411303424]}'
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # numbers of more than 64 bits
        return json.dumps(value, default=np.ndarray.tolist).encode()


def check_text(given: str) -> str:
    if "\x00" in given:
        raise ValueError("a text may not hold the character NUL (U+0000)")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise ValueError("a text may not hold half a surrogate pair (U+D800 to U+DFFF)") from None
    return given


def check_json(given: dict[str, Any]) -> dict[str, Any]:
    """Return what was given if PostgreSQL can keep it as ``jsonb``.

    >>> check_json({"sizes": [38, 39.5], "brand": None})
    {'sizes': [38, 39.5], 'brand': None}
    """
    level: list[Any] = [given]
    for _ in range(MAX_JSON_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value.keys())
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, str):
                check_text(value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{value} is no number that JSON knows; send null or leave it out")
        if not below:
            return given
        level = below
    raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} levels deep")
