"""The browser extension: its manifest asks for little, and in a real Chromium it gets one's own server's verdict."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from itertools import product

import pytest

from inference.words import TIER_WORDS
from tests.api.conftest import LiveServer, Watched, local_app, photo, settings_of
from tests.browsers import CHROMIUM, FLAGS, WIDTHS, violations
from tests.clients.conftest import ROOT

EXTENSION = ROOT / "clients" / "extension"
MANIFEST = json.loads((EXTENSION / "manifest.json").read_text())
_DIGEST = hashlib.sha256(base64.b64decode(MANIFEST["key"])).hexdigest()
ID = _DIGEST[:32].translate(str.maketrans("0123456789abcdef", "abcdefghijklmnop"))  # as Chromium makes it
ORIGIN = f"chrome-extension://{ID}"


def test_the_manifest_asks_for_no_right_to_read_pages_unasked() -> None:
    assert MANIFEST["manifest_version"] == 3
    assert set(MANIFEST["permissions"]) == {"contextMenus", "storage", "activeTab", "scripting"}
    assert MANIFEST["host_permissions"] == ["http://127.0.0.1/*", "http://localhost/*"]
    assert "content_scripts" not in MANIFEST


def test_every_file_that_is_named_exists_and_nothing_is_loaded_from_elsewhere() -> None:
    named = {MANIFEST["background"]["service_worker"], MANIFEST["options_ui"]["page"]}
    for path in EXTENSION.glob("*.html"):
        named |= set(re.findall(r'(?:href|src)="([^"]+)"', path.read_text()))
    for path in EXTENSION.glob("*.js"):
        named |= {each.removeprefix("./") for each in re.findall(r'from "([^"]+)"', path.read_text())}
    assert named <= {path.name for path in EXTENSION.iterdir()}


def test_the_readme_names_the_origin_that_the_server_must_allow() -> None:
    assert f"IMGV_API_ORIGINS={ORIGIN} " in (EXTENSION / "README.md").read_text()


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with LiveServer(local_app(settings_of(api_origins=ORIGIN, api_hosts=""), Watched())) as running:
        yield running


@pytest.fixture
def site(tmp_path) -> Iterator[str]:
    """A page with a photograph."""
    (tmp_path / "photo.jpg").write_bytes(photo())
    (tmp_path / "index.html").write_text('<!doctype html><title>A page</title><img src="photo.jpg" alt="A photo">')

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *given: Quiet(*given, directory=str(tmp_path))
    ) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module", params=["light", "dark"])
def browser(request, tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-dev.txt un-skips it")
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt install chromium")
    with playwright.sync_playwright() as engine:
        context = engine.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            color_scheme=request.param,
            viewport={"width": 480, "height": 640},
            ignore_default_args=["--disable-extensions"],
            args=[*FLAGS, f"--disable-extensions-except={EXTENSION}", f"--load-extension={EXTENSION}"],
        )
        context.set_default_timeout(20_000)
        if not context.service_workers:
            context.wait_for_event("serviceworker")
        yield context
        context.close()


def test_a_click_in_the_menu_shows_the_verdict_of_ones_own_server(browser, server, site, tmp_path) -> None:
    (worker,) = browser.service_workers
    assert worker.url.startswith(ORIGIN)
    options = browser.new_page()
    options.goto(f"{ORIGIN}/options.html")
    options.locator("#origin", has_text=ORIGIN).wait_for()
    options.fill("#server", f"{server.url}/somewhere")
    options.click("button")
    options.get_by_text("It answers, with the profile embedded.").wait_for()
    page = browser.new_page()
    page.goto(site)
    with browser.expect_page() as opened:  # Chromium's own menu is no part of a page: its event is sent instead
        worker.evaluate(
            """async (src) => {
                const [tab] = await chrome.tabs.query({ active: true, url: `${new URL(src).origin}/*` });
                chrome.contextMenus.onClicked.dispatch({ menuItemId: "judge", srcUrl: src, frameId: 0 }, tab);
            }""",
            f"{site}/photo.jpg",
        )
    verdict = opened.value
    verdict.locator("main[aria-busy=false]").wait_for()
    assert verdict.locator("h1").inner_text().lower() in {word.lower() for word in TIER_WORDS.values()}
    number = verdict.locator("#number").inner_text()
    assert "640 × 427 JPEG" in number
    assert re.search(r"from the pixels: (\d+|under 1|over 99) %\. Decided by the pixels\.", number), number
    assert verdict.locator("#why li").count()
    assert verdict.locator("img").evaluate("image => image.naturalWidth") == 640
    for name, width in product(("verdict", "options"), WIDTHS):
        each = {"verdict": verdict, "options": options}[name]
        each.set_viewport_size(WIDTHS[width])
        assert each.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]["width"]
        assert violations(each) == []
        each.screenshot(path=tmp_path / f"{name}-{width}.png", full_page=True)
    for each in (options, page, verdict):
        each.close()


def test_a_server_that_is_not_there_is_told_with_what_to_do(browser, site) -> None:
    page = browser.new_page()
    page.goto(f"{ORIGIN}/options.html")
    page.fill("#server", "http://127.0.0.1:9")
    page.click("button")
    page.get_by_text("No answer from http://127.0.0.1:9").wait_for()
    page.goto(f"{ORIGIN}/verdict.html?tab=-1&frame=0&src={site}/photo.jpg")
    page.get_by_text(f"does its IMGV_API_ORIGINS list {ORIGIN}").wait_for()
    assert page.locator("h1").inner_text() == "No verdict"
    assert not page.locator("img").is_visible()
    page.close()
