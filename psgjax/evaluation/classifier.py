"""A small convolutional classifier: its classes and its penultimate features are what most metrics here look at.

The one for MNIST is shipped (`shipped`): `python -m experiments.train_classifier` made it; `fitting.py` makes others. A file holds
the weights in the safetensors format, with what is known of them as JSON in its metadata.

Distances between features depend on the classifier: figures compare only where its SHA-256 is the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from psgjax.config import ConfigError
from psgjax.files import write_atomically
from psgjax.lowering import conv
from psgjax.method import step
from psgjax.networks.dcgan import ConvDiscriminator

Tree = Any

FEATURES = 64  # length of the penultimate features
SHIPPED = Path(__file__).with_name("mnist_classifier.safetensors")
SHIPPED_SHA256 = "11c8d46333af0c82f9a3bf78296703f290867218ae5bdc9e0da6c6aa42a157fb"

# Layers of 28x28x1 images: 14x14x32, 7x7x64, 7x7x32 by convolutions, then 64 features and 10 classes; 152,906 parameters.
_LAYERS = ((32, 4, 2), (64, 4, 2), (32, 3, 1))
_SLOPE = 0.1


class ClassifierError(ConfigError):
    """A file that holds no classifier of this version, or a damaged one."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier.

    Attributes:
        params: Tree of float32 arrays.
        image_shape: [H, W, C] of the images that it takes.
        classes: How many it tells apart.
        info: JSON-able: `accuracy` (share of `held_out_images` images, never trained on, that it names right), `train_images`,
            `epochs`, `seed`, `weights_sha256` (of the arrays); where the one who made it adds them, `command`, `data` and
            `data_sha256`; and if it comes from a file, `sha256` (of that file).
    """

    params: Tree
    image_shape: tuple[int, int, int]
    classes: int
    info: dict[str, Any]


def apply(
    classifier: Classifier,
    images: np.ndarray,
    *,
    chunk: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What the classifier makes of images; the same for any chunk size and any order of images, to float32 rounding.

    Args:
        classifier: From `shipped` or `read`, or from `for_data` or `fit` of `fitting.py`.
        images: [N, H, W, C] uint8, N at least 1, in the classifier's image shape.
        chunk: Images in a call to the device, which bounds its memory; the last one is filled up, so that one program serves all.
        progress: Called after each chunk with the number of images done.

    Returns:
        Penultimate features [N, 64] float32, and probabilities [N, classes] float32 that sum to 1.

    Raises:
        ValueError: If there are no images, or they are of another type or shape.
    """
    images = check_images(images, classifier.image_shape)
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be a whole number of at least 1.")
    program, params = _program(classifier.classes), jax.device_put(classifier.params)
    results = []
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk]
        filled = np.pad(part, ((0, chunk - len(part)), (0, 0), (0, 0), (0, 0)))
        results.append([np.asarray(array)[: len(part)] for array in program(params, filled)])
        if progress:
            progress(start + len(part))
    features, probabilities = (np.concatenate(arrays) for arrays in zip(*results, strict=True))
    return features, probabilities


def accuracy(classifier: Classifier, images: np.ndarray, labels: np.ndarray) -> float:
    """Share, from 0 to 1, of the images [N, H, W, C] uint8 whose most probable class is their label [N]."""
    images, labels = check_labelled(images, labels)
    return float(np.mean(apply(classifier, images)[1].argmax(1) == labels))


def save(classifier: Classifier, path: Path) -> str:
    """Write the classifier, as a whole or not at all, and return the SHA-256 of the file: the same for the same classifier."""
    tensors = traverse_util.flatten_dict(classifier.params, sep=".")
    known = {key: value for key, value in classifier.info.items() if key != "sha256"}
    described = {"image_shape": list(classifier.image_shape), "classes": classifier.classes, **known}
    # One entry: the library writes several in no fixed order.
    content = safetensors.numpy.save(tensors, metadata={"classifier": json.dumps(described)})
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def read(path: Path) -> Classifier:
    """The classifier that `save` wrote.

    Raises:
        ClassifierError: If the file holds none of this version, or is damaged.
        OSError: If it cannot be read.
    """
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        with safetensors.safe_open(path, framework="np") as file:
            info = json.loads(file.metadata()["classifier"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
        height, width, channels = info.pop("image_shape")
        image_shape, classes = (int(height), int(width), int(channels)), int(info.pop("classes"))
        expected = jax.eval_shape(module(classes).init, jax.random.key(0), jnp.zeros((1, *image_shape)))["params"]
        params = traverse_util.unflatten_dict(tensors, sep=".")
        shapes = [jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree) for tree in (expected, params)]
        if shapes[0] != shapes[1]:
            raise ValueError("its arrays are not those of this version's classifier")
        if digest(params) != info["weights_sha256"]:
            raise ValueError("its weights are not those that were written")
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ClassifierError(f"{path} is not a classifier, or a damaged one: {error}; train it again.") from None
    return Classifier(params, image_shape, classes, {**info, "sha256": sha256})


@functools.cache
def shipped() -> Classifier:
    """The classifier for MNIST that comes with this package.

    Raises:
        ClassifierError: If its file is not the one that was shipped.
    """
    classifier = read(SHIPPED)
    if classifier.info["sha256"] != SHIPPED_SHA256:
        raise ClassifierError(
            f"{SHIPPED} has the SHA-256 {classifier.info['sha256']} and not {SHIPPED_SHA256}: figures made with it would not "
            "compare with others; install psgjax again."
        )
    return classifier


def check_images(images: np.ndarray, image_shape: tuple[int, int, int] | None = None) -> np.ndarray:
    """The images as an array [N, H, W, C] uint8, N at least 1.

    Raises:
        ValueError: If they are none, of another type, or of another shape than `image_shape` where that is given.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        holds_nan = np.issubdtype(images.dtype, np.inexact) and np.isnan(images).any()
        advice = (
            "the generator diverged, or the file is damaged"
            if holds_nan
            else "psgjax.data.pictures.to_pixels makes them"
        )
        raise ValueError(
            f"images are {images.dtype}{' and hold NaN' if holds_nan else ''}; they must be uint8, 0 to 255: {advice}."
        )
    wanted = "N, H, W, C" if image_shape is None else ", ".join(["N", *map(str, image_shape)])
    if images.ndim != 4 or (image_shape is not None and images.shape[1:] != image_shape):
        raise ValueError(f"images have the shape {list(images.shape)}; it must be [{wanted}].")
    if not images.size:
        raise ValueError("there are no images; at least one is needed.")
    return images


def check_labelled(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images as an array [N, H, W, C] uint8 and their labels as an array [N] int32, N at least 1.

    Raises:
        ValueError: If the images are not what `check_images` takes, or the labels are not one whole number from 0 for each.
    """
    images, labels = check_images(images), np.asarray(labels)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} images have labels of the shape {list(labels.shape)}; it must be [N].")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"labels are {labels.dtype}, from {labels.min()}; they must be whole numbers from 0.")
    return images, labels.astype(np.int32)


def module(classes: int) -> ConvDiscriminator:
    """The network of every classifier with that number of classes, whatever the shape of its images."""
    return ConvDiscriminator(_LAYERS, (FEATURES,), _SLOPE, classes)


def features_and_logits(module: ConvDiscriminator, params: Tree, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Images uint8 [B, H, W, C] to penultimate features [B, 64] and logits [B, classes]."""
    features = step.scale(images)
    with jax.default_matmul_precision("float32"):
        for stage in range(module.depth - 1):
            features = jnp.asarray(module.apply({"params": params}, features, stage))
        return features, jnp.asarray(module.apply({"params": params}, features, module.depth - 1))


@functools.cache
def _program(classes: int) -> jax.stages.Wrapped:
    """`program(params, images) -> (features, probabilities)`, jitted."""

    def run(params: Tree, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        features, logits = features_and_logits(module(classes), params, images)
        return features, jax.nn.softmax(logits)

    return jax.jit(run, compiler_options=conv.compiler_options())


def digest(params: Tree) -> str:
    """SHA-256 of the arrays, in the order of their names."""
    hashed = hashlib.sha256()
    for name, array in sorted(traverse_util.flatten_dict(params, sep=".").items()):
        hashed.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()
