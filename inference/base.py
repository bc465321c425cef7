"""What every torch detector shares: views of the images in, one batched forward, measurements out.

Knows devices, precision and running out of memory; does not know what any detector looks at, nor where weights lie.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from models.loaders import Weights
from utils.contracts import Measurement, Sample
from utils.errors import DeviceBusy, ScoreNotFinite

log = logging.getLogger(__name__)


class Batched(ABC):
    """A network that takes views in batches, on whatever device has room for them.

    Args:
        network: on the CPU, filled and in eval mode. Whatever must live on the device is inside it, as a parameter or a
            buffer: only the network moves when memory runs out.
        title: in messages.
        batch: views per forward; halved when memory runs out.
        device: a torch device name.
        dtype: parameters' and inputs' floating-point type; float32 whenever we fall back to the CPU.
        channels_last: memory format of the inputs; give the same to ``load_into``.
    """

    def __init__(
        self,
        network: nn.Module,
        title: str,
        batch: int,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        self.network = network.to(device, dtype)
        self.device = torch.device(device)
        self.dtype = dtype
        self._format = torch.channels_last if channels_last else torch.preserve_format
        self._title = title
        self._batch = self._full_batch = batch

    @abstractmethod
    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        """One batch of views on the device -> outputs, each with one leading row per view."""

    def _run(self, views: Tensor) -> tuple[Tensor, ...]:
        done: list[tuple[Tensor, ...]] = []
        start = 0
        while start < len(views):
            batch = views[start : start + self._batch]
            try:
                done.append(self._forward(batch))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            else:
                start += len(batch)
                continue
            # Outside the except clause: while the exception lives, its frames keep the failed batch's tensors alive.
            self._make_room(failure)
        return tuple(torch.cat(parts) for parts in zip(*done, strict=True))

    def _forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            # The GPU fetches pinned memory by itself. Nothing overlaps: the outputs of each batch are waited for.
            if self.device.type == "cuda" and torch.cuda.is_available():
                batch = batch.pin_memory()
            on_device = batch.to(self.device, self.dtype, non_blocking=True, memory_format=self._format)
            return tuple(output.float().cpu() for output in self.forward(on_device))

    def _make_room(self, failure: str) -> None:
        """Halve the batch; at one view, leave the GPU. Both last until restart: the next job shall not fail first."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self._batch > 1:
            self._batch //= 2
            log.warning("%s: out of memory on %s, batch is now %d", self._title, self.device, self._batch)
        elif self.device.type != "cpu":
            log.warning("%s: out of memory on %s, moved to the CPU", self._title, self.device)
            self.network.to("cpu", torch.float32)
            self.device, self.dtype = torch.device("cpu"), torch.float32
            self._batch = self._full_batch
        else:
            raise DeviceBusy(f"{self._title}: not enough memory for one view on the CPU ({failure})")


class TorchDetector(Batched):
    """Scores images with one network.

    An image becomes k >= 1 views of equal size (the resized image, crops, tiles). The views of many images go through
    the network together, ``batch_size`` at a time; ``describe`` gets back the outputs of one image's views.

    Args:
        version: what the verdict says about the weights.
        network, device, dtype, channels_last: as in ``Batched``.
    """

    name: ClassVar[str]
    features: ClassVar[Mapping[str, str]]  # feature -> what the number means
    batch_size: ClassVar[int] = 8  # views per forward, and images prepared together

    def __init__(
        self,
        network: nn.Module,
        version: str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        super().__init__(network, self.name, self.batch_size, device, dtype, channels_last)
        self.version = version

    @classmethod
    @abstractmethod
    def load(cls, weights: Weights, device: str, dtype: torch.dtype = torch.float32) -> Self:
        """Build it from installed weights.

        Raises:
            WeightsMissing, WeightsCorrupt, WeightsMismatch: see models.loaders.
        """

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """The same architecture, small, with random weights: for tests."""

    @abstractmethod
    def preprocess(self, sample: Sample) -> Tensor:
        """One image -> its views, (k, channels, height, width) float32 on the CPU.

        All images prepared together have views of one size; a detector whose sizes vary sets ``batch_size = 1``.
        """

    @abstractmethod
    def describe(self, outputs: tuple[Tensor, ...], sample: Sample) -> Measurement:
        """The outputs of one image's k views (float32, CPU, finite) -> what they mean."""

    def score(self, samples: Sequence[Sample]) -> list[Measurement]:
        """Measure each image, in order.

        Raises:
            ScoreNotFinite: the network gave NaN or infinity.
            DeviceBusy: out of memory even for one view on the CPU.
        """
        found: list[Measurement] = []
        for start in range(0, len(samples), self.batch_size):
            found += self._score_group(samples[start : start + self.batch_size])
        return found

    def _score_group(self, samples: Sequence[Sample]) -> list[Measurement]:
        views = [self.preprocess(sample) for sample in samples]
        outputs = self._run(torch.cat(views))
        if not all(bool(torch.isfinite(output).all()) for output in outputs):
            raise ScoreNotFinite(f"{self.name} ({self.version}, {self.dtype}) gave NaN or infinity")
        counts = [len(view) for view in views]
        per_image = zip(*(output.split(counts) for output in outputs), strict=True)
        return [self.describe(output, sample) for output, sample in zip(per_image, samples, strict=True)]


def _is_out_of_memory(error: BaseException) -> bool:
    # torch has no class for a failed allocation on the CPU: it is a RuntimeError with this allocator's name in it.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
