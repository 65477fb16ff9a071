"""What images are compared by: features of the data's classifier, of a network that tells rotations apart, or anyone's.

Distances mean something only beside others on the same features: every score has their name and their SHA-256.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from psgjax.config import ConfigError
from psgjax.data.dataset import Dataset
from psgjax.evaluation import classifier as classifiers
from psgjax.evaluation import fitting
from psgjax.evaluation.classifier import Classifier
from psgjax.schema import local_path
from psgjax.sources import Track, untracked

# Accuracies in telling four rotations apart: of a guess, and of a network whose features are used.
_CHANCE, _USEFUL = 0.25, 0.4
_CHUNK = 256  # images given to anyone's features at a time


Given = Any  # by a user: Features, a function of images [n, H, W, C] uint8 to [n, F], a file of one, or None


@dataclass(frozen=True, eq=False)
class Features:
    """A function of images.

    Attributes:
        name: `classifier`, `rotations`, or what its owner calls it.
        sha256: Of the weights, or of the file; of a Python function nothing is known, and it is that of what it makes of the
            first 256 reference images.
        of: Images [N, H, W, C] uint8 to features [N, F] float32.
        note: What a reader must know of it, or None.
    """

    name: str
    sha256: str
    of: Callable[[np.ndarray], np.ndarray]
    note: str | None = None

    @property
    def distance(self) -> str:
        """What the Fréchet distance on these features is called: fcd on a classifier's, else fd_ and the name."""
        return "fcd" if self.name == "classifier" else f"fd_{self.name}"


def of_network(network: Classifier, name: str = "classifier", note: str | None = None) -> Features:
    """The penultimate features of a classifier, or of a network like it."""
    return Features(name, network.info["weights_sha256"], lambda images: classifiers.apply(network, images)[0], note)


def of_data(
    data: Dataset, progress: Callable[[str], None] = print, given: Features | None = None, track: Track = untracked
) -> tuple[Classifier | None, Features | None, str]:
    """The classifier of a data set and its features; without labels none, and those that tell rotations apart.

    Args:
        data: What they are trained on at first use, and kept for (`fitting`).
        progress: Takes a line of text about anything slow or unexpected.
        given: In place of these features.
        track: Shows how far their training has come.

    Returns:
        The classifier, the features, and why there is none of the one or the other.
    """
    classifier = fitting.for_data(data, progress, track)
    if classifier is not None:
        return classifier, given or of_network(classifier), ""
    if given is not None:
        return None, given, "there are no labels"
    height, width = data.images.shape[1:3]
    if height != width or height % 4:
        return None, None, f"there are no labels, and images of {width}x{height} cannot be turned by 90 degrees"
    network = fitting.rotations(data, progress, track)
    accuracy = network.info["accuracy"]
    tells = f"a network that tells four rotations of held-out images apart in {accuracy:.0%} of cases (chance: {_CHANCE:.0%})"
    if accuracy < _USEFUL:
        return None, None, f"there are no labels, and the features of {tells} are useless"
    return None, of_network(network, "rotations", f"features of {tells}"), "there are no labels"


def chosen(given: Given, images: np.ndarray) -> Features | None:
    """Anyone's features: of a function (`of_function`), of a file (`read`), or such already; tried on an image, None if None.

    Args:
        given: Of these.
        images: Of the reference, [M, H, W, C] uint8.

    Raises:
        ConfigError: If they are not what is said there, or cannot be had of such images.
    """
    if callable(given):
        return of_function(given, images)
    found = read(local_path("features", Path(given))) if isinstance(given, str | Path) else given
    if found is not None:
        found.of(images[:1])
    return found


def of_function(function: Callable[[np.ndarray], Any], images: np.ndarray, name: str | None = None) -> Features:
    """Anyone's features, of a function of images [n, H, W, C] uint8 with n up to 256.

    Args:
        function: Returns an array [n, F].
        images: Of the reference; what it makes of the first of them is its SHA-256.
        name: The function's own if not given.

    Raises:
        ConfigError: If what it returns is not [n, F], or not finite.
    """
    called = _word(name or str(getattr(function, "__name__", type(function).__name__)))
    of = _checked(function, called)
    return Features(called, hashlib.sha256(of(images[:_CHUNK]).tobytes()).hexdigest(), of)


def _word(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_") or "own"


def _checked(function: Callable[[np.ndarray], Any], name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of any number of images, which gives [n, F] float32, finite, or raises a ConfigError."""

    def of(images: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), _CHUNK):
            part = images[start : start + _CHUNK]
            parts.append(np.asarray(function(part), np.float32))
            if parts[-1].ndim != 2 or len(parts[-1]) != len(part):
                raise ConfigError(
                    f"the features {name} of {len(part)} images are {list(parts[-1].shape)}; they must be [n, F]."
                )
        features = np.concatenate(parts)
        if not np.isfinite(features).all():
            raise ConfigError(f"the features {name} hold NaN or infinity.")
        return features

    return of


def read(path: Path) -> Features:
    """Anyone's features, of a function that `jax.export` wrote: images uint8 [n, H, W, C] to [n, F], n of any size or a fixed one.

    Raises:
        ConfigError: If the file is none, or its function is another.
    """
    try:
        content = path.read_bytes()
        exported = jax.export.deserialize(bytearray(content))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # damaged files raise one of several types
        raise ConfigError(f"{path} is not what jax.export wrote: {error}.") from None
    inputs = exported.in_avals
    if len(inputs) != 1 or inputs[0].ndim != 4 or inputs[0].dtype != np.uint8 or len(exported.out_avals) != 1:
        raise ConfigError(
            f"{path} holds a function {exported.fun_name} of {inputs}; it must be one of images uint8 [n, H, W, C]."
        )
    if jax.default_backend() not in exported.platforms:
        raise ConfigError(
            f"{path} was exported for {', '.join(exported.platforms)}, and this is {jax.default_backend()}."
        )
    (count, *sides), call = inputs[0].shape, jax.jit(exported.call)

    def function(images: np.ndarray) -> np.ndarray:
        if any(isinstance(side, int) and side != own for side, own in zip(sides, images.shape[1:], strict=True)):
            sizes = ["x".join(map(str, shape)) for shape in (sides, images.shape[1:])]
            raise ConfigError(f"{path} takes images of {sizes[0]}, and these are {sizes[1]}.")
        if not isinstance(count, int):
            return np.asarray(call(images))
        parts = []
        for start in range(0, len(images), count):
            part = images[start : start + count]
            filled = np.pad(part, ((0, count - len(part)), *((0, 0) for _ in range(3))))
            parts.append(np.asarray(call(filled))[: len(part)])
        return np.concatenate(parts)

    name = _word(path.stem)
    return Features(name, hashlib.sha256(content).hexdigest(), _checked(function, name))
