"""How a classifier is made: trained on labelled images (`fit`), or on those of a data set on first use, and kept (`for_data`)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from psgjax import kept
from psgjax.data.dataset import Dataset
from psgjax.evaluation import classifier as classifiers
from psgjax.evaluation.classifier import Classifier, ClassifierError
from psgjax.lowering import conv
from psgjax.sources import Track, untracked

Tree = Any

_BATCH = 128
_LEARNING_RATE = 2e-3
# Epochs that `for_data` trains: more of small sets, until they have that number of pixels in all, so that it takes minutes.
_LEAST_EPOCHS, _MOST_EPOCHS, _CLASSIFIER_PIXELS = 10, 100, 300_000 * 28**2
_LEAST_TURNS, _PIXELS = 3, 100_000 * 28**2  # likewise of `rotations`
_INIT, _EPOCHS = range(2)  # streams of random numbers that follow from the seed


def fit(
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    epochs: int = 20,
    seed: int = 0,
    held_out: tuple[np.ndarray, np.ndarray | None] | None = None,
    progress: Callable[[int, float], None] | None = None,
    track: Track = untracked,
) -> Classifier:
    """Train a classifier with Adam, its learning rate falling to zero along a cosine, on randomly shifted images.

    The same for the same seed, bit for bit, on the same machine.

    Args:
        images: [N, H, W, C] uint8, H and W multiples of 4.
        labels: [N] whole numbers from 0 to the number of classes less one; at least two classes. If None, the images,
            then square, are turned by 0, 90, 180 or 270 degrees at random, and the classes are these four (Gidaris et al. 2018).
        epochs: Passes over the images.
        seed: Every random number follows from it.
        held_out: Images and labels to measure the accuracy on; if None, a tenth of the given ones, which is not trained on.
        progress: Called after each epoch with its number, from 1, and its mean loss.
        track: Shows how many of the epochs are done.

    Raises:
        ValueError: If images or labels are not as described above.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; it must be a whole number of at least 1.")
    turned = labels is None
    images, labels, held_out, classes = _checked(images, labels, held_out, seed)
    image_shape = images.shape[1:]
    key, arrays = jax.random.key(seed), (jnp.asarray(images), jnp.asarray(labels))
    init, program = _training(classes, image_shape, len(images), epochs, turned)
    params, opt_state = init(jax.random.fold_in(key, _INIT))
    for epoch in track(range(epochs), epochs, "training what images are measured by"):
        epoch_key = jax.random.fold_in(jax.random.fold_in(key, _EPOCHS), epoch)
        params, opt_state, loss = program(params, opt_state, *arrays, epoch_key)
        if progress:
            progress(epoch + 1, float(loss))
    params = _unit_features(jax.tree.map(np.asarray, params), classes, images)
    info = {
        "accuracy": 0.0,
        "train_images": len(images),
        "held_out_images": len(held_out[0]) // (4 if turned else 1),
        "epochs": epochs,
        "seed": seed,
        "weights_sha256": classifiers.digest(params),
    }
    classifier = Classifier(params, image_shape, classes, info)
    info["accuracy"] = classifiers.accuracy(classifier, *held_out)
    return classifier


def _checked(
    images: np.ndarray, labels: np.ndarray | None, held_out: tuple[np.ndarray, np.ndarray | None] | None, seed: int
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray], int]:
    """Training images and labels, held-out images and labels, and the number of classes (`fit`)."""
    turned = labels is None
    images, labels = classifiers.check_labelled(images, np.zeros(len(images), int) if labels is None else labels)
    if held_out is None:
        order = np.random.default_rng(seed).permutation(len(images))
        tenth = max(1, len(images) // 10)
        held_out = images[order[:tenth]], labels[order[:tenth]]
        images, labels = images[order[tenth:]], labels[order[tenth:]]
    if turned:
        pixels = classifiers.check_images(held_out[0])
        held_out = np.concatenate([np.rot90(pixels, k, (1, 2)) for k in range(4)]), np.repeat(np.arange(4), len(pixels))
    held_out = classifiers.check_labelled(held_out[0], np.zeros(0) if held_out[1] is None else held_out[1])
    classes = int(max(labels.max(), held_out[1].max())) + 1
    if classes < 2:
        raise ValueError("the labels name one class; a classifier needs at least two.")
    height, width = images.shape[1:3]
    if height % 4 or width % 4:
        raise ValueError(f"images are {height}x{width}; the classifier takes sides that are multiples of 4.")
    return images, labels, held_out, classes


def for_data(data: Dataset, progress: Callable[[str], None] = print, track: Track = untracked) -> Classifier | None:
    """The classifier for a data set: the shipped one for MNIST, one of its own for other labelled data, None without labels.

    A classifier of its own is trained on first use, which takes minutes, and kept in the user's cache folder under a hash of
    images and labels. A file there that is damaged is set aside, and the classifier trained again.

    Args:
        data: Its training images train the classifier, its held-out images give the accuracy.
        progress: Takes a line of text about anything slow or unexpected.
        track: Shows how far the training has come.

    Raises:
        ValueError: If images and labels cannot train a classifier (`fit`).
    """
    if data.labels is None or data.held_out_labels is None or not len(data.labels):
        return None
    real_mnist = data.info["name"] == "mnist" and (data.info["canonical"] or data.info["source"] == "packaged")
    if real_mnist and data.images.shape[1:] == classifiers.shipped().image_shape:
        return classifiers.shipped()
    digest = hashlib.sha256(data.info["sha256"].encode() + np.ascontiguousarray(data.labels, np.int32).data).hexdigest()
    epochs = _epochs(data, _LEAST_EPOCHS, _CLASSIFIER_PIXELS)
    return _kept_or_trained(data, Path("classifiers", digest), "classifier", epochs, progress, track)


def rotations(data: Dataset, progress: Callable[[str], None] = print, track: Track = untracked) -> Classifier:
    """A network that tells by how much square images of a data set, sides multiples of 4, were turned; its accuracy in `info`.

    It is trained on first use, which takes a minute or two, and kept as `for_data` has it.
    """
    unlabelled = dataclasses.replace(data, labels=None, held_out_labels=None)
    place, epochs = Path("rotations", data.info["sha256"]), _epochs(data, _LEAST_TURNS, _PIXELS)
    return _kept_or_trained(unlabelled, place, "features that tell rotations", epochs, progress, track)


def _epochs(data: Dataset, least: int, pixels: int) -> int:
    """How many epochs of a data set have that many pixels, `least` at least."""
    return min(max(least, math.ceil(pixels / math.prod(data.images.shape[:3]))), _MOST_EPOCHS)


def _kept_or_trained(
    data: Dataset, place: Path, what: str, epochs: int, progress: Callable[[str], None], track: Track
) -> Classifier:
    """The network kept in that place of the user's cache folder, or one that is trained now, and kept there."""
    path = (kept.cache_folder() / place).with_suffix(".safetensors")
    if path.exists():
        try:
            return classifiers.read(path)
        except (ClassifierError, OSError) as error:
            aside = path.with_suffix(".damaged")
            progress(f"{error} Set aside as {aside.name}.")
            path.replace(aside)
    name = data.info["name"]
    article = "" if what.startswith("features") else "a "
    progress(f"training {article}{what} for {name} on {len(data.images):,} images, {epochs} epochs, on first use")

    def tell(epoch: int, loss: float) -> None:
        if epoch == epochs or epoch % max(1, epochs // 10) == 0:
            progress(f"{what} for {name}: epoch {epoch} of {epochs}, loss {loss:.4f}")

    held_out = (data.held_out_images, data.held_out_labels) if len(data.held_out_images) else None
    classifier = fit(data.images, data.labels, epochs=epochs, held_out=held_out, progress=tell, track=track)
    classifier.info.update(data=name, data_sha256=data.info["sha256"])
    progress(f"{what} for {name}: {classifier.info['accuracy']:.2%} of the held-out images right")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        classifier.info["sha256"] = classifiers.save(classifier, path)
    except OSError as error:
        progress(f"the classifier could not be kept, and will be trained again next time: {error}")
    return classifier


def _unit_features(params: Tree, classes: int, images: np.ndarray) -> Tree:
    """The same function with features of mean square 1 over the images: distances mean the same for every classifier.

    Leaky ReLU passes a positive factor on, so the last two layers take it up.
    """
    features, _ = classifiers.apply(Classifier(params, images.shape[1:], classes, {}), images)
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
    classes: int, image_shape: tuple[int, int, int], count: int, epochs: int, turned: bool = False
) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """Two programs, for the given numbers of images and epochs; the second donates what it updates.

    `init(key) -> (params, opt_state)`; `epoch(params, opt_state, images, labels, key) -> (params, opt_state, mean loss)`.
    """
    module, batch = classifiers.module(classes), min(_BATCH, count)
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, epochs * (count // batch)))

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        params = module.init(key, jnp.zeros((1, *image_shape)))["params"]
        return params, optimizer.init(params)

    def loss(params: Tree, images: jax.Array, labels: jax.Array) -> jax.Array:
        _, logits = classifiers.features_and_logits(module, params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def epoch(params: Tree, opt_state: Tree, images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple:
        order_key, shift_key = jax.random.split(key)
        turn_key = jax.random.fold_in(shift_key, count)
        order = jax.random.permutation(order_key, count)

        def body(i: jax.Array, carry: tuple) -> tuple:
            params, opt_state, total = carry
            chosen = jax.lax.dynamic_slice_in_dim(order, i * batch, batch)
            shifted, right = _shift(images[chosen], jax.random.fold_in(shift_key, i)), labels[chosen]
            if turned:
                right = jax.random.randint(jax.random.fold_in(turn_key, i), (batch,), 0, 4)
                shifted = jnp.stack([jnp.rot90(shifted, k, (1, 2)) for k in range(4)])[right, jnp.arange(batch)]
            value, grads = jax.value_and_grad(loss)(params, shifted, right)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, total + value

        updates = count // batch
        params, opt_state, total = jax.lax.fori_loop(0, updates, body, (params, opt_state, jnp.zeros(())))
        return params, opt_state, total / updates

    return jax.jit(init), jax.jit(epoch, donate_argnums=(0, 1), compiler_options=conv.compiler_options())
