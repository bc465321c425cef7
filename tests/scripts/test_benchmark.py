"""What the benchmark compares is the same work: the rows differ in how it is done, not in what comes out."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import httpx
import pytest
from PIL import Image

from inference.detector import build_verifier
from ingress.sources import Ingress
from scripts import benchmark
from utils.errors import WorkerLost
from utils.settings import load_settings


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmark.photographs(tmp_path_factory.mktemp("photographs"), 1, 0.1)[0]


def test_photographs_differ_and_have_the_size_asked_for(tmp_path: Path) -> None:
    paths = benchmark.photographs(tmp_path, 7, 0.05)
    assert len({path.read_bytes() for path in paths}) == 7
    for path in paths:
        with Image.open(path) as image:
            assert image.width * image.height == pytest.approx(50_000, rel=0.02)


def test_the_naive_way_comes_to_the_same_probability(photograph: Path) -> None:
    settings = load_settings(profile="embedded")
    verifier = build_verifier(settings.models)
    ours = json.loads(benchmark.one(verifier, settings.decode, photograph))
    assert benchmark.Naive(verifier).judge(photograph) == pytest.approx(ours["fusion_prob"], abs=2e-3)


def test_the_limit_runs_every_network_on_what_it_was_given(photograph: Path) -> None:
    settings = load_settings(profile="embedded")
    verifier = build_verifier(settings.models)
    with Ingress(settings.decode) as ingress:
        (calls,) = benchmark.network_inputs(verifier, [ingress.load(str(photograph))])
    assert calls
    assert all(pixels.dtype == "uint8" and pixels.shape[-1] == 3 for _, pixels in calls)
    benchmark.bare([calls])


def test_the_worker_row_answers_every_photograph(photograph: Path) -> None:
    settings = load_settings(profile="embedded")
    verifier = build_verifier(settings.models)
    with benchmark.Queue(settings, verifier) as queue:
        answers = queue.judge([photograph, photograph])
    expected = json.loads(benchmark.one(verifier, settings.decode, photograph))["fusion_prob"]
    assert [json.loads(answer["verdict"])["fusion_prob"] for answer in answers] == [expected, expected]


def test_the_api_row_asks_for_every_photograph_over_http(photograph: Path) -> None:
    settings = load_settings(profile="light")
    with build_verifier(settings.models) as verifier, benchmark.server(settings, verifier) as url:
        benchmark.post(url, [photograph, photograph])
        with httpx.Client(base_url=url) as client:
            assert 'imgv_api_jobs_total{outcome="done"} 2.0' in client.get("/metrics").text


def test_a_process_of_its_own_reports_its_own_peak(photograph: Path) -> None:
    seconds, peak = benchmark.in_own_process("light", photograph)
    assert seconds > 0
    assert 50 << 20 < peak < 1 << 30  # not that of this process, which holds torch


def test_a_worker_that_gave_up_ends_the_wait_for_its_answers(photograph: Path) -> None:
    class Database:
        def xlen(self, _: str) -> int:
            return 0

        def xadd(self, *_: object) -> None: ...

    queue = benchmark.Queue(load_settings(profile="embedded"), None)  # type: ignore[arg-type]  # it judges nothing
    queue._db, queue._worker = Database(), threading.Thread()  # type: ignore[assignment]
    with pytest.raises(WorkerLost, match="gave up"):
        queue.judge([photograph])
