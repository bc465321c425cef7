"""The map of edits: its network's numbers, which weights belong together, and where it is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inference.detector import Judgement, build_verifier
from inference.edit_map import CUT, SMALLEST, STRIDE, EditMap, heatmap
from inference.repeats import repeats
from inference.report import write_artifacts
from models.edit_map_net import EditMapNet
from models.loaders import Weights
from tests.inference.installing import install
from tests.pictures import sample_of
from utils.contracts import RgbArray
from utils.errors import WeightsMismatch
from utils.persistence import sha256_file
from utils.settings import ModelSettings


def installed(folder: Path, network: EditMapNet, mantranet: str = "") -> Weights:
    install(folder, "mantranet_compact", network.mantranet.state_dict())
    trained_on = mantranet or sha256_file(folder / "mantranet_compact.safetensors")
    return install(folder, "edit_map", network.decoder.state_dict(), {"mantranet": trained_on})


def test_trained_files_give_the_networks_map(tmp_path: Path, photograph: RgbArray) -> None:
    torch.manual_seed(0)
    network = EditMapNet().eval()
    found = EditMap(installed(tmp_path, network)).draw(sample_of(photograph))["edit_map"]
    mirrored = np.pad(photograph, ((2, 7), (2, 2), (0, 0)), mode="symmetric")  # 427 px: to a multiple of STRIDE
    repeated = np.pad(repeats(photograph), ((0, 0), (0, 5), (0, 0)))
    with torch.inference_mode():
        images = torch.from_numpy(mirrored).permute(2, 0, 1)[None].float()
        expected = network(images, torch.from_numpy(repeated)[None]).sigmoid()[0, 0].numpy()
    assert found.shape == (54, 80)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert expected.std() > 1e-4


def test_a_decoder_of_another_mantranet_is_refused(tmp_path: Path, photograph: RgbArray) -> None:
    weights = installed(tmp_path, EditMapNet(), mantranet="0000")
    with pytest.raises(WeightsMismatch, match="edit_map was trained on mantranet_compact 0000, not "):
        EditMap(weights).draw(sample_of(photograph))


def test_the_shipped_map_marks_a_copy_and_its_original(photograph: RgbArray) -> None:
    image = photograph.copy()
    image[170:250, 360:450] = photograph[150:230, 60:150]
    truth = np.zeros(image.shape[:2], np.float32)
    truth[150:230, 60:150] = truth[170:250, 360:450] = 1
    found = EditMap(Weights.at(Path("nowhere"))).draw(sample_of(image))["edit_map"]
    marked = cv2.resize(found, truth.shape[::-1]) > CUT
    assert 2 * (marked * truth).sum() > 0.6 * (marked.sum() + truth.sum())


def test_an_image_that_is_too_small_has_no_map(tmp_path: Path) -> None:
    assert EditMap(Weights.at(tmp_path)).draw(sample_of(np.zeros((SMALLEST - 1, 500, 3)))) == {}


def test_a_large_image_is_reduced_and_keeps_its_aspect() -> None:
    def network(pixels: NDArray[np.uint8], repeats: NDArray[np.float32]) -> NDArray[np.float32]:
        height, width = (side // STRIDE for side in repeats.shape[2:])
        assert pixels.shape == (1, height * STRIDE + 4, width * STRIDE + 4, 3)
        return np.zeros((1, 1, height, width), np.float32)

    assert heatmap(network, np.zeros((1000, 2000, 3), np.uint8)).shape == (64, 128)


def test_only_a_report_draws_it(tmp_path: Path, photograph: RgbArray, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(EditMap, "draw", lambda self, sample: drawn.append(1) or {"edit_map": np.eye(4, dtype="f4")})
    with build_verifier(ModelSettings(profile="light")) as verifier:
        (judgement,) = verifier.verify([sample_of(photograph)])
    assert not drawn
    written = write_artifacts(tmp_path, sample_of(photograph), judgement)
    assert drawn == [1]
    assert Path(written["edit_map"]).stat().st_size > 0
    assert "Edits: places that were changed" in Path(written["report"]).read_text()


def test_a_report_is_written_without_it_where_it_fails(
    tmp_path: Path, photograph: RgbArray, caplog: pytest.LogCaptureFixture
) -> None:
    with build_verifier(ModelSettings(profile="light")) as verifier:
        (judgement,) = verifier.verify([sample_of(photograph)])
    broken: Judgement = replace(judgement, further=EditMap(installed(tmp_path, EditMapNet(), mantranet="0000")))
    written = write_artifacts(tmp_path / "out", sample_of(photograph), broken)
    assert {"report", "verdict"} <= written.keys()
    assert "edit_map" not in written
    assert "no map of edits" in caplog.text
    for told in ("report", "verdict"):
        assert "no map of edits: weights_mismatch" in Path(written[told]).read_text(encoding="utf-8")
