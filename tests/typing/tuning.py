"""The types of the reference page's samples; mypy reads this, nothing runs it."""

from collections.abc import Callable
from typing import assert_type

from embedding_studio import (
    MetricAggregationType,
    MetricType,
    PassiveAggressiveAdjuster,
    Plugin,
    SearchIndexInfo,
    Session,
    TorchBasedAdjuster,
    VectorsAdjuster,
)
from embedding_studio.embedders import Embedder
from embedding_studio.models.embeddings.models import SearchIndexInfo as DocumentedIndexInfo


class MyCustomPlugin(Plugin):
    def get_search_index_info(self) -> SearchIndexInfo:
        return SearchIndexInfo(
            metric_type=MetricType.COSINE, metric_aggregation_type=MetricAggregationType.MIN
        )

    def get_vectors_adjuster(self) -> VectorsAdjuster:
        search_index_info = self.get_search_index_info()
        if self.is_product_search:
            return TorchBasedAdjuster(
                search_index_info=search_index_info,
                adjustment_rate=0.15,
                num_iterations=15,
                softmin_temperature=0.8,
            )
        return PassiveAggressiveAdjuster(search_index_info)

    def get_session_filter(self) -> Callable[[Session], bool]:
        return lambda session: session.duration_seconds >= 10


def what_a_plugin_answers(plugin: MyCustomPlugin) -> None:
    assert_type(plugin.is_document_search, bool)
    assert_type(plugin.get_embedder(), Embedder | None)
    index = plugin.get_search_index_info()
    assert_type(index.metric_type, MetricType)
    assert_type(index.metric_aggregation_type, MetricAggregationType)
    assert_type(index.dimensions, int | None)
    same: DocumentedIndexInfo = index
    assert_type(same, SearchIndexInfo)


def the_attributes_of_the_gradient_adjuster(adjuster: TorchBasedAdjuster) -> None:
    assert_type(adjuster.search_index_info, SearchIndexInfo)
    assert_type(adjuster.adjustment_rate, float)
    assert_type(adjuster.num_iterations, int)
    assert_type(adjuster.softmin_temperature, float)
