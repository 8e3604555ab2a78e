"""Embedding Studio as a retriever of LangChain, with the way back for a click."""

from collections.abc import Mapping
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from pydantic import Field

from embedding_studio.client import AsyncClient, Client, FoundPage


class EmbeddingStudioRetriever(BaseRetriever):
    """Retrieves what is nearest to a query for one user, and records what it gave.

    Whose search it is, is said with each call: ``retriever.invoke(query, user_id="ann")``, or within a chain
    ``chain.invoke(query, config={"metadata": {"user_id": "ann"}})``. Without a user it is the plain search.

    Attributes:
        client: open as long as the retriever is used.
        async_client: for ``ainvoke``; without one, a thread uses ``client``.
        k: so many documents, at most.
        content_field: of an object's payload, which becomes ``page_content``; the rest is metadata.
        filter: as docs/filters.md of Embedding Studio has it.
    """

    client: Client = Field(exclude=True)
    async_client: AsyncClient | None = Field(default=None, exclude=True)
    k: int = 4
    content_field: str = "text"
    filter: Mapping[str, Any] | None = None

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        user_id: str | None = None,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,  # noqa: A002, the name of the attribute
    ) -> list[Document]:
        asked = self._asked(run_manager.metadata, user_id, k, filter)
        return self._documents(self.client.search(query, **asked))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        user_id: str | None = None,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,  # noqa: A002, the name of the attribute
    ) -> list[Document]:
        asked = self._asked(run_manager.metadata, user_id, k, filter)
        if self.async_client is None:
            return self._documents(await run_in_executor(None, self.client.search, query, **asked))
        return self._documents(await self.async_client.search(query, **asked))

    def clicked(self, document: Document, event_type: str = "click") -> None:
        """Say that the user chose a document; what is like it comes nearer, for this user."""
        self.client.click(*_named(document), event_type=event_type)

    async def aclicked(self, document: Document, event_type: str = "click") -> None:
        """Do the same as ``clicked``."""
        if self.async_client is None:
            await run_in_executor(None, self.clicked, document, event_type)
        else:
            await self.async_client.click(*_named(document), event_type=event_type)

    def _asked(
        self,
        metadata: Mapping[str, Any],
        user_id: str | None,
        k: int | None,
        payload_filter: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        return {
            "user_id": user_id or metadata.get("user_id"),
            "limit": k or self.k,
            "filter": payload_filter or self.filter,
            "create_session": True,
        }

    def _documents(self, page: FoundPage) -> list[Document]:
        documents = []
        for found in page.results:
            payload = dict(found.payload)
            if self.content_field not in payload:
                raise ValueError(
                    f"the payload of {found.object_id!r} has no {self.content_field!r}; name the field that "
                    "holds the text by content_field"
                )
            content = str(payload.pop(self.content_field))
            told = {
                "session_id": page.session_id,
                "object_id": found.object_id,
                "position": found.position,
                "distance": found.distance,
            }
            documents.append(Document(id=found.object_id, page_content=content, metadata=payload | told))
        return documents


def _named(document: Document) -> tuple[str, str]:
    return document.metadata["session_id"], document.metadata["object_id"]
