"""The reference step in PyTorch, as a user of PyTorch would write it well: modules, losses, fused Adam; eager or compiled.

The layers, losses, gate and penalties of `psgjax` for the methods of `experiments.bench`. One pass of D is shared by both sides,
each of which takes its own gradients from it, and by R1 and R2: faster than D's second pass on detached images.
"""

from __future__ import annotations

import time
from functools import partial

import torch
import torch._functorch.config as functorch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from experiments import peers
from psgjax.config import Method, Optimizer
from psgjax.switches import named_method

LATENT_SIZE = 100


class Generator(nn.Sequential):
    """Latents [B, 100] to images [B, 1, 28, 28] in [-1, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(LATENT_SIZE, 2 * width * 7 * 7, bias=False),
            nn.Unflatten(1, (2 * width, 7, 7)),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )
        _initialise(self)


class Discriminator(nn.Sequential):
    """Images [B, 1, 28, 28] to scores [B, 1]; spectrally normalised, one power iteration per update, if asked for."""

    def __init__(self, width: int, spectral_norm: bool) -> None:
        layers = [
            nn.Conv2d(1, width, 4, stride=2, padding=1),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.Linear(2 * width * 7 * 7, 1),
        ]
        first, second, last = (parametrizations.spectral_norm(x) for x in layers) if spectral_norm else layers
        super().__init__(
            first, nn.LeakyReLU(0.2, inplace=True), second, nn.LeakyReLU(0.2, inplace=True), nn.Flatten(), last
        )
        _initialise(self)


class Block(nn.Module):
    """x + 1x1(leaky(3x3(leaky(1x1(x))))), the last kernel zero at first; `count` is that of the network's blocks."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(width, width, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, width, 1, bias=False),
        )
        for layer, factor in ((0, count**-0.25), (2, count**-0.25), (4, 0.0)):
            nn.init.kaiming_normal_(self.residual[layer].weight, 0.2)  # type: ignore[arg-type]
            self.residual[layer].weight.data.mul_(factor)  # type: ignore[operator]
            if layer < 4:
                nn.init.zeros_(self.residual[layer].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual."""
        return x + self.residual(x)


class Upsample(nn.Module):
    """Bilinear, beyond the border zero."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 2H, 2W]."""
        return functional.interpolate(functional.pad(x, (1, 1, 1, 1)), scale_factor=2, mode="bilinear")[..., 2:-2, 2:-2]


class Downsample(nn.Module):
    """Bilinear with antialiasing, beyond the border zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kernel: Tensor
        weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(weights, weights).repeat(width, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H / 2, W / 2]."""
        return functional.conv2d(x, self.kernel, stride=2, padding=1, groups=len(self.kernel))


def _linear(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResidualGenerator(nn.Sequential):
    """Latents [B, 100] to images [B, 1, 28, 28]: `resnet` with one block at each size."""

    def __init__(self, width: int) -> None:
        super().__init__(
            _linear(nn.Linear(LATENT_SIZE, 4 * width * 7 * 7, bias=False)),
            nn.Unflatten(1, (4 * width, 7, 7)),
            Block(4 * width, 3),
            _linear(nn.Conv2d(4 * width, 2 * width, 1, bias=False)),
            Upsample(),
            Block(2 * width, 3),
            _linear(nn.Conv2d(2 * width, width, 1, bias=False)),
            Upsample(),
            Block(width, 3),
            _linear(nn.Conv2d(width, 1, 1)),
        )


class ResidualDiscriminator(nn.Sequential):
    """Images [B, 1, 28, 28] to scores [B, 1]: `resnet` with one block at each size."""

    def __init__(self, width: int) -> None:
        super().__init__(
            _linear(nn.Conv2d(1, width, 1, bias=False)),
            Block(width, 3),
            Downsample(width),
            _linear(nn.Conv2d(width, 2 * width, 1, bias=False)),
            Block(2 * width, 3),
            Downsample(2 * width),
            _linear(nn.Conv2d(2 * width, 4 * width, 1, bias=False)),
            Block(4 * width, 3),
            nn.Flatten(),
            _linear(nn.Linear(4 * width * 7 * 7, 1, bias=False)),
        )


def _initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def losses(method: Method, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores of generated images, [K, B], and of real ones, [B], to D's objective, the generators' summed, and which are updated.

    The last is bool [K + 1], D last, or None for everyone. Each generator's objective depends on its own images' scores alone.
    """
    count = len(fake)
    if method.scores == "independent":
        d_loss = functional.softplus(-real).mean() + functional.softplus(fake).mean()
        return d_loss, functional.softplus(-fake).mean(1).sum(), None
    scores = torch.cat([fake, real[None]])
    own = torch.eye(count, count + 1, dtype=torch.bool, device=scores.device)[:, :, None]
    # Of generator j, as seen by generator i: [i, j, B].
    log_p = torch.where(own, scores, scores.detach()).log_softmax(1)[:, :count]
    if method.gate == "none":
        return -scores.log_softmax(0)[-1].mean(), -log_p.diagonal().mean(0).sum(), None
    chosen = scores.argmax(0)
    right = chosen == count
    d_loss = -(scores.log_softmax(0)[-1] * ~right).mean()
    others = (chosen != torch.arange(count, device=scores.device)[:, None]) & ~right
    g_loss = -(log_p.diagonal().T * others + log_p.mean(1) * right).mean(1).sum()
    return d_loss, g_loss, torch.cat([others | right, ~right[None]]).any(1)


def half_squared_norms(scores: Tensor, images: Tensor) -> Tensor:
    """|grad D(x)|^2 / 2, the mean over images: R1 of real ones, R2 of generated ones."""
    (grads,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return grads.square().sum((1, 2, 3)).mean() / 2


class Training:
    """Networks and optimisers, and one update of all of them."""

    def __init__(self, case: peers.Case, device: str, compiled: bool) -> None:
        self.method = named_method(case.method)
        self.count = self.method.generators
        residual = case.network == "resnet"
        generator = ResidualGenerator if residual else Generator
        self.generators = nn.ModuleList(generator(case.width) for _ in range(self.count)).to(device)
        discriminator = (
            ResidualDiscriminator if residual else partial(Discriminator, spectral_norm=self.method.spectral_norm)
        )
        self.discriminator = discriminator(case.width).to(device)
        settings = Optimizer()

        def adam(module: nn.Module) -> torch.optim.Adam:
            betas = (settings.beta1, settings.beta2)
            return torch.optim.Adam(module.parameters(), settings.learning_rate, betas, fused=True)

        self.optimizers = [adam(module) for module in (*self.generators, self.discriminator)]
        self.losses = losses
        for module in (*self.generators, self.discriminator):
            module.to(memory_format=torch.channels_last)  # a tenth faster, measured
        if compiled:
            functorch.donated_buffer = False  # else a compiled module cannot be differentiated twice
            for module in (*self.generators, self.discriminator):
                module.compile(dynamic=False)
            self.losses = torch.compile(losses)

    def step(self, real: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Update on images [B, 1, 28, 28] in [-1, 1] and latents [B, 100]; D's loss and the generators' summed."""
        fakes = torch.cat([generator(latents) for generator in self.generators])
        weights = dict(self.method.regularisers)
        real.requires_grad_("r1" in weights)
        with parametrize.cached():  # one power iteration, and one set of kernels, for both calls
            fake_scores = self.discriminator(fakes).view(self.count, -1)
            real_scores = self.discriminator(real).view(-1)
        d_loss, g_loss, has_update = self.losses(self.method, fake_scores, real_scores)
        for name, scores, images in (("r1", real_scores, real), ("r2", fake_scores, fakes)):
            if name in weights:
                d_loss = d_loss + weights[name] * half_squared_norms(scores, images)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        d_loss.backward(inputs=list(self.discriminator.parameters()), retain_graph=True)
        g_loss.backward(inputs=list(self.generators.parameters()))
        updates = [True] * len(self.optimizers) if has_update is None else has_update.tolist()
        updates[-1] |= bool(weights)  # penalties act in every update
        for optimizer, update in zip(self.optimizers, updates, strict=True):
            if update:
                optimizer.step()
        return d_loss, g_loss


class PyTorch:
    """The contender: replicas, if there are several, one after the other, as PyTorch's users train them."""

    chunk = 1

    def __init__(self, case: peers.Case, compiled: bool = False) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(peers.cores())
        torch.set_flush_denormal(True)  # as XLA does
        torch.set_float32_matmul_precision("high" if case.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = case.precision == "tf32"
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        self.batch_size = case.batch_size
        self.images = torch.from_numpy(peers.images()).permute(0, 3, 1, 2).to(self.device)
        self.order = self.images.new_empty(0, dtype=torch.long)
        self.trainings = [Training(case, self.device, compiled) for _ in range(case.replicas)]
        started = time.perf_counter()
        for _ in range(3):
            self.run(1)
        self.facts = {
            "compile_seconds": time.perf_counter() - started if compiled else None,
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
        }

    def run(self, steps: int) -> float:
        """So many updates of every replica; D's last loss."""
        loss = torch.zeros(())
        for training in self.trainings:
            for _ in range(steps):
                loss, _ = training.step(self._real(), torch.randn(self.batch_size, LATENT_SIZE, device=self.device))
        return loss.item()  # waits for the device

    def _real(self) -> Tensor:
        """The next images of this epoch's permutation, scaled."""
        if len(self.order) < self.batch_size:
            self.order = torch.randperm(len(self.images), device=self.device)
        chosen, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        return self.images[chosen].float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)

    def peak_bytes(self) -> int | None:
        """CUDA's allocations at their fullest."""
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None


def compiled(case: peers.Case) -> PyTorch:
    """The contender with its networks and losses under `torch.compile`."""
    return PyTorch(case, compiled=True)
