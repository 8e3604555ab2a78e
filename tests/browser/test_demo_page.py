"""The demo as a first visitor meets it: the tour, free play, a key, a phone, a keyboard."""

import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
from playwright.sync_api import expect

from browser.conftest import axe_findings, keep_screenshot
from conftest import listening_socket, new_database
from embedding_studio.bootstrap import Context
from embedding_studio.catalogue import read_python_documentation
from embedding_studio.cli.demonstration import Shown, Stage, serving
from embedding_studio.demo.subjects import PYTHON, SHOP
from embedding_studio.settings import Settings
from test_demo import SHOWN

RAINCOAT, BLANKET = "Harbour Lined Raincoat", "Picnic Blanket"
KEY = "a-key-of-32-characters-for-tests"
DESK = {"width": 1180, "height": 830}
PHONE = {"width": 390, "height": 844}


def few_of_the_documentation(_):
    return (entry for entry in read_python_documentation() if entry.object_id in SHOWN)


@contextmanager
def demo_over(embedder, database_url, **settings):
    """Yield the stage and URL of a demo over a database; its worker runs."""
    given = Settings(_env_file=None, database_url=database_url, **settings)
    with (
        Context(given, embedder=embedder) as context,
        listening_socket() as listening,
    ):
        shown = [Shown(SHOP), Shown(replace(PYTHON, read=few_of_the_documentation))]
        stage = Stage(context, objects=100, shown=shown)
        with serving(stage, listening):
            yield stage, f"http://127.0.0.1:{listening.getsockname()[1]}/demo"


@pytest.fixture(scope="module")
def database(postgres_server):
    with new_database(postgres_server) as url:
        yield url


@pytest.fixture(scope="module")
def demo(embedder, database):
    with demo_over(embedder, database) as (stage, url):
        stage.fill()
        assert [each.trouble for each in stage.shown] == [None, None]
        yield url


def opened(page, url):
    page.goto(url)
    settle(page)
    return page


def settle(page):
    """Wait until the page has done what it does, and its rows stand still."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    expect(page.locator('.people[aria-busy="false"]')).to_be_visible()
    page.evaluate("() => Promise.allSettled(document.getAnimations().map((each) => each.finished))")


def names(page, who):
    return page.locator(f".{who} .row .name").all_text_contents()


def go_on(page):
    page.locator(".tour button").first.click()
    settle(page)
    return page.locator(".tour p").inner_text()


def test_the_tour_tells_what_the_lists_show(demo, open_page):
    page = opened(open_page(viewport=DESK), demo)
    before = names(page, "ada")
    assert names(page, "bob") == before
    assert before.index(RAINCOAT) + 1 == 8
    expect(page.locator(".tour p")).to_contain_text("they see the same list")

    told = go_on(page)
    assert names(page, "ada")[0] == RAINCOAT
    assert names(page, "bob") == before
    assert f"the {RAINCOAT} is at place 1 for Ada. For Bob it is still at place 8." in told
    assert 0 < float(told.partition(" ")[0]) < 60
    expect(page.locator(".ada .row.clicked .why")).to_have_text("Here because Ada clicked it for this search")
    pointed = page.locator(".ada .row.pointed")
    risen = pointed.locator(".name").inner_text()
    assert risen not in before
    expect(pointed).to_contain_text(f"Never clicked. Here because Ada clicked the {RAINCOAT} for this search")
    assert f"the {risen}, which she never clicked," in told
    keep_screenshot(page, "demo", full_page=False)

    told = go_on(page)
    expect(page.locator("#query")).to_have_value(SHOP.scenes[0].reworded)
    assert names(page, "ada")[0] == RAINCOAT
    assert RAINCOAT not in names(page, "bob")
    assert "at place 1 for her, and at place 12 for anybody else" in told
    assert f"for “{SHOP.scenes[0].query}”" in page.locator(".ada .row.clicked .why").inner_text()

    unclicked = names(page, "bob")
    told = go_on(page)
    assert names(page, "ada").index(BLANKET) == 0
    assert names(page, "bob") == before != unclicked
    assert f"The {BLANKET} is at place 1 now." in told

    told = go_on(page)
    assert names(page, "ada").index(BLANKET) + 1 == 7
    assert f"the {BLANKET} is at place 7 again" in told
    assert page.locator(".ada .chip span").all_text_contents() == [RAINCOAT]

    told = go_on(page)
    expect(page.get_by_role("switch")).to_be_checked()
    assert names(page, "bob")[0] == RAINCOAT
    assert "Bob has clicked nothing, and has it at place 1." in told
    expect(page.locator(".bob .row .why").first).to_have_text(
        "Here because others who searched like this clicked it"
    )

    told = go_on(page)
    expect(page.get_by_role("switch")).not_to_be_checked()
    assert names(page, "ada") == names(page, "bob") == before
    assert "Ada sees what anybody sees" in told

    assert go_on(page) == "Search for anything, click as either of them."
    expect(page.locator(".replayed")).to_contain_text("67.7 %")


def test_whoever_plays_clicks_as_either_and_takes_a_click_back(demo, page):
    opened(page, demo)
    page.get_by_role("button", name="Skip").click()
    page.locator("#query").fill(" ")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("Type what you look for.")
    page.locator("#query").fill("a present for a tea lover")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator(".bob .row .name").first).to_have_text("Porcelain Teapot")
    settle(page)
    before = names(page, "bob")

    page.locator(".bob .row", has_text="Cast Iron Teapot").get_by_role("button").click()
    settle(page)

    assert names(page, "bob")[0] == "Cast Iron Teapot"
    assert names(page, "ada") == before

    page.locator(".bob .row").first.get_by_role("button").click()
    settle(page)
    assert page.locator(".bob .chip span").all_text_contents() == ["Cast Iron Teapot"]

    page.get_by_role("button", name="Take back Bob's click on Cast Iron Teapot").click()
    settle(page)

    assert names(page, "bob") == before
    expect(page.locator(".bob .clicks")).to_have_text("has clicked nothing yet")


def test_each_tab_has_people_of_its_own_and_a_reload_goes_on_where_it_was(demo, open_page):
    page = opened(open_page(viewport=DESK), demo)
    start = page.locator(".tour p").inner_text()
    go_on(page)
    told = go_on(page)
    seen = names(page, "ada")

    another = opened(open_page(viewport=DESK), demo)
    expect(another.locator(".ada .clicks")).to_have_text("has clicked nothing yet")
    another.close()
    page.reload()
    settle(page)

    assert names(page, "ada") == seen
    assert page.locator(".ada .chip span").all_text_contents() == [RAINCOAT]
    assert page.locator(".tour p").inner_text() == told
    expect(page.locator("#query")).to_have_value(SHOP.scenes[0].reworded)

    page.get_by_role("button", name="Start again").click()
    settle(page)

    expect(page.locator(".ada .clicks")).to_have_text("has clicked nothing yet")
    assert page.locator(".tour p").inner_text() == start


def moved_by(clicked_id, distance_change):
    return {
        "gate": 1,
        "search_query": "rain",
        "clicked_ids": [clicked_id],
        "distance_change": distance_change,
    }


@pytest.mark.parametrize(
    ("own", "others", "told"),
    [
        (
            [("boots", -0.1)],
            {"distance_change": -0.3, "factor": 0.7},
            "others who searched like this clicked it",
        ),
        ([("boots", -0.1)], {"distance_change": -0.3, "factor": 1}, "it is like what others who searched"),
        ([("boots", -0.3)], {"distance_change": -0.1, "factor": 0.7}, "Ada clicked boots"),
        ([("boots", -0.1), ("hat", -0.2)], None, "Ada clicked hat"),
        (
            [("boots", 0.1)],
            {"distance_change": -0.1, "factor": 0.7},
            "others who searched like this clicked it",
        ),
        ([("coat", -0.1)], {"distance_change": -0.3, "factor": 0.7}, "Ada clicked it for this search"),
    ],
)
def test_the_cause_that_is_told_is_the_one_that_moved_a_result_most(demo, page, own, others, told):
    opened(page, demo)
    explanation = {"influences": [moved_by(*each) for each in own], "shared": others}

    reason = page.evaluate(
        "async (row) => (await import('./demo/why.js')).reason(row, 'Ada')",
        {"object_id": "coat", "explanation": explanation},
    )

    assert reason["text"].startswith(f"Here because {told}")


def test_the_foot_leads_to_what_was_learnt_from_a_person(demo, page):
    opened(page, demo)
    go_on(page)
    page.locator(".foot").get_by_role("link", name="Ada").click()

    expect(page.get_by_role("heading", level=1)).to_contain_text("demo-ada-")
    expect(page.get_by_label("Collection")).to_have_value(SHOP.collection)
    expect(page.locator("main")).to_contain_text(SHOP.scenes[0].query)


def test_the_switch_compares_with_and_without_what_others_clicked(demo, page):
    opened(page, demo)
    page.get_by_role("button", name="Skip").click()
    before = names(page, "bob")

    expect(page.locator(".lead")).to_contain_text("for the one who clicked and for nobody else.")

    page.get_by_role("button", name=f"Cleo, Dan and Eve click the {RAINCOAT}").click()
    settle(page)
    expect(page.locator(".lead")).to_contain_text("Once 3 people have clicked, it counts for everybody.")
    assert names(page, "bob")[0] == names(page, "ada")[0] == RAINCOAT

    raised = page.locator(".bob .row").first
    expect(raised).to_contain_text("Here because others who searched like this clicked it")
    expect(raised).not_to_contain_text("Never clicked")

    page.get_by_role("switch").uncheck()
    settle(page)
    assert names(page, "bob") == names(page, "ada") == before


def test_the_tour_is_also_on_the_documentation(demo, open_page):
    page = opened(open_page(viewport=DESK, color_scheme="dark"), demo)

    page.get_by_role("button", name="Python documentation").click()
    expect(page.locator("#query")).to_have_value(PYTHON.scenes[0].query)
    settle(page)
    before = names(page, "bob")
    told = go_on(page)

    assert names(page, "ada")[0] == PYTHON.scenes[0].wished_id
    assert names(page, "bob") == before
    assert f"seconds later {PYTHON.scenes[0].wished_id} is at place 1 for Ada" in told
    keep_screenshot(page, "demo-documentation", full_page=False)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_the_page_can_be_used_by_those_who_cannot_see_it(demo, open_page, scheme, size):
    page = opened(open_page(color_scheme=scheme, viewport=size, reduced_motion="reduce"), demo)
    go_on(page)
    assert axe_findings(page) == []

    page.get_by_role("button", name="Skip").click()
    assert axe_findings(page) == []


def test_on_a_phone_one_person_is_shown_at_a_time(demo, open_page):
    page = opened(open_page(viewport=PHONE, color_scheme="dark"), demo)
    expect(page.locator(".bob")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]

    go_on(page)
    keep_screenshot(page, "demo-phone", full_page=False)
    page.locator(".faces").get_by_role("button", name="Bob").click()

    expect(page.locator(".bob")).to_be_visible()
    expect(page.locator(".ada")).to_be_hidden()


def test_a_result_is_clicked_by_keyboard(demo, page):
    opened(page, demo)
    page.locator(".ada .row button").nth(6).focus()
    page.keyboard.press("Tab")

    page.keyboard.press("Enter")
    expect(page.locator(".ada .row .name").first).to_have_text(RAINCOAT)
    settle(page)

    assert page.evaluate("document.activeElement.closest('.row').dataset.id") == SHOP.scenes[0].wished_id


@pytest.mark.parametrize(("motion", "moving"), [("no-preference", True), ("reduce", False)])
def test_rows_glide_but_for_whoever_does_not_want_that(demo, open_page, motion, moving):
    page = opened(open_page(reduced_motion=motion), demo)
    page.evaluate(
        """() => {
            window.moved = 0;
            const animate = Element.prototype.animate;
            Element.prototype.animate = function (...given) {
                window.moved += 1;
                return animate.apply(this, given);
            };
        }"""
    )

    go_on(page)

    assert (page.evaluate("window.moved") > 0) == moving


def test_the_page_asks_for_the_key_and_keeps_it_out_of_addresses(demo, embedder, database, page, troubles):
    with demo_over(embedder, database, admin_api_key=KEY) as (_, url):
        page.goto(url)
        page.get_by_label("Key").fill("not-the-key")
        page.get_by_role("button", name="Go on").click()
        expect(page.locator(".asks")).to_contain_text("That key may not do this.")
        assert axe_findings(page) == []

        page.get_by_label("Key").fill(KEY)
        page.get_by_role("button", name="Go on").click()
        settle(page)

        assert len(names(page, "ada")) == 8
        assert page.url == url
        assert troubles
        assert all("401" in each for each in troubles)
        troubles.clear()
        page.goto("about:blank")  # it would ask a service that is gone how far the documentation is


def test_nothing_leads_to_a_console_that_is_turned_off(demo, embedder, database, page):
    with demo_over(embedder, database, console=False) as (_, url):
        opened(page, url)
        expect(page.locator(".foot a")).to_have_text(["docs"])
        page.goto("about:blank")


def test_what_is_not_indexed_yet_tells_how_far_it_is(embedder, postgres_server, page):
    with new_database(postgres_server) as database, demo_over(embedder, database) as (stage, url):
        shop, documentation = stage.shown
        stage.shown = [shop]
        stage.fill()
        stage.shown = [shop, documentation]
        documentation.done, documentation.total = 1632, 6526
        opened(page, url)
        button = page.get_by_role("button", name="Python documentation")
        expect(button).to_contain_text("25 % indexed")
        expect(button).to_be_disabled()
        filling = page.locator(".filling")
        expect(filling).to_have_text(
            "Python documentation is being indexed behind this page. It can be chosen once that is done."
        )

        documentation.done = 1633
        expect(filling).to_contain_text(re.compile(r"behind this page, about \d+ minutes more\."))
        documentation.done = 6525
        expect(filling).to_contain_text("less than a minute more")

        documentation.done = 0
        stage.fill()

        expect(button).to_be_enabled()
        expect(button).to_have_text("Python documentation")
        expect(filling).to_have_count(0)
