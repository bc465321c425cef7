"""What callers say of verdicts, kept in a folder for people to look at. Changes no verdict, and trains nothing."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path

from api.schemas import Feedback, FeedbackTaken
from utils.persistence import write_atomic

_SWEEP_SECONDS = 3600.0


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
        self._swept = 0.0

    def put(self, feedback: Feedback, image: bytes | None, caller: str) -> FeedbackTaken:
        """
        Args:
            image: its bytes, where they were sent along.
            caller: the key's name, or the address.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sweep()
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        said = feedback.model_dump(exclude={"image_base64"}, exclude_none=True)
        kept = image is not None and self._keep_images
        if image is not None and kept:
            said["sha256"] = hashlib.sha256(image).hexdigest()
            write_atomic(self.folder / f"{name}.image", image)
        said |= {"caller": caller, "at": datetime.now(UTC).isoformat(timespec="seconds"), "image_kept": kept}
        write_atomic(self.folder / f"{name}.json", json.dumps(said, ensure_ascii=False).encode())
        return FeedbackTaken(id=name, image_kept=kept)

    def _sweep(self) -> None:
        now = time.time()
        if now - self._swept < _SWEEP_SECONDS:
            return
        self._swept = now
        for path in self.folder.iterdir():
            if path.suffix in (".json", ".image") and now - path.stat().st_mtime > self._keep_seconds:
                path.unlink(missing_ok=True)
