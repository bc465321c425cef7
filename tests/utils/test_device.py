"""Which device is picked, and what is said about it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from utils.device import get_device, pick_device
from utils.errors import BadSettings


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> object:
    torch = pytest.importorskip("torch", reason="pip install -r requirements.txt un-skips it")

    def with_devices(gpus: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=139 * 2**30 + 5)
        )
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return with_devices


@pytest.mark.parametrize(
    ("gpus", "mps", "wanted", "expected"),
    [
        (0, False, "auto", ("cpu", "auto: no GPU")),
        (1, False, "auto", ("cuda:0", "auto: 1 GPU, 139 GiB")),
        (4, False, "auto", ("cuda:0", "auto: 4 GPUs, 139 GiB")),
        (0, True, "auto", ("mps", "auto: Apple GPU")),
        (1, False, "cpu", ("cpu", "as set")),
        (1, False, "cuda", ("cuda:0", "as set")),
        (2, False, "cuda:1", ("cuda:1", "as set")),
        (0, True, "mps", ("mps", "as set")),
    ],
)
def test_a_device_that_exists_is_picked_with_its_reason(
    machine, gpus: int, mps: bool, wanted: str, expected: tuple[str, str]
) -> None:
    machine(gpus, mps)
    assert pick_device(wanted) == expected
    assert get_device(wanted) == expected[0]


def test_without_a_wish_the_best_device_is_taken(machine) -> None:
    machine(gpus=0)
    assert get_device() == "cpu"
    machine(gpus=2)
    assert get_device() == "cuda:0"


@pytest.mark.parametrize("wanted", ["cuda", "cuda:1", "mps", "gpu", "", "meta", "cuda:x"])
def test_a_device_that_does_not_exist_is_refused_by_name(machine, wanted: str) -> None:
    machine(gpus=1 if wanted == "cuda:1" else 0)
    with pytest.raises(BadSettings, match=f"IMGV_DEVICE.*'{wanted}'"):
        pick_device(wanted)


def test_without_pytorch_the_device_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert pick_device("auto") == ("cpu", "PyTorch is not installed")
    with pytest.raises(BadSettings, match="pip install"):
        pick_device("cuda")
