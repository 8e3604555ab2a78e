"""The licences of what constraints.txt names: a table, and a refusal of those that are not allowed."""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ALLOWED = frozenset(
    {
        *("0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python"),
        *("ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Zlib", "LLVM-exception"),
        *("LGPL-3.0-only", "MPL-2.0"),  # of libraries that are used as they are, each in files of its own
    }
)
EXCEPTIONS = {"codespell": "GPL-2.0-only"}
"""Tools that look at the sources; no part of the product imports or ships them."""
TOLD_IN_FILES = {"axe-playwright-python": "MIT AND MPL-2.0"}
"""Of those whose metadata do not say: as their files LICENSE do."""

SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD License": "BSD",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"


def licences() -> dict[str, str]:
    """Return the licence of each package that constraints.txt names, as far as it is installed."""
    found = {}
    for line in CONSTRAINTS.read_text().split():
        try:
            told = distribution(line.partition("==")[0]).metadata
        except PackageNotFoundError:  # of another platform
            continue
        named = [told.get("License-Expression") or told.get("License") or ""]
        named += [each.split(" :: ")[-1] for each in told.get_all("Classifier", []) if "License ::" in each]
        fit = [
            each
            for each in named
            if "\n" not in each and (told.get("License-Expression") or 0 < len(each) <= 60)
        ]
        known = [SPDX.get(each, each) for each in fit if SPDX.get(each, each) in ALLOWED] or fit
        found[told["Name"]] = (
            SPDX.get(known[0], known[0]) if known else TOLD_IN_FILES.get(told["Name"], "not stated")
        )
    return found


def refused(found: dict[str, str]) -> dict[str, str]:
    """Return those of which some part is under what is not allowed.

    >>> refused({"a": "MIT", "b": "MIT AND GPL-3.0-only", "c": "not stated"})
    {'b': 'MIT AND GPL-3.0-only', 'c': 'not stated'}
    """
    return {
        name: licence
        for name, licence in found.items()
        if EXCEPTIONS.get(name) != licence
        and not set(re.split(r"[\s()]+(?:AND|OR|WITH)[\s()]+|[()]", licence)) - {""} <= ALLOWED
    }


def licences_markdown() -> str:
    """Return the table of ``docs/licences.md``."""
    rows = [f"| {name} | {licence} |" for name, licence in licences().items()]
    return "\n".join(["| package | licence |", "|---|---|", *rows])


if __name__ == "__main__":
    if wrong := refused(licences()):
        sys.exit(
            "\n".join(f"{name}: the licence {licence!r} is not allowed" for name, licence in wrong.items())
        )
