"""Export the small networks as ONNX graphs without weights: python -m scripts.export_graphs [--to FOLDER]

Only needed when what a network computes has changed: training/export.py says why. Needs onnx and onnxscript.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from inference.graphs import PROBE
from models.loaders import SHIPPED
from training.export import EXPORTED, IN_INTEGERS, export, export_integers, export_probe
from utils.exits import Exit, command, command_parser
from utils.persistence import GRAPH, GRAPH_INT8


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m scripts.export_graphs", __doc__)
    parser.add_argument(
        "--to", type=Path, default=SHIPPED, metavar="FOLDER", help="of model folders (default: %(default)s)"
    )
    folder: Path = parser.parse_args(argv).to
    for name, (architecture, build) in EXPORTED.items():
        export(build(), architecture, folder / name)
        print(folder / name / GRAPH)
        if name in IN_INTEGERS:
            export_integers(folder / name)
            print(folder / name / GRAPH_INT8)
    export_probe(folder / PROBE.name)
    print(folder / PROBE.name)
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
