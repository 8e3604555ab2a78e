"""What the demo says of a real log: what ``replay`` wrote into docs/on-a-real-log.md, as JSON."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/on-a-real-log.md"
FIGURES = ROOT / "src/embedding_studio/demo/replayed.json"


def replayed(page: str) -> str:
    """Return how many searches and users there were, and in what share the wish stood first, by method."""
    searches, users = re.findall(r"^## .*: (\d+) searches of (\d+) users$", page, re.MULTILINE)[0]
    first = re.findall(r"^- (\w+): .*?stands first in ([\d.]+)% of", page, re.MULTILINE)
    return json.dumps(
        {
            "searches": int(searches),
            "users": int(users),
            "first_percent": {method: float(percent) for method, percent in first},
        }
    )


if __name__ == "__main__":
    FIGURES.write_text(replayed(PAGE.read_text()) + "\n")
