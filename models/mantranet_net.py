"""ManTraNet: manipulation traces of every pixel, and how far each pixel's traces depart from those around it.

Paper:    Wu, AbdAlmageed and Natarajan, "ManTra-Net: Manipulation Tracing Network for Detection and Localization of
          Image Forgeries With Anomalous Features", CVPR 2019
Upstream: github.com/ISICV/ManTraNet@59436db (Keras) and github.com/RonyAbecidan/ManTraNet-pytorch@1af95cd, whose
          checkpoint keys are ours. The published weights are USC's, for academic, non-commercial use only.
Differs:  width and stride can be chosen; tiles give the whole image's result in bounded memory

Knows nothing of decoding, of where weights lie, or of devices. Shapes in comments: b images, c channels, h x w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from utils.errors import WeightsCorrupt, WeightsMismatch, WeightsMissing

FREE, BAYAR = 4, 3  # trainable filters of the first layer, beside 9 fixed ones
TRACE_CHANNELS = (32, 64, 64, 128, 128, 128, 256, 256, 256, 256, 256, 256)  # of the twelve 3x3 convolutions
ANOMALY_CHANNELS = 64
WINDOWS = (7, 15, 31)  # of the released model; a fourth "window" is the whole image
HIDDEN = 8
KERNEL = 7  # of the ConvLSTM and of the last convolution
BATCH_NORM_EPS = 1e-3  # Keras' default, as in the released model


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes; the defaults are the published network's.

    The first layer always sees every pixel, for its residuals are the evidence; with ``stride`` 2 or 4 the first one
    or two convolutions after it step by 2, and all later ones, windows included, count in those larger steps.
    """

    width: float = 1.0  # multiplies the channels after the first layer
    stride: int = 1  # 1, 2 or 4: pixels of the image per pixel of the map, along each side

    def __post_init__(self) -> None:
        if self.stride not in (1, 2, 4):
            raise ValueError(f"stride must be 1, 2 or 4, got {self.stride}")

    def channels(self, published: int) -> int:
        return max(1, round(published * self.width))

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the twelve 3x3 convolutions."""
        halvings = self.stride.bit_length() - 1
        return (2,) * halvings + (1,) * (len(TRACE_CHANNELS) - halvings)

    @property
    def trace_radius(self) -> int:
        """Pixels of the image that a trace sees in each direction, rounded up to whole steps."""
        radius, step = 2, 1  # the first layer is 5x5
        for stride in self.strides:
            radius += step
            step *= stride
        return math.ceil(radius / step) * step


COMPACT = Config(width=0.25, stride=4)


def symmetric_pad(x: Tensor, border: int) -> Tensor:
    """Mirror including the edge pixel (NumPy's and TensorFlow's "symmetric"), at any border and size."""
    for axis in (-2, -1):
        size = x.shape[axis]
        index = torch.arange(-border, size + border, device=x.device) % (2 * size)
        x = x.index_select(axis, torch.where(index < size, index, 2 * size - 1 - index))
    return x


def srm_kernels() -> Tensor:
    """Three residual filters of the steganalysis rich model (Fridrich and Kodovsky 2012), each on R, G and B alone.

    (9, 3, 5, 5): second-order square 3x3, square 5x5 ("KV"), second-order line; each divided by its centre's weight.
    """
    square = functional.pad(torch.tensor([[-1.0, 2, -1], [2, -4, 2], [-1, 2, -1]]), (1, 1, 1, 1)) / 4
    kv = torch.tensor([[-1.0, 2, -2], [2, -6, 8], [-2, 8, -12]])
    kv = torch.cat([kv, kv[:2].flip(0)])
    kv = torch.cat([kv, kv[:, :2].flip(1)], dim=1) / 12
    line = functional.pad(torch.tensor([[1.0, -2, 1]]), (1, 1, 2, 2)) / 2
    return torch.stack([square, kv, line])[:, None, None].mul(torch.eye(3)[:, :, None, None]).flatten(0, 1)


def bayar_constrained(weight: Tensor) -> Tensor:
    """Prediction-error filters (Bayar and Stamm 2016): centre -1, the others sum to 1, per pair of channels."""
    around = weight.clone()
    centre = weight.shape[-1] // 2
    around[..., centre, centre] = 0
    around = around / (around.sum(dim=(-2, -1), keepdim=True) + 1e-7)  # Keras' epsilon
    around[..., centre, centre] = -1
    return around


def hard_sigmoid(x: Tensor) -> Tensor:
    """Keras'; torch's has another slope."""
    return (0.2 * x + 0.5).clamp(0, 1)


def window_mean(x: Tensor, side: int) -> Tensor:
    """Mean over a side x side window around each pixel; beyond the border there is nothing, and nothing counts.

    A window that is cut by the border is still a rectangle, so the mean of its column means is its mean: two passes
    over lines instead of one over squares.
    """
    half = side // 2
    columns = functional.avg_pool2d(x, (side, 1), 1, (half, 0), count_include_pad=False)
    return functional.avg_pool2d(columns, (1, side), 1, (0, half), count_include_pad=False)


class FixedFilters(nn.Module):
    """Stored with the weights, as upstream does, but never trained."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)


class TraceExtractor(nn.Module):
    """Image manipulation trace features: residual filters, then a VGG without pooling, unit length per pixel."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.init_conv = nn.Conv2d(3, FREE, 5, bias=False)
        self.SRMConv2D = FixedFilters(srm_kernels())
        self.BayarConv2D = nn.Conv2d(3, BAYAR, 5, bias=False)
        nn.init.uniform_(self.BayarConv2D.weight, 0, 1)  # a sum near zero would blow the constraint up
        widths = (FREE + 9 + BAYAR, *(config.channels(each) for each in TRACE_CHANNELS))
        layers: list[nn.Module] = []
        for (inside, outside), stride in zip(pairwise(widths), config.strides, strict=True):
            # By one pixel, "replicate" is symmetric padding.
            conv = nn.Conv2d(inside, outside, 3, stride, padding=1, padding_mode="replicate")
            # Without normalisation layers, torch's smaller default fades the image out long before the twelfth layer.
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            layers += [conv, nn.ReLU(inplace=True)]
        self.middle_and_last_block = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) RGB in 0..255 -> (b, c, ceil(H / stride), ceil(W / stride))."""
        return self.of_padded(symmetric_pad(images, 2))

    def of_padded(self, images: Tensor) -> Tensor:
        """The same of images that are mirrored by 2 pixels on each side already: ONNX has no symmetric padding."""
        filters = [self.init_conv.weight, self.SRMConv2D.weight, bayar_constrained(self.BayarConv2D.weight)]
        x = functional.conv2d(images / 127.5 - 1, torch.cat(filters))
        return functional.normalize(self.middle_and_last_block(functional.relu(x)), dim=1)


class ConvLSTMCell(nn.Module):
    """One step of a convolutional LSTM as Keras' ConvLSTM2D computes it; gates in the order i, f, c, o."""

    def __init__(self, inside: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.conv = nn.Conv2d(inside + hidden, 4 * hidden, KERNEL, padding=KERNEL // 2)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """(b, inside, h, w) and (output, memory), None at the start -> the next (output, memory)."""
        if state is None:
            zero = x.new_zeros(len(x), self.hidden, *x.shape[-2:])
            state = (zero, zero)
        i, f, c, o = self.conv(torch.cat([x, state[0]], dim=1)).chunk(4, dim=1)
        memory = hard_sigmoid(f) * state[1] + hard_sigmoid(i) * torch.tanh(c)
        return hard_sigmoid(o) * torch.tanh(memory), memory


class ConvLSTM(nn.Module):
    def __init__(self, inside: int, hidden: int) -> None:
        super().__init__()
        self.cell_list = nn.ModuleList([ConvLSTMCell(inside, hidden)])

    def forward(self, sequence: Iterator[Tensor]) -> Tensor:
        """Steps of (b, inside, h, w) -> the last output (b, hidden, h, w)."""
        state: tuple[Tensor, Tensor] | None = None
        for x in sequence:
            state = self.cell_list[0](x, state)
        if state is None:
            raise ValueError("an empty sequence")
        return state[0]


class AnomalyDetector(nn.Module):
    """Local anomaly detection: z-scores of the traces against their surroundings, read from near to far by an LSTM."""

    # Reach of ``logits``. Four LSTM steps and the last convolution pass things on by half a kernel each; the widest
    # window is read in the third step, so it is passed on by three of them.
    RADIUS = max(5 * (KERNEL // 2), max(WINDOWS) // 2 + 3 * (KERNEL // 2))

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = config.channels(ANOMALY_CHANNELS)
        self.adaptation = nn.Conv2d(config.channels(TRACE_CHANNELS[-1]), channels, 1, bias=False)
        self.sigma_F = nn.Parameter(torch.full((1, channels, 1, 1), 1e-5))  # smallest standard deviation
        self.conv_lstm = ConvLSTM(channels, HIDDEN)
        self.end = nn.Sequential(nn.Conv2d(HIDDEN, 1, KERNEL, padding=KERNEL // 2))

    def standardise(self, adapted: Tensor) -> Tensor:
        """Centre and scale each channel of each image by the whole image's own statistics, in float32 at least.

        Batch normalisation without learnt gains, then division by the deviation that is left, which is just below 1
        unless the channel is flat.
        """
        adapted = adapted.to(torch.promote_types(adapted.dtype, torch.float32))
        variance, mean = torch.var_mean(adapted, dim=(-2, -1), correction=0, keepdim=True)
        # The clamp keeps the gradient of the root finite in a flat channel; the floor below is far above it.
        deviation = (variance.clamp_min(1e-20) / (variance + BATCH_NORM_EPS)).sqrt()
        deviation = torch.maximum(deviation, self.sigma_F.to(adapted.dtype) + 1e-6)
        return (adapted - mean) / ((variance + BATCH_NORM_EPS).sqrt() * deviation)

    def forward(self, traces: Tensor) -> Tensor:
        """Traces of a whole image -> logits (b, 1, h, w)."""
        return self.logits(self.standardise(self.adaptation(traces)))

    def logits(self, standardised: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, 1, h, w); each pixel depends on those within RADIUS only."""
        dtype = self.adaptation.weight.dtype
        return self.end(self.conv_lstm(z.to(dtype) for z in self.z_scores(standardised)))

    @staticmethod
    def z_scores(standardised: Tensor) -> Iterator[Tensor]:
        """Distance of each pixel from the mean of each window, from the smallest to the whole image."""
        for side in WINDOWS:
            yield (window_mean(standardised, side) - standardised).abs()
        yield standardised.abs()  # the whole image's mean is 0 by now


class ManTraNet(nn.Module):
    """The whole network: images to a map of manipulation logits.

    ``tiled`` and ``forward`` give the same numbers up to rounding: convolutions reach a known number of pixels, so
    tiles overlap by that much, and the statistics of the whole image are taken between the two tiled halves. There
    are no seams to blend.
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config or Config()
        self.IMTFE = TraceExtractor(self.config)
        self.AnomalyDetector = AnomalyDetector(self.config)

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) RGB in 0..255 -> logits (b, 1, ceil(H / stride), ceil(W / stride))."""
        return self.AnomalyDetector(self.IMTFE(images))

    def tiled(self, images: Tensor, tile: int) -> Tensor:
        """``forward`` with memory for one tile of ``tile`` pixels a side, besides the reduced traces of the image."""
        stride = self.config.stride
        tile = max(1, tile // stride)  # in pixels of the map
        traces = _piecewise(self._adapted, images, tile * stride, self.config.trace_radius, stride)
        local = self.AnomalyDetector.standardise(traces)
        return _piecewise(self.AnomalyDetector.logits, local, tile, AnomalyDetector.RADIUS, 1)

    def _adapted(self, images: Tensor) -> Tensor:
        return self.AnomalyDetector.adaptation(self.IMTFE(images))


def _piecewise(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, radius: int, stride: int) -> Tensor:
    """A local function, tile by tile; tile and radius are whole strides, so that every tile steps alike."""
    height, width = x.shape[-2:]
    rows = []
    for top in range(0, height, tile):
        row = []
        for left in range(0, width, tile):
            y, x_ = max(0, top - radius), max(0, left - radius)
            part = function(x[..., y : top + tile + radius, x_ : left + tile + radius])
            y, x_, kept = (top - y) // stride, (left - x_) // stride, tile // stride
            row.append(part[..., y : y + kept, x_ : x_ + kept])
        rows.append(torch.cat(row, dim=-1))
    return torch.cat(rows, dim=-2)


# Keras layer of each of the twelve convolutions, in order.
_KERAS_TRACE_LAYERS = (
    "b1c2",
    "b2c1",
    "b2c2",
    "b3c1",
    "b3c2",
    "b3c3",
    "b4c1",
    "b4c2",
    "b4c3",
    "b5c1",
    "b5c2",
    "transform",
)


def from_keras_h5(path: Path) -> dict[str, Tensor]:
    """The authors' ``ManTraNet_Ptrain4.h5`` as a state dict in our layout.

    Only Ptrain4 is this network. Ptrain0 and 1 have 32 filters in the first layer, and Ptrain2 and 3 were trained with
    a fourth window of 63, which no shape tells.

    Raises:
        WeightsMissing: h5py is not installed.
        WeightsCorrupt: not an HDF5 file.
        WeightsMismatch: a layer is not in it.
    """
    layers = _keras_arrays(path)

    def taken(layer: str, name: str) -> Tensor:
        if (layer, name) not in layers:
            raise WeightsMismatch(f"{path}: no Keras weight {layer}/{name}")
        return torch.from_numpy(layers[layer, name])

    def kernel(layer: str, name: str = "kernel") -> Tensor:
        return taken(layer, name).permute(3, 2, 0, 1).contiguous()  # height, width, in, out -> out, in, height, width

    lstm = "AnomalyDetector.conv_lstm.cell_list.0.conv"
    state = {
        "IMTFE.init_conv.weight": kernel("b1c1", "regular_kernel"),
        "IMTFE.SRMConv2D.weight": srm_kernels(),  # Keras does not store them
        "IMTFE.BayarConv2D.weight": kernel("b1c1", "bayar_kernel"),
        "AnomalyDetector.adaptation.weight": kernel("outlierTrans"),
        # The moving statistics of "bnorm" are left out: every z-score is a difference over a deviation, both scaled.
        "AnomalyDetector.sigma_F": taken("glbStd", "min_std").permute(0, 3, 1, 2).contiguous(),
        f"{lstm}.weight": torch.cat([kernel("cLSTM"), kernel("cLSTM", "recurrent_kernel")], dim=1),
        f"{lstm}.bias": taken("cLSTM", "bias"),
        "AnomalyDetector.end.0.weight": kernel("pred"),
        "AnomalyDetector.end.0.bias": taken("pred", "bias"),
    }
    for index, layer in enumerate(_KERAS_TRACE_LAYERS):
        state[f"IMTFE.middle_and_last_block.{2 * index}.weight"] = kernel(layer)
        state[f"IMTFE.middle_and_last_block.{2 * index}.bias"] = taken(layer, "bias")
    return state


def _keras_arrays(path: Path) -> dict[tuple[str, str], np.ndarray]:
    """Every array under (layer, weight), wherever nested models put it: ``.../b1c2/kernel:0`` -> ("b1c2", "kernel")."""
    try:
        import h5py
    except ImportError as error:
        raise WeightsMissing(f"{path} is a Keras file, and reading it needs: pip install h5py") from error
    found: dict[tuple[str, str], np.ndarray] = {}

    def visit(name: str, item: object) -> None:
        parts = name.split("/")
        if isinstance(item, h5py.Dataset) and len(parts) > 1:
            found[parts[-2], parts[-1].partition(":")[0]] = np.asarray(item, dtype=np.float32)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except OSError as error:
        raise WeightsCorrupt(f"{path} is not an HDF5 file: {error}") from error
    return found
