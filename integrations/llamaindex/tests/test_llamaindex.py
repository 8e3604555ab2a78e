import asyncio
from importlib.util import find_spec
from pathlib import Path

import pytest
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index_embedding_studio import EmbeddingStudioRetriever, UserQuery

from conftest import eventually, run_readme
from embedding_studio.client import AsyncClient


def ids(nodes):
    return [each.node.node_id for each in nodes]


def test_a_click_on_a_node_changes_what_this_user_gets(client):
    retriever = EmbeddingStudioRetriever(client, similarity_top_k=6)
    query = UserQuery("something warm", user_id="ann")
    found = retriever.retrieve(query)

    retriever.clicked(found[3])
    after = eventually(lambda: ids(now := retriever.retrieve(query)) != ids(found) and now)

    assert ids(after).index(found[3].node.node_id) < 3
    assert ids(retriever.retrieve("something warm")) == ids(found)
    assert found[0].metadata["position"] == 1
    assert found[0].score == pytest.approx(1 - found[0].metadata["distance"])
    assert found[0].score > found[1].score
    assert "session_id" not in found[0].node.get_content(metadata_mode="llm")


def test_a_query_engine_takes_the_users_query(client):
    retriever = EmbeddingStudioRetriever(client, similarity_top_k=2)
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM(max_tokens=8))

    answer = engine.query(UserQuery("something warm", user_id="eve"))

    session = client.session(answer.source_nodes[0].metadata["session_id"])
    assert session.user_id == "eve"
    assert [each.object_id for each in session.search_results] == ids(answer.source_nodes)


@pytest.mark.parametrize("has_async_client", [True, False])
def test_nodes_come_without_blocking_too(client, url, has_async_client):
    async def retrieved():
        async with AsyncClient(url) as async_client:
            given = {"async_client": async_client} if has_async_client else {}
            return await EmbeddingStudioRetriever(client, **given).aretrieve("something warm")

    assert ids(asyncio.run(retrieved())) == ids(EmbeddingStudioRetriever(client).retrieve("something warm"))


def test_an_object_without_the_field_of_the_text_is_named(client):
    with pytest.raises(ValueError, match=r"the payload of '\w+' has no 'body'; name the field"):
        EmbeddingStudioRetriever(client, content_field="body").retrieve("something warm")


def test_the_readme_runs(url):
    run_readme(Path(__file__).parents[1], url)


def test_torch_does_not_come_along():
    assert find_spec("torch") is None
