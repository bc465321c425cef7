"""The documented door to reading images: a file, stream or bytes to a decoded Sample; ingress does the work."""

from __future__ import annotations

from ingress.decode import Limits, decode, read_file, read_stream

__all__ = ["Limits", "decode", "read_file", "read_stream"]
