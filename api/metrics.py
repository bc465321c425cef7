"""What the server counts, for /metrics. Decides nothing."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from worker.metrics import resident_bytes

_SECONDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """One server's numbers, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = at = CollectorRegistry()
        self.requests = Counter("imgv_api_requests", "requests answered", ["method", "route", "status"], registry=at)
        self.seconds = Histogram(
            "imgv_api_request_seconds", "time to the last byte of the answer", ["route"], buckets=_SECONDS, registry=at
        )
        self.received = Counter("imgv_api_received_bytes", "bytes of request bodies", registry=at)
        self.jobs = Counter("imgv_api_jobs", "images, by outcome", ["outcome"], registry=at)
        self.running = Gauge("imgv_api_jobs_running", "images taken and not yet answered", registry=at)
        self.batch = Histogram("imgv_api_batch_images", "images judged together", buckets=(1, 2, 4, 8, 16), registry=at)
        self.stage = Histogram("imgv_api_stage_seconds", "time by stage", ["stage"], buckets=_SECONDS, registry=at)
        self._memory = Gauge("imgv_api_resident_bytes", "memory of this process", registry=at)

    def render(self) -> bytes:
        self._memory.set(resident_bytes())
        return generate_latest(self.registry)
