"""CloudWatch's embedded metric format: what is printed of a registry, since the last time."""

from __future__ import annotations

import json

from utils.emf import NAMESPACE, SHOWN, Emf, line
from worker.metrics import Metrics


def test_a_line_is_as_the_specification_says():
    said = json.loads(line({"imgv_train_loss": 0.5}))
    (directive,) = said["_aws"]["CloudWatchMetrics"]
    assert directive == {"Namespace": NAMESPACE, "Dimensions": [[]], "Metrics": [{"Name": "imgv_train_loss"}]}
    assert said["imgv_train_loss"] == 0.5
    assert isinstance(said["_aws"]["Timestamp"], int)


def test_counters_tell_what_was_added_histograms_their_mean_and_gauges_the_largest(capsys):
    metrics = Metrics()
    emf = Emf(metrics.registry)
    metrics.jobs.labels("ok").inc(3)
    metrics.jobs.labels("error").inc()
    metrics.dead.labels("internal").inc(2)
    metrics.total.observe(1)
    metrics.total.observe(3)
    metrics._oldest.labels("a").set(5)
    metrics._oldest.labels("b").set(7)
    found = emf.values()
    assert found["imgv_jobs.ok"] == 3
    assert found["imgv_jobs.error"] == 1
    assert found["imgv_dead_letters"] == 2
    assert found["imgv_job_seconds"] == 2
    assert found["imgv_oldest_waiting_seconds"] == 7
    metrics.jobs.labels("ok").inc()
    again = emf.values()
    assert (again["imgv_jobs.ok"], again["imgv_jobs.error"], again["imgv_dead_letters"]) == (1, 0, 0)
    assert "imgv_job_seconds" not in again  # none ended
    emf.print()
    assert json.loads(capsys.readouterr().out)["imgv_jobs.ok"] == 0


def test_what_is_shown_exists():
    exported = {family.name for family in Metrics().registry.collect()}
    elsewhere = {"imgv_drift_alarm", "imgv_drift_distance", "imgv_retrain_failed"}  # lifecycle.drift and retrain
    assert set(SHOWN) <= exported | elsewhere
