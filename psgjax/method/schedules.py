"""What changes over a run, as Optax schedules of the run's own step: step sizes, Adam's beta2, penalties, the moving average.

An optimiser's own count would stand still where a gate gives it no update. Between two updates of the generators, while D has
several, `step` is no whole number.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax

from psgjax.config import Config

Step = jax.Array | float

_SHAPES = {
    "constant": lambda end, steps: optax.constant_schedule(1.0),
    "linear": lambda end, steps: optax.linear_schedule(1.0, end, steps),
    "cosine": lambda end, steps: optax.cosine_decay_schedule(1.0, steps, alpha=end),
}


def factor(shape: str, end: float, share: float, config: Config) -> optax.Schedule:
    """From 1 to `end` over the first `share` of the run, and constant from then on."""
    return _SHAPES[shape](end, max(share * config.steps, 1))


def step_size(config: Config, step: Step) -> Step:
    """What the optimisers' step sizes are multiplied by."""
    settings = config.optimizer
    return factor(settings.schedule, settings.schedule_end, settings.schedule_share, config)(step)


def beta2(config: Config, step: Step) -> Step:
    """Adam's decay of the second moment, by a cosine from `beta2` to `beta2_end` over `early_share` of the run."""
    settings = config.optimizer
    if settings.beta2_end is None:
        return settings.beta2
    left = factor("cosine", 0.0, settings.early_share, config)(step)
    return settings.beta2_end + (settings.beta2 - settings.beta2_end) * left


def penalty(config: Config, step: Step) -> Step:
    """What the regularisers' weights are multiplied by: by a cosine from 1 to `penalty_end` over `early_share` of the run."""
    return factor("cosine", config.optimizer.penalty_end, config.optimizer.early_share, config)(step)


def average_weight(config: Config, count: jax.Array, step: Step) -> jax.Array:
    """The weight of a generator's new parameters in their moving average, of which `count` updates are then part.

    An exponential moving average without bias (Kingma and Ba 2015, section 3): the weights of all parameters since the first
    update add up to one, and those of the initialisation have none. With a warm-up, its half-life grows by a cosine from 0, and
    the first update's parameters are the first average (R3GAN; Karras et al. 2020 likewise).
    """
    settings = config.optimizer
    if not settings.average_half_life:
        return (1 - settings.average_decay) / -jnp.expm1(count * math.log(settings.average_decay))
    images = config.batch_size * config.method.discriminator_steps  # of an update, as metrics.jsonl counts them
    rate = -math.log(2) * images / settings.average_half_life
    if not settings.average_warmup:
        return math.expm1(rate) / jnp.expm1(count * rate)
    grown = 1 - factor("cosine", 0.0, settings.average_warmup, config)(step)
    return jnp.where(count == 1, 1.0, -jnp.expm1(rate / jnp.maximum(grown, 1e-6)))
