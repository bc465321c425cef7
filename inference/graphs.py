"""Detectors that run a small network on ONNX Runtime: NumPy in, NumPy out, no torch.

The graph of a model folder (made by training/export.py) holds the structure of a network; its weights come from
the safetensors file that training wrote. So they are stored once, and a network that was trained again needs no new
graph. One image keeps one core busy; the conductor runs several at a time.

Knows what is in a graph file, and what running one can end with; does not know what any detector looks at.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import ArrayLike, NDArray

from models.loaders import SHIPPED, Weights, compare, shipped
from utils.contracts import Measurement, Sample
from utils.errors import BadSettings, DeviceBusy, ScoreNotFinite, WeightsCorrupt, WeightsMismatch

log = logging.getLogger(__name__)

Floats: TypeAlias = NDArray[np.float32]
Network: TypeAlias = Callable[[NDArray[np.uint8]], Floats]  # pixels (b, H, W, 3) -> what the network finds in them

PROBE = SHIPPED / "int8_probe.onnx"  # one product of integers; made with the graphs
_FATAL = 4  # ONNX Runtime's log level: its errors come as exceptions, its warnings are about its own optimiser


class GraphDetector(ABC):
    """Measures images one at a time; several threads may do so at once.

    Args:
        network: a ``Graph``; a trainer gives the torch network that it would be.
        version: what the verdict says about the weights.
    """

    name: ClassVar[str]
    features: ClassVar[Mapping[str, str]]  # feature -> what the number means
    reads: ClassVar[Literal["pixels"]] = "pixels"  # as forensic modules say it: every frame of an animation counts
    # Memory is kept from one image to the next: a third less time. Not where the largest image needs hundreds of MB.
    keeps_memory: ClassVar[bool] = True

    def __init__(self, network: Network, version: str) -> None:
        self.network = network
        self.version = version

    @classmethod
    def load(cls, weights: Weights, device: str = "cpu") -> Self:
        """Build it from installed weights.

        Raises:
            WeightsMissing, WeightsCorrupt, WeightsMismatch: see models.loaders and ``Graph``.
        """
        arrays, metadata = weights.arrays(cls.name)
        graph = Graph(weights.path(f"{cls.name}_graph"), arrays, device, keeps_memory=cls.keeps_memory)
        if metadata.get("architecture", graph.architecture) != graph.architecture:
            raise WeightsMismatch(f"{cls.name}: weights of {metadata['architecture']}, graph of {graph.architecture}")
        return cls._of(graph, weights.card(cls.name).version, metadata)

    @classmethod
    def _of(cls, graph: Graph, version: str, metadata: Mapping[str, str]) -> Self:
        """The detector, given what the trainer wrote into the header of the weights."""
        return cls(graph, version)

    @classmethod
    def tiny(cls) -> Self:
        """The shipped graph with random weights: for tests."""
        return cls(cls._tiny_graph(), "tiny")

    @classmethod
    def _tiny_graph(cls) -> Graph:
        path, rng = shipped(f"{cls.name}_graph"), np.random.default_rng(0)
        weights = {name: _drawn(name, shape, rng) for name, shape in graph_weights(path).items()}
        return Graph(path, weights, keeps_memory=cls.keeps_memory)

    @abstractmethod
    def measure(self, sample: Sample) -> Measurement:
        """Measure one image.

        Raises:
            ScoreNotFinite: the network gave NaN or infinity.
            DeviceBusy: out of memory.
        """

    def run(self, pixels: NDArray[np.uint8]) -> Floats:
        """The network's output for (b, H, W, 3); errors as in ``measure``."""
        found = self.network(pixels)
        if not np.isfinite(found).all():
            raise ScoreNotFinite(f"{self.name} ({self.version}) gave NaN or infinity")
        return found


class Graph:
    """One network, ready to run; threads may call it at the same time.

    Args:
        path: a verified graph file.
        weights: exactly the tensors that the graph names.
        device: as IMGV_DEVICE. Only "cuda" and "cuda:<n>" leave the CPU, where this build of ONNX Runtime can.
        keeps_memory: of the largest image, once per thread that ran one.

    Raises:
        WeightsCorrupt: not a graph that ONNX Runtime understands.
        WeightsMismatch: names or shapes of the weights differ from the graph's.
        BadSettings: not a device.
    """

    def __init__(
        self, path: Path, weights: Mapping[str, NDArray[Any]], device: str = "cpu", *, keeps_memory: bool = True
    ) -> None:
        given = {name: value.shape for name, value in weights.items()}
        compare(f"{path.parent.name}/{path.name}", graph_weights(path), given)
        providers = _providers(device)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = keeps_memory
        options.log_severity_level = _FATAL
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(each)) for each in weights.values()]
        options.add_external_initializers(list(weights), values)
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:
            raise WeightsCorrupt(f"{path} is not a graph that ONNX Runtime can run: {_first_line(error)}") from error
        about = self._session.get_modelmeta()
        self._name: str = about.graph_name
        self.architecture: str = about.custom_metadata_map.get("architecture", "")

    def __call__(self, pixels: NDArray[np.uint8], **beside: Floats) -> Floats:
        """
        Args:
            beside: further inputs, by the graph's names.
        """
        try:
            (found,) = self._session.run(None, {"pixels": pixels, **beside})
        except Exception as error:
            if _is_out_of_memory(error):
                _, height, width, _ = pixels.shape
                raise DeviceBusy(f"{self._name}: not enough memory for {width} x {height} pixels") from error
            raise
        return np.asarray(found, dtype=np.float32)


def prefers_integers(device: str) -> bool:
    """Whether a graph of whole numbers is to be used there: on a CPU that multiplies 8-bit integers exactly.

    Without VNNI, AMX or ARM's dot product ONNX Runtime adds two such products in 16 bits, which the largest ones
    overflow; those processors also gain little by integers. So the largest ones are multiplied, once per process.
    """
    return len(_providers(device)) == 1 and _multiplies_exactly()


@cache
def _multiplies_exactly() -> bool:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(PROBE, options, providers=["CPUExecutionProvider"])
    size = 64  # whole vectors of every instruction set
    largest = np.full((size, size), 255, np.uint8), np.full((size, size), 127, np.int8)
    (product,) = session.run(None, dict(zip("ab", largest, strict=True)))
    exact = bool((product == size * 255 * 127).all())
    if not exact:
        log.info("this processor does not multiply 8-bit integers exactly: networks run in 32-bit floating point")
    return exact


def sigmoid(logits: ArrayLike) -> NDArray[Any]:
    """1 / (1 + exp(-x)), without overflow at either end."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits)))


def _drawn(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """A network before training: kernels that keep the size of what passes, scales of 1, no shifts."""
    if len(shape) < 2:
        return np.full(shape, 0 if name.endswith(("bias", "running_mean")) else 1, np.float32)
    return (rng.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))).astype(np.float32)


def _providers(device: str) -> list[Any]:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise BadSettings(f"IMGV_DEVICE: {device!r} is not one of auto, cpu, cuda, cuda:<n>, mps")
    kind, _, index = device.partition(":")
    if kind == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            return [("CUDAExecutionProvider", {"device_id": int(index or 0)}), "CPUExecutionProvider"]
        log.warning("small networks stay on the CPU: this ONNX Runtime has no CUDA; pip install onnxruntime-gpu")
    return ["CPUExecutionProvider"]


def _is_out_of_memory(error: Exception) -> bool:
    # ONNX Runtime has no class for it: std::bad_alloc's text, and that of its own allocators.
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("bad_alloc", "bad allocation", "Failed to allocate memory")
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


# --- what a graph file wants, read from the file itself: the onnx package takes 60 MB to answer it

_INITIALIZERS, _GRAPH = 5, 7  # fields of GraphProto and ModelProto in onnx.proto
_DIMS, _NAME, _DATA_LOCATION = 1, 8, 14  # of TensorProto
_EXTERNAL = 1
_VARINT, _FIXED = 0, {1: 8, 5: 4}  # protobuf's wire types; 2 is a length and as many bytes


def graph_weights(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a graph leaves to a weights file.

    Raises:
        WeightsCorrupt: not an ONNX file.
    """
    found: dict[str, tuple[int, ...]] = {}
    try:
        for graph in _values(memoryview(path.read_bytes()), _GRAPH):
            for tensor in _values(graph, _INITIALIZERS):
                if _EXTERNAL in _values(tensor, _DATA_LOCATION):
                    (name,) = _values(tensor, _NAME)
                    found[bytes(name).decode()] = tuple(_values(tensor, _DIMS))
    except (ValueError, IndexError, TypeError) as error:
        raise WeightsCorrupt(f"{path} is not an ONNX graph: {error}") from error
    return found


def _values(message: memoryview, wanted: int) -> Iterator[Any]:
    """The values of one field of a protobuf message: integers, or bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        value: Any
        if kind == _VARINT:
            value, at = _varint(message, at)
        else:
            size, at = (_FIXED[kind], at) if kind in _FIXED else _varint(message, at)
            value, at = message[at : at + size], at + size
        if number == wanted:
            yield value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Seven bits a byte, lowest first, until one without the top bit; and where the next thing begins."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
