"""Templates of HTML pages: escaped by default, from a folder inside a package."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(package: str, path: str) -> Template:
    """The template at ``path`` below the folder ``templates`` of a package."""
    return _templates(package).get_template(path)


@cache
def _templates(package: str) -> Environment:
    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,  # a misspelt name would leave a hole in the page
    )
