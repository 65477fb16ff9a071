"""PSG-GAN and SNGAN in pure functional JAX: K generators in parallel against one discriminator (`docs/method.md`)."""

from psgjax import shell as shell  # first: while the rest is imported, Ctrl-C is one line already
from psgjax.config import METHODS, Config, ConfigError, Data, Method, Network, Optimizer, named_method

__all__ = ["METHODS", "Config", "ConfigError", "Data", "Method", "Network", "Optimizer", "named_method"]
