"""Download, verify and install weight files: python -m scripts.download_weights --list

The only part of the product that fetches weights, and only when asked. Knows cards, not networks.

A file is verified against its card before it gets its final name. Where no hash is known, the hash of the first
download is shown and recorded in <weights folder>/weights.toml: from then on a different file is refused.

httpx carries the bytes, and neither pooch nor huggingface_hub, since pooch starts a broken transfer of 10 GB over and
follows redirects to plain http, and huggingface_hub takes files of its own hub only. What huggingface_hub has fetched
already is found in its cache (models/loaders.py).

Publishers who want their licence accepted first give their files to a token: HF_TOKEN, from
https://huggingface.co/settings/tokens. It goes to huggingface.co alone and into no log.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import httpx
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from inference.registry import DETECTORS
from models.loaders import OVERRIDES, Weights, find, record_card
from utils.errors import FetchFailed, WeightsCorrupt, WeightsMissing
from utils.exits import Exit, command, command_parser
from utils.persistence import Card, check, sha256_file
from utils.profiles import PROFILES
from utils.settings import load_settings

CHUNK = 2**20
HUB = "huggingface.co"
TOKEN = "HF_TOKEN"  # noqa: S105 - the name of the variable
GATED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


@command
def main(argv: Sequence[str] | None = None, transport: httpx.BaseTransport | None = None) -> int:
    """Run the command line.

    Args:
        transport: how requests travel; given only by tests.

    Returns:
        Exit.DONE when everything that was asked for is installed.
    """
    arguments = _parse(argv)
    folder: Path = arguments.to or load_settings().models.weights_dir
    weights = Weights.at(folder)
    chosen = _choose(weights, arguments.names, arguments.profile)
    if arguments.source is not None:
        return _install_by_hand(chosen, arguments.source, folder)
    if arguments.list or not chosen:
        _show(chosen or list(weights.cards.values()), weights.folders)
        return Exit.DONE
    # --yes reads no licence: weights with limits on their use must then be asked for by name, not by a profile.
    limited = [card for card in chosen if card.url and not card.commercial and card.name not in arguments.names]
    held = limited if arguments.yes else []
    for card in held:
        print(f"{card.name}: {card.licence}; to accept that: python -m scripts.download_weights {card.name} --yes")
    chosen = [card for card in chosen if card not in held]
    done = _install(chosen, weights.folders, folder, arguments.yes, transport)
    return Exit.FAILED if held else done


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m scripts.download_weights", __doc__)
    parser.add_argument("names", nargs="*", help="cards to install; see --list")
    parser.add_argument("--profile", choices=tuple(PROFILES), help="all cards of this profile")
    parser.add_argument("--list", action="store_true", help="show sizes, licences and hashes; download nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--to", type=Path, metavar="DIR", help="weights folder; default: IMGV_WEIGHTS_DIR")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="install a file that you downloaded by hand"
    )
    return parser.parse_args(argv)


def _choose(weights: Weights, names: Iterable[str], profile: str | None) -> list[Card]:
    chosen = {name: weights.card(name) for name in names}
    for detector in PROFILES[profile].detectors if profile else ():
        for card in weights.of(DETECTORS[detector].model):
            chosen[card.name] = card
            if card.backbone:
                chosen[card.backbone] = weights.card(card.backbone)
    return list(chosen.values())


def _show(cards: Iterable[Card], folders: Sequence[Path]) -> None:
    for card in cards:
        print(f"{card.name}: {_state(card, folders)}")
        if card.file:
            size = f"{card.size / 1e9:.2f} GB" if card.size else "size not stated"
            use = "commercial use allowed" if card.commercial else "NOT FOR COMMERCIAL USE"
            print(f"    {size}; {card.licence or 'licence not stated'}; {use}")
            print(f"    sha256 {card.sha256 or 'not known: the first installation records it'}")
        for line in (card.url or card.page, card.note):
            if line:
                print(f"    {line}")


def _state(card: Card, folders: Sequence[Path]) -> str:
    try:
        return f"installed at {find(card, folders)}"
    except WeightsMissing:
        return "not installed"


def _install(
    cards: Sequence[Card], folders: Sequence[Path], folder: Path, yes: bool, transport: httpx.BaseTransport | None
) -> int:
    todo = [card for card in cards if not _is_installed(card, folders)]
    automatic = [card for card in todo if card.url]
    by_hand = [card for card in todo if not card.url]
    if automatic:
        _show(automatic, folders)
        if not yes and not _confirmed(f"Download {len(automatic)} file(s) into {folder}? [y/N] "):
            print("Nothing downloaded.")
            return Exit.FAILED
        folder.mkdir(parents=True, exist_ok=True)
        with _client(transport) as client:
            for card in automatic:
                _finish(card, download(card, folder, client), folder)
    for card in by_hand:
        print(_advice(card))
    return Exit.FAILED if by_hand else Exit.DONE


def _is_installed(card: Card, folders: Sequence[Path]) -> bool:
    """Whether it is there and right; a damaged file is an error to be read, never silently replaced."""
    try:
        path = find(card, folders)
    except WeightsMissing:
        return False
    check(card, path)
    print(f"{card.name}: installed and verified at {path}")
    return True


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _advice(card: Card) -> str:
    if not card.file:
        return f"{card.name}: {card.note}" + (f" Make it with: {card.train}" if card.train else "")
    return (
        f"{card.name}: cannot be downloaded automatically. Get {card.file} from {card.page}, then run:\n"
        f"    python -m scripts.download_weights {card.name} --from {card.file}"
    )


def _client(transport: httpx.BaseTransport | None) -> httpx.Client:
    def prepare(request: httpx.Request) -> None:  # redirects come by here too
        if request.url.scheme != "https":
            raise FetchFailed(f"{request.url} is not https")
        if request.url.host == HUB and (token := os.environ.get(TOKEN)):
            request.headers["Authorization"] = f"Bearer {token}"

    return httpx.Client(
        transport=transport,
        follow_redirects=True,
        timeout=30,
        headers={"Accept-Encoding": "identity"},  # ranges and lengths must mean the file's own bytes
        event_hooks={"request": [prepare]},
    )


def download(card: Card, folder: Path, client: httpx.Client) -> Path:
    """Fetch a card's file into ``<file>.part``, continuing an earlier attempt; not verified yet.

    Raises:
        FetchFailed: the server or the connection failed; what arrived is kept.
        WeightsCorrupt: what the server offers is not the file of the card.
    """
    part = folder / f"{card.file}.part"
    have = part.stat().st_size if part.exists() else 0
    if card.size and have == card.size:
        return part
    try:
        with client.stream("GET", card.url, headers={"Range": f"bytes={have}-"} if have else {}) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                return part  # it was complete already, or is wrong: verification tells
            if response.status_code in GATED and response.url.host == HUB:
                raise FetchFailed(f"{card.name}: {_how_to_enter(card)}")
            if not response.is_success:
                raise FetchFailed(f"{card.name}: {response.url} answered {response.status_code}")
            resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
            _receive(card, response, part, have if resumed else 0)
    except httpx.HTTPError as error:
        raise FetchFailed(f"{card.name}: {error!r}; run the same command again to continue") from error
    return part


def _how_to_enter(card: Card) -> str:
    if os.environ.get(TOKEN):
        return f"{HUB} refuses the token in {TOKEN}: accept the licence at {card.page} with its account, then run again"
    return f"gated: accept the licence at {card.page}, then set {TOKEN} (https://{HUB}/settings/tokens) and run again"


def _receive(card: Card, response: httpx.Response, part: Path, have: int) -> None:
    total = have + int(response.headers.get("content-length", 0))
    if response.headers.get("content-type", "").startswith("text/html"):
        raise WeightsCorrupt(f"{card.name}: {response.url} answered with a web page, not a file; see {card.page}")
    if card.size and total not in (have, card.size):
        raise WeightsCorrupt(f"{card.name}: expected {card.size} bytes, {response.url} offers {total}")
    if total - have > (free := shutil.disk_usage(part.parent).free):
        raise FetchFailed(f"{card.name}: {total - have} bytes to go, but {part.parent} has room for {free}")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress, part.open("ab" if have else "wb") as file:
        bar = progress.add_task(card.name, total=card.size or total or None, completed=have)
        for chunk in response.iter_bytes(CHUNK):
            file.write(chunk)
            progress.advance(bar, len(chunk))
            if card.size and file.tell() > card.size:
                break  # verification will say so; a server shall not fill the disk


def _finish(card: Card, part: Path, folder: Path) -> None:
    """Verify ``part`` and give it its final name; with no hash on the card, record the one found."""
    size, sha256 = part.stat().st_size, sha256_file(part)
    if size != (card.size or size) or sha256 != (card.sha256 or sha256):
        part.unlink()
        raise WeightsCorrupt(
            f"{card.name}: expected {card.size or 'any number of'} bytes with sha256 {card.sha256 or 'not known'}, "
            f"got {size} bytes with {sha256}; the file was not installed"
        )
    part.replace(folder / card.file)
    if card.sha256:
        print(f"{card.name}: verified and installed at {folder / card.file}")
        return
    record_card(card.name, {"size": size, "sha256": sha256}, folder)
    print(
        f"{card.name}: installed at {folder / card.file}, NOT VERIFIED: nobody told us its hash.\n"
        f"    Recorded in {folder / OVERRIDES}: {size} bytes, sha256 {sha256}\n"
        f"    From now on another file is refused. Compare this hash with a source you trust."
    )


def _install_by_hand(chosen: Sequence[Card], source: Path, folder: Path) -> int:
    if len(chosen) != 1 or not chosen[0].file:
        raise WeightsMissing("--from needs the name of exactly one card that has a file; see --list")
    if not source.is_file():
        raise WeightsMissing(f"there is no file {source}")
    card = chosen[0]
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{card.file}.part"
    shutil.copyfile(source, part)
    _finish(card, part, folder)
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
