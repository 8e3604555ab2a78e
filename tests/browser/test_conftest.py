"""What tests of pages stand on: pages that are watched, and a service that can be stopped."""

import httpx
import pytest

from browser.conftest import axe_findings

PAGE = (
    "<!doctype html><html lang=en><title>t</title><link rel=icon href=data:,><main><h1>t</h1>{}</main></html>"
)

ABSENT = "Failed to load resource: the server responded with a status of 404 (File not found)"


def test_a_page_of_the_service_opens_without_trouble(service, page):
    page.goto(f"{service.url}/docs")

    page.get_by_role("heading", level=1).wait_for()
    assert not axe_findings(page)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("<img src=absent.png alt=a>", [ABSENT]),
        ("<script>console.error('said')</script>", ["said"]),
        ("<script>throw new Error('thrown')</script>", ["thrown"]),
        ("<script>Promise.reject(new Error('rejected'))</script>", ["rejected"]),
        ("<script>console.log('said')</script>", []),
    ],
)
def test_what_goes_wrong_in_a_page_is_told(site, page, troubles, body, told):
    page.goto(site({"index.html": PAGE.format(body)}), wait_until="networkidle")

    found = troubles.copy()
    troubles.clear()  # else they fail this test
    assert found == told


def test_a_request_that_fails_is_told(site, page, troubles):
    url = site({"index.html": PAGE.format("<script>fetch('http://127.0.0.1:1/').catch(() => 0)</script>")})

    page.goto(url, wait_until="networkidle")

    found = troubles.copy()
    troubles.clear()
    assert "GET http://127.0.0.1:1/: net::ERR_UNSAFE_PORT" in found


def test_axe_finds_an_image_without_words(site, page):
    page.goto(site({"index.html": PAGE.format("<img src=data:,>")}))

    assert [found.partition(":")[0] for found in axe_findings(page)] == ["image-alt"]


def test_a_service_starts_again_on_its_port(service):
    httpx.get(f"{service.url}/readyz").raise_for_status()

    service.stop()

    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{service.url}/readyz")
    service.start()
    assert httpx.get(f"{service.url}/readyz").json()
