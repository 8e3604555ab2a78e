"""What it costs a search that others' clicks count: plain search and search with sharing, in turns.

    python benchmarks/shared_search.py [--quick] [--json OUT]

100,000 objects of 384 dimensions in clusters, and 10,000 users who asked one of 2,000 queries, the first of
them most often, were shown ten results and clicked one. A user without a past asks what others asked (near),
or something else (far). Quote the ratios: absolute numbers are this machine's.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from embedding_studio import Context, load_settings
from embedding_studio.domain.objects import PersonalState, SeenObject, SharedVote
from embedding_studio.search import SearchService
from loop import COLLECTION, SHOWN, clustered, fill, near

QUERIES = 2_000
USERS_AT_ONCE = 500


def vote(context: Context, rng: np.random.Generator, queries: list[np.ndarray], users: int) -> None:
    """Let each user have clicked one of the ten results of one query, as a fold would have stored it."""
    collection = context.storage.collections.get(COLLECTION)
    chosen = np.minimum(rng.zipf(1.3, size=users) - 1, len(queries) - 1)
    found = {}
    for k in sorted(set(chosen.tolist())):
        shown = context.storage.objects.nearest(collection, queries[k][None], SHOWN)
        found[k] = context.storage.objects.get(collection, [each.object_id for each in shown])
    for start in range(0, users, USERS_AT_ONCE):
        states = {}
        for user in range(start, min(users, start + USERS_AT_ONCE)):
            k = int(chosen[user])
            clicked = int(rng.integers(SHOWN))
            seen = [
                SeenObject(item.object_id, float(slot == clicked), 1 / (slot + 1))
                for slot, item in enumerate(found[k])
            ]
            mean = found[k][clicked].parts[0]
            told = SharedVote(f"query-{k:05}", queries[k], mean, 1_000 * user, tuple(seen))
            states[f"user-{user}"] = PersonalState(votes=(told,))
        with context.storage.personal.learning(collection, list(states)) as transaction:
            transaction.replace_states(states)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="10,000 objects and 1,000 users, to see that it runs"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    objects, users, searches = (10_000, 1_000, 100) if arguments.quick else (100_000, 10_000, 2_000)
    rng = np.random.default_rng(0)
    vectors = clustered(rng, objects)
    queries = [near(rng, vectors[n]) for n in rng.integers(objects, size=QUERIES)]
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(data_dir=Path(folder), embedder="none")
        with Context(settings) as context:
            fill(context, vectors)
            vote(context, rng, queries, users)
            services = {
                "plain": SearchService(context.storage),
                "shared": SearchService(context.storage, shared_min_users=3),
            }
            seconds: dict[str, list[float]] = {
                f"{name} {kind}": [] for kind in ("near", "far") for name in services
            }
            bent = 0
            for turn in range(searches):
                asked = {
                    "near": near(rng, queries[int(min(rng.zipf(1.3) - 1, QUERIES - 1))], 0.02),
                    "far": near(rng, vectors[int(rng.integers(objects))]),
                }
                for kind, query in asked.items():
                    for name, service in list(services.items())[:: 1 if turn % 2 else -1]:
                        started = time.perf_counter()
                        page = service.search(query, collection=COLLECTION, user_id="new")
                        seconds[f"{name} {kind}"].append(time.perf_counter() - started)
                        bent += page.personalised and kind == "near"
    p50 = {name: 1000 * float(np.median(each)) for name, each in seconds.items()}
    result = {
        "objects": objects,
        "users": users,
        "searches": searches,
        "bent": bent / searches,
        "p50_ms": p50,
        "ratio": {kind: p50[f"shared {kind}"] / p50[f"plain {kind}"] for kind in ("near", "far")},
    }
    table = Table("query", "plain p50", "shared p50", "ratio", title=f"{objects:,} objects, {users:,} users")
    for kind in ("near", "far"):
        plain, shared = p50[f"plain {kind}"], p50[f"shared {kind}"]
        table.add_row(kind, f"{plain:.2f} ms", f"{shared:.2f} ms", f"{shared / plain:.2f}")
    Console().print(table, f"{bent / searches:.0%} of the near queries had something shared")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
