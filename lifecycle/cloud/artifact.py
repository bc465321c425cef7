"""What a training job left in S3: fetched, every hash checked, and a release registered. Knows no service."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lifecycle.cloud.container import JOB
from lifecycle.registry import Registry
from utils.errors import CopyDiffers
from utils.persistence import sha256_file
from utils.places import beside
from utils.releases import MANIFEST, Store
from utils.settings import Settings

MODELS = "models"  # in IMGV_LIFECYCLE_DIR: fetched, and not a release


def fetch(job: str, address: str, settings: Settings) -> str:
    """
    Args:
        address: of model.tar.gz.

    Returns:
        What was done, and the next step.

    Raises:
        CopyDiffers: a file is not as the job wrote it; nothing was kept.
    """
    home = settings.lifecycle.folder
    home.mkdir(parents=True, exist_ok=True)
    files, name = beside(address)
    with tempfile.TemporaryDirectory(dir=home, prefix=".fetching-") as scratch:
        made = Path(scratch) / "model"
        with tarfile.open(fileobj=io.BytesIO(files.read(name))) as tar:
            tar.extractall(made, filter="data")  # nothing outside the folder, no links, no devices
        said = _checked(made, address)
        releases = [path.parent.name for path in made.glob(f"*/{MANIFEST}")]
        if releases:
            registry = Registry(settings)
            release = Store(made).open(releases[0])
            entry = registry.register(release, {**said["hyperparameters"], "job": job, "code": said["code"]}, {})
            return f"registered {release.name} as version {entry.version}; next: python -m lifecycle.retrain compare"
        target = home / MODELS / job
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    trained = said["trained"]
    return f"wrote {target}; to judge with it: cp -r {target / trained} $IMGV_WEIGHTS_DIR/, then build the fusion anew"


def _checked(folder: Path, address: str) -> Mapping[str, Any]:
    """What the job says of itself, every file compared with it."""
    try:
        said: dict[str, Any] = json.loads((folder / JOB).read_text(encoding="utf-8"))
        files = dict(said["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CopyDiffers(f"{address} holds no {JOB} of our training container: {error!r}") from error
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    found.pop(JOB)
    wrong = sorted(set(found) ^ set(files)) or [
        name for name, path in found.items() if sha256_file(path) != files[name]
    ]
    if wrong:
        raise CopyDiffers(f"{address}: {', '.join(wrong[:5])} is not as the job wrote it; fetch it again")
    return said
