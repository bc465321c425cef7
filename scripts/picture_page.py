"""Take the README's picture of the page: python -m scripts.picture_page

Starts the API as it ships, gives its page a photograph in a real Chromium, and keeps what a person then sees first. The
photograph is scikit-image's rocket: SpaceX's launch of DSCOVR, which is in the public domain.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from PIL import Image

from utils.errors import BadSettings
from utils.exits import Exit, command, command_parser
from utils.persistence import write_atomic

OUT = Path("docs/page.webp")
WIDTH, HEIGHT = 1100, 1000
_FROM, _TO, _MARGIN = ".check", ".why", 8  # the picture's first and last element, and what is left above the first
_MOST_MS = 120_000  # a busy machine


@contextmanager
def serving() -> Iterator[str]:
    """The address of an API of our own, which ends with the block."""
    asked = [sys.executable, "-m", "api", "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(asked, stderr=subprocess.PIPE, text=True) as server:  # noqa: S603 - our own program and options
        assert server.stderr
        try:
            for line in server.stderr:
                if ready := re.match(r"ready\. Open +(\S+)", line):
                    threading.Thread(target=server.stderr.read, daemon=True).start()  # or a full pipe would stop it
                    yield ready[1]
                    return
                print(line, end="", file=sys.stderr)
            raise BadSettings("the API did not start; the lines above say why")
        finally:
            server.terminate()


def take(url: str, photograph: Path) -> bytes:
    """What the page shows of that photograph by day, as PNG."""
    from playwright.sync_api import FloatRect, ViewportSize, sync_playwright  # of the developers' requirements

    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("google-chrome"))
        view: ViewportSize = {"width": WIDTH, "height": HEIGHT}
        page = browser.new_page(viewport=view, color_scheme="light", reduced_motion="reduce")
        page.set_default_timeout(_MOST_MS)
        page.goto(url)
        page.locator("html[data-ready]").wait_for()
        page.set_input_files("#file", photograph)
        page.locator(".check[aria-busy=false]").wait_for()
        page.wait_for_function("document.querySelector('.stack img').naturalWidth > 0")
        top, last = (page.locator(each).bounding_box() for each in (_FROM, _TO))
        assert top and last
        y = top["y"] - _MARGIN
        clip: FloatRect = {"x": 0, "y": y, "width": WIDTH, "height": last["y"] + last["height"] - y}
        taken = page.screenshot(full_page=True, clip=clip)
        browser.close()
        return taken


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m scripts.picture_page", __doc__)
    parser.add_argument("--out", type=Path, default=OUT, help=f"the picture (default: {OUT})")
    args = parser.parse_args(argv)
    with serving() as url, as_file(files("skimage") / "data" / "rocket.jpg") as photograph:
        picture = Image.open(io.BytesIO(take(url, photograph))).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85, method=6)
    write_atomic(args.out, buffer.getvalue())
    print(f"{args.out}: {picture.width} x {picture.height}, {buffer.tell() / 1000:.0f} kB")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
