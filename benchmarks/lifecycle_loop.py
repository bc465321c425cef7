"""The whole loop of lifecycle/ by its commands, with what each prints, while a worker answers and no job is lost:

    python benchmarks/lifecycle_loop.py --generated 120 --out loop          # pictures that it makes itself
    python benchmarks/lifecycle_loop.py --dataset dataset.csv --out loop    # labelled images of your own

The images are put where images come from: a third into a git repository, the others behind servers on loopback that
answer as Wikimedia Commons and Civitai do. They are collected, validated, trained on and registered. Then a worker
judges --jobs images with the release that the code ships, and while they flow `promote` and `rollback` are called.
Ends with 1 when a job is lost or answered twice, or when the worker did not follow both.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from threading import Thread
from urllib.parse import quote, unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))

import redis
import yaml
from ssrfguard import AddressTable, Policy

from ingress import fetch
from lifecycle import collect
from lifecycle.pictures import make_pictures
from lifecycle.sources import civitai, commons
from training.deliveries import TAUGHT
from utils.persistence import safe_name
from utils.releases import Store
from worker.embedded import EmbeddedServer

ROOT = Path(__file__).parents[1]
SOURCES, EACH = 12, 4  # of each label unless --sources says otherwise, and images of a source at most
WAITING = 16  # jobs in the queue at a time
PATIENCE = 600.0  # seconds for the worker to follow, or to answer
SMALL_SETS = {"real": 0.5, "real_kind": 0.5, "calibration": 0.5}  # bounds that a hundred images can hold


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", type=Path, help="CSV with filepath, label and source")
    what.add_argument("--generated", type=int, metavar="N", help="about N pictures that are made here")
    parser.add_argument("--out", type=Path, default=Path("loop"), help="an empty folder")
    parser.add_argument("--profile", default="embedded")
    parser.add_argument("--sources", type=int, default=SOURCES, help="of each label (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=500)
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    out.mkdir(parents=True)
    rows = chosen(arguments.dataset or make_pictures(out / "pictures", arguments.generated), arguments.sources)
    collect_from_fakes(rows, out)
    loop = Loop(out, arguments.profile)
    loop.run("scripts.make_dataset_csv", out / "data", "--out", out / "dataset.csv")
    loop.run("lifecycle.validate", out / "dataset.csv")
    params = {"dataset": str(out / "dataset.csv"), "profile": arguments.profile, "model": "logistic", "rounds": 1}
    params |= {"deliveries": {"train": list(TAUGHT), "val": ["clean", "web"]}, "gate": SMALL_SETS}
    (out / "params.yaml").write_text(yaml.safe_dump(params))
    loop.run("lifecycle.retrain", "--params", out / "params.yaml")
    loop.run("lifecycle.registry", "list")
    return loop.live(arguments.jobs, [path.read_bytes() for path in sorted((out / "data").rglob("*.*g*"))])


def chosen(dataset: Path, sources: int) -> list[dict[str, str]]:
    """A few images of a few sources of each label, with absolute paths."""
    by_source: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    with dataset.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["label"] in ("real", "ai"):
                path = str(dataset.parent.absolute() / row["filepath"])
                by_source[row["label"], row["source"]].append({**row, "filepath": path})
    found = []
    for _, keys in groupby(sorted(by_source), key=lambda key: key[0]):
        names = list(keys)
        for key in names[:: max(1, len(names) // sources)][:sources]:
            found += by_source[key][:EACH]
    return found


# --- where the images come from


def collect_from_fakes(rows: list[dict[str, str]], out: Path) -> None:
    """Every third source lies in a git repository, the other real ones on Commons, the other AI ones on Civitai."""
    sources = sorted({(row["label"], row["source"]) for row in rows})
    in_git = sources[::3]
    repository = out / "snapshot"
    for row in rows:
        if (row["label"], row["source"]) in in_git:
            folder = repository / row["label"] / safe_name(row["source"])
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(row["filepath"], folder)
    git = ["git", "-C", str(repository), "-c", "user.name=loop", "-c", "user.email=loop@localhost"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "Images"]):
        subprocess.run([*git, *command], check=True)
    served = [row for row in rows if (row["label"], row["source"]) not in in_git]
    names = [(label, safe_name(source)) for label, source in in_git]
    arguments = [f"git:{label},{name},^{label}/{name}/,{repository}" for label, name in names]
    with fakes(served):
        argv = [*arguments, "commons:Quality images", "civitai", "--out", str(out / "data"), "--per-second", "100"]
        show("lifecycle.collect", *argv)
        if status := collect.main(argv):
            raise SystemExit(status)


@contextmanager
def fakes(rows: list[dict[str, str]]):
    """Servers in the shape of Commons and Civitai; the rule against private networks alone is lifted for them."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path in answers:
                body = json.dumps(answers[path]).encode()
            elif path.removeprefix("/file") in files:
                body = Path(path.removeprefix("/file")).read_bytes()
            else:
                body = None
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    files = {row["filepath"] for row in rows}
    pages, items = [], []
    for number, row in enumerate(rows):
        address = f"{url}/file{quote(row['filepath'])}"
        if row["label"] == "real":
            about = {"Artist": {"value": row["source"]}, "LicenseShortName": {"value": row.get("licence", "")}}
            info = {"url": address, "mime": "image/jpeg", "timestamp": "2026-11-01T00:00:00Z", "extmetadata": about}
            pages.append({"title": f"File:{number}", "imageinfo": [info]})
        else:
            made = {"createdAt": "2026-11-01T00:00:00Z", "username": "maker", "baseModel": row["source"]}
            items.append({"id": number, "url": address, "type": "image", **made})
    answers = {"/w/api.php": {"query": {"pages": pages}}, "/api/v1/images": {"items": items, "metadata": {}}}
    rule = Policy(allowed_ports={server.server_port}, denied_networks=AddressTable(()))
    commons.API, civitai.API, fetch.policy_for = f"{url}/w/api.php", f"{url}/api/v1/images", lambda _: rule
    Thread(target=server.serve_forever, daemon=True).start()
    yield
    server.shutdown()


# --- the commands


def show(module: str, *argv: object) -> None:
    print(f"\n$ python -m {module} {shlex.join(map(str, argv))}", flush=True)


class Loop:
    """Commands with a registry and a store of their own."""

    def __init__(self, out: Path, profile: str) -> None:
        self.out = out
        self.store = Store(out / "releases")
        self.settings = os.environ | {
            "IMGV_LIFECYCLE_DIR": str(out / "lifecycle"),
            "IMGV_RELEASE": self.store.address,
            "IMGV_RELEASE_REFRESH_SECONDS": "1",
            "IMGV_PROFILE": profile,
            "IMGV_MIN_IMAGES_PER_CLASS": "20",
        }

    def start(self, module: str, *argv: object, **given: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", module, *map(str, argv)]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=ROOT, **({"env": self.settings} | output | given))

    def end(self, module: str, argv: tuple[object, ...], process: subprocess.Popen[str]) -> None:
        show(module, *argv)
        print(process.communicate()[0].rstrip(), flush=True)
        if process.returncode:
            raise SystemExit(process.returncode)

    def run(self, module: str, *argv: object) -> None:
        self.end(module, argv, self.start(module, *argv))

    def live(self, jobs: int, images: list[bytes]) -> int:
        """Promote and roll back while jobs flow."""
        first, second = sorted(
            Store(self.out / "lifecycle" / "releases").names(), key=lambda name: "shipped" not in name
        )
        if self.store.judging() == second:  # by the gate; the worker begins with the one before
            self.run("lifecycle.registry", "rollback")
        folder = Path(tempfile.mkdtemp(prefix="imgv"))  # a socket's path has about 100 bytes
        with EmbeddedServer(folder) as server, (self.out / "worker.log").open("w") as log:
            print(f"\n$ python -m worker &    # then {jobs} jobs by XADD", flush=True)
            environment = self.settings | {"REDIS_URL": server.url}
            worker = self.start("worker", env=environment, stdout=log, stderr=log)
            try:
                flow = self.flow(jobs, images, server.url, first, second)
                alive = worker.poll() is None
            finally:
                worker.terminate()
                worker.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
        return self.told(flow, jobs, [first, second, first], alive)

    def flow(self, jobs: int, images: list[bytes], url: str, *releases: str) -> list[tuple[str, str, str]]:
        """Job, status and release of each entry of the results stream, in the order of answering."""
        first, second = releases
        promote, rollback = ("promote", second), ("rollback",)
        running = None
        with redis.Redis.from_url(url) as client:
            for number in range(jobs):
                while number - client.xlen("image_verify:results") > WAITING:
                    time.sleep(0.02)
                if number == jobs // 3:
                    running = self.start("lifecycle.registry", *promote)
                elif number == 2 * jobs // 3:
                    self.followed(promote, running, second)
                    running = self.start("lifecycle.registry", *rollback)
                elif number == jobs - WAITING:
                    self.followed(rollback, running, first)
                job = {"job_id": str(number), "image": images[number % len(images)], "filename": f"{number}"}
                client.xadd("image_verify:jobs", job)
            deadline = time.monotonic() + PATIENCE
            while client.xlen("image_verify:results") < jobs and time.monotonic() < deadline:
                time.sleep(0.2)
            time.sleep(2)  # for an answer that comes twice
            found = []
            for _, fields in client.xrange("image_verify:results"):
                verdict = json.loads(fields.get(b"verdict", b"{}"))
                release = verdict.get("models", {}).get("release", "")
                found.append((fields[b"job_id"].decode(), fields[b"status"].decode(), release))
        return found

    def followed(self, call: tuple[str, ...], process: subprocess.Popen[str], release: str) -> None:
        """Wait until the command has ended and the worker has taken the release over."""
        self.end("lifecycle.registry", call, process)
        deadline = time.monotonic() + PATIENCE
        while (said := f"release {release} took the place of") not in (self.out / "worker.log").read_text():
            if time.monotonic() > deadline:
                raise SystemExit(f"the worker did not follow; worker.log has no {said!r}")
            time.sleep(0.1)
        print(f"worker.log: {said} …", flush=True)

    def told(self, flow: list[tuple[str, str, str]], jobs: int, wanted: list[str], alive: bool) -> int:
        answers = Counter(job for job, _, _ in flow)
        doubled = sum(count > 1 for count in answers.values())
        turns = [(release, len(list(group))) for release, group in groupby(release for _, _, release in flow)]
        print(f"\n{jobs} jobs: {len(answers)} answered, {jobs - len(answers)} lost, {doubled} answered twice")
        print(f"by status: {dict(Counter(status for _, status, _ in flow))}")
        print("in the order of answering: " + ", then ".join(f"{count} by {name}" for name, count in turns))
        print(f"the worker {'still runs: no restart' if alive else 'ENDED'}")
        followed = [name for name, _ in turns] == wanted
        return 0 if len(answers) == jobs and not doubled and alive and followed else 1


if __name__ == "__main__":
    sys.exit(main())
