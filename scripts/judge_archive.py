"""Judge an archive: python -m scripts.judge_archive SOURCE --out DIR|s3://BUCKET/PREFIX [--ray ADDRESS]

SOURCE is a folder or an S3 prefix with images, WebDataset tars and Parquet files, or one such file. Verdicts become
Parquet, partitioned by tier: OUT/verdicts/tier=ai/part-000001.parquet; tier=error holds what cannot be judged, with its
coded error. Ray actors hold the models; each judges in batches that IMGV_PIPELINE_MAX_MB bounds in memory.

The archive is cut into parts, listed below OUT once. A part is done when its file lies in OUT/done. A command that was
killed goes on with the parts that are not: at most one part for each actor is judged again, and takes the place of what
was written of it, so every image has one row. More machines: --ray ADDRESS; every node needs this code and the weights.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress

import img_ml_verify
from inference.batch import MOST_SUSPICIOUS_FIRST
from inference.detector import build_verifier
from inference.pipeline import Request
from ingress.archive import Part, open_archive, parts_of, read_part
from utils.actors import LOCAL, check_ray, through_actors
from utils.contracts import Verdict
from utils.errors import BadSettings, DatasetMissing, FileMissing, VerifyError
from utils.exits import Exit, command, command_parser
from utils.places import Place, place
from utils.profiles import PROFILES
from utils.settings import Settings, load_settings
from utils.threads import limit_library_threads
from utils.verdict_json import dump, verdict_dict

ABOUT, LISTED, PARTS, DONE, VERDICTS = "archive.json", "listed.json", "parts/", "done/", "verdicts/"
TIERS: Final = (*MOST_SUSPICIOUS_FIRST, "error")
COLUMNS: Final = ("source", "sha256", "label", "fusion_prob", "threshold", "decided_by", "error", "message", "verdict")

Row = dict[str, Any]  # by COLUMNS


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    check_ray("judge_archive")
    settings = load_settings(**({"profile": arguments.profile} if arguments.profile else {}))
    out = place(arguments.out)
    _begin(out, arguments, settings)
    images = _list(arguments.source, out, arguments.rows)
    counts = _judge(arguments, settings, out, images)
    print("  ".join(f"{tier} {counts[tier]}" for tier in TIERS) + f"  of {sum(images)}; {out.address}/{VERDICTS}")
    return Exit.FAILED if counts["error"] else Exit.DONE


def _begin(out: Place, arguments: argparse.Namespace, settings: Settings) -> None:
    """
    Raises:
        BadSettings: OUT holds another archive, or verdicts of other models.
    """
    models = settings.models.model_dump(mode="json", include={"profile", "detectors", "fusion", "release", "threshold"})
    about = {"source": arguments.source, "rows": arguments.rows, **models}
    try:
        before = json.loads(out.read(ABOUT))
    except FileMissing:
        out.write(ABOUT, json.dumps(about).encode())
        return
    if changed := [name for name, value in about.items() if before.get(name) != value]:
        raise BadSettings(f"{out.address} was begun with another {', '.join(changed)}; give that, or another --out")


def _list(source: str, out: Place, rows: int) -> list[int]:
    """How many images each part has; the list is made once, so that a second run sees the same parts.

    Raises:
        DatasetMissing: there is no image.
    """
    try:
        return list(json.loads(out.read(LISTED)))
    except FileMissing:
        pass
    files, below = open_archive(source)
    images = []
    for number, part in enumerate(parts_of(files, below, rows)):
        out.write(f"{PARTS}{number:06}.json", json.dumps(asdict(part)).encode())
        images.append(len(part.images))
    if not images:
        raise DatasetMissing(f"{source} holds no image, tar or Parquet file that we know; check the address")
    out.write(LISTED, json.dumps(images).encode())
    return images


def _judge(arguments: argparse.Namespace, settings: Settings, out: Place, images: Sequence[int]) -> Counter[str]:
    """Judge the parts that are not done. How many images have which tier, over all."""
    counts: Counter[str] = Counter()
    done = {int(name.removeprefix(DONE).removesuffix(".json")) for name, _ in out.names(DONE)}
    for number in done:
        counts.update(json.loads(out.read(f"{DONE}{number:06}.json")))
    todo = [{"part": number} for number in range(len(images)) if number not in done]
    threads = settings.models.threads or max(1, (os.cpu_count() or 1) // arguments.workers)
    models = settings.models.model_copy(update={"threads": threads})
    given = (
        arguments.source,
        arguments.out,
        models,
        settings.pipeline,
        settings.decode.for_strangers(),
        settings.fetch,
    )
    gpus = 1 if models.device.startswith("cuda") else 0
    began, judged = time.monotonic(), 0
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("judging", total=sum(images), completed=counts.total())
        for found in through_actors(todo, PartJudge, given, arguments.ray, actors=arguments.workers, gpus=gpus):
            counts.update(json.loads(found["counts"]))
            judged += images[found["part"]]
            progress.update(bar, completed=counts.total())
    if judged:
        seconds = time.monotonic() - began
        print(f"judged {judged} images in {seconds:.0f} s, {judged / seconds:.2f} a second", file=sys.stderr)
    return counts


class PartJudge:
    """An actor: holds the models, and judges one part after another."""

    def __init__(self, source: str, out: str, models: Any, pipeline: Any, decode: Any, fetch: Any) -> None:
        self.files, _ = open_archive(source)
        self.out = place(out)
        settings = Settings.of()
        self.settings = Settings(
            models, settings.log, decode, fetch, pipeline, settings.queue, settings.api, settings.lifecycle
        )
        self.verifier = build_verifier(models)
        limit_library_threads()

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        number = int(item["part"])
        said = json.loads(self.out.read(f"{PARTS}{number:06}.json"))
        part = Part(said["shard"], said["group"], [(name, start, size) for name, start, size in said["images"]])
        rows = asyncio.run(self._rows(part))
        counts = {tier: len(found) for tier, found in rows.items()}
        self._write(number, rows)
        self.out.write(f"{DONE}{number:06}.json", json.dumps(counts).encode())
        return {"part": number, "counts": json.dumps(counts)}

    async def _rows(self, part: Part) -> dict[str, list[Row]]:
        """By tier."""
        found: dict[str, list[Row]] = defaultdict(list)

        def requests() -> Iterator[Request]:
            for source, raw in read_part(self.files, part, self.settings.decode.max_bytes):
                if isinstance(raw, VerifyError):
                    found["error"].append(_failed(source, raw))
                else:
                    yield Request(source, raw=raw)

        async for source, answer in img_ml_verify.judge(requests(), self.settings, self.verifier):
            if isinstance(answer, VerifyError):
                found["error"].append(_failed(source, answer))
            else:
                found[answer.tier].append(_row(source, answer))
        return found

    def _write(self, number: int, rows: Mapping[str, Sequence[Row]]) -> None:
        """One file for each tier; what an actor that died left of this part goes."""
        import pyarrow
        from pyarrow import parquet

        for tier in TIERS:
            name = f"{VERDICTS}tier={tier}/part-{number:06}.parquet"
            if rows.get(tier):
                file = io.BytesIO()
                parquet.write_table(pyarrow.Table.from_pylist(list(rows[tier]), _schema(pyarrow)), file)
                self.out.write(name, file.getvalue())
            elif any(self.out.names(name)):
                self.out.remove(name)


def _row(source: str, verdict: Verdict) -> Row:
    said = verdict_dict(verdict)
    return {
        "source": source,
        **{name: said[name] for name in COLUMNS[1:6]},
        "error": None,
        "message": None,
        "verdict": dump(said),
    }


def _failed(source: str, error: VerifyError) -> Row:
    return {**dict.fromkeys(COLUMNS), "source": source, "error": error.code, "message": str(error)}


def _schema(pyarrow: Any) -> Any:
    numbers = ("fusion_prob", "threshold")
    return pyarrow.schema([(name, pyarrow.float64() if name in numbers else pyarrow.string()) for name in COLUMNS])


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.judge_archive", __doc__)
    parser.add_argument("source", help="folder, s3://BUCKET/PREFIX, or one .tar or .parquet file")
    parser.add_argument("--out", required=True, help="folder or s3://BUCKET/PREFIX; a second run goes on there")
    parser.add_argument("--ray", default=LOCAL, metavar="ADDRESS", help="of a cluster (default: one of this machine)")
    parser.add_argument("--workers", type=int, default=2, help="actors, each with the models (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=256, help="images of a part at most (default: %(default)s)")
    parser.add_argument("--profile", choices=tuple(PROFILES), help="which detectors run")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
