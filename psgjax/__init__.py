"""PSG-GAN and SNGAN in pure functional JAX: K generators in parallel against one discriminator (`docs/method.md`).

    run = psgjax.train("psg", images, epochs=20)
    run.sample(64, seed=0)
    run = psgjax.load("runs/mnist/psg", checkpoint="best")

What these need is loaded when they are used: `import psgjax` alone loads no jax.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from psgjax import shell as shell
from psgjax.config import Config, ConfigError, Data, Method, Network, Optimizer
from psgjax.networks.table import register as register_network
from psgjax.parts import register_gate, register_loss, register_optimizer, register_regulariser
from psgjax.sources import register as register_source
from psgjax.switches import METHODS, named_method, register_method

if TYPE_CHECKING:
    from psgjax.data.dataset import Dataset as Dataset
    from psgjax.method.step import make_step as make_step
    from psgjax.runs.run import Run as Run
    from psgjax.runs.run import load as load
    from psgjax.training.public import methods as methods
    from psgjax.training.public import train as train

__version__ = "0.1.0"

_HOME = {
    "Dataset": "data.dataset",
    "Run": "runs.run",
    "load": "runs.run",
    "make_step": "method.step",
    "methods": "training.public",
    "train": "training.public",
}

__all__ = [
    "METHODS",
    "Config",
    "ConfigError",
    "Data",
    "Dataset",
    "Method",
    "Network",
    "Optimizer",
    "Run",
    "__version__",
    "load",
    "make_step",
    "methods",
    "named_method",
    "register_gate",
    "register_loss",
    "register_method",
    "register_network",
    "register_optimizer",
    "register_regulariser",
    "register_source",
    "train",
]


def __getattr__(name: str) -> Any:
    """A public name, from its module (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'psgjax' has no attribute {name!r}")
    return getattr(import_module(f"psgjax.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """All public names, loaded or not."""
    return sorted({*globals(), *__all__})
