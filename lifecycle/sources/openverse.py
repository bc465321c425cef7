"""Openverse, openly licensed works of many collections: https://api.openverse.org/v1/ (images_search)"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count

from lifecycle.sources import Item
from lifecycle.web import Web
from utils.settings import Settings

API = "https://api.openverse.org/v1/images/"


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    for page in count(1):
        answer = await web.api(
            API, {"q": what or "photograph", "category": "photograph", "page": page, "page_size": 20}
        )
        for each in answer["results"]:
            yield Item(
                url=each["url"],
                page=each.get("foreign_landing_url") or "",
                author=each.get("creator") or "",
                licence=f"{each.get('license', '')} {each.get('license_version') or ''}".strip(),
                label="real",
                claim=f"photograph in {each.get('source', 'a collection')}, as Openverse lists it",
            )
        if page >= answer.get("page_count", 0):
            return
