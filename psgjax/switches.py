"""What a method is: the switches of the update, and the named methods as data. Nothing here imports jax."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from typing_extensions import Doc

from psgjax import parts, schema
from psgjax.schema import ConfigError as ConfigError
from psgjax.schema import Listed


@dataclass(frozen=True)
class Method:
    """One formulation of adversarial training; the defaults are PSG-GAN as `docs/method.md` reads it.

    >>> Method(generators=3, gate="none", regularisers=(("r1", 1.0), ("r2", 1.0))).scores
    'softmax'
    >>> Method(loss="hing", scores="independent")
    Traceback (most recent call last):
    ...
    psgjax.schema.MissingPart: unknown method.loss 'hing'; known are cross-entropy, hinge, ... Did you mean 'hinge'? ...
    """

    generators: Annotated[
        int, Doc("How many identical generators K are trained in parallel (paper, section 3.1: two).")
    ] = 2
    scores: Annotated[
        Literal["softmax", "independent"],
        Doc(
            "How D's scores are read: a softmax over the tuple chooses the real image, or each image is judged on its own."
        ),
    ] = "softmax"
    loss: Annotated[str, Listed("D's loss: {}.", partial(parts.described, parts.LOSSES))] = "cross-entropy"
    gate: Annotated[str, Listed("Where Algorithm 1 decides: {}.", partial(parts.described, parts.GATES))] = "triplet"
    mask_average: Annotated[
        Literal["batch", "selected"],
        Doc("A gated loss is averaged over the whole batch, or over the selected triplets alone."),
    ] = "batch"
    generator_loss: Annotated[
        Literal["non-saturating", "minimax"],
        Doc("Generators raise the log-probability of being called real, or lower that of being called fake."),
    ] = "non-saturating"
    average_loss: Annotated[
        Literal["generators", "discriminator", "both"],
        Doc("Who receives the generators' average loss where D chose the real image (Algorithm 1, third branch)."),
    ] = "generators"
    average_loss_weight: Annotated[float, Doc("Factor on that average loss.")] = 1.0
    correct_weight: Annotated[
        float, Doc("D's weight in a triplet that it got right: 0 (the paper) to 1 (always updated).")
    ] = 0.0
    update_order: Annotated[
        Literal["simultaneous", "alternating"],
        Doc("Both sides from one forward pass of D, or D first and the generators against the new D."),
    ] = "simultaneous"
    discriminator_steps: Annotated[
        int, Doc("Discriminator updates for each generator update (alternating order only).")
    ] = 1
    latents: Annotated[
        Literal["shared", "independent"], Doc("All generators see the same z, or each draws its own.")
    ] = "shared"
    pack: Annotated[
        int,
        Doc("How many images D sees at once, all real or all of one generator, their channels side by side (PacGAN)."),
    ] = 1
    spectral_norm: Annotated[bool, Doc("Divide each of D's kernels by its largest singular value (SNGAN).")] = False
    power_iterations: Annotated[int, Doc("Power iterations for each discriminator update.")] = 1
    warmup_iterations: Annotated[int, Doc("Power iterations at initialisation, before the first update.")] = 0
    regularisers: Annotated[
        tuple[tuple[str, float], ...],
        Listed(
            "Penalties on D, each with its weight, such as r1 10 r2 10: {}.",
            partial(parts.described, parts.REGULARISERS),
        ),
    ] = ()
    diversity_weight: Annotated[
        float, Doc("MGAN's beta: weight of the classification loss of generators and D (mgan loss only).")
    ] = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be computed or contradicts itself, with the reason."""
        schema.check_types(self, "method.")
        least = dict.fromkeys(("generators", "discriminator_steps", "pack", "power_iterations"), 1)
        schema.check_least(self, "method.", **least, warmup_iterations=0)
        schema.check(
            0 <= self.correct_weight <= 1, "method.correct_weight", self.correct_weight, "a number from 0 to 1"
        )
        for name in ("average_loss_weight", "diversity_weight"):
            value = getattr(self, name)
            schema.check(math.isfinite(value) and value >= 0, f"method.{name}", value, "a finite number, 0 or more")
        self._check_parts()
        if self.gate == "none" and self.average_loss != "generators":
            raise ConfigError(
                f"method.average_loss {self.average_loss} with method.gate none: the average loss belongs to Algorithm 1's third "
                "branch, and without a gate there are no branches; use --method.gate triplet, majority or mean."
            )
        if self.update_order == "simultaneous" and self.discriminator_steps != 1:
            raise ConfigError(
                f"method.discriminator_steps {self.discriminator_steps} with method.update_order simultaneous: one pass of D "
                "serves one update of each side; use --method.update-order alternating."
            )

    def _check_parts(self) -> None:
        """Refuse names that are in no table, and what the tables say does not go together."""
        schema.known_part("method.loss", self.loss, parts.LOSSES)
        schema.known_part("method.gate", self.gate, parts.GATES)
        for name, weight in self.regularisers:
            schema.known_part("method.regularisers", name, parts.REGULARISERS)
            schema.check(
                math.isfinite(weight) and weight >= 0,
                f"method.regularisers {name}",
                weight,
                "a finite weight, 0 or more",
            )
        if len(dict(self.regularisers)) < len(self.regularisers):
            raise ConfigError(f"method.regularisers {self.regularisers} names one twice; give each one weight.")
        if self.scores == "softmax" and self.loss != "cross-entropy":
            raise ConfigError(
                f"method.loss {self.loss} with method.scores softmax: a softmax over the tuple defines a likelihood, which only "
                "cross-entropy optimises; use --method.scores independent, or --method.loss cross-entropy."
            )
        loss = parts.loss_of(self)
        if loss.ungated and self.gate != "none":
            raise ConfigError(
                f"method.gate {self.gate} with method.loss {self.loss}: {loss.ungated}; use --method.gate none."
            )
        if self.generators < loss.generators:
            raise ConfigError(
                f"method.generators {self.generators} with method.loss {self.loss}: naming the generator of an image needs at "
                f"least two; use --method.generators {loss.generators} or more, or --method.loss cross-entropy."
            )
        if self.generator_loss == "minimax" and not loss.minimax:
            raise ConfigError(
                f"method.generator_loss minimax with method.loss {self.loss}: its paper defines one generator loss only; "
                "use --method.generator-loss non-saturating."
            )

    @staticmethod
    def upgraded(values: dict[str, Any]) -> dict[str, Any]:
        """The JSON of a method as earlier versions wrote it, as this one does: WGAN-GP's penalty was a field of its own."""
        values = dict(values)
        weight = values.pop("gradient_penalty", None)
        if weight is not None and values.get("loss") == "wasserstein":
            values["regularisers"] = [["gradient-penalty", weight]]
        return values


_UNGATED = Method(generators=1, scores="independent", gate="none")
# gamma = 1 of Mescheder et al. 2018 and of R3GAN: gamma / 2 E |grad D|^2 at the real and at the generated images.
_R1R2 = (("r1", 1.0), ("r2", 1.0))


@dataclass(frozen=True)
class Named:
    """A method that has a name."""

    method: Method
    doc: str  # a line for people
    paper: str = ""


# The named methods: points on one grid (docs/method.md), and the peers whose formulations do not lie on it.
NAMED: dict[str, Named] = {
    "psg": Named(
        Method(),
        "PSG-GAN: K = 2 generators in one softmax with the real image, each updated by its gate",
        "Park, Doh and Yang",
    ),
    "sngan": Named(
        dataclasses.replace(_UNGATED, spectral_norm=True),
        "one generator, binary cross-entropy, spectral normalisation of D",
        "Miyato et al. 2018",
    ),
    "gan": Named(_UNGATED, "one generator, binary cross-entropy", "Goodfellow et al. 2014"),
    "relativistic": Named(
        dataclasses.replace(_UNGATED, scores="softmax"),
        "one generator in one softmax with the real image",
        "Jolicoeur-Martineau 2018",
    ),
    "stackelberg": Named(
        dataclasses.replace(_UNGATED, generators=2),
        "two generators, binary cross-entropy, no gate",
        "Zhang et al. 2018",
    ),
    "psg-sn": Named(Method(spectral_norm=True), "psg with spectral normalisation of D"),
    "mad-gan": Named(
        dataclasses.replace(_UNGATED, generators=2, loss="mad-gan"),
        "two generators, D says which of them made an image",
        "Ghosh et al. 2018",
    ),
    "mgan": Named(
        dataclasses.replace(_UNGATED, generators=2, loss="mgan", latents="shared"),
        "two generators that share latents, and a classifier of them",
        "Hoang et al. 2018",
    ),
    "wgan-gp": Named(
        dataclasses.replace(
            _UNGATED,
            loss="wasserstein",
            regularisers=parts.LOSSES["wasserstein"].penalties,
            update_order="alternating",
            discriminator_steps=5,
        ),
        "one generator, Wasserstein loss with gradient penalty, five updates of D to one",
        "Gulrajani et al. 2017",
    ),
    "choice": Named(
        Method(gate="none", regularisers=_R1R2),
        "K = 2 generators in one softmax with the real image, no gate, R1 and R2 in every update; r3gan for any K",
    ),
    "r3gan": Named(
        Method(generators=1, gate="none", regularisers=_R1R2),
        "relativistic with R1 and R2 in every update: the loss of R3GAN",
        "Huang et al. 2024",
    ),
    "psg-ungated": Named(Method(gate="none"), "psg without its gate: every side learns from every tuple"),
    "psg-r1r2": Named(Method(regularisers=_R1R2), "psg with R1 and R2 in every update, whatever its gate says"),
    "gan-r1r2": Named(dataclasses.replace(_UNGATED, regularisers=_R1R2), "gan with R1 and R2", "Mescheder et al. 2018"),
    "stackelberg-r1r2": Named(
        dataclasses.replace(_UNGATED, generators=2, regularisers=_R1R2), "stackelberg with R1 and R2"
    ),
    "mgan-r1r2": Named(
        dataclasses.replace(_UNGATED, generators=2, loss="mgan", regularisers=_R1R2), "mgan with R1 and R2"
    ),
}
METHODS: dict[str, Method] = {name: known.method for name, known in NAMED.items()}
_OWN = frozenset(NAMED)


def register_method(name: str, method: Method, doc: str = parts.MINE, paper: str = "") -> None:
    """Give a method of your own a name, under which `train` and every command know it.

    >>> import psgjax
    >>> psgjax.register_method("psg-3", psgjax.Method(generators=3), "PSG-GAN with three generators")
    >>> psgjax.methods()["psg-3"]
    'PSG-GAN with three generators'

    Args:
        name: Any that is not one of the package's; your own is replaced.
        method: What it is.
        doc: A line for people.
        paper: Its source.

    Raises:
        ConfigError: If the name is one of the package's, or no word.
    """
    schema.check_new("method", name, _OWN)
    NAMED[name] = Named(method, doc, paper)
    METHODS[name] = method


def named_method(name: str) -> Method:
    """The method called `name`.

    >>> named_method("stackelberg").generators
    2

    Raises:
        ConfigError: If there is none; the message gives the nearest name.
    """
    return METHODS[schema.known_part("method", name, METHODS)]
