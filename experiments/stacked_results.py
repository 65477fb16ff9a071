"""The results of Stacked MNIST: means over trials, the networks' sizes, and the table with what others published."""

from __future__ import annotations

import math
from typing import Any

from experiments.stacked_digits import MODES
from experiments.tables import Table, mean, show_mean
from psgjax.config import Config

# Lin et al. 2018, Stacked MNIST: modes and KL.
PUBLISHED = {"DCGAN": ("78.9 ± 6.5", "4.50 ± 0.13"), "PacDCGAN2": ("1000.0", "0.06")}
NOTE = (
    "± is the standard deviation over trials. Samples come from the mixture of generators, each with probability 1/K; each "
    "generator alone has the same number of samples. Published figures (Lin et al. 2018) are of another discriminator, whose size "
    "dominates the result, and of ten trials of 50 epochs of 128,000 images: for orientation only. Real images are test digits, "
    "stacked alike: their KL is what that number of samples has by chance, and because digits are not equally frequent. Of the KL, "
    "the digits' part is what the channels have each alone, summed; the rest is how far they depend on each other."
)


def sizes(config: Config, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Parameters of D, and of each generator."""
    import jax

    from psgjax.method import state as states

    state = states.abstract(states.make_init(config, image_shape))
    each = {"discriminator": state.discriminator.params, "generator": state.generators.params}
    counts = {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for name, tree in each.items()}
    return {**counts, "generator": counts["generator"] // config.method.generators}


def table(results: dict[str, Any], trials: int) -> Table:
    """One row per method, then real images and the published figures."""
    header = ["method", f"modes (of {MODES:,})", "KL", "of it digits", "modes of each generator", "parameters of D"]
    rows = [
        [
            method,
            show_mean(result["modes"], trials),
            show_mean(result["kl"], trials, digits=2),
            show_mean(result["digits_kl"], trials, digits=2),
            "; ".join(show_mean(own["modes"], trials) for own in result["generators"]),
            f"{result['parameters']['discriminator']:,}",
        ]
        for method, result in results["methods"].items()
    ]
    rows += [[method, "diverged", *["–"] * 4] for method in results["diverged"]]
    real = results["real"]
    rows.append(["real images", f"{real['modes']}", f"{real['kl']:.2f}", f"{real['digits_kl']:.2f}", "–", "–"])
    rows += [
        [f"{method} (published)", modes, divergence, "–", "–", "–"] for method, (modes, divergence) in PUBLISHED.items()
    ]
    return Table("Stacked MNIST", header, rows)


def summarise(per_trial: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and standard deviations over trials, of the mixture and of each generator alone."""
    names = ("modes", "kl", "digits_kl")
    alone = [
        {name: mean([trial["generators"][k][name] for trial in per_trial]) for name in names}
        for k in range(len(per_trial[0]["generators"]))
    ]
    means = {name: mean([trial[name] for trial in per_trial]) for name in names}
    return {**means, "generators": alone, "per_trial": per_trial}
