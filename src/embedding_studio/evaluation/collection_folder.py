"""A collection with relevance judgements, read from a folder.

    items.jsonl[.gz]     one object a line: {"id": ..., "text": ..., ...}
    queries.tsv[.gz]     query id TAB text
    qrels.tsv[.gz]       query id TAB item id TAB grade; what is not listed is not relevant
    items[.f16].npy      optional: vectors in the order of the file, one row an item
    queries[.f16].npy    optional: the same for queries

Ids are texts or whole numbers. A first line of column names is passed over, as is the mark with which some
programs begin a file (BOM); qrels may have TREC's four columns.

Vectors that are absent are made with the embedder, long items in parts.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from embedding_studio.domain.index import MetricAggregationType, MetricType, SearchIndexInfo
from embedding_studio.domain.storable import check_text
from embedding_studio.embedders import Embedder, embed_parts, query_embedding
from embedding_studio.errors import InvalidDataError, counted, shown
from embedding_studio.evaluation.sentences import split_at_sentences
from embedding_studio.logs.entries import id_of

Vectors = NDArray[np.float32]
Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and how much there is."""

SAME_MODEL_COSINE = 0.97
"""Half precision and cut texts stay above it."""

MAX_QUERIES = 900
ENOUGH_RELEVANT = 5

COLUMN_NAMES = {"id", "qid", "query", "queryid", "query_id", "query-id"}
"""How a first line of column names begins."""

NORM_SIGMA = 0.1
"""Of the logarithm of an item's norm, where norms count: nine of ten norms lie between 0.85 and 1.18."""


@dataclass(frozen=True, slots=True, eq=False)
class JudgedQuery:
    """A text that somebody searches for, and what is relevant to it.

    Attributes:
        vector: [D] float32.
        grades: item id -> grade, > 0.
    """

    text: str
    vector: Vectors
    grades: Mapping[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class JudgedCollection:
    """Items and queries with relevance judgements, and how their vectors are compared.

    Attributes:
        parts: one array [P, D] float32 for each item id.
    """

    name: str
    item_ids: tuple[str, ...]
    parts: tuple[Vectors, ...]
    queries: tuple[JudgedQuery, ...]
    metric: MetricType = MetricType.COSINE
    aggregation: MetricAggregationType = MetricAggregationType.MIN

    @property
    def index(self) -> SearchIndexInfo:
        return SearchIndexInfo(
            dimensions=self.parts[0].shape[1],
            metric_type=self.metric,
            metric_aggregation_type=self.aggregation,
        )

    @property
    def most_parts(self) -> int:
        return max(map(len, self.parts))

    @property
    def highest_grade(self) -> int:
        return max((grade for query in self.queries for grade in query.grades.values()), default=1)

    def compared_by(self, metric: MetricType, aggregation: MetricAggregationType, *, seed: int) -> Self:
        """Return the same items and queries under a metric and an aggregation.

        Models give vectors of length 1, for which dot and euclid rank as cosine does and prove nothing
        of their own. So for these two each item's vectors are made longer or shorter by a factor of
        its own, all parts by the same: log-normal with a median of 1 and a sigma of 0.1, drawn from the
        seed and the item's id alone. Queries stay as they are. The plain search that learning is
        compared with has the same vectors.
        """
        parts = self.parts
        if metric is not MetricType.COSINE:
            parts = tuple(
                vectors * np.float32(_norm(seed, item_id))
                for item_id, vectors in zip(self.item_ids, parts, strict=True)
            )
        return replace(self, parts=parts, metric=metric, aggregation=aggregation)


def load_collection(
    folder: Path | str,
    *,
    embedder: Embedder,
    seed: int,
    most_parts: int | None = None,
    progress: Progress | None = None,
) -> JudgedCollection:
    """Return the collection in a folder, with the queries that have something relevant.

    Of more than 900 queries a seeded sample of 900 is kept, drawn from those with at least five
    relevant items where there are that many.

    Args:
        most_parts: items are split at sentences into at most so many, and embedded whatever vectors the
            folder has; None: its vectors, or else parts as long as the model reads.

    Raises:
        InvalidDataError: a file is missing or does not say what it should; the message names the
            file, the line or row, and what is wrong with it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InvalidDataError(
            f"there is no folder {folder}; an evaluation reads items, queries and qrels from one"
        )
    items = _read_items(folder)
    queries = _read_queries(folder)
    grades = _read_grades(folder, items=items.keys(), queries=queries.keys())
    parts = _item_parts(folder, list(items.values()), embedder, most_parts, progress)
    judged = _sample([query_id for query_id in queries if grades.get(query_id)], grades, seed)
    if not judged:
        raise InvalidDataError(f"no query of {folder} has a relevant item; qrels.tsv needs grades above 0")
    vectors = _query_vectors(folder, queries, judged, embedder, progress)
    if parts[0].shape[1] != vectors.shape[1]:
        raise InvalidDataError(
            f"{folder}: items have {parts[0].shape[1]} dimensions and queries {vectors.shape[1]}; "
            "both must be embedded by one model"
        )
    return JudgedCollection(
        folder.resolve().name,
        tuple(items),
        tuple(parts),
        tuple(
            JudgedQuery(queries[query_id], vector, grades[query_id])
            for query_id, vector in zip(judged, vectors, strict=True)
        ),
    )


def find_file(folder: Path, *names: str) -> Path | None:
    """Return the first of these files that is in the folder."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_lines(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """Yield (place, line) for each line of a file, plain or gzipped, that is not blank.

    Raises:
        InvalidDataError: it is absent, or is not text in UTF-8.
    """
    path = find_file(folder, name, f"{name}.gz")
    if path is None:
        raise InvalidDataError(f"{folder} has no {name} (or {name}.gz)")
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as lines
        ):
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}, line {number}", line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InvalidDataError(f"{path} is not in UTF-8 ({error.reason}); save it so") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidDataError(f"{path} cannot be read: {error}") from error


def load_vectors(path: Path, *, rows: int) -> Vectors:
    """Return [rows, D] float32 from an .npy file.

    Raises:
        InvalidDataError: it is no such array, has another number of rows, or holds a number that is
            not finite or a row of zeros.
    """
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidDataError(f"{path} is no readable .npy file: {error}") from error
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise InvalidDataError(
            f"{path} holds {vectors.dtype} {vectors.shape}; it must be floats, rows x dimensions"
        )
    if len(vectors) != rows:
        raise InvalidDataError(
            f"{path} has {counted(len(vectors), 'row')} for {counted(rows, 'line')}; each line needs its "
            "own row"
        )
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    unusable = ~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1)
    if unusable.any():
        row = int(np.flatnonzero(unusable)[0])
        raise InvalidDataError(
            f"{path}, row {row} (from 0) is not finite or is all zeros; embed that line again"
        )
    return vectors


def _read_items(folder: Path) -> dict[str, str]:
    items: dict[str, str] = {}
    for place, line in read_lines(folder, "items.jsonl"):
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidDataError(f"{place} is not JSON: {error}") from error
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise InvalidDataError(f'{place} needs "id" and "text"')
        item_id = id_of(item.get("id"))
        if item_id is None:
            raise InvalidDataError(
                f'{place} needs an "id" that is a text or a whole number; there is {shown(item.get("id"))}'
            )
        if item_id in items:
            raise InvalidDataError(f"{place} repeats the item id {item_id!r}")
        try:
            items[item_id] = check_text(item["text"])
        except ValueError as error:
            raise InvalidDataError(f'{place}, "text": {error}') from error
    if not items:
        raise InvalidDataError(f"{folder} has no items")
    return items


def _read_queries(folder: Path) -> dict[str, str]:
    queries: dict[str, str] = {}
    for number, (place, line) in enumerate(read_lines(folder, "queries.tsv")):
        query_id, tab, text = line.partition("\t")
        if number == 0 and query_id.lower() in COLUMN_NAMES:
            continue
        if not tab or not text.strip():
            raise InvalidDataError(f"{place} needs a query id, a tab, and a text")
        if query_id in queries:
            raise InvalidDataError(f"{place} repeats the query id {query_id!r}")
        queries[query_id] = text.strip()
    return queries


def _read_grades(
    folder: Path, *, items: Container[str], queries: Container[str]
) -> dict[str, dict[str, int]]:
    grades: dict[str, dict[str, int]] = {}
    for number, (place, line) in enumerate(read_lines(folder, "qrels.tsv")):
        fields = line.split("\t")
        if number == 0 and fields[0].lower() in COLUMN_NAMES:
            continue
        if len(fields) == 4:  # TREC's second is the round, which is not used
            del fields[1]
        try:
            query_id, item_id, grade = fields[0], fields[1], _whole(fields[2])
        except (IndexError, ValueError) as error:
            raise InvalidDataError(
                f"{place} needs a query id, an item id and a whole grade, with tabs"
            ) from error
        if query_id not in queries:
            raise InvalidDataError(f"{place} judges the query {query_id!r}, which queries.tsv does not have")
        if item_id not in items:
            raise InvalidDataError(f"{place} judges the item {item_id!r}, which items.jsonl does not have")
        if grade > 0:
            grades.setdefault(query_id, {})[item_id] = grade
    return grades


def _whole(given: str) -> int:
    """Return a whole number, which a data frame may have written as ``1.0``."""
    if not (number := float(given)).is_integer():
        raise ValueError(f"{given} is not whole")
    return int(number)


def _sample(query_ids: Sequence[str], grades: Mapping[str, Mapping[str, int]], seed: int) -> list[str]:
    if len(query_ids) <= MAX_QUERIES:
        return list(query_ids)
    rich = [query_id for query_id in query_ids if len(grades[query_id]) >= ENOUGH_RELEVANT]
    drawn_from = rich if len(rich) >= MAX_QUERIES else query_ids
    chosen = np.random.default_rng(seed).choice(len(drawn_from), size=MAX_QUERIES, replace=False)
    return [drawn_from[row] for row in sorted(chosen)]


def _norm(seed: int, item_id: str) -> float:
    drawn_from = [seed, *sha256(item_id.encode()).digest()[:8]]
    return float(np.random.default_rng(drawn_from).lognormal(sigma=NORM_SIGMA))


def _item_parts(
    folder: Path,
    texts: Sequence[str],
    embedder: Embedder,
    most_parts: int | None,
    progress: Progress | None,
) -> list[Vectors]:
    path = find_file(folder, "items.f16.npy", "items.npy")
    if path is not None and most_parts is None:
        return list(load_vectors(path, rows=len(texts))[:, None, :])
    split = [
        embedder.split(text) if most_parts is None else split_at_sentences(text, most_parts) for text in texts
    ]
    return embed_parts(split, lambda parts: embed(parts, "items", embedder, progress, are_documents=True))


def _query_vectors(
    folder: Path,
    queries: Mapping[str, str],
    judged: Sequence[str],
    embedder: Embedder,
    progress: Progress | None,
) -> Vectors:
    path = find_file(folder, "queries.f16.npy", "queries.npy")
    if path is None:
        return embed([queries[query_id] for query_id in judged], "queries", embedder, progress)
    rows = {query_id: row for row, query_id in enumerate(queries)}
    vectors = load_vectors(path, rows=len(queries))[[rows[query_id] for query_id in judged]]
    _check_same_model(path, vectors, [queries[query_id] for query_id in judged[:8]], embedder)
    return vectors


def embed(
    texts: Sequence[str],
    what: str,
    embedder: Embedder,
    progress: Progress | None = None,
    *,
    are_documents: bool = False,
) -> Vectors:
    """Return [N, D] of queries, or of documents; ``progress`` is called after each batch."""
    done = 0

    def tell(newly: int) -> None:
        nonlocal done
        done += newly
        if progress is not None:
            progress(f"embedding {what}", done, len(texts))

    return (embedder.embed if are_documents else query_embedding(embedder))(texts, progress=tell)


def _check_same_model(path: Path, vectors: Vectors, texts: Sequence[str], embedder: Embedder) -> None:
    """Raise unless the embedder gives the stored vectors: paraphrases are embedded by it."""
    again = query_embedding(embedder)(texts)
    stored = vectors[: len(texts)]
    if again.shape != stored.shape:
        raise InvalidDataError(
            f"{path} has {stored.shape[1]} dimensions, the embedder {embedder.name!r} {again.shape[1]}; "
            "name the embedder that made the file, or delete the .npy files to embed again"
        )
    lengths = np.linalg.norm(again, axis=1) * np.linalg.norm(stored, axis=1)
    cosine = float(np.median(np.einsum("nd,nd->n", again, stored) / lengths))
    if cosine < SAME_MODEL_COSINE:
        raise InvalidDataError(
            f"{path} was not made by the embedder {embedder.name!r} (cosine {cosine:.2f} to its vectors"
            "); name the embedder that made the file, or delete the .npy files to embed again"
        )
