"""Train a head on embeddings: python -m scripts.train_head features.npz --head svm|logistic|forest|mlp --out HEAD

Settings are compared by cross-validation over sources, the best is fitted to all training rows and calibrated. HEAD
becomes a model folder without pickle: weights, card, README with classification report and confusion matrix, ROC plot.

    python img_ml_verify.py photo.jpg --head HEAD      judges by this head alone

--install also makes it the head of its detector in this installation (dino, clip, dinov3, ...): profile full runs it,
and fusion uses it once scripts.build_profile or fusion.train_fusion has learnt what it is worth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from inference.registry import DETECTORS
from models.loaders import install
from training.embeddings import Embedded
from training.head_fit import KINDS, fit, write
from utils.exits import Exit, command, command_parser
from utils.settings import load_settings


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    embedded = Embedded.load(arguments.features)
    fitted = fit(embedded, arguments.head, arguments.grid, arguments.seed)
    out: Path = arguments.out
    options = f"--head {arguments.head}{'' if arguments.grid else ' --no-grid'} --seed {arguments.seed}"
    print(write(fitted, embedded.table, out, options))
    if arguments.install:
        card, weights_dir = DETECTORS[fitted.head.detector].model, load_settings().models.weights_dir
        install(out, card, weights_dir)
        print(f"installed {card} in {weights_dir}")
    print(f"read {len(embedded.table)} rows; wrote {out}; next: python img_ml_verify.py photo.jpg --head {out}")
    return Exit.DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.train_head", __doc__)
    parser.add_argument("features", type=Path, help="of scripts.extract_embeddings")
    parser.add_argument("--head", choices=KINDS, default="svm", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, metavar="HEAD", help="folder to write")
    parser.add_argument("--install", action="store_true", help="use it in this installation")
    parser.add_argument(
        "--grid",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare settings, not only the default (default: yes)",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
