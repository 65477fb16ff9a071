"""PSG-GAN and SNGAN in pure functional JAX: K generators in parallel against one discriminator (`docs/method.md`)."""

from psgjax.config import METHODS, Config, ConfigError, Data, Method, Network, Optimizer, named_method

__all__ = ["METHODS", "Config", "ConfigError", "Data", "Method", "Network", "Optimizer", "named_method"]
