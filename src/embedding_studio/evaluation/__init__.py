"""Whether learning helps, measured on real relevance judgements with simulated users.

It is the product that is measured: the search, the adjusters and the improver that serve users, on
the in-memory storage unless another is given. docs/does-it-help.md holds the numbers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from embedding_studio.domain.index import MetricAggregationType, MetricType
from embedding_studio.embedders import Embedder
from embedding_studio.errors import InvalidInputError, counted
from embedding_studio.evaluation.clicks import CLICK_MODELS, click_model
from embedding_studio.evaluation.collection_folder import JudgedCollection, Progress, load_collection
from embedding_studio.evaluation.methods import METHODS, PLAIN, methods_by_name
from embedding_studio.evaluation.report import html_report, markdown, table
from embedding_studio.evaluation.run import Evaluation, compare
from embedding_studio.evaluation.taste import has_ratings, load_tastes
from embedding_studio.evaluation.users import SimulatedUser, simulate_users
from embedding_studio.storage.ports import Storage

__all__ = [
    "CLICK_MODELS",
    "METHODS",
    "PLAIN",
    "Evaluation",
    "compare",
    "evaluate",
    "html_report",
    "load_world",
    "markdown",
    "methods_by_name",
    "table",
]


def evaluate(
    folder: Path | str,
    *,
    embedder: Embedder,
    methods: Sequence[str] = ("default",),
    clicks: str = "standard",
    users: int = 200,
    sessions: int = 10,
    others: int = 0,
    seed: int = 0,
    metric: MetricType = MetricType.COSINE,
    aggregation: MetricAggregationType = MetricAggregationType.MIN,
    parts: int | None = None,
    baseline: str = PLAIN,
    open_storage: Callable[[], Storage] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Return how each method does on the collection in a folder, compared with a baseline.

    A folder with relevance judgements is searched by simulated users; one with ratings
    (``interactions.tsv``) by the users who gave them. Equal arguments give equal numbers, but for the
    measured milliseconds.

    Args:
        embedder: embeds paraphrases, and whatever has no vectors in the folder; where it has, the
            model that made them.
        methods: names from ``METHODS``.
        clicks: a name from ``CLICK_MODELS``.
        users: at most so many; ratings may come from fewer.
        sessions: of each user, at least 1.
        others: before the first session, so many other users for each one search for the same wish, once.
        metric, aggregation: how vectors are compared. For dot and euclid items get unequal norms, see
            ``JudgedCollection.compared_by``.
        parts: texts of items are split at sentences into at most so many parts, each of which is embedded;
            None: the vectors in the folder, or else parts as long as the model reads.
        baseline: what methods are compared with: plain search, or a name from ``METHODS``.
        open_storage: called for each method; what it opens is left as it was, and closed.
        progress: called with what is done, how much of it, and how much there is.

    Raises:
        InvalidDataError: the folder cannot be used; the message is one sentence that says why.
        InvalidInputError: a name or number cannot be used.
    """
    opened, _ = methods_by_name(methods), click_model(clicks)
    if baseline not in (PLAIN, *METHODS):
        raise InvalidInputError(
            f"there is no baseline {baseline!r} to compare with; choose from {', '.join((PLAIN, *METHODS))}"
        )
    if others < 0:
        raise InvalidInputError(f"{others} other users are fewer than none; give 0 or more")
    collection, simulated = load_world(
        folder,
        embedder=embedder,
        users=users,
        sessions=sessions,
        seed=seed,
        parts=parts,
        progress=progress,
    )
    return compare(
        collection.compared_by(metric, aggregation, seed=seed),
        simulated,
        opened,
        clicks=clicks,
        others=others,
        seed=seed,
        baseline=baseline,
        open_storage=open_storage,
        progress=progress,
    )


def load_world(
    folder: Path | str,
    *,
    embedder: Embedder,
    users: int,
    sessions: int,
    seed: int,
    parts: int | None = None,
    progress: Progress | None = None,
) -> tuple[JudgedCollection, list[SimulatedUser]]:
    """Return what is in a folder, and users who search it; the arguments are those of ``evaluate``."""
    if users < 1 or sessions < 1:
        raise InvalidInputError(
            f"{counted(users, 'user')} with {counted(sessions, 'session')} each is nothing to "
            "evaluate; give at least 1"
        )
    if parts is not None and parts < 1:
        raise InvalidInputError(f"{parts} parts of an item are none; give at least 1")
    if parts is not None and has_ratings(folder):
        raise InvalidInputError(f"{folder} holds ratings of films, which are not split; leave parts out")
    if has_ratings(folder):
        return load_tastes(
            folder, users=users, sessions=sessions, embedder=embedder, seed=seed, progress=progress
        )
    collection = load_collection(folder, embedder=embedder, seed=seed, most_parts=parts, progress=progress)
    simulated = simulate_users(
        collection, users=users, sessions=sessions, embedder=embedder, seed=seed, progress=progress
    )
    return collection, simulated
