import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
import webbrowser
from pathlib import Path

import httpx
import pytest
import uvicorn
from rich.console import Console

from conftest import listening_socket
from embedding_studio import api
from embedding_studio.api.app import create_app
from embedding_studio.bootstrap import Context
from embedding_studio.catalogue import read_python_documentation
from embedding_studio.cli.demonstration import REPLAYED, has_desktop, open_page
from embedding_studio.demo.shop import read_shop
from embedding_studio.demo.story import OTHER_USER, USER, Demo
from embedding_studio.demo.subjects import PYTHON, SHOP, SUBJECTS
from embedding_studio.errors import EmbeddingStudioError
from embedding_studio.indexing import index_objects
from embedding_studio.storage.memory import MemoryStorage

ROOT = Path(__file__).parents[1]

# What stands above the wished objects in the whole documentation, so that a small part shows the same.
SHOWN = {
    *("subprocess.getoutput", "os.system", "subprocess.getstatusoutput", "sys.displayhook", "click.echo"),
    *("subprocess.run", "click.echo_via_pager", "pdb.Pdb.do_retval", "symtable.Function.get_locals"),
    *("functools.cache", "collections.OrderedDict.fromkeys", "collections.OrderedDict.keys", "sorted"),
    *("collections.OrderedDict", "http.client.HTTPConnection.request", "httpx.request", "httpx.get"),
    *("httpx.Client.get", "id", "uuid", "uuid.uuid4", "fnmatch.fnmatch", "pathlib.Path.glob", "re.finditer"),
    *("pathlib.Path.rglob", "rich.progress.BarColumn", "rich.progress.Progress", "typer.progressbar"),
}


@pytest.fixture(scope="module")
def service():
    """The real service with its worker, over the shop and a small part of the documentation."""
    documentation = [entry for entry in read_python_documentation() if entry.object_id in SHOWN]
    with Context(storage=MemoryStorage()) as context, listening_socket() as listening:
        for subject, texts in ((SHOP, read_shop()), (PYTHON, documentation)):
            index_objects(context.storage, context.collection(subject.collection), texts, context.embedder)
        application = create_app(context, background=context.worker().run)
        server = uvicorn.Server(uvicorn.Config(application, log_level="warning"))
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        serving.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        serving.join()


class Confused(httpx.HTTPTransport):
    """Answers with another body than was asked for: what a broken service would do."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def handle_request(self, request):
        if not request.url.path.endswith("similarity-search"):
            return super().handle_request(request)
        body = self.change(json.loads(request.content))
        return super().handle_request(httpx.Request(request.method, request.url, json=body))


def play(service, subject=PYTHON, transport=None):
    printed = io.StringIO()
    with httpx.Client(base_url=service, transport=transport) as client:
        Demo(client, Console(file=printed, width=100), subject).run()
    return printed.getvalue()


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.collection)
def test_the_demo_shows_every_scene_in_plain_text(service, subject):
    printed = play(service, subject)

    assert f"{subject.title}: “{subject.scenes[0].query}”" in printed
    assert f"{subject.scenes[0].wished_id} ← click" in printed
    for scene in subject.scenes:
        assert re.search(rf"{scene.query} +{re.escape(scene.wished_id)} +[3-9] → [12] ", printed)
    assert f"What {len(subject.scenes)} clicks did for {USER}" in printed
    assert "\x1b" not in printed


def test_the_demo_tells_the_same_story_again(service):
    first, again = (
        [re.sub(r" +\d+ ms *", "", line).rstrip() for line in play(service).splitlines() if "→" in line]
        for _ in range(2)
    )

    assert len(first) == 1 + 2 * len(PYTHON.scenes)
    assert first == again


def test_the_demo_has_users_of_its_own_for_each_run_and_forgets_them(service):
    asked = []

    def noted(body):
        asked.append(body["user_id"])
        return body

    for _ in range(2):
        play(service, transport=Confused(noted))
    with pytest.raises(EmbeddingStudioError, match="only 0 of"):
        play(service, transport=Confused(lambda body: noted(body) | {"limit": 1}))

    ids = set(asked) - {None}
    assert sorted(each.rpartition("-")[0] for each in ids) == [USER] * 3 + [OTHER_USER] * 2
    sessions = f"{service}/api/v1/clickstream/sessions"
    told = httpx.get(sessions, params={"collection": PYTHON.collection, "limit": 100}).json()
    assert not ids & {each["user_id"] for each in told["sessions"]}


def test_the_demo_fails_where_a_click_moves_anothers_list(service):
    def leak(body):
        return body | {"user_id": (body["user_id"] or "").replace(OTHER_USER, USER) or None}

    with pytest.raises(EmbeddingStudioError, match=f"changes nothing for {OTHER_USER}"):
        play(service, transport=Confused(leak))


def test_the_demo_fails_where_a_click_moves_an_unrelated_list(service):
    def leak(body):
        mine = body["search_query"] == PYTHON.unrelated and (body["user_id"] or "").startswith(USER)
        return body | {"search_query": PYTHON.scenes[0].query} if mine else body

    with pytest.raises(EmbeddingStudioError, match=f"changes nothing for '{PYTHON.unrelated}'"):
        play(service, transport=Confused(leak))


def test_the_demo_fails_where_there_is_nothing_to_show(service):
    with pytest.raises(
        EmbeddingStudioError, match=f"only 0 of {len(PYTHON.scenes)} queries leave something to improve"
    ):
        play(service, transport=Confused(lambda body: body | {"limit": 1}))


def test_the_demo_names_what_the_service_refuses(service):
    with pytest.raises(EmbeddingStudioError, match=r"similarity-search was answered with 404: .*absent"):
        play(service, transport=Confused(lambda body: body | {"collection": "absent"}))


@pytest.mark.parametrize(
    ("platform", "environment", "opens"),
    [
        ("linux", {}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("linux", {"DISPLAY": ":10", "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, False),
        ("darwin", {}, True),
        ("darwin", {"SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, False),
    ],
)
def test_the_page_is_opened_where_there_is_a_desktop(monkeypatch, platform, environment, opens):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)

    assert has_desktop() == opens


@pytest.mark.parametrize("error", [OSError("no such program"), webbrowser.Error("no browser")])
def test_a_browser_that_cannot_be_opened_stops_nothing(monkeypatch, error):
    def fail(_):
        raise error

    monkeypatch.setattr(webbrowser, "open", fail)

    open_page("http://127.0.0.1:8000/demo")


def test_the_command_serves_the_page_until_it_is_stopped(tmp_path):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "PORT": "0"}
    command = [sys.executable, "-c", "from embedding_studio.cli import app; app()", "demo", "--keep-serving"]
    with subprocess.Popen(
        [*command, "--objects", "100"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            told = "".join(iter(process.stdout.readline, "\n")) + process.stdout.readline()
            [url] = re.findall(r"Open (\S+) in a browser", told)
            page, state = httpx.get(url, timeout=60), httpx.get(url + "-state", timeout=60).json()
            deadline = time.monotonic() + 120
            while not state["subjects"][1]["is_whole"] and time.monotonic() < deadline:
                time.sleep(0.1)
                state = httpx.get(url + "-state", timeout=60).json()
            process.send_signal(signal.SIGINT)
            status = process.wait(60)
        finally:
            process.kill()  # nothing, where it has ended
    assert (status, page.status_code) == (0, 200)
    assert [(each["done"], each["is_whole"]) for each in state["subjects"]] == [(236, True), (100, True)]


def test_the_shop_is_whole_and_each_product_can_be_drawn():
    products = list(read_shop())
    pages = Path(api.__file__).parent / "pages" / "demo"
    shapes = set(re.findall(r"^  (\w+): \[$", (pages / "shapes.js").read_text(), re.MULTILINE))
    picture = (pages / "picture.js").read_text()
    colours = set(re.findall(r'(\w+): "#\w{6}"', picture)) - set("kswy")
    patterns = set(re.findall(r"^  (\w+): \(c\) =>", picture, re.MULTILINE))

    assert len({each.object_id for each in products}) == len(products) == 236
    assert {each.payload["kind"] for each in products} == shapes
    assert {name for each in products for name in each.payload["colours"]} == colours
    assert {each.payload["pattern"] for each in products} - {"plain"} == patterns
    for each in products:
        assert len(each.payload["colours"]) == 2
        assert each.text == f"{each.payload['title']}. {each.payload['description']}"
    assert {SHOP.mistake_id} | {each.wished_id for each in SHOP.scenes} <= {
        each.object_id for each in products
    }


def test_the_figures_of_a_real_log_are_those_of_its_page():
    replayed = runpy.run_path(str(ROOT / ".ci" / "replayed.py"))

    written = replayed["replayed"]((ROOT / "docs" / "on-a-real-log.md").read_text())

    assert json.loads(REPLAYED.read_text()) == json.loads(written)
    assert json.loads(written)["first_percent"].keys() == {"plain", "default", "shared", "counts"}
