"""What the docs' site has beside docs/: pages from the root of the repository, and links that lead to them.

MkDocs calls this (``hooks`` in mkdocs.yml). It writes no file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # file of the root -> page
    ".env.example": "settings.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CODE_OF_CONDUCT.md": "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
}


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=_text(name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to the root lead to its pages; and why a block is not run, for tests, is no language that MkDocs knows."""
    markdown = re.sub(r"^(```\w+) not-run: .*$", r"\1", markdown, flags=re.MULTILINE)
    return re.sub(r"\]\(\.\./([^)#]+)", lambda link: f"]({PAGES.get(link[1], link[0][2:])}", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """A table's empty corner is a cell: read aloud as a heading it would say nothing."""
    return html.replace("<th></th>", "<td></td>")


def _text(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".md"):
        return text.replace("](docs/", "](")
    head = "# Settings\n\nEnvironment variables, or lines of `.env` beside the program."
    return f"{head}\n\n``` {{.ini .settings}}\n{text}```\n"
