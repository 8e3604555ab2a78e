"""The reference page, held: our own wording of its samples, and its very blocks where the page is at hand."""

import random
import re
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedding_studio import (
    Context,
    MetricAggregationType,
    MetricType,
    SearchIndexInfo,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovementCreateSchema,
    TorchBasedAdjuster,
    VectorsAdjuster,
    datetime_utils,
    get_result_position,
    load_settings,
)
from embedding_studio.catalogue import CatalogueText
from embedding_studio.domain.objects import personal_id
from embedding_studio.domain.sessions import SessionForImprovementStatus
from embedding_studio.indexing import index_objects

PAGE = Path(__file__).parents[2] / "shared" / "TUNING.md"

TEXTS = {
    "heat": "heat conduction in composite slabs",
    "wing": "lift of a wing in a propeller slipstream",
    "cone": "supersonic flow past a cone at an angle of attack",
    "plate": "buckling of a thin plate under compression",
    "slab": "temperature of a slab heated on one side",
}

needs_the_page = pytest.mark.skipif(
    not PAGE.exists(), reason=f"{PAGE} is not there; the tests of our own wording ran"
)


def blocks() -> dict[str, str]:
    """Return the page's Python blocks by the first name that each defines or uses."""
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names = ("class MyCustomPlugin", "should_use_session", "prepare_vectors", "metric_aggregation_type=",
             "get_search_results", "Register search session", "Mark session", "new_object_id")  # fmt: skip
    return {name: next(block for block in found if name in block) for name in names}


@pytest.fixture(scope="module")
def embedder():
    from embedding_studio.embedders import embedder_by_name

    return embedder_by_name("all-MiniLM-L6-v2")


@pytest.fixture
def context(memory, embedder):
    with Context(load_settings(), storage=memory) as context:
        context.__dict__["embedder"] = embedder
        index_objects(
            memory,
            context.collection(),
            [CatalogueText(object_id, text, {}) for object_id, text in TEXTS.items()],
            embedder,
        )
        yield context


def plugin_in(folder: Path, text: str) -> Context:
    path = folder / "plugin.py"
    path.write_text(text)
    return Context(load_settings(plugins_path=path))


def test_the_gradient_adjuster_has_the_documented_signature_and_attributes():
    info = SearchIndexInfo()

    adjuster = TorchBasedAdjuster(
        search_index_info=info, adjustment_rate=0.15, num_iterations=15, softmin_temperature=0.8
    )

    assert isinstance(adjuster, VectorsAdjuster)
    assert adjuster.search_index_info is info
    assert (adjuster.adjustment_rate, adjuster.num_iterations, adjuster.softmin_temperature) == (
        0.15,
        15,
        0.8,
    )
    defaults = TorchBasedAdjuster(info)
    assert (defaults.adjustment_rate, defaults.num_iterations, defaults.softmin_temperature) == (0.1, 10, 1.0)


def test_a_session_registered_and_marked_as_documented_is_learnt_from(context):
    user_id, query = "ann", "how warm does a slab get"
    session_id = str(uuid.uuid4())
    before = [each.object_id for each in context.search.search(query, user_id=user_id).results]
    clicked_item_id = before[3]

    session = Session(
        session_id=session_id, search_query=query, user_id=user_id, created_at=datetime_utils.utc_timestamp()
    )
    context.clickstream_dao.register_session(session)
    event = SessionEvent(
        session_id=session_id, object_id=clicked_item_id, created_at=datetime_utils.utc_timestamp()
    )
    context.clickstream_dao.push_events([event])
    context.sessions_for_improvement.create(schema=SessionForImprovementCreateSchema(session_id=session_id))
    report = context.improver().improve_once()

    assert report.learnt == 1
    assert context.sessions_for_improvement.get(session_id).status is SessionForImprovementStatus.DONE
    after = [each.object_id for each in context.search.search(query, user_id=user_id).results]
    assert after.index(clicked_item_id) < before.index(clicked_item_id)
    assert [each.object_id for each in context.search.search(query, user_id="bob").results] == before


def a_session(*, clicked=(), shown=("a", "b", "c", "d", "e"), seconds=30):
    return Session(
        session_id="s",
        created_at=1_000,
        search_results=tuple(SearchResultItem(object_id=each) for each in shown),
        events=tuple(
            SessionEvent(session_id="s", object_id=each, created_at=1_000 + seconds) for each in clicked
        ),
    )


def test_a_result_has_the_position_at_which_it_was_shown():
    assert get_result_position(a_session(), "a") == 1
    assert get_result_position(a_session(), "e") == 5
    assert get_result_position(a_session(), "z") == 0


def test_a_plugin_selects_its_adjuster(tmp_path):
    context = plugin_in(
        tmp_path,
        """
from embedding_studio.embeddings.improvement.torch_based_adjuster import TorchBasedAdjuster
from embedding_studio.models.embeddings.models import MetricAggregationType, SearchIndexInfo

class Documents:
    is_document_search = True

    def get_search_index_info(self):
        return SearchIndexInfo(metric_aggregation_type=MetricAggregationType.AVG)

    def get_vectors_adjuster(self):
        return TorchBasedAdjuster(search_index_info=self.get_search_index_info(), adjustment_rate=0.05)
""",
    )

    adjuster = context.adjuster_for(
        SearchIndexInfo(dimensions=3, metric_aggregation_type=MetricAggregationType.AVG)
    )

    assert isinstance(adjuster, TorchBasedAdjuster)
    assert adjuster.adjustment_rate == 0.05
    assert adjuster.search_index_info.metric_aggregation_type is MetricAggregationType.AVG
    assert context.plugin is context.plugin


@needs_the_page
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", (0.1, 10, 1.0)),
        ("\n    is_product_search = True\n", (0.15, 15, 0.8)),
        ("\n    is_document_search = True\n", (0.05, 25, 2.0)),
    ],
)
def test_the_pages_plugin_runs(tmp_path, flags, expected):
    context = plugin_in(tmp_path, blocks()["class MyCustomPlugin"] + flags)

    adjuster: Any = context.plugin.get_vectors_adjuster()

    assert (adjuster.adjustment_rate, adjuster.num_iterations, adjuster.softmin_temperature) == expected


@needs_the_page
def test_the_pages_session_selection_runs_as_a_filter():
    names: dict[str, Any] = {"get_result_position": get_result_position}
    exec(blocks()["should_use_session"], names)  # noqa: S102, the page is ours
    wanted = names["should_use_session_for_improvement"]

    assert wanted(a_session(clicked=["e"]))
    assert wanted(a_session(clicked=["a"]))
    assert not wanted(a_session())
    assert not wanted(a_session(clicked=["a"], seconds=9))
    assert not wanted(a_session(clicked=[f"o{n}" for n in range(11)]))


@needs_the_page
def test_the_pages_practical_steps_are_learnt_from(context):
    names = {
        "Session": Session, "SessionEvent": SessionEvent, "uuid": uuid, "datetime_utils": datetime_utils,
        "SessionForImprovementCreateSchema": SessionForImprovementCreateSchema, "context": context,
        "query": "how warm does a slab get", "user_id": "ann", "clicked_item_id": "wing",
        "session_id": str(uuid.uuid4()),
    }  # fmt: skip
    register, mark = blocks()["Register search session"], blocks()["Mark session"]

    # The page makes a session with one id and an event with a name ``session_id``: they are one.
    exec(register.replace("session_id=str(uuid.uuid4())", "session_id=session_id"), names)  # noqa: S102
    exec(mark, names)  # noqa: S102

    assert context.improver().improve_once().learnt == 1


@needs_the_page
def test_the_pages_index_and_id_run():
    names = {
        "SearchIndexInfo": SearchIndexInfo, "MetricType": MetricType,
        "MetricAggregationType": MetricAggregationType,
        "object_id": "o1", "user_id": "5", "not_originals": set(),
    }  # fmt: skip

    exec(blocks()["metric_aggregation_type="], names)  # noqa: S102
    exec(blocks()["new_object_id"], names)  # noqa: S102

    assert names["search_index_info"] == SearchIndexInfo()
    assert names["new_object_id"] == personal_id("o1", "5")


@needs_the_page
def test_the_pages_normalisation_agrees_with_ours_for_cosine():
    import torch
    from torch.nn import functional

    from embedding_studio.embeddings.preparation import prepare_vectors

    given = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]], dtype=np.float32)
    names: dict[str, Any] = {
        "F": functional, "torch": torch, "MetricType": MetricType,
        "self": SimpleNamespace(search_index_info=SearchIndexInfo()),
    }  # fmt: skip
    exec(blocks()["prepare_vectors"], names)  # noqa: S102

    theirs = names["prepare_vectors"](torch.from_numpy(given)).numpy()

    np.testing.assert_allclose(prepare_vectors(given, MetricType.COSINE), theirs, atol=1e-7)


@needs_the_page
def test_the_pages_exploration_runs_over_our_search(context):
    names: dict[str, Any] = {
        "random": random.Random(3),
        "get_personalized_results": lambda query, user: context.search.search(query, user_id=user).results,
        "get_standard_results": lambda query: context.search.search(query).results,
    }
    exec(blocks()["get_search_results"], names)  # noqa: S102

    assert len(names["get_search_results"]("heat", "ann")) == len(TEXTS)
