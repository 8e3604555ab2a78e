"""What whoever hands in a catalogue file may say about it."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class OnDuplicate(StrEnum):
    """Which row counts where several have one id."""

    REFUSE = "refuse"
    FIRST = "first"
    LAST = "last"
    MERGE = "merge"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is to be read.

    Attributes:
        id_column: names each object; texts and whole numbers, UUIDs, decimals and times become texts.
        text_columns: their values stand in the text one a line; a list's are joined by commas.
        vector_column: holds each row's vector, or a list of those of its parts; no part of the payload.
        npy: a file of numpy, [N, D] float16, float32 or float64, in the order of the rows.
        payload_columns: they alone become the payload; None: all but the first and third of these.
        drop_columns: they are left out of the payload.
        on_duplicate: ``merge`` keeps, of the columns that differ between rows of an object, lists.
        separator: between the columns of a table; None: it is found.
        encoding: None: UTF-8.
    """

    id_column: str = "id"
    text_columns: tuple[str, ...] = ()
    vector_column: str | None = None
    npy: str | Path | None = None
    payload_columns: tuple[str, ...] | None = None
    drop_columns: tuple[str, ...] = ()
    on_duplicate: OnDuplicate = OnDuplicate.REFUSE
    separator: str | None = None
    encoding: str | None = None

    @property
    def named(self) -> set[str]:
        """The columns without which nothing can be read."""
        vectors = () if self.vector_column is None else (self.vector_column,)
        return {self.id_column, *self.text_columns, *vectors}

    def is_in_payload(self, column: str) -> bool:
        if column in self.drop_columns:
            return False
        if self.payload_columns is not None:
            return column in self.payload_columns
        return column not in (self.id_column, self.vector_column)

    def is_wanted(self, column: str) -> bool:
        return column in self.named or self.is_in_payload(column)
