"""The real service, for the tests of each integration: ``make integrations``.

It runs from the ``.venv`` of the repository; a test runs in the environment of its integration, in which
there is no torch.
"""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from embedding_studio.client import Client

T = TypeVar("T")

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before it is imported

PROGRAM = Path(__file__).parents[1] / ".venv" / "bin" / "embedding-studio"

CATALOGUE = {
    "parka": "A warm winter parka with a fur hood",
    "anorak": "A light anorak against wind and rain",
    "coat": "A long wool coat for cold days",
    "sweater": "A thick knitted sweater of merino wool",
    "boots": "Insulated boots for snow and ice",
    "kettle": "An electric kettle that boils a litre in three minutes",
}


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of a service over ``CATALOGUE``, with a worker inside."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    folder = tmp_path_factory.mktemp("service")
    folder.parent.chmod(0o755)  # as root the database runs as somebody else, who must get in
    folder.chmod(0o755)
    environment = kept | {"DATA_DIR": str(folder / "data"), "PORT": "0", "LEARN_OWN_PAST": "false"}
    process = subprocess.Popen([PROGRAM, "serve"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "serves on" in line)
        address = next(word for word in line.split() if word.startswith("http://"))
        with Client(address, timeout=60) as client:
            client.upsert(
                {"object_id": object_id, "text": text, "payload": {"text": text, "kind": "thing"}}
                for object_id, text in CATALOGUE.items()
            )
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def eventually(condition: Callable[[], T], seconds: float = 30) -> T:
    """Return what a condition says, once it is true."""
    deadline = time.monotonic() + seconds
    while not (seen := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)
    return seen


def run_readme(folder: Path, url: str) -> None:
    """Run the samples of an integration's README against a service."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL))
    assert "http://127.0.0.1:8000" in code
    exec(code.replace("http://127.0.0.1:8000", url), {"__name__": "__main__"})  # noqa: S102


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as opened:
        yield opened
