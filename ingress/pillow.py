"""What holds for every place that hands a stranger's bytes to Pillow. Knows no format."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from typing import Final

from PIL import Image

_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

# What Pillow's plugins raise on mutated files (scripts/fuzz.py). MemoryError is not among them: it says nothing about
# the file.
PILLOW_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def ignore_pillow_warnings() -> None:
    """Ignore, in this process and from now on, what Pillow's own modules warn of: bombs, broken EXIF and the like.

    Our limits and the Sample's fields say it. Call it before each use, because whoever leaves a
    ``warnings.catch_warnings`` takes the filter away; a second call changes nothing. We never use
    ``catch_warnings`` ourselves: it swaps process-wide state, so two threads that leave it in the order they came
    leave its filter, which ignored everything, behind for good.
    """
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET[3].pattern)
