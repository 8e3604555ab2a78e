"""Personal taste: many users ask the same, and what is relevant is each one's own.

Films, and ratings by user and time (``interactions.tsv[.gz]``: user, item, rating, seconds, with tabs).
A user searches "<genre> movies" for films that they like, which is a rating of 4 or more; all of them
are equally relevant. Stars are not grades: of the 610 users of MovieLens small 241 never give half a
star, so more stars are as much a habit as a preference. The films of a genre that a user liked are
split by time: the earlier half is what they look for and click, the later half was never clicked.

    same     the favourite genre, the earlier half: finding again
    para     the same in two other wordings
    near     other genres, never searched for
    far      genres with a cosine below 0.25 to everything searched for, where there are any
    unseen   the favourite genre, the later half; nothing tried so far helps here
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedding_studio.embedders import Embedder
from embedding_studio.errors import InvalidDataError
from embedding_studio.evaluation.collection_folder import (
    JudgedCollection,
    JudgedQuery,
    Progress,
    Vectors,
    embed,
    find_file,
    load_vectors,
    read_lines,
)
from embedding_studio.evaluation.users import MAX_HELD_OUT, UNRELATED_COSINE, SimulatedUser

WORDINGS = ("{} movies", "{} films", "a good {} movie to watch")
LIKED_RATING = 4.0
MIN_RATINGS = 50
MIN_LIKED = 6
OTHER_GENRES = 2
SHARE_OF_FAVOURITE = 0.6


@dataclass(frozen=True, slots=True)
class _Liked:
    item_id: str
    at: int


def has_ratings(folder: Path | str) -> bool:
    """Return whether a folder holds ratings rather than relevance judgements."""
    folder = Path(folder)
    return find_file(folder, "interactions.tsv", "interactions.tsv.gz") is not None


def load_tastes(
    folder: Path | str,
    *,
    users: int,
    sessions: int,
    embedder: Embedder,
    seed: int,
    min_ratings: int = MIN_RATINGS,
    progress: Progress | None = None,
) -> tuple[JudgedCollection, list[SimulatedUser]]:
    """Return the films and at most ``users`` users with at least six films of one genre that they like.

    Args:
        min_ratings: films that fewer people rated are left out, since ten results a page say nothing of
            ten thousand films; with 50, MovieLens small leaves 450.

    Raises:
        InvalidDataError: a file is missing or does not say what it should, or no user likes enough.
    """
    folder = Path(folder)
    genres_of = _read_genres(folder)
    liked, rated = _read_ratings(folder)
    rows = {item_id: row for row, item_id in enumerate(genres_of) if rated[item_id] >= min_ratings}
    genres = {item_id: genres_of[item_id] for item_id in rows}
    by_genre = {user: _by_genre(films, genres) for user, films in liked.items()}
    eligible = sorted(
        user for user, films in by_genre.items() if max(map(len, films.values()), default=0) >= MIN_LIKED
    )
    if not eligible:
        raise InvalidDataError(
            f"no user in {folder} likes {MIN_LIKED} films of one genre; tastes cannot be measured"
        )
    path = find_file(folder, "items.f16.npy", "items.npy")
    if path is None:
        raise InvalidDataError(f"{folder} has no items.f16.npy (or items.npy); embed the films first")
    parts = load_vectors(path, rows=len(genres_of))[list(rows.values())][:, None, :]
    asked = _embedded(sorted({genre for some in genres.values() for genre in some}), embedder, progress)
    chosen = np.random.default_rng(seed).permutation(eligible)[:users]
    simulated = [_user(number, by_genre[user], asked, sessions, seed) for number, user in enumerate(chosen)]
    return JudgedCollection(folder.resolve().name, tuple(rows), tuple(parts), ()), simulated


def _user(
    number: int,
    films: Mapping[str, Sequence[_Liked]],
    asked: Mapping[str, Sequence[tuple[str, Vectors]]],
    sessions: int,
    seed: int,
) -> SimulatedUser:
    rng = np.random.default_rng((seed, number))
    favourite = max(sorted(films), key=lambda genre: len(films[genre]))
    others = [str(genre) for genre in rng.permutation(sorted(films.keys() - {favourite}))]
    issued_others, held_out = others[:OTHER_GENRES], others[OTHER_GENRES:]

    def query(genre: str, wording: int = 0, *, later: bool = False) -> JudgedQuery:
        halves = np.array_split(np.arange(len(films[genre])), 2)
        half = [films[genre][row] for row in halves[int(later)]]
        text, vector = asked[genre][wording]
        return JudgedQuery(text, vector, {film.item_id: 1 for film in half})

    genres = [favourite] + [
        favourite if not issued_others or draw < SHARE_OF_FAVOURITE else str(rng.choice(issued_others))
        for draw in rng.random(sessions - 1)
    ]
    issued = tuple(query(genre) for genre in genres)
    past = np.stack([each.vector for each in issued])
    far = [genre for genre in held_out if float((past @ asked[genre][0][1]).max()) < UNRELATED_COSINE]
    near = [genre for genre in held_out if genre not in far]
    slices = {
        "same": (query(favourite),),
        "para": tuple(query(favourite, wording) for wording in range(1, len(WORDINGS))),
        "near": tuple(query(genre) for genre in near[:MAX_HELD_OUT]),
        "far": tuple(query(genre) for genre in far),
        "unseen": (query(favourite, later=True),),
    }
    return SimulatedUser(number, issued, {name: queries for name, queries in slices.items() if queries})


def _embedded(
    genres: Sequence[str], embedder: Embedder, progress: Progress | None
) -> dict[str, list[tuple[str, Vectors]]]:
    texts = [wording.format(genre.lower()) for genre in genres for wording in WORDINGS]
    vectors = embed(texts, "genres", embedder, progress)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    worded = list(zip(texts, vectors, strict=True))
    return {
        genre: worded[row * len(WORDINGS) : (row + 1) * len(WORDINGS)] for row, genre in enumerate(genres)
    }


def _by_genre(films: Mapping[str, _Liked], genres_of: Mapping[str, Sequence[str]]) -> dict[str, list[_Liked]]:
    """Return genre -> liked films by time, of genres with at least two, so that both halves have one."""
    found: dict[str, list[_Liked]] = defaultdict(list)
    for film in sorted(films.values(), key=lambda film: (film.at, film.item_id)):
        for genre in genres_of.get(film.item_id, ()):
            found[genre].append(film)
    return {genre: of_genre for genre, of_genre in found.items() if len(of_genre) > 1}


def _read_genres(folder: Path) -> dict[str, list[str]]:
    genres: dict[str, list[str]] = {}
    for place, line in read_lines(folder, "items.jsonl"):
        try:
            item = json.loads(line)
            genres[str(item["id"])] = [str(genre) for genre in item["genres"]]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InvalidDataError(f'{place} needs "id" and "genres"') from error
    return genres


def _read_ratings(folder: Path) -> tuple[dict[str, dict[str, _Liked]], Counter[str]]:
    """Return user -> item id -> what they liked, and how often each item was rated."""
    liked: dict[str, dict[str, _Liked]] = defaultdict(dict)
    rated: Counter[str] = Counter()
    for place, line in read_lines(folder, "interactions.tsv"):
        try:
            user, item_id, rating, at = line.split("\t")
            rated[item_id] += 1
            if float(rating) >= LIKED_RATING:
                liked[user][item_id] = _Liked(item_id, int(at))
        except ValueError as error:
            raise InvalidDataError(f"{place} needs user, item, rating and seconds, with tabs") from error
    return liked, rated
