"""A real Chromium for tests, without a word to anybody outside; and axe, which finds what keeps people out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
AXE = Path(os.environ.get("AXE_CORE", "node_modules/axe-core/axe.min.js"))
WIDTHS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


def violations(page: Any) -> list[str]:
    """What axe finds wrong in a page, with the place of each."""
    if not AXE.is_file():
        pytest.skip("needs axe-core: npm install axe-core, or AXE_CORE=path/to/axe.min.js")
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")["violations"]
    return [f"{each['id']} ({each['impact']}): {each['nodes'][0]['html'][:200]}" for each in found]
