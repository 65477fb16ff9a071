"""The paper's three claims about psg and sngan, and whether runs bear them out: verdicts by rules that were fixed in advance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from psgjax.report.convergence import LEAST_EPOCHS, Curve
from psgjax.report.intervals import half_width

# What is claimed, and how near counts as found again.
CLAIMED_REDUCTION, ACCEPTED_REDUCTION = 0.40, 0.30  # of the loss gap (abstract)
NEAR_CHANCE = 0.05  # accuracy "near" 0.33 and 0.5 (section 4.3)
CLAIMED_EPOCHS, ACCEPTED_RATIO = (75, 125), 0.80  # section 4.2; the ratio claimed is 0.60

# The loss gap, as a summary has it: each way of measuring it depends on the scale of something else.
GAPS = {
    "loss_gap": "raw",
    "normalised_loss_gap": "normalised",
    "calibrated_loss_gap": "calibrated",
    "normalised_calibrated_loss_gap": "calibrated and normalised",
}

_VERDICTS = {True: "reproduced", False: "not reproduced", None: "inconclusive"}


def compare(psg: Sequence[dict[str, Any]], sngan: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The paper's three claims against the summaries of both methods' seeds: figures, verdicts, and why one is inconclusive.

    A summary is that of `convergence.summarise` with `finished` added. An unfinished run, too few epochs or a missing value
    leave a claim inconclusive. Otherwise:

    * loss_gap is reproduced if psg's is at least 30 % smaller in all four of `GAPS`, and not if it is in none. Where they
      disagree the answer depends on how losses or D's outputs are scaled, which the paper does not say.
    * accuracy is reproduced if both are within 0.05 of chance.
    * convergence_epoch is reproduced if psg's losses settle within 0.8 of the epochs that sngan's take (how many they are
      depends on batch and data). Losses that do not settle, of any seed, decide nothing.

    Each bound applies to a mean over seeds, and counts as met, or not, only if the mean's whole 95 % interval lies on one side of
    it; one seed has no interval, and its value decides.
    """
    runs = [*psg, *sngan]

    def values(*keys: str) -> tuple[Curve, Curve]:
        """A figure of each seed, [S] of psg and of sngan, NaN for None."""
        found: list[Any] = runs
        for key in keys:
            found = [each.get(key) for each in found]
        array = np.array(found, np.float64)
        return array[: len(psg)], array[len(psg) :]

    def claim(answer: tuple[bool | None, str], least_epochs: int, **figures: Any) -> dict[str, Any]:
        """The answer, unless the runs cannot be compared."""
        if not all(run["finished"] for run in runs):
            answer = None, "not every run is finished"
        elif any(run["epochs"] < least_epochs for run in runs):
            answer = None, f"fewer than {least_epochs} epochs"
        return {"verdict": _VERDICTS[answer[0]], "reason": answer[1] or None, **figures}

    gaps = {key: values(key) for key in GAPS}
    reductions = {key: _plain(1 - ours.mean() / (theirs.mean() or np.nan)) for key, (ours, theirs) in gaps.items()}
    accuracies, chances, epochs = values("accuracy"), values("chance"), values("convergence_epoch", "loss")
    return {
        "loss_gap": claim(_gap(gaps, reductions), LEAST_EPOCHS, reductions=reductions),
        "accuracy": claim(_accuracy(accuracies, chances), LEAST_EPOCHS, **_means(accuracies)),
        "convergence_epoch": claim(_sooner(*epochs), CLAIMED_EPOCHS[1], **_means(epochs)),
    }


def _gap(gaps: dict[str, tuple[Curve, Curve]], reductions: dict[str, float | None]) -> tuple[bool | None, str]:
    if missing := [GAPS[key] for key, less in reductions.items() if less is None]:
        return None, f"no value, or zero for sngan: {', '.join(missing)}"
    answers = {GAPS[key]: _met((1 - ACCEPTED_REDUCTION) * theirs - ours) for key, (ours, theirs) in gaps.items()}
    if len(set(answers.values())) == 1 and None not in answers.values():
        return answers["raw"], ""
    words = {
        True: f"at least {100 * ACCEPTED_REDUCTION:.0f} % smaller",
        False: "not",
        None: "open, by the interval of the mean over seeds",
    }
    found = {told: [label for label, its in answers.items() if its is answer] for answer, told in words.items()}
    return None, "; ".join(f"{told}: {', '.join(labels)}" for told, labels in found.items() if labels)


def _accuracy(accuracies: tuple[Curve, Curve], chances: tuple[Curve, Curve]) -> tuple[bool | None, str]:
    excess = [a - c for a, c in zip(accuracies, chances, strict=True)]
    if any(np.isnan(each).any() for each in excess):
        return None, "an accuracy is missing"
    near = [_met(NEAR_CHANCE + sign * each) for each in excess for sign in (1, -1)]
    if False in near:
        return False, ""
    return (None, "the interval of the mean over seeds holds both answers") if None in near else (True, "")


def _sooner(psg: Curve, sngan: Curve) -> tuple[bool | None, str]:
    restless = [name for name, epochs in (("psg", psg), ("sngan", sngan)) if np.isnan(epochs).any()]
    if restless:
        return (
            None,
            f"the losses of {' and of '.join(restless)} do not settle{' for every seed' if len(psg) > 1 else ''}",
        )
    answer = _met(ACCEPTED_RATIO * sngan - psg)
    return answer, "the interval of the mean over seeds holds both answers" if answer is None else ""


def _met(margins: Curve) -> bool | None:
    """Whether a mean over seeds of margins [S] is 0 or more: None where its interval holds both signs."""
    low, high = (margins.mean() + side * half_width(margins) for side in (-1, 1))
    return True if low >= 0 else False if high < 0 else None


def _means(sides: tuple[Curve, Curve]) -> dict[str, float | None]:
    return dict(zip(("psg", "sngan"), (_plain(side.mean()) for side in sides), strict=True))


def _plain(value: Any) -> float | None:
    """A number as JSON has it: None for what is not finite."""
    return float(value) if np.isfinite(value) else None
