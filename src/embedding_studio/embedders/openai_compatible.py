"""Models behind an HTTP endpoint that speaks OpenAI's ``/embeddings``. Axes: N texts · D dimensions.

The protocol: https://platform.openai.com/docs/api-reference/embeddings. Ollama, vLLM, LM Studio,
text-embeddings-inference, Azure, Gemini and many others speak it too, each with limits of its own.
"""

import base64
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Self

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray
from semantic_text_splitter import TextSplitter

from embedding_studio.embedders import EmbedderOptions
from embedding_studio.embedders.circuit_breaker import CircuitBreaker
from embedding_studio.embedders.endpoint import (
    ATTEMPTS,
    BACKOFF_SECONDS,
    TIMEOUT_SECONDS,
    Endpoint,
    EndpointRefusedError,
)
from embedding_studio.embedders.names import with_prompt
from embedding_studio.errors import EmbeddingError, PartTooLongError, counted

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
SHORTEST_PART_CHARACTERS = 200
"""What is refused though it is as short as this is not refused for its length."""

FIRST_ANSWER_SECONDS = 60.0
LARGEST_DIMENSIONS = 16_384
ANSWER_BYTES = 4_096
"""For what stands around the numbers of a vector, and around all of them."""

BYTES_PER_NUMBER = 64
"""Twice what a number takes that stands in a line of its own, with all its digits."""

TOO_LARGE = frozenset({400, 413, 422})
"""How endpoints refuse too many texts, or too long ones."""

_OF_LENGTH = re.compile(r"token|length|too long|too large|characters|context", re.IGNORECASE)


class OpenAICompatibleEmbedder:
    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        options: EmbedderOptions | None = None,
        attempts: int = ATTEMPTS,
        backoff_seconds: float = BACKOFF_SECONDS,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """Name an endpoint; it is first asked when vectors are needed.

        Args:
            base_url, api_key, attempts, backoff_seconds, timeout_seconds: see ``Endpoint``.
        """
        options = options or EmbedderOptions()
        self._endpoint = Endpoint(
            base_url,
            model,
            api_key,
            attempts=attempts,
            backoff_seconds=backoff_seconds,
            timeout_seconds=timeout_seconds,
        )
        self._breaker = CircuitBreaker(self._endpoint.told)
        self._asked: dict[str, object] = {"model": model}
        if options.dimensions is not None:
            self._asked["dimensions"] = options.dimensions
        self._query_prompt = options.query_prompt or ""
        self._document_prompt = options.document_prompt or ""
        self._batch_size = self._most_at_once = options.batch_size or BATCH_SIZE
        self._part_characters = options.part_characters
        self._splitter = TextSplitter(self._part_characters)
        self._dimensions: int | None = None
        self._learning = threading.Lock()
        self.name = with_prompt(f"openai:{model}", self._document_prompt)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back; whoever keeps the embedder for the life of a process need not."""
        self._endpoint.close()

    @property
    def dimensions(self) -> int:
        """D; asks the endpoint once."""
        if self._dimensions is None:
            self._ask(["size"], time.monotonic() + FIRST_ANSWER_SECONDS)
        assert self._dimensions is not None  # noqa: S101, every answer sets it
        return self._dimensions

    @property
    def trouble(self) -> str | None:
        return "the embedding endpoint does not answer" if self._breaker.has_tripped else None

    def embed(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Return [N, D] as the port says.

        Raises:
            PartTooLongError: a text was, for this endpoint; ``split`` makes shorter ones from now on.
        """
        if not self.dimensions or not texts:  # asked first: it bounds what a batch may answer
            return np.empty((0, self.dimensions), dtype=np.float32)
        try:
            return self._embed(texts, self._document_prompt, progress)
        except _TextTooLongError as error:
            self._shorten_parts(error)
            raise PartTooLongError(str(error)) from error

    def embed_queries(
        self,
        texts: Sequence[str],
        *,
        progress: Callable[[int], None] | None = None,
        seconds: float | None = None,
    ) -> NDArray[np.float32]:
        """Return [N, D] as the port says; with ``seconds``, a circuit breaker keeps callers off."""
        if not texts:
            return np.empty((0, self.dimensions), dtype=np.float32)
        if seconds is None:
            return self._embed(texts, self._query_prompt, progress)
        with self._breaker.guarding():
            return self._embed(texts, self._query_prompt, progress, time.monotonic() + seconds)

    def split(self, text: str) -> list[str]:
        """Return parts of at most so many characters: the endpoint does not tell its limit."""
        return self._splitter.chunks(text) or [text]

    def _embed(
        self,
        texts: Sequence[str],
        prompt: str,
        progress: Callable[[int], None] | None,
        until: float = math.inf,
    ) -> NDArray[np.float32]:
        """Return [N, D], batch by batch; where one is refused for its size, it and those after are halved."""
        size = self._batch_size
        found: list[NDArray[np.float32]] = []
        start = 0
        while start < len(texts):
            batch = texts[start : start + size]
            try:
                found.append(self._ask([prompt + text for text in batch], until))
            except EndpointRefusedError as error:
                if error.status not in TOO_LARGE:
                    raise
                if len(batch) == 1:
                    raise self._about_one(batch[0], error) from error
                size = len(batch) // 2
                continue
            if size < self._batch_size:
                logger.info("%s takes %d texts at once", self._endpoint.told, size)
                self._batch_size = size
            start += len(batch)
            if progress is not None:
                progress(len(batch))
        return np.concatenate(found)

    def _about_one(self, text: str, error: EndpointRefusedError) -> EmbeddingError:
        """Return what to say where a single text is refused."""
        self._batch_size = self._most_at_once  # it was not for their number that more were refused
        if len(text) <= SHORTEST_PART_CHARACTERS or not (
            error.status == httpx.codes.REQUEST_ENTITY_TOO_LARGE or _OF_LENGTH.search(error.said)
        ):
            return error
        return _TextTooLongError(
            f"{error}; it was a text of {len(text)} characters: set EMBEDDER_PART_CHARACTERS to less",
            len(text),
        )

    def _shorten_parts(self, error: "_TextTooLongError") -> None:
        with self._learning:
            self._part_characters = min(self._part_characters, error.characters // 2)
            self._splitter = TextSplitter(self._part_characters)
            logger.info("%s takes no text of %d characters", self._endpoint.told, error.characters)

    def _ask(self, texts: Sequence[str], until: float) -> NDArray[np.float32]:
        """Return [N, D] of one request."""
        of_each = (self._dimensions or LARGEST_DIMENSIONS) * BYTES_PER_NUMBER
        content = self._endpoint.post(
            {**self._asked, "input": list(texts)},
            most_bytes=ANSWER_BYTES + len(texts) * (of_each + ANSWER_BYTES),
            until=until,
            texts=texts,
        )
        rows = self._rows(content, texts)
        sizes = {len(row) for row in rows}
        with self._learning:
            expected = self._dimensions or len(rows[0])
            if sizes != {expected} or expected == 0:
                raise self._failed(
                    f"answered embeddings of {sorted(sizes)} dimensions where {expected} were expected"
                )
            self._dimensions = expected
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            vectors = np.array(rows, dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise self._failed("answered numbers that are not finite")
        return vectors

    def _rows(self, content: bytes, texts: Sequence[str]) -> list[NDArray[Any]]:
        """Return the vectors of an answer in the order of the texts."""
        try:
            data = orjson.loads(content)["data"]
            rows = [(_index(each.get("index")), _numbers(each["embedding"])) for each in data]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._failed(
                f"answered what is no list of embeddings: {self._endpoint.excerpt(content, texts)}"
            ) from error
        # Some leave the index out where it is 0, or everywhere, or it is always 0: then the order counts.
        indices = [index for index, _ in rows]
        if not any(indices):
            indices = list(range(len(rows)))
        if sorted(indices) != list(range(len(texts))):
            raise self._failed(
                f"answered {counted(len(rows), 'embedding')}, with other indices than the "
                f"{counted(len(texts), 'text has', 'texts have')}"
            )
        return [
            row for _, row in sorted(zip(indices, (row for _, row in rows), strict=True), key=itemgetter(0))
        ]

    def _failed(self, what: str) -> EmbeddingError:
        return EmbeddingError(f"{self._endpoint.told} {what}")


class _TextTooLongError(EmbeddingError):
    def __init__(self, message: str, characters: int) -> None:
        super().__init__(message)
        self.characters = characters


def _index(given: object) -> int:
    if given is not None and type(given) is not int:
        raise ValueError("no index")
    return given or 0


def _numbers(given: object) -> NDArray[Any]:
    """Return one vector, which comes as a list of numbers, or as float32 in base64.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(given, str):
        return np.frombuffer(base64.b64decode(given, validate=True), dtype="<f4")
    row = np.array(given)
    if row.ndim != 1 or (row.size and row.dtype.kind not in "iuf"):
        raise ValueError("no numbers")
    return row
