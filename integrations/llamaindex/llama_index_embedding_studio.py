"""Embedding Studio as a retriever of LlamaIndex, with the way back for a click."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from embedding_studio.client import AsyncClient, Client, FoundPage


@dataclass
class UserQuery(QueryBundle):
    """A query of one user: ``retriever.retrieve(UserQuery("warm coat", user_id="ann"))``."""

    user_id: str | None = None


class EmbeddingStudioRetriever(BaseRetriever):
    """Retrieves what is nearest to a query for one user, and records what it gave.

    Whose search it is, a ``UserQuery`` says; a query engine takes one where it takes a text. Without a user
    it is the plain search. A node's score is its cosine, or minus its distance under another metric.

    Args:
        client: open as long as the retriever is used.
        async_client: for ``aretrieve``; without one, a thread uses ``client``.
        similarity_top_k: so many nodes, at most.
        content_field: of an object's payload, which becomes the node's text; the rest is metadata.
        filter: as docs/filters.md of Embedding Studio has it.
    """

    def __init__(
        self,
        client: Client,
        *,
        async_client: AsyncClient | None = None,
        similarity_top_k: int = 4,
        content_field: str = "text",
        filter: Mapping[str, Any] | None = None,  # noqa: A002, the field's name in the request
    ) -> None:
        super().__init__()
        self._client = client
        self._async_client = async_client
        self._asked = {"limit": similarity_top_k, "filter": filter, "create_session": True}
        self._content_field = content_field

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        user_id = getattr(query_bundle, "user_id", None)
        return self._nodes(self._client.search(query_bundle.query_str, user_id=user_id, **self._asked))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if self._async_client is None:
            return await asyncio.to_thread(self._retrieve, query_bundle)
        user_id = getattr(query_bundle, "user_id", None)
        page = await self._async_client.search(query_bundle.query_str, user_id=user_id, **self._asked)
        return self._nodes(page)

    def clicked(self, node: NodeWithScore, event_type: str = "click") -> None:
        """Say that the user chose a node; what is like it comes nearer, for this user."""
        told = node.metadata
        self._client.click(told["session_id"], told["object_id"], event_type=event_type)

    def _nodes(self, page: FoundPage) -> list[NodeWithScore]:
        nodes = []
        for found in page.results:
            payload = dict(found.payload)
            if self._content_field not in payload:
                raise ValueError(
                    f"the payload of {found.object_id!r} has no {self._content_field!r}; name the field that "
                    "holds the text by content_field"
                )
            content = str(payload.pop(self._content_field))
            told = {
                "session_id": page.session_id,
                "object_id": found.object_id,
                "position": found.position,
                "distance": found.distance,
            }
            node = TextNode(
                id_=found.object_id,
                text=content,
                metadata=payload | told,
                excluded_llm_metadata_keys=list(told),
                excluded_embed_metadata_keys=list(told),
            )
            score = 1 - found.distance if page.metric_type == "cosine" else -found.distance
            nodes.append(NodeWithScore(node=node, score=score))
        return nodes
