"""Unsplash photographs: https://unsplash.com/documentation#search-photos

``urls.raw`` is the uploaded file. The API guidelines (https://help.unsplash.com/en/articles/2511256) ask that
``links.download_location`` be called for each photograph that is downloaded, and exclude data mining and training AI
models: take it for measuring, or with a permission of Unsplash's own (https://unsplash.com/data).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from functools import partial
from itertools import count

from lifecycle.sources import Item
from lifecycle.web import Web
from utils.errors import BadSettings
from utils.settings import Settings

API = "https://api.unsplash.com/search/photos"


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    key = settings.lifecycle.unsplash_key.get_secret_value()
    if not key:
        raise BadSettings("unsplash needs IMGV_UNSPLASH_ACCESS_KEY; https://unsplash.com/developers gives one")
    headers = {"Authorization": f"Client-ID {key}", "Accept-Version": "v1"}
    for page in count(1):
        query = {"query": what or "photo", "page": page, "per_page": 30, "order_by": "latest"}
        answer = await web.api(API, query, headers)
        for each in answer["results"]:
            yield Item(
                url=each["urls"]["raw"],
                page=each["links"]["html"],
                author=each["user"]["name"],
                licence="Unsplash License; its API guidelines exclude training AI models",
                date=each["created_at"],
                label="real",
                claim="photograph of Unsplash, whose rules ask for one's own photographs",
                read=partial(_download, web, each["urls"]["raw"], each["links"]["download_location"], headers),
            )
        if page >= answer["total_pages"]:
            return


async def _download(web: Web, url: str, location: str, headers: Mapping[str, str]) -> bytes:
    """The photograph, once Unsplash was told that it is taken."""
    await web.api(location, {}, headers)
    return await web.image(url)
