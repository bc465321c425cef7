"""What --stability costs and catches: python -m scripts.measure_stability --manifest dataset.csv --images 40

Judges images as they are, and again with --stability, and prints for real and AI images: how often the label flips
where it is right and where it is wrong, and the share of wrong labels outside the inconclusive tier without and with
it; and what it costs in time. One process.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import track

from inference.detector import build_verifier
from ingress.sources import Ingress
from training import limits_study as study
from utils.contracts import Tier
from utils.errors import VerifyError
from utils.exits import Exit, command, command_parser
from utils.settings import load_settings
from utils.threads import limit_library_threads


@dataclass(frozen=True, slots=True)
class Judged:
    """One image without and with a look at whether its label holds."""

    label: str
    right: bool
    flips: bool
    tiers: tuple[Tier, Tier]
    seconds: tuple[float, float]


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    settings = load_settings()
    limit_library_threads()
    found: list[Judged] = []
    rows = study.draw(arguments.manifest, arguments.split, arguments.images)
    with build_verifier(settings.models) as verifier, Ingress(settings.decode) as ingress:
        for row in track(rows, "measuring", console=Console(stderr=True)):
            try:
                sample = ingress.load(str(arguments.manifest.parent / row["filepath"]))
            except VerifyError as error:
                print(f"left out: {row['filepath']}: {error}", file=sys.stderr)
                continue
            verdicts, clock = [], [time.perf_counter()]
            for asked in (False, True):
                verdicts.append(verifier.verify([sample], stability=[asked])[0].verdict)
                clock.append(time.perf_counter())
            held = verdicts[1].stability
            found.append(
                Judged(
                    label=row["label"],
                    right=(verdicts[0].label == "AI") == (row["label"] == "ai"),
                    flips=held is not None and held.flips,
                    tiers=(verdicts[0].tier, verdicts[1].tier),
                    seconds=(clock[1] - clock[0], clock[2] - clock[1]),
                )
            )
    print(f"fusion {verifier.fusion.name}, {len(found)} images\n\n{table_of(found)}")
    return Exit.DONE


def table_of(found: Sequence[Judged]) -> str:
    """A Markdown table of what was found, and a line about time."""
    lines = [
        "| images | label flips where right | where wrong | wrong outside inconclusive, without | with |",
        "|---|---|---|---|---|",
    ]
    for label in ("real", "ai"):
        own = [each for each in found if each.label == label]
        flips = (_share([each.flips for each in own if each.right is right]) for right in (True, False))
        wrong = (_share([not each.right for each in own if each.tiers[asked] != "inconclusive"]) for asked in (0, 1))
        lines.append(f"| {len(own)} {label} | {' | '.join(flips)} | {' | '.join(wrong)} |")
    plain, held = (sum(each.seconds[asked] for each in found) for asked in (0, 1))
    return "\n".join([*lines, "", f"With it an image takes {held / plain:.1f} times as long."])


def _share(hits: Sequence[bool]) -> str:
    return f"{sum(hits)} of {len(hits)}"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.measure_stability", __doc__)
    study.add_options(parser, images=40)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
