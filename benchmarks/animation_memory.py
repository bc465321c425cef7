"""What large animations cost a worker of memory: a worker with default settings, and GIFs that unfold.

    python benchmarks/animation_memory.py --jobs 24

Each GIF has 8 frames of 32 megapixels in some 200 kB: 768 MB of RGB. Prints the peak of the worker's own resident
memory and of its decoding children, and how many jobs were answered in the time given.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import redis
from PIL import Image

ROOT = Path(__file__).parent.parent
STREAM, RESULTS = "image_verify:jobs", "image_verify:results"
WIDTH, HEIGHT, FRAMES = 8000, 4000, 8


def animation() -> bytes:
    """Frames of one level each, with a square that differs, so that none is merged with the one before."""

    def frame(number: int) -> Image.Image:
        pixels = np.full((HEIGHT, WIDTH), 30 * number, np.uint8)
        pixels[:500, 500 * number : 500 * number + 500] = 255
        return Image.fromarray(pixels)

    buffer = BytesIO()
    rest = (frame(number) for number in range(1, FRAMES))
    frame(0).save(buffer, "GIF", save_all=True, append_images=rest, duration=100)
    return buffer.getvalue()


def resident(pid: int) -> tuple[int, int]:
    """Bytes of a process, and of its decoding children."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "ingress.sandbox"], capture_output=True, check=False)
    return _resident(pid), sum(_resident(int(each)) for each in found.stdout.split())


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # it has just ended
        return 0


def watch(worker: subprocess.Popen[bytes], db: redis.Redis, jobs: int, seconds: float) -> Iterator[tuple[int, int]]:
    deadline = time.monotonic() + seconds
    while db.xlen(RESULTS) < jobs and time.monotonic() < deadline and worker.poll() is None:
        yield resident(worker.pid)
        time.sleep(0.1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=600, help="to wait for the answers")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="another state of the code, to compare")
    args = parser.parse_args(argv)
    gif = animation()
    with tempfile.TemporaryDirectory(prefix="imgv") as folder:
        worker = subprocess.Popen(
            [sys.executable, "-m", "worker", "--embedded"],
            cwd=args.checkout,
            env=os.environ | {"IMGV_QUEUE_EMBEDDED_DIR": folder},
            stderr=subprocess.PIPE,
        )
        assert worker.stderr
        assert b"ready" in worker.stderr.readline()
        own, _ = resident(worker.pid)
        print(f"{len(gif):,} bytes each; before the first job {own / 2**20:.0f} MiB", flush=True)
        with redis.Redis(unix_socket_path=f"{folder}/server.sock") as db:
            began = time.monotonic()
            for number in range(args.jobs):  # a comment behind the end makes each another file
                db.xadd(STREAM, {"image": gif + str(number).encode(), "job_id": str(number)})
            seen = list(watch(worker, db, args.jobs, args.seconds))
            took = time.monotonic() - began
            status = Counter(fields[b"status"].decode() for _, fields in db.xrange(RESULTS))
        worker.terminate()
        worker.wait(300)  # it finishes what the models work on
    peaks = [max(each) / 2**20 for each in (*zip(*seen, strict=True), map(sum, seen))]
    print("peak in MiB: worker {:.0f}, its decoders {:.0f}, together {:.0f}".format(*peaks))
    print(f"{sum(status.values())} of {args.jobs} answered in {took:.0f} s: {dict(status)}")


if __name__ == "__main__":
    main()
