"""Files of settings, as ``.env`` is: a line each, of which those of other programs are left as they are."""

import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from embedding_studio.errors import InvalidInputError

logger = logging.getLogger(__name__)


def warn_of_near_misses(file: Path, known: Collection[str]) -> None:
    """Warn of names in a file that are no settings, and nearly one: they would be ignored silently."""
    for name in dotenv_values(file) if file.is_file() else ():
        near = get_close_matches(name.lower(), known, n=1, cutoff=0.85)
        if near and near[0] != name.lower():
            logger.warning("%s in %s is no setting; is %s meant?", name, file, near[0].upper())


def write_settings(file: Path, changes: Mapping[str, Any]) -> None:
    """Write settings into a file as ``.env`` is, in place of what it said of them; the rest stays as it is.

    Args:
        changes: name of a setting -> value.

    Raises:
        InvalidInputError: it cannot be read or written; then it is as it was.
    """
    target = file.resolve()
    lines = [line for line in read_lines(file) if _name_in(line) not in changes]
    lines += [f"{name.upper()}={json.dumps(value)}" for name, value in changes.items()]
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with beside.open("x", encoding="utf-8") as written:
            if target.exists():
                shutil.copymode(target, beside)
            written.writelines(f"{line}\n" for line in lines)
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InvalidInputError(f"{file} cannot be written: {error.strerror or error}") from error


def read_lines(file: Path) -> list[str]:
    """Return the lines of a settings file; none where it is not there yet.

    Raises:
        InvalidInputError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{file} is no settings file that can be read: {error}") from error


def _name_in(line: str) -> str:
    """Return which setting a line of a file sets.

    >>> _name_in("export QUERY_SHIFT = 1"), _name_in("# a comment")
    ('query_shift', '')
    """
    name, equals, _ = line.strip().removeprefix("export ").partition("=")
    return name.strip().lower() if equals and not name.startswith("#") else ""
