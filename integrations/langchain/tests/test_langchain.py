import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from langchain_core.runnables import RunnableLambda
from langchain_embedding_studio import EmbeddingStudioRetriever
from langchain_tests.integration_tests import RetrieversIntegrationTests

from conftest import eventually, run_readme
from embedding_studio.client import AsyncClient

EXAMPLES = Path(__file__).parents[3] / "examples"


class TestAsLangChainWantsIt(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _with_client(self, client):
        self.client = client

    @property
    def retriever_constructor(self):
        return EmbeddingStudioRetriever

    @property
    def retriever_constructor_params(self):
        return {"client": self.client}

    @property
    def retriever_query_example(self):
        return "something warm"


def ids(documents):
    return [each.metadata["object_id"] for each in documents]


def test_a_click_on_a_document_changes_what_this_user_gets_by_call_or_by_chain(client):
    retriever = EmbeddingStudioRetriever(client=client, k=6)
    found = retriever.invoke("something warm", user_id="ann")
    told = found[0].metadata

    retriever.clicked(found[3])
    after = eventually(
        lambda: ids(now := retriever.invoke("something warm", user_id="ann")) != ids(found) and now
    )

    assert told == told | {"position": 1, "object_id": found[0].id, "kind": "thing"}
    assert told["session_id"] == found[1].metadata["session_id"]
    assert ids(after).index(found[3].id) < 3
    assert ids(retriever.invoke("something warm", user_id="bob")) == ids(found)
    assert ids(retriever.invoke("something warm")) == ids(found)
    chain = RunnableLambda(str.strip) | retriever
    assert ids(chain.invoke(" something warm", config={"metadata": {"user_id": "ann"}})) == ids(after)


@pytest.mark.parametrize("has_async_client", [True, False])
async def test_documents_and_clicks_go_without_blocking_too(client, url, has_async_client):
    async with AsyncClient(url) as async_client:
        given = {"async_client": async_client} if has_async_client else {}
        retriever = EmbeddingStudioRetriever(client=client, **given)
        user = f"eve-{has_async_client}"

        found = await retriever.ainvoke("something warm", user_id=user, k=2)
        await retriever.aclicked(found[1], "add_to_cart")

        assert ids(found) == ids(retriever.invoke("something warm", k=2))
        session = await async_client.session(found[1].metadata["session_id"])
        assert [(each.object_id, each.event_type) for each in session.events] == [
            (found[1].id, "add_to_cart")
        ]


def test_an_object_without_the_field_of_the_text_is_named(client):
    retriever = EmbeddingStudioRetriever(client=client, content_field="body")

    with pytest.raises(ValueError, match=r"the payload of '\w+' has no 'body'; name the field"):
        retriever.invoke("something warm")


def test_the_readme_runs(url):
    run_readme(Path(__file__).parents[1], url)


def test_the_chat_answers_from_what_was_found_and_learns_what_was_of_use(client, url):
    chat = [sys.executable, EXAMPLES / "chat.py", "--service", url, "--user", "zoe", "something warm"]

    said = subprocess.check_output([*chat, "--useful", "3"], text=True).splitlines()
    eventually(lambda: client.search("something warm", user_id="zoe").personalised)
    again = subprocess.check_output(chat, text=True).splitlines()

    assert said[-1] == f"{said[0].removeprefix('[1] ')} [1]"
    useful = said[2].removeprefix("[3] ")
    assert useful in again[0] + again[1]


def test_torch_does_not_come_along():
    assert find_spec("torch") is None
