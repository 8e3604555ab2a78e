"""Embedding Studio: search that learns from clicks.

Importing this package is light: numpy, pydantic, the database driver and all else wait for the first use
of ``context`` and of the names in ``_ON_FIRST_USE``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from embedding_studio import datetime_utils, errors

if TYPE_CHECKING:
    from embedding_studio.bootstrap import Context
    from embedding_studio.catalogue import CatalogueText
    from embedding_studio.client import AsyncClient, Client
    from embedding_studio.domain.filters import PayloadFilter
    from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
    from embedding_studio.domain.objects import CatalogueObject
    from embedding_studio.domain.sessions import (
        SearchResultItem,
        Session,
        SessionEvent,
        SessionForImprovementCreateSchema,
        get_result_position,
    )
    from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
    from embedding_studio.embeddings.improvement.torch_based_adjuster import TorchBasedAdjuster
    from embedding_studio.embeddings.improvement.vectors_adjuster import VectorsAdjuster
    from embedding_studio.plugins import Plugin
    from embedding_studio.settings import load_settings

    context: Context
    __version__: str

__all__ = [
    "AsyncClient",
    "CatalogueObject",
    "CatalogueText",
    "Client",
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
    "AsyncClient": "embedding_studio.client",
    "CatalogueObject": "embedding_studio.domain.objects",
    "CatalogueText": "embedding_studio.catalogue",
    "Client": "embedding_studio.client",
    "Context": "embedding_studio.bootstrap",
    "MetricAggregationType": "embedding_studio.domain.index",
    "MetricType": "embedding_studio.domain.index",
    "PassiveAggressiveAdjuster": "embedding_studio.embeddings.improvement.passive_aggressive_adjuster",
    "PayloadFilter": "embedding_studio.domain.filters",
    "Plugin": "embedding_studio.plugins",
    "SearchIndexInfo": "embedding_studio.domain.index",
    "SearchResultItem": "embedding_studio.domain.sessions",
    "Session": "embedding_studio.domain.sessions",
    "SessionEvent": "embedding_studio.domain.sessions",
    "SessionForImprovementCreateSchema": "embedding_studio.domain.sessions",
    "TorchBasedAdjuster": "embedding_studio.embeddings.improvement.torch_based_adjuster",
    "VectorsAdjuster": "embedding_studio.embeddings.improvement.vectors_adjuster",
    "get_result_position": "embedding_studio.domain.sessions",
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
