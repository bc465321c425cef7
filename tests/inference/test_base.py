"""Batching, order, memory and non-finite outputs of every torch detector."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inference.base import TorchDetector
from models.loaders import Weights
from utils.contracts import Measurement, Sample
from utils.errors import DeviceBusy, ScoreNotFinite


class Recorder(nn.Module):
    """Mean of each view; fails like a full device whenever a batch is larger than it has room for."""

    def __init__(self, room: dict[str, int], error: type[BaseException] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.room = room
        self.error = error
        self.batches: list[tuple[int, str]] = []
        self.grad_enabled: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append((len(x), x.device.type))
        self.grad_enabled = torch.is_grad_enabled()
        if len(x) > self.room[x.device.type]:
            raise self.error("DefaultCPUAllocator: can't allocate memory" if self.error is RuntimeError else "full")
        if x.device.type == "meta":  # stands for a GPU; holds no values
            return torch.zeros(len(x))
        return x.mean((1, 2, 3))


class Brightness(TorchDetector):
    """As many views as the image's width, each the whole image."""

    name: ClassVar[str] = "brightness"
    features: ClassVar[Mapping[str, str]] = {"brightness": "mean, 0..1", "views": "count"}
    batch_size: ClassVar[int] = 4

    @classmethod
    def load(cls, weights: Weights, device: str, dtype: torch.dtype = torch.float32) -> Self:
        raise NotImplementedError

    @classmethod
    def tiny(cls) -> Self:
        return cls(Recorder({"cpu": 99}), "tiny")

    def preprocess(self, sample: Sample) -> Tensor:
        value = float(sample.rgb[0, 0, 0]) / 255
        return torch.full((sample.width, 3, 2, 2), value if value < 1 else float("nan"))

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        mean = self.network(views)
        return mean, views[:, 0]

    def describe(self, outputs: tuple[Tensor, ...], sample: Sample) -> Measurement:
        mean, maps = outputs
        assert maps.shape == (len(mean), 2, 2)
        return Measurement({"brightness": float(mean.mean()), "views": float(len(mean))})


def image(value: int, width: int = 1) -> Sample:
    return Sample("x", b"", np.full((1, width, 3), value, np.uint8), "PNG")


def scores(detector: TorchDetector, *samples: Sample) -> list[float]:
    return [measured.features["brightness"] for measured in detector.score(samples)]


def test_images_are_batched_and_keep_their_order() -> None:
    detector = Brightness.tiny()
    samples = [image(value) for value in range(0, 200, 20)]
    assert scores(detector, *samples) == pytest.approx([value / 255 for value in range(0, 200, 20)])
    assert [size for size, _ in detector.network.batches] == [4, 4, 2]
    assert detector.network.grad_enabled is False


def test_no_images_give_no_measurements() -> None:
    assert Brightness.tiny().score([]) == []


def test_each_image_gets_back_its_own_views() -> None:
    detector = Brightness.tiny()
    found = detector.score([image(51, width=5), image(102), image(153, width=2)])
    assert [measured.features["views"] for measured in found] == [5, 1, 2]
    assert [measured.features["brightness"] for measured in found] == pytest.approx([0.2, 0.4, 0.6])
    assert max(size for size, _ in detector.network.batches) == 4, "views, not images, fill a batch"


def test_a_full_device_halves_the_batch_and_remembers(caplog: pytest.LogCaptureFixture) -> None:
    detector = Brightness(Recorder({"cpu": 2}), "x")
    samples = [image(value) for value in (0, 51, 102, 153)]
    with caplog.at_level(logging.WARNING):
        assert scores(detector, *samples) == pytest.approx([0, 0.2, 0.4, 0.6])
    assert [size for size, _ in detector.network.batches] == [4, 2, 2]
    assert "batch is now 2" in caplog.text
    detector.score(samples)
    assert [size for size, _ in detector.network.batches[3:]] == [2, 2]


def test_a_device_without_room_for_one_view_is_left_for_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    detector = Brightness(Recorder({"meta": 0, "cpu": 99}), "x", device="meta", dtype=torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        assert scores(detector, image(51), image(102)) == pytest.approx([0.2, 0.4])
    assert detector.network.batches == [(2, "meta"), (2, "meta"), (1, "meta"), (2, "cpu")]
    assert detector.device.type == "cpu"
    assert detector.dtype == torch.float32
    assert "moved to the CPU" in caplog.text


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_a_cpu_without_room_for_one_view_is_a_coded_error(error: type[BaseException]) -> None:
    detector = Brightness(Recorder({"cpu": 0}, error), "x")
    with pytest.raises(DeviceBusy, match=f"brightness: not enough memory.*{error.__name__}"):
        detector.score([image(51)])


def test_another_failure_is_not_taken_for_a_full_memory() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Brightness(Broken(), "x").score([image(51)])


def test_a_network_that_gives_nan_gives_no_number() -> None:
    with pytest.raises(ScoreNotFinite, match="brightness"):
        Brightness.tiny().score([image(51), image(255)])


def test_the_requested_precision_and_memory_format_reach_the_network() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x).mean((1, 2, 3))

    detector = Brightness(Spy(3, 1, 1), "x", dtype=torch.bfloat16, channels_last=True)
    assert np.isfinite(scores(detector, image(51), image(102))).all()
    assert seen[0].dtype == detector.network.weight.dtype == torch.bfloat16
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
