"""DiffusionDB, Stable Diffusion pictures in parts of a thousand: https://huggingface.co/datasets/poloclub/diffusiondb

A part is a ZIP of PNG files (WebP in the large subset) and a JSON of their prompts; CC0 1.0.
"""

from __future__ import annotations

import zipfile
from collections.abc import AsyncIterator
from functools import partial
from io import BytesIO
from pathlib import Path

from ingress.sources import IMAGE_SUFFIXES
from lifecycle.sources import Item
from lifecycle.web import Web
from utils.errors import BadSettings, NotAnImage, TooManyBytes
from utils.settings import Settings

PART = "https://huggingface.co/datasets/poloclub/diffusiondb/resolve/main/images/part-{:06d}.zip"
PART_BYTES = 2 << 30


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    if what.isdigit():
        raw = await web.file(PART.format(int(what)), PART_BYTES)
    elif Path(what).is_file():
        raw = Path(what).read_bytes()
    else:
        raise BadSettings(f"diffusiondb:{what} is neither the number of a part nor a file")
    name = f"part-{int(what):06d}" if what.isdigit() else Path(what).stem
    try:
        archive = zipfile.ZipFile(BytesIO(raw))
    except zipfile.BadZipFile as error:
        raise NotAnImage(f"{name} is no ZIP archive: {error}") from error
    with archive:
        for info in archive.infolist():
            if info.filename.lower().endswith(IMAGE_SUFFIXES):
                yield Item(
                    url=f"diffusiondb:{name}/{info.filename}",
                    page="https://huggingface.co/datasets/poloclub/diffusiondb",
                    licence="CC0 1.0",
                    date="2022-08",
                    generator="Stable Diffusion",
                    label="ai",
                    claim="in DiffusionDB, which collected Stable Diffusion's pictures from its Discord server",
                    read=partial(_read, archive, info, settings.decode.max_bytes),
                )


async def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """The header's size may lie, so no more than that is read."""
    with archive.open(info) as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise TooManyBytes(f"{info.filename} is larger than {most} bytes")
    return raw
