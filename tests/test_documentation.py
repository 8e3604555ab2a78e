import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from typer.main import get_command

from embedding_studio import Context, MetricAggregationType, load_settings
from embedding_studio.api.app import create_app
from embedding_studio.cli import app
from embedding_studio.settings import Settings
from test_api_service import serving

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
]
PAGES += sorted((ROOT / "docs").glob("*.md"))


EXAMPLE = re.compile(r"```python\n(.*?)```(?:\n\nprints)?(?:\n\n```text\n(.*?)```)?", re.DOTALL)


ADDRESS = "http://localhost:8000"
"""Of the service that pages speak of."""


QDRANT = "http://localhost:6333"


@contextmanager
def qdrant(folder: Path) -> Iterator[str]:
    """Return the address of an empty Qdrant for as long as the block runs."""
    pytest.importorskip("qdrant_edge", reason="Qdrant's engine is not installed here")
    import qdrant_server

    with qdrant_server.qdrant(folder) as server:
        yield server.url


@contextmanager
def served(database_url: str) -> Iterator[str]:
    """Return the address of a service for as long as the block runs."""
    with (
        Context(load_settings(database_url=database_url)) as context,
        serving(create_app(context)) as client,
    ):
        yield str(client.base_url)


def examples() -> list[tuple[str, str, str | None]]:
    """Return (page, Python block, the output that the page gives for it)."""
    return [(page.name, match[1], match[2]) for page in PAGES for match in EXAMPLE.finditer(page.read_text())]


@pytest.mark.parametrize(
    ("page", "code", "output"),
    [pytest.param(*each, id=f"{each[0]}-{n}") for n, each in enumerate(examples())],
)
def test_the_pages_code_runs_and_prints_what_the_page_says(page, code, output, postgres_url, tmp_path):
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    service = served(postgres_url) if ADDRESS in code else nullcontext(ADDRESS)

    engine = qdrant(tmp_path) if QDRANT in code else nullcontext(QDRANT)

    with service as address, engine as place:
        ran = subprocess.run(
            [sys.executable, "-c", code.replace(ADDRESS, address).replace(QDRANT, place)],
            env=environment | {"DATABASE_URL": postgres_url},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    assert ran.returncode == 0, ran.stderr
    if output is not None:
        assert ran.stdout == output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())

    missing = [each for each in targets if "://" not in each and not (page.parent / each).exists()]

    assert missing == []


def anchors_of(page):
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(
        r"^#+ (.+)$",
        re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL),
        re.MULTILINE,
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_heading_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]*)#([^)\s]+)\)", page.read_text())

    assert [
        (target, anchor)
        for target, anchor in links
        if "://" not in target and anchor not in anchors_of(page.parent / target if target else page)
    ] == []


def test_what_is_generated_in_the_pages_is_up_to_date():
    generated = [str(page) for page in PAGES if "[[[cog" in page.read_text()]

    checked = subprocess.run(
        [Path(sys.executable).with_name("cog"), "--check", *generated],
        capture_output=True,
        text=True,
        check=False,
    )

    assert len(generated) >= 3
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_settings_that_the_pages_name_are_those_that_there_are():
    named = {
        name for page in PAGES for name in re.findall(r"`([A-Z]+(?:_[A-Z]+)*)(?:=[^`]*)?`", page.read_text())
    }

    aggregations = {each.name for each in MetricAggregationType}
    of_others = {
        name
        for name in named
        if name.startswith(("AWS_", "OTEL_", "HF_", "ORT_", "MILVUS_", "EMBEDDING_STUDIO_"))
    }
    assert named - aggregations - of_others == {name.upper() for name in Settings.model_fields}


def test_the_two_commands_of_the_readme_are_those_that_ci_runs():
    readme = (ROOT / "README.md").read_text()

    assert re.findall(r"^make \w+$", readme, re.MULTILINE) == ["make demo", "make check"]
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make check"


SITE_PYTHON = ROOT / ".venv" / "site" / "bin" / "python"
needs_zensical = pytest.mark.skipif(
    not SITE_PYTHON.exists(), reason="`make site` makes the environment that this needs"
)


@needs_zensical
def test_the_pages_make_a_site_in_which_every_link_leads_somewhere(tmp_path):
    build = [SITE_PYTHON, ROOT / ".ci" / "site.py", tmp_path / "site"]

    built = subprocess.run(build, capture_output=True, text=True, check=False)

    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.stem for path in (tmp_path / "site").glob("docs/*.html")}
    assert pages == {path.stem for path in ROOT.glob("docs/*.md")}
    of_others = r'<(?:script|link|img)[^>]+(?:src|href)="https?://'
    assert not re.search(of_others, (tmp_path / "site" / "index.html").read_text())


def test_every_page_is_in_the_sites_navigation():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    listed = [page for section in nav for pages in section.values() for page in pages]

    assert len(listed) == len(set(listed))
    assert {f"docs/{path.name}" for path in ROOT.glob("docs/*.md")} < set(listed)


@needs_zensical
def test_a_link_that_leads_nowhere_stops_the_site(tmp_path):
    copy = tmp_path / "copy"
    for folder in ("docs", "examples", "integrations"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns(".venv"))
    beside = [*ROOT.glob("*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("integrations/*/README.md")]
    for each in (".ci/site.py", "zensical.toml", *(str(path.relative_to(ROOT)) for path in beside)):
        (copy / each).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / each, copy / each)
    page = copy / "docs" / "filters.md"
    page.write_text(page.read_text() + "\n[nowhere](nowhere.md)\n")

    build = [SITE_PYTHON, copy / ".ci" / "site.py", tmp_path / "site"]
    built = subprocess.run(build, capture_output=True, check=False)

    assert built.returncode != 0
    assert not (tmp_path / "site").exists()


def test_make_check_runs_every_check_there_is():
    makefile = (ROOT / "Makefile").read_text()
    recipes = dict(re.findall(r"^([\w-]+): .*\n((?:\t.*\n)+)", makefile, re.MULTILINE))
    checked = " ".join(re.findall(r"\$\(MAKE\)(?: --jobs=2)? (.+)", recipes["check"]))

    run = "".join(recipes[name] for name in checked.split())

    assert re.findall(r"\$\(BIN\)/(.+)", run) == [
        "ruff check",
        "ruff format --check",
        "codespell",
        "python .ci/licences.py",
        "cog --check README.md docs/*.md",
        "mypy --cache-dir .mypy_cache/src",
        "mypy --config-file tests/mypy.ini --cache-dir .mypy_cache/tests",
        "lint-imports",
        "pytest --numprocesses auto --dist loadfile",
    ]


OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def modules(folder, *, but=()):
    return {
        each.stem
        for each in folder.iterdir()
        if (each.suffix == ".py" or (each / "__init__.py").exists()) and each.stem not in {"__init__", *but}
    }


def test_every_room_but_two_is_told_to_know_no_database_driver():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [driver] = [each for each in contracts if each["name"] == "The database driver stays in its two rooms"]
    package = ROOT / "src/embedding_studio"
    rooms = {f"embedding_studio.{name}" for name in modules(package, but=["storage"])}
    storages = modules(package / "storage", but=["postgres", "embedded"])

    assert set(driver["source_modules"]) == rooms | {f"embedding_studio.storage.{name}" for name in storages}


def test_each_owner_of_data_has_a_file_of_one_name_in_the_ports_and_in_both_storages():
    ports, memory, postgres = (
        modules(ROOT / "src/embedding_studio/storage" / name) for name in ("ports", "memory", "postgres")
    )

    owners = ports - {"storage", "vectors"}
    assert memory - postgres == {"state"}
    assert owners <= memory
    assert owners == {
        "clickstream",
        "collections",
        "keys",
        "objects",
        "orders",
        "personal",
        "quarantine",
        "queue",
    }


def test_every_command_and_option_of_the_operators_page_is_there():
    commands = get_command(app)
    for line in re.findall(r"^(?:[A-Z_]+=\S* )*embedding-studio (.*)$", OPERATIONS, re.MULTILINE):
        words = shlex.split(line)
        command = commands
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        options = [name for each in command.params for name in (*each.opts, *each.secondary_opts)]
        assert {word for word in words if re.match("-.", word)} <= set(options), line


def test_every_number_and_setting_of_the_operators_page_is_there():
    numbers = (ROOT / "docs" / "metrics.md").read_text()

    named = set(re.findall(r"embedding_studio_\w+", OPERATIONS))
    settings = set(re.findall(r"`([A-Z]+_[A-Z_]+)`|\b([A-Z]+_[A-Z]+)=", OPERATIONS))

    assert {each for each in named if f"`{each}`" not in numbers} == set()
    assert {"".join(each) for each in settings} <= {name.upper() for name in Settings.model_fields}
