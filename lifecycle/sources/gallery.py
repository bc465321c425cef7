"""The images of one page that a CSS selector names, such as a showcase of Artbreeder or Midjourney."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urljoin

from bs4 import BeautifulSoup

from lifecycle.sources import Item, Label, parts_of
from lifecycle.web import Web
from utils.settings import Settings

_ADDRESSES = ("src", "data-src", "href", "content")


async def items(web: Web, what: str, settings: Settings) -> AsyncIterator[Item]:
    label, generator, selector, url = parts_of(what, "LABEL,GENERATOR,CSS SELECTOR,URL")
    made: Label = "ai" if label == "ai" else "real"
    for tag in BeautifulSoup(await web.page(url), "html.parser").select(selector):
        address = next((str(tag[name]) for name in _ADDRESSES if tag.get(name)), "")
        if address:
            yield Item(
                url=urljoin(url, address),
                page=url,
                author="" if label == "ai" else generator,
                generator=generator if label == "ai" else "",
                label=made,
                claim=f"the page {url} says so",
            )
