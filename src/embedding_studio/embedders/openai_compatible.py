"""Models behind an HTTP endpoint that speaks OpenAI's ``/embeddings``. Axes: N texts · D dimensions.

The protocol: https://platform.openai.com/docs/api-reference/embeddings. Ollama, vLLM, LM Studio,
text-embeddings-inference and many others speak it too.
"""

import email.utils
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from semantic_text_splitter import TextSplitter

from embedding_studio.errors import EmbeddingError

BATCH_SIZE = 64
PART_CHARACTERS = 2000  # about 500 tokens of English: what the smaller models behind such endpoints read
LONGEST_WAIT_SECONDS = 60.0


class OpenAICompatibleEmbedder:
    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        attempts: int = 5,
        backoff_seconds: float = 0.5,
        timeout_seconds: float = 60.0,
    ) -> None:
        """Name an endpoint; it is first asked when vectors are needed.

        Args:
            base_url: what stands before ``/embeddings``, as in ``https://api.openai.com/v1``.
            attempts: at least 1; how often a request is sent before it counts as failed. Sent again is
                what met a lost connection, status 429 or 5xx.
            backoff_seconds: before the second attempt, doubled before each further one, unless the
                server says how long to wait (``Retry-After``); at most 60 s either way.
        """
        self._base_url = base_url.rstrip("/")
        self._model = model
        self._api_key = api_key
        self._attempts = attempts
        self._backoff_seconds = backoff_seconds
        self._client = httpx.Client(
            timeout=timeout_seconds, headers={"Authorization": f"Bearer {api_key}"} if api_key else {}
        )
        self._splitter = TextSplitter(PART_CHARACTERS)
        self._dimensions: int | None = None
        self._first_answer = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back; whoever keeps the embedder for the life of a process need not."""
        self._client.close()

    @property
    def name(self) -> str:
        return f"openai:{self._model}@{self._base_url}"

    @property
    def dimensions(self) -> int:
        """D; asks the endpoint once."""
        if self._dimensions is None:
            self._embed_batch(["size"])
        assert self._dimensions is not None  # noqa: S101, every answer sets it
        return self._dimensions

    def embed(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        for start in range(0, len(texts), BATCH_SIZE):
            batch = texts[start : start + BATCH_SIZE]
            vectors[start : start + len(batch)] = self._embed_batch(batch)
            if progress is not None:
                progress(len(batch))
        return vectors

    def split(self, text: str) -> list[str]:
        """Return parts of at most 2,000 characters: the endpoint does not tell its limit."""
        return self._splitter.chunks(text) or [text]

    def _embed_batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        response = self._post({"model": self._model, "input": list(texts)})
        try:
            answer = _Answer.model_validate_json(response.content)
        except ValidationError as error:
            raise self._failed(
                f"answered what is no list of embeddings: {self._excerpt(response)}"
            ) from error
        rows = sorted(answer.data, key=lambda row: row.index)
        if [row.index for row in rows] != list(range(len(texts))):
            raise self._failed(
                f"answered {len(rows)} embeddings, with other indices than the {len(texts)} texts have"
            )
        sizes = {len(row.embedding) for row in rows}
        with self._first_answer:
            expected = self._dimensions or len(rows[0].embedding)
            if sizes != {expected} or expected == 0:
                raise self._failed(
                    f"answered embeddings of {sorted(sizes)} dimensions where {expected} were expected"
                )
            self._dimensions = expected
        vectors = np.array([row.embedding for row in rows], dtype=np.float32)
        if not np.isfinite(vectors).all():
            raise self._failed("answered numbers that are not finite")
        return vectors

    def _post(self, body: dict[str, object]) -> httpx.Response:
        """Return the first answer that is one, or the error after the last attempt."""
        for attempt in range(1, self._attempts + 1):
            wait_seconds = self._backoff_seconds * 2 ** (attempt - 1)
            try:
                response = self._client.post(f"{self._base_url}/embeddings", json=body)
            except httpx.TransportError as error:
                if attempt == self._attempts:
                    raise self._failed(f"cannot be reached in {attempt} attempts: {error}") from error
            else:
                if response.is_success:
                    return response
                if attempt == self._attempts or not (response.status_code == 429 or response.is_server_error):
                    raise self._failed(
                        f"refused with status {response.status_code}: {self._excerpt(response)}"
                    )
                told_seconds = _retry_after_seconds(response)
                wait_seconds = wait_seconds if told_seconds is None else told_seconds
            time.sleep(min(wait_seconds, LONGEST_WAIT_SECONDS))
        raise AssertionError("the last attempt returns or raises")

    def _excerpt(self, response: httpx.Response) -> str:
        """Return the beginning of what the server says, without the key, should it repeat it."""
        text = " ".join(response.text.split())
        return (text.replace(self._api_key, "***") if self._api_key else text)[:200]

    def _failed(self, what: str) -> EmbeddingError:
        return EmbeddingError(f"the embedding endpoint {self._base_url}, model {self._model!r}, {what}")


class _Row(BaseModel):
    index: int
    embedding: list[float]


class _Answer(BaseModel):
    data: list[_Row]


def _retry_after_seconds(response: httpx.Response) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which may be a number or a date; None without one."""
    told = response.headers.get("Retry-After", "")
    if told.isdecimal():
        return float(told)
    try:
        until = email.utils.parsedate_to_datetime(told)
    except ValueError:
        return None
    return max(0.0, until.timestamp() - time.time())
