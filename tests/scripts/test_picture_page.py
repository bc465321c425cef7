"""The README's picture: what the command takes is of the page as it is, and light enough for a README."""

from pathlib import Path

import pytest
from PIL import Image

from scripts import picture_page
from tests.browsers import CHROMIUM

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_a_picture_of_the_commands_size():
    assert f'src="{picture_page.OUT.as_posix()}"' in (ROOT / "README.md").read_text()
    assert (ROOT / picture_page.OUT).stat().st_size < 150_000
    with Image.open(ROOT / picture_page.OUT) as picture:
        assert picture.width == picture_page.WIDTH


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt install chromium")
def test_the_command_takes_the_page_with_a_verdict_and_the_photograph(tmp_path, capsys):
    pytest.importorskip("playwright", reason="pip install -r requirements-dev.txt un-skips it")
    out = tmp_path / "page.webp"
    assert picture_page.main(["--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 1100 x ")
    assert out.stat().st_size < 150_000
    with Image.open(out) as picture:
        assert 600 < picture.height < 1400
        darkest, _ = picture.crop((100, picture.height // 2, 500, picture.height)).convert("L").getextrema()
        colours = picture.getcolors(maxcolors=1 << 24)
    assert darkest < 40  # the evening sky
    assert colours and len(colours) > 1000


def test_an_api_that_does_not_start_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("IMGV_PROFILE", "none of them")
    assert picture_page.main(["--out", str(tmp_path / "page.webp")]) == 4
    assert "bad_settings: the API did not start" in capsys.readouterr().err
