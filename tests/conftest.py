"""What tests of every folder may ask for."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator

import pytest
from sklearn.datasets import load_sample_image

from tests.clouds import point_to
from utils.contracts import RgbArray


@pytest.fixture(scope="session")
def photograph() -> RgbArray:
    """A photograph of 640 x 427 pixels."""
    return load_sample_image("china.jpg")


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would log each request to a stream of some earlier test
    server = pytest.importorskip("moto.server", reason="pip install 'moto[server]' un-skips it").ThreadedMotoServer(
        "127.0.0.1", 0, verbose=False
    )
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty account: boto3 talks to it in this process and in those that the test starts."""
    request = urllib.request.Request(f"{moto_url}/moto-api/reset", method="POST")
    with urllib.request.urlopen(request):
        pass
    point_to(monkeypatch, moto_url)
    return moto_url
