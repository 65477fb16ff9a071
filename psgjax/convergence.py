"""The statistics that the paper's claims rest on: loss gap, convergence epoch, accuracy against chance.

Pure functions of numbers; nothing here reads or writes. The rules are the constants below. They were fixed before any run
was looked at, because the paper states none (docs/method.md, "What is measured").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psgjax.config import Method

Curve = NDArray[np.float64]

FINAL_SHARE = 0.10  # a final value is the mean over the last tenth of the epochs
SMOOTH_SHARE = 0.04  # curves are smoothed over 4 % of the epochs: 20 of the 500 of a full run
BAND = 0.05  # settled: within 5 % of the final value's magnitude
LEAST_EPOCHS = 10  # fewer epochs say nothing about convergence

# The paper's claims about psg and sngan, and how near counts as found again.
CLAIMED_REDUCTION, ACCEPTED_REDUCTION = 0.40, 0.30  # of the loss gap (abstract)
NEAR_CHANCE = 0.05  # accuracy "near" 0.33 and 0.5 (section 4.3)
CLAIMED_EPOCHS, ACCEPTED_RATIO = (75, 125), 0.80  # section 4.2; the ratio claimed is 0.60


def equilibrium(method: Method) -> tuple[float, float]:
    """What (discriminator, one generator) lose where no image can be told from a real one and D is at its best.

    Every choice of D is then a guess: among K + 1 for a softmax over the tuple and for MAD-GAN's classes, between two for
    binary cross-entropy, whose two terms are summed; hinge and Wasserstein scores are 0. MGAN's classifier terms are logged
    apart and not part of this.
    """
    minimax = method.generator_loss == "minimax"
    if method.loss == "wasserstein":
        return 0.0, 0.0
    if method.loss == "hinge":
        return 2.0, -1.0 if minimax else 0.0
    among_all = method.scores == "softmax" or method.loss == "mad-gan"
    choices = method.generators + 1 if among_all else 2
    generator = math.log(1 - 1 / choices) if minimax else math.log(choices)
    return (math.log(choices) if among_all else 2 * math.log(2)), generator


def chance(method: Method) -> float:
    """Top-1 accuracy of a guessing discriminator: one in K + 1 (section 4.3 gives 0.33 for K = 2 and 0.5 for K = 1)."""
    return 1 / (method.generators + 1)


def chance_corrected(accuracy: float, chance: float) -> float:
    """Accuracy rescaled so that guessing is 0 and never failing is 1, whatever the number of generators."""
    return (accuracy - chance) / (1 - chance)


def loss_gap(
    generator_losses: Curve, discriminator_loss: Curve, equilibrium: tuple[float, float]
) -> tuple[Curve, Curve | None]:
    """How far the two sides' losses are apart in each epoch.

    Args:
        generator_losses: [K, E]; their mean stands for the generators.
        discriminator_loss: [E].
        equilibrium: The value of (discriminator, generator) at equilibrium.

    Returns:
        [E] |L_G - L_D|, and [E] the same with each loss divided by its value at equilibrium, so that equilibrium is 0 for
        every method; None where one of these values is 0.
    """
    generator_loss = generator_losses.mean(axis=0)
    raw = np.abs(generator_loss - discriminator_loss)
    if 0 in equilibrium:
        return raw, None
    return raw, np.abs(generator_loss / equilibrium[1] - discriminator_loss / equilibrium[0])


def final(curve: Curve) -> Any:
    """Mean of a curve [..., E] over the last tenth of its epochs, at least one: [...]. NaN where there are none."""
    epochs = curve.shape[-1]
    if not epochs:
        return np.full(curve.shape[:-1], np.nan)
    return curve[..., -max(1, round(FINAL_SHARE * epochs)) :].mean(axis=-1)


def smooth(curve: Curve, window: int) -> Curve:
    """Mean of each epoch and the `window` - 1 before it, or of as many as there are: [E] -> [E]."""
    return np.array([curve[max(0, end - window) : end].mean() for end in range(1, len(curve) + 1)])


def convergence_epoch(epochs: Sequence[float], curve: Curve) -> float | None:
    """The first epoch from which the smoothed curve [E] stays within 5 % of its final value to the end.

    `epochs` [E] are their numbers; a run may end within one. None where the curve never settles, where a value near the end
    is not finite, and for fewer than ten epochs.
    """
    if len(epochs) < LEAST_EPOCHS:
        return None
    target = final(curve)
    inside = np.abs(smooth(curve, max(1, round(SMOOTH_SHARE * len(curve)))) - target) <= BAND * abs(target)
    outside = np.flatnonzero(~inside)
    first = int(outside[-1]) + 1 if outside.size else 0
    return epochs[first] if first < len(epochs) else None


def curves(method: Method, lines: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """The lines of metrics.jsonl as arrays: [E] each, but generators [K, E], generator_updates [K, E], branches [K + 1, E].

    What is null or not finite in a line is NaN here.
    """

    def rows(count: int, values: list[Any]) -> Curve:
        array = np.array(values, dtype=np.float64).reshape(len(lines), count).T
        return np.where(np.isfinite(array), array, np.nan)

    names = ("accuracy", "pairwise_accuracy", "held_out_accuracy", "held_out_pairwise_accuracy")
    return {name: rows(1, [line[name] for line in lines])[0] for name in ("epoch", "step", "seconds", *names)} | {
        "discriminator": rows(1, [line["loss"]["discriminator"] for line in lines])[0],
        "generators": rows(method.generators, [line["loss"]["generators"] for line in lines]),
        "discriminator_updates": rows(1, [line["updates"]["discriminator"] for line in lines])[0],
        "generator_updates": rows(method.generators, [line["updates"]["generators"] for line in lines]),
        "branches": rows(method.generators + 1, [line["branches"] for line in lines]),
    }


def summarise(method: Method, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One run's figures, ready for JSON: what cannot be computed, or is not finite, is None.

    Losses are the ungated ones. The losses have converged where the discriminator's and the generators' mean both have.
    """
    curve = curves(method, lines)
    epochs = [line["epoch"] for line in lines]
    balance, guess = equilibrium(method), chance(method)
    raw_gap, normalised_gap = loss_gap(curve["generators"], curve["discriminator"], balance)
    settled = [convergence_epoch(epochs, loss) for loss in (curve["discriminator"], curve["generators"].mean(axis=0))]
    # The first epoch holds compilation.
    seconds = np.diff(curve["seconds"])
    speeds = np.diff(curve["step"])[seconds > 0] / seconds[seconds > 0]
    accuracy = final(curve["accuracy"])
    return {
        "epochs": epochs[-1] if lines else 0,
        "steps": lines[-1]["step"] if lines else 0,
        "images": lines[-1]["images"] if lines else 0,
        "training_seconds": lines[-1]["seconds"] if lines else None,
        "steps_per_second": _plain(np.median(speeds)) if speeds.size else None,
        "loss": {
            "discriminator": _plain(final(curve["discriminator"])),
            "generators": _plain(final(curve["generators"])),
        },
        "loss_at_equilibrium": dict(zip(("discriminator", "generator"), balance, strict=True)),
        "loss_gap": _plain(final(raw_gap)),
        "normalised_loss_gap": None if normalised_gap is None else _plain(final(normalised_gap)),
        "accuracy": _plain(accuracy),
        "chance": guess,
        "chance_corrected_accuracy": _plain(chance_corrected(accuracy, guess)),
        "held_out_accuracy": _plain(final(curve["held_out_accuracy"])),
        "pairwise_accuracy": _plain(final(curve["pairwise_accuracy"])),
        "held_out_pairwise_accuracy": _plain(final(curve["held_out_pairwise_accuracy"])),
        "convergence_epoch": {
            "loss": None if None in settled else max(epoch for epoch in settled if epoch is not None),
            "accuracy": convergence_epoch(epochs, curve["accuracy"]),
        },
        "branches": _plain(final(curve["branches"])),
        "updates": {
            "discriminator": _plain(final(curve["discriminator_updates"])),
            "generators": _plain(final(curve["generator_updates"])),
        },
    }


def compare(psg: dict[str, Any], sngan: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The paper's three claims against two summaries, to which `finished` was added: the figures and a verdict on each.

    Nothing can be said of an unfinished run, of too few epochs, or where a value is missing. Otherwise:

    * loss_gap is reproduced if psg's is at least 30 % smaller, raw and normalised, and not if neither is. Where the two
      disagree the answer depends on how losses are scaled, which the paper does not say.
    * accuracy is reproduced if both are within 0.05 of chance.
    * convergence_epoch is reproduced if psg's losses settle within 0.8 of the epochs that sngan's take (how many they are
      depends on batch and data), and not if psg's never settle; sngan's alone never settling decides nothing.
    """

    def judge(holds: bool | None, least_epochs: int, **figures: Any) -> dict[str, Any]:
        comparable = all(run["finished"] and run["epochs"] >= least_epochs for run in (psg, sngan))
        verdict = {True: "reproduced", False: "not reproduced", None: "cannot be said"}[holds if comparable else None]
        return {"verdict": verdict, **figures}

    gaps = {key: (psg[key], sngan[key]) for key in ("loss_gap", "normalised_loss_gap")}
    reductions = {
        key: None if ours is None or not theirs else 1 - ours / theirs for key, (ours, theirs) in gaps.items()
    }
    smaller = {None if value is None else value >= ACCEPTED_REDUCTION for value in reductions.values()}
    accuracies = [(run["accuracy"], run["chance"]) for run in (psg, sngan)]
    missing = any(accuracy is None for accuracy, _ in accuracies)
    near = None if missing else all(abs(accuracy - chance) <= NEAR_CHANCE for accuracy, chance in accuracies)
    ours, theirs = (run["convergence_epoch"]["loss"] for run in (psg, sngan))
    sooner = False if ours is None else None if theirs is None else ours <= ACCEPTED_RATIO * theirs
    return {
        "loss_gap": judge(smaller.pop() if len(smaller) == 1 else None, LEAST_EPOCHS, reductions=reductions),
        "accuracy": judge(near, LEAST_EPOCHS, psg=psg["accuracy"], sngan=sngan["accuracy"]),
        "convergence_epoch": judge(sooner, CLAIMED_EPOCHS[1], psg=ours, sngan=theirs),
    }


def _plain(value: Any) -> Any:
    """A number or an array of them as JSON has them: floats and lists, None for what is not finite."""
    if np.ndim(value):
        return [_plain(item) for item in value]
    return float(value) if np.isfinite(value) else None
