"""Two services and three workers on one database, each a process of its own."""

from collections import Counter
from contextlib import ExitStack, closing

import httpx
import numpy as np
import pytest

from embedding_studio import CatalogueObject, SearchIndexInfo
from embedding_studio.storage.postgres import PostgresStorage
from processes import environment_of, eventually, running, url_in

I, D = 41, 7
USERS = [f"user {n}" for n in range(15)]


def catalogue():
    rng = np.random.default_rng(11)
    return [CatalogueObject(f"o{n}", rng.normal(size=(1, D)).astype(np.float32)) for n in range(I)]


def learnt_by(url):
    """Return how many users a worker has learnt, from its numbers."""
    name = 'embedding_studio_learning_users_total{outcome="learnt"} '
    return next(float(line.removeprefix(name)) for line in httpx.get(url).text.splitlines() if name in line)


@pytest.mark.parametrize("address", ["postgres_url", "pooled_url"])
def test_two_services_and_three_workers_learn_each_user_once_and_both_services_show_it(request, address):
    database_url = request.getfixturevalue(address)
    objects = catalogue()
    with closing(PostgresStorage(database_url)) as storage:
        collection = storage.collections.create("default", SearchIndexInfo(dimensions=D))
        storage.objects.upsert(collection, objects)
    environment = environment_of(database_url) | {"EMBEDDER": "none", "WORKER_METRICS_PORT": "0"}
    query_of = {user_id: objects[n].parts[0].tolist() for n, user_id in enumerate(USERS)}

    with ExitStack() as stack:
        start = stack.enter_context
        lines = [start(running(environment, "serve", "--no-worker", ready="serves on"))[1] for _ in range(2)]
        services = [start(httpx.Client(base_url=f"{url_in(line)}/api/v1", timeout=60)) for line in lines]
        workers = [url_in(start(running(environment, "worker", ready="ready"))[1]) for _ in range(3)]

        def search(service, user_id, **more):
            body = {"search_query": query_of[user_id], "limit": 9, "user_id": user_id} | more
            answer = services[service].post("/embeddings/similarity-search", json=body)
            answer.raise_for_status()
            return answer.json()

        def ids(found):
            return [each["object_id"] for each in found["search_results"]]

        before, sessions = {}, {}
        for number, user_id in enumerate(USERS):
            at = number % 2
            found = search(at, user_id, create_session=True)
            before[user_id], sessions[user_id] = ids(found), found["session_id"]
            clicked = {"session_id": found["session_id"], "events": [{"object_id": ids(found)[4]}]}
            services[at].post("/clickstream/session/events", json=clicked).raise_for_status()

        def orders():
            return Counter(
                services[0].get(f"/improvement/orders/{session_id}").json()["status"]
                for session_id in sessions.values()
            )

        eventually(60, lambda: orders() == {"done": len(USERS)})
        for number, user_id in enumerate(USERS):  # at the other service than the one that was told
            seen = search(1 - number % 2, user_id)
            assert ids(seen).index(before[user_id][4]) < 4
            assert seen["search_results"] == search(number % 2, user_id)["search_results"]
        learnt = [learnt_by(url) for url in workers]

    assert sum(learnt) == len(USERS)
