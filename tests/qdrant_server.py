"""Qdrant's HTTP, as much of it as is asked, over its own engine in this process: the package qdrant-edge-py.

What a request means is handed on; what is found, and how filters are understood, is the engine's own doing.
"""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qdrant_edge as edge
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from conftest import listening_socket

JSON = dict[str, Any]

DISTANCES = {"Cosine": edge.Distance.Cosine, "Dot": edge.Distance.Dot, "Euclid": edge.Distance.Euclid}


class Server:
    """Collections by name, and what goes wrong on purpose.

    Attributes:
        key: without which nothing is answered.
        answer: that every request gets instead of its own.
        seconds: that every answer takes.
        refused, refused_name: what no point may hold that is written, and what no collection may be called.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: dict[str, edge.EdgeShard] = {}
        self.configured: dict[str, JSON] = {}
        self.requests: list[tuple[str, JSON]] = []
        self.key: str | None = None
        self.answer: tuple[int, JSON] | None = None
        self.seconds = 0.0
        self.refused: str | None = None
        self.refused_name: str | None = None
        self.url = ""

    def create(self, name: str, vectors: JSON) -> None:
        """Make a collection; ``vectors`` as in Qdrant's own request, by name or one without."""
        named = {"": vectors} if "size" in vectors else vectors
        params = {
            key: edge.EdgeVectorParams(size=given["size"], distance=DISTANCES[given["distance"]])
            for key, given in named.items()
            if given["distance"] in DISTANCES
        } or {"": edge.EdgeVectorParams(size=1, distance=edge.Distance.Dot)}  # what it has not, or not here
        (folder := self.folder / name).mkdir()
        self.configured[name] = vectors
        self.shards[name] = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors=params))

    def drop(self, name: str) -> None:
        self.shards.pop(name).close()
        shutil.rmtree(self.folder / name)

    def upsert(self, name: str, points: list[tuple[Any, Any, JSON]]) -> None:
        update = edge.UpdateOperation.upsert_points([edge.Point(*each) for each in points])
        self.shards[name].update(update)

    def delete(self, name: str, ids: list[Any]) -> None:
        self.shards[name].update(edge.UpdateOperation.delete_points(ids))


class Collections:
    """The collections of a server, made as ``test_attached_engines`` makes those of other engines."""

    kind = "Qdrant's collection"

    def __init__(self, server: Server) -> None:
        self.server = server
        self.url = server.url

    def create(self, name: str, metric: str, points: list[tuple[Any, Any, JSON]]) -> str:
        """Make a collection of points, (id, vector, payload) each."""
        distance = {"cosine": "Cosine", "dot": "Dot", "euclid": "Euclid"}[metric]
        self.server.create(name, {"embedding": {"size": len(points[0][1]), "distance": distance}})
        for point in points:
            self.put(name, point)
        return name

    def put(self, name: str, point: tuple[Any, Any, JSON]) -> None:
        k, vector, payload = point
        self.server.upsert(name, [(k, {"embedding": vector}, payload)])

    def delete(self, name: str, k: Any) -> None:
        self.server.delete(name, [k])


def _filter(given: JSON | None) -> Any:
    if given is None:
        return None
    sides: JSON = {side: [_condition(each) for each in given[side]] for side in given}
    return edge.Filter(**sides)


def _condition(given: JSON) -> Any:
    if "key" not in given:
        return _filter(given)
    key = given["key"]
    match given:
        case {"match": {"value": bool()}}:  # which this package takes for 1 and 0, and the server does not
            return edge.Filter(must_not=[edge.IsEmptyCondition(key)])
        case {"match": {"value": value}}:
            return edge.FieldCondition(key, match=edge.MatchValue(value))
        case {"match": {"any": values}}:
            return edge.FieldCondition(key, match=edge.MatchAny(values))
        case {"range": bounds}:
            return edge.FieldCondition(key, range=edge.RangeFloat(**bounds))
        case _:
            raise AssertionError(f"not asked for until now: {given}")


def _point(each: Any, **more: Any) -> JSON:
    vector = each.vector
    if isinstance(vector, dict) and set(vector) == {""}:
        vector = vector[""]
    return {
        "id": each.id if isinstance(each.id, int) else str(each.id),
        "payload": each.payload,
        "vector": vector,
    } | more


def app_of(server: Server) -> FastAPI:  # noqa: C901, one function a route
    app = FastAPI()

    @app.middleware("http")
    async def refuse(request: Request, answer: Any) -> Any:
        await asyncio.sleep(server.seconds)
        if server.answer is not None:
            return JSONResponse(server.answer[1], server.answer[0])
        if server.key is not None and request.headers.get("api-key") != server.key:
            return JSONResponse({"status": {"error": "Invalid API key"}}, 401)
        name = request.url.path.split("/")[2:3]
        is_made = request.method == "PUT" and len(request.url.path.split("/")) == 3
        if name and name[0] not in server.shards and not is_made:
            return JSONResponse({"status": {"error": f"Collection `{name[0]}` doesn't exist!"}}, 404)
        return await answer(request)

    def told(result: Any) -> JSON:
        return {"result": result, "status": "ok", "time": 0.0}

    @app.get("/collections")
    def collections() -> JSON:
        return told({"collections": [{"name": name} for name in server.shards]})

    @app.put("/collections/{name}")
    def create(name: str, body: JSON) -> Any:
        if name == server.refused_name:
            return JSONResponse({"status": {"error": "Validation error in path parameters"}}, 422)
        server.create(name, body["vectors"])
        return told(True)

    @app.delete("/collections/{name}")
    def drop(name: str) -> JSON:
        server.drop(name)
        return told(True)

    @app.put("/collections/{name}/points")
    def put(name: str, body: JSON) -> Any:
        server.requests.append((name, body))
        if server.refused and any(server.refused in str(each) for each in body["points"]):
            return JSONResponse({"status": {"error": f"it holds {server.refused}"}}, 400)
        server.upsert(name, [(each["id"], each["vector"], each["payload"]) for each in body["points"]])
        return told({"status": "completed"})

    @app.post("/collections/{name}/points/delete")
    def delete(name: str, body: JSON) -> JSON:
        server.delete(name, body["points"])
        return told({"status": "completed"})

    @app.get("/collections/{name}")
    def collection(name: str) -> JSON:
        return told({"status": "green", "config": {"params": {"vectors": server.configured[name]}}})

    @app.post("/collections/{name}/points")
    def retrieve(name: str, body: JSON) -> JSON:
        found = server.shards[name].retrieve(body["ids"], body["with_payload"], body["with_vector"])
        return told([_point(each) for each in found])

    @app.post("/collections/{name}/points/count")
    def count(name: str, body: JSON) -> JSON:
        return told({"count": server.shards[name].count(edge.CountRequest(exact=body["exact"]))})

    @app.post("/collections/{name}/points/scroll")
    def scroll(name: str, body: JSON) -> JSON:
        found, following = server.shards[name].scroll(
            edge.ScrollRequest(
                offset=body.get("offset"),
                limit=body["limit"],
                filter=_filter(body.get("filter")),
                with_payload=body["with_payload"],
                with_vector=body["with_vector"],
            )
        )
        following = following if following is None or isinstance(following, int) else str(following)
        return told({"points": [_point(each) for each in found], "next_page_offset": following})

    @app.post("/collections/{name}/points/query")
    def query(name: str, body: JSON) -> JSON:
        server.requests.append((name, body))
        found = server.shards[name].query(
            edge.QueryRequest(
                limit=body["limit"],
                query=edge.Query.Nearest(body["query"], using=body.get("using")),
                with_vector=body["with_vector"],
                with_payload=body["with_payload"],
                filter=_filter(body.get("filter")),
                params=edge.SearchParams(**body["params"]),
            )
        )
        return told({"points": [_point(each, score=each.score) for each in found]})

    return app


@contextmanager
def qdrant(folder: Path) -> Iterator[Server]:
    """Serve an empty Qdrant as long as the block runs."""
    server = Server(folder)
    listening = listening_socket()
    running = uvicorn.Server(uvicorn.Config(app_of(server), log_level="warning"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    server.url = "http://{}:{}".format(*listening.getsockname())
    try:
        yield server
    finally:
        running.should_exit = True
        thread.join()
        for shard in server.shards.values():
            shard.close()
