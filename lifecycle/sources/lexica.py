"""Lexica, a search engine of generated pictures: https://lexica.art/docs (GET /api/v1/search, 50 results, no pages)"""

from __future__ import annotations

from collections.abc import AsyncIterator

from lifecycle.sources import Item
from lifecycle.web import Web
from utils.settings import Settings

API = "https://lexica.art/api/v1/search"


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    answer = await web.api(API, {"q": what or "photograph"})
    for each in answer["images"]:
        yield Item(
            url=each["src"],
            page=each.get("gallery", ""),
            licence="Lexica terms",
            generator=each.get("model") or "Stable Diffusion or Lexica Aperture",
            label="ai",
            claim="found by Lexica, which indexes pictures that were made from prompts",
        )
