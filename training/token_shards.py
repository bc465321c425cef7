"""Class tokens kept in the repository, so that heads are trained anew where no image is at hand. Knows no head.

The images of the catalogue are not ours to pass on, and their origins vanish one by one. What the tower sees in them
says enough to train a head on, and a shard of it stays: new sources add a shard, and none is ever written again.

In a shard every number of a token is int8: its distance from the mean of that number over the shard, with a scale of
its own. Only the blocks that heads look at are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from inference.clip_b16 import BLOCKS, WIDTH
from models.quantised import load_quantised, quantised
from training.clip_tokens import Tokens
from utils.errors import TableError
from utils.persistence import save_arrays


def write_shard(path: Path, tokens: Mapping[str, Tokens], blocks: Sequence[int], tower: str) -> None:
    """Keep tokens by the name of their view.

    Args:
        tokens: name -> (BLOCKS, WIDTH).
        blocks: to keep, counted from 1.
        tower: SHA-256 of the weights that saw them.
    """
    names = sorted(tokens)
    values = np.stack([tokens[name][np.array(blocks) - 1].ravel() for name in names], axis=1).astype(np.float32)
    mean = values.mean(axis=1, keepdims=True)
    values -= mean
    arrays = {**quantised("tokens", values), "mean": mean}
    facts = {"views": "\n".join(names), "blocks": " ".join(map(str, blocks)), "tower": tower}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(path, arrays, facts)


def read_shards(folder: Path, tower: str) -> dict[str, Tokens]:
    """The tokens of every shard in a folder by the name of their view; 0 in blocks that were not kept.

    Raises:
        TableError: a shard is of another tower.
        WeightsCorrupt: a file is no shard.
    """
    found: dict[str, Tokens] = {}
    for path in sorted(folder.glob("*.safetensors")):
        arrays, facts = load_quantised(path)
        if facts.get("tower") != tower:
            raise TableError(f"{path} was seen by the tower {facts.get('tower')}, not by {tower}; leave it out")
        kept = np.array(facts["blocks"].split(), int) - 1
        names = facts["views"].split("\n")
        tokens = np.zeros((len(names), BLOCKS, WIDTH), np.float16)
        tokens[:, kept] = (arrays["tokens"] + arrays["mean"]).T.reshape(len(names), len(kept), WIDTH)
        found |= dict(zip(names, tokens, strict=True))
    return found
