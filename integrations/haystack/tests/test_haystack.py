from importlib.util import find_spec
from pathlib import Path

import pytest
from haystack import Pipeline
from haystack.utils import Secret
from haystack_embedding_studio import EmbeddingStudioRetriever

from conftest import eventually, run_readme


@pytest.fixture
def retriever(url):
    component = EmbeddingStudioRetriever(url, top_k=6)
    yield component
    component.close()


def ids(documents):
    return [each.id for each in documents]


def test_a_click_on_a_document_changes_what_this_user_gets(retriever):
    pipeline = Pipeline()
    pipeline.add_component("retriever", retriever)

    def searched(**user):
        return pipeline.run({"retriever": {"query": "something warm", **user}})["retriever"]["documents"]

    found = searched(user_id="ann")

    retriever.clicked(found[3])
    after = eventually(lambda: ids(now := searched(user_id="ann")) != ids(found) and now)

    assert ids(after).index(found[3].id) < 3
    assert ids(searched()) == ids(found)
    assert found[0].meta["position"] == 1
    assert found[0].score == pytest.approx(1 - found[0].meta["distance"])
    assert ids(retriever.run("something warm", top_k=2)["documents"]) == ids(found)[:2]


def test_a_pipeline_is_stored_and_read_without_its_key(url, monkeypatch):
    monkeypatch.setenv("ES_KEY", "secret-1")
    pipeline = Pipeline()
    key = Secret.from_env_var("ES_KEY")
    pipeline.add_component("retriever", EmbeddingStudioRetriever(url, api_key=key, collection="c", top_k=3))

    told = pipeline.dumps()
    read = Pipeline.loads(told, allowed_modules=["haystack_embedding_studio"]).get_component("retriever")

    assert "secret-1" not in told
    assert read.to_dict() == pipeline.get_component("retriever").to_dict()
    assert (read.top_k, read.collection, read.api_key.resolve_value()) == (3, "c", "secret-1")


def test_an_object_without_the_field_of_the_text_is_named(url):
    with pytest.raises(ValueError, match=r"the payload of '\w+' has no 'body'; name the field"):
        EmbeddingStudioRetriever(url, content_field="body").run("something warm")


def test_the_readme_runs(url):
    run_readme(Path(__file__).parents[1], url)


def test_torch_does_not_come_along():
    assert find_spec("torch") is None
