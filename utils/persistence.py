"""Files on disk: written whole or not at all, named safely, known by their digest.

Knows nothing of what is in them.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

# A file system takes 255 bytes; the rest is for what the caller appends.
_NAME_LENGTH = 100


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader, or a power cut, sees the old file or the new one.

    The folder must exist. A symbolic link is replaced, not followed.

    Raises:
        OSError: nothing was changed.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # the same folder: os.replace works within one volume
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name is in the folder, which has its own cache
    finally:
        os.close(folder)


def safe_name(text: str) -> str:
    """A file name made from text that nobody checked: ASCII, one path component, not hidden, never an option.

    Text that is such a name already comes back as it is. Any other gets a digest of itself, so that two texts do not
    share a file because they differ only in what was replaced.

    Returns:
        1 to 100 characters out of letters, digits and ``._-``, starting with a letter or digit.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip("._-")[:_NAME_LENGTH]
    if name == text and name:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    stem, _, suffix = name[: _NAME_LENGTH - len(digest) - 1].rpartition(".")
    return f"{stem}-{digest}.{suffix}" if stem else f"{suffix}-{digest}".lstrip("-")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
