"""What a notebook calls: `train` and `methods`; `psgjax` itself has their names, and loads this when one is used."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psgjax import schema
from psgjax.config import Config, ConfigError, Data, Method, Network, Optimizer, check_penalties
from psgjax.data import dataset as datasets
from psgjax.data.dataset import Dataset
from psgjax.runs.run import Run, load
from psgjax.shell import Stop
from psgjax.switches import NAMED, named_method
from psgjax.training import given, loop

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from psgjax.config import RangeName

Line = dict[str, Any]


def methods() -> dict[str, str]:
    """What each method that `train` knows is, in a line with its source.

    >>> methods()["relativistic"]
    'one generator in one softmax with the real image (Jolicoeur-Martineau 2018)'
    """
    return {name: known.doc + (f" ({known.paper})" if known.paper else "") for name, known in NAMED.items()}


def train(
    method: str | Method,
    images: Dataset | Data | str | Path | ArrayLike,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    on_epoch: Callable[[Line], bool | None] | None = None,
    range: RangeName | None = None,
    loss: str | Callable[..., Any] | None = None,
    gate: str | Callable[..., Any] | None = None,
    regularisers: Mapping[Any, float] | Sequence[Any] | None = None,
    network: Network | str | tuple[Any, Any] | Callable[..., Any] | None = None,
    optimizer: Optimizer | str | Any = None,
    features: Callable[[np.ndarray], Any] | str | Path | None = None,
    **settings: Any,
) -> Run:
    """Train one run and return it.

    >>> import numpy, psgjax
    >>> images = numpy.random.default_rng(0).integers(0, 256, (40, 8, 8), numpy.uint8)
    >>> small = psgjax.Network(width=2, latent_size=4)
    >>> run = psgjax.train("psg", images, steps=2, batch_size=4, network=small)
    >>> run
    <Run of psg, step 2 of 2, in memory>

    Args:
        method: A name of `methods`, or a `Method` of your own. On images of your own begin with "choice"; for tens of thousands
            of updates take "gan-r1r2" (`docs/recipe.md`).
        images: An array [N, H, W] or [N, H, W, C], a tenth of which is held out (`Dataset.from_arrays`); a `Dataset`; a `Data`;
            or a folder of image files or of IDX files, or a .npy or .npz file, read as the setting `data` has it.
        epochs: The run's length in passes over the training images; either this or `steps`.
        steps: The run's length in updates of the generators.
        seed: Every random number follows from it.
        out: The folder that keeps the run, or has it already: then it is gone on with. Without it nothing is kept.
        on_epoch: Called with each line of the metrics; where it returns False, training ends, within a few seconds.
        range: What black and white are in an array, as in "0..1", where its values do not make that certain.
        loss: In place of the method's: a name, or a function (`psgjax.register_loss`).
        gate: Likewise (`psgjax.register_gate`).
        regularisers: With their weights, as in {"r1": 1.0, mine: 0.5}; a list of them has weights of 1.
        network: A `Network`, a name, a generator and a discriminator, or a function that makes them. What is passed is recorded by
            its own name, under which it must be registered where the run is loaded or trained further from the command line.
        optimizer: An `Optimizer`, a name, or, without `out`, an optax transformation or a pair for the generators and D.
        features: A function of images uint8 [n, H, W, C] to [n, F], or a .stablehlo file of one, by which samples are measured,
            here (with `evaluation_epochs`) and by the run's `score`; scores have its name and SHA-256.
        settings: Fields of `Config`, such as `batch_size` or `evaluation_epochs`.

    Raises:
        ConfigError: If a setting is unknown or wrong, the images cannot be trained on, or the folder holds another run.
        psgjax.training.loop.Diverged: If a metric is not finite.
    """
    _check(settings, epochs, steps)
    named, method = (method, named_method(method)) if isinstance(method, str) else ("own", method)
    data, settings = _dataset(images, range, settings)
    chosen: dict[str, Any] = {"loss": loss, "gate": gate, "regularisers": regularisers, "kept": out is not None}
    with given.lent(method, network or Network(), optimizer or Optimizer(), **chosen) as (method, network, optimizer):
        config = Config(named, method, network, optimizer, **settings, seed=seed, steps=steps or 1)
        return _run(_of_length(config, epochs, data), data, out, on_epoch, features)


def _check(settings: Mapping[str, Any], epochs: float | None, steps: int | None) -> None:
    """Refuse settings that there are not, and a run of no length or of two."""
    known = [field.name for field in dataclasses.fields(Config) if field.name not in ("method", "method_name")]
    for name in settings:
        schema.known("setting", name, tuple(known))
    if (epochs is None) == (steps is None):
        raise ConfigError("give the length of the run once: epochs or steps.")
    schema.check(epochs is None or epochs > 0, "epochs", epochs, "a number above 0")


def _of_length(config: Config, epochs: float | None, data: Dataset) -> Config:
    """The configuration, checked as a whole, with as many updates as make those epochs, if they are given."""
    check_penalties([config])
    if epochs is None:
        return config
    return dataclasses.replace(config, steps=max(1, round(epochs * config.steps_per_epoch(len(data.images)))))


def _run(
    config: Config, data: Dataset, out: str | Path | None, on_epoch: Callable[[Line], bool | None] | None, features: Any
) -> Run:
    """Train in that folder, or in one that is gone afterwards."""
    stop = Stop()

    def heard(line: Line) -> None:
        if on_epoch is not None and on_epoch(line) is False:
            stop.signal = -1

    asked: dict[str, Any] = {"stop": stop, "on_line": heard, "features": features}
    if out is not None:
        path = schema.local_path("out", Path(out))
        loop.train(config, data, path, **asked)
        return dataclasses.replace(load(path), features=features).prepared()
    with tempfile.TemporaryDirectory(prefix="psgjax-") as folder:
        loop.train(config, data, Path(folder) / "run", **asked)
        return dataclasses.replace(load(Path(folder) / "run"), folder=None, features=features).prepared()


def _dataset(images: Any, range: RangeName | None, settings: dict[str, Any]) -> tuple[Dataset, dict[str, Any]]:
    """The images as a data set, and the settings with where it is from."""
    if isinstance(images, Dataset):
        return images, settings
    if isinstance(images, Data | str | Path):
        place = (
            images if isinstance(images, Data) else dataclasses.replace(settings.get("data", Data()), dir=Path(images))
        )
        return datasets.load(place, lambda line: None), {**settings, "data": place}
    return Dataset.from_arrays(images, range=range), settings
