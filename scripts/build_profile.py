"""From labelled images to a calibrated ensemble of your own: python -m scripts.build_profile full --dataset dataset.csv

Shows the plan first: what would be downloaded, with sizes and licences, disk, memory and time on this device. Then
downloads, embeds, fits a head on every frozen backbone out of fold, measures all features, trains the fusion and
calibrates it, measures it on the validation sources beside the shipped artifact, and makes it what profile full uses
(in .env). Killed anywhere, the same command goes on.

    --dry-run         the plan, and nothing else
    --plan            which detectors this machine should run, by worth, memory and time
    --detectors       a subset: detectors, or detector:backbone, as in clip_b16,effnet,dino:dinov2_large

Weights whose licence forbids commercial use are taken only where --detectors names them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import date
from itertools import count
from pathlib import Path

from dotenv import set_key

from models.loaders import SHIPPED, Weights
from training.datasets import DATASET, LABELS, check_enough, check_splits, read_rows
from training.head_fit import KINDS
from training.profile_build import PROFILE, STAGES, Build
from training.profile_plan import Part, Plan, as_json, chosen, parts_of, shown, this_machine
from utils.device import pick_device
from utils.errors import DatasetMissing
from utils.exits import Exit, command, command_parser
from utils.profiles import PROFILES
from utils.settings import ENV_FILE, Settings, load_settings

HEADS_BESIDE = ("clip", "blip2")  # not of the profile; --detectors names them
BYTES = {"float32": 4, "bfloat16": 2}


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    settings = load_settings()
    rows = [] if arguments.plan and not arguments.dataset else _rows(arguments.dataset or Path(DATASET))
    plan = _plan(arguments, settings, len(rows))
    print(json.dumps(as_json(plan), indent=1) if arguments.json else shown(plan))
    if arguments.plan:
        print(f"--detectors {','.join(part.name for part in plan.parts)}")
        return Exit.DONE
    plan.check()
    if arguments.dry_run:
        print(f"stages: {', '.join(stage.__name__ for stage in STAGES)}")
        return Exit.DONE
    if plan.parts and any(part.downloads for part in plan.parts) and not arguments.yes and not _confirmed():
        print("Nothing downloaded.")
        return Exit.FAILED
    build = Build(
        plan.parts,
        arguments.dataset or Path(DATASET),
        arguments.work or (arguments.dataset or Path(DATASET)).with_suffix(".build"),
        _folder(arguments),
        arguments.head,
        arguments.jobs,
        arguments.ray,
        arguments.seed,
    )
    build.work.mkdir(parents=True, exist_ok=True)
    _run(build, STAGES)
    _use(build, arguments.env)
    return Exit.DONE


def _rows(manifest: Path) -> list[dict[str, str]]:
    if not manifest.is_file():
        raise DatasetMissing(
            f"no {manifest}: put images into data/real and data/ai and run python -m scripts.make_dataset_csv"
        )
    rows = [row for row in read_rows(manifest) if row["label"] in LABELS]
    check_enough(rows)
    check_splits((row["source"], row["split"]) for row in rows)
    return rows


def _plan(arguments: argparse.Namespace, settings: Settings, images: int) -> Plan:
    device, reason = pick_device(settings.models.device)
    weights = Weights.at(settings.models.weights_dir)
    machine = this_machine(device, settings.models.precision, settings.models.weights_dir, arguments.memory)
    print(f"device={device} ({reason}), {settings.models.precision}")
    bytes_each = BYTES[settings.models.precision]
    if arguments.detectors:
        return Plan(tuple(parts_of(arguments.detectors, weights, bytes_each)), machine, images)
    names = (*PROFILES[PROFILE].detectors, *(HEADS_BESIDE if arguments.plan else ()))
    parts = parts_of(names, weights, bytes_each)
    if not arguments.plan:
        parts = [part for part in parts if _is_free(part)]
    if arguments.plan:
        parts = chosen(parts, machine, arguments.seconds)
    return Plan(tuple(parts), machine, images)


def _is_free(part: Part) -> bool:
    """Whether nothing that is missing forbids commercial use, or must be fetched by hand."""
    held = [card for card in part.downloads if not card.commercial or not (card.url or card.train)]
    for card in held:
        why = card.licence if not card.commercial else "to be downloaded by hand"
        print(f"without {part.name}: {card.name} is {why}; to have it, name it in --detectors", file=sys.stderr)
    return not held


def _confirmed() -> bool:
    try:
        return input("Download and build? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _folder(arguments: argparse.Namespace) -> Path:
    """The artifact's folder; of a build that was begun before, the same."""
    if arguments.out:
        named: Path = arguments.out
        return named
    mark = (arguments.work or (arguments.dataset or Path(DATASET)).with_suffix(".build")) / "artifact"
    if mark.is_file():
        return SHIPPED / mark.read_text(encoding="utf-8").strip()
    names = (f"full-{date.today()}{f'-{number}' if number > 1 else ''}" for number in count(1))
    name = next(each for each in names if not (SHIPPED / each).exists())
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(name, encoding="utf-8")
    return SHIPPED / name


def _run(build: Build, stages: Sequence[Callable[[Build], None]]) -> None:
    for number, stage in enumerate(stages, 1):
        print(f"[{number}/{len(stages)}] {stage.__name__}", flush=True)
        stage(build)


def _use(build: Build, env: Path) -> None:
    """Make the artifact the one that verdicts use from here on."""
    name = build.out.name if build.out.parent == SHIPPED else str(build.out.absolute())
    values = {
        "IMGV_PROFILE": PROFILE,
        "IMGV_FUSION": name,
        "IMGV_DETECTORS": ",".join(build.switches([part.detector for part in build.parts])),
    }
    env.touch()
    for key, value in values.items():
        set_key(env, key, value, quote_mode="never")
    print(
        f"wrote {build.out} and {', '.join(f'{key}={value}' for key, value in values.items())} into {env}; "
        "next: python img_ml_verify.py photo.jpg"
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.build_profile", __doc__)
    parser.add_argument("profile", choices=(PROFILE,))
    parser.add_argument("--dataset", type=Path, help=f"CSV of scripts.make_dataset_csv (default: {DATASET})")
    parser.add_argument("--detectors", type=lambda text: text.split(","), help="default: the profile's")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and the stages, do nothing")
    parser.add_argument("--plan", action="store_true", help="recommend detectors for this machine, do nothing")
    parser.add_argument("--seconds", type=float, default=0.0, help="with --plan: of one verdict at most")
    parser.add_argument("--memory", type=float, default=0.0, metavar="GIB", help="plan for this much free memory")
    parser.add_argument("--json", action="store_true", help="the plan as JSON")
    parser.add_argument("--head", choices=KINDS, default="svm", help="on every frozen backbone (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="artifact folder (default: a new one in models/saved_models)")
    parser.add_argument("--work", type=Path, help="folder for what the stages make (default: beside the data set)")
    parser.add_argument("--env", type=Path, default=Path(ENV_FILE), help="file of settings to write (default: .env)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that measure, or Ray actors that embed")
    parser.add_argument("--ray", metavar="ADDRESS", help="embed on this Ray cluster; local: one of this machine")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
