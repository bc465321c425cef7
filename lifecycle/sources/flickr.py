"""Flickr Commons, photographs of archives: https://www.flickr.com/services/api/flickr.photos.search.html"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count

from lifecycle.sources import Item
from lifecycle.web import Web
from utils.errors import BadSettings
from utils.settings import Settings

API = "https://www.flickr.com/services/rest/"


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    key = settings.lifecycle.flickr_key.get_secret_value()
    if not key:
        raise BadSettings("flickr needs IMGV_FLICKR_API_KEY; https://www.flickr.com/services/api/keys gives one")
    for page in count(1):
        query = {
            "method": "flickr.photos.search",
            "api_key": key,
            "text": what,
            "is_commons": 1,
            "extras": "url_o,url_l,owner_name,date_taken",
            "per_page": 100,
            "page": page,
            "format": "json",
            "nojsoncallback": 1,
        }
        found = (await web.api(API, query))["photos"]
        for each in found["photo"]:
            if url := each.get("url_o") or each.get("url_l"):
                yield Item(
                    url=url,
                    page=f"https://www.flickr.com/photos/{each['owner']}/{each['id']}",
                    author=each.get("ownername", each["owner"]),
                    licence="no known copyright restrictions (Flickr Commons)",
                    date=each.get("datetaken", "")[:10],
                    label="real",
                    claim="photograph of an archive in Flickr Commons",
                )
        if page >= found["pages"]:
            return
