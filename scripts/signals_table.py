"""Print the table of every signal a verdict can hold: python -m scripts.signals_table > docs/signals.md"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from inference.parts import FORENSICS, load_forensics
from inference.registry import DETECTORS
from models.loaders import Weights, cards
from utils.exits import Exit, command
from utils.profiles import PROFILES

HEAD = """\
# Signals

Every number of a verdict, by the part that measures it. Written by `python -m scripts.signals_table`; a test keeps it
current. A signal that does not apply or whose weights are missing is null, and `unavailable` says why.
"""


def table() -> str:
    ours = Weights(cards(), ())
    parts = [HEAD, "## Detectors\n"]
    for name, spec in DETECTORS.items():
        profiles = ", ".join(profile for profile, row in PROFILES.items() if name in row.detectors)
        weights = ", ".join(f"`{card.name}`" for card in ours.of(spec.model))
        module = spec.path.partition(":")[0].replace(".", "/")
        parts.append(f"### `{name}`: `{module}.py`\n\nProfiles: {profiles}. Weights: {weights}.\n")
        parts.append(_rows(spec.features))
    parts.append("## Forensics and provenance\n")
    for module, forensic in zip(FORENSICS, load_forensics(), strict=True):
        profiles = ", ".join(profile for profile in PROFILES if forensic.runs_in(profile, ()))
        parts.append(f"### `{module.replace('.', '/')}.py`\n\nProfiles: {profiles}.\n")
        parts.append(_rows(forensic.features))
    return "\n".join(parts)


def _rows(features: Mapping[str, str]) -> str:
    rows = [f"| `{name}` | {meaning.replace('|', chr(92) + '|')} |" for name, meaning in features.items()]
    return "\n".join(["| signal | meaning |", "|---|---|", *rows, ""])


@command
def main() -> int:
    print(table(), end="")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
