"""Algolia's ``search-insights`` and OpenSearch UBI's collector, as their authors wrote them, in a page.

Their files come from npm and from GitHub when they are first needed, are checked by their hashes, and stay in
``~/.cache/embedding-studio-tests``. Where they are not and cannot be fetched, the tests are skipped.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from browser.conftest import meanwhile, sample_of

CACHE = Path.home() / ".cache" / "embedding-studio-tests"

WRITE_KEY = "the key that any visitor may see, long enough"
KEYS = {"admin_api_key": "the key of the administrator, long enough", "write_api_key": WRITE_KEY}


@dataclass(frozen=True)
class NpmFile:
    package: str
    integrity: str
    path: str

    def text(self) -> str:
        archive = CACHE / (self.package.replace("@", "-") + ".tgz")
        if not archive.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            if (npm := shutil.which("npm")) is None:
                pytest.skip(f"npm is absent, which brings {self.package}: apt-get install -y npm")
            ran = subprocess.run(
                [npm, "pack", self.package, "--pack-destination", str(CACHE)],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            if ran.returncode:
                pytest.skip(f"npm cannot bring {self.package} without a network: {ran.stderr[-200:]}")
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        assert f"sha512-{digest}" == self.integrity, f"{archive} is another than was tested"
        with tarfile.open(archive) as packed:
            extracted = packed.extractfile(f"package/{self.path}")
            assert extracted is not None
            return extracted.read().decode()


INSIGHTS = NpmFile(
    "search-insights@2.17.3",
    "sha512-RQPdCYTa8A68uM2jwxoY842xDhvx3E5LFL1LxvxCNMev4o5mLuokczhzjAgGwUZBAmOKZknArSxLKmXtIi2AxQ==",
    "dist/search-insights.min.js",
)
AXIOS = NpmFile(
    "axios@1.21.1",
    "sha512-6eI5Q/Y4u/Um9dDlsRoq5pY2rxnUTv+L4PpLitnbk/i4jb3MxLZ5CsN5Ih3IysbeRYK4pR+P7qfMsOQl9fwwFQ==",
    "dist/esm/axios.min.js",
)
UBI_URL = (
    "https://raw.githubusercontent.com/opensearch-project/user-behavior-insights/"
    "3fee2d8bd55b58916aa23905ecc9587b8f372201/ubi-javascript-collector/ubi.js"
)
UBI_SHA256 = "c9a7eaec612cf102abe8b27adf0837965953663064a82ae398ca25ea9cf25bfe"


def ubi_text() -> str:
    kept = CACHE / UBI_SHA256
    if not kept.exists():
        try:
            answer = httpx.get(UBI_URL, timeout=10).raise_for_status()
        except httpx.HTTPError as error:
            pytest.skip(f"{UBI_URL} cannot be fetched without a network: {error}")
        CACHE.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(answer.content)
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == UBI_SHA256, f"{kept} is another than was tested"
    return kept.read_text()


@pytest.fixture
def open_shop(site, serve, page):
    """Return what opens the sample of ``docs/clients.md`` in which something stands, with files beside it."""

    def open_one(mark, files):
        shop = site(files)
        service = serve(cors_origins=(shop,), **KEYS)
        site({"index.html": sample_of("clients.md", mark, service=service.url, key=WRITE_KEY)})
        page.goto(shop)
        page.wait_for_function("typeof clicked === 'function'")
        return page, service

    return open_one


def search(service, user_id):
    """Search as a site's own server does; return the session and the ids in their order."""
    answer = httpx.post(
        f"{service.url}/api/v1/embeddings/similarity-search",
        headers={"Authorization": f"Bearer {WRITE_KEY}"},
        json={"search_query": "something warm", "user_id": user_id, "create_session": True},
    ).raise_for_status()
    found = answer.json()
    return found["session_id"], [each["object_id"] for each in found["search_results"]]


def events_of(service, session_id):
    events = service.context.storage.clickstream.get_session(session_id).events
    return sorted((each.object_id, each.event_type) for each in events)


def test_algolias_search_insights_teaches_this_service(open_shop):
    page, service = open_shop("search-insights.js", {"search-insights.js": INSIGHTS.text()})
    session, before = search(service, "ann")

    page.evaluate("([session, object]) => clicked(session, object, 5)", [session, before[4]])
    page.evaluate(
        """([queryID, object]) => aa("addedToCartObjectIDsAfterSearch", {
          index: "default", eventName: "Added", queryID, objectIDs: [object],
        })""",
        [session, before[3]],
    )

    told = meanwhile(page, lambda: len(told := events_of(service, session)) == 2 and told)
    assert told == sorted([(before[4], "click"), (before[3], "add_to_cart")])
    meanwhile(page, lambda: search(service, "ann")[1] != before)
    assert search(service, "bob")[1] == before


def test_ubis_collector_teaches_this_service_and_brings_searches_of_another(open_shop):
    page, service = open_shop("ubi.js", {"ubi.js": ubi_text(), "axios.js": AXIOS.text()})
    session, before = search(service, "ann")

    said = page.evaluate(
        """async ([session, object]) => [
          await clicked(session, object, 5),
          await searched("elsewhere", "a warm hat", ["scarf", "parka"]),
          await clicked("elsewhere", "parka", 2),
        ]""",
        [session, before[4]],
    )

    assert [each["events"] for each in said] == [{"accepted": 1}, {}, {"accepted": 1}]
    assert events_of(service, session) == [(before[4], "click")]
    assert events_of(service, "elsewhere") == [("parka", "click")]
    after = meanwhile(page, lambda: (now := search(service, "ann")[1]) != before and now)
    assert after.index(before[4]) < 4
