"""GhostNet forensics: residuals against a literal implementation, the backbone against timm, pooling, training."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray

from models.ghostnet_net import GhostNetForensics, Residual, pool


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(5)


@pytest.fixture(scope="module")
def network() -> GhostNetForensics:
    torch.manual_seed(6)
    built = GhostNetForensics().eval().requires_grad_(False)
    for module in built.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # away from the neutral start
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return built


def literal_residuals(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each filter says of the pixel it predicts, written out; (H, W, 3) -> (12, H, W)."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    y = 0.299 * r + 0.587 * g + 0.114 * b
    cb, cr = 0.5 * (b - y) / (1 - 0.114), 0.5 * (r - y) / (1 - 0.299)

    def square(p: NDArray[np.float64]) -> float:
        return (2 * (p[1, 2] + p[3, 2] + p[2, 1] + p[2, 3]) - p[1, 1] - p[1, 3] - p[3, 1] - p[3, 3] - 4 * p[2, 2]) / 4

    def kv(p: NDArray[np.float64]) -> float:
        near = p[1, 2] + p[3, 2] + p[2, 1] + p[2, 3]
        diagonal = p[1, 1] + p[1, 3] + p[3, 1] + p[3, 3]
        far = p[0, 2] + p[4, 2] + p[2, 0] + p[2, 4]
        knights = p[0, 1] + p[0, 3] + p[4, 1] + p[4, 3] + p[1, 0] + p[3, 0] + p[1, 4] + p[3, 4]
        corners = p[0, 0] + p[0, 4] + p[4, 0] + p[4, 4]
        return (8 * near - 6 * diagonal - 2 * far + 2 * knights - corners - 12 * p[2, 2]) / 12

    def all_of(p: NDArray[np.float64]) -> list[float]:
        # An even filter has no middle: its last but one tap, or its last, lies on the pixel.
        lines = [
            [x[2] - x[1], (x[1] - 2 * x[2] + x[3]) / 2, (x[0] - 3 * x[1] + 3 * x[2] - x[3]) / 3]
            for x in (p[2], p[:, 2])
        ]
        return [value for pair in zip(*lines, strict=True) for value in pair] + [square(p), kv(p)]

    out = np.zeros((12, *y.shape))
    padded = [np.pad(plane, 2, mode="edge") for plane in (y, cb, cr)]
    for i, j in np.ndindex(y.shape):
        luma, *chroma = (plane[i : i + 5, j : j + 5] for plane in padded)
        values = np.array(all_of(luma))
        colours = np.array([f(plane) for plane in chroma for f in (square, kv)])
        out[:, i, j] = np.clip(np.concatenate([values / 8, colours / 2]), -1, 1)
    return out


def test_residuals_are_the_literal_filters() -> None:
    rgb = np.random.default_rng(0).normal(120, 6, (9, 12, 3)).round()
    found = Residual()(torch.from_numpy(rgb).permute(2, 0, 1)[None].float())[0].numpy()
    expected = literal_residuals(rgb)
    assert (np.abs(expected) < 1).mean() > 0.5, "not all truncated"
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_flat_and_ramped_content_leaves_no_residual_in_the_higher_orders() -> None:
    ramp = torch.arange(20.0).expand(1, 3, 20, 20) * 3 + 40
    found = Residual()(ramp)[..., 4:-4, 4:-4]
    assert found[:, 2:].abs().max() < 1e-5
    assert found[:, 0].abs().min() > 0.1, "the first order sees the ramp"


def test_the_backbone_is_timms_ghostnet(network: GhostNetForensics) -> None:
    reference = timm.create_model("ghostnet_100", pretrained=False, in_chans=12, num_classes=1000).eval()
    loaded = reference.load_state_dict(network.backbone.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert {key.split(".")[0] for key in loaded.missing_keys} == {"conv_head", "classifier"}
    images = torch.rand(2, 3, 96, 64) * 255
    with torch.inference_mode():
        features = reference.forward_features(network.residual(images))
        logits, patches = network(images)
        weight, bias = network.head.weight[0, :, 0, 0], network.head.bias
        expected = torch.einsum("c,bchw->bhw", weight, features) + bias
    assert patches.shape == (2, 3, 2)
    torch.testing.assert_close(patches, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, patches.flatten(1).exp().mean(dim=1).log(), rtol=1e-4, atol=1e-5)


def test_the_image_score_agrees_with_its_patches() -> None:
    torch.testing.assert_close(pool(torch.full((3, 40), -2.5)), torch.full((3,), -2.5))
    patches = torch.full((64,), -4.0)
    patches[7] = 8.0
    assert pool(patches) == pytest.approx(3.84, abs=0.01)
    assert pool(torch.full((9,), 300.0)) == pytest.approx(300), "no overflow"
    batch = torch.randn(5, 30)
    assert (pool(batch) >= batch.mean(dim=1)).all()
    assert (pool(batch) <= batch.amax(dim=1)).all()


def test_every_weight_learns_and_filters_do_not() -> None:
    network = GhostNetForensics("ghostnet_050").train()
    image_logits, patches = network(torch.rand(4, 3, 64, 64) * 255)
    torch.nn.functional.binary_cross_entropy_with_logits(image_logits, torch.tensor([0.0, 1, 0, 1])).backward()
    assert patches.shape == (4, 2, 2)
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert without == []
    assert not any(name.startswith("residual.") for name, _ in network.named_parameters())
    assert "residual.kernels" in network.state_dict()


def test_half_precision_sees_the_same_residuals() -> None:
    images = torch.randint(0, 256, (1, 3, 16, 16)).float()
    residual = Residual()
    full = residual(images)
    half = residual.to(torch.bfloat16)(images.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0, atol=0.004)
