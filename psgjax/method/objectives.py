"""Scores in; losses, gates and accuracy out. No networks, no optimiser.

`outputs` is what the discriminator returned for tuples of K generated images and one real image: [K + 1, B, O], generators
first, the real image last; O is 1 except for MAD-GAN (K + 1 classes) and MGAN (a score and K classes). `scores` [K + 1, B] is
its reading as one number an image, the larger the more real. The switches are those of `config.Method`; `docs/method.md` gives
the sentence of the paper behind each.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from psgjax import parts
from psgjax.config import Method

Metrics = dict[str, Any]


def outputs_needed(method: Method) -> int:
    """How many numbers the discriminator must return for an image."""
    return parts.loss_of(method).outputs(method.generators)


def read_scores(method: Method, outputs: jax.Array) -> jax.Array:
    """One score an image, outputs [..., O] to [...]: the first output, or what the loss reads there."""
    read = parts.loss_of(method).scores
    return parts.resolved(read)(outputs) if read else outputs[..., 0]


def losses(method: Method, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The discriminator's loss in each tuple, [B], and each generator's, [K, B]; before any gate.

    `minimax` generators minimise the log-probability of being called fake in place of raising that of being called real.
    """
    loss = parts.loss_of(method)
    discriminator, generators = loss(outputs)
    if method.generator_loss == "minimax" and loss.minimax:
        generators = parts.resolved(loss.minimax)(outputs)
    return discriminator, generators


def choose(scores: jax.Array, key: jax.Array) -> jax.Array:
    """Which item of each tuple D calls real: one-hot [K + 1, B] over scores [K + 1, B], ties broken at random."""
    tied = scores == scores.max(0, keepdims=True)
    order = jnp.where(tied, jax.random.uniform(key, scores.shape), -1.0)
    return jax.nn.one_hot(order.argmax(0), len(scores), axis=0)


def choose_by_mean(scores: jax.Array, key: jax.Array) -> jax.Array:
    """The choice by mean scores, for the whole batch."""
    return jnp.broadcast_to(choose(scores.mean(1, keepdims=True), key), scores.shape)


def choose_by_majority(scores: jax.Array, key: jax.Array) -> jax.Array:
    """What is chosen in most tuples, for the whole batch."""
    chosen = choose(scores, key)
    return jnp.broadcast_to(choose(chosen.mean(1, keepdims=True), jax.random.fold_in(key, 1)), scores.shape)


def gate(method: Method, scores: jax.Array, key: jax.Array) -> jax.Array:
    """The branch of Algorithm 1 that each tuple takes: one-hot [K + 1, B]; row i is "generator i chosen", the last "x chosen"."""
    branch: jax.Array = parts.GATES[method.gate](scores, key)
    return branch


def route(
    method: Method, discriminator: jax.Array, generators: jax.Array, branch: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Algorithm 1: who learns from which tuple. Whoever's item was called fake gets the update.

    Args:
        method: The switches.
        discriminator: D's loss in each tuple, [B].
        generators: Each generator's, [K, B].
        branch: One-hot [K + 1, B], from `gate`.

    Returns:
        The routed loss of D, [B], and of each generator, [K, B]; and which tuples give each an update, as bool, [B] and [K, B].
    """
    if method.gate == "none":
        return discriminator, generators, jnp.full(discriminator.shape, True), jnp.full(generators.shape, True)
    chosen, right = branch[:-1], branch[-1]
    average = method.average_loss_weight * generators.mean(0) * right
    to_generators, to_discriminator = method.average_loss != "discriminator", method.average_loss != "generators"
    d_weight = jnp.where(right > 0, method.correct_weight, 1.0)
    d_loss = d_weight * discriminator + (average if to_discriminator else 0.0)
    another_chosen = 1 - chosen - right[None]
    g_loss = another_chosen * generators + (average[None] if to_generators else 0.0)
    averaged = (right > 0) & (method.average_loss_weight > 0)
    d_mask = (d_weight > 0) | (averaged & to_discriminator)
    g_mask = (another_chosen > 0) | (averaged & to_generators)[None]
    return d_loss, g_loss, d_mask, g_mask


def average(method: Method, loss: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of a routed loss [..., B] over the batch, or over the selected tuples; 0 where none is selected."""
    if method.mask_average == "batch":
        return loss.mean(-1)
    return loss.sum(-1) / jnp.maximum(mask.sum(-1), 1)


def evaluate(
    method: Method, outputs: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, Metrics]:
    """Everything that an update needs to know of the discriminator's outputs [K + 1, B, O].

    Returns:
        Derivative of D's objective by the outputs, [K + 1, B, O]; derivative of each generator's own objective by the outputs
        on its own images, [K, B, O]; whether D has an update, bool; whether each generator has, bool [K]; and the metrics.
    """
    branch = gate(method, read_scores(method, outputs), key)

    def objectives(outputs: jax.Array) -> tuple[jax.Array, tuple]:
        d_loss, g_loss = losses(method, outputs)
        d_routed, g_routed, d_mask, g_mask = route(method, d_loss, g_loss, branch)
        gated = jnp.concatenate([average(method, g_routed, g_mask), average(method, d_routed, d_mask)[None]])
        total, extra = gated, {}
        if classify := parts.loss_of(method).classifier:
            classifier = parts.resolved(classify)(outputs).mean(1)
            total = total + method.diversity_weight * jnp.concatenate([classifier, classifier.mean()[None]])
            extra = {"classifier_loss": classifier.mean()}
        return total, (d_loss.mean(), g_loss.mean(1), gated, d_mask, g_mask, extra)

    # One row of derivatives for each generator's objective and one for D's: [K + 1, K + 1, B, O]. A generator learns from its row
    # by its own images alone; what its loss would do to the other generators' images is not its business.
    rows, (d_loss, g_loss, gated, d_mask, g_mask, extra) = jax.jacrev(objectives, has_aux=True)(outputs)
    own = jnp.arange(method.generators)
    metrics = {
        "loss": {"discriminator": d_loss, "generators": g_loss},
        "gated_loss": {"discriminator": gated[-1], "generators": gated[:-1]},
        "branches": branch.mean(1),
        "updates": {"discriminator": d_mask.mean(), "generators": g_mask.mean(1)},
        **accuracy(read_scores(method, outputs), key),
        **extra,
    }
    return rows[-1], rows[own, own], d_mask.any(), g_mask.any(1), metrics


def of_each_side(discriminator: Metrics, generators: Metrics) -> Metrics:
    """The metrics of an update whose sides had passes of their own: D's losses, updates and accuracies from its pass."""
    own = {
        name: {**generators[name], "discriminator": discriminator[name]["discriminator"]}
        for name in ("loss", "gated_loss", "updates")
    }
    of_d = ("accuracy", "pairwise_accuracy", "regularisers")
    return {**generators, **own, **{name: discriminator[name] for name in of_d if name in discriminator}}


def accuracy(scores: jax.Array, key: jax.Array) -> Metrics:
    """Of scores [K + 1, B]: top-1, P(argmax = x), chance 1 / (K + 1); pairwise, P(s_x > s_G), ties counting half, chance 1/2."""
    fake, real = scores[:-1], scores[-1:]
    return {
        "accuracy": choose(scores, key)[-1].mean(),
        "pairwise_accuracy": ((real > fake) + 0.5 * (real == fake)).mean(),
    }


def calibrated(method: Method, outputs: jax.Array) -> Metrics:
    """Both sides' losses on outputs [K + 1, B, O] divided by the one temperature that makes D's loss least.

    Temperature scaling (Guo et al. 2017, section 4.2): what remains does not depend on how large D's scores have grown, only on
    how well they order the images. D's loss is convex in 1 / temperature, which is sought between 1e-3 and 1e3; a D that never
    errs has its least loss at the end of that range. Nothing where D's loss has no least value.
    """
    if not parts.loss_of(method).bounded:
        return {}

    def discriminator_loss(inverse: jax.Array) -> jax.Array:
        return losses(method, outputs * inverse)[0].mean()

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        rises = jax.grad(discriminator_loss)(jnp.exp(middle)) > 0
        return jnp.where(rises, low, middle), jnp.where(rises, middle, high)

    end = jnp.log(1e3)
    low, high = jax.lax.fori_loop(0, 30, halve, (-end, end))
    inverse = jnp.exp((low + high) / 2)
    d_loss, g_loss = losses(method, outputs * inverse)
    loss = {"discriminator": d_loss.mean(), "generators": g_loss.mean(1)}
    return {"calibrated_loss": loss, "temperature": 1 / inverse}
