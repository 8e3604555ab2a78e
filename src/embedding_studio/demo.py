"""The story that ``make demo`` tells: one user clicks, and what that changes for whom, over HTTP."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embedding_studio.errors import EmbeddingStudioError

COLLECTION = "python-documentation"

USER = "demo-ada"
OTHER_USER = "demo-bob"
SHOWN = 10
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.005

API = "/api/v1"
FEWEST_SCENES = 3

Results = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Scene:
    """A query, what somebody who asks it may look for, and the same wish in other words."""

    query: str
    wished_id: str
    reworded: str


SCENES = (
    Scene("run a command and get its output", "subprocess.run", "execute a command and capture its output"),
    Scene("remember the results of a function", "functools.cache", "remember what a function returned"),
    Scene("sort a list of dictionaries by a key", "sorted", "order a list of dictionaries by a key"),
    Scene("make an http request", "httpx.get", "send an http request"),
    Scene("generate a unique id", "uuid.uuid4", "create a unique identifier"),
    Scene("find all files that match a pattern", "pathlib.Path.rglob", "list all files matching a pattern"),
)
"""What is wished stands between the third and the ninth place at the start (Python 3.11, MiniLM)."""

UNRELATED_QUERY = "draw a progress bar in the terminal"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a click did: the clicked object's place before and after, 1 for the top, and how soon."""

    scene: Scene
    before: int
    after: int
    reworded_before: int
    reworded_after: int
    seconds: float


class Demo:
    """Tells the story on an indexed service; raises where what it says would not be true."""

    def __init__(self, client: httpx.Client, console: Console) -> None:
        """Take what to talk to and where to print.

        Args:
            client: its base URL is the service's; with the admin key where one is set.
        """
        self._client = client
        self._console = console

    def run(self) -> None:
        """Play every scene, and say at the end what each click did.

        Raises:
            EmbeddingStudioError: the service failed, or did not do what the demo claims.
        """
        self._await_service()
        for user in (USER, OTHER_USER):  # so that the story is the same each time
            self._request("DELETE", f"/users/{user}")
        unrelated = self._search(UNRELATED_QUERY)
        outcomes = [outcome for scene in SCENES if (outcome := self._play(scene))]
        if len(outcomes) < FEWEST_SCENES:
            raise EmbeddingStudioError(
                f"only {len(outcomes)} of {len(SCENES)} queries leave something to improve; "
                f"is the collection {COLLECTION!r} the documentation of Python?"
            )
        self._show_unrelated(unrelated)
        self._sum_up(outcomes)

    def _play(self, scene: Scene) -> Outcome | None:
        """Search, click, await the effect; None where the wished object is not shown, or is first already."""
        page = self._request(
            "POST", "/embeddings/similarity-search", _search_body(scene.query, USER, session=True)
        )
        before: Results = page["search_results"]
        reworded_before = self._search(scene.reworded, USER)
        if _place(before, scene.wished_id) in {0, 1}:
            return None
        _claim(
            before == self._search(scene.query), f"{USER} starts from what anybody sees for {scene.query!r}"
        )

        clicked_at = time.perf_counter()
        click = {"object_id": scene.wished_id, "event_type": "click"}
        self._request(
            "POST", "/clickstream/session/events", {"session_id": page["session_id"], "events": [click]}
        )
        after = self._await_change(scene.query, before)
        seconds = time.perf_counter() - clicked_at
        outcome = Outcome(
            scene,
            _place(before, scene.wished_id),
            _place(after, scene.wished_id),
            _place(reworded_before, scene.wished_id),
            _place(self._search(scene.reworded, USER), scene.wished_id),
            seconds,
        )

        others = self._search(scene.query, OTHER_USER)
        _claim(others == before, f"{USER}'s click changes nothing for {OTHER_USER} and {scene.query!r}")
        _claim(
            0 < outcome.after < outcome.before, f"the click brings {scene.wished_id} up for {scene.query!r}"
        )
        self._show_scene(outcome, before, after)
        return outcome

    def _show_scene(self, outcome: Outcome, before: Results, after: Results) -> None:
        scene = outcome.scene
        table = _table(f"“{scene.query}”", "", "before", f"after, {USER}", OTHER_USER)
        for place, (was, now) in enumerate(zip(before, after, strict=False), start=1):
            table.add_row(
                str(place),
                _named(was, scene.wished_id, " ← click"),
                _named(now, scene.wished_id, f" ({outcome.before} → {outcome.after})"),
                "same",
            )
        self._console.print(table)
        self._console.print(f"  Click to effect: {1000 * outcome.seconds:.0f} ms.")

    def _show_unrelated(self, before: Results) -> None:
        after = self._search(UNRELATED_QUERY, USER)
        _claim(after == before, f"what {USER} clicked changes nothing for {UNRELATED_QUERY!r}")
        table = _table(f"“{UNRELATED_QUERY}”, which is about something else", "", "before", f"after, {USER}")
        for place, was in enumerate(before, start=1):
            table.add_row(str(place), _named(was), "same")
        self._console.print(table)

    def _sum_up(self, outcomes: Sequence[Outcome]) -> None:
        title = f"What {len(outcomes)} clicks did for {USER}, also where the wish is put in other words"
        table = _table(title, "query", "clicked", "place", "effect after")
        for each in outcomes:
            moved = f"{each.before} → {each.after}"
            table.add_row(each.scene.query, each.scene.wished_id, moved, f"{1000 * each.seconds:.0f} ms")
            moved = f"{each.reworded_before or 'none'} → {each.reworded_after or 'none'}"
            table.add_row(Text(each.scene.reworded, style="dim"), "", moved, "")
        self._console.print(table)

    def _search(self, query: str, user_id: str | None = None) -> Results:
        page = self._request("POST", "/embeddings/similarity-search", _search_body(query, user_id))
        results: Results = page["search_results"]
        return results

    def _await_change(self, query: str, before: Results) -> Results:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (now := self._search(query, USER)) == before:
            if time.monotonic() > deadline:
                raise EmbeddingStudioError(
                    f"the click on a result for {query!r} had no effect in {PATIENCE_SECONDS:.0f} s; "
                    "does a worker run?"
                )
            time.sleep(POLL_SECONDS)
        return now

    def _await_service(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self._client.get("/readyz").raise_for_status()
            except httpx.HTTPError as error:
                if time.monotonic() > deadline:
                    raise EmbeddingStudioError(
                        f"the service at {self._client.base_url} is not ready after "
                        f"{PATIENCE_SECONDS:.0f} s: {error}"
                    ) from error
                time.sleep(POLL_SECONDS)
            else:
                return

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._client.request(method, API + path, json=body)
        except httpx.HTTPError as error:
            raise EmbeddingStudioError(f"{method} {path} failed: {error}") from error
        if not response.is_success:
            raise EmbeddingStudioError(
                f"{method} {path} was answered with {response.status_code}: {response.text[:300]}"
            )
        answer: dict[str, Any] = response.json()
        return answer


def _search_body(query: str, user_id: str | None, *, session: bool = False) -> dict[str, Any]:
    return {
        "search_query": query,
        "collection": COLLECTION,
        "limit": SHOWN,
        "user_id": user_id,
        "create_session": session,
    }


def _place(results: Results, object_id: str) -> int:
    """Return where an object stands, 1 for the top; 0 if it is not shown."""
    return next((place for place, each in enumerate(results, 1) if each["object_id"] == object_id), 0)


def _table(title: str, *columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"\n{title}", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _named(result: dict[str, Any], marked_id: str | None = None, mark: str = "") -> Text:
    name = result["object_id"]
    return Text(name + mark, style="bold green") if name == marked_id else Text(name)


def _claim(holds: bool, what: str) -> None:  # noqa: FBT001, a claim is its truth and its words
    if not holds:
        raise EmbeddingStudioError(f"the demo claims that {what}; that was not so")
