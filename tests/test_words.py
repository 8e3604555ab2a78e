"""The words of code and pages (../shared/HOUSE.md): plain English, and one word for one idea."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md"))
MODULES = sorted((ROOT / "src").rglob("*.py"))
STATEMENTS = sorted(
    file for file in (ROOT / "src").rglob("*.sql") if file.parent.name != "migrations"
)  # a migration that was applied is never edited

INSTEAD = {
    r"anew": "again; re-learn, rewrite, restart",
    r"nobody(?:'s)?": "no user, no caller, unknown",
    r"told(?! to\b| apart\b| from chance\b)": "reported, shown, answered; but told to stop, and told apart",
    r"(?:a|the|each|every|one|its) turn": "turns are of vectors alone",
    r"turns of": "as above",
}
"""Words that are not used, as regular expressions, and what is."""

ALLOWED = {
    "nobody": {
        "src/embedding_studio/storage/embedded/server.py": "an account of the operating system",
    },
}
"""Word -> file -> why it may stand there."""

SENTENCE = re.compile(r"_(?:those|whom|whose|whoever|whatever|anew|nobody|told)(?:_|$)")
"""What makes a name a sentence."""

MOST_WORDS_OF_A_NAME = 7
MOST_WORDS_OF_THE_GLOSSARY = 20


def prose_of_module(source: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of comments, docstrings and messages, with their numbers."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not node.value.isidentifier():
            for number, line in enumerate(node.value.split("\n"), start=node.lineno):
                if not line.lstrip().startswith((">>> ", "... ")):  # code
                    yield number, re.sub(r"^\s+\w+: ", "", line)  # without a documented field's name


def prose_of_page(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page that are not code, with their numbers."""
    is_code = False
    for number, line in enumerate(text.split("\n"), start=1):
        if re.match(r"\s*(?:```|<!-- \[\[\[cog|\[\[\[cog)", line):
            is_code = not is_code if "```" in line else True
        elif "]]]" in line:
            is_code = False
        elif not is_code:
            yield number, re.sub(r"`[^`]*`", "", line)


def prose_of_statements(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.lstrip().startswith("-- ") and "-- name:" not in line:
            yield number, line


@cache
def prose() -> list[tuple[str, int, str]]:
    """Return file, number and text of each line that people read."""
    kinds = (MODULES, prose_of_module), (PAGES, prose_of_page), (STATEMENTS, prose_of_statements)
    return [
        (str(file.relative_to(ROOT)), number, line)
        for files, read in kinds
        for file in files
        for number, line in read(file.read_text())
    ]


def found(pattern: str) -> list[tuple[str, int, str]]:
    word = re.compile(rf"(?<![\w-]){pattern}(?![\w-])", re.IGNORECASE)
    return [(file, number, line.strip()) for file, number, line in prose() if word.search(line)]


@pytest.mark.parametrize("pattern", INSTEAD)
def test_words_that_are_hard_to_say_back_are_not_used(pattern):
    allowed = next((files for word, files in ALLOWED.items() if pattern.startswith(word)), {})
    standing = found(pattern)

    assert [each for each in standing if each[0] not in allowed] == [], INSTEAD[pattern]
    assert allowed.keys() <= {file for file, *_ in standing}, "allowed where it does not stand"


def test_prose_is_what_people_read_and_not_the_code_beside_it():
    module = (
        'told = {"told": f"{told} it"}  # is told\n\n'
        'def f():\n    """Told.\n\n    >>> told\n    Args:\n        told: it.\n    """\n'
    )
    page = "Told `told`\n```python\ntold\n```\n<!-- [[[cog\ntold = 1\n]]] -->\ntold\n"
    statements = "-- name: told\n-- Told.\nSELECT told\n"

    assert sorted(prose_of_module(module)) == [
        (1, " it"),
        (1, "# is told"),
        (4, "Told."),
        (5, ""),
        (7, "    Args:"),
        (8, "it."),
        (9, "    "),
    ]
    assert list(prose_of_page(page)) == [(1, "Told "), (8, "told"), (9, "")]
    assert list(prose_of_statements(statements)) == [(2, "-- Told.")]


def test_a_name_is_no_sentence():
    names = {
        node.name: str(file.relative_to(ROOT))
        for file in MODULES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }

    assert len(names) > 1_000
    assert {name: file for name, file in names.items() if SENTENCE.search(name.lower())} == {}
    long = {
        name: file for name, file in names.items() if len(name.strip("_").split("_")) > MOST_WORDS_OF_A_NAME
    }
    assert long == {}


def test_the_glossary_is_short_and_each_of_its_words_stands_once():
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    glossary = architecture.partition("## Words")[2].partition("\n## ")[0]
    words = re.findall(r"^\| ([^|]+) \|", glossary, flags=re.MULTILINE)[1:]

    assert "fold" in words
    assert len(words) == len(set(words)) <= MOST_WORDS_OF_THE_GLOSSARY, words
