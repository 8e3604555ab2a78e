"""The types of the loop as README and quickstart have it; mypy reads this, nothing runs it."""

from typing import assert_type

import numpy as np

from embedding_studio import (
    CatalogueText,
    Context,
    SearchIndexInfo,
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovementCreateSchema,
    context,
    datetime_utils,
    get_result_position,
    load_settings,
)
from embedding_studio.domain.objects import Collection, Neighbour
from embedding_studio.domain.sessions import (
    EventDisposition,
    SessionForImprovement,
    SessionForImprovementStatus,
)
from embedding_studio.feedback.improve import ImprovementReport, Improver
from embedding_studio.feedback.worker import Worker
from embedding_studio.indexing import IndexingReport
from embedding_studio.search import Explanation, SearchPage, SearchResult, SearchService
from embedding_studio.settings import Settings
from embedding_studio.storage.ports import Clickstream, Orders, Storage


def the_twelve_lines() -> None:
    texts = {"slab": "Heat conduction in composite slabs"}
    assert_type(context, Context)
    assert_type(
        context.index_objects("default", [CatalogueText(*each) for each in texts.items()]), IndexingReport
    )
    assert_type(context.search, SearchService)
    shown = context.search.search("what gets warm", user_id="ada", create_session=True)
    assert_type(shown, SearchPage)
    assert_type(shown.session_id, str | None)
    assert_type(shown.next_page_offset, int | None)
    assert_type(shown.results, tuple[SearchResult, ...])
    assert_type([result.object_id for result in shown.results], list[str])
    assert_type(shown.results[0].distance, float)
    assert_type(shown.results[0].explanation, Explanation | None)
    assert_type(context.clickstream_dao, Clickstream)
    event = SessionEvent(session_id=shown.session_id or "", object_id="cone")
    assert_type(context.clickstream_dao.push_events([event]), list[EventDisposition])
    assert_type(context.improver(), Improver)
    report = context.improver().improve_once()
    assert_type(report, ImprovementReport)
    assert_type(report.learnt, int)
    assert_type(report.refused["s"], str)


def the_practical_steps() -> None:
    session = Session(
        session_id="s", search_query="q", user_id="ann", created_at=datetime_utils.utc_timestamp()
    )
    assert_type(datetime_utils.utc_timestamp(), int)
    assert_type(context.clickstream_dao.get_session("s"), Session)
    context.clickstream_dao.register_session(session)
    assert_type(session.search_results, tuple[SearchResultItem, ...])
    assert_type(session.events, tuple[SessionEvent, ...])
    assert_type(session.duration_seconds, int)
    assert_type(session.clicked(), dict[str, float])
    assert_type(get_result_position(session, "slab"), int)
    assert_type(context.sessions_for_improvement, Orders)
    order = context.sessions_for_improvement.create(schema=SessionForImprovementCreateSchema(session_id="s"))
    assert_type(order, SessionForImprovement)
    assert_type(order.status, SessionForImprovementStatus)


def a_context_of_other_settings() -> None:
    assert_type(load_settings(adjustment_rate="balanced"), Settings)
    with Context(load_settings()) as other:
        assert_type(other, Context)
        assert_type(other.storage, Storage)
        assert_type(other.worker(), Worker)
        collection = other.collection(index=SearchIndexInfo(dimensions=3))
        assert_type(collection, Collection)
        query = np.array([[1, 0, 0]], dtype=np.float32)
        assert_type(other.storage.objects.nearest(collection, query, 3), list[Neighbour])
