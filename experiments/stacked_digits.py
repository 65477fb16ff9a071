"""Stacked MNIST as data and as a measure: three random digits are the channels of an image, and name its mode, one of 1,000."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from psgjax.evaluation.modes import class_counts, reverse_kl, stacked_modes

if TYPE_CHECKING:
    from psgjax.data.dataset import Dataset
    from psgjax.evaluation.classifier import Classifier

CHANNELS, CLASSES = 3, 10
MODES = CLASSES**CHANNELS
_HELD_OUT = 2000  # stacked test digits on which D is scored while it trains
_STACKS, _SAMPLES, _CHOICE = range(3)  # streams of random numbers


def stack(digits: np.ndarray, labels: np.ndarray, count: int, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The given number of images, each of three digits drawn at random, with replacement, as channels.

    Args:
        digits: [N, H, W, 1] uint8.
        labels: [N], 0 to 9.
        count: How many to make.
        seed: They follow from it.

    Returns:
        Images [count, H, W, 3] uint8, and modes [count] int32, 0 to 999: the digits read as one number.
    """
    chosen = np.random.default_rng(seed).integers(len(digits), size=(count, CHANNELS))
    images = np.stack([digits[chosen[:, channel], ..., 0] for channel in range(CHANNELS)], axis=-1)
    return images, (labels[chosen] @ CLASSES ** np.arange(CHANNELS)[::-1]).astype(np.int32)


def stacked(digits: Dataset, count: int, seed: int) -> Dataset:
    """Stacked images of a data set's digits: of the training ones to train on, of the held-out ones to hold out."""
    from psgjax.data.dataset import fingerprints

    images, modes = stack(digits.images, digits.both_labels[0], count, (seed, _STACKS, 0))
    held_out, held_out_modes = stack(digits.held_out_images, digits.both_labels[1], _HELD_OUT, (seed, _STACKS, 1))
    info = {
        **digits.info,
        "description": f"{count:,} images of three random digits each; digits: {digits.info['description']}",
        "train_images": count,
        "held_out_images": _HELD_OUT,
        "canonical": False,
        **fingerprints(images, modes, held_out, held_out_modes),
    }
    return dataclasses.replace(
        digits, images=images, labels=modes, held_out_images=held_out, held_out_labels=held_out_modes, info=info
    )


def held_out_stacks(digits: Dataset, count: int, seed: int) -> np.ndarray:
    """The given number of stacked held-out digits [count, H, W, 3], to measure as if they were samples."""
    return stack(digits.held_out_images, digits.both_labels[1], count, (seed, _SAMPLES))[0]


def predict(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """The most probable digit in each channel: images [n, H, W, 3] uint8 -> [n, 3]."""
    from psgjax.evaluation.classifier import apply

    channels = np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3], 1)
    return apply(classifier, channels)[1].argmax(1).reshape(-1, CHANNELS)


def measure(predictions: np.ndarray) -> dict[str, Any]:
    """Modes and KL of predictions [n, 3], ready for JSON.

    `digits_kl` is the part of the KL that is of the digits of each channel alone, summed over the channels; the rest is their
    total correlation, which independent channels do not have.
    """
    modes, divergence = stacked_modes(predictions)
    digits = sum(reverse_kl(class_counts(channel, CLASSES)) for channel in predictions.T)
    return {"modes": modes, "kl": round(divergence, 6), "digits_kl": round(digits, 6)}


def evaluate(folder: Path, classifier: Classifier, samples: int) -> dict[str, Any]:
    """What the finished run in that folder covers: its mixture of generators, and each generator alone."""
    from psgjax.commands import sample

    config, state, image_shape = sample.load(folder)
    images = sample.sample(config, state, image_shape, samples, config.seed)
    predictions = np.stack([predict(classifier, own) for own in images])
    which = np.random.default_rng((config.seed, _CHOICE)).integers(len(images), size=samples)
    mixed = predictions[which, np.arange(samples)]
    return {"seed": config.seed, **measure(mixed), "generators": [measure(own) for own in predictions]}
