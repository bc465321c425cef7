"""Retrain on a schedule: python -m lifecycle.schedule [--once]

IMGV_TRAINING_FREQUENCY (daily or weekly, then on Mondays) at IMGV_TRAINING_TIME in IMGV_TRAINING_ZONE. When the next
run is due is kept in IMGV_LIFECYCLE_DIR/schedule.json, so that a restart forgets nothing: a run that was missed by less
than a day is caught up with, once. No two runs at a time, on this machine or another that shares the folder. --once
runs now and ends, as a CronJob wants it.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.schedulers.base import BaseScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.cron import CronTrigger

from lifecycle.notify import gauges, notify
from utils.errors import BadSettings
from utils.exits import Exit, command, command_parser
from utils.persistence import write_atomic
from utils.settings import LifecycleSettings, Settings, load_settings

JOB = "retrain"
STATE = "schedule.json"
MISSED = timedelta(days=1)  # a run that could not begin within this time waits for the next one
_COMMAND = (sys.executable, "-m", "lifecycle.retrain")

log = logging.getLogger(__name__)


def trigger(settings: LifecycleSettings) -> CronTrigger:
    """
    Raises:
        BadSettings: no such time zone.
    """
    try:
        zone = ZoneInfo(settings.zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise BadSettings(f"IMGV_TRAINING_ZONE: no time zone {settings.zone!r}; one such as Europe/Berlin") from error
    hour, minute = settings.time.split(":")
    day = "mon" if settings.frequency == "weekly" else "*"
    return CronTrigger(day_of_week=day, hour=int(hour), minute=int(minute), timezone=zone)


def due(settings: LifecycleSettings, now: datetime) -> datetime:
    """When to run next: at once if a run was missed a short while ago. Remembered from now on.

    Raises:
        BadSettings: as ``trigger``.
    """
    wanted, path = trigger(settings), settings.folder / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        known = datetime.fromisoformat(state["due"]) if state["trigger"] == str(wanted) else None
    except FileNotFoundError:
        known = None  # the first time
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s cannot be read, so that no missed run is known: %r", path, error)
        known = None
    if known is not None and known <= now < known + MISSED:
        return now
    following: datetime = wanted.get_next_fire_time(None, now)
    settings.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"trigger": str(wanted), "due": following.isoformat()}).encode())
    return following


def schedule(scheduler: BaseScheduler, settings: Settings, program: Sequence[str] = _COMMAND) -> None:
    """Have the job in the scheduler; errors as ``trigger``."""
    lifecycle = settings.lifecycle
    wanted = trigger(lifecycle)

    def job() -> None:
        run_once(settings, program)
        (lifecycle.folder / STATE).unlink(missing_ok=True)  # it is no missed run any more
        due(lifecycle, datetime.now(wanted.timezone))

    first = due(lifecycle, datetime.now(wanted.timezone))
    scheduler.add_job(job, wanted, id=JOB, coalesce=True, max_instances=1, misfire_grace_time=None, next_run_time=first)


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether nobody else retrains in this folder; nobody will while inside. The lock ends with the process."""
    import fcntl  # not on Windows

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "retrain.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def run_once(settings: Settings, program: Sequence[str] = _COMMAND) -> int:
    """One retraining in a process of its own; its exit status, 0 where another one is running.

    The process tells of its own failures; of one that was killed, or did not come up, this one does.
    """
    with alone(settings.lifecycle.folder) as free:
        if not free:
            log.warning("a retraining is running already; this one is left out")
            return Exit.DONE
        done = subprocess.run(program).returncode  # noqa: S603 - our own command
    log.warning("retraining ended with %d", done)
    if done < 0:
        gauges(settings, failed=True)
        notify(settings, {"event": "retrain_failed", "run": "", "step": "", "error": f"killed by signal {-done}"})
        return Exit.FAILED
    return done


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m lifecycle.schedule", __doc__)
    parser.add_argument("--once", action="store_true", help="run now, and end with its exit code")
    arguments = parser.parse_args(argv)
    settings = load_settings()
    logging.basicConfig(level=settings.log.level)
    if arguments.once:
        return run_once(settings)
    scheduler = BlockingScheduler()
    schedule(scheduler, settings)
    (job,) = scheduler.get_jobs()
    print(f"retrains {settings.lifecycle.frequency}, next at {job.next_run_time.isoformat()}", flush=True)
    scheduler.start()
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
