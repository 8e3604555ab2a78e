"""Reports are made by a real process over a real database, beside the service."""

import json
import pickle
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from conftest import new_database
from embedding_studio import CatalogueObject, Context, SearchIndexInfo, Session, SessionEvent
from embedding_studio.api.app import create_app
from embedding_studio.domain.sessions import SearchResultItem
from embedding_studio.errors import ConflictError, ReportNotFoundError
from embedding_studio.recall import measure_recall
from embedding_studio.reports import MOST_KEPT, MOST_WAITING, ReportKind, Reports, ReportStatus
from embedding_studio.settings import load_settings
from embedding_studio.storage.memory import MemoryStorage
from test_api_service import problem_of, serving

REPORTS = "/api/v1/reports"
PATIENCE_SECONDS = 300


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
    made = Reports(context)
    yield made
    made.close()


def awaited(look):
    """Return a report once it has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (report := look())["status"] in {"waiting", "running"}:
        assert time.monotonic() < deadline, report
        time.sleep(0.05)
    return report


@pytest.mark.parametrize("kind", ["recall", "tune", "replay", "settings"])
def test_a_report_is_made_over_http(context, kind):
    with serving(create_app(context)) as client:
        started = client.post(REPORTS, json={"kind": kind, "collection": "films"})
        report_id = started.json()["report_id"]
        report = awaited(lambda: client.get(f"{REPORTS}/{report_id}").json())
        listed = client.get(REPORTS).json()["reports"]

    assert started.status_code == 202
    assert (started.json()["status"], started.json()["result"]) == ("running", None)
    if kind == "settings":  # of three users
        assert (report["status"], report["result"]) == ("failed", None)
        assert "by 3 users, which is too few to tell" in report["detail"]
        return
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


def test_one_is_made_at_a_time_and_those_that_wait_can_be_stopped(reports):
    first, second, third = (
        reports.start(kind, "films") for kind in (ReportKind.REPLAY, ReportKind.TUNE, ReportKind.RECALL)
    )
    ahead = [reports.ahead(each.report_id) for each in (first, second, third)]
    processes = len(reports._processes)

    dropped = reports.stop(second.report_id)
    left = reports.ahead(third.report_id)
    stopped = reports.stop(first.report_id)
    begun = reports.get(third.report_id)

    assert ahead == [0, 1, 2]
    assert processes == 1
    assert [each.status for each in (first, second, third)] == ["running", "waiting", "waiting"]
    assert left == 1
    assert [each.status for each in (dropped, stopped)] == ["stopped", "stopped"]
    assert (stopped.result, begun.status) == (None, ReportStatus.RUNNING)
    assert awaited(partial(_as_dict, reports, third.report_id))["status"] == "done"
    assert [each.kind for each in reports.list()] == [ReportKind.RECALL, ReportKind.TUNE, ReportKind.REPLAY]


def test_so_many_wait_and_no_more_and_none_is_begun_by_a_service_that_ends(reports):
    for _ in range(MOST_WAITING + 1):
        reports.start(ReportKind.REPLAY, "films")

    with pytest.raises(ConflictError, match="stop one"):
        reports.start(ReportKind.RECALL, "films")
    reports.close()

    assert {each.status for each in reports.list()} == {ReportStatus.STOPPED}
    assert reports._processes == {}


def test_what_is_made_or_waits_is_kept_however_many_are_asked_for_and_stopped(reports):
    first = reports.start(ReportKind.REPLAY, "films")

    for _ in range(MOST_KEPT + 1):
        reports.stop(reports.start(ReportKind.RECALL, "films").report_id)

    assert reports.get(first.report_id).status is ReportStatus.RUNNING
    assert len(reports.list()) == MOST_KEPT


def test_a_report_that_cannot_be_made_says_why(context, reports):
    started = reports.start(ReportKind.RECALL, "dropped since")

    report = awaited(partial(_as_dict, reports, started.report_id))

    assert report["status"] == "failed"
    assert "dropped since" in report["detail"]


def test_the_end_of_the_process_that_makes_it_is_a_failure(reports):
    started = reports.start(ReportKind.REPLAY, "films")
    reports._processes[started.report_id].kill()

    report = awaited(partial(_as_dict, reports, started.report_id))

    assert report["status"] == "failed"
    assert "ended with -9" in report["detail"]


def test_a_service_that_stops_ends_its_report(context):
    app = create_app(context)
    with serving(app) as client:
        client.post(REPORTS, json={"kind": "replay", "collection": "films"})
        [process] = app.state.reports._processes.values()

    assert process.poll() is not None


def test_a_process_that_prints_or_says_no_json_is_followed_to_its_end(reports, monkeypatch):
    sleeping = "import time; time.sleep(60)"
    for said, ended in (("print('loading', flush=True)", ReportStatus.FAILED), (sleeping, None)):
        monkeypatch.setattr("embedding_studio.reports.PROGRAM", said)
        started = reports.start(ReportKind.RECALL, "films")
        if ended is None:
            reports.stop(started.report_id)
        report = awaited(partial(_as_dict, reports, started.report_id))
        assert report["status"] == (ended or ReportStatus.STOPPED)


def test_what_cannot_be_started_keeps_no_place(reports, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FileNotFoundError):
        reports.start(ReportKind.RECALL, "films")
    monkeypatch.undo()

    assert reports.list() == []
    reports.start(ReportKind.RECALL, "films")


def test_what_waited_and_cannot_be_started_has_failed(reports, monkeypatch):
    first = reports.start(ReportKind.REPLAY, "films")
    waited = reports.start(ReportKind.RECALL, "films")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    reports.stop(first.report_id)

    assert _as_dict(reports, waited.report_id)["status"] == "failed"
    assert "/nowhere/python" in reports.get(waited.report_id).detail


def test_nothing_is_imported_from_the_folder_of_the_service(reports, monkeypatch, tmp_path):
    (tmp_path / "pickle.py").write_text("raise SystemExit('imported from the working folder')")
    monkeypatch.chdir(tmp_path)

    started = reports.start(ReportKind.RECALL, "films")

    assert awaited(partial(_as_dict, reports, started.report_id))["status"] == "done"


def test_a_report_ends_with_a_service_that_is_killed(context, tmp_path):
    program = (
        "import os, pickle, sys, time\n"
        "from embedding_studio import Context\n"
        "from embedding_studio.reports import ReportKind, Reports\n"
        "settings = pickle.load(sys.stdin.buffer)\n"
        "reports = Reports(Context(settings))\n"
        "started = reports.start(ReportKind.REPLAY, 'films')\n"
        "print(reports._processes[started.report_id].pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    service = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with service:
        pickle.dump(context.settings, service.stdin)
        service.stdin.close()
        process = int(service.stdout.readline())
        service.kill()

    deadline = time.monotonic() + PATIENCE_SECONDS
    while is_running(process):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_service_with_parts_of_its_own_makes_no_reports():
    context = Context(storage=MemoryStorage())

    with pytest.raises(ConflictError, match="given to it by a program"):
        Reports(context).start(ReportKind.RECALL, "films")


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
