"""/docs and /redoc: the API to read and to try, without a request to another host."""

from __future__ import annotations

import pytest

from tests.api.conftest import LiveServer, Watched, local_app, settings_of
from tests.api.test_page import browser  # noqa: F401 - a fixture


def test_the_reference_needs_no_key_and_its_policy_names_no_other_host(serve):
    async def work(client):
        return [await client.get(path) for path in ("/docs", "/redoc", "/static/reference/swagger-ui-bundle.js")]

    answers = serve(work, api_keys=f"alice={'0' * 64}")
    assert [each.status_code for each in answers] == [200, 200, 200]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert "http" not in policy
        assert "script-src 'self';" in policy


@pytest.fixture(scope="module")
def server():
    with LiveServer(local_app(settings_of(), Watched())) as running:
        yield running


@pytest.mark.parametrize(("path", "shown"), [("/docs", "#operations-verdicts-verify_v1_verify_post"), ("/redoc", "h1")])
def test_the_reference_shows_the_api_from_files_that_the_server_carries(browser, server, path, shown):  # noqa: F811
    page = browser.new_page()
    failures, asked = [], []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("requestfinished", lambda request: asked.append(request.url))
    try:
        page.goto(server.url + path)
        page.locator(shown).first.wait_for()
        assert "Judge one image" in page.locator("body").inner_text()
    finally:
        page.close()
    assert failures == []
    assert f"{server.url}/openapi.json" in asked
    assert [each for each in asked if not each.startswith((server.url, "data:", "blob:"))] == []
