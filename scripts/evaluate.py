"""Measure the product on labelled images: python -m scripts.evaluate --manifest dataset.csv --out report

Every image is measured by the production conductor as it is (clean) and as people send it on (web, hard), and judged by
the fusion artifact alone: provenance, which would only make the numbers better, is left out. evaluation.md (or the page
that --markdown names) holds the tables and may be published; report.html also shows the plots and the worst mistakes:
keep it on this machine, it shows the images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from inference.detector import fusion_folder
from training import localisation
from training.evaluation import judge, measure, tiers
from training.evaluation_page import head, markdown, page, plot
from training.extraction import extract
from utils.exits import Exit, command, command_parser
from utils.settings import load_settings


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    features = arguments.table or arguments.out / "features.csv"
    settings = load_settings()
    if arguments.table is None:
        _, failures = extract(
            arguments.manifest, features, settings.models, settings.decode, split=arguments.split, jobs=arguments.jobs
        )
        for failure in failures:
            print(f"left out: {failure}", file=sys.stderr)
    folder = fusion_folder(settings.models.model_copy(update={"fusion": arguments.fusion} if arguments.fusion else {}))
    judged = judge(features, arguments.manifest, folder, arguments.split, settings.models.threshold)
    located = localisation.locate(arguments.masks, settings.models, settings.decode) if arguments.masks else None
    measured = measure(judged)
    text = "\n\n".join([head(judged, folder, sys.argv[1:] if argv is None else argv), *markdown(judged, measured)])
    numbers = {**measured, "Tiers": tiers(judged)}
    if located is not None:
        text += f"\n\n## Localisation\n\n{localisation.markdown(located)}"
        numbers["Localisation"] = localisation.summarise(located.located)
    published = arguments.markdown or arguments.out / "evaluation.md"
    published.write_text(f"{text}\n", encoding="utf-8")
    (arguments.out / "metrics.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    drawn = plot(judged, arguments.out / "plots.png")
    (arguments.out / "report.html").write_text(page(text, drawn, judged, arguments.manifest), encoding="utf-8")
    print(text)
    return Exit.DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.evaluate", __doc__)
    parser.add_argument("--manifest", type=Path, help="CSV: filepath,label,source,split[,generator,kind,content]")
    parser.add_argument("--table", type=Path, help="of scripts.extract_features, instead of measuring now")
    parser.add_argument("--masks", type=Path, help="CSV: filepath,label,source,mask; the manipulated rows are located")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder (default: %(default)s)")
    parser.add_argument("--markdown", type=Path, help="the page of tables, e.g. docs/evaluation.md; default: in --out")
    parser.add_argument("--fusion", default="", help="artifact; default: that of the settings")
    parser.add_argument("--split", default="val", choices=("train", "val", "all"))
    parser.add_argument("--jobs", type=int, default=2, help="processes that measure")
    arguments = parser.parse_args(argv)
    if arguments.manifest is None and arguments.table is None:
        parser.error("give --manifest, --table, or both")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
