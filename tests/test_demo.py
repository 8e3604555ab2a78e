import io
import json
import socket
import threading

import httpx
import pytest
import uvicorn
from rich.console import Console

from embedding_studio.api.app import create_app
from embedding_studio.bootstrap import Context
from embedding_studio.catalogue import read_python_documentation
from embedding_studio.demo import COLLECTION, OTHER_USER, SCENES, UNRELATED_QUERY, USER, Demo
from embedding_studio.errors import EmbeddingStudioError
from embedding_studio.indexing import index_objects
from embedding_studio.storage.memory import MemoryStorage

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
    """The real service with its worker, over a small part of the documentation, at an address of its own."""
    texts = [entry for entry in read_python_documentation() if entry.object_id in SHOWN]
    with Context(storage=MemoryStorage()) as context, socket.socket() as listening:
        index_objects(context.storage, context.collection(COLLECTION), texts, context.embedder)
        listening.bind(("127.0.0.1", 0))
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


def play(service, transport=None):
    printed = io.StringIO()
    with httpx.Client(base_url=service, transport=transport) as client:
        Demo(client, Console(file=printed, width=100)).run()
    return printed.getvalue()


def test_the_demo_shows_every_scene_in_plain_text(service):
    printed = play(service)

    for scene in SCENES:
        assert f"“{scene.query}”" in printed
        assert f"{scene.wished_id} ← click" in printed
    assert f"What {len(SCENES)} clicks did for {USER}" in printed
    assert "\x1b" not in printed


def test_the_demo_tells_the_same_story_again(service):
    first, again = (
        [line for line in play(service).splitlines() if "→" in line and " ms" not in line] for _ in range(2)
    )

    assert first == again


def test_the_demo_fails_where_a_click_moves_anothers_list(service):
    def leak(body):
        return body | {"user_id": USER} if body["user_id"] == OTHER_USER else body

    with pytest.raises(EmbeddingStudioError, match=f"changes nothing for {OTHER_USER}"):
        play(service, Confused(leak))


def test_the_demo_fails_where_a_click_moves_an_unrelated_list(service):
    def leak(body):
        mine = body["search_query"] == UNRELATED_QUERY and body["user_id"] == USER
        return body | {"search_query": SCENES[0].query} if mine else body

    with pytest.raises(EmbeddingStudioError, match=f"changes nothing for '{UNRELATED_QUERY}'"):
        play(service, Confused(leak))


def test_the_demo_fails_where_there_is_nothing_to_show(service):
    with pytest.raises(
        EmbeddingStudioError, match=f"only 0 of {len(SCENES)} queries leave something to improve"
    ):
        play(service, Confused(lambda body: body | {"limit": 1}))


def test_the_demo_names_what_the_service_refuses(service):
    with pytest.raises(EmbeddingStudioError, match=r"similarity-search was answered with 404: .*absent"):
        play(service, Confused(lambda body: body | {"collection": "absent"}))
