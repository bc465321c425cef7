"""The image files below a prefix of an S3 bucket: ListObjectsV2 and GetObject by boto3, with its usual credentials.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html; AWS_ENDPOINT_URL_S3 leads to another server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from ingress.sources import IMAGE_SUFFIXES
from lifecycle.sources import Item, Label, parts_of
from lifecycle.web import Web
from utils.errors import BadSettings, FetchFailed, TooManyBytes
from utils.settings import Settings


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise BadSettings("s3 needs boto3: pip install boto3") from error
    label, generator, place = parts_of(what, "LABEL,GENERATOR,BUCKET/PREFIX")
    made: Label = "ai" if label == "ai" else "real"
    bucket, _, prefix = place.partition("/")
    client = boto3.client("s3")
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            for each in page.get("Contents", ()):
                if each["Key"].lower().endswith(IMAGE_SUFFIXES):
                    yield Item(
                        url=f"s3://{bucket}/{each['Key']}",
                        date=each["LastModified"].isoformat(),
                        author="" if label == "ai" else generator,
                        generator=generator if label == "ai" else "",
                        label=made,
                        claim=f"lies below s3://{place} as {label}",
                        read=partial(_read, client, bucket, each["Key"], each["Size"], settings.decode.max_bytes),
                    )
    except (BotoCoreError, ClientError) as error:
        raise FetchFailed(f"s3://{place}: {error}; check the credentials and the name") from error


async def _read(client: Any, bucket: str, key: str, size: int, most: int) -> bytes:
    if size > most:
        raise TooManyBytes(f"{key} is larger than {most} bytes; raise IMGV_MAX_BYTES")
    answer = await asyncio.to_thread(client.get_object, Bucket=bucket, Key=key)
    return bytes(await asyncio.to_thread(answer["Body"].read))
