"""PSG-GAN and SNGAN in pure functional JAX: K generators in parallel against one discriminator (`docs/method.md`)."""

from psgjax import shell as shell
from psgjax.config import METHODS, Config, ConfigError, Data, Method, Network, Optimizer, named_method

__version__ = "0.1.0"

__all__ = ["METHODS", "Config", "ConfigError", "Data", "Method", "Network", "Optimizer", "named_method"]
