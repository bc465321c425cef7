"""The command line as a user meets it: answers, JSON, exit codes, and what goes where."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import skimage
from PIL import Image, PngImagePlugin

import img_ml_verify as cli
from inference.words import TIER_WORDS
from ingress.sources import Ingress
from utils.contracts import PUBLIC_FEATURES
from utils.verdict_json import json_schema

ROOT = Path(__file__).parent.parent
PHOTO = str(cli.demo_photograph())
A1111 = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64, Model: sd15"


@pytest.fixture
def small(tmp_path):
    """A photograph small enough for fast runs, as a file."""
    path = tmp_path / "small.png"
    with Image.open(PHOTO) as image:
        image.crop((0, 0, 160, 120)).save(path)
    return path


@pytest.fixture
def marked(tmp_path, small):
    """The small photograph with a generator's mark: likely AI, by provenance."""
    path, text = tmp_path / "marked.png", PngImagePlugin.PngInfo()
    text.add_text("parameters", A1111)
    with Image.open(small) as image:
        image.save(path, pnginfo=text)
    return path


def run(capsys, *argv):
    code = cli.main([str(each) for each in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_demo_judges_a_real_photograph(capsys):
    code, out, _ = run(capsys, "--demo")
    assert code == 0
    assert "china.jpg" in out
    assert "decided by fusion" in out


def words(text: str) -> list[str | float]:
    """Of what a verdict says of an image; numbers as such, without the file's place and the time taken."""
    text = re.sub(r"\S+/(?=[\w.-]+\.jpg)|in \d+ ms", "", text)
    found = [each.rstrip(",;") for each in text.split()]
    return [float(each) if re.fullmatch(r"[+-]?\d+\.\d+", each) else each for each in found]


def test_the_readme_shows_what_the_demo_prints(capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(readme) if line.endswith("$ python img_ml_verify.py --demo"))
    block = itertools.takewhile(str.strip, readme[start + 1 :])
    _, out, _ = run(capsys, "--demo")
    shown, printed = words("\n".join(block)), words(out)
    for number in (0, 1):  # another processor rounds otherwise, by less than this
        told = [[each for each in text if isinstance(each, float) is bool(number)] for text in (shown, printed)]
        assert told[0] == pytest.approx(told[1], abs=0.015) if number else told[0] == told[1]


def test_the_page_on_verdicts_shows_what_is_answered(capsys, tmp_path):
    """Its three examples, each named in the first line of its block."""
    page = (ROOT / "docs" / "verdict.md").read_text(encoding="utf-8")
    shown = re.findall(r"^    ((?:NON-)?AI) +(0\.\d\d)  (\S.*?) {2,}(\w+\.\w+)$", page, re.MULTILINE)
    assert [name for *_, name in shown] == ["chelsea.png", "marked.png", "color.png"]
    mark = PngImagePlugin.PngInfo()
    mark.add_text("parameters", A1111)
    with Image.open(Path(PHOTO).with_name("flower.jpg")) as flower:
        flower.save(tmp_path / "marked.png", pnginfo=mark)
    for name in ("chelsea.png", "color.png"):
        shutil.copy(Path(skimage.__file__).parent / "data" / name, tmp_path)
    for label, probability, tier, name in shown:
        verdict = json.loads(run(capsys, tmp_path / name, "--json")[1])
        assert (verdict["label"], TIER_WORDS[verdict["tier"]]) == (label, tier), name
        assert verdict["fusion_prob"] == pytest.approx(float(probability), abs=0.015), name


def test_one_image_gives_one_json_object_that_follows_the_schema(capsys, small):
    code, out, err = run(capsys, small, "--json")
    verdict = json.loads(out)
    jsonschema.validate(verdict, json_schema())
    assert (code, err) == (0, "")
    assert (verdict["width"], verdict["height"], verdict["format"]) == (160, 120, "PNG")
    assert verdict["label"] == ("AI" if verdict["fusion_prob"] >= verdict["threshold"] else "NON-AI")


def test_the_embedded_profile_needs_no_training_library(small):
    code = (
        "import sys, img_ml_verify as cli\n"
        f"assert cli.main(['--json', {str(small)!r}]) == 0\n"
        "print(sorted({'torch', 'timm', 'transformers', 'sklearn', 'pandas', 'httpx', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.endswith("\n[]\n"), done.stdout[-300:] + done.stderr


def test_several_images_give_a_json_line_each_in_order(capsys, small, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("not an image")
    code, out, _ = run(capsys, small, bad, small, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    assert [line["source"] for line in lines] == [str(small), str(bad), str(small)]
    assert lines[1]["error"]["code"] == "not_an_image"
    assert lines[0]["fusion_prob"] == lines[2]["fusion_prob"]


def test_a_folder_is_searched_and_other_files_are_left_alone(capsys, small):
    (small.parent / "notes.txt").write_text("hello")
    (small.parent / "deeper").mkdir()
    small.with_name("deeper").joinpath("B.PNG").write_bytes(small.read_bytes())
    code, out, _ = run(capsys, small.parent, "--json")
    assert code == 0
    assert [Path(json.loads(line)["source"]).name for line in out.splitlines()] == ["B.PNG", "small.png"]


def test_an_empty_folder_has_its_own_error_and_costs_nobody_an_answer(capsys, small, tmp_path):
    empty = tmp_path / "empty"
    (empty / "folder.jpg").mkdir(parents=True)
    code, out, _ = run(capsys, empty, small, "--json")
    refused, judged = map(json.loads, out.splitlines())
    assert (code, refused["error"]["code"], judged["source"]) == (3, "file_not_found", str(small))


def test_standard_input_is_judged(small):
    command = [sys.executable, "img_ml_verify.py", "-", "--json"]
    done = subprocess.run(command, input=small.read_bytes(), capture_output=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout)["source"] == "-"
    assert done.stderr == b""


def test_a_generator_mark_decides_and_its_removal_takes_the_claim_away(capsys, small, marked):
    _, with_mark, _ = run(capsys, marked, "--json")
    _, without, _ = run(capsys, small, "--json")
    with_mark, without = json.loads(with_mark), json.loads(without)
    assert (with_mark["label"], with_mark["tier"], with_mark["decided_by"]) == ("AI", "likely_ai", "provenance")
    assert (without["decided_by"], without["provenance"]["claims"]) == ("fusion", [])
    assert with_mark["fusion_prob"] == pytest.approx(without["fusion_prob"], abs=0.02)  # the pixels are the same


def test_a_tier_that_was_named_fails_the_run_also_beside_an_image_that_cannot_be_judged(capsys, small, marked):
    bad = small.with_name("bad.jpg")
    bad.write_text("not an image")
    light = ("--profile", "light", "--summary")
    assert run(capsys, small, marked, *light, "--fail-on", "ai")[0] == 0
    assert run(capsys, small, marked, bad, *light, "--fail-on", "ai")[0] == 3
    code, out, _ = run(capsys, small, marked, bad, *light, "--fail-on", "likely_ai,ai")
    assert code == 5
    assert "marked.png (by provenance)" in out
    assert "not_an_image" in out


def test_artifacts_are_written_where_the_verdict_says(capsys, small, tmp_path):
    code, out, _ = run(capsys, small, "--json", "--artifacts", tmp_path / "out")
    written = json.loads(out)["artifacts"]
    assert code == 0
    assert {"ela", "noise", "report", "verdict"} <= set(written)
    for name, path in written.items():
        if path.endswith(".png"):
            with Image.open(path) as picture:
                assert picture.size == (160, 120), name
    assert json.loads(Path(written["verdict"]).read_text()) == json.loads(out)
    scores = "How the scores of real images"
    assert scores not in Path(written["report"]).read_text(encoding="utf-8"), "too small to be compared"
    out = run(capsys, PHOTO, "--json", "--artifacts", tmp_path / "photo")[1]
    assert scores in Path(json.loads(out)["artifacts"]["report"]).read_text(encoding="utf-8")


def test_a_disk_without_room_for_artifacts_costs_no_verdict(capsys, small, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("inference.report.write_atomic", full)
    code, out, err = run(capsys, small, "--json", "--artifacts", tmp_path / "out")
    assert (code, json.loads(out)["artifacts"]) == (0, {})
    assert any("No space left on device" in warning for warning in json.loads(out)["warnings"])
    assert "No space left" in err


def test_the_report_is_self_contained_and_escapes_what_strangers_wrote(capsys, tmp_path):
    nasty = tmp_path / "a&<b>'.png"
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", A1111.replace("a cat", "<script>alert(1)</script>"))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(nasty, pnginfo=text)
    _, out, _ = run(capsys, nasty, "--json", "--artifacts", tmp_path / "out")
    page = Path(json.loads(out)["artifacts"]["report"]).read_text()
    assert "<script>alert(1)" not in page
    assert "a&<b>" not in page
    assert "http://" not in page.replace("http://cv.iptc.org", "")
    assert 'src="http' not in page
    assert all(name in page for name in PUBLIC_FEATURES)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no input"),
        (["x.jpg", "--threshold", "7"], "0..1"),
        (["--profile", "huge", "x"], "invalid choice"),
        (["x.jpg", "--artifacts", __file__], "--artifacts"),
        (["x.jpg", "--fail-on", "ai,likely"], "no tier 'likely'"),
        (["x.jpg", "--fail-on", ""], "no tier ''"),
    ],
)
def test_bad_usage_exits_with_2(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_an_incomplete_installation_exits_with_4(capsys, monkeypatch, small):
    monkeypatch.setenv("IMGV_FUSION", "no-such-artifact")
    code, out, err = run(capsys, small)
    assert (code, out) == (4, "")
    assert err.startswith("fusion_corrupt: ")


def test_a_setting_that_no_image_survives_stops_the_run(capsys, monkeypatch, small, tmp_path):
    monkeypatch.setenv("IMGV_C2PA_TRUST_ANCHORS", str(tmp_path / "missing.pem"))
    code, out, err = run(capsys, small)
    assert (code, out) == (4, "")
    assert err.startswith("bad_settings: IMGV_C2PA_TRUST_ANCHORS")


def test_the_demo_says_what_it_needs(capsys, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["--demo"])
    assert stop.value.code == 4
    assert "pip install scikit-learn" in capsys.readouterr().err


def test_a_refused_url_is_answered_without_a_traceback(capsys):
    code, out, _ = run(capsys, "http://127.0.0.1/a.jpg", "--json")
    assert code == 3
    assert json.loads(out)["error"]["code"] == "url_refused"


def test_a_data_uri_is_judged_and_a_broken_one_refused(capsys, small):
    uri = "data:image/png;base64," + base64.b64encode(small.read_bytes()).decode()
    code, out, _ = run(capsys, uri, "data:image/png;base64,?", small, "--json")
    judged, refused, same = map(json.loads, out.splitlines())
    assert (code, refused["error"]["code"]) == (3, "not_an_image")
    assert judged["source"] == refused["source"] == "data:image/png;base64,…"
    assert (judged["sha256"], judged["fusion_prob"]) == (same["sha256"], same["fusion_prob"])


def test_the_threshold_moves_the_label(capsys, small):
    assert json.loads(run(capsys, small, "--json", "--threshold", "0")[1])["label"] == "AI"
    assert json.loads(run(capsys, small, "--json", "--threshold", "1")[1])["label"] == "NON-AI"


def test_the_schema_is_printed(capsys):
    assert json.loads(run(capsys, "--schema")[1]) == json_schema()


@pytest.mark.parametrize("option", ["--help", "--schema"])
def test_help_and_schema_do_not_import_torch(option):
    code = f"import sys, img_ml_verify\ntry: img_ml_verify.main([{option!r}])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_colour_goes_into_a_pipe(capsys, small):
    assert "\x1b" not in run(capsys, small)[1]


def test_a_file_name_cannot_steer_the_terminal(capsys, small):
    evil = small.with_name("a\x1b[31mred\n.png")
    evil.write_bytes(small.read_bytes())
    out = run(capsys, evil)[1]
    assert "\x1b" not in out


def test_a_name_that_is_no_text_or_too_long_is_answered(capsysbinary, small, tmp_path):
    odd = os.fsencode(small.with_name("caf")) + b"\xe9.png"
    Path(os.fsdecode(odd)).write_bytes(small.read_bytes())
    code = cli.main([os.fsdecode(odd), "x" * 300, "--json", "--artifacts", str(tmp_path / "out")])
    judged, refused = map(json.loads, capsysbinary.readouterr().out.splitlines())
    assert code == 3
    assert os.fsencode(judged["source"]) == odd
    assert "caf" in Path(judged["artifacts"]["report"]).read_text()
    assert refused["error"]["code"] == "file_not_found"


@pytest.mark.parametrize("option", ["--json", ""])
def test_a_reader_that_goes_away_is_no_error(small, option):
    command = f"{sys.executable} img_ml_verify.py {small} {small} {option} | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, check=False)
    assert done.stderr == b""
    assert done.returncode == 0


def test_truncated_photographs_are_judged_and_flagged(capsys, tmp_path):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(Path(PHOTO).read_bytes()[:90_000])
    code, out, _ = run(capsys, cut, "--json")
    assert code == 0
    assert any("truncated" in warning for warning in json.loads(out)["warnings"])


def test_a_bug_while_loading_one_image_leaves_the_others_their_answers(capsys, small, monkeypatch, tmp_path):
    real = Ingress.decode

    def decode(self, raw, source):
        if Path(source).name == "bug.png":
            raise ZeroDivisionError
        return real(self, raw, source)

    monkeypatch.setattr(Ingress, "decode", decode)
    shutil.copy(small, tmp_path / "bug.png")
    code, out, _ = run(capsys, tmp_path / "bug.png", small, "--json")
    bug, good = (json.loads(line) for line in out.splitlines())
    assert (code, bug["error"]["code"]) == (3, "internal")
    assert "label" in good
