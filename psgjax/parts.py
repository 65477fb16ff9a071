"""What a method is made of, by name: losses, gates and regularisers; the package's own, and those that a user registers.

An entry carries everything that is known of a part: configuration, command line, objectives, report and ablation read it here.
Nothing here imports jax: an entry names its function as "room.file:function", which is imported when it is first called.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psgjax import schema

if TYPE_CHECKING:
    from psgjax.config import Method

Function = Callable[..., Any] | str
MINE = "registered by you"


@dataclass(frozen=True)
class Part:
    """One entry of a table."""

    doc: str  # a few words, for --help
    function: Function
    paper: str = ""

    def __call__(self, *arguments: Any) -> Any:
        """What the function makes of them."""
        return resolved(self.function)(*arguments)


@dataclass(frozen=True)
class Loss(Part):
    """`function(outputs)`: of D's outputs [K + 1, B, O], the real images' last, D's loss [B] and each generator's, [K, B].

    Before any gate; O is what `outputs` says for K generators. Of a loss that only some of this is known of, the rest is refused.
    """

    outputs: Callable[[int], int] = lambda generators: 1
    scores: Function | None = None  # outputs [..., O] to one score an image [...]; the first output where there is none
    minimax: Function | None = None  # of the same outputs, what the generators lose in a zero-sum game, [K, B]
    classifier: Function | None = None  # a loss [K, B] of naming each image's generator, which both sides share
    equilibrium: Callable[[int, bool], tuple[float, float]] | None = (
        None  # of K, and whether minimax: D's and a generator's
    )
    ungated: str = ""  # why no gate can act on it
    generators: int = 1  # the least K
    penalties: tuple[tuple[str, float], ...] = ()  # regularisers that its paper trains it with, and their weights
    bounded: bool = True  # whether D's loss has a least value over the temperatures of its scores


@dataclass(frozen=True)
class Gate(Part):
    """`function(scores, key)`: of scores [K + 1, B], which branch of Algorithm 1 each tuple takes, one-hot [K + 1, B]."""


@dataclass(frozen=True)
class Regulariser(Part):
    """`function(score, real, fake, draw)`: values whose mean, times a weight, is added to D's loss in every update.

    `score` maps images [..., H, W, C] to scores [...]; `real` is [B, H, W, C] and `fake` [K, B, H, W, C]; `draw(sampler, *shape)`
    gives random numbers `sampler(key, shape)`, [K, B, *shape]. Each value may depend on one image of each kind, so that the mean is
    the same on any mesh.
    """


@dataclass(frozen=True)
class Optimiser(Part):
    """`function(config, step)`: an optax transformation for the generators and one for D, as they are at a step of the run."""


def _choice(choices: int, minimax: bool) -> float:
    """What a generator loses where D chooses one of that number by chance."""
    return math.log(1 - 1 / choices) if minimax else math.log(choices)


# A softmax over the tuple's scores has a likelihood of its own; `method.scores softmax` reads cross-entropy so.
SOFTMAX = Loss(
    "the choice of one image of each tuple",
    "method.losses:softmax",
    "Park, Doh and Yang, section 3",
    minimax="method.losses:softmax_minimax",
    equilibrium=lambda k, minimax: (math.log(k + 1), _choice(k + 1, minimax)),
)
LOSSES: dict[str, Loss] = {
    "cross-entropy": Loss(
        "with independent scores binary, with a softmax over each tuple's that of the choice",
        "method.losses:cross_entropy",
        "Goodfellow et al. 2014, section 3",
        minimax="method.losses:cross_entropy_minimax",
        equilibrium=lambda k, minimax: (2 * math.log(2), _choice(2, minimax)),
    ),
    "hinge": Loss(
        "margins of one",
        "method.losses:hinge",
        "Miyato et al. 2018, equations 16 and 17",
        minimax="method.losses:hinge_minimax",
        equilibrium=lambda k, minimax: (2.0, -1.0 if minimax else 0.0),
    ),
    "wasserstein": Loss(
        "WGAN's critic",
        "method.losses:wasserstein",
        "Gulrajani et al. 2017, equation 3 without the penalty",
        equilibrium=lambda k, minimax: (0.0, 0.0),
        ungated="a critic's scores call nothing real or fake, so there is no choice to gate by",
        penalties=(("gradient-penalty", 10.0),),
        bounded=False,
    ),
    "mad-gan": Loss(
        "MAD-GAN's classes, one of them real",
        "method.losses:mad_gan",
        "Ghosh et al. 2018, section 3",
        outputs=lambda generators: generators + 1,
        scores="method.losses:mad_gan_scores",
        minimax="method.losses:mad_gan_minimax",
        equilibrium=lambda k, minimax: (math.log(k + 1), _choice(k + 1, minimax)),
        ungated="its discriminator names the generator of each image and makes no choice among a triplet",
        generators=2,
    ),
    "mgan": Loss(
        "MGAN's score and classifier",
        "method.losses:cross_entropy",
        "Hoang et al. 2018, equation 2",
        outputs=lambda generators: generators + 1,
        classifier="method.losses:mgan_classifier",
        equilibrium=lambda k, minimax: (2 * math.log(2), math.log(2)),
        ungated="its classifier is trained on every generated image, whatever the discriminator chose",
        generators=2,
    ),
}
GATES: dict[str, Gate] = {
    "triplet": Gate("in each triplet", "method.objectives:choose"),
    "majority": Gate("once a batch by majority", "method.objectives:choose_by_majority"),
    "mean": Gate("once a batch by mean score", "method.objectives:choose_by_mean"),
    "none": Gate("nowhere", "method.objectives:choose"),  # the choice is logged all the same
}
REGULARISERS: dict[str, Regulariser] = {
    "r1": Regulariser(
        "half the squared norm of D's gradient at real images",
        "method.regularisers:r1",
        "Mescheder et al. 2018, equation 9",
    ),
    "r2": Regulariser("the same at generated images", "method.regularisers:r2", "Mescheder et al. 2018, equation 10"),
    "gradient-penalty": Regulariser(
        "(norm - 1)^2 between real and generated images",
        "method.regularisers:gradient_penalty",
        "Gulrajani et al. 2017",
    ),
}
OPTIMISERS: dict[str, Optimiser] = {
    "adam": Optimiser("Adam, whose settings these are", "method.state:adam", "Kingma and Ba 2015")
}
_TABLES: dict[type, dict[str, Any]] = {Loss: LOSSES, Gate: GATES, Regulariser: REGULARISERS, Optimiser: OPTIMISERS}
_OWN = frozenset(name for table in _TABLES.values() for name in table)


def resolved(function: Function) -> Callable[..., Any]:
    """The function that an entry names."""
    if callable(function):
        return function
    file, name = function.split(":")
    return getattr(importlib.import_module(f"psgjax.{file}"), name)


def loss_of(method: Method) -> Loss:
    """The loss of a method, by its name and how the scores are read."""
    return SOFTMAX if method.scores == "softmax" else LOSSES[method.loss]


def described(table: dict[str, Any]) -> str:
    """A table's names, each with its few words, for --help."""
    return "; ".join(f"{name}, {part.doc}" for name, part in table.items())


def _register(kind: type[Part], name: str, function: Callable[..., Any], doc: str, known: dict[str, Any]) -> None:
    what = kind.__name__.lower()
    schema.check_new(what, name, _OWN)
    schema.check(callable(function), f"the function of {what} {name}", function, f"a function; see {kind.__name__}")
    for setting in known:
        schema.known(f"setting of {what} {name}", setting, tuple(field.name for field in dataclasses.fields(kind)))
    _TABLES[kind][name] = kind(doc, function, **known)


def register_loss(name: str, function: Callable[..., Any], doc: str = MINE, **known: Any) -> None:
    """Let `Method(loss=name)`, every command and saved runs know a loss of your own.

    >>> import jax, psgjax
    >>> def lsgan(outputs):
    ...     fake, real = outputs[:-1, :, 0], outputs[-1, :, 0]
    ...     return (real - 1) ** 2 + (fake**2).mean(0), (fake - 1) ** 2
    >>> psgjax.register_loss("lsgan", lsgan, equilibrium=lambda k, minimax: (0.5, 0.25))
    >>> psgjax.Method(loss="lsgan", scores="independent", gate="none").loss
    'lsgan'

    Args:
        name: Any that is not one of the package's; your own is replaced.
        function: Outputs [K + 1, B, O] to D's loss [B] and the generators' [K, B]; see `Loss`.
        doc: A few words for people.
        known: Other fields of `Loss`.

    Raises:
        ConfigError: If the name is one of the package's or no word, or `Loss` has no such field.
    """
    _register(Loss, name, function, doc, known)


def register_gate(name: str, function: Callable[..., Any], doc: str = MINE, **known: Any) -> None:
    """Let `Method(gate=name)`, every command and saved runs know a gate of your own.

    >>> import jax, psgjax
    >>> def coin(scores, key):  # any image of the tuple, whatever its score
    ...     return jax.nn.one_hot(jax.random.randint(key, scores.shape[1:], 0, len(scores)), len(scores), axis=0)
    >>> psgjax.register_gate("coin", coin)
    >>> psgjax.Method(gate="coin").gate
    'coin'

    Args:
        name: Any that is not one of the package's; your own is replaced.
        function: Scores [K + 1, B] and a key to one-hot [K + 1, B]; see `Gate`.
        doc: A few words for people.
        known: Other fields of `Gate`.

    Raises:
        ConfigError: If the name is one of the package's or no word, or `Gate` has no such field.
    """
    _register(Gate, name, function, doc, known)


def register_regulariser(name: str, function: Callable[..., Any], doc: str = MINE, **known: Any) -> None:
    """Let `Method(regularisers=((name, weight),))`, every command and saved runs know a regulariser of your own.

    >>> import psgjax
    >>> def drift(score, real, fake, draw):  # Karras et al. 2018, appendix A.1
    ...     return score(real) ** 2
    >>> psgjax.register_regulariser("drift", drift)
    >>> psgjax.Method(regularisers=(("drift", 0.001),)).regularisers
    (('drift', 0.001),)

    Args:
        name: Any that is not one of the package's; your own is replaced.
        function: A scoring function, images of both kinds and random numbers to values; see `Regulariser`.
        doc: A few words for people.
        known: Other fields of `Regulariser`.

    Raises:
        ConfigError: If the name is one of the package's or no word, or `Regulariser` has no such field.
    """
    _register(Regulariser, name, function, doc, known)


def register_optimizer(name: str, optimizer: Any, doc: str = MINE, **known: Any) -> None:
    """Let `Optimizer(name)`, every command and saved runs know optimisers of your own.

    >>> import optax, psgjax
    >>> psgjax.register_optimizer("rmsprop", (optax.rmsprop(1e-3), optax.rmsprop(5e-4)), "RMSProp, D slower")
    >>> psgjax.Optimizer("rmsprop", schedule="linear").name
    'rmsprop'

    Args:
        name: Any that is not one of the package's; your own is replaced.
        optimizer: An optax transformation for both sides, or a pair: the generators' and D's. A gate that selects nothing leaves
            its state as it is; the settings `schedule` and `average_decay` apply to it too.
        doc: A few words for people.
        known: Other fields of `Optimiser`.

    Raises:
        ConfigError: If the name is one of the package's or no word, or these are no optax transformations.
    """
    pair = (optimizer, optimizer) if hasattr(optimizer, "update") else optimizer
    are = isinstance(pair, tuple) and len(pair) == 2 and all(hasattr(each, "update") for each in pair)
    schema.check(are, f"optimiser {name}", optimizer, "an optax transformation, or a pair of them")
    _register(Optimiser, name, lambda config, step: pair, doc, known)
