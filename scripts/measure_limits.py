"""Find where the tiers' promise ends: python -m scripts.measure_limits --manifest dataset.csv --images 100

Prints how often real and AI images are called AI or inconclusive, by long side, by flat area and by entropy, without
and with the limits of inference/limits.py, which this is there to set. One process; about 11 copies an image.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import track

from inference.detector import build_verifier
from ingress.sources import Ingress
from training import limits_study as study
from utils.errors import VerifyError
from utils.exits import Exit, command, command_parser
from utils.settings import load_settings
from utils.threads import limit_library_threads


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    settings = load_settings(**({"fusion": arguments.fusion} if arguments.fusion else {}))
    copies: list[study.Copy] = []
    rows = study.draw(arguments.manifest, arguments.split, arguments.images)
    verifier = build_verifier(settings.models)
    limit_library_threads()
    with Ingress(settings.decode) as ingress:
        for row in track(rows, "measuring", console=Console(stderr=True)):
            try:
                copies += study.measure([row], arguments.manifest.parent, verifier, ingress)
            except VerifyError as error:
                print(f"left out: {row['filepath']}: {error}", file=sys.stderr)
    if arguments.out:
        with arguments.out.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(study.Copy.__slots__))
            table.writeheader()
            table.writerows(map(asdict, copies))
    tables = [
        study.by_size(copies),
        study.by_content(copies, "flat", study.FLAT_EDGES),
        study.by_content(copies, "entropy", study.ENTROPY_EDGES),
    ]
    print("\n\n".join([f"fusion {verifier.fusion.name}, {len(rows)} images", *tables]))
    return Exit.DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.measure_limits", __doc__)
    study.add_options(parser, images=100)
    parser.add_argument("--fusion", default="", help="artifact; default: that of the settings")
    parser.add_argument("--out", type=Path, help="CSV of every copy")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
