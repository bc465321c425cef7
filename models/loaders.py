"""Weight files: which exist, where they lie, whether they are the right ones, and how they get into a network.

Knows nothing of any architecture, of the network, or of devices. torch is imported inside the functions that open a
file, so listing cards costs nothing.

Every model has a folder with its card (utils/persistence.py): ours in ``models/saved_models``, those of this
installation in its weights folder, where a card takes the place of ours of the same name. Over both lies
``<weights_dir>/weights.toml``: a table there replaces the fields it names or adds a card, which is how a user's own
checkpoint is registered and where download_weights records the hash of a file whose publisher states none (trust on
first use; it says nothing of another file that a model folder names).
"""

from __future__ import annotations

import argparse
import difflib
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from utils.errors import WeightsCorrupt, WeightsMismatch, WeightsMissing
from utils.persistence import (
    CARD,
    WEIGHTS,
    Card,
    check,
    load_arrays,
    read_cards,
    read_tables,
    record,
    sha256_file,
    write_atomic,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Module = TypeVar("Module", bound="nn.Module")

SHIPPED = Path(__file__).with_name("saved_models")
OVERRIDES = "weights.toml"
_HEADER = "# Cards added or changed on this machine; fields: Card in utils/persistence.py. Rewritten by our scripts.\n"
DIFF_LINES = 8  # of each kind; a wrong architecture differs in hundreds of keys that all say the same


@dataclass(frozen=True, slots=True)
class Weights:
    """The cards of this installation and the folders their files lie in; what a detector loads from."""

    cards: Mapping[str, Card]
    folders: tuple[Path, ...]

    @classmethod
    def at(cls, weights_dir: Path, release: Path | None = None) -> Weights:
        """
        Args:
            release: the models of a release, which take the place of all others of their names.
        """
        found, folders = cards(weights_dir), (weights_dir, SHIPPED)
        if release is None:
            return cls(found, folders)
        return cls(found | _folders(release), (release, *folders))

    def card(self, name: str) -> Card:
        if name not in self.cards:
            near = difflib.get_close_matches(name, self.cards, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "python -m scripts.download_weights --list shows them"
            raise WeightsMissing(f"no weights card {name!r}; {hint}")
        return self.cards[name]

    def of(self, model: str) -> list[Card]:
        """The cards of a model's files, in the order of its card."""
        return [card for card in self.cards.values() if card.model == model]

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
    """All cards by name: ours, over them the models below ``weights_dir`` and, over those, its card file.

    Raises:
        WeightsCorrupt: a card file is not TOML, or has a field we do not know.
    """
    found = ours = _folders(SHIPPED)
    if weights_dir is None:
        return found
    found = ours | _folders(weights_dir)
    if (weights_dir / OVERRIDES).exists():
        found |= _overrides(weights_dir / OVERRIDES, found, ours)
    return found


def _folders(folder: Path) -> dict[str, Card]:
    """The cards of the model folders in it."""
    found: dict[str, Card] = {}
    for path in sorted(folder.glob(f"*/{CARD}")):
        found |= read_cards(path.parent)
    return found


def _overrides(path: Path, base: Mapping[str, Card], ours: Mapping[str, Card]) -> dict[str, Card]:
    found = {}
    for name, values in read_tables(path).items():
        if name not in base and not values.get("file"):
            raise WeightsCorrupt(f"{path}: [{name}] names no file")
        card = base.get(name, Card(name=name, model=name))
        if "file" not in values and name in ours and card.file != ours[name].file:
            # Recorded of the file that our card names; the model folder of this installation names another.
            values = {key: value for key, value in values.items() if key not in ("size", "sha256")}
        found[name] = replace(card, **values)
    return found


def record_card(name: str, values: Mapping[str, Any], folder: Path) -> None:
    """Merge values into the card ``name`` of this installation's card file."""
    record(folder / OVERRIDES, name, values, _HEADER)


def install(model: Path, name: str, weights_dir: Path) -> None:
    """Make the weights of a model folder those of the card ``name`` in this installation."""
    file = f"{name}/{WEIGHTS}"
    target = weights_dir / file
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, (model / WEIGHTS).read_bytes())
    record_card(name, {"file": file, "size": target.stat().st_size, "sha256": sha256_file(target)}, weights_dir)


def shipped(name: str) -> Path:
    """The file of a card of ours that comes with the code."""
    return SHIPPED / cards()[name].file


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
