"""Embedding Studio: search that learns from clicks.

Importing this package is light: torch, the database driver and the settings wait for the first use
of ``context`` and of the names in ``_ON_FIRST_USE``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from embedding_studio import datetime_utils, errors
from embedding_studio.domain.filters import PayloadFilter
from embedding_studio.domain.index import (
    MetricAggregationType,
    MetricType,
    SearchIndexInfo,
)
from embedding_studio.domain.sessions import (
    SearchResultItem,
    Session,
    SessionEvent,
    SessionForImprovementCreateSchema,
    get_result_position,
)

if TYPE_CHECKING:
    from embedding_studio.bootstrap import Context
    from embedding_studio.catalogue import CatalogueText
    from embedding_studio.domain.objects import CatalogueObject
    from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
    from embedding_studio.embeddings.improvement.torch_based_adjuster import TorchBasedAdjuster
    from embedding_studio.embeddings.improvement.vectors_adjuster import VectorsAdjuster
    from embedding_studio.plugins import Plugin
    from embedding_studio.settings import load_settings

    context: Context
    __version__: str

__all__ = [
    "CatalogueObject",
    "CatalogueText",
    "Context",
    "MetricAggregationType",
    "MetricType",
    "PassiveAggressiveAdjuster",
    "PayloadFilter",
    "Plugin",
    "SearchIndexInfo",
    "SearchResultItem",
    "Session",
    "SessionEvent",
    "SessionForImprovementCreateSchema",
    "TorchBasedAdjuster",
    "VectorsAdjuster",
    "context",
    "datetime_utils",
    "errors",
    "get_result_position",
    "load_settings",
]

_ON_FIRST_USE = {
    "CatalogueObject": "embedding_studio.domain.objects",
    "CatalogueText": "embedding_studio.catalogue",
    "Context": "embedding_studio.bootstrap",
    "PassiveAggressiveAdjuster": "embedding_studio.embeddings.improvement.passive_aggressive_adjuster",
    "Plugin": "embedding_studio.plugins",
    "TorchBasedAdjuster": "embedding_studio.embeddings.improvement.torch_based_adjuster",
    "VectorsAdjuster": "embedding_studio.embeddings.improvement.vectors_adjuster",
    "load_settings": "embedding_studio.settings",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = import_module("importlib.metadata").version("embedding-studio")
    elif name == "context":
        value = import_module("embedding_studio.bootstrap").Context()
    elif name in _ON_FIRST_USE:
        value = getattr(import_module(_ON_FIRST_USE[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
