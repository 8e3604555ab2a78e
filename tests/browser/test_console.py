"""The console, as a person uses it: what each view does, and says where there is nothing or a failure."""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from browser.conftest import Service, axe_findings, keep_screenshot, meanwhile
from conftest import new_database
from embedding_studio.api.static import PAGES
from embedding_studio.bootstrap import Context
from embedding_studio.catalogue import CatalogueText
from embedding_studio.embedders import Embedder
from embedding_studio.settings import Settings

SHOP = [
    ("parka", "Winter parka with fur hood", "A warm parka for the coldest days", "Coats", 189),
    ("anorak", "Light anorak", "Keeps wind and rain out on the hill; packs into its own pocket", "Coats", 79),
    ("wool-coat", "Long wool coat", "A long coat of heavy wool for cold days in the city", "Coats", 240),
    ("raincoat", "Yellow raincoat", "A raincoat that keeps you dry in any downpour", "Coats", 95),
    ("down-jacket", "Down jacket", "A very light jacket, warm to minus ten", "Coats", 210),
    ("dog-coat", "Coat for dogs", "A warm waterproof coat for medium dogs", "Pets", 35),
    ("sweater", "Merino sweater", "A thick knitted sweater of merino wool", "Knitwear", 85),
    ("scarf", "Scarf and mittens", "A soft scarf with matching mittens of lambswool", "Knitwear", 40),
    ("boots", "Insulated boots", "Boots for snow and ice with a thick rubber sole", "Shoes", 140),
    ("sandals", "Leather sandals", "Sandals for the beach and hot days", "Shoes", 55),
    ("slippers", "Felt slippers", "Warm slippers of grey felt for the house", "Shoes", 30),
    ("blanket", "Wool blanket", "A heavy blanket that keeps you warm on the sofa", "Home", 110),
    ("kettle", "Electric kettle", "Boils a litre of water in three minutes", "Home", 39),
    ("teapot", "Stoneware teapot", "Keeps tea warm for an hour", "Home", 34),
    ("sleeping-bag", "Sleeping bag", "A warm sleeping bag for nights near freezing", "Outdoor", 130),
    ("umbrella", "Storm umbrella", "Does not turn inside out in wind", "Outdoor", 32),
]
COLD = "something for a cold house"
PHONE = {"viewport": {"width": 390, "height": 844}}
WIDE = {"viewport": {"width": 1280, "height": 800}}
KEY = "a-key-of-this-test-that-is-long-enough"
BLANK = "<!doctype html><html lang=en><title>t</title><link rel=icon href=data:,>"
WORDS_OF_LOADING = "Failed to load resource"


@pytest.fixture(scope="module")
def catalogue_url(postgres_server: str, embedder: Embedder) -> Iterator[str]:
    """Return the URL of a database with ``SHOP`` in its one collection."""
    with new_database(postgres_server) as url:
        with Context(Settings(_env_file=None, database_url=url), embedder=embedder) as context:
            objects = [
                CatalogueText(
                    object_id,
                    f"{title}. {told}",
                    {"title": title, "description": told, "category": category, "price": price},
                )
                for object_id, title, told, category, price in SHOP
            ]
            context.index_objects("shop", objects)
        yield url


class Shop:
    """A service over the shop, and what a site would send to it."""

    def __init__(self, service: Service, api: httpx.Client) -> None:
        self.service = service
        self.api = api

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.api.request(method, path, json=body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def searched(self, user: str | None, query: str, *clicked: str) -> str:
        """Let a user search and click, wait until that is learnt, and return the session's id."""
        body = {"collection": "shop", "search_query": query, "user_id": user, "create_session": True}
        session_id: str = self.ask("POST", "/embeddings/similarity-search", body)["session_id"]
        if clicked:
            events = [{"object_id": each} for each in clicked]
            self.ask("POST", "/clickstream/session/events", {"session_id": session_id, "events": events})
            self.await_learnt(session_id)
        return session_id

    def await_learnt(self, session_id: str) -> None:
        deadline = time.monotonic() + 60
        while self.ask("GET", f"/improvement/orders/{session_id}")["status"] in {"pending", "processing"}:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def at(self, view: str, **query: str) -> str:
        return str(httpx.URL(f"{self.service.url}/console")) + f"#/{view}?{httpx.QueryParams(query)}"


@pytest.fixture
def shop(service: Service) -> Iterator[Shop]:
    with httpx.Client(base_url=f"{service.url}/api/v1", timeout=30) as api:
        yield Shop(service, api)


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page(**WIDE)


def expected(troubles: list[str], *words: str) -> None:
    """Let go of what a test meant to happen; anything else is still in ``troubles``."""
    troubles[:] = [each for each in troubles if not any(word in each for word in words)]


def names(page: Page, region: str) -> list[str]:
    """Return the names of the results in a list, without the marks of what moved."""
    found = page.get_by_role("region", name=region, exact=True).locator(".name")
    return [each.split("▲")[0].split("▼")[0].strip() for each in found.all_inner_texts()]


def result(page: Page, region: str, name: str) -> Locator:
    of_name = page.locator("li", has=page.locator(".name", has_text=name))
    return page.get_by_role("region", name=region, exact=True).locator(of_name)


# Search


def test_a_click_moves_results_for_its_user_alone_and_can_be_taken_back(shop, page):
    page.goto(shop.at("search", collection="shop"))
    page.get_by_label("What is searched for").fill(COLD)
    page.get_by_label("As user").fill("ada")
    page.get_by_role("button", name="Search").click()
    page.get_by_text("they see what everybody sees").wait_for()
    before = names(page, "For everybody")
    assert names(page, "For ada") == before
    assert before[0] != "Felt slippers"

    page.get_by_role("button", name="Click Felt slippers as ada").click()

    changed = page.get_by_role("region", name="What changed")
    expect(changed).to_contain_text("Learnt in")
    expect(changed).to_contain_text("Felt slippers")
    expect(changed).to_contain_text("What a new user sees has not changed")
    slippers = result(page, "For ada", "Felt slippers")
    expect(slippers).to_contain_text(f"ada clicked this for “{COLD}”.")
    assert names(page, "For ada")[0] == "Felt slippers"
    assert names(page, "For everybody") == before
    expect(slippers).to_contain_text(f"▲ {before.index('Felt slippers')}")
    keep_screenshot(page, "console-search", full_page=False)

    page.get_by_role("button", name="Take back the click on Felt slippers").click()

    expect(changed).to_contain_text("was taken back. Unlearnt in")
    expect(changed).not_to_contain_text("Nothing was learnt")
    page.get_by_text("they see what everybody sees").wait_for()
    assert names(page, "For ada") == before


def test_where_clicks_are_shared_each_page_says_whose_count(serve, page):
    service = serve(shared_min_users=2)
    with httpx.Client(base_url=f"{service.url}/api/v1", timeout=30) as api:
        shop = Shop(service, api)
        shop.searched("m1", COLD, "slippers")
        page.goto(shop.at("search", collection="shop", q=COLD, user="m2"))
        page.get_by_role("button", name="Click Felt slippers as m2").click()

        changed = page.get_by_role("region", name="What changed")
        expect(changed).to_contain_text("What a new user sees has changed too")
        expect(page.get_by_role("region", name="For everybody")).to_contain_text(
            "clicks of others count in it"
        )
        expect(page.get_by_role("region", name="For m2")).to_contain_text(
            "Their past clicks bear on this query."
        )
        page.goto(shop.at("search", collection="shop", q=COLD, user="m3"))
        expect(page.get_by_role("region", name="For m3")).to_contain_text("No past click of theirs bears")


def test_a_click_that_is_learnt_late_can_be_taken_back_meanwhile(shop, page):
    asking = (PAGES / "console" / "asking.js").read_text()
    page.route(
        "**/console/asking.js",
        lambda route: route.fulfill(
            body=asking.replace("SECONDS_TO_LEARN = 30", "SECONDS_TO_LEARN = 0.5"),
            content_type="text/javascript",
        ),
    )
    page.route("**/improvement/orders/*", lambda route: route.fulfill(json={"status": "pending"}))
    page.goto(shop.at("search", collection="shop", q=COLD, user="ada"))
    page.get_by_role("button", name="Click Felt slippers as ada").click()
    changed = page.get_by_role("region", name="What changed")
    expect(changed).to_contain_text("It is not learnt yet")
    expect(changed).not_to_contain_text("What a new user sees")

    page.get_by_role("button", name="Take back the click that waits").click()
    expect(changed).to_contain_text("It is not unlearnt yet")
    page.unroute("**/improvement/orders/*")

    expect(changed).to_contain_text("Unlearnt in")
    expect(changed).to_contain_text("What a new user sees has not changed")
    expect(result(page, "For ada", "Felt slippers")).not_to_contain_text("ada clicked this")


def test_clicks_that_wait_are_told_and_one_in_quarantine_is_not_asked_for_any(shop, page):
    shop.searched("ada", COLD, "slippers")

    def wait(route: Route) -> None:
        told = route.fetch().json()
        for each in told["sessions"]:
            each["order"] = {"status": "pending"}
        route.fulfill(json=told)

    page.route("**/clickstream/sessions?*", wait)
    for view in ("search", "users/ada"):
        page.goto(shop.at(view, collection="shop", q=COLD, user="ada"))
        expect(page.locator("main")).to_contain_text("to be learnt")
        expect(page.locator("main")).to_contain_text("1 click")
    page.unroute("**/clickstream/sessions?*")
    shop.ask("PUT", "/quarantine/eve", {"reason": "a robot"})

    page.goto(shop.at("search", collection="shop", q=COLD, user="eve"))
    expect(page.get_by_role("region", name="What changed")).to_contain_text("eve is in quarantine")
    assert page.get_by_role("button", name="Click ").count() == 0
    page.goto(shop.at("users/eve", collection="shop"))
    page.get_by_text("Nothing is learnt from them").wait_for()
    assert page.get_by_text("Click a result for them").count() == 0


def test_a_result_that_nobody_clicked_says_what_it_is_like(shop, page):
    shop.searched("ada", COLD, "slippers")
    page.goto(shop.at("search", collection="shop", q=COLD, user="ada"))
    page.get_by_role("region", name="For ada").wait_for()

    reasons = page.get_by_role("region", name="For ada").locator(".why").all_inner_texts()

    assert f"It is like “Felt slippers”, which ada clicked for “{COLD}”." in reasons
    assert "Overtaken by what is more like “Felt slippers”." in reasons


def test_filters_are_made_without_a_query_language(shop, page):
    page.goto(shop.at("search", collection="shop", q="warm"))
    page.get_by_role("button", name="+ Filter").click()
    for field, condition, value, found in (
        ("category", "is", "Shoes", {"Felt slippers", "Insulated boots", "Leather sandals"}),
        ("price", "is at most", "32", {"Felt slippers", "Storm umbrella"}),
        ("title", "contains the words", "wool coat", {"Long wool coat"}),
        ("price", "is at least", "1000", set()),
    ):
        page.get_by_label("Field").fill(field)
        page.get_by_label("Condition").select_option(condition)
        page.get_by_label("Value").fill(value)
        page.get_by_role("button", name="Search").click()

        if found:
            expect(page.locator(".name")).to_have_count(len(found))
        else:
            page.get_by_text("No object passes the filters").wait_for()
        assert set(names(page, "For everybody")) == found
        page.reload()  # the address has it all
        expect(page.get_by_label("Value")).to_have_value(value)


def test_a_service_that_is_away_is_told_and_asked_again(shop, page, troubles):
    page.goto(shop.at("search", collection="shop"))
    page.get_by_label("What is searched for").fill("tea")
    shop.service.stop()
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("alert").first).to_contain_text("The service cannot be reached.")

    shop.service.start()
    page.get_by_role("button", name="Try again").first.click()

    expect(page.locator(".name").first).to_contain_text("teapot")
    expected(troubles, WORDS_OF_LOADING, "ERR_")


def test_what_the_service_says_of_a_wrong_query_is_shown_with_its_request_id(shop, page, troubles):
    page.goto(shop.at("search", collection="no-such"))
    page.get_by_label("What is searched for").fill("tea")
    page.get_by_role("button", name="Search").click()

    alert = page.get_by_role("alert").first

    expect(alert).to_contain_text("Collection not found")
    expect(alert).to_contain_text("no-such")
    expect(alert).to_contain_text("Request id")
    expected(troubles, WORDS_OF_LOADING)


def test_without_a_collection_each_view_says_how_to_begin(postgres_server, serve, page):
    with new_database(postgres_server) as url:
        service = serve(database_url=url)
        for view, told in {
            "search": "There is nothing to search yet",
            "sessions": "No session is recorded here yet",
            "users": "Nobody has searched here yet",
            "collections": "There is no collection yet",
        }.items():
            page.goto(f"{service.url}/console#/{view}")

            page.get_by_text(told).wait_for()
            assert not axe_findings(page)
        page.goto("about:blank")  # or it goes on asking
        service.stop()
        service.context.close()


@dataclass(frozen=True)
class Reason:
    """Why a result stands where it does, and how that is told."""

    told: str
    moved: int = 1
    influences: tuple[tuple[str, str, float], ...] = ()
    shared: dict[str, float] | None = None

    def explanation(self) -> dict[str, Any]:
        influences = [
            {"search_query": query, "clicked_ids": [clicked], "distance_change": change}
            for query, clicked, change in self.influences
        ]
        return {"influences": influences, "shared": self.shared}


LIKE_B = "It is like “Z”, which ada clicked for “b”."
REASONS = (
    Reason("ada clicked this for “a”.", 3, (("a", "x", -0.2),)),
    Reason("ada clicked this for “a” and “b”.", 0, (("a", "x", -0.2), ("b", "x", -0.1))),
    Reason(
        "ada clicked this for “a”, “b” and 2 more.",
        3,
        tuple((query, "x", -0.1) for query in ("a", "b", "c", "d")),
    ),
    Reason(LIKE_B, 1, (("a", "y", -0.1), ("b", "z", -0.3))),
    Reason("Overtaken by what is more like “Y”.", -2, (("a", "y", -0.1),)),
    Reason("", 0, (("a", "y", -0.1),)),
    Reason("", 1, (("a", "y", 0.1),)),
    Reason("Others clicked this (7 asked alike).", 1, (), {"users": 7, "factor": 0.9}),
    Reason("It is like what others clicked (7 asked alike).", 1, (), {"users": 7, "factor": 1}),
    Reason("", 0),
)


def test_why_is_a_sentence(site, page):
    url = site({"index.html": BLANK, "sentences.js": (PAGES / "console" / "sentences.js").read_text()})
    page.goto(url)
    for reason in REASONS:
        told = page.evaluate(
            """async ([explanation, moved]) => {
                const { why } = await import("/sentences.js");
                return why({ object_id: "x", explanation }, moved, "ada", (id) => id.toUpperCase());
            }""",
            [reason.explanation(), reason.moved],
        )

        assert told == reason.told


@pytest.mark.parametrize(
    ("payload", "name", "below"),
    [
        ({"title": "Lamp", "a": "b", "summary": "Told"}, "Lamp", "Told"),
        ({"Tags": "a;b", "Title": "Lamp", "Body": "Told"}, "Lamp", "Told"),
        ({"product_brand": "Acme", "product_title": "Lamp"}, "Lamp", "x1"),
        ({"bezeichnung": "Stehlampe", "bild": "https://shop.example/1.jpg"}, "Stehlampe", "x1"),
        ({"text": "Told", "nummer": "4711-9", "bezeichnung": "Stehlampe"}, "Stehlampe", "Told"),
        ({"beschreibung": "lang " * 30}, "x1", ""),
        ({"preis": 3}, "x1", ""),
        (None, "x1", ""),
    ],
)
def test_an_object_is_called_by_its_title_or_first_short_text(service, page, payload, name, below):
    page.goto(f"{service.url}/console#/collections")
    told = page.evaluate(
        """async (payload) => {
            const { nameOf, belowName } = await import("./console/parts.js");
            return [nameOf(payload, "x1"), belowName(payload, "x1")];
        }""",
        payload,
    )

    assert told == [name, below]
    settled(page)


# The key


def test_a_key_is_asked_for_kept_in_the_tab_and_forgotten(serve, page, troubles):
    service = serve(admin_api_key=KEY)
    page.goto(f"{service.url}/console#/health")
    page.get_by_role("heading", name="This service asks for a key").wait_for()
    assert not axe_findings(page)

    page.get_by_label("Key").fill("of-another-door")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="The service does not know this key").wait_for()
    page.get_by_label("Key").fill(KEY)
    page.keyboard.press("Enter")

    page.get_by_role("heading", name="What the doctor finds").wait_for()
    expect(page.get_by_role("region").or_(page.locator(".findings"))).to_contain_text("ADMIN_API_KEY")
    assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [
        [KEY],
        0,
        "",
    ]
    page.get_by_role("button", name="Forget key").click()
    page.get_by_role("heading", name="This service asks for a key").wait_for()
    assert page.evaluate("sessionStorage.length") == 0
    expected(troubles, WORDS_OF_LOADING)


# Sessions


def test_sessions_come_live_with_what_became_of_each(shop, page):
    shop.searched("eve", "tea")
    shop.searched(None, "rain", "umbrella")
    page.goto(shop.at("sessions", collection="shop"))
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.filter(has_text="tea")).to_contain_text("no click")
    expect(rows.filter(has_text="rain")).to_contain_text("there is no user whose results could change")

    time.sleep(1.1)  # a second is what sessions are ordered by
    shop.searched("ada", COLD, "slippers")

    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text(COLD)
    expect(rows.first).to_contain_text("learnt")
    keep_screenshot(page, "console-sessions")
    page.get_by_label("Only of this user").fill("eve")
    page.get_by_role("button", name="Show").click()
    expect(rows).to_have_count(1)
    page.get_by_label("Only of this user").fill("nobody")
    page.get_by_role("button", name="Show").click()
    page.get_by_text("nobody has no sessions here").wait_for()


def test_earlier_sessions_are_a_press_away(shop, page):
    for number in range(32):
        shop.ask(
            "POST",
            "/clickstream/session",
            {"session_id": f"s{number}", "collection": "shop", "user_id": "ada"},
        )
    page.goto(shop.at("sessions", collection="shop"))
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(30)

    page.get_by_role("button", name="Earlier sessions").click()

    expect(rows).to_have_count(32)
    expect(page.get_by_role("button", name="Earlier sessions")).to_have_count(0)


def test_a_session_shows_what_was_clicked_and_what_can_be_done(shop, page, troubles):
    session = shop.searched("ada", COLD, "slippers")
    page.goto(shop.at("sessions", collection="shop"))
    page.get_by_role("link", name=COLD).click()
    page.get_by_role("heading", name=f"“{COLD}”").wait_for()
    slippers = page.locator(".results li", has_text="Felt slippers")
    expect(slippers).to_contain_text("clicked at")
    keep_screenshot(page, "console-session")

    page.get_by_role("button", name="Take back what was done with Felt slippers").click()
    expect(slippers).to_contain_text("taken back at")
    expect(page.locator(".panel .badge")).to_have_text("taken back")
    with page.expect_response(lambda answer: "/retry" in answer.url):
        page.get_by_role("button", name="Learn from it again").click()
    shop.await_learnt(session)
    page.get_by_role("button", name="Cancel learning").click()
    expect(page.get_by_role("button", name="Learn from it again")).to_have_count(0)
    expect(page.locator(".panel .badge")).to_have_text("taken back")
    page.get_by_role("button", name="Mark irrelevant").click()
    page.get_by_role("dialog").get_by_role("button", name="Mark irrelevant").click()
    expect(page.locator(".panel")).to_contain_text("Marked irrelevant")
    page.get_by_role("button", name="Quarantine ada").click()
    with page.expect_request_finished(lambda asked: f"/orders/{session}" in asked.url):  # again, after it
        page.get_by_role("dialog").get_by_role("button", name="Quarantine ada").click()
    expect(page.get_by_role("dialog")).to_have_count(0)

    assert shop.ask("GET", f"/clickstream/session?session_id={session}")["is_irrelevant"]
    assert [each["user_id"] for each in shop.ask("GET", "/quarantine")["users"]] == ["ada"]
    expected(troubles, "404")  # it has no order any more


def test_a_session_that_is_not_there_is_told(shop, page, troubles):
    page.goto(shop.at("sessions/no-such", collection="shop"))

    expect(page.get_by_role("alert")).to_contain_text("Session not found")
    expected(troubles, WORDS_OF_LOADING)


# Users


def test_a_user_is_shown_with_what_was_learnt_which_can_be_undone(shop, page):
    shop.searched("ada", COLD, "slippers")
    shop.searched("ada", "rain", "umbrella")
    page.goto(shop.at("users", collection="shop"))
    page.get_by_role("link", name="ada").click()
    expect(page.locator(".lead").first).to_contain_text("ada is remembered by 2 past queries with a click")
    moved = page.locator(".bars tbody tr")
    expect(moved.first).to_contain_text("°")
    drawn = page.get_by_role("img", name="Map of ada's queries")
    expect(drawn.locator("g.query")).to_have_count(2)
    expect(drawn.locator("g.moved")).to_have_count(moved.count())
    keep_screenshot(page, "console-user")

    page.get_by_role("button", name="Take back the click on Storm umbrella for rain").click()

    expect(page.locator(".lead").first).to_contain_text("1 past query")
    expect(drawn.locator("g.query")).to_have_count(1)


def test_a_user_is_quarantined_released_exported_and_forgotten(shop, page):
    shop.searched("ada", COLD, "slippers")
    page.goto(shop.at("users/ada", collection="shop"))

    page.get_by_role("button", name="Quarantine").click()
    page.get_by_role("dialog").get_by_role("button", name="Quarantine").click()
    expect(page.locator(".notice")).to_contain_text("Nothing is learnt from them")
    page.get_by_role("button", name="Release from quarantine").click()
    expect(page.locator(".notice")).to_have_count(0)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all that is kept").click()
    lines = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert {line["kind"] for line in lines} >= {"session", "order"}
    assert download.value.suggested_filename == "ada.ndjson"

    page.get_by_role("button", name="Forget").click()
    forget = page.get_by_role("dialog").get_by_role("button", name="Forget")
    expect(forget).to_be_disabled()
    page.get_by_label("Type ada to confirm").fill("ada")
    expect(page.get_by_role("dialog")).to_contain_text("they see what a new user sees")
    forget.click()

    page.get_by_text("ada is forgotten").wait_for()
    expect(page.locator(".lead")).to_contain_text("clicks and other events 1, ")
    expect(page.locator("main")).to_contain_text("backups written before")
    assert not axe_findings(page)
    page.get_by_role("link", name="All users").click()
    page.get_by_text("Nobody has searched here yet").wait_for()
    assert shop.ask("GET", "/clickstream/sessions?user_id=ada")["sessions"] == []


@pytest.mark.parametrize("dots", [".", "..", "%2E%2e"])
def test_what_has_dots_for_a_name_is_shown_and_removed_as_all_else(shop, page, dots):
    """A browser takes ``.`` and ``..`` in a path, encoded or not, for ways to other folders."""
    body = {"search_query": COLD, "user_id": dots, "create_session": True, "session_id": dots}
    shop.ask("POST", "/embeddings/similarity-search", body | {"collection": "shop"})
    clicked = {"session_id": dots, "events": [{"object_id": "slippers"}]}
    shop.ask("POST", "/clickstream/session/events", clicked)
    shop.ask("POST", "/collections", {"name": dots, "index": {"dimensions": 3}})
    meanwhile(page, lambda: shop.ask("GET", "/improvement/summary")["orders"]["done"] == 1)

    page.goto(shop.at("sessions", collection="shop"))
    page.get_by_role("link", name=COLD).click()
    with page.expect_response(lambda answer: "/retry" in answer.url) as retried:
        page.get_by_role("button", name="Learn from it again").click()
    assert retried.value.ok
    page.goto(shop.at("users", collection="shop"))
    page.get_by_role("link", name=dots, exact=True).click()
    expect(page.locator(".lead").first).to_contain_text(f"{dots} is remembered by 1 past query")
    page.get_by_role("button", name="Forget").click()
    page.get_by_label(f"Type {dots} to confirm").fill(dots)
    page.get_by_role("dialog").get_by_role("button", name="Forget").click()
    page.get_by_text(f"{dots} is forgotten").wait_for()
    page.goto(shop.at("collections"))
    page.get_by_role("link", name=dots, exact=True).click()
    page.get_by_role("button", name="Drop collection").click()
    page.get_by_label(f"Type {dots} to confirm").fill(dots)
    page.get_by_role("dialog").get_by_role("button", name="Drop collection").click()
    page.get_by_role("heading", name="Collections").wait_for()

    assert shop.ask("GET", "/clickstream/sessions")["sessions"] == []
    assert [each["name"] for each in shop.ask("GET", "/collections")["collections"]] == ["shop"]


def test_a_user_of_whom_nothing_is_known_is_told_so(shop, page):
    page.goto(shop.at("users", collection="shop"))
    page.get_by_label("User id").fill("a/b?c")
    page.get_by_role("button", name="Open").click()

    page.get_by_role("heading", name="a/b?c", exact=True).wait_for()
    page.get_by_text("Nothing is learnt about a/b?c in shop").wait_for()


# Addresses


def test_an_address_that_is_wrongly_encoded_is_taken_as_it_stands(shop, page):
    page.goto(shop.at("users/%E0%A4%A", collection="shop"))

    page.get_by_role("heading", name="%E0%A4%A", exact=True).wait_for()
    page.get_by_text("Nothing is learnt about %E0%A4%A in shop").wait_for()


@pytest.mark.parametrize("view", ["nowhere", "constructor", "__proto__"])
def test_a_view_that_is_not_there_is_told(shop, page, view):
    page.goto(shop.at(view, collection="shop"))

    page.get_by_role("heading", name="No such view", exact=True).wait_for()
    page.get_by_text(f"The console has no view “{view}”").wait_for()
    page.get_by_role("link", name="Users", exact=True).click()
    page.get_by_role("heading", name="Users", exact=True).wait_for()


# Collections


def test_a_collection_is_made_named_tuned_and_dropped(service, page):
    page.goto(f"{service.url}/console#/collections")
    page.get_by_text("New collection").click()
    page.get_by_label("Name").fill("shoes")
    page.get_by_label("Vectors come from").select_option("caller")
    page.get_by_label("Dimensions").fill("3")
    page.get_by_label("Compared by").select_option("dot")
    page.get_by_role("button", name="Create").click()
    page.get_by_role("heading", name="shoes").wait_for()
    page.get_by_text("It is empty").wait_for()

    page.get_by_label("New alias").fill("live")
    page.get_by_role("button", name="Set alias").click()
    page.get_by_role("button", name="Drop the alias live").wait_for()
    page.get_by_label("Gate").fill("0.7")
    page.get_by_role("button", name="Set", exact=True).click()
    page.get_by_role("button", name="Use the setting").wait_for()
    [told] = [
        each
        for each in httpx.get(f"{service.url}/api/v1/collections").json()["collections"]
        if each["name"] == "shoes"
    ]
    assert (told["aliases"], told["gate_threshold"], told["index"]["metric_type"]) == (["live"], 0.7, "dot")

    page.get_by_role("button", name="Use the setting").click()
    expect(page.get_by_role("button", name="Use the setting")).to_have_count(0)
    page.get_by_role("button", name="Drop the alias live").click()
    expect(page.get_by_role("button", name="Drop the alias live")).to_have_count(0)
    page.get_by_role("button", name="Drop collection").click()
    page.get_by_label("Type shoes to confirm").fill("shoes")
    page.get_by_role("dialog").get_by_role("button", name="Drop collection").click()
    page.get_by_role("heading", name="Collections").wait_for()
    expect(page.get_by_role("link", name="shoes")).to_have_count(0)


def test_a_collection_that_cannot_be_made_says_why(shop, page, troubles):
    page.goto(shop.at("collections"))
    page.get_by_text("New collection").click()
    page.get_by_label("Name").fill("shop")
    page.get_by_label("Compared by").select_option("dot")
    page.get_by_role("button", name="Create").click()

    expect(page.get_by_role("alert")).to_contain_text("shop")
    expected(troubles, WORDS_OF_LOADING)


def test_settings_are_told_with_what_their_presets_did(shop, page):
    page.goto(shop.at("collections/shop"))
    page.get_by_text("Settings of learning").click()
    panel = page.locator("details.knobs")

    rate = panel.locator("dl > div").filter(has_text="ADJUSTMENT_RATE")
    expect(rate).to_contain_text("0.1 balanced")
    expect(rate.get_by_role("listitem").filter(has_text="conservative")).to_contain_text("of the users")
    expect(panel.locator("dl > div").filter(has_text="QUERY_SHIFT").get_by_role("listitem")).to_have_count(0)
    assert not axe_findings(page)


# Reports


def test_a_report_is_made_from_the_log_and_what_it_cannot_be_made_from_is_told(shop, page):
    for query, clicked in ((COLD, "slippers"), ("rain", "umbrella"), (COLD, "slippers")):
        for user in ("ada", "ben", "eve"):
            shop.searched(user, query, clicked)
    page.goto(shop.at("reports", collection="shop"))
    page.get_by_text("No report yet").wait_for()

    page.get_by_role("button", name="Tune").click()
    expect(page.get_by_role("alert")).to_contain_text("fitting the gate needs 100", timeout=60_000)
    page.get_by_role("link", name="All reports").click()
    page.get_by_role("button", name="Replay").click()

    page.get_by_role("heading", name="Where it helps").wait_for(timeout=60_000)
    expect(page.locator(".verdicts li")).to_have_count(3)
    expect(page.locator(".notice").first).to_contain_text("too few to tell")
    assert page.locator(".intervals svg").count() >= 3
    assert page.locator(".intervals svg.up, .intervals svg.down").count() == 0
    expect(page.locator(".intervals")).to_contain_text("9 searches, 3 users; too few to tell")
    assert not axe_findings(page)
    keep_screenshot(page, "console-report", full_page=False)
    page.get_by_role("link", name="All reports").click()
    expect(page.locator("tbody tr")).to_have_count(2)


MADE = {
    "report_id": "r",
    "collection": "shop",
    "dry_run": True,
    "started_at": 1_760_000_000,
    "ended_at": 1_760_000_007,
    "status": "done",
    "progress": None,
    "detail": None,
}
AT_MARGIN = {"low": 0.98, "high": 0.995, "right_first": 0.99, "p50_ms": 2.0, "p95_ms": 4.5}
RECALL = {
    "told": "searches of 'shop' find 99.1 % of the nearest",
    "queries": 200,
    "recorded": 150,
    "k": 10,
    "target": 0.99,
    "after": 2.0,
    "compared": [{"margin": 2.0, "recall": 0.991} | AT_MARGIN, {"margin": None, "recall": 1.0} | AT_MARGIN],
}
WEIGHTS = {"repeated_soon": 0.25, "repeated_later": 1.0, "near_soon": 0.5, "near_later": 1.0}
TUNED = {
    "before": None,
    "after": 0.712,
    "queries": 1_234,
    "is_stored": False,
    "own_past": {
        "before": None,
        "after": WEIGHTS,
        "searches": dict.fromkeys(WEIGHTS, 40.0),
        "again": dict.fromkeys(WEIGHTS, 10.0),
    },
}

GAIN = {"difference": {"mean": 0.021, "low": 0.004, "high": 0.04}, "users_better": 0.31, "users_worse": 0.025}
OTHER_SETTINGS = {
    "told": "Set QUERY_SHIFT=0.8: it wins on later searches.",
    "changes": {"query_shift": 0.8},
    "tuned_on": [2_000, 700],
    "trials": [
        {"settings": {"query_shift": 0.8}, "difference": 0.03, "users_worse": 0.01},
        {"settings": {}, "difference": 0.01, "users_worse": 0.02},
    ],
    "judged": {
        "all": {
            "meaning": "all measured searches",
            "searches": 3_000,
            "users": 900,
            "found_to_in_force": GAIN,
            "found_to_plain": GAIN,
            "in_force_to_plain": GAIN,
        }
    },
    "notes": ["12 different settings were tried"],
}


@pytest.mark.parametrize(
    ("kind", "result", "told"),
    [
        (
            "settings",
            OTHER_SETTINGS,
            [
                "Set QUERY_SHIFT=0.8",
                "3,000 searches, 900 users",
                "+0.021",
                "31.0 %",
                "those in force",
                "12 different",
            ],
        ),
        ("recall", RECALL, ["find 99.1 % of the nearest", "2 standard errors (chosen)", "99.10 %", "4.5 ms"]),
        ("tune", TUNED, ["is 0.712", "Nothing was changed", "1,234 queries", "25 %"]),
    ],
)
def test_what_was_found_is_told(service, page, kind, result, told):
    report = MADE | {"kind": kind, "result": result}
    page.route("**/api/v1/reports/r", lambda route: route.fulfill(json=report))
    page.goto(f"{service.url}/console#/reports/r")
    page.get_by_text("took 7 seconds").wait_for()

    for each in told:
        expect(page.locator("main")).to_contain_text(each)
    assert not axe_findings(page)


def test_a_report_shows_how_far_it_is_and_can_be_stopped(service, page):
    progress = {"what": "embed queries", "done": 512, "total": 2_048}
    report = MADE | {
        "kind": "replay",
        "result": None,
        "status": "running",
        "ended_at": None,
        "progress": progress,
    }

    def answer(route: Route) -> None:
        if route.request.method == "DELETE":
            report.update(status="stopped", ended_at=1_760_000_003)
        route.fulfill(json=report)

    page.route("**/api/v1/reports/r", answer)
    page.goto(f"{service.url}/console#/reports/r")
    expect(page.get_by_label("embed queries: 512 of 2,048")).to_have_attribute("value", "512")

    page.get_by_role("button", name="Stop").click()

    expect(page.locator(".badge")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)


def test_a_report_that_waits_says_for_how_many_and_can_be_stopped(service, page):
    report = MADE | {"kind": "tune", "result": None, "status": "waiting", "ended_at": None, "ahead": 2}

    def answer(route: Route) -> None:
        if route.request.method == "DELETE":
            report.update(status="stopped", ended_at=1_760_000_003)
        route.fulfill(json=report)

    page.route("**/api/v1/reports/r", answer)
    page.goto(f"{service.url}/console#/reports/r")
    expect(page.locator(".panel")).to_contain_text("2 reports are made before it")
    expect(page.locator(".badge")).to_have_text("waits")
    report.update(ahead=1)
    expect(page.locator(".panel")).to_contain_text("1 report is made before it")

    page.get_by_role("button", name="Stop").click()

    expect(page.locator(".badge")).to_have_text("stopped")


# Health


def test_health_tells_parts_findings_and_numbers_over_time(shop, page):
    page.goto(shop.at("health"))
    expect(page.get_by_role("list", name="Parts").locator("li")).to_have_count(5)
    expect(page.get_by_role("list", name="Parts").get_by_text("works")).to_have_count(5)
    expect(page.locator(".findings")).to_contain_text("collection shop")
    searches = page.locator("figure", has_text="Searches")
    expect(searches.locator("canvas")).to_have_count(1)

    for more in range(5):
        for _ in range(5 + 3 * more):
            shop.searched("ada", "tea")
        shop.searched("ada", COLD, "slippers")
        with page.expect_response("**/metrics"):  # it is measured again
            pass

    for title in ("Searches", "Time of a search"):
        expect(page.locator("figure", has_text=title).locator("figcaption")).to_contain_text(
            re.compile("[1-9]")
        )
    keep_screenshot(page, "console-health")


def test_what_is_seen_over_time_begins_when_the_console_is_opened_whatever_is_looked_at(shop, page):
    with page.expect_response("**/metrics"):
        page.goto(shop.at("search"))
    shop.searched("ada", "tea")

    page.goto(shop.at("health"))

    searches = page.locator("figure", has_text="Searches").locator("figcaption")
    expect(searches).to_contain_text(re.compile("[1-9]"))


def test_numbers_are_marked_as_old_while_the_service_is_away_and_users_come_by_themselves(
    shop, page, troubles
):
    page.goto(shop.at("users", collection="shop"))
    page.get_by_text("Nobody has searched here yet").wait_for()
    shop.searched("ada", "tea")
    page.get_by_role("link", name="ada").wait_for()
    page.goto(shop.at("health"))
    settled(page)

    shop.service.stop()
    expect(page.get_by_text("What stands here is old").first).to_be_visible()
    shop.service.start()

    expect(page.get_by_text("What stands here is old")).to_have_count(0)
    expected(troubles, WORDS_OF_LOADING, "ERR_")


def test_a_part_that_is_in_trouble_is_named(service, page, troubles):
    parts = {"database": "ok", "events": "events cannot be stored: the database's disk is full"}
    problem = {"type": "t", "title": "Not ready", "status": 503, "detail": "d", "parts": parts}
    page.route(
        "**/readyz",
        lambda route: route.fulfill(status=503, json=problem, content_type="application/problem+json"),
    )
    page.goto(f"{service.url}/console#/health")

    expect(page.get_by_role("list", name="Parts")).to_contain_text("the database's disk is full")
    expect(page.get_by_role("list", name="Parts").get_by_text("trouble")).to_have_count(1)
    page.unroute("**/readyz")
    expected(troubles, WORDS_OF_LOADING)


# Everybody can use it

VIEWS = ("search", "sessions", "users", "users/ada", "collections", "collections/shop", "reports", "health")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(shop, open_page, scheme):
    session = shop.searched("ada", COLD, "slippers")
    page = open_page(**WIDE, color_scheme=scheme)
    for view in (*VIEWS, f"sessions/{session}"):
        page.goto(
            shop.at(view, collection="shop", **({"q": COLD, "user": "ada"} if view == "search" else {}))
        )
        settled(page)

        assert not axe_findings(page), view
        if scheme == "dark" and view == "search":
            keep_screenshot(page, "console-search-dark", full_page=False)


def test_on_a_phone_nothing_is_wider_than_the_screen(shop, open_page):
    session = shop.searched("ada", COLD, "slippers")
    shop.searched(None, "rain", "umbrella")
    page = open_page(**PHONE)
    for view in (*VIEWS, f"sessions/{session}"):
        page.goto(
            shop.at(view, collection="shop", **({"q": COLD, "user": "ada"} if view == "search" else {}))
        )
        settled(page)

        assert page.evaluate("document.documentElement.scrollWidth") == 390, view
        assert not axe_findings(page), view
        if view in {"search", "users/ada"}:
            keep_screenshot(page, f"console-{view.partition('/')[0]}-phone", full_page=False)


def settled(page: Page) -> None:
    """Return when a view has what it asked for."""
    page.locator("main h1").first.wait_for(state="attached")
    expect(page.get_by_text("Loading…")).to_have_count(0)


def test_the_keyboard_is_enough(shop, page):
    page.goto(shop.at("users", collection="shop"))
    page.get_by_role("heading", name="Users").wait_for()

    page.keyboard.press("/")
    expect(page.get_by_label("What is searched for")).to_be_focused()
    page.keyboard.type(COLD)
    page.keyboard.press("Tab")
    page.keyboard.type("ada")
    page.keyboard.press("Enter")
    page.get_by_text("they see what everybody sees").wait_for()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == "Click Felt slippers as ada":
            break
    page.keyboard.press("Enter")

    expect(result(page, "For ada", "Felt slippers")).to_contain_text("ada clicked this")
