"""Pexels photographs: https://www.pexels.com/api/documentation/#photos-search"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count

from lifecycle.sources import Item
from lifecycle.web import Web
from utils.errors import BadSettings
from utils.settings import Settings

API = "https://api.pexels.com/v1/search"


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    key = settings.lifecycle.pexels_key.get_secret_value()
    if not key:
        raise BadSettings("pexels needs IMGV_PEXELS_API_KEY; https://www.pexels.com/api gives one")
    for page in count(1):
        answer = await web.api(API, {"query": what or "photo", "page": page, "per_page": 80}, {"Authorization": key})
        for each in answer["photos"]:
            yield Item(
                url=each["src"]["original"],
                page=each["url"],
                author=each["photographer"],
                licence="Pexels License",
                label="real",
                claim="photograph of Pexels, whose rules ask for one's own photographs",
            )
        if not answer.get("next_page"):
            return
