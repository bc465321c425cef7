"""Tell whether images are AI-generated: python img_ml_verify.py photo.jpg https://… folder/ -"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, get_args

from utils.exits import Exit, command, command_parser
from utils.profiles import DEFAULT_PROFILE, PROFILES

if TYPE_CHECKING:  # imported where used: --help and --schema answer without numpy or OpenCV
    from inference.batch import Line
    from inference.detector import Verifier
    from inference.pipeline import Pipeline, Request
    from inference.verdict_cache import VerdictFile
    from utils.contracts import Tier, Verdict
    from utils.errors import VerifyError
    from utils.settings import Settings

    Show: TypeAlias = Callable[[str, Verdict | VerifyError], None]

log = logging.getLogger(__name__)

NOTES = "settings    environment variables and .env; .env.example lists them\n"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("img_ml_verify.py", "Tell whether images are AI-generated, and show why.", NOTES)
    kinds = "image file, folder, http(s) or data: URL, or - for stdin"
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help=kinds)
    parser.add_argument("--json", action="store_true", help="print JSON: one object, or a line each for several images")
    parser.add_argument(
        "--artifacts",
        metavar="DIR",
        type=Path,
        help="write heatmaps and HTML reports below DIR; of several images DIR/index.html too",
    )
    parser.add_argument(
        "--summary", action="store_true", help="of a folder: counts per tier, the most suspicious first"
    )
    parser.add_argument(
        "--fail-on",
        metavar="TIERS",
        type=_tiers,
        default=frozenset(),
        help="exit with 5 if an image is in one: ai,likely_ai",
    )
    parser.add_argument("--profile", choices=tuple(PROFILES), help=f"which detectors run (default: {DEFAULT_PROFILE})")
    parser.add_argument("--threshold", type=float, metavar="P", help="label AI from this probability on, 0..1")
    parser.add_argument(
        "--stability", action="store_true", help="judge each image again as delivered otherwise: does the verdict hold?"
    )
    parser.add_argument(
        "--head", metavar="HEAD", type=Path, help="judge by this head alone, a folder of scripts.train_head"
    )
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


def _tiers(given: str) -> frozenset[Tier]:
    """What --fail-on names."""
    from utils.contracts import Tier

    known: tuple[Tier, ...] = get_args(Tier)
    if unknown := set(given.split(",")).difference(known):
        raise argparse.ArgumentTypeError(f"no tier {min(unknown)!r}; give some of {','.join(known)}")
    return frozenset(tier for tier in known if tier in given.split(","))


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
    given = {"profile": args.profile, "threshold": args.threshold, "stability": args.stability or None}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    configure_logging(settings.log.level)
    return run(args, settings)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Judge every input, and show each answer as soon as it and those before it are there."""
    from inference.batch import line_of
    from inference.detector import build_head_verifier, build_verifier
    from ingress.sources import expand
    from utils.threads import limit_library_threads

    sources = list(expand(args.inputs))
    single = sources == args.inputs and len(sources) == 1
    show: Show = (lambda *_: None) if args.summary else _json_lines(single) if args.json else _tables(single)
    lines: list[Line] = []

    async def show_all() -> Exit:
        tiers: set[Tier | None] = set()  # None: of an image without a verdict
        shown = _progress(len(sources)) if not single and sys.stderr.isatty() else nullcontext(int)
        with shown as advance:
            async for source, answer in judge(sources, settings, verifier, args.artifacts):
                line = line_of(source, answer)
                tiers.add(line.tier)
                show(source, answer)
                if args.summary or args.artifacts:
                    lines.append(line)
                advance()
        return Exit.FOUND if tiers & args.fail_on else Exit.FAILED if None in tiers else Exit.DONE

    built = build_head_verifier(settings.models, args.head) if args.head else build_verifier(settings.models)
    with built as verifier:
        limit_library_threads()
        code = asyncio.run(show_all())
    if args.artifacts and not single:
        _write_sheet(args.artifacts, lines)
    if args.summary:
        _show_summary(lines, as_json=args.json)
    return code


# rich is imported where it is used: one image as JSON, as scripts ask for it, is not to wait for it


def _json_lines(single: bool) -> Show:
    from utils.errors import VerifyError
    from utils.verdict_json import dump, error_dict, verdict_dict

    def show(source: str, answer: Verdict | VerifyError) -> None:
        found = error_dict(source, answer) if isinstance(answer, VerifyError) else verdict_dict(answer)
        print(dump(found, pretty=single), flush=True)

    return show


def _tables(single: bool) -> Show:
    from inference.terminal import Terminal, show_error, show_verdict
    from utils.errors import VerifyError

    console = Terminal()

    def show(source: str, answer: Verdict | VerifyError) -> None:
        if isinstance(answer, VerifyError):
            show_error(console, source, answer)
        else:
            show_verdict(console, answer, short=not single)

    return show


def _write_sheet(folder: Path, lines: Sequence[Line]) -> None:
    from inference.sheet import write_sheet

    try:
        print(f"contact sheet: {write_sheet(folder, lines)}", file=sys.stderr)
    except OSError as error:  # the answers have been given
        print(f"no contact sheet in {folder}: {error.strerror}", file=sys.stderr)


def _show_summary(lines: Sequence[Line], *, as_json: bool) -> None:
    if as_json:
        from inference.batch import summary
        from utils.verdict_json import dump

        print(dump(summary(lines), pretty=True))
        return
    from inference.terminal import Terminal, show_summary

    show_summary(Terminal(), lines)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], object]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("judging", total=total)
        yield lambda: progress.advance(task)


async def judge(
    sources: Iterable[str | Request], settings: Settings, verifier: Verifier, artifacts: Path | None = None
) -> AsyncIterator[tuple[str, Verdict | VerifyError]]:
    """Answer for every source, in order: a verdict, or the error that says why there is none.

    Args:
        sources: asked for the next ones as they are needed.

    Raises:
        SetupError: no image can be judged.
    """
    from inference.pipeline import Pipeline
    from inference.verdict_cache import VerdictFile
    from ingress.sources import shown

    waiting = iter(sources)
    known = None if artifacts else VerdictFile.at(settings)  # an artifact needs the pixels
    with Pipeline(settings.pipeline, settings.decode, settings.fetch, {"": verifier}) as pipeline:
        coming: deque[tuple[str | Request, asyncio.Task[Verdict | VerifyError]]] = deque()
        try:
            while True:
                for source in islice(waiting, 2 * settings.pipeline.batch - len(coming)):  # one batch ahead
                    answer = _answer(source, settings.decode.max_bytes, pipeline, artifacts, known, verifier)
                    coming.append((source, asyncio.create_task(answer)))
                if not coming:
                    return
                source, task = coming.popleft()
                yield shown(source) if isinstance(source, str) else source.source, await task
        finally:
            for _, task in coming:
                task.cancel()


async def _answer(
    source: str | Request,
    max_bytes: int,
    pipeline: Pipeline,
    artifacts: Path | None,
    known: VerdictFile | None,
    verifier: Verifier,
) -> Verdict | VerifyError:
    from utils.errors import Internal, SetupError, VerifyError

    try:
        request = _request(source, max_bytes) if isinstance(source, str) else source
        with pipeline.place(request) as place:
            raw = await pipeline.read(request, place)
            digest = await pipeline.in_thread(known.digest, raw, verifier) if known else ""
            if known and (earlier := await pipeline.in_thread(known.get, digest, request.source)):
                return earlier
            sample, judgement = await pipeline.judge(request, raw, place)
            if known and not judgement.failed:
                await pipeline.in_thread(known.put, digest, judgement.verdict)
            if artifacts is None:
                return judgement.verdict
            from inference.report import unwritten, write_artifacts

            try:
                written = await pipeline.in_thread(write_artifacts, artifacts, sample, judgement)
            except OSError as error:
                return unwritten(judgement.verdict, error)
            return replace(judgement.verdict, artifacts=written)
    except SetupError:  # no image would fare better
        raise
    except VerifyError as error:
        return error
    except Exception:  # a bug of ours must not cost the other images their answer
        log.exception("cannot judge %s", source if isinstance(source, str) else source.source)
        return Internal("a bug of ours, not your image's fault; please report the traceback above")


def _request(source: str, max_bytes: int) -> Request:
    from inference.pipeline import Request
    from ingress.sources import from_data_uri, is_data_uri, is_url, shown

    if is_data_uri(source):
        return Request(shown(source), raw=from_data_uri(source, max_bytes))
    return Request(source, url=source) if is_url(source) else Request(source, path=Path(source))


if __name__ == "__main__":
    sys.exit(main())
