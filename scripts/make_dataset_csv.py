"""Folders of labelled images -> dataset.csv: python -m scripts.make_dataset_csv [FOLDER...] [--out dataset.csv]

Without arguments: data/, with data/real and data/ai. A folder named real, nature, human or 0_real (ai, fake, generated
or 1_fake) anywhere above an image gives its label; the first other folder below the one named on the command line gives
its source. So real/flickr/1.jpg, progan/cat/0_real/1.png and Midjourney/train/ai/1.png are all understood, and of
several folders named on the command line each is the source of what lies loose in it.

No source is on both sides of the split. An image without a source is one of its own, together with what nearly repeats
it; so is every image of a label with fewer than three sources. Figures measured by such images flatter, since pictures
of one camera or generator are on both sides: train_fusion says so.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.datasets import BY_IMAGE, DATASET
from training.folders import Found, write_dataset
from utils.exits import Exit, command, command_parser

DATA = Path("data")


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    grouped, splits = write_dataset(arguments.folders, arguments.out, arguments.val, arguments.seed, arguments.jobs)
    _report(grouped, splits)
    print(
        f"read {len(grouped)} images in {', '.join(map(str, arguments.folders))}; wrote {arguments.out}; "
        f"next: python -m scripts.clean_dataset{'' if arguments.out == Path(DATASET) else f' {arguments.out}'}"
    )
    return Exit.DONE


def _report(images: Sequence[Found], splits: Mapping[str, str]) -> None:
    for (label, split), count in sorted(Counter((each.label, splits[each.source]) for each in images).items()):
        sources = {each.source for each in images if (each.label, splits[each.source]) == (label, split)}
        single = sum(source.startswith(BY_IMAGE) for source in sources)
        named = [f"{len(sources) - single} sources"] * (len(sources) > single) + [f"{single} single images"] * bool(
            single
        )
        print(f"{label} {split}: {count} images of {' and '.join(named)}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.make_dataset_csv", __doc__)
    parser.add_argument("folders", type=Path, nargs="*", default=[DATA], help=f"default: {DATA}")
    parser.add_argument("--out", type=Path, default=Path(DATASET), help="default: %(default)s")
    parser.add_argument("--val", type=float, default=0.2, help="share of the sources to validate on: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes that compare images (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
