"""The story where there is no browser: one user clicks, and what that changes for whom, over HTTP."""

import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from embedding_studio.demo.subjects import Scene, Subject
from embedding_studio.errors import EmbeddingStudioError

USER = "demo-ada"
OTHER_USER = "demo-bob"
"""As they are named in what is printed; each run has ids of its own, which begin with these."""

SHOWN = 10
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.005

API = "/api/v1"
FEWEST_SCENES = 3

Results = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a click did, and how soon; of the reworded query the clicked object's place, 1 for the top."""

    scene: Scene
    before: Results
    after: Results
    reworded_before: int
    reworded_after: int
    seconds: float

    @property
    def places(self) -> tuple[int, int]:
        """Of what was clicked, before and after."""
        return _place(self.before, self.scene.wished_id), _place(self.after, self.scene.wished_id)


class Demo:
    """Tells the story on an indexed service; raises where what it says would not be true."""

    def __init__(self, client: httpx.Client, console: Console, subject: Subject) -> None:
        """Take what to talk to, where to print, and what it is on.

        Args:
            client: its base URL is the service's; with the admin key where one is set.
        """
        self._client = client
        self._console = console
        self._subject = subject
        run = secrets.token_hex(4)  # so that no other clicks are met, nor forgotten
        self._ids = {name: f"{name}-{run}" for name in (USER, OTHER_USER)}

    def run(self) -> None:
        """Play every scene, show the first whole, say what each click did, and forget who clicked.

        Raises:
            EmbeddingStudioError: the service failed, or did not do what the demo claims.
        """
        self._await_service()
        try:
            self._tell()
        except EmbeddingStudioError:
            with suppress(EmbeddingStudioError):  # what failed first is what to tell
                self._forget()
            raise
        self._forget()

    def _forget(self) -> None:
        for user_id in self._ids.values():
            self._request("DELETE", f"/users/{user_id}")

    def _tell(self) -> None:
        scenes, unrelated = self._subject.scenes, self._subject.unrelated
        unmoved = self._search(unrelated)
        outcomes = [outcome for scene in scenes if (outcome := self._play(scene))]
        if len(outcomes) < FEWEST_SCENES:
            raise EmbeddingStudioError(
                f"only {len(outcomes)} of {len(scenes)} queries leave something to improve; is all of "
                f"{self._subject.title!r} in the collection {self._subject.collection!r}?"
            )
        _claim(
            self._search(unrelated, USER) == unmoved,
            f"what {USER} clicked changes nothing for {unrelated!r}",
        )
        self._show_scene(outcomes[0])
        self._sum_up(outcomes)

    def _play(self, scene: Scene) -> Outcome | None:
        """Search, click, await the effect; None where the wished object is not shown, or is first already."""
        page = self._request(
            "POST", "/embeddings/similarity-search", self._body(scene.query, USER, session=True)
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
            before,
            after,
            _place(reworded_before, scene.wished_id),
            _place(self._search(scene.reworded, USER), scene.wished_id),
            seconds,
        )
        others = self._search(scene.query, OTHER_USER)
        _claim(others == before, f"{USER}'s click changes nothing for {OTHER_USER} and {scene.query!r}")
        was, now = outcome.places
        _claim(0 < now < was, f"the click brings {scene.wished_id} up for {scene.query!r}")
        return outcome

    def _show_scene(self, outcome: Outcome) -> None:
        scene, (was, now) = outcome.scene, outcome.places
        title = f"{self._subject.title}: “{scene.query}”"
        table = _table(title, "", f"before, and what {OTHER_USER} still sees", f"after, for {USER}")
        for place, (old, new) in enumerate(zip(outcome.before, outcome.after, strict=False), start=1):
            table.add_row(
                str(place),
                _named(old, scene.wished_id, " ← click"),
                _named(new, scene.wished_id, f" ({was} → {now})"),
            )
        self._console.print(table)

    def _sum_up(self, outcomes: Sequence[Outcome]) -> None:
        title = f"What {len(outcomes)} clicks did for {USER}, also where the wish is put in other words"
        table = _table(title, "query", "clicked", "place", "effect after")
        for each in outcomes:
            was, now = each.places
            table.add_row(
                each.scene.query, each.scene.wished_id, f"{was} → {now}", f"{1000 * each.seconds:.0f} ms"
            )
            moved = f"{each.reworded_before or 'none'} → {each.reworded_after or 'none'}"
            table.add_row(Text(each.scene.reworded, style="dim"), "", moved, "")
        self._console.print(table)
        self._console.print(
            f"  For {OTHER_USER} nothing changed, nor did it for {USER} and “{self._subject.unrelated}”."
        )

    def _search(self, query: str, user: str | None = None) -> Results:
        page = self._request("POST", "/embeddings/similarity-search", self._body(query, user))
        results: Results = page["search_results"]
        return results

    def _body(self, query: str, user: str | None, *, session: bool = False) -> dict[str, Any]:
        return {
            "search_query": query,
            "collection": self._subject.collection,
            "limit": SHOWN,
            "user_id": None if user is None else self._ids[user],
            "create_session": session,
        }

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
