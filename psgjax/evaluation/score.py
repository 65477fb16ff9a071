"""All metrics of a set of generated images against real ones, as one tree of numbers that JSON can hold.

`docs/evaluation.md` says what each number means, its range, and its value for real images against real ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from psgjax.data.dataset import Dataset
from psgjax.evaluation import c2st, features, frechet, manifold, modes, neighbours
from psgjax.evaluation import classifier as classifiers
from psgjax.evaluation.classifier import Classifier
from psgjax.evaluation.features import Features, Given
from psgjax.sources import Track, untracked

Scores = dict[str, Any]

NEIGHBOURS = 5  # of the manifold metrics
# The metrics that need features, a classifier, several generators (the first of them a classifier, too), or the training images.
EMBEDDED = ("fcd", "precision", "recall", "density", "coverage", "kid", "kid_standard_error")
CLASSIFIED = ("histogram", "histogram_kl", "missing_classes", "classifier_score")
BETWEEN = ("histogram_divergence", "c2st")
MEMORISED = ("memorisation_rate",)


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images and all that is computed of them once.

    Attributes:
        description: A phrase for people: whose images they are.
        images: [M, H, W, C] uint8, never trained on.
        sha256: Of their bytes.
        training: [N, H, W, C] uint8, or None where there are none to be memorised.
        classifier: Of the data's classes, or None for data without labels; what needs it is left out then.
        embedding: What images are compared by, or None; what needs it is left out then.
        why: There is no classifier, or no embedding.
        features: [M, F] float32, those of `images`.
        counts: [classes], how many of `images` the classifier gives to each class.
        distances: [M], from each image to the nearest training image.
    """

    description: str
    images: np.ndarray
    sha256: str
    training: np.ndarray | None
    classifier: Classifier | None
    embedding: Features | None
    why: str
    features: np.ndarray | None
    counts: np.ndarray | None
    distances: np.ndarray | None


def reference_of(
    data: Dataset, progress: Callable[[str], None] = print, given: Given = None, track: Track = untracked
) -> Reference:
    """The held-out images of a data set, with its classifier, its training images and, if no others are given, its features."""
    classifier, embedding, why = features.of_data(data, progress, features.chosen(given, data.held_out_images), track)
    return reference(data.held_out_images, data.images, classifier, described(data), embedding, why)


def described(data: Dataset) -> str:
    """The held-out images of a data set in a phrase that is the same wherever they lie."""
    name, source = data.info["name"], data.info["source"]
    return f"{name}'s published test images" if data.info["canonical"] else f"{name}'s held-out images ({source})"


def reference(
    images: np.ndarray,
    training: np.ndarray | None,
    classifier: Classifier | None,
    description: str,
    embedding: Features | None = None,
    why: str = "there is no classifier",
) -> Reference:
    """The reference that real images [M, H, W, C] uint8 make, of which the training images [N, H, W, C] are none.

    Args:
        images: The real ones.
        training: Those that may be memorised, if there are any.
        classifier: Of their classes, if there is one.
        description: Of the real images.
        embedding: What images are compared by; the classifier's features if not given.
        why: There is no classifier, or nothing to compare images by.
    """
    embedded = counts = distances = None
    if classifier is not None:
        embedding = embedding or features.of_network(classifier)
        counts = _counts(classifiers.apply(classifier, images)[1])
    if embedding is not None:
        embedded = embedding.of(images)
    if training is not None:
        _, distances = neighbours.nearest(images, training)
    sha256 = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    return Reference(description, images, sha256, training, classifier, embedding, why, embedded, counts, distances)


STAGES = ("features", "all samples", "kernel distance", "generators", "nearest training images")


def score(images: np.ndarray, real: Reference, progress: Callable[[str], None] = lambda stage: None) -> Scores:
    """Every metric of images [K, n, H, W, C] uint8, of all generators together and of each by itself.

    `progress` is told each of `STAGES` as it begins.

    Returns:
        The metrics by name, with `samples` and `reference` (how many images), `reference_description`, `reference_sha256`,
        and `left_out`, the reason for each metric that is not there or None.

    Raises:
        ValueError: If the images are not uint8, not of the reference's shape, or five a generator or fewer.
    """
    if images.dtype != np.uint8 or images.ndim != 5 or images.shape[2:] != real.images.shape[1:]:
        wanted = ", ".join(map(str, real.images.shape[1:]))
        raise ValueError(f"images are {images.dtype} {list(images.shape)}; the reference needs uint8 [K, n, {wanted}].")
    if images.shape[1] <= NEIGHBOURS:
        raise ValueError(f"{images.shape[1]} image(s) a generator; at least {NEIGHBOURS + 1} are needed.")
    together = images.reshape(-1, *images.shape[2:])
    scores: Scores = {"samples": len(together), "reference": len(real.images)}
    scores |= {"reference_description": real.description, "reference_sha256": real.sha256}
    if real.classifier is not None:
        scores["classifier"] = real.classifier.info["weights_sha256"][:12]
    if real.embedding is not None:
        scores |= {"features": real.embedding.name, "features_sha256": real.embedding.sha256}
        scores |= {"features_note": real.embedding.note} if real.embedding.note else {}
        scores |= _compared(images, real.embedding, real, progress)
    if real.training is not None:
        assert real.distances is not None
        progress(STAGES[4])
        _, distances = neighbours.nearest(together, real.training)
        scores["memorisation_rate"] = neighbours.memorisation_rate(distances, real.distances)
    return {**scores, "left_out": _left_out(scores, len(images), real)}


def _left_out(scores: Scores, generators: int, real: Reference) -> dict[str, str]:
    """The reason for each metric that the scores lack, or that is None in them."""
    reasons: dict[str, str] = {}
    if real.counts is not None:
        unknown = ", ".join(map(str, np.flatnonzero(real.counts == 0)))
        if None in (each["histogram_kl"] for each in (scores, *scores.get("generators", []))):
            reasons["histogram_kl"] = f"infinite where a sample is of a class that the reference lacks: {unknown}"
    if generators == 1:
        reasons |= dict.fromkeys(BETWEEN, "there is one generator, and nothing to compare it with")
    if real.classifier is None:
        reasons |= dict.fromkeys((*CLASSIFIED, BETWEEN[0]), real.why)
    if real.embedding is None:
        reasons |= dict.fromkeys((*EMBEDDED, BETWEEN[1]), real.why)
    if real.training is None:
        reasons |= dict.fromkeys(MEMORISED, "the reference has no training images")
    return reasons


def _compared(images: np.ndarray, embedding: Features, real: Reference, progress: Callable[[str], None]) -> Scores:
    """What is measured on features and, where there is a classifier, on its probabilities."""
    assert real.features is not None
    progress(STAGES[0])
    together, generators = images.reshape(-1, *images.shape[2:]), len(images)
    found = embedding.of(together)
    probabilities = None if real.classifier is None else classifiers.apply(real.classifier, together)[1]
    progress(STAGES[1])
    scores = _of_features(found, probabilities, real)
    if probabilities is not None:
        scores["classifier_score"] = modes.classifier_score(probabilities)
    progress(STAGES[2])
    kid, error = frechet.kernel_distance(real.features, found)
    scores |= {"kid": kid, "kid_standard_error": error}
    if generators > 1:
        progress(STAGES[3])
        by_generator = found.reshape(*images.shape[:2], -1)
        split = [None] * generators if probabilities is None else np.split(probabilities, generators)
        scores["generators"] = [_of_features(f, p, real) for f, p in zip(by_generator, split, strict=True)]
        if probabilities is not None:
            counts = [_counts(each) for each in np.split(probabilities, generators)]
            scores["histogram_divergence"] = modes.class_divergence(np.stack(counts))
        scores["c2st"] = c2st.accuracy(by_generator)
    return scores


def _of_features(found: np.ndarray, probabilities: np.ndarray | None, real: Reference) -> Scores:
    """What is said of each generator, too."""
    assert real.features is not None
    assert real.embedding is not None
    scores: Scores = {real.embedding.distance: frechet.frechet_distance(real.features, found)}
    if probabilities is not None and real.counts is not None:
        counts = _counts(probabilities)
        unknown = np.any((counts > 0) & (real.counts == 0))  # a class that the reference lacks is infinitely far
        scores |= {
            "histogram": (counts / counts.sum()).tolist(),
            "histogram_kl": None if unknown else modes.class_kl(counts, real.counts),
            "missing_classes": modes.classes_missing(counts),
        }
    return scores | manifold.precision_recall_density_coverage(real.features, found, k=NEIGHBOURS)


def _counts(probabilities: np.ndarray) -> np.ndarray:
    return modes.class_counts(probabilities.argmax(1), probabilities.shape[1])


def beside_nearest(images: np.ndarray, real: Reference) -> np.ndarray:
    """Images [K, n, H, W, C] and the training image nearest to each, by turns: [2 K, n, H, W, C] uint8."""
    assert real.training is not None
    indices, _ = neighbours.nearest(images.reshape(-1, *images.shape[2:]), real.training)
    pairs = np.stack([images, real.training[indices].reshape(images.shape)], axis=1)
    return pairs.reshape(-1, *images.shape[1:])
