"""What holds for every place that hands a stranger's bytes to Pillow. Knows no format."""

from __future__ import annotations

import re
import warnings

_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def ignore_pillow_warnings() -> None:
    """Ignore, in this process and from now on, what Pillow's own modules warn of: bombs, broken EXIF and the like.

    Our limits and the Sample's fields say it. Call it before each use, because whoever leaves a
    ``warnings.catch_warnings`` takes the filter away; a second call changes nothing. We never use
    ``catch_warnings`` ourselves: it swaps process-wide state, so two threads that leave it in the order they came
    leave its filter, which ignored everything, behind for good.
    """
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET[3].pattern)
