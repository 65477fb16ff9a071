"""The rows of the recipe: named methods and what is changed of them, and the settings that `tuning` chooses for them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from experiments.recipe_tasks import Task
from psgjax import schema
from psgjax.config import Config, ConfigError
from psgjax.shell import one_line
from psgjax.switches import named_method


@dataclass(frozen=True)
class Row:
    """A named method, with what is changed of it, and the factors on its networks' width and on the images of an update."""

    method: str
    changes: dict[str, Any] = field(default_factory=dict)
    wider: int = 1
    batches: int = 1


ROWS = {
    "gan": Row("gan"),
    "gan-r1r2": Row("gan-r1r2"),
    "r3gan": Row("r3gan"),
    "psg": Row("psg"),
    "psg-ungated": Row("psg-ungated"),
    "choice": Row("choice"),
    "choice-k4": Row("choice", {"generators": 4}),
    "stackelberg-r1r2": Row("stackelberg-r1r2"),
    "stackelberg-r1r2-k4": Row("stackelberg-r1r2", {"generators": 4}),
    "r3gan-wide": Row("r3gan", wider=2),
    "gan-r1r2-wide": Row("gan-r1r2", wider=2),
    "r3gan-batch2": Row("r3gan", batches=2),
    "r3gan-batch4": Row("r3gan", batches=4),
    "gan-r1r2-batch2": Row("gan-r1r2", batches=2),
    "choice-k3": Row("choice", {"generators": 3}),
    "psg-r1r2": Row("psg-r1r2"),
    "stackelberg": Row("stackelberg"),
    "mgan": Row("mgan"),
    "mgan-r1r2": Row("mgan-r1r2"),
    "sngan": Row("sngan"),
    "wgan-gp": Row("wgan-gp"),
    "gan-pack2": Row("gan", {"pack": 2}),
    "choice-pack2": Row("choice", {"pack": 2}),
}


class Setting(NamedTuple):
    """What is chosen for each row by `experiments.tuning`: Adam's, and a factor on the weights of the penalties that it has."""

    learning_rate: float
    beta1: float
    penalty: float | None


def read_settings(path: Path) -> dict[str, Setting]:
    """By row, what `experiments.tuning` chose and wrote to tuned.json.

    Raises:
        ConfigError: If the file is not there or no such file.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return {row: Setting(**setting) for row, setting in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--tuned {path} cannot be read ({type(error).__name__}: {one_line(str(error))}); it must be a tuned.json of "
            "python -m experiments.tuning."
        ) from None


def configuration(name: str, task: Task, setting: Setting | None = None) -> Config:
    """The configuration of a row on a task, of the first seed; with a setting of its own in place of the task's.

    Raises:
        ConfigError: For an unknown row, or a setting that cannot be used.
    """
    row = ROWS[schema.known("row", name, tuple(ROWS))]
    method = dataclasses.replace(named_method(row.method), **row.changes)
    config = task.configure(name, method, row.wider)
    config = dataclasses.replace(config, batch_size=row.batches * config.batch_size)  # for as many updates
    if setting is None:
        return config
    own = dataclasses.replace(config.optimizer, learning_rate=setting.learning_rate, beta1=setting.beta1)
    if setting.penalty is not None:
        weights = tuple((name, setting.penalty * weight) for name, weight in method.regularisers)
        method = dataclasses.replace(method, regularisers=weights)
    return dataclasses.replace(config, optimizer=own, method=method)
