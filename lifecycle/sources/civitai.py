"""Civitai, images that their makers posted with their model: https://developer.civitai.com/docs/api/public-rest#images

Pages by ``metadata.nextCursor``, the newest first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from lifecycle.sources import Item
from lifecycle.web import Web
from utils.contracts import Json
from utils.settings import Settings

API = "https://civitai.com/api/v1/images"


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    cursor: Json = None
    while True:
        query = {"limit": 100, "sort": "Newest", "nsfw": "None", "baseModels": what, "cursor": cursor}
        answer = await web.api(API, query)
        for each in answer["items"]:
            if each.get("type", "image") == "image":
                yield Item(
                    url=each["url"],
                    page=f"https://civitai.com/images/{each['id']}",
                    author=each.get("username") or "",
                    licence="as posted on Civitai; its terms",
                    date=each.get("createdAt") or "",
                    generator=each.get("baseModel") or "not stated",
                    label="ai",
                    claim="posted on Civitai, a site for pictures made by models, with the model's name",
                )
        cursor = answer.get("metadata", {}).get("nextCursor")
        if not cursor:
            return
