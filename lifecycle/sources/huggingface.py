"""A Hugging Face data set by its Parquet shards: https://huggingface.co/docs/dataset-viewer/parquet

A column of type Image holds ``{"bytes", "path"}``. Shards are fetched whole, up to SHARD_BYTES.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from io import BytesIO

from pyarrow import parquet

from lifecycle.sources import Item, Label, parts_of
from lifecycle.web import Web
from utils.settings import Settings

API = "https://datasets-server.huggingface.co/parquet"
SHARD_BYTES = 2 << 30


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    label, generator, name = parts_of(what, "LABEL,GENERATOR,OWNER/NAME")
    made: Label = "ai" if label == "ai" else "real"
    answer = await web.api(API, {"dataset": name})
    for shard in answer["parquet_files"]:
        table = parquet.ParquetFile(BytesIO(await web.file(shard["url"], SHARD_BYTES)))
        number = 0
        for batch in table.iter_batches(64):
            for row in batch.to_pylist():
                number += 1
                image = next((cell for cell in row.values() if isinstance(cell, dict) and cell.get("bytes")), None)
                if image:
                    yield Item(
                        url=f"{shard['url']}#{number}",
                        page=f"https://huggingface.co/datasets/{name}",
                        author="" if label == "ai" else generator,
                        generator=generator if label == "ai" else "",
                        label=made,
                        claim=f"in the data set {name} as {label}",
                        read=partial(_given, image["bytes"]),
                    )


async def _given(raw: bytes) -> bytes:
    return raw
