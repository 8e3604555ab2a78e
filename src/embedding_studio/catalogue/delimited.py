"""Tables of text: which character separates their columns, and whether quotes enclose values.

What is found is never trusted alone: the columns that were asked for must be in the header.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice

SEPARATORS = ",;\t|"

QUOTING_SEPARATORS = ",;"
"""Whoever writes these puts values in quotes; of others some programs do not."""

SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n")
"""How a file tells Excel its separator, in a line before the header."""

HEAD_LINES = 20

NULL = r"\N"
"""How MySQL, PostgreSQL and IMDb write what is missing, where quotes do not enclose values."""

csv.field_size_limit(2**31 - 1)  # by default a value has at most 131,072 characters


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a table is written.

    Attributes:
        is_quoted: whether quotes enclose values; else a quote is a character like others.
        skipped: so many lines stand before the header.
    """

    separator: str
    is_quoted: bool = True
    skipped: int = 0

    def rows(self, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield rows that hold something, the header first, each with the number of its first line.

        Raises:
            NotATableError: a quote is where none can be.
        """
        rest = iter(lines)
        for _ in range(self.skipped):
            next(rest, None)
        reader = csv.reader(
            rest,
            delimiter=self.separator,
            quoting=csv.QUOTE_MINIMAL if self.is_quoted else csv.QUOTE_NONE,
            strict=True,
        )
        while True:
            line = reader.line_num + self.skipped + 1
            try:
                values = next(reader, None)
            except csv.Error as error:
                raise NotATableError(line, str(error)) from error
            if values is None:
                return
            if any(values):
                yield line, values


class NotATableError(ValueError):
    """Where quotes enclose values, one is where none can be, or none where one must be."""

    def __init__(self, line: int, said: str) -> None:
        super().__init__(said)
        self.line = line


def find_dialect(
    head: Sequence[str], named: AbstractSet[str], *, told: str | None, first: str
) -> tuple[Dialect, list[str]]:
    """Return how a table is written by its first lines, and its header.

    Args:
        named: columns that the header must hold; where it does not, that separator is taken which makes
            most columns.
        told: the separator; None: it is found.
        first: the separator that is tried first.
    """
    skipped = 0
    if head and (match := SEPARATOR_LINE.fullmatch(head[0])):
        skipped, told = 1, told or match[1]
    separators = [told] if told else sorted(SEPARATORS, key=lambda each: each != first)
    headers = [(Dialect(each, skipped=skipped), _header(head, each, skipped)) for each in separators]
    for dialect, header in headers:
        if named <= set(header):
            return dialect, header
    return max(headers, key=lambda each: len(each[1]))


def _header(head: Sequence[str], separator: str, skipped: int) -> list[str]:
    try:
        _, names = next(Dialect(separator, skipped=skipped).rows(head), (0, []))
    except NotATableError:
        names = head[skipped].rstrip("\r\n").split(separator)
    return [name.strip() for name in names]


def encloses_values(read: Callable[[], Iterable[str]], dialect: Dialect) -> bool:
    """Return whether quotes plainly enclose values in a table that may have none that do, as TSV has.

    They do where the names of all columns stand in quotes; where the rows have the same number of values
    in no other way; and where each value with a quote stands in quotes that it needs.

    Args:
        read: gives the lines of the table; called once or twice.
    """
    found = _Quotes(dialect.separator)
    for line in islice(read(), dialect.skipped, None):
        found.see(line.rstrip("\r\n"))
        if found.names_are_enclosed:
            return True
    if found.is_even:
        return found.are_needed
    try:
        return len({len(values) for _, values in dialect.rows(read())}) == 1
    except NotATableError:
        return False


def swallows_rows(read: Callable[[], Iterable[str]], dialect: Dialect) -> bool:
    """Return whether values in quotes take in rows: each line has the same number of values without quotes.

    Args:
        read: gives the lines of the table; called once or twice.
    """
    widths = Counter(
        line.count(dialect.separator) for line in islice(read(), dialect.skipped, None) if line.strip()
    )
    if len(widths) != 1 or widths[0]:
        return False
    try:
        return sum(1 for _ in dialect.rows(read())) < widths.total()
    except NotATableError:
        return True


class _Quotes:
    """What is seen of quotes, line by line, as if they enclosed nothing."""

    def __init__(self, separator: str) -> None:
        self._separator = separator
        self._width = 0
        self.names_are_enclosed = False
        self.is_even = True
        self._has_doubled = self._has_commas = self._has_bare_commas = self._has_loose = False

    @property
    def are_needed(self) -> bool:
        """Whether each value with a quote is one that a writer would enclose: for a quote, or for a comma."""
        return not self._has_loose and (self._has_doubled or (self._has_commas and not self._has_bare_commas))

    def see(self, line: str) -> None:
        if not line:
            return
        values = line.split(self._separator)
        if not self._width:
            self._width = len(values)
            self.names_are_enclosed = all(map(_is_enclosed, values))
        self.is_even &= len(values) == self._width
        for value in values if '"' in line or "," in line else ():
            self._see_value(value)

    def _see_value(self, value: str) -> None:
        if _is_enclosed(value):
            is_doubled, has_comma = '""' in value[1:-1], "," in value
            self._has_doubled |= is_doubled
            self._has_commas |= has_comma
            self._has_loose |= not (is_doubled or has_comma)
        else:
            self._has_loose |= '"' in value
            self._has_bare_commas |= "," in value


def _is_enclosed(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] == '"' and '"' not in value[1:-1].replace('""', "")
