"""The TypeScript client: its types are the document's, it compiles, and Node gets verdicts with it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from img_ml_verify import demo_photograph
from tests.clients.conftest import ROOT

CLIENT = ROOT / "clients" / "typescript"
LOCAL_TSC = CLIENT / "node_modules" / ".bin" / "tsc"
TSC = str(LOCAL_TSC) if LOCAL_TSC.exists() else shutil.which("tsc")
NODE = shutil.which("node")
needs_tsc = pytest.mark.skipif(TSC is None, reason="needs TypeScript: npm --prefix clients/typescript install")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run([TSC, "-p", CLIENT, "--outDir", out], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout
    (out / "package.json").write_text('{"type": "module"}')
    return out


@needs_tsc
@pytest.mark.skipif(NODE is None, reason="needs Node 20: apt install nodejs")
def test_node_gets_verdicts_progress_and_refusals(server, built) -> None:
    command = [NODE, ROOT / "tests" / "clients" / "live.mjs", built / "client.js", server.url, demo_photograph()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["verdict"]["tier"]
    assert said["preview"] == "image/jpeg"
    assert said["noArtifact"] == "RangeError"
    assert said["progress"][0]["data"]["stage"] == "queued"
    assert said["progress"][-1]["event"] == "verdict"
    assert said["progress"][-1]["data"]["fusion_prob"] == said["verdict"]["fusion_prob"]
    assert (said["failed"]["event"], said["failed"]["data"]["code"]) == ("error", "not_an_image")
    judged, refused = said["batch"]
    assert judged["verdict"]["stability"]["probabilities"]
    assert refused["error"]["code"] == "not_an_image"
    assert said["refusals"] == [["not_an_image", 415], ["url_refused", 422]]
    assert said["models"]["runs"] == "in process"
    assert said["feedback"]["id"]


@needs_tsc
def test_a_name_that_the_document_does_not_know_does_not_compile(tmp_path) -> None:
    source = tmp_path / "src"
    shutil.copytree(CLIENT / "src", source)
    shutil.copy(CLIENT / "tsconfig.json", tmp_path)
    wrong = (
        'import { Client } from "./client.js";\nvoid new Client().verify("https://a.example/").then((v) => v.teir);\n'
    )
    (source / "wrong.ts").write_text(wrong)
    command = [TSC, "-p", tmp_path, "--outDir", tmp_path / "dist"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode != 0
    assert "'teir'" in done.stdout
