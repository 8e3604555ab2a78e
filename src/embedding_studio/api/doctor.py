"""What `embedding-studio doctor` says, for who is not at the machine."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from embedding_studio.api.authentication import ADMIN
from embedding_studio.api.dependencies import InContext
from embedding_studio.doctor import examine

router = APIRouter(prefix="/doctor", tags=["health"], dependencies=[ADMIN])


class Finding(BaseModel):
    grade: Literal["OK", "WARN", "FAIL"]
    what: str = Field(description="was looked at")
    told: str = Field(description="a sentence on it")


class Findings(BaseModel):
    findings: list[Finding]


@router.get("", operation_id="get_findings")
def get_findings(context: InContext) -> Findings:
    """Look at everything, and say how each part fares: OK, WARN or FAIL and a sentence each."""
    found = examine(context)
    return Findings(findings=[Finding(grade=each.grade, what=each.what, told=each.told) for each in found])
