"""A small shop: what it sells, as its page would say it. The page of the demo draws it, from the payloads."""

import csv
from collections.abc import Iterator
from pathlib import Path

from embedding_studio.catalogue import CatalogueText

FILE = Path(__file__).with_name("shop.csv")


def read_shop() -> Iterator[CatalogueText]:
    """Yield the products."""
    with FILE.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            yield CatalogueText(
                row.pop("id"),
                f"{row['title']}. {row['description']}",
                row | {"colours": row["colours"].split("/"), "price": int(row["price"])},
            )
