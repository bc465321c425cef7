"""The server's process itself: it starts, and a signal lets it finish."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.api.conftest import photo

ROOT = Path(__file__).parents[2]


def test_sigterm_finishes_what_was_taken():
    environment = {"PATH": os.environ["PATH"], "IMGV_API_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "api"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    lines = []
    while "ready" not in (lines[-1] if lines else ""):
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    url = re.search(r"http://\S+?(?=/$|/\s)", lines[-1]).group()
    with httpx.Client(base_url=url, timeout=30) as client:
        job = client.post("/v1/verify", files={"file": photo()}, params={"wait_seconds": 0, "artifacts": True}).json()
        with client.stream("GET", job["links"]["events"]) as events:
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            told = "".join(events.iter_text())
    assert process.wait(20) == 0
    assert time.monotonic() - began < 15
    assert "event: verdict" in told
    log = process.stderr.read()
    process.stderr.close()
    assert "POST /v1/verify" in log
    assert "Traceback" not in log
