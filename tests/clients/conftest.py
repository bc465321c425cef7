"""A running API for clients to talk to; its small verifier judges by brightness."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.conftest import LiveServer, Watched, local_app, settings_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[LiveServer]:
    settings = settings_of(
        feedback_dir=tmp_path_factory.mktemp("feedback"), fetch_seconds=0.5, api_rate_per_minute=10_000
    )
    with LiveServer(local_app(settings, Watched())) as running:
        yield running
