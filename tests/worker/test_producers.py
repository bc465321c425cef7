"""Producers with a plain XADD in languages without a client of ours: the image arrives whole, the answer too."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from worker.embedded import find_server

EXAMPLES = Path(__file__).parents[2] / "examples"
# What un-skips the test, and how an example is started.
LANGUAGES = {
    "node": ("apt install nodejs", ["node", EXAMPLES / "xadd.mjs"]),
    "java": ("apt install default-jdk", ["java", EXAMPLES / "Xadd.java"]),
    "go": ("apt install golang", ["go", "run", EXAMPLES / "xadd.go"]),
}
IMAGE = b"\xff\xd8 no \r\n image \x00\xfe"
ANSWERS = {'{"tier": "likely_real", "error": null}': 0, '{"error": {"code": "not_an_image"}}': 3}  # -> exit code


@pytest.fixture(params=["unix", "redis"])
def url(request, server) -> Iterator[str]:
    """Of a server on a socket, and of one on a port that wants a password."""
    if request.param == "unix":
        yield server.url
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(find_server()), "--port", str(port), "--bind", "127.0.0.1", "--requirepass", "s/cret", "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        yield f"redis://:s%2Fcret@127.0.0.1:{port}/0"
        process.terminate()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("language", LANGUAGES)
def test_an_image_arrives_byte_for_byte_and_its_answer_is_printed(language, url, prefix, tmp_path):
    hint, command = LANGUAGES[language]
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{hint} un-skips it")
    (tmp_path / "photo.jpg").write_bytes(IMAGE)
    environment = {**os.environ, "GOCACHE": str(tmp_path), "REDIS_URL": url, "IMGV_QUEUE_PREFIX": prefix}
    last = b"0"
    with redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.1), 50)) as db:
        for answer, code in ANSWERS.items():
            db.ping()
            producer = subprocess.Popen(
                [*command, tmp_path / "photo.jpg"], env=environment, stdout=subprocess.PIPE, text=True
            )
            ((_, ((last, job),)),) = db.xread({f"{prefix}:jobs": last}, block=300_000)
            assert (job[b"image"], job[b"filename"]) == (IMAGE, b"photo.jpg")
            db.set(f"{prefix}:verdict:{job[b'job_id'].decode()}", answer)
            said, _ = producer.communicate()
            assert said.strip() == answer
            assert producer.returncode == (min(code, 1) if language == "go" else code)  # as go run tells every failure
