"""A small collection to evaluate on: topics with their own words, and an embedder that counts words."""

import json
import re
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TOPICS = {
    "panels": ["flutter", "panel", "supersonic", "buckling", "thin"],
    "heat": ["transfer", "laminar", "boundary", "layer", "hypersonic"],
    "wings": ["slender", "lift", "vortex", "delta", "sweep"],
    "shells": ["cylinder", "stress", "pressure", "creep", "stiffener"],
    "jets": ["nozzle", "plume", "thrust", "mixing", "exhaust"],
}
ITEMS_OF_TOPIC = 24


class WordEmbedder:
    """Texts as the sum of their words' random directions: a word shared is a cosine gained."""

    name = "words"
    dimensions = 101

    def embed(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        vectors = np.stack([self._sum(re.findall(r"\w+", text.lower())) for text in texts])
        if progress is not None:
            progress(len(texts))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def split(self, text: str) -> list[str]:
        return [text]

    def _sum(self, words: Sequence[str]) -> NDArray[np.float64]:
        directions = [
            np.random.default_rng(list(sha256(word.encode()).digest()[:8])).normal(size=self.dimensions)
            for word in words or ["nothing"]
        ]
        return np.sum(directions, axis=0)


def write_collection(folder: Path) -> Path:
    """Write a folder in which a query's relevant items share a word that the query does not have.

    Plain search finds a topic's items in no useful order; clicks say which of them matter. An item has two
    sentences, the second of which says nothing.
    """
    rng = np.random.default_rng(11)
    folder.mkdir(parents=True, exist_ok=True)
    items, queries, qrels = [], [], []
    for topic, words in TOPICS.items():
        for number in range(ITEMS_OF_TOPIC):
            kind = "experiment" if number % 3 == 0 else "theory"
            chosen = rng.choice(words, size=3, replace=False)
            noise = f"report{topic}{number} figure{number % 7}"
            items.append({"id": f"{topic}-{number}", "text": f"{topic} {kind} {' '.join(chosen)}. {noise}"})
        for letter, pair in zip("abcd", ((0, 1), (1, 2), (2, 3), (3, 0)), strict=True):
            query_id = f"{topic}-{letter}"
            queries.append(f"{query_id}\t{topic} {words[pair[0]]} {words[pair[1]]}\n")
            for number in range(0, ITEMS_OF_TOPIC, 3):
                text = items[-ITEMS_OF_TOPIC + number]["text"]
                grade = 2 if words[pair[0]] in text and words[pair[1]] in text else 1
                qrels.append(f"{query_id}\t{topic}-{number}\t{grade}\n")
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / "queries.tsv").write_text("".join(queries))
    (folder / "qrels.tsv").write_text("".join(qrels))
    return folder


def write_ratings(folder: Path) -> Path:
    """Write a folder of films in three genres, and ratings by users who each like some of one genre more."""
    rng = np.random.default_rng(12)
    folder.mkdir(parents=True, exist_ok=True)
    genres = ("Comedy", "Horror", "Western")
    films = [
        {
            "id": f"film-{number}",
            "text": f"{genres[number % 3]} film title{number}",
            "genres": [genres[number % 3]],
        }
        for number in range(45)
    ]
    ratings = []
    for user in range(53):
        favourites = [number for number in range(45) if number % 3 == user % 3]
        others = [number for number in range(45) if number % 3 != user % 3]
        liked = [*rng.choice(favourites, size=9, replace=False), *rng.choice(others, size=7, replace=False)]
        rating = {number: rng.choice([4.0, 4.5, 5.0]) for number in liked}
        ratings += [
            f"{user}\tfilm-{number}\t{rating.get(number, 2.5)}\t{1000 + int(at)}\n"
            for number, at in enumerate(rng.permutation(45))
        ]
    (folder / "items.jsonl").write_text("".join(json.dumps(film) + "\n" for film in films))
    (folder / "interactions.tsv").write_text("".join(ratings))
    np.save(folder / "items.npy", WordEmbedder().embed([str(film["text"]) for film in films]))
    return folder
