"""The benchmark's peers make psgjax's own update."""

import dataclasses
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import peers
from experiments.peers import Case, ours, plain
from psgjax.method import state as states
from psgjax.method import step

METHODS = ("psg", "sngan", "gan", "psg-r1r2", "gan-r1r2", "choice")
QUICKLY = {"xla_backend_optimization_level": 0}  # compiled in half the time


needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed (extra [bench])")


@pytest.fixture(params=METHODS)
def update(request, monkeypatch):
    """One update of psgjax: case, state before, uint8 images, latents, state after, metrics; D's u at its limit."""
    case = Case(request.param, width=4, batch_size=16)
    config = ours.configuration(case)
    state = jax.jit(lambda: states.init(config, peers.IMAGE_SHAPE, jax.random.key(2)))()
    discriminator = state.discriminator
    if discriminator.spectral_vectors:  # there, power iterations in another order take the same sigma
        paths = jax.tree_util.tree_flatten_with_path(discriminator.params)[0]
        kernels = {jax.tree_util.keystr(path): np.asarray(leaf).reshape(-1, leaf.shape[-1]) for path, leaf in paths}
        vectors = {path: jnp.asarray(np.linalg.svd(kernels[path])[2][0]) for path in discriminator.spectral_vectors}
        state = dataclasses.replace(state, discriminator=dataclasses.replace(discriminator, spectral_vectors=vectors))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (case.batch_size, *peers.IMAGE_SHAPE), np.uint8)
    latents = random.standard_normal((case.batch_size, 100)).astype(np.float32)
    count = config.method.generators
    monkeypatch.setattr(step, "draw_latents", lambda *_: jnp.broadcast_to(latents, (count, *latents.shape)))
    after, metrics = jax.jit(step.make_step(config, peers.IMAGE_SHAPE), compiler_options=QUICKLY)(state, images[None])
    assert (
        config.method.gate == "none" or (np.asarray(metrics["branches"]) > 0).all()
    )  # every branch of Algorithm 1 is taken
    return case, state, images, latents, after, metrics


def scaled(images):
    return images.astype(np.float32) / 127.5 - 1


def of_generator(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def agree(mine, theirs, tolerance=1e-4):
    """Two lists of arrays agree to the tolerance, on the scale of the largest number."""
    largest = max(np.abs(a).max(initial=0) for a in mine)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest)


def to_torch(generator, discriminator):
    """Parameters, or what has their form, as PyTorch's modules order and shape them."""
    width = generator["Up_0"]["kernel"].shape[2]

    def kernel(layer):
        return np.asarray(layer["kernel"]).transpose(3, 2, 0, 1)

    first = np.asarray(generator["Dense_0"]["kernel"]).reshape(100, 7, 7, 2 * width)
    norms = [[np.asarray(generator[name][key]) for key in ("scale", "bias")] for name in ("BatchNorm_0", "BatchNorm_1")]
    last = np.asarray(discriminator["Dense_0"]["kernel"]).reshape(7, 7, 2 * width).transpose(2, 0, 1)
    biases = [np.asarray(discriminator[name]["bias"]) for name in ("Down_0", "Down_1", "Dense_0")]
    return [
        first.transpose(3, 1, 2, 0).reshape(-1, 100),
        *norms[0],
        kernel(generator["Up_0"]),
        *norms[1],
        kernel(generator["Up_1"]),
        np.asarray(generator["Up_1"]["bias"]),
    ], [
        *(kernel(discriminator["Down_0"]), biases[0]),
        *(kernel(discriminator["Down_1"]), biases[1]),
        *(last.reshape(1, -1), biases[2]),
    ]


def by_name(module):
    """A PyTorch module's parameters in the order of `to_torch`: weight before bias, in the layers' order."""
    found = {name.replace("parametrizations.weight.original", "weight"): p for name, p in module.named_parameters()}
    return [found[name] for name in sorted(found, key=lambda name: (int(name.split(".")[0]), name.endswith("bias")))]


@needs_torch
def test_pytorch_makes_the_same_update(update):
    import torch

    from experiments.peers import pytorch

    case, state, images, latents, after, metrics = update
    training = pytorch.Training(case, "cpu", compiled=False)
    modules = [*training.generators, training.discriminator]

    def converted(g_tree, d_tree):
        pairs = [to_torch(of_generator(g_tree, i), d_tree) for i in range(training.count)]
        return [*(pair[0] for pair in pairs), pairs[0][1]]

    with torch.no_grad():
        for module, values in zip(modules, converted(state.generators.params, state.discriminator.params), strict=True):
            for parameter, value in zip(by_name(module), values, strict=True):
                parameter.copy_(torch.tensor(value))
        for layer in training.discriminator:
            if hasattr(layer, "parametrizations"):
                normalisation = layer.parametrizations.weight[0]
                left, _, right = np.linalg.svd(layer.parametrizations.weight.original.flatten(1).numpy())
                normalisation._u.copy_(torch.tensor(left[:, 0]))
                normalisation._v.copy_(torch.tensor(right[0]))
    d_loss, g_loss = training.step(torch.tensor(scaled(images)).permute(0, 3, 1, 2), torch.tensor(latents))
    gated = metrics["gated_loss"]
    penalties = sum(metrics.get("regularisers", {}).values())
    np.testing.assert_allclose(d_loss.item(), gated["discriminator"] + penalties, rtol=1e-4)
    np.testing.assert_allclose(g_loss.item(), gated["generators"].sum(), rtol=1e-4)
    moments = after.generators.opt_state[0].mu, after.discriminator.opt_state[0].mu
    updated = after.generators.params, after.discriminator.params
    for module, gradients, values in zip(modules, converted(*moments), converted(*updated), strict=True):
        agree([2 * gradient for gradient in gradients], [p.grad.numpy() for p in by_name(module)])
        # Adam's first step goes by a gradient's sign, and that of one that should be zero is chance.
        clear = [np.abs(gradient) > 1e-6 for gradient in gradients]
        found = [p.detach().numpy() for p in by_name(module)]
        agree(
            [a[mask] for a, mask in zip(values, clear, strict=True)],
            [a[mask] for a, mask in zip(found, clear, strict=True)],
        )


@needs_torch
def test_pytorch_has_the_same_residual_networks():
    import torch

    from experiments.peers import pytorch

    case = Case("gan", width=2, network="resnet")
    random = np.random.default_rng(0)
    mine = states.build(ours.configuration(case), peers.IMAGE_SHAPE)
    theirs = pytorch.ResidualGenerator(2), pytorch.ResidualDiscriminator(2)
    inputs = random.standard_normal((3, 100), np.float32), random.standard_normal((3, 28, 28, 1), np.float32)

    def moved(array, image):  # our channels last, theirs first
        return array.transpose(0, 3, 1, 2) if image else array

    for module, peer, x, image in zip(mine, theirs, inputs, (False, True), strict=True):
        shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
        params = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape, np.float32) / 4, shapes)
        flat = iter(ordered(params, image))
        with torch.no_grad():
            for parameter in peer.parameters():
                parameter.copy_(torch.tensor(next(flat)))
        run = jax.jit(
            jax.value_and_grad(lambda p, m=module, x=x: jnp.mean(m.apply({"params": p}, x) ** 2)),
            compiler_options=QUICKLY,
        )
        loss, grads = run(params)
        their_loss = (peer(torch.tensor(moved(x, image))) ** 2).mean()
        their_loss.backward()
        np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-4)
        agree(ordered(grads, image), [parameter.grad.numpy() for parameter in peer.parameters()])


def ordered(params, discriminates):
    """The parameters of a residual network as PyTorch's modules order and shape them."""

    def of(layer):
        kernel = np.asarray(layer["kernel"])
        kernel = kernel[:, :, None, None].swapaxes(0, 1) if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
        return [kernel, *([np.asarray(layer["bias"])] if "bias" in layer else [])]

    blocks = [
        [leaf for layer in ("Pointwise_0", "Down_0", "Pointwise_1") for leaf in of(params[f"Block_{i}"][layer])]
        for i in range(3)
    ]
    dense = np.asarray(params["Dense_0"]["kernel"])
    between = [of(params[f"Pointwise_{i}"]) for i in range(3)]
    if discriminates:
        last = dense.reshape(7, 7, -1).transpose(2, 0, 1).reshape(1, -1)
        return [leaf for pair in zip(between, blocks, strict=True) for part in pair for leaf in part] + [last]
    first = dense.reshape(100, 7, 7, -1).transpose(3, 1, 2, 0).reshape(-1, 100)
    return [first] + [leaf for pair in zip(blocks, between, strict=True) for part in pair for leaf in part]


def test_the_plain_port_runs_the_plain_reading():
    """Which is the same update: `tests/method/test_reference.py`."""
    contender = plain.FlaxPlain(Case("psg", width=2, batch_size=4))
    assert 0.5 < contender.run(2) < 3
    assert contender.state.step.tolist() == [2]
