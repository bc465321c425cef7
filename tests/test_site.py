"""The docs' site builds without a warning and without a network, and no link in any page of the repository is dead."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest

from tests.browsers import CHROMIUM, FLAGS, WIDTHS, violations

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "clients").glob("*/*.md"),
        *ROOT.glob("models/*/*/*.md"),
    ]
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.slow
def test_the_site_builds_strictly_with_every_page_and_loads_nothing_from_elsewhere(tmp_path) -> None:
    pytest.importorskip("material", reason="pip install -r requirements-dev.txt un-skips it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.stem for path in tmp_path.glob("*.html")}
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} | {"settings", "CHANGELOG", "CONTRIBUTING"} <= made
    settings = (tmp_path / "settings.html").read_text()
    assert "IMGV_PROFILE" in settings
    assert '<div class="settings highlight">' in settings  # docs/site.css breaks its lines
    for page in tmp_path.glob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="?(https?://[^" >]+)', page.read_text())
        assert loaded == [], page.name
        assert "```" not in page.read_text(), page.name  # a block that was not understood


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt install chromium")
def test_the_site_fits_a_phone_and_keeps_nobody_out_by_day_and_by_night(tmp_path) -> None:
    pytest.importorskip("material", reason="pip install -r requirements-dev.txt un-skips it")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-dev.txt un-skips it")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=110)
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for scheme, width, name in product(("light", "dark"), WIDTHS, ("index", "guide", "settings")):
            page = browser.new_page(viewport=WIDTHS[width], color_scheme=scheme)
            page.goto((tmp_path / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]["width"], (name, width)
            assert violations(page) == [], (name, scheme, width)
            page.close()
        browser.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_link_inside_the_repository_is_dead(page: Path) -> None:
    for link in LINK.findall(re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)):
        path, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {_slug(each) for each in headings}, link


def _slug(heading: str) -> str:
    """As GitHub and MkDocs make it of a heading's text."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")


def test_the_package_says_what_builds_the_site() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [each.split(">")[0] for each in extras["docs"]] == ["mkdocs-material"]
