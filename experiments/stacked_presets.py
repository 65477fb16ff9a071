"""The presets of `stacked_mnist`: two that fit two CPU cores, and the published protocols of PacGAN and of R3GAN for a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field

from experiments.command import check_counts
from psgjax.config import Network, Optimizer


@dataclass(frozen=True)
class Protocol:
    """What a preset sets where the command line does not."""

    trials: int
    epochs: int
    images: int
    network: Network
    methods: tuple[str, ...] = ("gan", "sngan", "psg")
    batch_size: int = 64
    optimizer: Optimizer = field(default_factory=Optimizer)

    def __post_init__(self) -> None:
        """Refuse counts below one."""
        check_counts(trials=self.trials, epochs=self.epochs, images=self.images)


# Huang et al. 2024 for Stacked MNIST, with 10 M images: what changes does so over their first fifth.
R3GAN = Optimizer(
    learning_rate=2e-4,
    beta1=0.0,
    beta2=0.9,
    beta2_end=0.99,
    schedule="cosine",
    schedule_end=0.25,
    schedule_share=0.2,
    penalty_end=0.1,
    early_share=0.2,
    average_half_life=500_000,
    average_warmup=0.2,
)
PRESETS = {
    "quick": Protocol(trials=1, epochs=5, images=25_600, network=Network(width=32)),
    "small": Protocol(
        trials=1, epochs=10, images=128_000, network=Network(width=32), methods=("choice", "r3gan", "gan-r1r2")
    ),
    "pacgan": Protocol(trials=10, epochs=50, images=128_000, network=Network()),
    "full": Protocol(
        trials=3,
        epochs=78,
        images=128_000,
        network=Network("resnet", width=208, latent_size=64, blocks=2),
        methods=("choice", "r3gan", "gan-r1r2"),
        batch_size=512,
        optimizer=R3GAN,
    ),
}
