"""How much may be asked for at once; looked at before anything is made of it."""

MAX_ID_LENGTH = 512
"""Bytes of an id in UTF-8, so that an index of the database holds two of them."""

MAX_FIELD_LENGTH = 512
MAX_FIELD_STEPS = 16
"""Of a payload field that a filter or ``sort_by`` names: characters, and steps with dots between them."""

MAX_FILTER_CONDITIONS = 256
MAX_FILTER_VALUES = 1_024
MAX_FILTER_WORDS = 32
"""Over all of a filter: its conditions, and what ``terms``, ``any`` and ``all`` list, each once for every
step of the field's name; the words of ``match`` and ``match_phrase``, of which PostgreSQL keeps so many
compiled.
"""

MAX_FILTER_TEXT = 1_024
"""Characters of one text in a filter."""

MAX_QUERY_LENGTH = 16_384
MAX_QUERY_PARTS = 64
"""Characters of a query that is a text; vectors of a query."""

MAX_CANDIDATES = 1_000
"""Of another search, that are ranked at once."""
