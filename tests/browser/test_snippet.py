"""``/clients/embedding-studio.js`` on a page of another site: what is clicked arrives, and arrives once."""

import gzip
import json
import time
from functools import partial

import httpx
import jwt
import pytest

from browser.conftest import meanwhile, sample_of

NAME = "/clients/embedding-studio.js"

SECRET = "a secret that signs the tokens of users"  # noqa: S105, a test's
KEYS = {
    "admin_api_key": "the key of the administrator, long enough",
    "write_api_key": "the key that any visitor may see, long enough",
    "user_token_secret": SECRET,
    "write_api_key_requires_user_token": True,
}

SHOP = """<!doctype html><html lang=en><title>Shop</title><link rel=icon href="data:,">
<main><h1>Shop</h1><ol id=results></ol></main>
<script type=module>
const { service, ...options } = Object.fromEntries(new URLSearchParams(location.search));
const { EmbeddingStudio } = await import(`${service}/clients/embedding-studio.js`);
const studio = (window.studio = new EmbeddingStudio(service, { ...options, clicks: true }));
window.show = async (query, user_id) => {
  const page = await studio.search(query, { user_id });
  results.dataset.esSession = page.session_id;
  results.innerHTML = page.search_results.map(({ object_id: id }) => `<li data-es-object=${id}>
    <a href=product.html>${id}</a> <button data-es-event=add_to_cart>Add ${id}</button>`).join("");
  return page;
};
</script>"""

PRODUCT = '<!doctype html><html lang=en><title>A product</title><link rel=icon href="data:,">'


@pytest.fixture
def shop(site):
    return site({"index.html": SHOP, "product.html": PRODUCT})


@pytest.fixture
def open_shop(shop, serve, open_browser):
    """Return what opens the shop's page with a service that lets it in."""

    def open_one(*, options=None, **settings):
        service = serve(cors_origins=(shop,), **settings)
        page = open_browser().new_page()
        go_to_shop(page, shop, service, options or {})
        return page, service

    return open_one


def go_to_shop(page, shop, service, options=None):
    page.goto(str(httpx.URL(shop, params={"service": service.url, **(options or {})})))
    page.wait_for_function("window.studio")


def shown(page, query, user_id=None):
    """Search in the page as a user; return the session and the ids in their order."""
    found = page.evaluate("([query, user]) => show(query, user)", [query, user_id])
    return found["session_id"], [each["object_id"] for each in found["search_results"]]


def events_of(service, session_id):
    return [
        (each.object_id, each.event_type)
        for each in service.context.storage.clickstream.get_session(session_id).events
    ]


def sizes_sent(page):
    """Return how many events each request has, of those that a page sends from now on."""
    sizes = []
    page.on(
        "request",
        lambda request: (
            sizes.append(len(json.loads(request.post_data)["events"]))
            if "/clickstream/" in request.url
            else None
        ),
    )
    return sizes


def kept(page):
    return page.evaluate("Object.keys(localStorage).length")


def click_times(page, session_id, number, object_id="parka", event_type="click"):
    page.evaluate(
        "([session, number, object, type]) => { while (number--) studio.click(session, object, type); }",
        [session_id, number, object_id, event_type],
    )


def test_the_file_is_small_and_sent_once_to_a_browser_that_has_it(service):
    first = httpx.get(service.url + NAME)
    again = httpx.get(service.url + NAME, headers={"If-None-Match": first.headers["ETag"]})

    assert first.headers["content-type"].startswith("text/javascript")
    assert len(gzip.compress(first.content, 9)) <= 3_000
    assert (again.status_code, again.content) == (304, b"")
    assert "class EmbeddingStudio" in httpx.get(service.url + NAME.replace(".js", ".d.ts")).text


def test_the_sample_of_the_documentation_searches_and_tells_what_is_clicked(site, serve, page):
    shop = site({})
    service = serve(cors_origins=(shop,))
    site({"index.html": sample_of("clients.md", "embedding-studio.js", service=service.url, key="none")})
    page.goto(shop)

    page.get_by_label("Search").fill("something warm")
    page.get_by_role("button").click()
    session = page.locator("[data-es-session]").get_attribute("data-es-session")
    clicked = page.get_by_role("link").nth(3)
    clicked.click()

    assert page.get_by_role("link").count() == 5
    told = [(clicked.inner_text(), "click")]  # the catalogue's titles are its ids
    meanwhile(page, lambda: events_of(service, session) == told)


def test_what_is_clicked_is_learnt_and_the_next_search_differs_for_this_user_alone(open_shop):
    page, _ = open_shop()
    _, before = shown(page, "something warm", "ann")

    page.get_by_role("button", name=f"Add {before[4]}", exact=True).click()
    after = meanwhile(page, lambda: (now := shown(page, "something warm", "ann")[1]) != before and now)

    assert after.index(before[4]) < 4
    assert shown(page, "something warm", "bob")[1] == before
    assert kept(page) == 0


def test_a_link_that_leaves_the_page_is_told_as_a_click(open_shop):
    page, service = open_shop()
    session, ids = shown(page, "something warm", "ann")

    page.get_by_role("link", name=ids[2], exact=True).click()

    page.wait_for_url("**/product.html")
    assert meanwhile(page, lambda: events_of(service, session)) == [(ids[2], "click")]


def test_a_link_opened_in_a_new_tab_and_a_button_within_a_result_are_told_too(open_shop):
    page, service = open_shop()
    session, ids = shown(page, "something warm", "ann")

    page.get_by_role("link", name=ids[0], exact=True).click(button="middle")
    page.get_by_role("link", name=ids[1], exact=True).click(button="right")
    page.get_by_role("heading").click()
    page.get_by_role("button", name=f"Add {ids[2]}", exact=True).click()

    told = sorted([(ids[0], "click"), (ids[2], "add_to_cart")])
    meanwhile(page, lambda: sorted(events_of(service, session)) == told)


def test_events_wait_for_a_pause_and_go_together_without_asking_first(open_shop, caplog):
    caplog.set_level("INFO", "embedding_studio.api.access_log")
    page, service = open_shop()
    session, _ = shown(page, "something warm", "ann")
    sent = []
    page.on("request", lambda request: sent.append(request) if "/clickstream/" in request.url else None)

    click_times(page, session, 45)

    meanwhile(page, lambda: kept(page) == 0)
    assert [len(json.loads(each.post_data)["events"]) for each in sent] == [20, 20, 5]
    assert {each.headers["content-type"] for each in sent} == {"text/plain;charset=UTF-8"}
    asked = [each.getMessage() for each in caplog.records if "OPTIONS" in each.getMessage()]
    assert len(asked) == 1  # the search, which sends JSON
    assert len(events_of(service, session)) == 45


def test_while_the_service_is_away_nothing_is_lost_and_nothing_counts_twice(open_shop, troubles):
    page, service = open_shop()
    session, ids = shown(page, "something warm", "ann")
    service.stop()

    for object_id in ids:
        click_times(page, session, 4, object_id)
    page.evaluate("dispatchEvent(new Event('pagehide'))")
    page.wait_for_timeout(3_000)
    assert kept(page) == 40
    service.start()

    meanwhile(page, lambda: kept(page) == 0)
    assert sorted(events_of(service, session)) == sorted([(each, "click") for each in ids] * 4)
    assert troubles
    troubles.clear()  # requests that nobody answered


def test_a_page_that_was_left_meanwhile_tells_it_when_it_is_next_opened(shop, open_shop, troubles):
    page, service = open_shop()
    session, _ = shown(page, "something warm", "ann")
    service.stop()
    click_times(page, session, 400, event_type="view" * 16)  # 80 kB, more than may be under way
    browser = page.context
    page.close()
    troubles.clear()
    service.start()

    page = browser.new_page()
    go_to_shop(page, shop, service)

    meanwhile(page, lambda: kept(page) == 0)
    assert len(events_of(service, session)) == 400


def test_a_beacon_and_a_request_with_the_same_events_count_once(open_shop):
    page, service = open_shop()
    session, _ = shown(page, "something warm", "ann")
    click_times(page, session, 3)

    page.evaluate("dispatchEvent(new Event('pagehide'))")
    meanwhile(page, lambda: events_of(service, session))
    assert kept(page) == 3  # for nobody said whether the beacon arrived
    page.evaluate("studio.flush()")

    assert kept(page) == 0
    assert len(events_of(service, session)) == 3


SOON = ["soon", "Thu, 01 Jan 1970 00:00:00 GMT", None]
LATER = ["30", "2592000", "Fri, 01 Jan 2100 00:00:00 GMT"]


@pytest.mark.parametrize(
    ("retry_after", "most"), [*((each, 3) for each in SOON), *((each, 1) for each in LATER)]
)
def test_a_service_that_is_away_is_asked_as_it_says_and_within_an_hour(
    open_shop, troubles, retry_after, most
):
    page, _ = open_shop()
    page.clock.install()
    page.reload()
    page.wait_for_function("window.studio")
    sizes = sizes_sent(page)
    headers = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "Retry-After"}
    if retry_after is not None:
        headers["Retry-After"] = retry_after
    page.route("**/clickstream/**", lambda route: route.fulfill(status=503, headers=headers))

    click_times(page, "s", 1)
    page.evaluate("void studio.flush()")
    for _ in range(7):
        page.clock.run_for(500)
        meanwhile(page, lambda: len(troubles) == len(sizes))
        page.wait_for_timeout(50)

    assert 1 <= len(sizes) <= most
    assert len(sizes) > 1 or most == 1
    before = len(sizes)
    page.clock.fast_forward(1_000 * 3_600 * 5 // 4)  # a quarter more, so that not all pages come at once
    meanwhile(page, lambda: before < len(sizes) == len(troubles))  # each is told on the console too
    assert kept(page) == 1
    troubles.clear()


def test_an_event_that_the_service_refuses_goes_alone_and_later_ones_together(open_shop, troubles):
    page, service = open_shop()
    session, _ = shown(page, "something warm", "ann")
    sizes = sizes_sent(page)

    click_times(page, session, 2)
    click_times(page, session, 1, "\x00")
    click_times(page, session, 2)
    page.evaluate("studio.flush()")
    click_times(page, session, 20)
    page.evaluate("studio.flush()")

    assert kept(page) == 0
    assert sizes == [5, 1, 1, 1, 2, 20]
    assert len(events_of(service, session)) == 24
    assert [each for each in troubles if each.startswith("Embedding Studio takes no such event (422)")]
    troubles.clear()


@pytest.mark.parametrize(
    ("wrong", "longest"),
    [
        ([None, "parka"], 512),
        (["s", ""], 512),
        (["s", 7], 512),
        (["s", "x" * 513], 512),
        (["s", "parka", "x" * 65], 64),
    ],
)
def test_what_can_be_no_id_or_type_is_refused_where_it_is_clicked(open_shop, wrong, longest):
    page, _ = open_shop()

    said = page.evaluate(
        "(ids) => { try { studio.click(...ids) } catch (error) { return String(error) } }", wrong
    )

    assert said.startswith(f"TypeError: not a text of 1 to {longest} characters: ")
    assert kept(page) == 0


def token(user_id, seconds=600):
    return jwt.encode({"sub": user_id, "exp": int(time.time()) + seconds}, SECRET, "HS256")


def test_the_key_and_the_users_token_go_with_searches_beacons_and_requests(open_shop):
    page, service = open_shop(options={"apiKey": KEYS["write_api_key"], "userToken": token("ann")}, **KEYS)
    session, ids = shown(page, "something warm")
    click_times(page, session, 1, ids[0])
    page.evaluate("dispatchEvent(new Event('pagehide'))")
    meanwhile(page, lambda: events_of(service, session))
    click_times(page, session, 1, ids[1])
    page.evaluate("studio.flush()")

    assert service.context.storage.clickstream.get_session(session).user_id == "ann"
    assert sorted(events_of(service, session)) == sorted([(ids[0], "click"), (ids[1], "click")])


def test_events_wait_for_a_token_that_has_not_expired_and_are_never_anothers(open_shop, troubles):
    page, service = open_shop(options={"apiKey": KEYS["write_api_key"], "userToken": token("ann")}, **KEYS)
    session, ids = shown(page, "something warm")
    set_token = partial(page.evaluate, "(token) => { studio.userToken = token }")

    set_token(token("ann", -60))
    click_times(page, session, 1, ids[0])
    page.evaluate("studio.flush()")
    assert kept(page) == 1
    troubles.clear()  # 401
    set_token(token("ann"))
    page.evaluate("studio.flush()")
    set_token(token("bob"))
    click_times(page, session, 1, ids[1])
    page.evaluate("studio.flush()")

    assert kept(page) == 1
    assert events_of(service, session) == [(ids[0], "click")]


def test_what_a_user_clicked_waits_while_another_is_signed_in(shop, open_shop):
    options = {"apiKey": KEYS["write_api_key"], "userToken": token("ann")}
    page, service = open_shop(options=options, **KEYS)
    session, ids = shown(page, "something warm")
    sizes = sizes_sent(page)

    click_times(page, session, 3, ids[0])
    page.evaluate("(token) => { studio.userToken = token }", token("bob"))
    page.evaluate("studio.flush()")
    page.evaluate("studio.flush()")
    page.evaluate("dispatchEvent(new Event('pagehide'))")
    go_to_shop(page, shop, service, options | {"userToken": token("bob")})
    meanwhile(page, lambda: len(sizes) == 2)
    page.evaluate("studio.flush()")

    assert sizes == [3, 3]  # each page tries once
    assert kept(page) == 3
    assert events_of(service, session) == []
    go_to_shop(page, shop, service, options)
    meanwhile(page, lambda: kept(page) == 0)
    assert events_of(service, session) == [(ids[0], "click")] * 3


@pytest.mark.parametrize(("hours", "left"), [(23, 1), (25, 0)])
def test_what_is_of_no_session_is_forgotten_after_a_day(open_shop, hours, left):
    page, _ = open_shop(options={"apiKey": KEYS["write_api_key"], "userToken": token("ann")}, **KEYS)
    click_times(page, "no such session", 1)
    page.evaluate(
        """(ms) => {
          const [[name, event]] = Object.entries(localStorage);
          const old = name.match(/[^ ]+$/)[0];
          const id = (parseInt(old.slice(0, 8), 36) - ms).toString(36) + old.slice(8);
          localStorage.clear();
          localStorage.setItem(name.replace(old, id), event.replace(old, id));
        }""",
        hours * 3_600_000,
    )
    sizes = sizes_sent(page)

    page.reload()
    page.wait_for_function("window.studio")
    page.evaluate("studio.flush()")

    assert sizes[-1] == 1
    assert kept(page) == left


def test_a_search_that_is_refused_says_why(open_shop, troubles):
    page, _ = open_shop()

    said = page.evaluate(
        "studio.search('coat', { limit: 0 }).catch(({ status, message }) => [status, message])"
    )

    assert said[0] == 422
    assert said[1].startswith("#/limit: ")
    troubles.clear()


def test_without_storage_events_live_as_long_as_the_page(open_shop, open_browser):
    page, service = open_shop()
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('barred') } })"
    )
    page.reload()
    page.wait_for_function("window.studio")
    session, ids = shown(page, "something warm", "ann")

    click_times(page, session, 1, ids[0])
    page.evaluate("studio.flush()")

    assert events_of(service, session) == [(ids[0], "click")]
