"""A worker prints its numbers for CloudWatch where a setting asks for it, also while the queue's server is away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import SimpleNamespace

from utils.settings import Settings
from worker.service import build_service


class Away:
    unusable = frozenset[str]()

    async def depth(self) -> list[object]:
        raise OSError("no server")


def test_numbers_are_printed_again_and_again(capsys):
    service = build_service(Settings.of(metrics_seconds=0.01), "redis://127.0.0.1:9")

    async def some_time() -> None:
        service.metrics.jobs.labels("ok").inc(2)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await service._print_numbers(SimpleNamespace(queue=Away(), held=0), 0.01)  # type: ignore[arg-type]

    asyncio.run(some_time())
    first, second, *_ = (json.loads(each) for each in capsys.readouterr().out.splitlines())
    assert (first["imgv_jobs.ok"], second["imgv_jobs.ok"]) == (2, 0)
    assert first["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "ImgMlVerify"
