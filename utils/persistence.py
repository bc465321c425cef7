"""Files on disk: written whole or not at all, named safely, known by their digest; and models, which are folders.

A model is a folder with ``card.toml`` and the files that lie beside it: ``weights.safetensors``, where the network runs
on ONNX Runtime ``graph.onnx``, and a README for people. The card alone knows what they are, where to get them and which
hash they have, and no file is opened before its hash matched. Knows nothing of any architecture. safetensors is
imported where it is used, so reading cards costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from utils.errors import WeightsCorrupt

if TYPE_CHECKING:  # what only needs to write a file starts without NumPy
    import numpy as np
    from numpy.typing import NDArray

    Arrays: TypeAlias = dict[str, NDArray[np.float32]]

CARD, WEIGHTS, GRAPH, GRAPH_INT8 = "card.toml", "weights.safetensors", "graph.onnx", "graph_int8.onnx"
VERIFIED = ".verified.json"
# Smaller files are hashed every time: 64 MiB take about 50 ms. So the shipped folder never gets a cache file.
CACHE_FROM_BYTES = 64 * 2**20

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
    if not hasattr(os, "O_DIRECTORY"):  # Windows: a folder cannot be opened
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
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


def digest(facts: object) -> str:
    """Twelve hex digits that tell what JSON can hold from anything else: for the name of what was made from it."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


# --- a model's card


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What we know of one file of a model. Empty or 0 means not known; nothing here is guessed."""

    name: str
    model: str = ""  # the folder of its card
    file: str = ""  # path below a weights folder; empty: there is no file yet
    url: str = ""  # direct https address of the bytes, pinned to a commit if one is known; empty: cannot be fetched
    page: str = ""  # for people: where the publisher offers and describes it
    size: int = 0  # bytes
    sha256: str = ""  # lower-case hex; a card without one cannot be opened
    licence: str = ""
    commercial: bool = False  # whether the licence of the *weights* allows commercial use
    upstream: str = ""  # repository@commit that the weights or our layout of them come from
    layout: str = ""  # key layout, e.g. "fatformer_official"
    backbone: str = ""  # of a head: the card it is trained on unless told otherwise; installed with the head's profile
    train: str = ""  # for weights that we train: the command that makes them
    note: str = ""
    figures: str = ""  # what its publisher or others measured at which threshold, for people

    @property
    def command(self) -> str:
        """The command that installs this file; empty while there is none to install."""
        return self.train or (f"python -m scripts.download_weights {self.name}" if self.file else "")

    @property
    def version(self) -> str:
        """For the verdict: name and enough of the hash to tell two files apart."""
        return f"{self.name}@sha256:{self.sha256[:12]}"


# What a card file may say, and the type of each; name and model are where it lies.
CARD_FIELDS: dict[str, type] = {
    field.name: type(field.default) for field in fields(Card) if field.name not in ("name", "model")
}


def read_cards(folder: Path) -> dict[str, Card]:
    """The cards of a model folder's files, by name, in the order of ``card.toml``.

    A table there is a file: ``[weights]`` is named as the folder, ``[graph]`` of ``effnet`` is ``effnet_graph``. A file
    that nobody publishes elsewhere (neither ``url`` nor ``page``) lies in the folder itself; any other directly in the
    weights folder that it is installed in.

    Raises:
        WeightsCorrupt: ``card.toml`` is not TOML, or has a field that we do not know.
    """
    found = {}
    for key, values in read_tables(folder / CARD).items():
        name = folder.name if key == "weights" else f"{folder.name}_{key}"
        if values.get("file") and not (values.get("url") or values.get("page")):
            values["file"] = f"{folder.name}/{values['file']}"
        found[name] = Card(name=name, model=folder.name, **values)
    return found


def read_tables(path: Path) -> dict[str, dict[str, Any]]:
    """The tables of a card file, each field known and of its type.

    Raises:
        WeightsCorrupt: not such a file; the message names file, table and field.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WeightsCorrupt(f"{path} is not a file of weight cards: {error}") from error
    for table, values in tables.items():
        if not isinstance(values, dict):
            raise WeightsCorrupt(f"{path} is not a file of weight cards: {table} is no table")
        for key, value in values.items():
            if key not in CARD_FIELDS:
                raise WeightsCorrupt(f"{path}: [{table}] has an unknown field {key!r}; known: {', '.join(CARD_FIELDS)}")
            if type(value) is not (wanted := CARD_FIELDS[key]):
                raise WeightsCorrupt(f"{path}: [{table}] {key} is {value!r}, not of type {wanted.__name__}")
    return tables


def record(path: Path, table: str, values: Mapping[str, Any], heading: str = "") -> None:
    """Merge fields into a table of a card file, which is made if it is not there. Comments in it are not kept.

    Raises:
        WeightsCorrupt: what is there is no card file.
    """
    tables = read_tables(path) if path.exists() else {}
    tables[table] = tables.get(table, {}) | dict(values)
    blocks = [heading] if heading else []
    for title, fields_of in tables.items():
        name = title if re.fullmatch(r"[A-Za-z0-9_-]+", title) else json.dumps(title)
        # JSON's strings, numbers and booleans are also TOML's.
        lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in fields_of.items()]
        blocks.append("".join([f"[{name}]\n", *lines]))
    write_atomic(path, "\n".join(blocks).encode())


# --- whether a file is the card's


def check(card: Card, path: Path) -> None:
    """Compare size and sha256 with the card before anything parses the file.

    A large file's hash is remembered in its folder under (path, size, mtime, inode), so that 10 GB are not read at
    every start. That is enough: the hash is there against damaged and mistaken files; whoever can write into this
    folder and set times could as well change the cards in it.

    Raises:
        WeightsCorrupt: names file, expectation, finding and the next step.
    """
    if not card.sha256:
        raise WeightsCorrupt(
            f"{card.name}: no sha256 is known for {path.name}, so it is not opened; "
            f"`python -m scripts.download_weights {card.name} --from {path}` shows and records it"
        )
    size = path.stat().st_size
    if card.size and size != card.size:
        raise WeightsCorrupt(f"{path}: expected {card.size} bytes, found {size}; delete it and run: {card.command}")
    found = _known_sha256(path)
    if found != card.sha256:
        raise WeightsCorrupt(f"{path}: expected sha256 {card.sha256}, found {found}; delete it and run: {card.command}")


def _known_sha256(path: Path) -> str:
    stat = path.stat()
    if stat.st_size < CACHE_FROM_BYTES:
        return sha256_file(path)
    cache = path.parent / VERIFIED
    try:
        known: dict[str, str] = dict(json.loads(cache.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
    if key not in known:
        others = {k: v for k, v in known.items() if not k.startswith(f"{path.resolve()}|")}
        known = {**others, key: sha256_file(path)}
        with contextlib.suppress(OSError):  # a read-only folder costs a hash per start, nothing else
            write_atomic(cache, json.dumps(known, indent=1).encode())
    return known[key]


# --- a model's weights


def save_model(folder: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str], **card: object) -> None:
    """Write a model folder: ``weights.safetensors``, and ``card.toml`` with its size and hash.

    A card that is there keeps its other tables and fields.

    Args:
        arrays: name -> values, in the type that they are stored in.
        metadata: into the header of the weights.
        card: further fields of the card, as in ``Card``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_arrays(folder / WEIGHTS, arrays, metadata)
    record_file(folder, "weights", WEIGHTS, **card)


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file, the same bytes for the same content.

    The library writes metadata in any order, and the memory of a transposed array as if it were not.
    """
    import numpy as np
    from safetensors.numpy import save

    raw = save({name: np.asarray(values, order="C") for name, values in arrays.items()}, dict(metadata))
    size = int.from_bytes(raw[:8], "little")  # of the header, JSON padded with spaces
    header = json.loads(raw[8 : 8 + size]) | {"__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
    assert len(text) == size, "another order, but not another length"
    write_atomic(path, raw[:8] + text + raw[8 + size :])


def record_file(folder: Path, table: str, file: str, **card: object) -> None:
    """Write name, size and hash of a file that lies in a model folder into the folder's card."""
    path = folder / file
    values = {"file": file, "size": path.stat().st_size, "sha256": sha256_file(path), **card}
    record(folder / CARD, table, values)


def load_model(folder: Path) -> tuple[Arrays, dict[str, str]]:
    """What ``save_model`` wrote, its size and hash checked first; see ``load_arrays``.

    Raises:
        WeightsCorrupt: the card or the weights are damaged or missing.
    """
    return load_arrays(model_file(folder)[1])


def model_file(folder: Path) -> tuple[Card, Path]:
    """The card of a model folder's weights, and the file, its size and hash checked.

    Raises:
        WeightsCorrupt: the card or the weights are damaged or missing.
    """
    folder = folder.resolve()  # "." has a name too
    try:
        card = read_cards(folder)[folder.name]
        path = folder.parent / card.file
        check(card, path)
    except (FileNotFoundError, NotADirectoryError, KeyError) as error:
        raise WeightsCorrupt(f"{folder} is not a model folder: {CARD} and its [weights] are needed: {error}") from error
    return card, path


def load_arrays(path: Path) -> tuple[Arrays, dict[str, str]]:
    """The floating-point tensors of a verified .safetensors file as float32, and the file's metadata.

    Integers (batch normalisation's counters of training steps) are left out: nothing that is computed depends on them.

    Raises:
        WeightsCorrupt: as ``read_arrays``.
    """
    import numpy as np

    arrays, metadata = read_arrays(path)
    floating = {key: value for key, value in arrays.items() if np.issubdtype(value.dtype, np.floating)}
    return {key: value.astype(np.float32, copy=False) for key, value in floating.items()}, metadata


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Every tensor of a verified .safetensors file in the type that it is stored in, and the file's metadata.

    Raises:
        WeightsCorrupt: not a safetensors file, or it holds a type that NumPy does not know.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            return arrays, dict(file.metadata() or {})
    except (SafetensorError, TypeError, AttributeError) as error:
        raise WeightsCorrupt(f"{path} is not a safetensors file that NumPy can read: {error}") from error
