"""Search in the sections of a folder of Markdown, which learns what its reader opens: examples/README.md."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedding_studio import Client

COLLECTION = "documentation"
HEADING = re.compile(r"^#{1,3} (.+)$", re.MULTILINE)


def sections(folder: Path) -> Iterator[dict[str, Any]]:
    """Return each section with a text, under its page and heading."""
    for path in sorted(folder.glob("*.md")):
        _, *rest = HEADING.split(path.read_text())
        headings, texts = rest[::2], rest[1::2]
        for number, (heading, text) in enumerate(zip(headings, texts, strict=True)):
            if text.strip():
                payload = {"page": path.name, "heading": heading, "lead": text.strip().splitlines()[0]}
                object_id = f"{path.stem}#{number}"
                yield {"object_id": object_id, "text": f"{heading}\n\n{text}", "payload": payload}


def main() -> None:
    """Store a folder, or search and say which result was opened."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--service", default="http://127.0.0.1:8000")
    options.add_argument("--reader", default="ann")
    options.add_argument("--open", type=int, metavar="N", help="the result that the reader opens, from 1 on")
    options.add_argument("query", help="what to search for, or a folder to store")
    asked = options.parse_args()

    with Client(asked.service, timeout=120, collection=COLLECTION) as client:
        if (folder := Path(asked.query)).is_dir():
            client.create_collection(COLLECTION, embedder="all-MiniLM-L6-v2")
            print(client.upsert(sections(folder)))
            return
        page = client.search(asked.query, user_id=asked.reader, limit=5, create_session=True)
        for found in page.results:
            mark = "*" if found.personalised else " "
            print(f"{found.position}{mark} {found.payload['page']}: {found.payload['heading']}")
        if asked.open:
            opened = page.results[asked.open - 1]
            client.click(page.session_id, opened.object_id)
            print(f"\n{opened.payload['heading']}\n{opened.payload['lead']}")


if __name__ == "__main__":
    main()
