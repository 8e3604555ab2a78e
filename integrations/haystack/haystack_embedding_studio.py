"""Embedding Studio as a retriever of Haystack, with the way back for a click."""

from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.utils import Secret

from embedding_studio.client import Client


@component
class EmbeddingStudioRetriever:
    """Retrieves what is nearest to a query for one user, and records what it gave.

    Whose search it is, each run says: ``pipeline.run({"retriever": {"query": q, "user_id": "ann"}})``.
    Without a user it is the plain search. A document's score is its cosine, or minus its distance under
    another metric.

    Args:
        url: of the service.
        api_key: None: the service asks for none.
        collection: where to search.
        top_k: so many documents, at most.
        content_field: of an object's payload, which becomes the content; the rest is meta.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: Secret | None = None,
        collection: str = "default",
        top_k: int = 4,
        content_field: str = "text",
    ) -> None:
        self.url = url
        self.api_key = api_key
        self.collection = collection
        self.top_k = top_k
        self.content_field = content_field
        self._client = Client(url, api_key=api_key and api_key.resolve_value(), collection=collection)

    def to_dict(self) -> dict[str, Any]:
        """Return what a pipeline's file says of it; of the key, only where it is found."""
        return default_to_dict(
            self,
            url=self.url,
            api_key=self.api_key and self.api_key.to_dict(),
            collection=self.collection,
            top_k=self.top_k,
            content_field=self.content_field,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "EmbeddingStudioRetriever":
        """Return the component of which a pipeline's file tells."""
        given = data["init_parameters"]
        if given.get("api_key") is not None:
            given["api_key"] = Secret.from_dict(given["api_key"])
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        user_id: str | None = None,
        top_k: int | None = None,
        filter: dict[str, Any] | None = None,  # noqa: A002, the field's name in the request
    ) -> dict[str, list[Document]]:
        """Return documents, the nearest first.

        Args:
            query: a text.
            user_id: None: the user is unknown.
            top_k: instead of the component's own.
            filter: as docs/filters.md of Embedding Studio has it; it is none of Haystack's.
        """
        page = self._client.search(
            query, user_id=user_id, limit=top_k or self.top_k, filter=filter, create_session=True
        )
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
            score = 1 - found.distance if page.metric_type == "cosine" else -found.distance
            documents.append(Document(id=found.object_id, content=content, meta=payload | told, score=score))
        return {"documents": documents}

    def clicked(self, document: Document, event_type: str = "click") -> None:
        """Say that the user chose a document; what is like it comes nearer, for this user."""
        told = document.meta
        self._client.click(told["session_id"], told["object_id"], event_type=event_type)

    def close(self) -> None:
        """Close its connections."""
        self._client.close()
