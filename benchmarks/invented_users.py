"""What invented users can do where clicks are shared: how far they bring an object that no user wants.

    python benchmarks/invented_users.py FOLDER [--json OUT]

FOLDER is one of a collection with judgements, as `embedding-studio evaluate` takes it. 100 of its queries are
asked, each by so many honest users, who look at a result with probability 1 / position and click what is
relevant. Then so many invented users register the query with a list in which the object at place 30 stands
where it stood, and click it. Reported is where that object then stands for somebody new, and how much nDCG@10
gained over plain search. Invented users can be had where a key lets its holder name any user; a key that asks
for user tokens does not.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from embedding_studio import Context, load_settings
from embedding_studio.domain.objects import CatalogueObject, Collection
from embedding_studio.domain.sessions import RecordedSession, SearchResultItem, Session, SessionEvent
from embedding_studio.embeddings.improvement.passive_aggressive_adjuster import PassiveAggressiveAdjuster
from embedding_studio.evaluation.clicks import click_draws, click_model
from embedding_studio.evaluation.collection_folder import JudgedCollection, JudgedQuery, load_collection
from embedding_studio.evaluation.metrics import ndcg_at_10
from embedding_studio.feedback.improve import Improver
from embedding_studio.search import SearchService
from embedding_studio.storage.memory import MemoryStorage

QUERIES = 100
HONEST = (0, 3, 10, 30)
INVENTED = (0, 3, 10, 30)
MIN_USERS = (3, 10)
PLACE = 30
WEEK = 7 * 86_400


class World:
    """A collection, the queries that are asked of it, and who clicked what for them."""

    def __init__(self, judged: JudgedCollection, seed: int) -> None:
        self.judged = judged
        self.queries = judged.queries[:QUERIES]
        self.seed = seed
        self.storage = MemoryStorage()
        self.collection: Collection = self.storage.collections.create("default", judged.index)
        self.storage.objects.upsert(
            self.collection,
            [CatalogueObject(*item) for item in zip(judged.item_ids, judged.parts, strict=True)],
        )
        self.plain = [self._found(SearchService(self.storage), query) for query in self.queries]

    def _found(self, service: SearchService, query: JudgedQuery) -> list[str]:
        return [each.object_id for each in service.search(query.vector, user_id="new", limit=1_000).results]

    def honest(self, users: int) -> None:
        """Let so many users ask each query, over a week, and click as in ``standard``."""
        model = click_model("standard")
        for number, query in enumerate(self.queries):
            shown = self.plain[number][:10]
            for user in range(users):
                draws = click_draws(self.seed, user, number, len(shown))
                clicked = model.clicked(
                    shown, query.grades, highest_grade=self.judged.highest_grade, draws=draws
                )
                self._record(f"honest-{user}-{number}", number, shown, clicked, WEEK * user // users)

    def invent(self, users: range) -> None:
        """Let invented users of these numbers ask each query and click what stands at place 30."""
        for number, found in enumerate(self.plain):
            for user in users:
                self._record(
                    f"invented-{user}-{number}", number, found[:PLACE], [found[PLACE - 1]], WEEK + user
                )

    def _record(self, user_id: str, number: int, shown: list[str], clicked: list[str], at: int) -> None:
        query = self.queries[number]
        session = Session(
            session_id=user_id,
            user_id=user_id,
            search_query=query.text,
            created_at=at,
            search_results=tuple(SearchResultItem(object_id=each) for each in shown),
            events=tuple(
                SessionEvent(session_id=user_id, object_id=each, created_at=at + 1) for each in clicked
            ),
        )
        self.storage.clickstream.record([RecordedSession(session, query.vector[None])])

    def learn(self) -> None:
        improver = Improver(self.storage, PassiveAggressiveAdjuster, is_shared=True)
        while improver.improve_once(users=100).users:
            pass

    def measured(self, min_users: int) -> dict[str, float]:
        """Return where the object of place 30 stands now, and nDCG@10 less that of plain search."""
        shared = SearchService(self.storage, shared_min_users=min_users)
        found = [self._found(shared, query) for query in self.queries]
        places = [after.index(before[PLACE - 1]) + 1 for before, after in zip(self.plain, found, strict=True)]
        grades = [query.grades for query in self.queries]
        gain = ndcg_at_10(found, grades) - ndcg_at_10(self.plain, grades)
        return {
            "median_place": float(np.median(places)),
            "in_first_10": float(np.mean(np.array(places) <= 10)),
            "in_first_3": float(np.mean(np.array(places) <= 3)),
            "ndcg_gain": float(gain.mean()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with Context(load_settings()) as context:
        if context.embedder is None:
            parser.error("the collection's vectors are checked with an embedder; set EMBEDDER")
        judged = load_collection(arguments.folder, embedder=context.embedder, seed=arguments.seed)
    rows = []
    for honest in HONEST:
        world = World(judged, arguments.seed)
        world.honest(honest)
        so_far = 0
        for invented in INVENTED:
            world.invent(range(so_far, invented))
            world.learn()
            so_far = invented
            rows += [
                {"min_users": min_users, "honest": honest, "invented": invented, **world.measured(min_users)}
                for min_users in MIN_USERS
            ]
    rows.sort(key=lambda row: (row["min_users"], row["honest"]))
    table = Table(
        "SHARED_MIN_USERS",
        "honest users",
        "invented",
        "median place",
        "in first 10",
        "in first 3",
        "nDCG@10",
        title=f"{judged.name}: an object at place {PLACE}, for somebody new",
    )
    for row in rows:
        table.add_row(
            str(row["min_users"]),
            str(row["honest"]),
            str(row["invented"]),
            f"{row['median_place']:.0f}",
            f"{row['in_first_10']:.0%}",
            f"{row['in_first_3']:.0%}",
            f"{row['ndcg_gain']:+.3f}",
        )
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
