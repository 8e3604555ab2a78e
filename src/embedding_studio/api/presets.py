"""The settings that decide what is learnt and how much it counts: in force, by default, and as presets do."""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from embedding_studio.api.authentication import ADMIN
from embedding_studio.api.dependencies import InContext
from embedding_studio.settings import KNOBS, Settings

router = APIRouter(prefix="/settings", tags=["settings"], dependencies=[ADMIN])

TOLD = (
    *("adjuster", *KNOBS, "max_angle_degrees", "query_shift", "gate_threshold", "learn_own_past"),
    *("shared_min_users", "exploration_ratio"),
)
"""Of these none is a secret, nor names a host or a user."""


class Effect(BaseModel):
    """What a preset did to nDCG@10 after ten sessions, as the difference to plain search."""

    collection: str
    clicks: str = Field(description="standard, or noisy: three in ten wrong results looked at are clicked")
    same: float = Field(description="where the same is asked again")
    near: float = Field(description="where another query close to it is asked, never before")
    users_worse: float = Field(description="share of the users for whom the same query became worse by .01")


class Preset(BaseModel):
    name: str
    value: float
    effects: list[Effect] = Field(description="measured on simulated users; empty: it was not")


class Setting(BaseModel):
    name: str = Field(description="as in the environment")
    value: bool | float | str | None = Field(description="in force")
    default: bool | float | str | None
    description: str
    preset: str | None = Field(description="whose value is in force")
    presets: list[Preset]


class SettingsInForce(BaseModel):
    settings: list[Setting]
    served: list[Effect] = Field(description="what all defaults together did")
    measured_by: str = Field(description="the command that measured what presets did")


@router.get("", operation_id="get_settings")
def get_settings(context: InContext) -> SettingsInForce:
    """List the settings of learning with their presets, and what these did to quality on simulated users."""
    measured = _measured()
    return SettingsInForce(
        settings=[_setting(name, context.settings, measured) for name in TOLD],
        served=_effects(measured["served"]),
        measured_by=measured["command"],
    )


@cache
def _measured() -> Mapping[str, Any]:
    """Return what ``benchmarks/presets.py`` wrote."""
    found: Mapping[str, Any] = json.loads(files("embedding_studio").joinpath("presets.json").read_bytes())
    return found


def _setting(name: str, settings: Settings, measured: Mapping[str, Any]) -> Setting:
    field = Settings.model_fields[name]
    value = getattr(settings, name)
    presets = KNOBS[name].presets if name in KNOBS else {}
    effects = measured["presets"].get(name, {})
    return Setting(
        name=name.upper(),
        value=value,
        default=field.default,
        description=field.description or "",
        preset=next((preset for preset, given in presets.items() if given == value), None),
        presets=[
            Preset(name=preset, value=given, effects=_effects(effects.get(preset, {})))
            for preset, given in presets.items()
        ],
    )


def _effects(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[Effect]:
    return [
        Effect(
            collection=collection,
            clicks=clicks,
            same=cells["same T=10"],
            near=cells["near T=10"],
            users_worse=cells["worse, same"],
        )
        for collection, by_clicks in found.items()
        for clicks, cells in by_clicks.items()
    ]
