"""Wikimedia Commons, a category and those below it are not searched: https://www.mediawiki.org/wiki/API:Imageinfo

Generator ``categorymembers`` with ``prop=imageinfo``; ``extmetadata`` has author and licence. Newest additions first.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from lifecycle.sources import Item
from lifecycle.web import Web
from utils.contracts import Json
from utils.settings import Settings

API = "https://commons.wikimedia.org/w/api.php"
_TAGS = re.compile(r"<[^>]+>")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_MADE_BY_AI = re.compile(r"AI[- ]generated|generated (?:by|with) (?:AI|artificial)|PD-algorithm", re.IGNORECASE)


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    query: dict[str, object] = {
        "action": "query",
        "format": "json",
        "formatversion": 2,
        "generator": "categorymembers",
        "gcmtitle": f"Category:{what.removeprefix('Category:') or 'Quality images'}",
        "gcmtype": "file",
        "gcmsort": "timestamp",
        "gcmdir": "older",
        "gcmlimit": 50,
        "prop": "imageinfo",
        "iiprop": "url|user|timestamp|mime|extmetadata",
    }
    following: dict[str, object] = {}
    while True:
        answer = await web.api(API, query | following)
        for page in answer.get("query", {}).get("pages", ()):
            for info in page.get("imageinfo", ()):
                if info.get("mime", "").startswith("image/") and not _MADE_BY_AI.search(str(info.get("extmetadata"))):
                    yield _item(info)
        following = answer.get("continue", {})
        if not following:
            return


def _item(info: dict[str, Json]) -> Item:
    about = {key: _TAGS.sub("", str(value.get("value", ""))).strip() for key, value in info["extmetadata"].items()}
    return Item(
        url=info["url"],
        page=info.get("descriptionurl", ""),
        author=about.get("Artist") or info.get("user", ""),
        licence=about.get("LicenseShortName", ""),
        date=taken[0] if (taken := _DAY.match(about.get("DateTimeOriginal", ""))) else info["timestamp"],
        label="real",
        claim="a photograph or artwork of Wikimedia Commons without a category or template of AI",
    )
