"""Where a database is: looked at before the driver tells, in its own words, what it made of it."""

import re

import psycopg
from psycopg.conninfo import conninfo_to_dict

from embedding_studio.errors import InvalidSettingError

_DIALECT = re.compile(r"^(postgres|postgresql)\+\w+://")
"""How SQLAlchemy names the driver too."""

_NO_ADDRESS = (
    "{setting} is no address of a PostgreSQL database: write postgresql://USER:PASSWORD@HOST:PORT/NAME, "
    "and in USER and PASSWORD %2F for /, %40 for @, %3A for :, %3F for ?, %23 for # and %25 for %"
)
"""Says nothing of what was given: any part of it may be the password."""


def checked_address(given: str, setting: str = "DATABASE_URL") -> str:
    """Return the address of a database as the driver takes it.

    >>> checked_address("postgresql+psycopg://ann:secret@db.example/shop")
    'postgresql://ann:secret@db.example/shop'

    Raises:
        InvalidSettingError: it is none, or its password would be taken for another part of it.
    """
    address = _DIALECT.sub("postgresql://", given.strip())
    try:
        parts = conninfo_to_dict(address)
    except (psycopg.ProgrammingError, UnicodeError):
        raise InvalidSettingError(_NO_ADDRESS.format(setting=setting)) from None
    place = "".join(str(parts.get(name, "")) for name in ("host", "dbname"))
    is_url = "://" in address
    if (is_url and "@" in place) or re.fullmatch(r"[\d,]*", str(parts.get("port", ""))) is None:
        raise InvalidSettingError(_NO_ADDRESS.format(setting=setting))
    return address
