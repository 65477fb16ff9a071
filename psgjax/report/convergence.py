"""Statistics of one run's curves: losses, their gap, accuracy against chance, the epoch at which a curve settles.

Pure functions of arrays; nothing here reads or writes. The rules are the constants below. They were fixed on synthetic curves
before any run was looked at, because the paper states none (docs/method.md, "What is measured").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psgjax import parts
from psgjax.config import Method

Curve = NDArray[np.float64]

FINAL_SHARE = 0.10  # a final value is the mean over the last tenth of the epochs

# Calibrated losses. A D that makes no mistake on the held-out images has no best temperature: its loss falls as the temperature
# goes to 0, and the generators' losses depend on where the search ended. One mistake in 2,000 tuples costs log 2 / 2,000 or more.
TEMPERATURES = (1e-3, 1e3)  # the range in which `objectives.calibrated` searches
LEAST_CALIBRATED = 1e-4

# When a curve has settled.
LEAST_EPOCHS = 10  # fewer epochs say nothing about convergence
SMOOTH_SHARE, LEAST_WINDOW = 0.08, 5  # the running median's window: 8 % of the epochs, at least five
BAND = 0.05  # within 5 % of the curve's level or of its whole change, whichever is larger
NOISE_ERRORS = 4  # or within this number of the running median's standard errors: noise alone hardly ever leaves that
SETTLED_SHARE = 1 / 3  # for at least this share of the epochs, without drift
OSCILLATION = 2  # more spread than this number of times the noise between neighbours is an oscillation and no noise


def equilibrium(method: Method) -> tuple[float, float]:
    """The losses of (discriminator, one generator) where generated images cannot be distinguished from real ones and D is optimal.

    Every choice of D is then a guess. MGAN's classifier terms are logged separately and not included. NaN, twice, for a loss whose
    equilibrium is not known.
    """
    known = parts.loss_of(method).equilibrium
    return known(method.generators, method.generator_loss == "minimax") if known else (math.nan, math.nan)


def chance(method: Method) -> float:
    """Top-1 accuracy of a guessing discriminator: one in K + 1 (section 4.3 gives 0.33 for K = 2 and 0.5 for K = 1)."""
    return 1 / (method.generators + 1)


def chance_corrected(accuracy: float, chance: float) -> float:
    """Accuracy rescaled so that guessing is 0 and never failing is 1, whatever the number of generators."""
    return (accuracy - chance) / (1 - chance)


def loss_gap(
    generator_losses: Curve, discriminator_loss: Curve, equilibrium: tuple[float, float]
) -> tuple[Curve, Curve | None]:
    """The distance between the two sides' losses in each epoch.

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
    if not all(value and math.isfinite(value) for value in equilibrium):
        return raw, None
    return raw, np.abs(generator_loss / equilibrium[1] - discriminator_loss / equilibrium[0])


def final(curve: Curve) -> Any:
    """Mean of a curve [..., E] over the last tenth of its epochs, at least one: [...]. NaN where there are none."""
    epochs = curve.shape[-1]
    if not epochs:
        return np.full(curve.shape[:-1], np.nan)
    return curve[..., -max(1, round(FINAL_SHARE * epochs)) :].mean(axis=-1)


def smooth(curve: Curve, window: int) -> Curve:
    """Median of the `window` epochs around each, an odd number, or of those that there are: [E] -> [E].

    A median keeps an edge where it is and drops lone outliers.
    """
    reach = window // 2
    return np.array([np.median(curve[max(0, at - reach) : at + reach + 1]) for at in range(len(curve))])


def convergence_epoch(epochs: Sequence[float], curve: Curve) -> float | None:
    """The epoch from which the curve [E] has settled, or None where it never does, or where noise hides it.

    With the running median over 8 % of the epochs, the level (the median of the last third), and the noise (from second
    differences, which are 0 for a straight line), this is the first epoch from which, to the end,

    * the running median stays inside the band: within 5 % of the level or of the running median's whole range, or within four
      of its standard errors, whichever is largest;
    * Theil and Sen's slope times the number of epochs, the drift, is inside the band too: a straight line never settles;
    * the values spread no more than the band, or twice the noise: otherwise they oscillate;

    if at least a third of the epochs is left. Where the standard error alone is more than the 5 %, there is none.

    Args:
        epochs: [E], their numbers; a run may end within one.
        curve: [E]. What comes before the last value that is not finite is left out; fewer than ten values are too few.
    """
    start = int(np.flatnonzero(np.append(True, ~np.isfinite(curve)))[-1])
    epochs, curve = epochs[start:], curve[start:]
    if len(curve) < LEAST_EPOCHS:
        return None
    from scipy import stats  # half a second, which a short run does without

    window = max(LEAST_WINDOW, int(SMOOTH_SHARE * len(curve)) | 1)
    smoothed, least = smooth(curve, window), math.ceil(SETTLED_SHARE * len(curve))
    level = np.median(curve[-least:])
    noise = stats.median_abs_deviation(np.diff(curve, 2), scale="normal") / math.sqrt(6)
    error = math.sqrt(math.pi / 2 / window) * noise  # of a median of that many values
    tolerance = BAND * max(abs(level), np.ptp(smoothed))
    band = max(tolerance, NOISE_ERRORS * error)
    outside = np.flatnonzero(np.abs(smoothed - level) > band)
    first = int(outside[-1]) + 1 if outside.size else 0
    rest = curve[first:]
    if error > tolerance or len(rest) < least:
        return None
    drift = abs(stats.theilslopes(rest).slope) * (len(rest) - 1)
    spread = stats.median_abs_deviation(rest, scale="normal")
    return epochs[first] if drift <= band and spread <= max(band, OSCILLATION * noise) else None


def curves(method: Method, lines: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """The lines of metrics.jsonl as arrays, [E] each.

    Except generators, calibrated_generators, generator_updates [K, E] and branches [K + 1, E]. A regulariser r1 is called
    regularisers.r1. What is null, not finite or missing in a line is NaN here, and so are calibrated losses where no temperature
    is best.
    """

    def rows(count: int, *keys: str) -> Curve:
        """The item under these keys in each line, `count` numbers."""

        def item(line: Any) -> Any:
            for key in keys:
                line = (line or {}).get(key)
            return np.full(count, np.nan if line is None else line, np.float64)

        array = np.array([item(line) for line in lines]).reshape(len(lines), count).T
        return np.where(np.isfinite(array), array, np.nan)

    many, added = method.generators, {name for line in lines for name in line.get("regularisers") or {}}
    accuracies = ("accuracy", "pairwise_accuracy", "held_out_accuracy", "held_out_pairwise_accuracy")
    temperature, lost = rows(1, "held_out_temperature")[0], rows(1, "held_out_calibrated_loss", "discriminator")[0]
    least, most = TEMPERATURES
    best = (temperature > 1.01 * least) & (temperature < 0.99 * most) & (lost > LEAST_CALIBRATED)
    return {name: rows(1, name)[0] for name in ("epoch", "step", "seconds", *accuracies)} | {
        "discriminator": rows(1, "loss", "discriminator")[0],
        "generators": rows(many, "loss", "generators"),
        "held_out_temperature": np.where(best, temperature, np.nan),
        "calibrated_discriminator": np.where(best, lost, np.nan),
        "calibrated_generators": np.where(best, rows(many, "held_out_calibrated_loss", "generators"), np.nan),
        "discriminator_updates": rows(1, "updates", "discriminator")[0],
        "generator_updates": rows(many, "updates", "generators"),
        "branches": rows(many + 1, "branches"),
        **{f"regularisers.{name}": rows(1, "regularisers", name)[0] for name in sorted(added)},
    }


def summarise(method: Method, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One run's figures, ready for JSON: what cannot be computed, or is not finite, is None.

    Losses are the ungated ones; calibrated ones are those with D's outputs at the temperature that is best for its loss on
    held-out images. The losses have converged where the discriminator's and the generators' mean both have.
    """
    curve = curves(method, lines)
    epochs = [line["epoch"] for line in lines]
    balance, guess = equilibrium(method), chance(method)
    raw_gap, normalised_gap = loss_gap(curve["generators"], curve["discriminator"], balance)
    calibrated = loss_gap(curve["calibrated_generators"], curve["calibrated_discriminator"], balance)
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
        "loss": {name: _plain(final(curve[name])) for name in ("discriminator", "generators")},
        "loss_at_equilibrium": dict(zip(("discriminator", "generator"), balance, strict=True)),
        "loss_gap": _plain(final(raw_gap)),
        "normalised_loss_gap": None if normalised_gap is None else _plain(final(normalised_gap)),
        "calibrated_loss": {
            name: _plain(final(curve[f"calibrated_{name}"])) for name in ("discriminator", "generators")
        },
        "held_out_temperature": _plain(final(curve["held_out_temperature"])),
        "calibrated_loss_gap": _plain(final(calibrated[0])),
        "normalised_calibrated_loss_gap": None if calibrated[1] is None else _plain(final(calibrated[1])),
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
        "regularisers": {
            name.removeprefix("regularisers."): _plain(final(values))
            for name, values in curve.items()
            if name.startswith("regularisers.")
        },
    }


def _plain(value: Any) -> Any:
    """A number or an array of them as JSON has them: floats and lists, None for what is not finite."""
    if np.ndim(value):
        return [_plain(item) for item in value]
    return float(value) if np.isfinite(value) else None
