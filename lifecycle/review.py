"""Label what the models find hard: python -m lifecycle.review [VERDICTS…] --out data/ [--reviewer NAME]

Serves a page on loopback with one image at a time: those that callers reported (IMGV_FEEDBACK_DIR, where their images
are kept), then images whose verdicts are given as JSON and whose files are here, the most useful first: near the
threshold, with detectors that disagree, and unlike the reference of the release that judges. A label moves a reported
image, and copies any other, into OUT/<label>/reviewed/, with a line in OUT/sources.csv as lifecycle.collect writes.
"""

from __future__ import annotations

import getpass
import html
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from ingress.sources import Ingress
from lifecycle.collect import HASH_DIGITS, Collection, Record
from lifecycle.drift import read_verdicts
from lifecycle.reference import Reference
from training.cleaning import describe, repeats
from utils.contracts import Json
from utils.errors import InputError, ReleaseUnusable
from utils.exits import Exit, command, command_parser
from utils.settings import Settings, load_settings
from utils.verdict_json import numbers_of

SOURCE = "reviewed"
_HOSTS = ["127.0.0.1", "localhost"]  # by another name a stranger's page would reach this one (DNS rebinding)
_KINDS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "AVIF": "image/avif"}
_POLICY = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; form-action 'self'"
_SECURITY = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
_STYLE = "<style>img{max-width:95vw;max-height:75vh}button{font-size:1.2rem}</style>"


@dataclass(frozen=True, slots=True)
class Case:
    """One image to label."""

    path: Path
    why: str  # it is shown
    claim: str  # what the caller said; empty: nobody reported it
    report: Path | None = None  # goes when it was labelled


def reported(folder: Path | None) -> Iterator[Case]:
    """Reports with their images, oldest first."""
    for path in sorted(folder.glob("*.json")) if folder else ():
        said = json.loads(path.read_text(encoding="utf-8"))
        image = path.with_suffix(".image")
        if image.is_file():
            text = f"reported as {said['label']}" + (f": {said['why']}" if said.get("why") else "")
            yield Case(image, text, said["label"], path)


def hard(verdicts: Sequence[Mapping[str, Json]], reference: Reference | None) -> list[Case]:
    """Images of verdicts, the most useful first; those whose file is not here are left out."""
    scored = []
    for verdict in verdicts:
        path = Path(str(verdict["source"]))
        if path.is_file():
            parts = usefulness(verdict, reference)
            named = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
            scored.append((sum(parts.values()), Case(path, f"probability {verdict['fusion_prob']:.2f}; {named}", "")))
    return [case for _, case in sorted(scored, key=lambda each: -each[0])]


def usefulness(verdict: Mapping[str, Json], reference: Reference | None) -> dict[str, float]:
    """Uncertainty, disagreement and novelty, each 0..1."""
    numbers = numbers_of(verdict)
    opinions = [value for name, value in numbers.items() if name.endswith("_prob") and value is not None]
    threshold, value = float(verdict["threshold"]), float(verdict["fusion_prob"])
    side = threshold if value < threshold else 1 - threshold
    found = {
        "uncertainty": 1 - abs(value - threshold) / max(side, 1e-9),
        "disagreement": float(np.ptp(opinions)) if len(opinions) > 1 else 0.0,
    }
    if reference is not None:
        row = np.array([np.nan if numbers.get(name) is None else numbers[name] for name in reference.signals], float)
        low, high = np.nanpercentile(reference.values, (1, 99), axis=0)
        known = np.isfinite(row) & np.isfinite(low)
        found["novelty"] = float(np.mean((row < low)[known] | (row > high)[known])) if known.any() else 0.0
    return found


class Review:
    """The cases that are left, and the data set that labels go into."""

    def __init__(self, cases: Sequence[Case], collection: Collection, reviewer: str, settings: Settings) -> None:
        self.cases = list(cases)
        self.collection = collection
        self.reviewer = reviewer
        self.settings = settings

    def label(self, number: int, label: str) -> None:
        """Take the image of the case in front as ``label``, or leave it out where it is neither."""
        if number != len(self.cases) or not self.cases:
            return  # the page was sent twice
        case = self.cases.pop(0)
        if label in ("real", "ai"):
            self._keep(case, label)
        if case.report is not None:
            case.path.unlink(missing_ok=True)
            case.report.unlink(missing_ok=True)

    def _keep(self, case: Case, label: str) -> None:
        raw = case.path.read_bytes()
        try:
            with Ingress(self.settings.decode.for_strangers()) as ingress:
                seen = describe(ingress.decode(raw, case.path.name))
        except InputError as error:
            print(f"{case.path.name} is left out: {error.code}: {error}", file=sys.stderr)
            return
        if seen.problem or repeats(seen, (each.seen for each in self.collection.records)):
            print(f"{case.path.name} is left out: {seen.problem or 'repeats another'}", file=sys.stderr)
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.collection.add(
            Record(
                filepath=f"{label}/{SOURCE}/{seen.sha256[:HASH_DIGITS]}.{seen.format.lower()}",
                label=label,
                source=SOURCE,
                generator="not stated" if label == "ai" else "",
                url=f"reviewed:{seen.sha256}",
                page="",
                author="",
                licence="",
                date=now,
                claim=f"{self.reviewer} says so" + (f"; the caller said {case.claim}" if case.claim else ""),
                collected=now,
                sha256=seen.sha256,
                pixels_sha256=seen.pixels_sha256,
                fingerprint="" if seen.fingerprint is None else seen.fingerprint.tobytes().hex(),
            ),
            raw,
        )


def page_app(review: Review) -> Starlette:
    """The page: strangers' images of formats that browsers decode, and their words escaped."""

    async def show(_: Request) -> Response:
        if not review.cases:
            return HTMLResponse("<p>Nothing is left to review.", headers=_SECURITY)
        number = len(review.cases)
        buttons = "".join(
            f'<button name="label" value="{value}">{text}</button> '
            for value, text in (("real", "real"), ("ai", "made by AI"), ("skip", "cannot tell"))
        )
        return HTMLResponse(
            f"<!doctype html><title>Review</title>{_STYLE}"
            f"<p>{number} left; {html.escape(review.cases[0].why)}</p><p><img src='/image/{number}' alt='to label'></p>"
            f"<form method='post' action='/label/{number}'>{buttons}</form>",
            headers=_SECURITY,
        )

    async def image(request: Request) -> Response:
        if request.path_params["number"] != len(review.cases) or not review.cases:
            return Response(status_code=404)
        raw = review.cases[0].path.read_bytes()
        with Ingress(review.settings.decode.for_strangers()) as ingress:
            try:
                kind = _KINDS.get(ingress.decode(raw, "image").format, "")
            except InputError:
                kind = ""
        return Response(raw, media_type=kind, headers=_SECURITY) if kind else Response(status_code=415)

    async def label(request: Request) -> Response:
        origin = request.headers.get("origin")
        if origin and origin.partition("//")[2] != request.headers.get("host"):
            return Response(status_code=403)  # another site's page
        form = await request.form()
        review.label(request.path_params["number"], str(form.get("label", "")))
        return RedirectResponse("/", 303)

    return Starlette(
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)],
        routes=[
            Route("/", show),
            Route("/image/{number:int}", image),
            Route("/label/{number:int}", label, methods=["POST"]),
        ],
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m lifecycle.review", __doc__)
    parser.add_argument("verdicts", nargs="*", type=Path, help="files or folders of verdict JSON")
    parser.add_argument("--out", type=Path, default=Path("data"), help="data set (default: %(default)s)")
    parser.add_argument("--reviewer", default=getpass.getuser(), help="whose word the label is (default: you)")
    parser.add_argument("--port", type=int, default=8020)
    arguments = parser.parse_args(argv)
    settings = load_settings()
    cases = [*reported(settings.api.feedback_dir), *hard(list(read_verdicts(arguments.verdicts)), _reference(settings))]
    review = Review(cases, Collection.at(arguments.out), arguments.reviewer, settings)
    print(f"{len(cases)} images to review: http://127.0.0.1:{arguments.port}/", flush=True)
    uvicorn.run(page_app(review), host="127.0.0.1", port=arguments.port, log_level="warning")
    return Exit.DONE


def _reference(settings: Settings) -> Reference | None:
    from lifecycle.drift import reference_of

    try:
        return reference_of(settings)[0]
    except ReleaseUnusable as error:
        print(f"novelty does not count: {error}", file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(main())
