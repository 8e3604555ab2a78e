"""A server takes the place of another and lacks what that one had last: nothing read of the first counts."""

import shutil
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from embedding_studio import CatalogueObject, SearchIndexInfo
from embedding_studio.domain.objects import OwnPast
from embedding_studio.storage.embedded.server import EmbeddedServer
from embedding_studio.storage.ports import OutdatedError
from embedding_studio.storage.postgres import PostgresStorage

D = 16
COUNT = 3_100
"""More than are searched without codes."""
QUERY = np.eye(1, D, dtype=np.float32)


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="embedding-studio-lost-") as name:
        Path(name).chmod(0o755)  # as root the server runs as somebody else, who must get in
        yield Path(name)


def copy(source, target):
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["/bin/cp", "-a", source, target], check=True)  # with its owner


def change(url, object_id, parts, weight):
    """Do what takes the same transactions, whatever it writes."""
    with closing(PostgresStorage(url)) as other:
        collection = other.collections.get("default")
        other.objects.upsert(collection, [CatalogueObject(object_id, parts)])
        other.collections.set_own_past("default", OwnPast(repeated_soon=weight))


def test_what_was_read_of_a_server_says_nothing_of_the_one_that_takes_its_place(folder):
    server = EmbeddedServer(folder / "data")
    url = server.start()
    rng = np.random.default_rng(5)
    others = rng.normal(size=(COUNT, 1, D)).astype(np.float32)
    try:
        with closing(PostgresStorage(url)) as storage:
            collection = storage.collections.create("default", SearchIndexInfo(dimensions=D))
            storage.objects.upsert(collection, [CatalogueObject(f"o{n}", v) for n, v in enumerate(others)])
            server.stop()
            copy(folder / "data", folder / "standby")
            server.start()

            change(url, "lost", -QUERY, 0.25)
            seen = storage.collections.get("default")
            first = storage.objects.nearest(seen, QUERY, 1)
            server.stop()
            copy(folder / "standby", folder / "data")
            server.start()
            change(url, "kept", 0.9 * QUERY, 0.75)

            then = storage.objects.nearest(seen, QUERY, 1)
            with pytest.raises(OutdatedError):
                storage.personal.near_memories(seen, None, QUERY[0], 0.75, seen_as="default")
            again = storage.collections.get("default")
    finally:
        server.stop()

    assert first[0].object_id != "kept"
    assert [each.object_id for each in then] == ["kept"]
    assert (seen.own_past, again.own_past) == (OwnPast(repeated_soon=0.25), OwnPast(repeated_soon=0.75))
