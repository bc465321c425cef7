"""The schedule: when a run is due, across restarts and missed times, and never two at once."""

from __future__ import annotations

import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from apscheduler.schedulers.background import BackgroundScheduler

from lifecycle.schedule import STATE, alone, due, run_once, schedule
from utils.errors import BadSettings
from utils.settings import LifecycleSettings, Settings

NOW = datetime.fromisoformat("2026-12-02T10:00:00+01:00")  # a Wednesday


def whole_settings(folder: Path, **given: object) -> Settings:
    return Settings.of(lifecycle_dir=folder, **{"training_zone": "Europe/Berlin", **given})


def settings_of(folder: Path, **given: object) -> LifecycleSettings:
    return whole_settings(folder, **given).lifecycle


def test_daily_and_weekly_runs_are_due_at_their_time_in_their_zone(tmp_path) -> None:
    daily = settings_of(tmp_path, training_frequency="daily", training_time="09:30")
    assert due(daily, NOW).isoformat() == "2026-12-03T09:30:00+01:00"
    weekly = settings_of(tmp_path, training_time="09:30")
    assert due(weekly, NOW).isoformat() == "2026-12-07T09:30:00+01:00"
    with pytest.raises(BadSettings, match="IMGV_TRAINING_ZONE"):
        due(settings_of(tmp_path, training_zone="Mars/Olympus"), NOW)


def test_a_run_that_was_missed_a_short_while_ago_is_caught_up_with_and_an_older_one_waits(tmp_path) -> None:
    daily = settings_of(tmp_path, training_frequency="daily", training_time="09:30")
    first = due(daily, NOW)
    assert due(daily, NOW + timedelta(hours=1)) == first  # a restart changes nothing
    late = first + timedelta(hours=5)
    assert due(daily, late) == late
    much_later = first + timedelta(days=3, hours=1)
    assert due(daily, much_later) == first + timedelta(days=4)
    changed = settings_of(tmp_path, training_frequency="daily", training_time="08:00")
    assert due(changed, NOW).isoformat() == "2026-12-03T08:00:00+01:00"


def test_two_runs_never_overlap_and_the_exit_code_is_the_runs(tmp_path) -> None:
    settings = whole_settings(tmp_path)
    assert run_once(settings, [sys.executable, "-c", "raise SystemExit(3)"]) == 3
    with alone(tmp_path) as free:
        assert free
        assert run_once(settings, ["/bin/false"]) == 0


def test_a_retraining_that_was_killed_is_told_by_the_schedule(tmp_path) -> None:
    settings = whole_settings(tmp_path)
    assert run_once(settings, [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 3
    assert "imgv_retrain_failed 1.0" in (tmp_path / "lifecycle.prom").read_text()


def test_a_state_that_cannot_be_read_is_told(tmp_path, caplog) -> None:
    daily = settings_of(tmp_path, training_frequency="daily", training_time="09:30")
    (tmp_path / STATE).write_text("no JSON")
    assert due(daily, NOW).isoformat() == "2026-12-03T09:30:00+01:00"
    assert "no missed run is known" in caplog.text


def test_a_scheduler_runs_what_was_missed_and_remembers_the_next_time(tmp_path) -> None:
    settings = whole_settings(tmp_path / "state", training_frequency="daily")
    due(settings.lifecycle, datetime.now().astimezone() - timedelta(days=1, minutes=-1))  # due within the last day
    state = settings.lifecycle.folder / STATE
    before = state.read_text()
    ran = tmp_path / "ran"
    scheduler = BackgroundScheduler()
    schedule(scheduler, settings, [sys.executable, "-c", f"open({str(ran)!r}, 'a').write('x')"])
    scheduler.start()
    deadline = time.monotonic() + 60
    while not (ran.exists() and state.exists() and state.read_text() != before):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    scheduler.shutdown()
    assert ran.read_text() == "x"
