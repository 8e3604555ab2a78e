"""The files in ``deploy``: they name what the product really has."""

import json
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest

from embedding_studio import SearchIndexInfo
from embedding_studio.api.app import create_app
from embedding_studio.cli import COMMANDS
from embedding_studio.settings import Settings
from test_api_service import EVENTS, SEARCH, letters_context, serving

DEPLOY = Path(__file__).parent.parent / "deploy"
ROOT = DEPLOY.parent
DASHBOARD = DEPLOY / "grafana" / "embedding-studio.json"
RULES = DEPLOY / "prometheus" / "embedding-studio.rules.yml"

NAMED = re.compile(r"embedding_studio_[a-z_]+")
LABELLED = re.compile(
    r"(embedding_studio_[a-z_]+)\{(\w+)(?:=~|!=|=)\"|by \((\w+)\) \([\w(]*?(embedding_studio_[a-z_]+)"
)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Return what a service with a worker inside tells once it was used: name -> its labels."""
    context = letters_context(tmp_path_factory.mktemp("plugins"))
    context.collection(index=SearchIndexInfo(dimensions=3))
    with serving(create_app(context, background=context.worker().run)) as client:
        client.post("/api/v1/embeddings/upsert", json={"items": [{"object_id": "o", "text": "a"}]})
        search = {"search_query": "a", "user_id": "u", "create_session": True, "session_id": "s"}
        client.post(SEARCH, json=search)
        client.post(EVENTS, json={"session_id": "s", "events": [{"object_id": "o"}]})
        exposed = client.get("/metrics").text
    labels = {name: set() for name in re.findall(r"# TYPE (\w+) ", exposed) if not name.endswith("_created")}
    for name, given in re.findall(r"^(\w+?)(?:\{(.*?)\})? ", exposed, re.MULTILINE):
        labels.setdefault(name, set()).update(re.findall(r"(\w+)=", given))
    return labels


def expressions() -> dict[str, list[str]]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    of_rules = RULES.read_text().replace("\n          ", " ")
    return {
        "dashboard": [target["expr"] for panel in panels for target in panel["targets"]],
        "rules": re.findall(r"expr: (?:>-)?(.*)", of_rules),
    }


@pytest.mark.parametrize("where", ["dashboard", "rules"])
def test_every_number_and_label_that_is_asked_for_is_told(told, where):
    for expression in expressions()[where]:
        named = NAMED.findall(expression)
        assert named, expression
        assert set(named) <= set(told), expression
        for name, label, grouped_by, of in LABELLED.findall(expression):
            wanted = label or grouped_by
            known = told[name or of]
            # The gauges of codes have samples only where there are codes.
            assert wanted in known or wanted == "collection", expression


def test_the_dashboard_shows_every_number_that_is_told(told):
    shown = " ".join(expressions()["dashboard"])
    base = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in told}

    assert {name for name in base if name not in shown} == set()


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("*")), ids=lambda file: file.name)
def test_settings_and_commands_that_a_file_names_exist(file):
    if file.is_dir() or file.suffix == ".json":
        return
    text = file.read_text()
    for command in re.findall(r"bin/embedding-studio (\w+)|embedding-studio\"?, \"?(\w+)", text):
        assert set(command) - {""} <= set(COMMANDS)
    own = {"POSTGRES_PASSWORD", "PGDATA", "PATH", "EXTRAS", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
    set_here = re.findall(r"^(?:ENV| )\s+([A-Z][A-Z_]+)[:=] ?\S", text, re.MULTILINE)
    set_here += re.findall(r"^Environment=(\w+)=", text, re.MULTILINE)
    assert {name for name in set_here if name.lower() not in Settings.model_fields} <= own


def test_the_script_that_makes_the_database_can_be_read_and_run():
    script = DEPLOY / "docker" / "postgres-start"

    checked = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)

    assert (checked.returncode, checked.stderr) == (0, "")
    assert script.stat().st_mode & 0o111
    assert shlex.split(script.read_text().splitlines()[-1])[:2] == ["exec", "postgres"]


def pins(file: str) -> dict[str, str]:
    named = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / file).read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in named}


def test_what_is_pinned_has_hashes_but_for_torch_and_what_builds_the_package():
    constraints, hashed = pins("constraints.txt"), pins("requirements-dev.txt")

    assert set(constraints) - set(hashed) == {
        *("torch", "jinja2", "mpmath", "networkx", "sympy"),
        *("hatchling", "tomlkit", "trove-classifiers"),
    }
    assert {name: hashed[name] for name in constraints if name in hashed} == {
        name: version for name, version in constraints.items() if name in hashed
    }
    assert pins("requirements.txt").items() <= hashed.items()


def test_a_licence_that_is_not_allowed_is_refused():
    licences = runpy.run_path(str(ROOT / ".ci" / "licences.py"))
    found = {"a": "MIT", "b": "MIT AND GPL-3.0-only", "c": "not stated", "d": "(MIT OR Apache-2.0) AND BSD"}

    assert licences["refused"](found) == {"b": "MIT AND GPL-3.0-only", "c": "not stated"}
    assert licences["licences"]()["numpy"].startswith("BSD-3-Clause")
