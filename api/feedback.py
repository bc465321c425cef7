"""What callers say of verdicts, kept in a folder for people to look at. Changes no verdict, and trains nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from api.schemas import Feedback, FeedbackTaken
from utils.background import in_background
from utils.errors import BadRequest, DiskFull
from utils.persistence import write_atomic

log = logging.getLogger(__name__)

_SWEEP_SECONDS = 3600.0
_OURS = (".json", ".image", ".tmp")  # the last: what a power cut left half written


class FeedbackBox:
    """A file of JSON for each report, beside it the image where images are kept. Both go when they are too old.

    Args:
        keep_images: whether images that come with a report are kept at all.
        keep_days: how long a report and its image are kept.
    """

    def __init__(self, folder: Path, *, keep_images: bool, keep_days: float) -> None:
        self.folder = folder
        self._keep_images = keep_images
        self._keep_seconds = keep_days * 86_400

    def put(self, feedback: Feedback, image: bytes | None, caller: str) -> FeedbackTaken:
        """
        Args:
            image: its bytes, where they were sent along.
            caller: the key's name, or the address.

        Raises:
            BadRequest: the image is not the one that the report names.
            DiskFull: nothing was kept.
        """
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        said = feedback.model_dump(exclude={"image_base64"}, exclude_none=True)
        if image is not None and said.setdefault("sha256", digest := hashlib.sha256(image).hexdigest()) != digest:
            raise BadRequest("sha256: not that of the image that came along; send the file that was judged")
        kept = image is not None and self._keep_images
        said |= {"caller": caller, "at": datetime.now(UTC).isoformat(timespec="seconds"), "image_kept": kept}
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if image is not None and kept:
                write_atomic(self.folder / f"{name}.image", image)
            write_atomic(self.folder / f"{name}.json", json.dumps(said, ensure_ascii=False).encode())
        except OSError as error:
            with suppress(OSError):
                (self.folder / f"{name}.image").unlink(missing_ok=True)  # an image without its report
            log.error("cannot keep a report in %s: %s", self.folder, error.strerror)
            raise DiskFull("this server's disk does not take the report; try again later") from None
        return FeedbackTaken(id=name, image_kept=kept)

    def sweep(self) -> None:
        """Remove what is older than was promised."""
        latest = time.time() - self._keep_seconds
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            with suppress(FileNotFoundError):  # another process of ours sweeps too
                if path.suffix in _OURS and path.stat().st_mtime < latest:
                    path.unlink()

    @asynccontextmanager
    async def sweeping(self) -> AsyncIterator[None]:
        """While inside, sweep now and then: reports grow old where none comes any more, too."""

        async def sweep() -> None:
            while True:
                try:
                    await asyncio.to_thread(self.sweep)
                except OSError as error:
                    log.error("old reports stay in %s: %s", self.folder, error.strerror)
                await asyncio.sleep(_SWEEP_SECONDS)

        async with in_background(sweep(), "sweep feedback"):
            yield
