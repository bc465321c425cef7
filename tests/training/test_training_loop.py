"""Which pictures are drawn, and a loop that is stopped and goes on, on a network of a few weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from training import loop as training
from training.loop import (
    Batch,
    Drawn,
    Picture,
    Recipe,
    draw_weights,
    fit,
    plot_log,
    prepare,
    read_datasets,
)
from utils.contracts import RgbArray
from utils.errors import BadSettings, TableError, TrainingDiverged
from utils.persistence import load_model, read_cards


def pictures(*groups: tuple[int, str, str, int]) -> list[Picture]:
    """(label, source, content, how many)"""
    return [
        Picture(Path(f"{source}{index}"), label, source, "train", content)
        for label, source, content, count in groups
        for index in range(count)
    ]


def mass(given: list[Picture], **wanted: object) -> float:
    weights = draw_weights(given)
    chosen = [all(getattr(each, key) == value for key, value in wanted.items()) for each in given]
    return float(weights[chosen].sum())


def test_both_labels_are_drawn_equally_often() -> None:
    given = pictures((0, "a", "", 30), (1, "b", "", 2), (1, "c", "", 5))
    assert mass(given, label=0) == pytest.approx(0.5)
    assert draw_weights(given).sum() == pytest.approx(1)


def test_a_content_says_nothing_about_the_label() -> None:
    given = pictures((0, "a", "photo", 90), (0, "b", "art", 10), (1, "c", "photo", 10), (1, "d", "art", 90))
    for content in ("photo", "art"):
        assert mass(given, label=0, content=content) == pytest.approx(mass(given, label=1, content=content))


def test_a_content_of_one_label_only_is_still_drawn() -> None:
    given = pictures((0, "a", "photo", 60), (0, "b", "receipt", 20), (1, "c", "photo", 80))
    assert mass(given, content="receipt") == pytest.approx(0.5 * 20 / 80)
    assert mass(given, label=1) == pytest.approx(0.5)


def test_a_large_source_is_drawn_more_often_but_each_of_its_pictures_less() -> None:
    given = pictures((0, "large", "", 100), (0, "small", "", 1), (1, "x", "", 1))
    assert mass(given, source="large") == pytest.approx(10 * mass(given, source="small"))


def test_several_datasets_are_read_relative_to_their_own_folders(tmp_path: Path) -> None:
    for name, label in (("one", "real"), ("two", "ai")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "d.csv").write_text(f"filepath,label,source\nx.png,{label},s\ny.png,manipulated,s\n")
    found = read_datasets([tmp_path / "one" / "d.csv", tmp_path / "two" / "d.csv"])
    assert [(each.path, each.label, each.split) for each in found] == [
        (tmp_path / "one" / "x.png", 0, "train"),
        (tmp_path / "two" / "x.png", 1, "train"),
    ]


@pytest.mark.parametrize("text", ["filepath,label\nx,real\n", "filepath,label,source\nx,real,s\n"])
def test_a_dataset_that_cannot_be_trained_from_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(TableError, match=r"column source|needs real and ai"):
        read_datasets([tmp_path / "d.csv"])


calls: list[Path] = []


def load(path: Path) -> tuple[RgbArray, bool]:
    calls.append(path)
    if path.name == "broken":
        raise ValueError("not an image")
    return np.full((4, 5, 3), 7, np.uint8), path.name == "lossy"


def test_pictures_are_decoded_once_and_unreadable_ones_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.clear()
    given = [Picture(tmp_path / name, 0, "s", "train") for name in ("plain", "broken", "lossy")]
    ready = prepare(given, tmp_path / "cache", load, jobs=1)
    assert [each.lossy for each in ready] == [False, True]
    assert ready[0].pixels.shape == (4, 5, 3)
    assert "broken: not an image" in capsys.readouterr().out
    again = prepare(given, tmp_path / "cache", load, jobs=1)
    assert again == ready
    assert [path.name for path in calls] == ["plain", "broken", "lossy", "broken"]
    (tmp_path / "plain").write_bytes(b"another file of that name")
    prepare(given[:1], tmp_path / "cache", load, jobs=1)
    assert calls[-1].name == "plain"


def view(picture: Picture, rng: np.random.Generator) -> Batch:
    """Two numbers; their sum gives the label, and noise comes from the draw."""
    noise = torch.from_numpy(rng.normal(0, 0.1, 2)).float()
    return noise + (picture.label - 0.5), torch.tensor(float(picture.label))


def loss(network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    found = network(batch[0])[:, 0]
    return {"loss": nn.functional.binary_cross_entropy_with_logits(found.float(), batch[1])}


def samples(seed: int = 0) -> Drawn:
    given = pictures((0, "a", "", 3), (1, "b", "", 3))
    return Drawn(given, draw_weights(given), view, seed)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.Linear(4, 1))


def recipe(steps: int, **changes: float) -> Recipe:
    return Recipe(minutes=10, steps=steps, batch=8, rate=0.05, workers=0, log_steps=5, **changes)  # type: ignore[arg-type]


def test_sample_i_depends_on_the_seed_and_i_alone() -> None:
    assert torch.equal(samples()[5][0], samples()[5][0])
    assert not torch.equal(samples()[5][0], samples(seed=1)[5][0])
    assert not torch.equal(samples()[5][0], samples()[6][0])


def test_training_learns_and_logs_what_it_learnt(tmp_path: Path) -> None:
    trained = fit(network(), samples(), loss, recipe(60), tmp_path)
    assert not trained.training
    rows = [json.loads(line) for line in (tmp_path / training.LOG).read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(5, 61, 5))
    assert rows[-1]["loss"] < 0.3 < rows[0]["loss"]
    batch = [samples()[index] for index in range(1000, 1032)]
    right = (trained(torch.stack([x for x, _ in batch]))[:, 0] > 0) == (torch.stack([y for _, y in batch]) > 0.5)
    assert right.float().mean() > 0.95
    assert plot_log(tmp_path)
    assert (tmp_path / training.PLOT).stat().st_size > 1000


@pytest.mark.parametrize(("decay", "is_the_last"), [(0.0, True), (0.9, False)])
def test_what_is_kept_is_an_average_of_the_steps(tmp_path: Path, decay: float, is_the_last: bool) -> None:
    last = network()
    kept = fit(last, samples(), loss, recipe(5, average=decay), tmp_path)
    assert torch.equal(kept.state_dict()["0.weight"], last.state_dict()["0.weight"]) == is_the_last


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    one, two = (fit(network(), samples(), loss, recipe(20), tmp_path / name) for name in ("a", "b"))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def loss_and_one(network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    return {**loss(network, batch), "one": torch.ones(())}


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(network(), samples(), loss_and_one, recipe(20), tmp_path / "whole")

    def stop_at(index: int) -> Batch:
        if index == 12 * 8:
            raise KeyboardInterrupt
        return samples()[index]

    class Stopping(Drawn):
        def __getitem__(self, index: int) -> Batch:
            return stop_at(index)

    stopping = samples()
    stopping.__class__ = Stopping
    with pytest.raises(KeyboardInterrupt):
        fit(network(), stopping, loss_and_one, recipe(20, save_seconds=0.0), tmp_path / "stopped")
    resumed = fit(network(), samples(), loss_and_one, recipe(20), tmp_path / "stopped", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, resumed.state_dict()[name], atol=1e-6), name
    texts = [(tmp_path / name / training.LOG).read_text() for name in ("whole", "stopped")]
    logs = [[json.loads(line) for line in text.splitlines()] for text in texts]
    assert [row["step"] for row in logs[1]] == [row["step"] for row in logs[0]]
    for key in ("step", "loss"):  # but of the row that both runs share each knows a part
        assert [row[key] for row in logs[1] if row["step"] != 15] == [row[key] for row in logs[0] if row["step"] != 15]
    assert [row["one"] for row in logs[1]] == [1.0] * 4  # a mean over the steps that the row's run made


def test_a_checkpoint_of_other_samples_is_refused(tmp_path: Path) -> None:
    fit(network(), samples(), loss, recipe(2), tmp_path)
    with pytest.raises(BadSettings, match="--batch 8 --seed 0"):
        fit(network(), samples(), loss, recipe(4, seed=1), tmp_path, resume=True)


def test_a_loss_that_is_no_number_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    fit(network(), samples(), loss, recipe(2), tmp_path)
    before = (tmp_path / training.CHECKPOINT).read_bytes()
    with pytest.raises(TrainingDiverged, match="step 2"):
        fit(network(), samples(), lambda *given: {"loss": loss(*given)["loss"] / 0}, recipe(4), tmp_path, resume=True)
    assert (tmp_path / training.CHECKPOINT).read_bytes() == before


def test_the_rate_rises_then_falls_to_nothing() -> None:
    plan = recipe(100)
    rates = [plan.rate_at(progress) for progress in (0.0, 0.025, 0.05, 0.5, 1.0)]
    assert rates[0] < rates[1] < rates[2] == pytest.approx(0.05)
    assert rates[2] > rates[3] > rates[4] == pytest.approx(0, abs=1e-9)


def test_a_trained_model_is_a_folder_with_half_precision_weights_their_metadata_and_card(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    training.save_trained(folder, network().state_dict(), {"architecture": "x"}, "toy")
    with safe_open(folder / "weights.safetensors", "pt") as file:
        assert file.metadata() == {"architecture": "x"}
        assert file.get_tensor("0.weight").dtype == torch.float16
        assert file.get_tensor("1.num_batches_tracked").dtype == torch.int64
    card = read_cards(folder)["net"]
    assert (card.layout, card.licence, card.train) == ("toy", "MIT", "python -m scripts.train_net")
    arrays, _ = load_model(folder)
    np.testing.assert_allclose(arrays["0.weight"], network().state_dict()["0.weight"], rtol=1e-3)
