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
CONFIDENCE = 0.95  # of the intervals of means over seeds

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


def student(freedom: int) -> float:
    """The bound that a variable of Student's t distribution keeps within, to both sides, in 95 % of cases.

    With t = sqrt(freedom) * tan(angle), the angle's density is proportional to cos(angle)^(freedom - 1).
    """
    angles = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angles) ** (freedom - 1)
    shares = np.append(0, np.cumsum(density[1:] + density[:-1]))
    return math.sqrt(freedom) * math.tan(np.interp(CONFIDENCE * shares[-1], shares, angles))


def half_width(values: Curve) -> Any:
    """Half the 95 % interval of the mean over seeds, by Student's t: [S, ...] -> [...]. For one seed 0: it has no interval."""
    if len(values) == 1:
        return np.zeros(values.shape[1:])
    return student(len(values) - 1) * values.std(axis=0, ddof=1) / math.sqrt(len(values))


class Estimate(float):
    """A mean over seeds that knows half the width of its 95 % interval."""

    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate that one value a seed gives."""
        mean = cls(np.mean(values))
        mean.half = float(half_width(np.asarray(values, np.float64)))
        return mean


def combine(trees: Sequence[Any]) -> Any:
    """One tree for all seeds from each one's, such as `summarise` gives: an `Estimate` for each number that differs.

    What is the same for all stays as it is. What some seeds do not have is None: a mean is over all seeds, or there is none.
    """
    first = trees[0]
    if all(tree == first for tree in trees):
        return first
    if all(isinstance(tree, dict) for tree in trees):
        return {key: combine([tree.get(key) for tree in trees]) for key in first}
    if all(isinstance(tree, list) and len(tree) == len(first) for tree in trees):
        return [combine(items) for items in zip(*trees, strict=True)]
    if all(isinstance(tree, int | float) for tree in trees):
        return all(trees) if isinstance(first, bool) else Estimate.of(trees)
    return None


def half_widths(tree: Any) -> Any:
    """What `combine` gave, as JSON has it, with half its interval in place of each mean and None in place of all else."""
    if isinstance(tree, dict):
        return {key: half_widths(item) for key, item in tree.items()}
    if isinstance(tree, list):
        return [half_widths(item) for item in tree]
    return tree.half if isinstance(tree, Estimate) else None


def compare(psg: Sequence[dict[str, Any]], sngan: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The paper's three claims against the summaries of as many seeds of each, with `finished` added: figures and verdicts.

    Nothing can be said of an unfinished run, of too few epochs, or where a value is missing. Otherwise:

    * loss_gap is reproduced if psg's is at least 30 % smaller, raw and normalised, and not if neither is. Where the two
      disagree the answer depends on how losses are scaled, which the paper does not say.
    * accuracy is reproduced if both are within 0.05 of chance.
    * convergence_epoch is reproduced if psg's losses settle within 0.8 of the epochs that sngan's take (how many they are
      depends on batch and data), and not if psg's never settle; sngan's alone never settling decides nothing.

    Each is a bound on a mean over seeds, and is met or not if the mean's whole 95 % interval lies on one side of it; one seed has
    no interval and counts as it is. Losses settle if those of every seed do.
    """
    runs = [*psg, *sngan]

    def values(*keys: str) -> tuple[Curve, Curve]:
        """A figure of each seed, [S] of psg and of sngan, NaN for None."""
        found: list[Any] = runs
        for key in keys:
            found = [each[key] for each in found]
        array = np.array(found, np.float64)
        return array[: len(psg)], array[len(psg) :]

    def judge(holds: bool | None, least_epochs: int, **figures: Any) -> dict[str, Any]:
        comparable = all(run["finished"] and run["epochs"] >= least_epochs for run in runs)
        verdict = {True: "reproduced", False: "not reproduced", None: "cannot be said"}[holds if comparable else None]
        return {"verdict": verdict, **figures}

    smaller, reductions = set(), {}
    for key in ("loss_gap", "normalised_loss_gap"):
        ours, theirs = values(key)
        base = theirs.mean() or np.nan
        reductions[key] = _plain(1 - ours.mean() / base)
        smaller.add(None if np.isnan(base) else _met((1 - ACCEPTED_REDUCTION) * theirs - ours))
    accuracy, chances = values("accuracy"), values("chance")
    excess = [a - c for a, c in zip(accuracy, chances, strict=True)]
    near = {_met(NEAR_CHANCE + sign * each) for each in excess for sign in (1, -1)}
    missing = any(np.isnan(each).any() for each in excess)
    ours, theirs = epochs = values("convergence_epoch", "loss")
    sooner = False if np.isnan(ours).any() else _met(ACCEPTED_RATIO * theirs - ours)
    named = [
        dict(zip(("psg", "sngan"), (_plain(side.mean()) for side in each), strict=True)) for each in (accuracy, epochs)
    ]
    close = None if missing else False if False in near else None if None in near else True
    return {
        "loss_gap": judge(smaller.pop() if len(smaller) == 1 else None, LEAST_EPOCHS, reductions=reductions),
        "accuracy": judge(close, LEAST_EPOCHS, **named[0]),
        "convergence_epoch": judge(sooner, CLAIMED_EPOCHS[1], **named[1]),
    }


def _met(margins: Curve) -> bool | None:
    """Whether a mean over seeds of margins [S] is 0 or more: None where its interval holds both signs, or one is NaN."""
    low, high = (margins.mean() + side * half_width(margins) for side in (-1, 1))
    return True if low >= 0 else False if high < 0 else None


def _plain(value: Any) -> Any:
    """A number or an array of them as JSON has them: floats and lists, None for what is not finite."""
    if np.ndim(value):
        return [_plain(item) for item in value]
    return float(value) if np.isfinite(value) else None
