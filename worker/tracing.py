"""A span per job below the span of its producer, where the OpenTelemetry API is installed; else nothing.

Knows no exporter: ``opentelemetry-instrument python -m worker`` configures one. Jobs without traceparent get no span.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    trace = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from opentelemetry.trace import Span


def start(name: str, traceparent: str, job_id: str, attempt: int) -> Span | None:
    if trace is None:
        return None
    parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    about: dict[str, str | int] = {"messaging.system": "redis", "messaging.message.id": job_id, "imgv.attempt": attempt}
    return trace.get_tracer("img_ml_verify").start_span(name, parent, trace.SpanKind.CONSUMER, about)


def end(span: Span | None, error: Exception | None = None) -> None:
    if span is None:
        return
    if error is not None:
        span.record_exception(error)
        span.set_status(trace.StatusCode.ERROR, getattr(error, "code", "internal"))
    span.end()
