"""Embed labelled images: python -m scripts.extract_embeddings FOLDER --backbone clip_l14 --out features.npz

FOLDER holds real and ai, at best with a folder for each origin below; a CSV of scripts.make_dataset_csv is understood
too. Every image is embedded as receivers get it, so that a format or a quality says nothing about the label. What was
embedded is kept beside --out until all is done: a killed run goes on. The file names the backbone and its hash, and
scripts.train_head hands both on.

--ray spreads the work over a Ray cluster (an address, or local); every node needs this code, the weights and the images
at the same paths.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from models.backbones import backbone, backbones
from training.backbone_embeddings import DELIVERED, embed_with
from training.folders import write_dataset
from utils.exits import Exit, command, command_parser
from utils.settings import load_settings


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    backbone(arguments.backbone)  # a wrong name is told before images are compared
    out: Path = arguments.out
    manifest: Path = arguments.images
    if manifest.is_dir():
        manifest = out.with_suffix(".dataset.csv")
        write_dataset([arguments.images], manifest)
        print(f"wrote {manifest}")
    cache = out.with_name(f"{out.name}.parts")
    settings = load_settings()
    found = embed_with(
        arguments.backbone,
        manifest,
        cache,
        settings.models,
        settings.decode,
        arguments.deliveries,
        ray=arguments.ray,
        jobs=arguments.jobs,
    )
    found.save(out)
    shutil.rmtree(cache, ignore_errors=True)
    rows, width = found.table.matrix.shape
    print(
        f"read {len(set(found.filepaths.tolist()))} images; wrote {out}: {rows} embeddings of {width} numbers by "
        f"{arguments.backbone}; next: python -m scripts.train_head {out} --head svm --out HEAD"
    )
    return Exit.DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.extract_embeddings", __doc__)
    parser.add_argument("images", type=Path, help="folder with real and ai, or CSV: filepath,label,source[,split]")
    parser.add_argument("--backbone", required=True, metavar="NAME", help=f"one of {', '.join(backbones())}")
    parser.add_argument("--out", type=Path, required=True, help=".npz to write")
    parser.add_argument(
        "--deliveries",
        type=lambda text: tuple(text.split(",")),
        default=DELIVERED,
        help="of clean, web, hard, random1, ... (default: web,hard,random1 to learn from, clean,web,hard to measure)",
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="embed on this Ray cluster; local: on one of this machine")
    parser.add_argument("--jobs", type=int, default=2, help="Ray actors (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
