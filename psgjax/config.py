"""What a run is: frozen dataclasses, and the named methods as data.

Nothing here imports jax, so that a mistake on the command line is found before anything slow is loaded. Every field carries
its sentence of explanation in its type (PEP 727); the command line shows the same sentence.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typing_extensions import Doc

from psgjax import parts, schema, sources
from psgjax.networks import table
from psgjax.schema import ConfigError as ConfigError
from psgjax.schema import Listed

RangeName = Literal["0..1", "-1..1", "0..255", "0..65535"]


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
        for name, least in (
            ("generators", 1),
            ("discriminator_steps", 1),
            ("pack", 1),
            ("power_iterations", 1),
            ("warmup_iterations", 0),
        ):
            schema.check(
                getattr(self, name) >= least,
                f"method.{name}",
                getattr(self, name),
                f"a whole number of at least {least}",
            )
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


@dataclass(frozen=True)
class Network:
    """Which generator and discriminator are trained, and how large they are (`networks/`).

    >>> Network("resnet", width=32, blocks=2).latent_size
    100
    """

    name: Annotated[str, Listed("Layers: {}.", partial(parts.described, table.NETWORKS))] = "dcgan"
    width: Annotated[
        int, Doc("Channels of the layer next to the image (mlp: of every hidden layer); deeper layers have multiples.")
    ] = 64
    latent_size: Annotated[int, Doc("Length of the latent vector z, drawn from a standard normal distribution.")] = 100
    blocks: Annotated[int, Doc("Residual blocks at each image size (resnet).")] = 1

    def __post_init__(self) -> None:
        """Refuse unknown names and sizes below one; names of earlier versions become those of this one."""
        schema.check_types(self, "network.")
        object.__setattr__(self, "name", table.find(self.name))
        for name in ("width", "latent_size", "blocks"):
            schema.check(
                getattr(self, name) >= 1, f"network.{name}", getattr(self, name), "a whole number of at least 1"
            )
        if self.blocks > 1 and not table.NETWORKS[self.name].blocks:
            having = ", ".join(name for name, known in table.NETWORKS.items() if known.blocks)
            raise ConfigError(
                f"network.blocks {self.blocks} with network.name {self.name}: it has no blocks; those of {having} are counted."
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
        for item in dataclasses.fields(self)[1:6] if self.name != "adam" else ():
            if getattr(self, item.name) != item.default:
                raise ConfigError(
                    f"optimizer.{item.name} {getattr(self, item.name)} with optimizer.name {self.name} would be ignored: it is a "
                    "setting of adam; leave it out, and register your optimiser with the value that you want."
                )
        for name in ("learning_rate", "discriminator_learning_rate"):
            value = getattr(self, name)
            schema.check(
                value is None or (math.isfinite(value) and value > 0),
                f"optimizer.{name}",
                value,
                "a finite number above 0",
            )
        for name in ("beta1", "beta2", "beta2_end", "average_decay"):
            value = getattr(self, name)
            schema.check(
                value is None or 0 <= value < 1, f"optimizer.{name}", value, "a number from 0 up to, not including, 1"
            )
        for name in ("schedule_share", "early_share"):
            value = getattr(self, name)
            schema.check(0 < value <= 1, f"optimizer.{name}", value, "a share above 0, 1 at most")
        for name in ("schedule_end", "average_warmup"):
            value = getattr(self, name)
            schema.check(0 <= value <= 1, f"optimizer.{name}", value, "a share from 0 to 1")
        for name in ("penalty_end", "average_half_life"):
            value = getattr(self, name)
            schema.check(math.isfinite(value) and value >= 0, f"optimizer.{name}", value, "a finite number, 0 or more")
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
        for name in ("train_images", "size"):
            schema.check(
                getattr(self, name) >= 0,
                f"data.{name}",
                getattr(self, name),
                "a whole number, 0 for all or as they are",
            )
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
        for name in ("replica", "generator", "data"):
            schema.check(getattr(self, name) >= 0, f"mesh.{name}", getattr(self, name), "a whole number, 0 to choose")


@dataclass(frozen=True)
class Config:
    """One training run of one method. Everything that decides its result, and nothing else.

    >>> config = Config("gan", named_method("gan"), batch_size=32, seed=7)
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
        int, Doc("Measure the quality of samples every so many epochs and at the end; 0 for never.")
    ] = 0
    evaluation_samples: Annotated[int, Doc("Samples of all generators together to measure it on.")] = 10_000
    _former = ("warning",)  # fields that earlier versions wrote, which decide nothing

    def __post_init__(self) -> None:
        """Refuse sizes and counts below one."""
        schema.check_types(self)
        for name in ("batch_size", "steps"):
            schema.check(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        schema.check(
            self.evaluation_epochs >= 0, "evaluation_epochs", self.evaluation_epochs, "a whole number, 0 for never"
        )
        if self.batch_size % self.method.pack:
            raise ConfigError(
                f"batch_size {self.batch_size} with method.pack {self.method.pack}: D sees {self.method.pack} images at once, so "
                "that a batch must be a multiple; use a --batch-size of "
                f"{-(-self.batch_size // self.method.pack) * self.method.pack}."
            )
        least = 6 * self.method.generators  # the metrics look at five neighbours of an image
        schema.check(
            self.evaluation_samples >= least,
            "evaluation_samples",
            self.evaluation_samples,
            f"a whole number of at least {least}",
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
