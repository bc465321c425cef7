"""Many answers at a glance: order, counts, the table, and what a spreadsheet or a browser makes of hostile names."""

import csv
import io
import json

import pytest
from PIL import Image

import img_ml_verify as cli
from inference.batch import MOST_SUSPICIOUS_FIRST, Line, counts, in_order, told
from inference.sheet import SHEET, TABLE, write_sheet

LINES = [
    Line("a.jpg", "NON-AI", "real", 0.03, "fusion"),
    Line("b.jpg", "AI", "likely_ai", 0.2, "provenance"),
    Line("c.jpg", "NON-AI", "inconclusive", 0.6, "fusion"),
    Line("d.jpg", None, None, None, None, "not_an_image: text, not an image"),
    Line("e.jpg", "AI", "likely_ai", 0.9, "fusion"),
    Line("f.jpg", "NON-AI", "inconclusive", 0.3, "fusion"),
]


def test_the_most_suspicious_stand_first_and_those_without_a_verdict_last():
    assert [line.source for line in in_order(LINES)] == ["e.jpg", "b.jpg", "c.jpg", "f.jpg", "a.jpg", "d.jpg"]
    assert MOST_SUSPICIOUS_FIRST[0] == "ai"


def test_a_picture_inside_stands_where_its_own_probability_puts_it_and_is_told(tmp_path):
    screen = Line("s.jpg", "AI", "likely_ai", 0.06, "fusion", inside_prob=0.95)
    assert [line.source for line in in_order([*LINES, screen])][:2] == ["s.jpg", "e.jpg"]
    assert told(screen) == " (by a picture inside, 0.95)"
    assert [told(line) for line in LINES[:2]] == ["", " (by provenance)"]
    assert "0.06 (by a picture inside, 0.95)" in write_sheet(tmp_path, [screen]).read_text()


def test_every_tier_is_counted_those_with_none_too():
    expected = {"ai": 0, "likely_ai": 2, "inconclusive": 2, "likely_real": 0, "real": 1, "error": 1}
    assert counts(LINES) == expected


def test_the_sheet_escapes_names_and_its_table_has_no_formulas(tmp_path):
    named = tmp_path / "x #1%.jpg-0"
    preview, report = str(named / "preview.jpg"), str(named / "report.html")
    hostile = [
        Line("=HYPERLINK(1).jpg", "AI", "ai", 0.99, "fusion", "", preview, report),
        Line("<script>alert(1)</script>", None, None, None, None, "@error"),
        Line("caf\udce9.jpg", "NON-AI", "real", 0.1, "fusion"),
    ]
    page = write_sheet(tmp_path, hostile).read_text()
    assert "<script" not in page
    assert 'src="x%20%231%25.jpg-0/preview.jpg"' in page
    rows = list(csv.DictReader(io.StringIO((tmp_path / TABLE).read_text("utf-8-sig"))))
    assert [row["source"] for row in rows] == ["'=HYPERLINK(1).jpg", "caf\\udce9.jpg", "<script>alert(1)</script>"]
    assert rows[2]["error"] == "'@error"
    assert rows[0]["fusion_prob"] == "0.99"


def test_a_sheet_of_nothing_is_a_page_too(tmp_path):
    assert "0 images" in write_sheet(tmp_path, []).read_text()


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    with Image.open(str(cli.demo_photograph())) as image:
        image.crop((0, 0, 200, 150)).save(images / "a.png")
        image.crop((200, 100, 400, 250)).save(images / "b.jpg")
    (images / "broken.jpg").write_text("no image")
    return images


def test_a_folder_is_summed_up_and_gets_a_sheet(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("IMGV_PROFILE", "light")
    out = tmp_path / "out"
    assert cli.main([str(folder), "--summary", "--json", "--artifacts", str(out)]) == 3
    told, log = capsys.readouterr()
    found = json.loads(told)
    assert sum(found["counts"].values()) == len(found["images"]) == 3
    assert found["counts"]["error"] == 1
    assert found["images"][-1]["error"].startswith("not_an_image")
    assert str(out / SHEET) in log
    page = (out / SHEET).read_text()
    assert page.count("<img") == 2
    assert all((out / each["preview"]).is_file() for each in found["images"] if each["tier"])


def test_the_summary_names_what_is_not_plainly_real(folder, capsys, monkeypatch):
    monkeypatch.setenv("IMGV_PROFILE", "light")
    monkeypatch.setenv("IMGV_THRESHOLD", "0.000001")
    assert cli.main([str(folder), "--summary"]) == 3
    out = capsys.readouterr().out
    assert "1  could not be judged" in out
    assert "broken.jpg: not_an_image" in out
    assert out.splitlines()[0].endswith("AI-generated")
