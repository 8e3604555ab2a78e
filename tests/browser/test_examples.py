"""What ``examples`` shows, run as its README says; ``chat.py`` is run by the tests of its integration."""

import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import expect

from browser.conftest import axe_findings, keep_screenshot

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@contextmanager
def running(*arguments, ready):
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield next(line for line in process.stdout if ready in line)
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


def said_by(*arguments):
    ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_the_shop_puts_first_what_its_visitor_put_into_the_basket(postgres_url, serve, page, open_page):
    port = free_port()
    service = serve(database_url=postgres_url, cors_origins=(f"http://127.0.0.1:{port}",))
    shop = EXAMPLES / "shop" / "shop.py"
    with running(shop, "--service", service.url, "--port", str(port), ready="open at") as line:
        url = line.split()[-1]
        page.goto(url)
        rows = page.get_by_role("listitem")
        expect(rows).to_have_count(8)
        before = rows.all_inner_texts()
        assert not axe_findings(page)

        rows.nth(5).get_by_role("button").click()
        chosen = before[5].split("\n")[0]
        for _ in range(60):
            page.get_by_role("button", name="Search").click()
            page.wait_for_timeout(250)
            if "In your order" in page.get_by_role("status").inner_text():
                break

        after = [text.split("\n")[0] for text in rows.all_inner_texts()]
        assert after.index(chosen) < 5
        keep_screenshot(page, "example-shop")
        stranger = open_page()
        stranger.goto(url)
        expect(stranger.get_by_role("status")).to_have_text("In the order for everybody.")
        assert stranger.get_by_role("listitem").all_inner_texts() == before


def test_the_documentation_is_found_opened_and_found_again(postgres_url, serve, tmp_path):
    service = serve(database_url=postgres_url)
    shutil.copy(ROOT / "docs" / "security.md", tmp_path)
    program = (EXAMPLES / "documentation.py", "--service", service.url)

    stored = said_by(*program, tmp_path)
    found = said_by(*program, "what a stolen key can do", "--open", "2").splitlines()

    assert "indexed=" in stored
    assert [line[0] for line in found[:5]] == list("12345")
    assert any("stolen" in line for line in found[:3])
    assert found[6] in found[1]


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.*")), ids=lambda path: path.name)
def test_an_example_is_short(path):
    assert len(path.read_text().splitlines()) <= 80
