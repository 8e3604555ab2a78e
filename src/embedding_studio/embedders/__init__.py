"""Texts to vectors. Axes: N texts · P parts · D dimensions."""

import re
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedding_studio.errors import InvalidSettingError

__all__ = ["Embedder", "embed_parts", "embed_texts", "embedder_by_name"]


class Embedder(Protocol):
    """A model that gives texts their vectors; safe to use from several threads at once."""

    @property
    def name(self) -> str:
        """The setting under which ``embedder_by_name`` gives this embedder again."""
        ...

    @property
    def dimensions(self) -> int:
        """D. May load the model, or ask the service, on first use."""
        ...

    def embed(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Return [N, D] in the order of the texts, all finite.

        Args:
            texts: each as long as one part at most; what is longer is cut by the model.
            progress: called with the number of texts newly done.

        Raises:
            EmbeddingError: the model is absent, failed, or gave what is no vector.
        """
        ...

    def split(self, text: str) -> list[str]:
        """Return the text in parts that the model reads whole: at least one, cut where it hurts least."""
        ...


def embed_texts(embedder: Embedder, texts: Sequence[str]) -> list[NDArray[np.float32]]:
    """Return [P, D] for each text, split as the embedder does and embedded at once.

    Raises:
        EmbeddingError: as ``Embedder.embed``.
    """
    return embed_parts([embedder.split(text) for text in texts], embedder.embed)


def embed_parts(
    split: Sequence[Sequence[str]], embed: Callable[[list[str]], NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    """Return [P, D] for each text of which the parts are given; ``embed`` is called once, if at all.

    >>> embedded = embed_parts([["a", "b"], ["c"]], lambda parts: np.ones((len(parts), 5)))
    >>> [vectors.shape for vectors in embedded]
    [(2, 5), (1, 5)]
    """
    if not split:
        return []
    vectors = embed([part for parts in split for part in parts])
    return np.split(vectors, np.cumsum([len(parts) for parts in split])[:-1])


_OPENAI = re.compile(r"openai:(?P<model>.+?)@(?P<base_url>https?://.+)")


def embedder_by_name(setting: str, *, api_key: str | None = None) -> Embedder | None:
    """Return the embedder that a setting names; None for ``none``, where callers bring vectors.

    Args:
        setting: ``all-MiniLM-L6-v2`` or another name or folder for sentence-transformers, with or
            without ``sentence-transformers:`` before it; ``openai:MODEL@BASE_URL``; ``none``.
        api_key: for an ``openai:`` endpoint that asks for one.

    Raises:
        InvalidSettingError: the setting is none of these.
    """
    kind, colon, rest = setting.strip().partition(":")
    if kind == "none" and not colon:
        return None
    if kind == "openai" and colon:
        from embedding_studio.embedders.openai_compatible import OpenAICompatibleEmbedder

        if not (found := _OPENAI.fullmatch(setting.strip())):
            raise InvalidSettingError(
                f"the embedder {setting!r} names no endpoint; "
                "write openai:MODEL@BASE_URL, as in openai:text-embedding-3-small@https://api.openai.com/v1"
            )
        return OpenAICompatibleEmbedder(found["base_url"], found["model"], api_key)
    name = rest if kind == "sentence-transformers" and colon else setting.strip()
    if not name:
        raise InvalidSettingError(
            "the embedder has no name; write all-MiniLM-L6-v2, sentence-transformers:NAME_OR_FOLDER, "
            "openai:MODEL@BASE_URL, or none"
        )
    from embedding_studio.embedders.sentence_transformers import SentenceTransformersEmbedder

    return SentenceTransformersEmbedder(name)
