"""A saved run read again: its configuration and one of its states, and images drawn from that."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np

from psgjax.config import Config, ConfigError
from psgjax.method.inference import make_batch_sampler
from psgjax.method.state import TrainState, abstract, make_init
from psgjax.runs.checkpoint import read
from psgjax.runs.identity import read_config
from psgjax.schema import check_seed


def load(run: Path, checkpoint: str | int = "last") -> tuple[Config, TrainState, tuple[int, int, int]]:
    """The configuration, a state and the image shape [H, W, C] of a run. Changes nothing; the run may train meanwhile.

    Args:
        run: Its folder, or the folder best/ or checkpoints/ in it.
        checkpoint: last; best, with the least FCD while it trained; or the step of one that is kept.

    Raises:
        ConfigError: If there is no run in that folder, or no such checkpoint of it.
    """
    if run.name in ("best", "checkpoints") and (run.parent / "config.json").is_file():
        run, checkpoint = run.parent, "best" if (run.name, checkpoint) == ("best", "last") else checkpoint
    config = read_config(run)
    if config is None:
        raise ConfigError(_no_run(run))
    image_shape = _image_shape(run / "env.json")
    step = None if checkpoint in ("last", "best") else _step(checkpoint)
    like = abstract(make_init(config, image_shape))
    found = read(run / ("best" if checkpoint == "best" else "checkpoints"), like, step)
    if found is None:
        missing = (
            "best checkpoint: one is kept when training scores its samples (--evaluation-epochs)"
            if checkpoint == "best"
            else "checkpoint yet; train it further with the command in its env.json"
        )
        raise ConfigError(f"{run} has no {missing}.")
    return config, found[0], image_shape


def _no_run(folder: Path) -> str:
    """Why the folder is none, with the folders to give in its place where it holds runs: of seeds, or of methods."""
    inside = [path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.json")]
    if inside:
        names = ", ".join(shlex.quote(str(path)) for path in sorted(inside))
        return f"{folder} holds no run itself; give the folder of one of those in it: {names}."
    return f"{folder} holds no run (no config.json); give the folder of one method, such as runs/mnist/psg."


def _step(checkpoint: str | int) -> int:
    if not re.fullmatch("[0-9]{1,18}", str(checkpoint)):
        raise ConfigError(
            f"checkpoint is {checkpoint!r}; it must be last, best, or the step of a checkpoint that is kept."
        )
    return int(checkpoint)


def _image_shape(path: Path) -> tuple[int, int, int]:
    try:
        shape = tuple(json.loads(path.read_text(encoding="utf-8"))["image_shape"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        shape = ()
    if len(shape) != 3 or not all(type(size) is int and 0 < size <= 4096 for size in shape):
        raise ConfigError(
            f"{path} is missing, or its image_shape is not three whole numbers [H, W, C] from 1 to 4096; restore that file."
        )
    height, width, channels = shape
    return height, width, channels


def sample(config: Config, state: TrainState, image_shape: tuple[int, int, int], count: int, seed: int) -> np.ndarray:
    """`count` images of each generator, uint8 [K, count, H, W, C]; the same for the same seed, whatever the count."""
    check_seed(seed)
    return np.concatenate(make_batch_sampler(config, image_shape)(state, jax.random.key(seed), count), axis=1)
