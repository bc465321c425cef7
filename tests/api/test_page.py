"""The page in a real Chromium: what a person sees, with a mouse, by keyboard, on a phone, in the dark."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.datasets import load_sample_image

from inference.registry import feature_meanings
from inference.words import GRADE_WORDS, SHAPE_WORDS, TIER_MEANINGS, TIER_WORDS
from tests.api.conftest import LiveServer, Watched, local_app, photo, settings_of
from tests.browsers import CHROMIUM, FLAGS, violations

playwright = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-dev.txt un-skips it")

FLIGHT = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": photo()}
FLOWER = {"name": "flower.jpg", "mimeType": "image/jpeg", "buffer": photo("flower.jpg")}
LETTER = {"name": "letter.txt", "mimeType": "text/plain", "buffer": b"dear sir or madam"}


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt install chromium")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, live):
    """Open the page; at the end nothing may have gone wrong in it, or to another host."""
    troubles: list[str] = []
    contexts = []

    def opened(url: str = live.url, **options):
        context = browser.new_context(accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a busy machine
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "console", lambda message: troubles.append(message.text) if "Content Security" in message.text else None
        )
        page.on("request", lambda request: troubles.append(request.url) if _is_foreign(request.url, url) else None)
        page.goto(url)
        page.locator("html[data-ready]").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not troubles


def _is_foreign(address: str, url: str) -> bool:
    return not address.startswith((url, "blob:", "data:"))


def settled(page, count: int = 1):
    """The cards, when all have their answer."""
    cards = page.locator(".check[aria-busy=false]")
    cards.nth(count - 1).wait_for()
    return cards


def test_a_photograph_gets_words_first_then_evidence_with_heatmaps(open_page):
    page = open_page()
    page.set_input_files("#file", FLIGHT)
    card = settled(page).first
    assert card.locator("h2").inner_text() in ("Inconclusive", "Likely a real image", "A real image")
    assert "probability of AI from the pixels" in card.inner_text()
    assert "How sure" in card.inner_text()
    over = card.locator(".stack .over")
    assert not over.is_visible()
    card.get_by_label("Error level analysis").check()
    over.wait_for()
    card.get_by_label("Opacity").fill("25")
    assert over.evaluate("image => [image.style.opacity, image.naturalWidth > 0]") == ["0.25", True]
    card.get_by_label("Nothing").check()
    assert not over.is_visible()
    assert card.locator(".why li").first.inner_text().startswith(("The trained networks", "Noise, colours", "Patterns"))
    card.get_by_text("The strongest numbers behind it").click()
    assert card.locator(".pull").count() >= 1
    assert card.get_by_role("heading", name="Provenance").is_visible()
    card.get_by_text("Metadata of the file").click()
    metadata = card.locator("details").filter(has_text="Metadata of the file").inner_text()
    assert "photo.jpg" not in metadata
    assert "640 × 427" in metadata


def test_a_wrong_verdict_is_reported_from_the_page_with_its_image(open_page, verifier, tmp_path):
    settings = settings_of(feedback_dir=str(tmp_path), feedback_images=True)
    with LiveServer(local_app(settings, verifier)) as server:
        page = open_page(server.url)
        page.set_input_files("#file", FLIGHT)
        card = settled(page).first
        card.get_by_role("button", name="This is wrong").click()
        card.get_by_label("Made by AI").check()
        card.get_by_label("How do you know?").fill("I made <b>it</b>")
        card.get_by_label("Send the image along").check()
        card.get_by_role("button", name="Send", exact=True).click()
        card.get_by_text("Thank you").wait_for()
        assert not card.get_by_role("button", name="This is wrong").is_visible()
    (path,) = tmp_path.glob("*.json")
    said = json.loads(path.read_text())
    assert (said["label"], said["why"], said["image_kept"]) == ("ai", "I made <b>it</b>", True)
    assert path.with_suffix(".image").read_bytes() == FLIGHT["buffer"]


def test_a_server_that_takes_no_reports_shows_no_button_for_them(open_page):
    page = open_page()
    page.set_input_files("#file", FLOWER)
    assert settled(page).first.get_by_role("button", name="This is wrong").count() == 0


def test_a_claim_is_told_in_the_servers_words_and_every_number_is_counted(open_page):
    record = PngInfo()
    record.add_text("parameters", "a lighthouse\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 42")
    drawn = io.BytesIO()
    Image.new("RGB", (300, 300), "teal").save(drawn, "PNG", pnginfo=record)
    page = open_page()
    page.set_input_files("#file", {"name": "drawn.png", "mimeType": "image/png", "buffer": drawn.getvalue()})
    card = settled(page).first
    grade, meaning = GRADE_WORDS["forgeable_metadata"]
    assert card.locator("h2").inner_text().lower() == TIER_WORDS["likely_ai"].lower()
    assert card.locator(".say").inner_text() == TIER_MEANINGS["likely_ai"]
    claim = card.locator(".claims li").first.inner_text()
    assert claim.lower().startswith(grade)
    assert meaning in claim
    assert f"All {len(feature_meanings())} signals" in card.inner_text()


def test_a_picture_inside_that_decides_is_told_before_the_number_of_the_whole(open_page):
    bright = Image.fromarray(load_sample_image("china.jpg")).point(lambda level: level // 8 + 220)
    screen = Image.new("RGB", (900, 900), (8, 8, 8))
    screen.paste(bright, (120, 200))
    drawn = io.BytesIO()
    screen.save(drawn, "PNG")
    with _server(Watched()) as server:  # which calls bright pictures AI
        page = open_page(server.url)
        page.get_by_label("Also check whether").check()
        page.set_input_files("#file", {"name": "screen.png", "mimeType": "image/png", "buffer": drawn.getvalue()})
        card = settled(page).first
        assert card.locator("h2").inner_text() == "AI-generated"
        assert "probability of AI in a picture inside" in card.locator(".summary").inner_text()
        assert "A picture inside" in card.locator(".facts").inner_text()
        assert SHAPE_WORDS["hard"] in card.locator(".evidence").inner_text()


def test_an_inconclusive_image_is_never_called_more_than_that(open_page, browser):
    judge = Watched()
    with _server(judge) as server:
        page = open_page(server.url)
        page.set_input_files("#file", {"name": "grey.png", "mimeType": "image/png", "buffer": _grey()})
        card = settled(page).first
        assert card.locator("h2").inner_text() == "Inconclusive"
        text = page.locator("body").inner_text().lower()
        assert "fake" not in text
        assert "not sure enough to say" in text


def _server(judge, **changed):
    return LiveServer(local_app(settings_of(**changed), judge))


def _grey() -> bytes:
    from tests.fakes import flat_png

    return flat_png(127)


def test_progress_is_told_while_the_models_work(open_page):
    judge = Watched()
    with _server(judge) as server:
        judge.free.clear()
        page = open_page(server.url)
        page.set_input_files("#file", FLIGHT)
        page.get_by_role("heading", name="Measuring").wait_for()
        assert page.locator("progress").is_visible()
        assert page.locator(".check").get_attribute("aria-busy") == "true"
        judge.free.set()
        settled(page)
        assert not page.locator("progress").is_visible()


def test_a_bad_file_gets_a_clear_error_and_a_second_chance(open_page):
    page = open_page()
    page.set_input_files("#file", LETTER)
    card = settled(page).first
    assert "could not be checked" in card.inner_text()
    assert "not an image" in card.inner_text()
    card.get_by_role("button", name="Try again").click()
    settled(page)


@pytest.mark.parametrize("address", ["not an address", "ftp://example.org/a.png", ""])
def test_a_bad_address_is_told_beside_its_field(open_page, address):
    page = open_page()
    page.get_by_label("web address").fill(address)
    page.get_by_role("button", name="Check", exact=True).click()
    assert "http" in page.locator("#link-error").inner_text()
    assert page.evaluate("document.activeElement.id") == "url"
    assert page.locator(".check").count() == 0


def test_an_address_that_is_refused_is_a_card_with_the_reason(open_page):
    page = open_page()
    page.get_by_label("web address").fill("http://127.0.0.1/private.png")
    page.keyboard.press("Enter")
    assert "url_refused" in settled(page).first.inner_text()


def test_many_files_are_tallied_and_their_evidence_opens_one_by_one(open_page):
    page = open_page()
    page.set_input_files("#file", [FLIGHT, LETTER, FLOWER, FLIGHT, FLIGHT])
    cards = settled(page, 5)
    assert [cards.nth(n).locator(".name").first.inner_text() for n in range(3)] == [
        "photo.jpg",
        "letter.txt",
        "flower.jpg",
    ]
    assert "could not be checked: 1" in page.locator("#tally").inner_text()
    assert page.locator(".evidence:visible").count() == 0
    page.get_by_role("button", name="Show evidence").first.click()
    assert page.locator(".evidence:visible").count() == 1


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_photograph_can_be_dropped_or_pasted(open_page, way):
    page = open_page()
    page.evaluate(
        """([way, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(bytes)], "given.jpg", { type: "image/jpeg" }));
            const event = way === "drop"
                ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
            document.body.dispatchEvent(event);
        }""",
        [way, list(photo())],
    )
    assert "given.jpg" in settled(page).first.inner_text()


def test_everything_works_by_keyboard_alone(open_page):
    page = open_page()
    page.set_input_files("#file", FLIGHT)
    card = settled(page).first
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("(({ id, textContent, type }) => (id || textContent || type).trim())(document.activeElement)")
        )
        if reached[-1] == "Print or save as PDF":
            break
    assert {"file", "url", "Check", "Hide evidence", "Save JSON", "Save HTML report"} <= set(reached)
    card.locator("input[type=radio]").first.focus()
    page.keyboard.press("ArrowDown")
    card.locator(".stack .over").wait_for()
    page.get_by_role("button", name="Hide evidence").focus()
    page.keyboard.press("Enter")
    assert not card.locator(".evidence").is_visible()


def test_the_verdict_and_the_report_can_be_saved(open_page):
    page = open_page()
    page.set_input_files("#file", FLIGHT)
    settled(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save JSON").click()
    assert json.loads(Path(download.value.path()).read_text())["schema_version"] == "1"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save HTML report").click()
    assert download.value.suggested_filename == "photo.jpg.html"
    assert "<!doctype html>" in Path(download.value.path()).read_text()


def test_earlier_checks_stay_in_this_browser_until_they_are_cleared(open_page):
    page = open_page()
    page.set_input_files("#file", FLIGHT)
    settled(page)
    page.reload()
    page.locator("html[data-ready]").wait_for()
    title, clear = (page.locator(each).bounding_box() for each in ("#history-title", "#clear"))
    assert clear["x"] > title["x"] + title["width"]
    page.locator("#checks button").click()
    assert "photo.jpg" in settled(page).first.inner_text()
    page.get_by_role("button", name="Clear").click()
    assert not page.locator("#history").is_visible()
    page.reload()
    page.locator("html[data-ready]").wait_for()
    assert page.locator("#checks li").count() == 0


def test_names_and_metadata_from_strangers_are_text(open_page):
    page = open_page()
    page.set_input_files("#file", {**FLIGHT, "name": "<img src=x onerror=alert(1)>.jpg"})
    assert "<img src=x" in settled(page).first.inner_text()
    assert page.locator("img[src=x]").count() == 0


def test_a_key_is_asked_for_and_used(open_page):
    from api.limits import new_key

    key, digest = new_key()
    with _server(Watched(), api_keys=f"alice={digest}") as server:
        page = open_page(server.url)
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Use").click()
        page.locator("#access").wait_for(state="hidden")
        page.set_input_files("#file", FLIGHT)
        assert settled(page).first.locator("h2").inner_text()


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_the_screen(open_page, width):
    page = open_page(viewport={"width": width, "height": 800})
    page.set_input_files("#file", FLIGHT)
    settled(page)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page, scheme):
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    page.set_input_files("#file", [FLIGHT, LETTER])
    settled(page, 2)
    page.get_by_role("button", name="Show evidence").click()
    for summary in page.locator("summary").all():
        summary.click()
    page.get_by_label("Error level analysis").check()
    assert violations(page) == []
    assert (
        page.evaluate("getComputedStyle(document.body).backgroundColor")
        == {
            "light": "rgb(246, 245, 242)",
            "dark": "rgb(20, 23, 27)",
        }[scheme]
    )
