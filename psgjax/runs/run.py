"""A run that can be sampled and scored: a configuration, a state, and what was measured; from a folder or from memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from psgjax import schema
from psgjax.config import Config, ConfigError
from psgjax.data.dataset import Dataset
from psgjax.method.inference import make_batch_sampler
from psgjax.method.state import TrainState
from psgjax.runs import saved
from psgjax.runs.metrics import read_lines

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from psgjax.config import RangeName


@dataclass(frozen=True, eq=False)
class Run:
    """What training left.

    >>> import numpy, psgjax
    >>> images = numpy.random.default_rng(0).integers(0, 256, (40, 8, 8), numpy.uint8)
    >>> small = psgjax.Network(width=2, latent_size=4)
    >>> run = psgjax.train("gan", images, epochs=1, batch_size=4, network=small)
    >>> run.step, run.image_shape, len(run.metrics)
    (9, (8, 8, 1), 1)

    Attributes:
        config: What the run is.
        state: Its parameters, at `step`.
        image_shape: [H, W, C].
        metrics: One dictionary per epoch, as in metrics.jsonl; `pandas.DataFrame(run.metrics)` is a table.
        folder: Where it lies, or None.
        features: By which its samples are compared where no others are given, as `train` takes them; None for the usual ones.
    """

    config: Config
    state: TrainState
    image_shape: tuple[int, int, int]
    metrics: Sequence[dict[str, Any]] = field(default_factory=list)
    folder: Path | None = None
    features: Any = None

    def __repr__(self) -> str:
        """Method, step, folder."""
        place = "in memory" if self.folder is None else f"in {str(self.folder)!r}"
        return f"<Run of {self.config.method_name}, step {self.step:,} of {self.config.steps:,}, {place}>"

    def prepared(self) -> Run:
        """The run itself, which from here on is sampled with the parts that there are now."""
        assert self._artist
        return self

    @property
    def step(self) -> int:
        """The number of updates made."""
        return int(self.state.step)

    def sample(self, count: int, *, seed: int = 0, generator: int | None = None) -> np.ndarray:
        """Images, uint8 [count, H, W, C]; the first ones are the same for the same seed, however many are drawn.

        >>> import numpy, psgjax
        >>> images = numpy.random.default_rng(0).integers(0, 256, (40, 8, 8), numpy.uint8)
        >>> small = psgjax.Network(width=2, latent_size=4)
        >>> run = psgjax.train("psg", images, steps=1, batch_size=4, network=small)
        >>> both, second = run.sample(12, seed=3), run.sample(12, seed=3, generator=1)
        >>> both.shape, second.dtype
        ((12, 8, 8, 1), dtype('uint8'))

        Args:
            count: Of images.
            seed: From 0 to 2^32 - 1.
            generator: 0 to K - 1; without it each image is of one of the K generators, drawn with probability 1 / K.

        Raises:
            ConfigError: If one of them is not what is said here.
        """
        generators = self.config.method.generators
        schema.check(count >= 1, "count", count, "a whole number of at least 1")
        schema.check(
            generator is None or 0 <= generator < generators,
            "generator",
            generator,
            f"from 0 to {generators - 1}, or None",
        )
        images = self._of_each(count, seed)
        chosen = np.random.default_rng(seed).integers(generators, size=count) if generator is None else generator
        return images[chosen, np.arange(count)]

    def score(
        self,
        held_out: Dataset | ArrayLike,
        *,
        samples: int | None = None,
        seed: int = 0,
        classifier: Literal["mnist"] | None = None,
        features: Callable[[np.ndarray], Any] | str | Path | None = None,
        range: RangeName | None = None,
    ) -> dict[str, Any]:
        """The quality of samples, as a dictionary (`docs/evaluation.md`).

        >>> import numpy, psgjax
        >>> images = numpy.random.default_rng(0).integers(0, 256, (40, 8, 8), numpy.uint8)
        >>> small = psgjax.Network(width=2, latent_size=4)
        >>> run = psgjax.train("gan", images, steps=1, batch_size=4, network=small)
        >>> scores = run.score(images, samples=20)
        >>> scores["samples"], scores["reference"]
        (20, 40)

        Args:
            held_out: Real images that were not trained on, or a data set that has such.
            samples: The number of samples of all generators together; `config.evaluation_samples` if not given.
            seed: Of the samples.
            classifier: "mnist" where an array holds digits as MNIST has them: the features are those of its classifier then. A
                data set with labels has a classifier, one without has features that tell rotations apart, trained on first use.
            features: A function of images uint8 [n, H, W, C] to features [n, F] by which they are compared, such as a network's,
                or a .stablehlo file of one; then the Fréchet distance is called fd_ and its name. Those of `train` if not given.
            range: What black and white are in an array, as in "0..1", where its values do not make that certain.

        Raises:
            ConfigError: If the images do not fit the run, or their range is not certain.
        """
        from psgjax.data import layout  # here, because what scores takes a second to import
        from psgjax.evaluation.classifier import shipped
        from psgjax.evaluation.features import chosen
        from psgjax.evaluation.score import reference, reference_of, score

        count = (self.config.evaluation_samples if samples is None else samples) // self.config.method.generators
        given = self.features if features is None else features
        if isinstance(held_out, Dataset):
            real = reference_of(held_out, lambda line: None, given)
        else:
            images = layout.to_images(np.asarray(held_out), "held_out", range, "range=")
            images = images.reshape(-1, *images.shape[2:])
            real = reference(images, None, shipped() if classifier else None, "an array", chosen(given, images))
        try:
            return score(self._of_each(count, seed), real)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _of_each(self, count: int, seed: int) -> np.ndarray:
        """`count` images of each generator, uint8 [K, count, H, W, C]."""
        schema.check_seed(seed)
        return np.concatenate(self._artist(self.state, jax.random.key(seed), count), axis=1)

    @cached_property
    def _artist(self) -> Any:
        return make_batch_sampler(self.config, self.image_shape)


def load(folder: str | Path, checkpoint: str | int = "last") -> Run:
    """The run in that folder; nothing in it is changed, and it may still train.

    >>> import psgjax
    >>> psgjax.load("runs/none")
    Traceback (most recent call last):
    ...
    psgjax.schema.ConfigError: runs/none holds no run (no config.json); give the folder of one method, such as runs/mnist/psg.

    Args:
        folder: Of one method, and of one seed where several were trained together.
        checkpoint: last; best, with the least FCD while it trained; or the step of one that is kept.

    Raises:
        ConfigError: If there is no such run or checkpoint.
    """
    folder = schema.local_path("folder", Path(folder))
    config, state, image_shape = saved.load(folder, checkpoint)
    folder = folder.parent if folder.name in ("best", "checkpoints") else folder
    return Run(config, state, image_shape, read_lines(folder / "metrics.jsonl"), folder)
