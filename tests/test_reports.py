"""Reports are made by a real process over a real database, beside the service."""

import json
import time
from functools import partial

import numpy as np
import pytest

from conftest import new_database
from embedding_studio import CatalogueObject, Context, SearchIndexInfo, Session, SessionEvent
from embedding_studio.api.app import create_app
from embedding_studio.domain.sessions import SearchResultItem
from embedding_studio.errors import ConflictError, ReportNotFoundError
from embedding_studio.recall import measure_recall
from embedding_studio.reports import MOST_KEPT, ReportKind, Reports, ReportStatus
from embedding_studio.settings import load_settings
from test_api_service import problem_of, serving

REPORTS = "/api/v1/reports"
PATIENCE_SECONDS = 60


def opened(url):
    return Context(load_settings(database_url=url, embedder="none"))


@pytest.fixture(scope="module")
def context(postgres_server):
    """A collection of 300 objects with a log of 120 searches by three users."""
    with (
        new_database(postgres_server) as url,
        Context(load_settings(database_url=url, embedder="none")) as made,
    ):
        random = np.random.default_rng(3)
        collection = made.storage.collections.create("films", SearchIndexInfo(dimensions=8))
        objects = [
            CatalogueObject(f"f{number}", random.normal(size=(1, 8)).astype(np.float32), {})
            for number in range(300)
        ]
        made.storage.objects.upsert(collection, objects)
        for number in range(120):
            session = Session(
                session_id=f"s{number}",
                user_id=f"u{number % 3}",
                collection="films",
                search_query=f"query {number % 110}",
                created_at=1_700_000_000 + 100 * number,
                search_results=tuple(SearchResultItem(object_id=f"f{number + at}") for at in range(5)),
            )
            vectors = random.normal(size=(1, 8)).astype(np.float32)
            made.clickstream_dao.register_session(session, vectors)
            event = SessionEvent(
                session_id=session.session_id, object_id=f"f{number + 2}", created_at=session.created_at + 9
            )
            made.clickstream_dao.push_events([event])
        yield made


@pytest.fixture
def reports(context):
    made = Reports(context.settings)
    yield made
    made.close()


def awaited(look):
    """Return a report once it has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (report := look())["status"] == "running":
        assert time.monotonic() < deadline, report
        time.sleep(0.05)
    return report


@pytest.mark.parametrize("kind", ["recall", "tune", "replay"])
def test_a_report_is_made_over_http(context, kind):
    with serving(create_app(context)) as client:
        started = client.post(REPORTS, json={"kind": kind, "collection": "films"})
        report_id = started.json()["report_id"]
        report = awaited(lambda: client.get(f"{REPORTS}/{report_id}").json())
        listed = client.get(REPORTS).json()["reports"]

    assert started.status_code == 202
    assert (started.json()["status"], started.json()["result"]) == ("running", None)
    assert report["status"] == "done", report["detail"]
    assert listed == [report]
    if kind == "recall":
        told = measure_recall(context.storage, "films", target=context.settings.recall_target, dry_run=True)
        assert report["result"]["told"] == told.told
    elif kind == "tune":
        assert report["result"]["collection"] == "films"
        assert report["result"]["is_stored"] is False
        assert set(report["result"]["own_past"]) == {"before", "after", "searches", "again"}
    else:
        assert set(report["result"]["methods"]) == {"plain", "default", "shared", "counts"}
        assert json.dumps(report["result"])


def test_one_is_made_at_a_time_and_can_be_stopped(reports):
    first = reports.start(ReportKind.REPLAY, "films")

    with pytest.raises(ConflictError, match="stop it"):
        reports.start(ReportKind.RECALL, "films")
    stopped = reports.stop(first.report_id)
    reports.start(ReportKind.RECALL, "films")

    assert (stopped.status, stopped.result) == (ReportStatus.STOPPED, None)
    assert reports.get(first.report_id).status is ReportStatus.STOPPED
    assert [each.kind for each in reports.list()] == [ReportKind.RECALL, ReportKind.REPLAY]


def test_a_report_that_cannot_be_made_says_why(context, reports):
    started = reports.start(ReportKind.RECALL, "dropped since")

    report = awaited(partial(_as_dict, reports, started.report_id))

    assert report["status"] == "failed"
    assert "dropped since" in report["detail"]


def test_the_end_of_the_process_that_makes_it_is_a_failure(reports):
    started = reports.start(ReportKind.REPLAY, "films")
    reports._process.kill()

    report = awaited(partial(_as_dict, reports, started.report_id))

    assert report["status"] == "failed"
    assert "ended with -9" in report["detail"]


def test_a_service_that_stops_ends_its_report(context):
    app = create_app(context)
    with serving(app) as client:
        client.post(REPORTS, json={"kind": "replay", "collection": "films"})

    assert app.state.reports._process.poll() is not None


def test_a_wrong_report_is_refused(context, reports):
    with serving(create_app(context)) as client:
        for body in ({"kind": "dance"}, {}, {"kind": "tune", "collection": "films", "with": "x"}):
            assert client.post(REPORTS, json=body).status_code == 422
        unknown = client.post(REPORTS, json={"kind": "tune", "collection": "gone"})
        gone = client.get(f"{REPORTS}/gone")

    assert "no collection" in problem_of(unknown)["detail"]
    assert gone.status_code == 404
    with pytest.raises(ReportNotFoundError, match=str(MOST_KEPT)):
        reports.get("gone")


def _as_dict(reports, report_id):
    report = reports.get(report_id)
    return {"status": report.status.value, "detail": report.detail}
