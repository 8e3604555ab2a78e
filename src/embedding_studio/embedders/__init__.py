"""Texts to vectors. Axes: N texts · P parts · D dimensions.

minilm                 the packaged model          onnx_bert          how it is run
sentence_transformers  models on this machine      openai_compatible  models behind an endpoint
endpoint               how it is asked             circuit_breaker    and when not
names                  how a model is named
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedding_studio.embedders.names import ENDPOINT, MINILM, without_secrets
from embedding_studio.errors import InvalidSettingError, PartTooLongError

__all__ = ["Embedder", "EmbedderOptions", "embed_parts", "embed_texts", "embedder_by_name", "query_embedding"]

PART_CHARACTERS = 2000
"""About 500 tokens of English: what the smaller models behind endpoints read."""


class Embed(Protocol):
    """Texts to vectors, as ``Embedder.embed``."""

    def __call__(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]: ...


class Embedder(Protocol):
    """A model that gives texts their vectors; safe to use from several threads at once.

    It may have two things more: ``embed_queries`` as in ``QueryEmbedder``, and ``trouble``: why it embeds
    nothing just now, in a few words for ``/readyz``; None while it does.
    """

    @property
    def name(self) -> str:
        """Which model this is: equal where vectors can be compared. It is recorded with collections."""
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


class QueryEmbedder(Embedder, Protocol):
    """An embedder that embeds queries in a way of their own."""

    def embed_queries(
        self,
        texts: Sequence[str],
        *,
        progress: Callable[[int], None] | None = None,
        seconds: float | None = None,
    ) -> NDArray[np.float32]:
        """Return [N, D] as ``embed`` does.

        Args:
            seconds: after so many the caller leaves; None: it has the patience of one who indexes.

        Raises:
            EmbedderUnavailableError: not in time, or it is known beforehand that it would be so.
        """
        ...


@dataclass(frozen=True, slots=True)
class EmbedderOptions:
    """What a setting says of a model beside its name.

    Attributes:
        query_prompt: stands before each query; None: what the model's own configuration says, if it has one.
        document_prompt: stands before each part of a document, likewise.
        dimensions: that are asked for, of a model that can give fewer; None: all.
        batch_size: texts at once; None: as measured best.
        threads: cores that a model on this machine may use at once; None: all.
        part_characters: of a part of a text, for an endpoint, which does not tell its limit.
    """

    query_prompt: str | None = None
    document_prompt: str | None = None
    dimensions: int | None = None
    batch_size: int | None = None
    threads: int | None = None
    part_characters: int = PART_CHARACTERS


def query_embedding(embedder: Embedder, *, seconds: float | None = None) -> Embed:
    """Return what embeds queries.

    Args:
        seconds: see ``QueryEmbedder``; embedders without a way of their own for queries take what they take.
    """
    own = getattr(embedder, "embed_queries", None)
    embed: Embed = embedder.embed if own is None else partial(own, seconds=seconds)
    return embed


def embed_texts(
    embedder: Embedder, texts: Sequence[str], *, embed: Embed | None = None
) -> list[NDArray[np.float32]]:
    """Return [P, D] for each text, split as the embedder does and embedded at once.

    Args:
        embed: ``query_embedding(embedder)`` where the texts are queries; None: they are documents.

    Raises:
        EmbeddingError: as ``Embedder.embed``.
    """
    while True:
        try:
            return embed_parts([embedder.split(text) for text in texts], embed or embedder.embed)
        except PartTooLongError:  # it has learnt, and splits into shorter ones
            continue


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


def embedder_by_name(
    setting: str, *, api_key: str | None = None, options: EmbedderOptions | None = None
) -> Embedder | None:
    """Return the embedder that a setting names; None for ``none``, where callers bring vectors.

    Args:
        setting: ``all-MiniLM-L6-v2``, which needs neither torch nor a network, or another name or folder
            for sentence-transformers, with or without ``sentence-transformers:`` before it;
            ``openai:MODEL@BASE_URL``; ``none``.
        api_key: for an ``openai:`` endpoint that asks for one.

    Raises:
        InvalidSettingError: the setting is none of these.
    """
    kind, colon, rest = setting.strip().partition(":")
    if kind == "none" and not colon:
        return None
    if kind == "openai" and colon:
        from embedding_studio.embedders.openai_compatible import OpenAICompatibleEmbedder

        if not (found := ENDPOINT.fullmatch(setting.strip())):
            raise InvalidSettingError(
                f"the embedder {without_secrets(setting)!r} names no endpoint; "
                "write openai:MODEL@BASE_URL, as in openai:text-embedding-3-small@https://api.openai.com/v1"
            )
        return OpenAICompatibleEmbedder(found["base_url"], found["model"], api_key, options=options)
    name = rest if kind == "sentence-transformers" and colon else setting.strip()
    if not name:
        raise InvalidSettingError(
            "the embedder has no name; write all-MiniLM-L6-v2, sentence-transformers:NAME_OR_FOLDER, "
            "openai:MODEL@BASE_URL, or none"
        )
    if name.removeprefix("sentence-transformers/") == MINILM:
        from embedding_studio.embedders.minilm import MiniLMEmbedder

        return MiniLMEmbedder(options=options)
    from embedding_studio.embedders.sentence_transformers import SentenceTransformersEmbedder

    return SentenceTransformersEmbedder(name, options=options)
