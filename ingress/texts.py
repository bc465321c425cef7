"""Bytes of a stranger's text to characters, and characters to one line that is safe to show. Knows no format."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Final

_CONTROL: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_BOMS: Final = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_BLANK: Final = "\ufeff\0 \t\r\n"
_SAMPLE: Final = 4096  # bytes that tell an encoding

# Files inside of texts: a picture in a ComfyUI graph, a depth map in XMP. No prompt, hash or signature is as long. A
# run of twice the step holds a whole step, so that looking at every step finds it; the time is linear, and short.
_STEP: Final = 2048
_BASE64: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_-"
_RUN: Final = re.compile(rf"[A-Za-z0-9+/=_-]{{{_STEP},}}+")
_RUN_OF_BYTES: Final = re.compile(_RUN.pattern.encode())

# Characters of texts in any living script; those of a wrong byte order fall everywhere.
_LIKELY: Final = re.compile(
    "[\t\n\r\u00a0-\u024f\u0370-\u058f\u0590-\u06ff\u0900-\u0dff\u0e00-\u0e7f\u1e00-\u206f"
    "\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef]"
)
_ASCII: Final = re.compile("[\t\n\r -~]")


def clean(text: object, limit: int = 200) -> str:
    """One line that is safe to show: no control, format or unassigned characters, at most ``limit`` characters."""
    kept = (" " if c.isspace() else c for c in str(text)[: 8 * limit] if c.isspace() or _is_printable(c))
    line = " ".join("".join(kept).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _is_printable(character: str) -> bool:
    return unicodedata.category(character) not in _CONTROL


def decode(data: bytes, wide: bool = False) -> str:
    """Text of an encoding that nobody names, or names wrongly; never fails. Blanks at either end are dropped.

    A mark of order decides; else UTF-8 if it is that and holds no zeros; else UTF-16 in the more likely order, when
    ``wide`` or when its zeros show it; else Latin-1, which is what PNG and IIM prescribe.

    Args:
        data: as it stands in the file.
        wide: the file says that it is UTF-16.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data.decode(encoding, "replace").strip(_BLANK)
    has_zeros = b"\0" in data.strip(b"\0 \t\r\n")
    if not has_zeros or not (wide or _is_wide(data[:_SAMPLE])):
        try:
            return data.decode("utf-8").strip(_BLANK)
        except UnicodeDecodeError as error:
            if not wide:  # where only the last character is cut short, it is still UTF-8
                end, encoding = (error.start, "utf-8") if error.start >= len(data) - 3 else (len(data), "latin-1")
                return data[:end].decode(encoding).strip(_BLANK)
    orders = ("utf-16-le", "utf-16-be")
    order = max(orders, key=lambda each: _likelihood(data[:_SAMPLE].decode(each, "ignore")))
    return data.decode(order, "replace").strip(_BLANK)


def _is_wide(data: bytes) -> bool:
    """Whether zeros are frequent, and in one half of all pairs: ASCII letters in UTF-16."""
    first, second = data[::2].count(0), data[1::2].count(0)
    return 10 * (first + second) >= len(data) and 10 * min(first, second) <= first + second


def _likelihood(text: str) -> float:
    """How much this looks like text, 0..2: the share of likely characters, those of ASCII twice.

    Read in the wrong order an ASCII letter becomes an ideograph, and an ideograph almost never a letter.
    """
    text = text.rstrip("\0")
    return (len(_LIKELY.findall(text)) + 2 * len(_ASCII.findall(text))) / max(1, len(text))


def without_files(text: str) -> str:
    """The text without the files that it embeds: runs of 4096 characters of base64 and more, and some shorter ones."""
    kept, done = [], 0
    for start, end in _embedded(len(text), lambda at: _RUN.match(text, at)):
        kept.append(text[done:start].rstrip(_BASE64) if start > done else "")
        done = end
    return "…".join((*kept, text[done:])) if kept else text


def bytes_without_files(data: bytes) -> bytes:
    """The same before it is decoded, for encodings that keep ASCII."""
    kept, done = [], 0
    for start, end in _embedded(len(data), lambda at: _RUN_OF_BYTES.match(data, at)):
        kept.append(data[done:start].rstrip(_BASE64.encode()) if start > done else b"")
        done = end
    return b"".join((*kept, data[done:])) if kept else data


def _embedded(length: int, match: Callable[[int], re.Match[str] | re.Match[bytes] | None]) -> Iterator[tuple[int, int]]:
    """Where runs lie; the beginning of each may be up to a step earlier."""
    at = 0
    while at < length:
        found = match(at)
        if found:
            yield found.span()
        at = found.end() if found else at + _STEP
