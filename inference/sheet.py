"""The contact sheet of a batch: an HTML page that sorts by tier, and its table as CSV. Judges and orders nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from urllib.parse import quote

from inference.batch import MOST_SUSPICIOUS_FIRST, Line, in_order, told
from inference.words import TIER_WORDS
from utils.contracts import Tier
from utils.pages import template
from utils.persistence import write_atomic

SHEET, TABLE = "index.html", "verdicts.csv"


def write_sheet(folder: Path, lines: Sequence[Line]) -> Path:
    """Write the contact sheet and its table into the folder that holds the images' artifacts; returns the sheet."""
    ordered = in_order(lines)
    tiers: tuple[Tier | None, ...] = (*MOST_SUSPICIOUS_FIRST, None)
    groups = {tier: [line for line in ordered if line.tier == tier] for tier in tiers}
    words = {tier: TIER_WORDS[tier] if tier else "could not be judged" for tier in tiers}
    page = template("inference", "sheet.html.j2").render(
        groups={tier: group for tier, group in groups.items() if group},
        words=words,
        total=len(ordered),
        table=TABLE,
        told=told,
        address=lambda path: _address(folder, path),
    )
    write_atomic(folder / TABLE, _table(ordered).encode("utf-8-sig", "backslashreplace"))  # with a mark: for Excel
    write_atomic(folder / SHEET, page.encode("utf-8", "backslashreplace"))
    return folder / SHEET


def _address(folder: Path, path: str) -> str:
    """Relative, so that the folder can be moved and served; percent-encoded, as names of files may be anything."""
    return quote(Path(path).relative_to(folder).as_posix(), errors="surrogateescape")


def _table(lines: Sequence[Line]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, [each.name for each in fields(Line)])
    writer.writeheader()
    for line in lines:
        # A spreadsheet would run a name that begins like a formula (OWASP: CSV injection).
        row = asdict(line)
        writer.writerow({name: _plain(each) if isinstance(each, str) else each for name, each in row.items()})
    return out.getvalue()


def _plain(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
