"""Cards, hashes, opening and strict loading of weight files."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.loaders import SHIPPED, Weights, cards, find, load_into, load_state, record_card
from utils import persistence
from utils.errors import WeightsCorrupt, WeightsMismatch, WeightsMissing
from utils.persistence import Card, check, save_model, sha256_file


def card_of(path: Path, **changes: object) -> Card:
    card = Card(name="net", file=path.name, size=path.stat().st_size, sha256=sha256_file(path))
    return replace(card, **changes)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_file({"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}, path)
    return path


# --- cards


def test_our_cards_state_only_what_can_be_used() -> None:
    assert {"fatformer", "dinov2_base", "clip_h14", "clip_bigg", "mantranet"} <= cards().keys()
    for card in cards().values():
        assert re.fullmatch(r"([0-9a-f]{64})?", card.sha256), card.name
        pinned = card.url == "" or re.fullmatch(r"https://.+/[0-9a-f]{40}/.+", card.url)
        # Without one, the hash that the first download records is what binds the file.
        assert pinned or (not card.sha256 and "No commit" in card.note), f"{card.name} pins no commit"
        shipped = bool(card.file) and (SHIPPED / card.file).is_file()
        assert not card.file or (card.licence and (card.page or shipped)), card.name
        assert not card.sha256 or card.size, f"{card.name} has a hash but no size"


def test_every_file_we_ship_is_the_one_on_its_card() -> None:
    shipped = [card for card in cards().values() if card.file and (SHIPPED / card.file).is_file()]
    assert "effnet" in [card.name for card in shipped]
    for card in shipped:
        check(card, SHIPPED / card.file)
        assert (SHIPPED / card.model / "README.md").is_file(), f"{card.model} is not described for people"


def test_every_file_in_a_model_folder_is_on_its_card() -> None:
    listed = {SHIPPED / card.file for card in cards().values() if card.file}
    for folder in {path.parent for path in SHIPPED.glob("*/card.toml")}:
        files = {path for path in folder.iterdir() if not path.name.startswith(".")}  # .verified.json: known hashes
        assert {path for path in files if path.name not in ("card.toml", "README.md")} <= listed


def test_an_installation_adds_and_changes_cards(tmp_path: Path) -> None:
    (tmp_path / "weights.toml").write_text('[fatformer]\nsha256 = "ab"\n[mine]\nfile = "mine.pth"\n')
    found = cards(tmp_path)
    assert found["fatformer"].sha256 == "ab"
    assert found["fatformer"].file == cards()["fatformer"].file
    assert found["mine"] == Card(name="mine", model="mine", file="mine.pth")


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        "[a]\nfile = 'x'\nsha265 = 'typo'",
        "[a]\nsize = 3",
        "a = 1",
        "[a]\nname = 'b'\nfile = 'x'",
        "[a]\nfile = 3",
    ],
)
def test_a_bad_card_file_is_refused_and_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "weights.toml").write_text(text)
    with pytest.raises(WeightsCorrupt, match=re.escape(str(tmp_path / "weights.toml"))):
        cards(tmp_path)


def test_a_model_folder_of_the_installation_takes_the_place_of_ours(tmp_path: Path) -> None:
    save_model(tmp_path / "effnet", {"weight": np.ones(2, np.float16)}, {}, licence="mine")
    weights = Weights.at(tmp_path)
    assert weights.path("effnet") == tmp_path / "effnet" / "weights.safetensors"
    assert weights.card("effnet").train == "", "nothing of our card is left in it"
    assert weights.path("effnet_graph") == SHIPPED / "effnet" / "graph.onnx"
    assert [card.name for card in weights.of("effnet")] == ["effnet", "effnet_graph"]


def test_a_recorded_hash_is_that_of_the_file_it_was_recorded_of(tmp_path: Path) -> None:
    record_card("fatformer", {"size": 3, "sha256": "ab"}, tmp_path)  # of the published file
    assert cards(tmp_path)["fatformer"].sha256 == "ab"
    save_model(tmp_path / "fatformer", {"a": np.zeros(2, np.float32)}, {}, licence="Apache-2.0")
    own = cards(tmp_path)["fatformer"]
    assert (own.file, own.sha256) == ("fatformer/weights.safetensors", sha256_file(tmp_path / own.file))
    assert Weights.at(tmp_path).path("fatformer") == tmp_path / own.file
    record_card("fatformer", {"file": "mine.pth", "sha256": "cd"}, tmp_path)  # by name: the user's own choice
    assert cards(tmp_path)["fatformer"].sha256 == "cd"


def test_an_unknown_card_suggests_the_nearest() -> None:
    with pytest.raises(WeightsMissing, match="did you mean 'fatformer'"):
        Weights(cards(), ()).path("fatfomer")


# --- find and check


def test_a_missing_file_names_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"python -m scripts\.download_weights fatformer"):
        find(cards()["fatformer"], [tmp_path])
    with pytest.raises(WeightsMissing, match=r"python -m scripts\.build_profile full"):
        find(cards()["dino_svm"], [tmp_path])


def test_the_first_folder_that_has_the_file_wins(tmp_path: Path) -> None:
    for name in "bc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "w").touch()
    assert find(Card(name="x", file="w"), [tmp_path / name for name in "abc"]) == tmp_path / "b" / "w"


def test_the_right_file_passes(file: Path) -> None:
    check(card_of(file), file)
    assert not (file.parent / persistence.VERIFIED).exists(), "a small file needs no cache"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 1}, "expected 1 bytes, found"),
        ({"sha256": "0" * 64}, "expected sha256 " + "0" * 64 + ", found [0-9a-f]{64}"),
        ({"sha256": ""}, "no sha256 is known.*--from"),
    ],
)
def test_a_file_that_is_not_the_cards_is_refused(file: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(WeightsCorrupt, match=message) as caught:
        check(card_of(file, **change), file)
    assert file.name in str(caught.value)
    assert "scripts.download_weights net" in str(caught.value)


def test_a_large_file_is_hashed_once_and_again_when_it_changes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []

    def counting(path: Path) -> str:
        hashed.append(path)
        return sha256_file(path)

    card = card_of(file)
    monkeypatch.setattr(persistence, "CACHE_FROM_BYTES", 0)
    monkeypatch.setattr(persistence, "sha256_file", counting)
    check(card, file)
    check(card, file)
    assert len(hashed) == 1
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    os.utime(file, ns=(1, 1))
    with pytest.raises(WeightsCorrupt, match="sha256"):
        check(card, file)
    assert len(hashed) == 2


@pytest.mark.parametrize("content", ["", "[]", "{broken", "[1]"])
def test_a_broken_hash_cache_is_rebuilt(file: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(persistence, "CACHE_FROM_BYTES", 0)
    (file.parent / persistence.VERIFIED).write_text(content)
    check(card_of(file), file)
    assert card_of(file).sha256 in (file.parent / persistence.VERIFIED).read_text()


# --- load_state


def test_safetensors_and_torch_files_open_alike(file: Path, tmp_path: Path) -> None:
    state = load_state(file)
    torch.save(state, tmp_path / "plain.pth")
    wrapped = {"model": {f"module.{key}": value for key, value in state.items()}, "args": argparse.Namespace(lr=0.1)}
    torch.save(wrapped | {"epoch": 3}, tmp_path / "wrapped.pth")
    torch.save({"state_dict": state}, tmp_path / "lightning.ckpt")
    for name in ("plain.pth", "wrapped.pth", "lightning.ckpt"):
        other = load_state(tmp_path / name)
        assert other.keys() == state.keys()
        assert all(torch.equal(other[key], state[key]) for key in state)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "x": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    with pytest.raises(WeightsCorrupt, match=r"bomb\.pth cannot be opened as plain tensors"):
        load_state(tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"<html>not found</html>", b"PK\x03\x04"])
def test_a_file_that_holds_no_tensors_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsCorrupt, match=re.escape(name)):
        load_state(tmp_path / name)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"epoch": 3}, {"model": {"weight": [1.0]}}, torch.ones(3)])
def test_a_file_with_something_else_than_a_table_of_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsCorrupt, match="not a table of tensors"):
        load_state(tmp_path / "x.pth")


# --- load_into


def meta_linear() -> nn.Linear:
    with torch.device("meta"):
        return nn.Linear(3, 2)


def test_a_network_takes_the_files_tensors_without_a_copy(file: Path) -> None:
    state = load_state(file)
    network = load_into(meta_linear(), state)
    assert network.weight.data_ptr() == state["weight"].data_ptr()
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(network(torch.ones(1, 3)), torch.tensor([[4.0, 13.0]]))


def test_the_message_of_a_mismatch_lists_each_kind(file: Path) -> None:
    state = {"weight": torch.ones(3, 2), "extra": torch.ones(1)}
    with pytest.raises(WeightsMismatch) as caught:
        load_into(meta_linear(), state)
    assert str(caught.value) == (
        "Linear: 1 missing: bias; 1 unexpected: extra; 1 another shape: weight (file (3, 2), network (2, 3))"
    )


def test_a_long_mismatch_is_cut() -> None:
    state = {f"key{number:02}": torch.ones(1) for number in range(20)}
    with pytest.raises(WeightsMismatch, match=r"20 unexpected: key00, .*key07 and 12 more$"):
        load_into(meta_linear(), state)


def test_names_are_changed_and_left_out_on_request(file: Path) -> None:
    state = {f"old.{key}": value for key, value in load_state(file).items()} | {"junk": torch.ones(1)}
    network = load_into(
        meta_linear(), state, rename=lambda key: key.removeprefix("old.") if key.startswith("old.") else None
    )
    assert network.bias.tolist() == [1.0, 1.0]


def test_aliases_must_agree(file: Path) -> None:
    state = load_state(file)
    both = {f"{alias}.{key}": value.clone() for alias in "ab" for key, value in state.items()}
    load_into(meta_linear(), both, rename=lambda key: key[2:])
    both["b.weight"] = both["b.weight"] + 1
    with pytest.raises(WeightsMismatch, match=r"b\.weight .* weight"):
        load_into(meta_linear(), both, rename=lambda key: key[2:])
    both["b.weight"] = torch.ones(2, 2)
    with pytest.raises(WeightsMismatch, match=r"b\.weight"):
        load_into(meta_linear(), both, rename=lambda key: key[2:])


def test_precision_follows_the_request_not_the_file() -> None:
    source = nn.BatchNorm1d(2)
    half = {key: value.half() if value.is_floating_point() else value for key, value in source.state_dict().items()}
    for asked, given in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        with torch.device("meta"):
            network = nn.BatchNorm1d(2)
        load_into(network, half, dtype=asked)
        assert network.weight.dtype == network.running_mean.dtype == given
        assert network.num_batches_tracked.dtype == torch.int64


def test_channels_last_changes_the_memory_format_only() -> None:
    source = nn.Conv2d(3, 4, 3)
    with torch.device("meta"):
        network = nn.Conv2d(3, 4, 3)
    load_into(network, source.state_dict(), channels_last=True)
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(network.weight, source.weight)


def test_a_buffer_that_no_file_can_fill_is_our_bug() -> None:
    class Odd(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("grid", torch.zeros(2), persistent=False)

    with torch.device("meta"):
        network = Odd()
    with pytest.raises(RuntimeError, match="grid"):
        load_into(network, nn.Linear(3, 2).state_dict())


def test_a_file_in_the_hub_cache_is_found_by_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--own--net" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    url = f"https://huggingface.co/own/net/resolve/{commit}/model.safetensors"
    assert find(Card(name="net", file="net.safetensors", url=url), []) == snapshot / "model.safetensors"
    with pytest.raises(WeightsMissing):
        find(Card(name="net", file="net.safetensors", url=url.replace("0123", "4567")), [])
