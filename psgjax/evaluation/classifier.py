"""A small convolutional classifier: its classes and its penultimate features are what most metrics here look at.

The one for MNIST is shipped (`shipped`): `python -m experiments.train_classifier` made it. For other labelled data one is trained
on first use and kept under the user's cache folder (`for_data`). A file holds the weights in the safetensors format, with what
is known of them as JSON in its metadata.

Distances between features depend on the classifier: figures compare only where its SHA-256 is the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy
from flax import traverse_util

from psgjax import conv, environment, networks, step
from psgjax.config import ConfigError
from psgjax.data import Dataset
from psgjax.tracking import write_atomically

Tree = Any

FEATURES = 64  # length of the penultimate features
SHIPPED = Path(__file__).with_name("mnist_classifier.safetensors")
SHIPPED_SHA256 = "11c8d46333af0c82f9a3bf78296703f290867218ae5bdc9e0da6c6aa42a157fb"

# Layers of 28x28x1 images: 14x14x32, 7x7x64, 7x7x32 by convolutions, then 64 features and 10 classes; 152,906 parameters.
_LAYERS = ((32, 4, 2), (64, 4, 2), (32, 3, 1))
_SLOPE = 0.1
_BATCH = 128
_LEARNING_RATE = 2e-3
_LEAST_EPOCHS, _MOST_EPOCHS, _IMAGES = 10, 100, 300_000  # that `for_data` trains on: small sets are seen more often
_INIT, _EPOCHS = range(2)  # streams of random numbers that follow from the seed


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


def fit(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int = 20,
    seed: int = 0,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Classifier:
    """Train a classifier with Adam, its learning rate falling to zero along a cosine, on randomly shifted images.

    The same for the same seed, bit for bit, on the same machine.

    Args:
        images: [N, H, W, C] uint8, H and W multiples of 4.
        labels: [N] whole numbers from 0; there are as many classes as the largest says, at least two.
        epochs: Passes over the images.
        seed: Every random number follows from it.
        held_out: Images and labels on which the accuracy is taken; a tenth of those given, not trained on then, if None.
        progress: Called after each epoch with its number, from 1, and its mean loss.

    Raises:
        ValueError: If images and labels do not fit each other or what is said above.
    """
    images, labels = _check_labelled(images, labels)
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; it must be a whole number of at least 1.")
    if held_out is None:
        order = np.random.default_rng(seed).permutation(len(images))
        tenth = max(1, len(images) // 10)
        held_out = images[order[:tenth]], labels[order[:tenth]]
        images, labels = images[order[tenth:]], labels[order[tenth:]]
    held_out = _check_labelled(*held_out)
    classes = int(max(labels.max(), held_out[1].max())) + 1
    if classes < 2:
        raise ValueError("the labels name one class; a classifier needs at least two.")
    image_shape = images.shape[1:]
    if image_shape[0] % 4 or image_shape[1] % 4:
        raise ValueError(
            f"images are {image_shape[0]}x{image_shape[1]}; the classifier takes sides that are multiples of 4."
        )

    key, arrays = jax.random.key(seed), (jnp.asarray(images), jnp.asarray(labels))
    init, program = _training(classes, image_shape, len(images), epochs)
    params, opt_state = init(jax.random.fold_in(key, _INIT))
    for epoch in range(epochs):
        epoch_key = jax.random.fold_in(jax.random.fold_in(key, _EPOCHS), epoch)
        params, opt_state, loss = program(params, opt_state, *arrays, epoch_key)
        if progress:
            progress(epoch + 1, float(loss))
    params = _unit_features(jax.tree.map(np.asarray, params), classes, images)
    info = {
        "accuracy": 0.0,
        "train_images": len(images),
        "held_out_images": len(held_out[0]),
        "epochs": epochs,
        "seed": seed,
        "weights_sha256": _digest(params),
    }
    classifier = Classifier(params, image_shape, classes, info)
    info["accuracy"] = accuracy(classifier, *held_out)
    return classifier


def apply(
    classifier: Classifier,
    images: np.ndarray,
    *,
    chunk: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What the classifier makes of images; the same for any chunk size and any order of images, to float32 rounding.

    Args:
        classifier: From `shipped`, `for_data`, `read` or `fit`.
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
    images, labels = _check_labelled(images, labels)
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
        expected = jax.eval_shape(_module(classes).init, jax.random.key(0), jnp.zeros((1, *image_shape)))["params"]
        params = traverse_util.unflatten_dict(tensors, sep=".")
        shapes = [jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree) for tree in (expected, params)]
        if shapes[0] != shapes[1]:
            raise ValueError("its arrays are not those of this version's classifier")
        if _digest(params) != info["weights_sha256"]:
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


def for_data(data: Dataset, progress: Callable[[str], None] = print) -> Classifier | None:
    """The classifier for a data set: the shipped one for MNIST, one of its own for other labelled data, None without labels.

    A classifier of its own is trained on first use, which takes minutes, and kept in the user's cache folder under a hash of
    images and labels. A file there that is damaged is set aside, and the classifier trained again.

    Args:
        data: Its training images train the classifier, its held-out images give the accuracy.
        progress: Takes a line of text about anything slow or unexpected.

    Raises:
        ValueError: If images and labels cannot train a classifier (`fit`).
    """
    if data.labels is None or not len(data.labels):
        return None
    real_mnist = data.info["name"] == "mnist" and (data.info["canonical"] or data.info["source"] == "packaged")
    if real_mnist and data.images.shape[1:] == shipped().image_shape:
        return shipped()
    digest = hashlib.sha256(data.info["sha256"].encode() + np.ascontiguousarray(data.labels, np.int32).data).hexdigest()
    path = environment.cache_folder() / "classifiers" / f"{digest}.safetensors"
    if path.exists():
        try:
            return read(path)
        except (ClassifierError, OSError) as error:
            aside = path.with_suffix(".damaged")
            progress(f"{error} Set aside as {aside.name}.")
            path.replace(aside)
    return _train_and_keep(data, path, progress)


def _train_and_keep(data: Dataset, path: Path, progress: Callable[[str], None]) -> Classifier:
    name, epochs = data.info["name"], min(max(_LEAST_EPOCHS, math.ceil(_IMAGES / len(data.images))), _MOST_EPOCHS)
    progress(f"training a classifier for {name} on {len(data.images):,} images, {epochs} epochs, on first use")

    def tell(epoch: int, loss: float) -> None:
        if epoch == epochs or epoch % max(1, epochs // 10) == 0:
            progress(f"classifier for {name}: epoch {epoch} of {epochs}, loss {loss:.4f}")

    held_out = (data.held_out_images, data.held_out_labels) if len(data.held_out_images) else None
    classifier = fit(data.images, data.labels, epochs=epochs, held_out=held_out, progress=tell)
    classifier.info.update(data=name, data_sha256=data.info["sha256"])
    progress(f"classifier for {name}: {classifier.info['accuracy']:.2%} of the held-out images right")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        classifier.info["sha256"] = save(classifier, path)
    except OSError as error:
        progress(f"the classifier could not be kept, and will be trained again next time: {error}")
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
            "the generator diverged, or the file is damaged" if holds_nan else "psgjax.tracking.to_pixels makes them"
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


def _check_labelled(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    images, labels = check_images(images), np.asarray(labels)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} images have labels of the shape {list(labels.shape)}; it must be [N].")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"labels are {labels.dtype}, from {labels.min()}; they must be whole numbers from 0.")
    return images, labels.astype(np.int32)


def _module(classes: int) -> networks.ConvDiscriminator:
    return networks.ConvDiscriminator(_LAYERS, (FEATURES,), _SLOPE, classes)


def _features_and_logits(
    module: networks.ConvDiscriminator, params: Tree, images: jax.Array
) -> tuple[jax.Array, jax.Array]:
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
        features, logits = _features_and_logits(_module(classes), params, images)
        return features, jax.nn.softmax(logits)

    return jax.jit(run, compiler_options=conv.compiler_options())


def _unit_features(params: Tree, classes: int, images: np.ndarray) -> Tree:
    """The same function with features of mean square 1 over the images: distances mean the same for every classifier.

    Leaky ReLU passes a positive factor on, so the last two layers take it up.
    """
    features, _ = apply(Classifier(params, images.shape[1:], classes, {}), images)
    square = float(np.mean(np.square(features, dtype=np.float64)))
    factor = np.float32(1 / math.sqrt(square)) if square > 0 else np.float32(1)
    inner, outer = sorted(name for name in params if name.startswith("Dense"))
    scaled = {name: array * factor for name, array in params[inner].items()}
    return {**params, inner: scaled, outer: {**params[outer], "kernel": params[outer]["kernel"] / factor}}


def _shift(images: jax.Array, key: jax.Array) -> jax.Array:
    """Each image moved by up to a fourteenth of its side, two pixels of 28, at random; black comes in."""
    reach = max(images.shape[1:3]) // 14
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * reach + 1)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)


@functools.cache
def _training(
    classes: int, image_shape: tuple[int, int, int], count: int, epochs: int
) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """Two programs, for so many images and epochs in all, the second donated what it updates.

    `init(key) -> (params, opt_state)`; `epoch(params, opt_state, images, labels, key) -> (params, opt_state, mean loss)`.
    """
    module, batch = _module(classes), min(_BATCH, count)
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, epochs * (count // batch)))

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        params = module.init(key, jnp.zeros((1, *image_shape)))["params"]
        return params, optimizer.init(params)

    def loss(params: Tree, images: jax.Array, labels: jax.Array) -> jax.Array:
        _, logits = _features_and_logits(module, params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def epoch(params: Tree, opt_state: Tree, images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple:
        order_key, shift_key = jax.random.split(key)
        order = jax.random.permutation(order_key, count)

        def body(i: jax.Array, carry: tuple) -> tuple:
            params, opt_state, total = carry
            chosen = jax.lax.dynamic_slice_in_dim(order, i * batch, batch)
            shifted = _shift(images[chosen], jax.random.fold_in(shift_key, i))
            value, grads = jax.value_and_grad(loss)(params, shifted, labels[chosen])
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, total + value

        updates = count // batch
        params, opt_state, total = jax.lax.fori_loop(0, updates, body, (params, opt_state, jnp.zeros(())))
        return params, opt_state, total / updates

    return jax.jit(init), jax.jit(epoch, donate_argnums=(0, 1), compiler_options=conv.compiler_options())


def _digest(params: Tree) -> str:
    """SHA-256 of the arrays, in the order of their names."""
    digest = hashlib.sha256()
    for name, array in sorted(traverse_util.flatten_dict(params, sep=".").items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
