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
        told = _unknown_parameter(address) or _NO_ADDRESS
        raise InvalidSettingError(told.format(setting=setting)) from None
    place = "".join(str(parts.get(name, "")) for name in ("host", "dbname"))
    is_url = "://" in address
    if (is_url and "@" in place) or re.fullmatch(r"[\d,]*", str(parts.get("port", ""))) is None:
        raise InvalidSettingError(_NO_ADDRESS.format(setting=setting))
    return address


def _unknown_parameter(address: str) -> str | None:
    """Return what is said of an address that is right but for a parameter, as other drivers have some."""
    rest, _, query = address.partition("?")
    if "@" in query or not _is_address(rest):
        return None
    names = (each.partition("=")[0] for each in query.split("&"))
    unknown = next((name for name in names if not _is_address(f"postgresql:///?{name}=1")), "")
    if not re.fullmatch(r"\w+", unknown, re.ASCII):
        return None
    return f"{{setting}} has the parameter {unknown}, which PostgreSQL's client does not know; leave it out"


def _is_address(given: str) -> bool:
    try:
        conninfo_to_dict(given)
    except (psycopg.ProgrammingError, UnicodeError):
        return False
    return True
