"""Fit the temperature, bias and prompt weights of a CLIP detector: python -m scripts.fit_clip_prompts --help

The manifest is a CSV with filepath, label (real | ai), source and, if it has one, split (train | val). Every image is
embedded as it is and as the web delivers it. The rows of split train are fitted to, those of val only measured. How far
prompt weights may leave the even ensemble is chosen by cross-validation over sources; "not at all" is a choice.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fusion.estimators import FloatArray, sigmoid
from fusion.train_fusion import assign_folds
from inference.clip_models import CLIP_DETECTORS, TextEmbeddings
from models.loaders import Weights
from training.embeddings import embed_manifest
from training.feature_table import IntArray, Table, source_weights
from training.metrics import evaluate, log_loss
from utils.contracts import Sample
from utils.deliveries import DELIVERIES
from utils.device import get_device
from utils.errors import TableError
from utils.exits import Exit, command, command_parser
from utils.settings import load_settings

# Strength of the pull towards even prompt weights, in nats per squared log-weight; inf keeps them even.
PENALTIES = (math.inf, 1.0, 0.1, 0.01, 0.001)
# Likewise towards the temperature we started from: classes that separate perfectly would drive it to infinity.
TEMPERATURE_PENALTY = 1e-3
STEPS = 200  # of L-BFGS; a problem of some twenty parameters
FLOOR = 1e-6  # a probability in the log loss is never 0 or 1


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m scripts.fit_clip_prompts", __doc__)
    parser.add_argument("name", choices=tuple(CLIP_DETECTORS), help="detector")
    parser.add_argument("--manifest", type=Path, required=True, help="CSV: filepath,label,source[,split]")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    return _run(arguments.name, arguments.manifest, arguments.seed)


def _run(name: str, manifest: Path, seed: int) -> int:
    settings = load_settings()
    device = get_device(settings.models.device)
    weights = Weights.at(settings.models.weights_dir)
    detector = CLIP_DETECTORS[name].load(weights, device)

    def embed(samples: Sequence[Sample]) -> list[NDArray[np.float32]]:
        return [np.asarray(detector.embed(sample)) for sample in samples]

    cache = settings.models.weights_dir / "embeddings" / f"{name}-{weights.card(name).sha256[:12]}"
    table = embed_manifest(manifest, DELIVERIES, lambda: embed, cache, settings.decode).table
    training, validation = (table.rows(table.splits == split) for split in ("train", "val"))
    fitted, losses = fit(detector.text, training, seed)
    for penalty, loss in losses.items():
        print(f"prompt weights with penalty {penalty:g}: out-of-fold log loss {loss:.4f}")
    has_validation = len(np.unique(validation.labels)) == 2
    measured = validation if has_validation else training
    print(f"measured on the {'val' if has_validation else 'train'} split, called AI from 0.5:")
    for title, text in (("before", detector.text), ("after", fitted)):
        print(f"  {title}: {_metrics(measured, text, seed)}")
    print(f"fitted on {fitted.fitted}; {fitted.install(detector.text_card(), settings.models.weights_dir)}")
    return Exit.DONE


def fit(text: TextEmbeddings, table: Table, seed: int) -> tuple[TextEmbeddings, dict[float, float]]:
    """Choose the penalty by log loss on held-out sources, then fit to all rows.

    Returns:
        The fitted text embeddings, and the out-of-fold log loss of each penalty.

    Raises:
        TableError: too few sources to cross-validate, or images of one label only.
    """
    if len(np.unique(table.labels)) < 2:
        raise TableError("the train split holds one label only")
    folds = assign_folds(table, seed)
    losses = {penalty: _held_out_loss(text, table, folds, penalty) for penalty in PENALTIES}
    best = min(losses, key=losses.__getitem__)
    sources = len(np.unique(table.sources))
    return replace(fit_at(text, table, best), fitted=f"{len(table)} rows of {sources} sources"), losses


def _held_out_loss(text: TextEmbeddings, table: Table, folds: IntArray, penalty: float) -> float:
    probabilities = np.empty(len(table))
    for fold in np.unique(folds):
        fitted = fit_at(text, table.rows(folds != fold), penalty)
        probabilities[folds == fold] = _probabilities(fitted, table.matrix[folds == fold])
    weights = source_weights(table.labels, table.sources)
    return float(log_loss(table.labels, probabilities, weights[None])[0])


def fit_at(text: TextEmbeddings, table: Table, penalty: float) -> TextEmbeddings:
    """Logistic regression on the cosine difference, with the log-weights of the prompts inside it.

    The temperature is its own exponential, so it stays positive: where generated images are not nearer to the generated
    prompts, it goes towards 0 and the score towards 0.5, never the wrong way round.
    """
    prompts = torch.cat([text.real, text.generated]).double()
    cosines = torch.from_numpy(table.matrix) @ prompts.T  # n x (real prompts, generated prompts)
    between = prompts @ prompts.T
    sizes = [len(text.real), len(text.generated)]
    labels = torch.from_numpy(table.labels).double()
    weights = torch.from_numpy(source_weights(table.labels, table.sources))
    rise, bias = torch.zeros(()).double(), torch.zeros(()).double()  # of the log-temperature; of the log-odds
    log_weights = torch.zeros(sum(sizes)).double()

    def mixtures() -> list[Tensor]:
        return [each.softmax(dim=0) for each in log_weights.split(sizes)]

    def loss() -> Tensor:
        sides = [
            functional.pad(each, pad) for each, pad in zip(mixtures(), ((0, sizes[1]), (sizes[0], 0)), strict=True)
        ]
        # The cosine with a class: its embedding is the prompts' weighted mean, made a unit vector.
        real, generated = (cosines @ side / (side @ between @ side).sqrt() for side in sides)
        log_odds = text.temperature * rise.exp() * (generated - real) + bias
        misfit = functional.binary_cross_entropy_with_logits(log_odds, labels, weights, reduction="sum")
        held = misfit + TEMPERATURE_PENALTY * rise.square()
        return held if math.isinf(penalty) else held + penalty * log_weights.square().sum()

    _minimise(loss, [rise, bias] if math.isinf(penalty) else [rise, bias, log_weights])
    real_weights, generated_weights = (each.detach().float() for each in mixtures())
    return replace(
        text,
        real_weights=real_weights,
        generated_weights=generated_weights,
        temperature=text.temperature * float(rise.detach().exp()),
        bias=float(bias.detach()),
    )


def _minimise(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> None:
    optimizer = torch.optim.LBFGS(
        [parameter.requires_grad_() for parameter in parameters], max_iter=STEPS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def _probabilities(text: TextEmbeddings, features: FloatArray) -> FloatArray:
    log_odds = text.log_odds(torch.from_numpy(features).float()).numpy()
    return np.clip(sigmoid(log_odds.astype(float)), FLOOR, 1 - FLOOR)


def _metrics(table: Table, text: TextEmbeddings, seed: int) -> str:
    measured = evaluate(table.labels, _probabilities(text, table.matrix), table.sources, 0.5, seed)
    names = ("real_called_real", "ai_called_ai", "auroc")
    return ", ".join(f"{name.replace('_', ' ')} {measured[name]}" for name in names)


if __name__ == "__main__":
    sys.exit(main())
