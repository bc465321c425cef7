"""Networks as ONNX graphs without weights, into the model folders that hold those. No command.

A graph holds what an architecture computes; inference/graphs.py fills it with a safetensors file of that architecture.
So retraining needs no export, only another architecture does. The same versions of torch and onnxscript give the same
bytes. Needs onnx and onnxscript.

What a graph computes beside the network (scaling pixels, a final sigmoid) is decided here; which pixels it gets to see
is the detector's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import timm
import torch
from torch import Tensor, nn

from inference.clip_b16 import SIDE
from inference.ghostnet import TILE
from inference.views import IMAGENET, OPENAI_CLIP
from models.clip_tower import ARCHITECTURE, class_tokens, clip_tower
from models.edit_map_net import PLANES, EditMapNet
from models.ghostnet_net import GhostNetForensics
from models.mantranet_net import COMPACT, ManTraNet
from models.quantised import SCALE, STEPS
from utils.persistence import GRAPH, GRAPH_INT8, record_file

if TYPE_CHECKING:
    import onnx

    Part = TypeVar("Part", onnx.NodeProto, onnx.TensorProto, onnx.ValueInfoProto)

OPSET = 20
ANY = torch.export.Dim.DYNAMIC
FLOAT = 1  # onnx.TensorProto.FLOAT; onnx is imported where it is needed
ABOUT = {
    "licence": "MIT",
    "commercial": True,
    "layout": f"ONNX, opset {OPSET}",
    "train": "python -m scripts.export_graphs",
}


class OnPixels(nn.Module):
    """A network as the detectors call it: uint8 pixels (b, H, W, 3) in, one float32 array out.

    Its state dict is the network's own, so that a graph's weights have the names of the trained file.
    """

    sizes: Mapping[int, object] = {1: ANY, 2: ANY}  # axes of the pixels that vary
    example: tuple[int, ...] = (1, 96, 128, 3)
    beside: Mapping[str, tuple[int, ...]] = {}  # further float32 inputs and their shapes in the example; 2 axes vary

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class EffNetOnPixels(OnPixels):
    """Pixels -> logits (b, 1)."""

    def forward(self, pixels: Tensor) -> Tensor:
        mean, std = (255 * torch.tensor(each, device=pixels.device) for each in (IMAGENET.mean, IMAGENET.std))
        return self.network(((pixels.float() - mean) / std).permute(0, 3, 1, 2))


class GhostNetOnPixels(OnPixels):
    """Tiles (k, TILE, TILE, 3) -> patch logits (k, TILE / 32, TILE / 32)."""

    sizes: Mapping[int, object] = {0: ANY}
    example = (2, TILE, TILE, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels.permute(0, 3, 1, 2).float())[1]


class FlatLinear(nn.Linear):
    """The same numbers in two dimensions, which become ONNX's Gemm: it reads a weight as torch stores it.

    In three, ONNX Runtime keeps a transposed copy of every weight while it loads: 340 MB more for a ViT-B.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class ClipTowerOnPixels(OnPixels):
    """Squares (b, SIDE, SIDE, 3) -> the class token after each block, (b, BLOCKS, WIDTH)."""

    sizes: Mapping[int, object] = {}
    example = (1, SIDE, SIDE, 3)

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        for module in network.modules():
            if type(module) is nn.Linear:
                module.__class__ = FlatLinear

    def forward(self, pixels: Tensor) -> Tensor:
        mean, std = (255 * torch.tensor(each, device=pixels.device) for each in (OPENAI_CLIP.mean, OPENAI_CLIP.std))
        return class_tokens(self.network, ((pixels.float() - mean) / std).permute(0, 3, 1, 2))


class ManTraNetOnPixels(OnPixels):
    """One image, mirrored by 2 pixels on each side (symmetric), -> probabilities (1, 1, h, w).

    The first layer's padding is left to the caller: ONNX has no symmetric padding.
    """

    network: ManTraNet

    def forward(self, pixels: Tensor) -> Tensor:
        traces = self.network.IMTFE.of_padded(pixels.permute(0, 3, 1, 2).float())
        return self.network.AnomalyDetector(traces).sigmoid()


class EditMapOnPixels(OnPixels):
    """One image, mirrored as for ManTraNet, and what is repeated in it -> probabilities (1, 1, h, w)."""

    example = (1, 100, 132, 3)
    beside: Mapping[str, tuple[int, ...]] = {"repeats": (1, PLANES, 96, 128)}

    def forward(self, pixels: Tensor, repeats: Tensor) -> Tensor:
        return self.network(pixels.permute(0, 3, 1, 2).float(), repeats).sigmoid()


EXPORTED: dict[str, tuple[str, Callable[[], OnPixels]]] = {
    "effnet": (
        "efficientnet_lite0",
        lambda: EffNetOnPixels(timm.create_model("efficientnet_lite0", pretrained=False, num_classes=1)),
    ),
    "ghostnet": ("ghostnet_100", lambda: GhostNetOnPixels(GhostNetForensics())),
    "mantranet_compact": ("mantranet_compact", lambda: ManTraNetOnPixels(ManTraNet(COMPACT))),
    "edit_map": ("edit_map", lambda: EditMapOnPixels(EditMapNet())),
    "clip_b16": (ARCHITECTURE, lambda: ClipTowerOnPixels(clip_tower())),
}
MIDDLE = 128  # of uint8: stands for 0
_MIDDLE, _FINER = "int8.middle", "int8.finer"  # what is left over is at most half a step, in 127 finer ones
_CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
IN_INTEGERS = ("clip_b16",)  # those whose linear layers are stored as int8


def export_beside(network: OnPixels, architecture: str, folder: Path) -> None:
    """Into the model folder of freshly trained weights, the graph that they need where it is not the shipped one."""
    if architecture != EXPORTED[folder.name][0]:
        export(network, architecture, folder)


def export(network: OnPixels, architecture: str, folder: Path) -> None:
    """Write a network's graph into its model folder, and its card; of the weights, names and shapes only.

    Args:
        architecture: stored in the graph, and compared with what the trained file names.
        folder: its name is the graph's.
    """
    import onnx

    weights = {
        key: value for key, value in network.cpu().eval().network.state_dict().items() if value.is_floating_point()
    }
    beside = [torch.zeros(shape) for shape in network.beside.values()]
    shapes: list[object] = [dict(network.sizes), [None] * len(weights)]
    if beside:
        shapes.append(tuple({2: ANY, 3: ANY} for _ in beside))
    program = torch.onnx.export(
        _Functional(network, weights).eval(),
        (torch.zeros(network.example, dtype=torch.uint8), list(weights.values()), *beside),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        dynamic_shapes=tuple(shapes),
        input_names=["pixels", *weights, *network.beside],
        output_names=["found"],
    )
    assert program is not None
    exported = program.model_proto.graph
    used = {name for node in exported.node for name in node.input}
    inputs = {each.name: each for each in exported.input}
    given = [each for each in exported.input if each.name not in ("pixels", *network.beside)]
    unused = [key for key, each in zip(weights, given, strict=True) if each.name != key or key not in used]
    assert not unused, unused
    graph = onnx.helper.make_graph(
        [_bare(node) for node in exported.node],
        folder.name,
        [_bare(inputs[name]) for name in ("pixels", *network.beside)],
        [_bare(each) for each in exported.output],
        [*(_bare(each) for each in exported.initializer), *(_external(each) for each in given)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)
    model.metadata_props.add(key="architecture", value=architecture)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GRAPH).write_bytes(model.SerializeToString(deterministic=True))
    record_file(folder, "graph", GRAPH, **ABOUT)


def export_integers(folder: Path) -> None:
    """Beside a model folder's graph, the same with whole numbers in its linear layers: ``GRAPH_INT8``.

    For files of models/quantised.py, whose int8 are used as they are stored, (in, out) from (out, in). What flows into
    a layer has larger numbers than 8 bits can tell apart: it is rounded to 8 bits, what that leaves over to 8 more, and
    both are multiplied. The sum is the float graph's to about 1 in 10,000; with the first 8 bits alone a score would
    depend on how a processor rounds.
    """
    import onnx

    model = onnx.load(folder / GRAPH, load_external_data=False)
    graph = model.graph
    given = {each.name: each for each in graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL}
    layers = [node for node in graph.node if node.op_type == "Gemm" and node.input[1] in given]
    weights = [node.input[1] for node in layers]
    kept = [each for each in graph.initializer if each.name not in weights]
    for name in weights:
        rows, columns = given[name].dims
        kept += [_tensor(name, onnx.TensorProto.INT8, (columns, rows)), _tensor(name + SCALE, FLOAT, (rows,))]
    kept.append(onnx.numpy_helper.from_array(np.array(MIDDLE, np.uint8), _MIDDLE))
    kept.append(onnx.numpy_helper.from_array(np.array(1 / (2 * STEPS), np.float32), _FINER))
    nodes = [step for node in graph.node for step in (_in_integers(node) if node in layers else [node])]
    changed = onnx.helper.make_graph(nodes, graph.name, graph.input, graph.output, kept)
    opsets = [*model.opset_import, onnx.helper.make_opsetid(_CONTRIB, 1)]
    whole = onnx.helper.make_model(changed, opset_imports=opsets, ir_version=model.ir_version)
    whole.metadata_props.extend(model.metadata_props)
    (folder / GRAPH_INT8).write_bytes(whole.SerializeToString(deterministic=True))
    record_file(folder, "graph_int8", GRAPH_INT8, **ABOUT)


def _in_integers(gemm: onnx.NodeProto) -> list[onnx.NodeProto]:
    from onnx.helper import make_node

    (source, weight, bias), (found,) = gemm.input, gemm.output
    at = f"{found}.int8."  # of names between these nodes
    coarse, rest = (at + "coarse", at + "step", at + "zero"), (at + "rest", at + "finer_step", _MIDDLE)

    def product(of: tuple[str, str, str], *added: str) -> onnx.NodeProto:
        whole, step, zero = of
        inputs = [whole, weight, step, weight + SCALE, zero, *(("", *added) if added else ())]
        return make_node("MatMulIntegerToFloat", inputs, [whole + ".product"], domain=_CONTRIB)

    return [
        make_node("DynamicQuantizeLinear", [source], coarse),
        make_node("DequantizeLinear", coarse, [at + "rounded"]),
        make_node("Sub", [source, at + "rounded"], [at + "left"]),
        make_node("Mul", [at + "step", _FINER], [at + "finer_step"]),
        make_node("QuantizeLinear", [at + "left", at + "finer_step", _MIDDLE], [at + "rest"]),
        product(coarse, bias),
        product(rest),
        make_node("Add", [at + "coarse.product", at + "rest.product"], [found]),
    ]


def export_probe(path: Path) -> None:
    """The smallest product of integers, by which inference/graphs.py finds out whether a processor computes them."""
    from onnx import TensorProto, helper

    inputs = [
        helper.make_tensor_value_info("a", TensorProto.UINT8, [None, None]),
        helper.make_tensor_value_info("b", TensorProto.INT8, [None, None]),
    ]
    outputs = [helper.make_tensor_value_info("product", TensorProto.INT32, [None, None])]
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["a", "b"], ["product"])], "probe", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    path.write_bytes(model.SerializeToString(deterministic=True))


class _Functional(nn.Module):
    """The weights as inputs: what the exporter does not know it can neither fold nor merge."""

    def __init__(self, network: OnPixels, keys: Iterable[str]) -> None:
        super().__init__()
        self._call = partial(torch.func.functional_call, network)
        self._keys = [f"network.{key}" for key in keys]

    def forward(self, pixels: Tensor, weights: list[Tensor], *beside: Tensor) -> Tensor:
        return self._call(dict(zip(self._keys, weights, strict=True)), (pixels, *beside))


def _bare(part: Part) -> Part:
    """Without stack traces and other traces of where it was exported."""
    part.ClearField("doc_string")
    part.ClearField("metadata_props")
    return part


def _external(given: onnx.ValueInfoProto) -> onnx.TensorProto:
    """An input as an initializer whose values come from elsewhere."""
    kind = given.type.tensor_type
    return _tensor(given.name, kind.elem_type, [size.dim_value for size in kind.shape.dim])


def _tensor(name: str, kind: int, shape: Iterable[int]) -> onnx.TensorProto:
    """An initializer whose values come from elsewhere."""
    import onnx

    tensor = onnx.TensorProto(name=name, data_type=kind, data_location=onnx.TensorProto.EXTERNAL)
    tensor.dims.extend(shape)
    tensor.external_data.add(key="location", value="weights")
    return tensor
