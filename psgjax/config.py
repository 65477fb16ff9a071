"""What a run is: frozen dataclasses (its method: `switches.py`).

Nothing here imports jax, so that a mistake on the command line is found before anything slow is loaded. Every field carries
its sentence of explanation in its type (PEP 727); the command line shows the same sentence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typing_extensions import Doc

from psgjax import parts, schema, sources
from psgjax.networks import table
from psgjax.schema import ConfigError as ConfigError
from psgjax.schema import Listed
from psgjax.switches import Method as Method

RangeName = Literal["0..1", "-1..1", "0..255", "0..65535"]


@dataclass(frozen=True)
class Network:
    """Which generator and discriminator are trained, and how large they are (`networks/`).

    >>> Network("resnet", width=32, blocks=2).latent_size
    100
    """

    name: Annotated[str, Listed("Layers: {}.", partial(parts.described, table.NETWORKS))] = "dcgan"
    width: Annotated[
        int, Doc("Channels of the layer next to the image (mlp, maxout: of hidden layers); deeper ones have multiples.")
    ] = 64
    latent_size: Annotated[int, Doc("Length of the latent vector z, drawn from a standard normal distribution.")] = 100
    blocks: Annotated[int, Doc("Residual blocks at each image size (resnet).")] = 1

    def __post_init__(self) -> None:
        """Refuse unknown names and sizes below one; names of earlier versions become those of this one."""
        schema.check_types(self, "network.")
        object.__setattr__(self, "name", table.find(self.name))
        schema.check_least(self, "network.", width=1, latent_size=1, blocks=1)
        if self.blocks > 1 and not table.NETWORKS[self.name].blocks:
            having = ", ".join(name for name, known in table.NETWORKS.items() if known.blocks)
            raise ConfigError(
                f"network.blocks {self.blocks} with network.name {self.name}: it has no blocks; those of {having} are counted."
            )


_LIMITS: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (  # of the settings of `Optimizer`
    (("learning_rate", "discriminator_learning_rate"), lambda x: 0 < x < math.inf, "a finite number above 0"),
    (("beta1", "beta2", "beta2_end"), lambda x: 0 <= x < 1, "a number from 0 up to, not including, 1"),
    (("average_decay",), lambda x: 0 <= x < 1, "a number from 0 up to, not including, 1"),
    (("schedule_share", "early_share"), lambda x: 0 < x <= 1, "a share above 0, 1 at most"),
    (("schedule_end", "average_warmup"), lambda x: 0 <= x <= 1, "a share from 0 to 1"),
    (("penalty_end", "average_half_life"), lambda x: 0 <= x < math.inf, "a finite number, 0 or more"),
)


@dataclass(frozen=True)
class Optimizer:
    """Adam for both sides; the defaults are setting C of Miyato et al. 2018, Table 1. Or one of your own, by its name.

    >>> Optimizer(learning_rate=1e-3, schedule="linear", average_decay=0.999).name
    'adam'
    """

    name: Annotated[str, Listed("Optimiser: {}.", partial(parts.described, parts.OPTIMISERS))] = "adam"
    learning_rate: Annotated[
        float, Doc("Adam's step size for the generators, and for D where it has none of its own.")
    ] = 2e-4
    discriminator_learning_rate: Annotated[
        float | None, Doc("D's own step size; the generators' where none is given.")
    ] = None
    beta1: Annotated[float, Doc("Adam's decay of the first moment.")] = 0.5
    beta2: Annotated[float, Doc("Adam's decay of the second moment.")] = 0.999
    beta2_end: Annotated[float | None, Doc("What beta2 becomes over early_share, by a cosine.")] = None
    schedule: Annotated[
        Literal["constant", "linear", "cosine"], Doc("The step size stays, or falls linearly or by a cosine.")
    ] = "constant"
    schedule_end: Annotated[float, Doc("Share of the step size that is left when it has fallen.")] = 0.0
    schedule_share: Annotated[float, Doc("Share of the run over which it falls.")] = 1.0
    penalty_end: Annotated[
        float, Doc("What the regularisers' weights are multiplied by in the end; over early_share, by a cosine.")
    ] = 1.0
    early_share: Annotated[float, Doc("Share of the run over which beta2 and penalties change.")] = 0.2
    average_decay: Annotated[
        float, Doc("Decay of the exponential moving average of the generators that is sampled; 0 keeps none.")
    ] = 0.0
    average_half_life: Annotated[float, Doc("In place of that decay, the average's half-life in real images.")] = 0.0
    average_warmup: Annotated[float, Doc("Share of the run over which that half-life grows from 0, by a cosine.")] = 0.0

    def __post_init__(self) -> None:
        """Refuse step sizes and decays with which Adam cannot run."""
        schema.check_types(self, "optimizer.")
        schema.known_part("optimizer.name", self.name, parts.OPTIMISERS)
        adams = ("learning_rate", "discriminator_learning_rate", "beta1", "beta2", "beta2_end")
        for item in dataclasses.fields(self) if self.name != "adam" else ():
            if item.name in adams and getattr(self, item.name) != item.default:
                raise ConfigError(
                    f"optimizer.{item.name} {getattr(self, item.name)} with optimizer.name {self.name} would be ignored: it is a "
                    "setting of adam; leave it out, and register your optimiser with the value that you want."
                )
        for names, holds, accepted in _LIMITS:
            for name in names:
                value = getattr(self, name)
                schema.check(value is None or holds(value), f"optimizer.{name}", value, accepted)
        self._check_together()

    def _check_together(self) -> None:
        """Refuse settings of which one would do nothing."""
        if self.average_decay and self.average_half_life:
            raise ConfigError(
                f"optimizer.average_decay {self.average_decay} and optimizer.average_half_life {self.average_half_life} are two "
                "ways to set one average; give one of them."
            )
        if self.average_warmup and not self.average_half_life:
            raise ConfigError(
                f"optimizer.average_warmup {self.average_warmup} without optimizer.average_half_life: nothing warms up; give both."
            )
        if self.early_share != 0.2 and self.beta2_end is None and self.penalty_end == 1:
            raise ConfigError(
                f"optimizer.early_share {self.early_share} is where beta2 and penalties change, and neither does; give "
                "optimizer.beta2_end or optimizer.penalty_end, too."
            )
        if self.schedule == "constant" and (self.schedule_end, self.schedule_share) != (0.0, 1.0):
            raise ConfigError(
                "optimizer.schedule_end and schedule_share say how the step size falls, and with optimizer.schedule constant it "
                "does not; use --optimizer.schedule linear or cosine."
            )

    @property
    def averages(self) -> bool:
        """Whether a moving average of the generators is kept, which is then what is sampled."""
        return bool(self.average_decay or self.average_half_life)


@dataclass(frozen=True)
class Data:
    """Where the images come from, and what is made of them (`sources.py`).

    >>> Data(source="folder", dir=Path("photographs"), size=64, flip=True).colour
    'as-is'
    """

    source: Annotated[str, Listed("Where from: {}.", partial(parts.described, sources.SOURCES))] = "auto"
    dir: Annotated[
        Path | None,
        Doc("The folder, or with array the file; with tfds: a folder of files already downloaded (manual_dir)."),
    ] = None
    name: Annotated[
        str | None,
        Doc(
            "The data set: mnist (where none is given) or fashion_mnist, with tfds any that it knows, with idx what the files' "
            "names begin with; else what reports are to call it."
        ),
    ] = None
    train_images: Annotated[int, Doc("Train on the first of the canonical order, this many at most; 0 takes all.")] = 0
    size: Annotated[
        int,
        Doc(
            "Cut the largest square out of the middle of each image, and resize it to this side by Lanczos; 0 does neither."
        ),
    ] = 0
    colour: Annotated[
        Literal["as-is", "grey", "rgb"], Doc("Channels: three if any image is in colour, or one or three in any case.")
    ] = "as-is"
    held_out: Annotated[
        float | None,
        Doc(
            "Share of the images not to train on but to measure by, a tenth if not given, where the source has none set apart."
        ),
    ] = None
    background: Annotated[Literal["black", "white"], Doc("What is transparent in image files is laid on it.")] = "black"
    broken: Annotated[float, Doc("Share of image files that may be broken, which are named and left out.")] = 0.01
    transpose: Annotated[bool, Doc("Turn columns into rows, as EMNIST's IDX files need it.")] = False
    range: Annotated[
        RangeName | None, Doc("What is black and what is white in an array, where its values do not make it certain.")
    ] = None
    flip: Annotated[bool, Doc("Mirror each image that is trained on, left to right, with a chance of one half.")] = (
        False
    )

    def __post_init__(self) -> None:
        """Refuse counts and shares that cannot be."""
        schema.check_types(self, "data.")
        schema.known_part("data.source", self.source, sources.SOURCES)
        schema.check_least(self, "data.", train_images=0, size=0)
        held_out = self.held_out
        schema.check(held_out is None or 0 < held_out < 1, "data.held_out", held_out, "a share between 0 and 1")
        schema.check(0 <= self.broken < 1, "data.broken", self.broken, "a share from 0 up to, not including, 1")


@dataclass(frozen=True)
class Mesh:
    """How the devices share the work (`sharding.py`); the results are the same on every mesh."""

    replica: Annotated[int, Doc("Parts that the independent runs are split into; 0 to choose.")] = 0
    generator: Annotated[int, Doc("Parts that the generators are split into; 0 to choose.")] = 0
    data: Annotated[int, Doc("Parts that a batch and the data set are split into; 0 to choose.")] = 0

    def __post_init__(self) -> None:
        """Refuse negative sizes."""
        schema.check_types(self, "mesh.")
        schema.check_least(self, "mesh.", replica=0, generator=0, data=0)


@dataclass(frozen=True)
class Config:
    """One training run of one method. Everything that decides its result, and nothing else.

    >>> import psgjax
    >>> config = psgjax.Config("gan", psgjax.named_method("gan"), batch_size=32, seed=7)
    >>> config.method.generators, config.steps_per_epoch(1000)
    (1, 31)
    """

    method_name: str = "psg"
    method: Method = field(default_factory=Method)
    network: Network = field(default_factory=Network)
    optimizer: Optimizer = field(default_factory=Optimizer)
    data: Data = field(default_factory=Data)
    batch_size: Annotated[int, Doc("Images of each kind in an update: B real ones, and B from every generator.")] = 64
    steps: Annotated[int, Doc("Generator updates in the whole run.")] = 1000
    seed: Annotated[int, Doc("Every random number of the run follows from it.")] = 0
    precision: Annotated[
        Literal["float32", "bfloat16", "tf32"],
        Doc("Of the layers' arithmetic; parameters, scores, losses and statistics are float32 always."),
    ] = "float32"
    evaluation_epochs: Annotated[
        int, Doc("Epochs between measurements of the quality of samples, one more at the end; 0 for none.")
    ] = 0
    evaluation_samples: Annotated[int, Doc("Samples of all generators together to measure it on.")] = 10_000
    _former = ("warning",)  # fields that earlier versions wrote, which decide nothing

    def __post_init__(self) -> None:
        """Refuse sizes and counts below one."""
        schema.check_types(self)
        samples = 6 * self.method.generators  # the metrics look at five neighbours of an image
        schema.check_least(self, "", batch_size=1, steps=1, evaluation_epochs=0, evaluation_samples=samples)
        if self.batch_size % self.method.pack:
            raise ConfigError(
                f"batch_size {self.batch_size} with method.pack {self.method.pack}: D sees {self.method.pack} images at once, so "
                "that a batch must be a multiple; use a --batch-size of "
                f"{-(-self.batch_size // self.method.pack) * self.method.pack}."
            )
        schema.check_seed(self.seed)

    def steps_per_epoch(self, train_images: int) -> int:
        """Generator updates in one pass over `train_images` images; a last partial batch is left out.

        Raises:
            ConfigError: If the set does not hold one update's images.
        """
        images = self.batch_size * self.method.discriminator_steps
        if images > train_images:
            raise ConfigError(
                f"batch_size {self.batch_size} with {self.method.discriminator_steps} discriminator step(s) needs {images} images "
                f"an update, and the training set has {train_images}; use a --batch-size of at most "
                f"{train_images // self.method.discriminator_steps}."
            )
        return train_images // images


def check_penalties(configs: Collection[Config]) -> None:
    """Refuse a fall of the penalties' weights where there are no penalties: of several runs that are compared, in none.

    Raises:
        ConfigError: With what to do.
    """
    for config in configs:
        if config.optimizer.penalty_end != 1 and not any(other.method.regularisers for other in configs):
            raise ConfigError(
                f"optimizer.penalty_end {config.optimizer.penalty_end} would be ignored: there are no penalties; leave it out, or "
                "give some, such as method.regularisers r1 1 r2 1."
            )


# What a command line overrides of a preset or a named method.
if TYPE_CHECKING:
    DataOverrides = Data
    MethodOverrides = Method
    NetworkOverrides = Network
    OptimizerOverrides = Optimizer
else:
    DataOverrides, MethodOverrides, NetworkOverrides, OptimizerOverrides = map(
        schema.overrides_of, (Data, Method, Network, Optimizer)
    )
