"""The report and the contact sheet in a real Chromium: wide and narrow, light and dark, and what axe finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.datasets import load_sample_image

import img_ml_verify
from inference.sheet import SHEET
from tests.browsers import CHROMIUM, FLAGS, WIDTHS, violations

playwright = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-dev.txt un-skips it")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt install chromium")]
PAGES = {"sheet": SHEET, "report": "china*/report.html", "claim": "marked*/report.html"}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """What the command line writes for a folder: a photograph, a marked picture, a flat one, one with a bad name."""
    images, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("out")
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    photograph.save(images / "china.jpg")
    photograph.resize((320, 214)).save(
        images / ("a name as long as those of some cameras and messengers " * 2 + "<b>.jpg")
    )
    record = PngInfo()
    record.add_text("parameters", "a lighthouse\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 42")
    photograph.save(images / "marked.png", pnginfo=record)
    Image.new("RGB", (300, 300), "teal").save(images / "flat.png")
    (images / "letter.png").write_bytes(b"dear sir")
    assert img_ml_verify.main([str(images), "--artifacts", str(out), "--stability"]) == 3
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_and_keeps_nobody_out(written, browser, tmp_path, name, scheme, width) -> None:
    (path,) = written.glob(PAGES[name])
    context = browser.new_context(viewport=WIDTHS[width], color_scheme=scheme)
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.goto(path.as_uri())
    for summary in page.locator("summary").all():
        summary.click()
    page.screenshot(path=tmp_path / f"{name}-{scheme}-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]["width"]
    assert troubles == []
    assert violations(page) == []
    context.close()


def test_a_map_is_laid_over_the_image_by_a_choice(written, browser) -> None:
    (path,) = written.glob(PAGES["report"])
    page = browser.new_page()
    page.goto(path.as_uri())
    overlay = page.locator("#overlay")
    assert not overlay.is_visible()
    page.get_by_label("Error level analysis").check()
    overlay.wait_for()
    page.get_by_label("opacity").fill("0.25")
    assert overlay.evaluate("image => [image.style.opacity, image.naturalWidth > 0]") == ["0.25", True]
    page.close()
