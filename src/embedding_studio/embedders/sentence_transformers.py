"""Models that the library sentence-transformers runs on this machine. Axes: N texts · D dimensions."""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semantic_text_splitter import TextSplitter

from embedding_studio.embedders import EmbedderOptions
from embedding_studio.embedders.names import with_prompt
from embedding_studio.errors import EmbeddingError, counted

BATCH_SIZE = 16
"""Texts at once: enough to keep two cores busy, few enough for their activations to stay in the caches."""


class SentenceTransformersEmbedder:
    def __init__(self, name_or_folder: str, *, options: EmbedderOptions | None = None) -> None:
        """Name a model, as sentence-transformers takes it; it is loaded when it is first needed."""
        self._source = name_or_folder
        self._options = options or EmbedderOptions()
        self._loaded: _LoadedModel | None = None
        self._loading = threading.Lock()
        # Two threads that encode at once set each other's padding and truncation in the one tokenizer.
        self._encoding = threading.Lock()

    @property
    def name(self) -> str:
        """What the port says; loads the model where only that tells its prompts."""
        prompt = self._options.document_prompt
        if prompt is None:
            prompt = self._load().document_prompt
        return with_prompt(f"sentence-transformers:{self._source}", prompt)

    @property
    def dimensions(self) -> int:
        return self._load().dimensions

    def embed(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Return [N, D] as the port says; several threads take turns batch by batch."""
        return self._embed(self._load().encode_documents, texts, progress)

    def embed_queries(
        self,
        texts: Sequence[str],
        *,
        progress: Callable[[int], None] | None = None,
        seconds: float | None = None,  # noqa: ARG002, a model on this machine takes what it takes
    ) -> NDArray[np.float32]:
        return self._embed(self._load().encode_queries, texts, progress)

    def _embed(
        self,
        encode: Callable[[list[str]], NDArray[np.float32]],
        texts: Sequence[str],
        progress: Callable[[int], None] | None,
    ) -> NDArray[np.float32]:
        N, D = len(texts), self.dimensions
        vectors = np.empty((N, D), dtype=np.float32)
        # Texts of like length share a batch, so that little is computed for padding. The longest come
        # first: what remains then takes less time than the progress so far foretells, never more.
        longest_first = sorted(range(N), key=lambda n: -len(texts[n]))
        size = self._options.batch_size or BATCH_SIZE
        for start in range(0, N, size):
            batch = longest_first[start : start + size]
            with self._encoding:
                vectors[batch] = encode([texts[n] for n in batch])
            if progress is not None:
                progress(len(batch))
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            bad = texts[int(np.argmin(finite))]
            raise EmbeddingError(
                f"the model {self._source!r} gave numbers that are not finite for a text "
                f"of {counted(len(bad), 'character')}"
            )
        return vectors

    def split(self, text: str) -> list[str]:
        model = self._load()
        if model.splitter is None or len(text) <= model.part_tokens:
            return [text]
        return model.splitter.chunks(text) or [text]

    def _load(self) -> "_LoadedModel":
        with self._loading:
            if self._loaded is None:
                self._loaded = _load_model(self._source, self._options)
            return self._loaded


@dataclass(frozen=True, slots=True)
class _LoadedModel:
    """A model in memory.

    Attributes:
        query_prompt, document_prompt: stand before texts; "" where there is none.
        part_tokens: how many tokens of a text it reads.
        splitter: cuts texts into parts of so many tokens; None for a model that reads texts of any length.
    """

    model: Any
    dimensions: int
    query_prompt: str
    document_prompt: str
    part_tokens: int
    splitter: TextSplitter | None

    def encode_queries(self, texts: list[str]) -> NDArray[np.float32]:
        encoded: NDArray[np.float32] = self.model.encode_query(
            texts, prompt=self.query_prompt, **_at_once(texts)
        )
        return encoded

    def encode_documents(self, texts: list[str]) -> NDArray[np.float32]:
        encoded: NDArray[np.float32] = self.model.encode_document(
            texts, prompt=self.document_prompt, **_at_once(texts)
        )
        return encoded


def _at_once(texts: list[str]) -> dict[str, Any]:
    return {"batch_size": len(texts), "show_progress_bar": False, "convert_to_numpy": True}


def _load_model(source: str, options: EmbedderOptions) -> _LoadedModel:
    # Threads of OpenMP that wait for each other without sleep take ten times as long on a busy machine, and
    # no shorter on an idle one (16 short texts: 0.9 s against 0.06 s). It is read when torch is first loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise EmbeddingError(
            f"the model {source!r} needs sentence-transformers; pip install 'embedding-studio[text]'"
        ) from error
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        with _without_progress_bars():
            model = SentenceTransformer(source, truncate_dim=options.dimensions)
    except (
        OSError,
        ValueError,
        KeyError,
    ) as error:  # what the library raises for a name or folder that is no model
        raise EmbeddingError(f"the model {source!r} cannot be loaded: {error}") from error
    query_prompt = _prompt(model, options.query_prompt, ("query",))
    # The names by which the library looks for it, in its order.
    document_prompt = _prompt(model, options.document_prompt, ("document", "passage", "corpus"))
    part_tokens, splitter = _splitting(model, query_prompt, document_prompt)
    dimensions = len(model.encode("size", show_progress_bar=False))
    return _LoadedModel(model, dimensions, query_prompt, document_prompt, part_tokens, splitter)


def _prompt(model: Any, given: str | None, names: Sequence[str]) -> str:
    """Return the prompt that was given, else the first that the model's configuration has by these names."""
    if given is not None:
        return given
    own: Mapping[str, str] = getattr(model, "prompts", None) or {}
    default = own.get(getattr(model, "default_prompt_name", None) or "", "")
    return next((own[name] for name in names if name in own), default) or ""


def _splitting(model: Any, *prompts: str) -> tuple[int, TextSplitter | None]:
    limit = model.max_seq_length
    if limit is None or math.isinf(limit):
        return 0, None
    tokenizer = model.tokenizer
    # The splitter counts the tokens of the text alone; the model puts its own around them, a prompt before.
    before = max(len(tokenizer.tokenize(prompt)) if prompt else 0 for prompt in prompts)
    part_tokens = max(1, int(limit) - tokenizer.num_special_tokens_to_add() - before)
    own = getattr(tokenizer, "backend_tokenizer", None)
    if own is None:  # a tokenizer that is Python alone
        return part_tokens, TextSplitter.from_callback(
            lambda text: len(tokenizer.tokenize(text)), part_tokens
        )
    copied = type(own).from_str(own.to_str())  # the model's own is set again in each call
    copied.no_truncation()
    copied.no_padding()
    return part_tokens, TextSplitter.from_huggingface_tokenizer(copied, part_tokens)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for each model it loads."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
