"""Tell whether images are AI-generated: python img_ml_verify.py photo.jpg https://… folder/ -"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from utils.exits import Exit, command, command_parser
from utils.profiles import DEFAULT_PROFILE, PROFILES

if TYPE_CHECKING:  # imported where used: --help and --schema answer without numpy or OpenCV
    from inference.detector import Judgement, Verifier
    from utils.contracts import Sample
    from utils.errors import VerifyError
    from utils.settings import Settings

    Answered: TypeAlias = tuple[str, Sample | None, Judgement | VerifyError]
    Load: TypeAlias = Callable[[str], Sample]
    Show: TypeAlias = Callable[[str, Judgement | VerifyError], None]

log = logging.getLogger(__name__)

BATCH = 8  # images judged together: the large detectors run batched, and no core waits for the last part of each
BATCH_BYTES = 2**26  # of pixels, above which a batch is closed: two of them are in memory at a time

NOTES = "settings    environment variables and .env; .env.example lists them\n"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("img_ml_verify.py", "Tell whether images are AI-generated, and show why.", NOTES)
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="image file, folder, http(s) URL, or - for stdin")
    parser.add_argument("--json", action="store_true", help="print JSON: one object, or a line each for several images")
    parser.add_argument("--artifacts", metavar="DIR", type=Path, help="write heatmaps and an HTML report below DIR")
    parser.add_argument("--profile", choices=tuple(PROFILES), help=f"which detectors run (default: {DEFAULT_PROFILE})")
    parser.add_argument("--threshold", type=float, metavar="P", help="label AI from this probability on, 0..1")
    parser.add_argument("--demo", action="store_true", help="judge a real photograph that scikit-learn carries")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of a verdict and exit")
    args = parser.parse_args(argv)
    if args.demo:
        if (photograph := demo_photograph()) is None:
            parser.exit(Exit.SETUP, "--demo needs the photograph in scikit-learn: pip install scikit-learn\n")
        args.inputs.append(str(photograph))
    if not (args.inputs or args.schema):
        parser.error("no input; give a file, folder, URL or -, or try --demo")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        parser.error(f"--threshold must lie in 0..1, got {args.threshold}")
    if args.artifacts:
        try:
            args.artifacts.mkdir(parents=True, exist_ok=True)  # now, not after the first image was judged
        except OSError as error:
            parser.error(f"--artifacts {args.artifacts}: {error.strerror}; name a folder that can be written")
    return args


def demo_photograph() -> Path | None:
    """A camera photograph inside the scikit-learn package, found without importing it; None: not installed."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        return None
    photograph = Path(package.origin).parent / "datasets" / "images" / "china.jpg"
    return photograph.relative_to(Path.cwd()) if photograph.is_relative_to(Path.cwd()) else photograph


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    from utils.logs import configure_logging
    from utils.settings import load_settings

    if args.schema:
        from utils.verdict_json import dump, json_schema

        print(dump(json_schema(), pretty=True))
        return Exit.DONE
    given = {"profile": args.profile, "threshold": args.threshold}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    configure_logging(settings.log.level)
    return run(args, settings)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Judge every input, and show each answer as soon as its batch is done."""
    from inference.detector import build_verifier
    from ingress.sources import Ingress, expand, fetch_within, is_url
    from utils.errors import VerifyError

    sources = list(expand(args.inputs))
    single, code = sources == args.inputs and len(sources) == 1, Exit.DONE
    show = _json_lines(single) if args.json else _tables(single)
    with Ingress(settings.decode) as ingress:

        def load(source: str) -> Sample:
            if not is_url(source):
                return ingress.load(source)
            return ingress.decode(asyncio.run(fetch_within(settings.fetch, source, settings.decode.max_bytes)), source)

        answers = judge(sources, load, build_verifier(settings.models))
        if not single and sys.stderr.isatty():
            answers = _with_progress(answers, len(sources))
        for source, sample, answer in answers:
            if isinstance(answer, VerifyError):
                code = Exit.FAILED
            elif args.artifacts and sample:
                from inference.report import write_artifacts

                verdict = replace(answer.verdict, artifacts=write_artifacts(args.artifacts, sample, answer))
                answer = replace(answer, verdict=verdict)
            show(source, answer)
    return code


# rich is imported where it is used: one image as JSON, as scripts ask for it, is not to wait for it


def _json_lines(single: bool) -> Show:
    from utils.errors import VerifyError
    from utils.verdict_json import dump, error_dict, verdict_dict

    def show(source: str, answer: Judgement | VerifyError) -> None:
        found = error_dict(source, answer) if isinstance(answer, VerifyError) else verdict_dict(answer.verdict)
        print(dump(found, pretty=single), flush=True)

    return show


def _tables(single: bool) -> Show:
    from inference.terminal import Terminal, show_error, show_verdict
    from utils.errors import VerifyError

    console = Terminal()

    def show(source: str, answer: Judgement | VerifyError) -> None:
        if isinstance(answer, VerifyError):
            show_error(console, source, answer)
        else:
            show_verdict(console, answer.verdict, short=not single)

    return show


def _with_progress(answers: Iterator[Answered], total: int) -> Iterator[Answered]:
    from rich.console import Console
    from rich.progress import track

    yield from track(answers, "judging", total=total, console=Console(stderr=True), transient=True)


def judge(sources: Sequence[str], load: Load, verifier: Verifier) -> Iterator[Answered]:
    """Answer for every source, in order: a judgement, or the error that says why there is none.

    While one batch is measured, the next one is read and decoded on a thread of its own.
    """
    from concurrent.futures import ThreadPoolExecutor

    from utils.errors import VerifyError

    waiting = iter(sources)
    with ThreadPoolExecutor(1, "load") as loader:
        coming = loader.submit(_load_batch, waiting, load)
        while batch := coming.result():
            coming = loader.submit(_load_batch, waiting, load)
            judged = iter(verifier.verify([each for _, each in batch if not isinstance(each, VerifyError)]))
            for source, each in batch:
                if isinstance(each, VerifyError):
                    yield source, None, each
                else:
                    yield source, each, next(judged)


def _load_batch(waiting: Iterator[str], load: Load) -> list[tuple[str, Sample | VerifyError]]:
    """The next BATCH images; fewer once their pixels take BATCH_BYTES. Empty at the end."""
    from utils.errors import Internal, SetupError, VerifyError

    batch: list[tuple[str, Sample | VerifyError]] = []
    size = 0
    while len(batch) < BATCH and size < BATCH_BYTES and (source := next(waiting, None)) is not None:
        try:
            sample = load(source)
            size += sample.rgb.nbytes
            batch.append((source, sample))
        except SetupError:  # no image would fare better
            raise
        except VerifyError as error:
            batch.append((source, error))
        except Exception:  # a bug of ours must not cost the other images their answer
            log.exception("cannot load %s", source)
            internal = Internal("a bug of ours, not your image's fault; please report the traceback above")
            batch.append((source, internal))
    return batch


if __name__ == "__main__":
    sys.exit(main())
