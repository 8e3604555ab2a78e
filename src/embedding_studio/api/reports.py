"""Reports that take minutes: begun, looked at while they are made, stopped."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from embedding_studio.api.authentication import ADMIN
from embedding_studio.api.bodies import Body, BodyRoute
from embedding_studio.api.dependencies import InContext
from embedding_studio.api.fields import Id
from embedding_studio.api.first import BY_THE_FIRST
from embedding_studio.domain.objects import JSON
from embedding_studio.domain.sessions import DEFAULT_COLLECTION
from embedding_studio.reports import Report, ReportKind, ReportProgress, Reports, ReportStatus

router = APIRouter(
    prefix="/reports", tags=["reports"], dependencies=[ADMIN, BY_THE_FIRST], route_class=BodyRoute
)

ReportId = Annotated[Id, Path()]


class ReportBody(Body):
    kind: ReportKind = Field(
        description="recall: whether the nearest are found; tune: gate and own past that fit the log; "
        "replay: what each method would have ranked where, on the collection's own log; settings: whether "
        "others than those in force serve that log better"
    )
    collection: Id = DEFAULT_COLLECTION
    dry_run: bool = Field(default=True, description="false: what recall and tune find is set at once")

    model_config = ConfigDict(json_schema_extra={"examples": [{"kind": "tune", "collection": "default"}]})


class ReportInfo(BaseModel):
    """A report, as far as it is; a service keeps its own latest ones, until it ends."""

    report_id: str
    kind: ReportKind
    collection: str
    dry_run: bool
    status: ReportStatus
    ahead: int = Field(description="how many are made before it, while it waits")
    started_at: int = Field(description="UTC seconds; while it waits, when it was asked for")
    ended_at: int | None = Field(description="UTC seconds; null until then")
    progress: ReportProgress | None = Field(description="how far it is, where that is known")
    result: JSON | None = Field(description="what the command of this name prints as JSON; null until done")
    detail: str | None = Field(description="why it failed")


class ReportsInfo(BaseModel):
    reports: list[ReportInfo] = Field(description="the latest first")


@router.post("", status_code=202, operation_id="start_report")
def start_report(body: ReportBody, request: Request, context: InContext) -> ReportInfo:
    """Begin a report, in a process of its own; while another is made, it waits."""
    name, reports = context.storage.collections.get(body.collection).name, _reports(request)
    return _info(reports, reports.start(body.kind, name, dry_run=body.dry_run))


@router.get("", operation_id="list_reports")
def list_reports(request: Request) -> ReportsInfo:
    """Return the reports of this service, the latest first."""
    reports = _reports(request)
    return ReportsInfo(reports=[_info(reports, each) for each in reports.list()])


@router.get("/{report_id:id}", operation_id="get_report")
def get_report(report_id: ReportId, request: Request) -> ReportInfo:
    """Return a report as far as it is."""
    reports = _reports(request)
    return _info(reports, reports.get(report_id))


@router.delete("/{report_id:id}", operation_id="stop_report")
def stop_report(report_id: ReportId, request: Request) -> ReportInfo:
    """Stop a report that waits or is being made, and return it; one that has ended is left as it is."""
    reports = _reports(request)
    return _info(reports, reports.stop(report_id))


def _reports(request: Request) -> Reports:
    reports: Reports = request.app.state.reports
    return reports


def _info(reports: Reports, report: Report) -> ReportInfo:
    return ReportInfo(
        report_id=report.report_id,
        kind=report.kind,
        collection=report.collection,
        dry_run=report.dry_run,
        status=report.status,
        ahead=reports.ahead(report.report_id),
        started_at=report.started_at,
        ended_at=report.ended_at,
        progress=report.progress,
        result=report.result,
        detail=report.detail,
    )
