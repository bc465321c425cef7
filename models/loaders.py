"""Weight files: which exist, where they lie, whether they are the right ones, and how they get into a network.

Knows nothing of any architecture, of the network, or of devices. torch is imported inside the functions that open a
file, so listing cards costs nothing.

Two TOML files hold the cards: ``models/weights.toml`` (ours) and, over it, ``<weights_dir>/weights.toml`` (this
installation's). A table in the second replaces the fields it names or adds a card, which is how a user's own checkpoint
is registered and where download_weights records the hash of a file whose publisher states none (trust on first use).
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import pickle
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from utils.errors import WeightsCorrupt, WeightsMismatch, WeightsMissing
from utils.persistence import sha256_file, write_atomic

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Module = TypeVar("Module", bound="nn.Module")

CARDS = Path(__file__).with_name("weights.toml")
SHIPPED = Path(__file__).with_name("saved_models")
GRAPHS = Path(__file__).with_name("graphs")  # networks without weights; scripts/export_graphs.py
OVERRIDES = "weights.toml"
VERIFIED = ".verified.json"

# Smaller files are hashed every time: 64 MiB take about 50 ms. So the shipped folder never gets a cache file.
CACHE_FROM_BYTES = 64 * 2**20
_HEADER = "# Cards added or changed on this machine; fields: Card in models/loaders.py. Rewritten by our scripts.\n"
DIFF_LINES = 8  # of each kind; a wrong architecture differs in hundreds of keys that all say the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What we know of one weight file. Empty or 0 means not known; nothing here is guessed."""

    name: str
    file: str  # name on this machine, below one of the folders; empty: there is no file yet
    url: str = ""  # direct https address of the bytes, pinned to a commit; empty: cannot be fetched automatically
    page: str = ""  # for people: where the publisher offers and describes it
    size: int = 0  # bytes
    sha256: str = ""  # lower-case hex; a card without one cannot be opened
    licence: str = ""
    commercial: bool = False  # whether the licence of the *weights* allows commercial use
    upstream: str = ""  # repository@commit that the weights or our layout of them come from
    layout: str = ""  # key layout, e.g. "fatformer_official"
    profiles: tuple[str, ...] = ()
    train: str = ""  # for weights that we train: the command that makes them
    note: str = ""

    @property
    def command(self) -> str:
        """The command that installs this file; empty while there is none to install."""
        return self.train or (f"python -m scripts.download_weights {self.name}" if self.file else "")

    @property
    def version(self) -> str:
        """For the verdict: name and enough of the hash to tell two files apart."""
        return f"{self.name}@sha256:{self.sha256[:12]}"


@dataclass(frozen=True, slots=True)
class Weights:
    """The cards of this installation and the folders their files lie in; what a detector loads from."""

    cards: Mapping[str, Card]
    folders: tuple[Path, ...]

    @classmethod
    def at(cls, weights_dir: Path) -> Weights:
        return cls(cards(weights_dir), (weights_dir, SHIPPED, GRAPHS))

    def card(self, name: str) -> Card:
        if name not in self.cards:
            near = difflib.get_close_matches(name, self.cards, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "python -m scripts.download_weights --list shows them"
            raise WeightsMissing(f"no weights card {name!r}; {hint}")
        return self.cards[name]

    def path(self, name: str) -> Path:
        """The file of a card, found and verified.

        Raises:
            WeightsMissing: no such card, or no such file; the message names the command that installs it.
            WeightsCorrupt: its size or hash is not the card's.
        """
        card = self.card(name)
        path = find(card, self.folders)
        check(card, path)
        return path

    def state(self, name: str) -> dict[str, Tensor]:
        """The tensors of a card's file, verified first; see ``path`` and ``load_state``."""
        return load_state(self.path(name))

    def arrays(self, name: str) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
        """The tensors of a card's file, verified first, and its metadata, without torch; see ``load_arrays``."""
        return load_arrays(self.path(name))


def cards(weights_dir: Path | None = None) -> dict[str, Card]:
    """All cards by name: ours, with the overrides of ``weights_dir`` on top.

    Raises:
        WeightsCorrupt: a card file is not TOML, or has a field we do not know.
    """
    found = _read_cards(CARDS, {})
    if weights_dir is not None and (weights_dir / OVERRIDES).exists():
        found = _read_cards(weights_dir / OVERRIDES, found)
    return found


def _read_cards(path: Path, base: Mapping[str, Card]) -> dict[str, Card]:
    known = {field.name for field in fields(Card)} - {"name"}
    found = dict(base)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        for name, table in tables.items():
            if unknown := set(table) - known:
                raise WeightsCorrupt(f"{path}: [{name}] has unknown fields {sorted(unknown)}; known: {sorted(known)}")
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
            found[name] = replace(base[name], **values) if name in base else Card(name=name, **values)
    except (tomllib.TOMLDecodeError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise WeightsCorrupt(f"{path} is not a file of weight cards: {error}") from error
    return found


def record_card(name: str, values: dict[str, Any], folder: Path) -> None:
    """Merge values into the card ``name`` of this installation's card file."""
    path = folder / OVERRIDES
    tables: dict[str, dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    tables[name] = tables.get(name, {}) | values
    lines = [_HEADER]
    for title, table in tables.items():
        lines.append(f"[{title if re.fullmatch(r'[A-Za-z0-9_-]+', title) else json.dumps(title)}]")
        # JSON's strings, numbers, booleans and lists of strings are also TOML's.
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()] + [""]
    write_atomic(path, "\n".join(lines).encode())


def find(card: Card, folders: Sequence[Path]) -> Path:
    """The first folder's file with the card's name, or the Hugging Face cache's copy of the card's url.

    Raises:
        WeightsMissing: none has it; the message names the command that installs it.
    """
    for folder in folders:
        if card.file and (folder / card.file).is_file():
            return folder / card.file
    if cached := _in_hub_cache(card.url):
        return cached
    if not card.command:
        raise WeightsMissing(f"no weights yet for {card.name}: this release does not ship them")
    raise WeightsMissing(f"weights not installed: {card.command}")


def _in_hub_cache(url: str) -> Path | None:
    match = re.fullmatch(r"https://huggingface\.co/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", url)
    if match is None:
        return None
    try:
        from huggingface_hub import try_to_load_from_cache  # looks on the disk only
    except ImportError:  # the embedded profile needs nothing of theirs
        return None
    repository, commit, file = match.groups()
    found = try_to_load_from_cache(repository, file, revision=commit)
    return Path(found) if isinstance(found, str) else None


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


def load_state(path: Path) -> dict[str, Tensor]:
    """Open a verified .safetensors or torch file as a flat table of CPU tensors, memory-mapped.

    Never executes a pickle: torch's weights-only reader builds tensors and containers, and of other classes only
    argparse.Namespace (the training arguments inside FatFormer's file; a plain attribute holder). A ``{"model": ...}``
    or ``{"state_dict": ...}`` wrapper and the ``module.`` prefix of DistributedDataParallel are taken off.

    Raises:
        WeightsCorrupt: not such a file, or it holds something else than tensors.
    """
    import safetensors
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, safetensors.SafetensorError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsCorrupt(f"{path} cannot be opened as plain tensors: {reason}") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise WeightsCorrupt(f"{path} is not a table of tensors")
    prefix = "module." if loaded and all(key.startswith("module.") for key in loaded) else ""
    return {key.removeprefix(prefix): value for key, value in loaded.items()}


def load_arrays(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """The floating-point tensors of a verified .safetensors file as float32, and the file's metadata.

    Integers (batch normalisation's counters of training steps) are left out: nothing that is computed depends on them.

    Raises:
        WeightsCorrupt: not a safetensors file, or it holds a type that NumPy does not know.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            metadata = dict(file.metadata() or {})
    except (SafetensorError, TypeError, AttributeError) as error:
        raise WeightsCorrupt(f"{path} is not a safetensors file that NumPy can read: {error}") from error
    floating = {key: value for key, value in tensors.items() if np.issubdtype(value.dtype, np.floating)}
    return {key: value.astype(np.float32, copy=False) for key, value in floating.items()}, metadata


def load_into(
    module: Module,
    state: Mapping[str, Tensor],
    *,
    rename: Callable[[str], str | None] | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> Module:
    """Fill a network with exactly the tensors it wants, ready for inference (eval mode, no gradients).

    Build the network under ``torch.device("meta")``: the file's tensors then become its parameters without a copy, so
    memory holds them once (and, for float32, as pages of the file).

    Args:
        rename: file key -> network key, None to leave a tensor out. Two file keys may lead to one network key (aliases)
            if their tensors are equal.
        dtype: floating-point type of the parameters; default float32, whatever the file holds.

    Raises:
        WeightsMismatch: keys or shapes differ; the message lists the first of each kind.
    """
    import torch

    dtype = dtype or torch.float32
    wanted = module.state_dict()
    given = _renamed(state, rename)
    compare(
        type(module).__name__,
        {key: tuple(value.shape) for key, value in wanted.items()},
        {key: tuple(value.shape) for key, value in given.items()},
    )
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}
    module.load_state_dict(cast, strict=True, assign=True)
    if hollow := [name for name, buffer in module.named_buffers() if buffer.is_meta]:
        raise RuntimeError(f"{type(module).__name__} was built on the meta device with unsaved buffers: {hollow}")
    if channels_last:
        module.to(memory_format=torch.channels_last)
    return module.eval().requires_grad_(False)


def compare(network: str, wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a file gives exactly the tensors that a network wants: name -> shape of either.

    Raises:
        WeightsMismatch: keys or shapes differ; the message lists the first of each kind.
    """
    differences = [
        *_listed("missing", wanted.keys() - given.keys()),
        *_listed("unexpected", given.keys() - wanted.keys()),
        *_listed(
            "another shape",
            (
                f"{key} (file {given[key]}, network {wanted[key]})"
                for key in wanted.keys() & given.keys()
                if given[key] != wanted[key]
            ),
        ),
    ]
    if differences:
        raise WeightsMismatch(f"{network}: " + "; ".join(differences))


def _renamed(state: Mapping[str, Tensor], rename: Callable[[str], str | None] | None) -> dict[str, Tensor]:
    import torch

    given: dict[str, Tensor] = {}
    for key, value in state.items():
        name = rename(key) if rename else key
        if name is None:
            continue
        other = given.setdefault(name, value)
        # Aliases saved by torch share their storage; comparing values is only needed when something re-saved the file.
        shared = other.shape == value.shape and other.data_ptr() == value.data_ptr()
        if not shared and not torch.equal(other, value):
            raise WeightsMismatch(f"{key} and another key of the file both give {name}, with different tensors")
    return given


def _listed(kind: str, names: Iterable[str]) -> list[str]:
    ordered = sorted(names)
    more = f" and {len(ordered) - DIFF_LINES} more" if len(ordered) > DIFF_LINES else ""
    return [f"{len(ordered)} {kind}: {', '.join(ordered[:DIFF_LINES])}{more}"] if ordered else []
