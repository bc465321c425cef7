"""Numbers as CloudWatch's embedded metric format: a line of JSON on stdout, which CloudWatch Logs turns into metrics.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
A metric costs by the month, so labels are added up, and only what alarms and the dashboard show is printed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry

NAMESPACE: Final = "ImgMlVerify"
OUTCOME: Final = "outcome"  # the one label that is told apart
SHOWN: Final = (  # of the registries; deploy/aws/stack.yaml names no other
    *("imgv_jobs", "imgv_dead_letters", "imgv_retries", "imgv_job_seconds", "imgv_release_failures"),
    *("imgv_oldest_waiting_seconds", "imgv_jobs_waiting", "imgv_drift_alarm", "imgv_drift_distance"),
    "imgv_retrain_failed",
)


def line(values: Mapping[str, float]) -> str:
    """One event; a hundred metrics at most."""
    directive = {"Namespace": NAMESPACE, "Dimensions": [[]], "Metrics": [{"Name": name} for name in values]}
    return json.dumps({"_aws": {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [directive]}, **values})


class Emf:
    """A registry's numbers since they were asked for the last time."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._before: dict[str, float] = {}

    def values(self) -> dict[str, float]:
        """Of a counter what was added, of a histogram the mean of what was added, of a gauge the largest."""
        found: dict[str, float] = {}
        for family in self._registry.collect():
            if family.name not in SHOWN:
                continue
            totals: dict[str, float] = {}
            for sample in family.samples:
                if family.type == "gauge":
                    found[family.name] = max(sample.value, found.get(family.name, sample.value))
                elif sample.name.endswith(("_total", "_sum", "_count")):
                    outcome = sample.labels.get(OUTCOME)
                    key = f"{family.name}.{outcome}" if outcome else sample.name
                    totals[key] = totals.get(key, 0.0) + sample.value
            added = {name: value - self._before.get(name, 0.0) for name, value in totals.items()}
            self._before |= totals
            if family.type == "histogram":
                if added.get(f"{family.name}_count"):
                    found[family.name] = added[f"{family.name}_sum"] / added[f"{family.name}_count"]
            else:
                found |= {name.removesuffix("_total"): value for name, value in added.items()}
        return found

    def print(self) -> None:
        if values := self.values():
            print(line(values), flush=True)  # noqa: T201 - stdout is where CloudWatch's agent reads
