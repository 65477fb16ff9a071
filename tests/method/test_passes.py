"""The pass through D in pieces, against differentiating it whole."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest

from psgjax import networks
from psgjax.config import Network
from psgjax.method import passes

SHAPE = (8, 8, 1)


def whole(discriminator, params, images):
    outputs = discriminator.apply({"params": params}, images.reshape(-1, *SHAPE))
    return outputs.reshape(*images.shape[:2], -1)


@pytest.fixture(scope="module", params=[1, 3], ids=["one output", "three outputs"])
def case(request):
    """A discriminator, parameters, 2 x 7 generated and 5 real images, two losses' gradients by the outputs; what is expected."""
    _, discriminator = networks.build(Network(width=4), SHAPE, request.param)
    keys = jax.random.split(jax.random.key(0), 6)
    params = jax.jit(discriminator.init)(keys[0], jnp.zeros((1, *SHAPE)))["params"]
    images = [jax.random.normal(key, (k, n, *SHAPE)) for key, (k, n) in zip(keys[1:3], ((2, 7), (1, 5)), strict=True)]
    cotangents = [
        jax.random.normal(key, (*x.shape[:2], request.param))
        for key, x in zip(keys[3:], (*images, images[0]), strict=True)
    ]

    @jax.jit
    def differentiated(params, fakes, real):
        outputs, vjp = jax.vjp(
            lambda params: [whole(discriminator, params, images) for images in (fakes, real)], params
        )
        _, images_vjp = jax.vjp(partial(whole, discriminator, params), fakes)
        return outputs, vjp(cotangents[:2])[0], images_vjp(cotangents[2])[0]

    return discriminator, params, images, cotangents, differentiated(params, *images)


@pytest.mark.parametrize("cached", [2**30, 4000, 1], ids=["whole", "two pieces and one", "four pieces"])
def test_pieces_add_up_to_the_whole(case, cached, monkeypatch):
    discriminator, params, (fakes, real), (d_fake, d_real, g_cotangents), expected = case
    monkeypatch.setattr(passes, "_CACHED", cached)

    @jax.jit
    def update(params, fakes, real):
        *outputs, vjp, _ = passes.score_vjp(discriminator, params, fakes, real)
        return outputs, vjp(d_fake, d_real, g_cotangents)

    outputs, (by_params, by_images) = update(params, fakes, real)
    chex.assert_trees_all_close(outputs, expected[0], rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(by_params, expected[1], rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(by_images, expected[2], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def generators():
    """A generator, parameters and batch statistics of three, latents, and derivatives of a loss by their images."""
    generator, _ = networks.build(Network(width=4, latent_size=5), SHAPE, 1)
    keys = jax.random.split(jax.random.key(1), 5)
    latents = jax.random.normal(keys[0], (3, 6, 5))
    variables = jax.jit(jax.vmap(generator.init))(keys[1:4], latents)
    cotangents = jax.random.normal(keys[4], (3, 6, *SHAPE))
    return generator, variables["params"], variables["batch_stats"], latents, cotangents


def test_generators_in_turn_make_what_mapped_ones_make(generators):
    generator, params, batch_stats, latents, cotangents = generators

    def update(platform):
        images, updated, vjp = passes.generate_vjp(generator, params, batch_stats, latents, platform)
        return images, updated, vjp(cotangents)

    in_turn, mapped = (jax.jit(update, static_argnums=0)(platform) for platform in ("cpu", "tpu"))
    assert not jnp.allclose(mapped[0][0], mapped[0][1], atol=1e-3)
    chex.assert_trees_all_close(in_turn, mapped, rtol=1e-4, atol=1e-6)


def test_only_a_cpu_runs_the_generators_one_after_the_other(generators):
    generator, params, batch_stats, latents, cotangents = generators

    def names(platform):
        def update(latents):
            images, _, vjp = passes.generate_vjp(generator, params, batch_stats, latents, platform)
            return images, vjp(cotangents)

        program = jax.make_jaxpr(update)(latents)
        return [str(equation.primitive) for equation in program.eqns]

    assert names("cpu").count("optimization_barrier") == 6  # three forward, three back
    assert names("tpu").count("optimization_barrier") == 0


class Recorder:
    """A discriminator of one stage that notes how many images it is given at a time."""

    depth = 1

    def __init__(self):
        self.counts = []

    def apply(self, variables, x, stage):
        self.counts.append(len(x))
        return x.sum((1, 2))


@pytest.mark.parametrize(
    ("platform", "counts", "barriers"),
    [
        ("tpu", [14, 5], 0),
        ("cpu", [14, 5, 4, 4, 3, 3, 2, 1, 1, 1], 8),
    ],  # on a CPU all are looked at once for their size
)
def test_only_a_cpu_takes_pieces_one_after_the_other_and_at_most_four(platform, counts, barriers, monkeypatch):
    monkeypatch.setattr(passes, "_CACHED", 1)
    recorder = Recorder()
    forward = partial(passes.score_vjp, recorder, {}, platform=platform)
    program = jax.make_jaxpr(lambda *images: forward(*images)[:2])(jnp.zeros((2, 7, *SHAPE)), jnp.zeros((1, 5, *SHAPE)))
    assert recorder.counts == counts
    assert str(program).count("optimization_barrier") == barriers


def test_no_piece_is_empty(monkeypatch):
    monkeypatch.setattr(passes, "_CACHED", 1)
    recorder = Recorder()
    passes.score_vjp(recorder, {}, jnp.zeros((2, 1, *SHAPE)), jnp.zeros((1, 1, *SHAPE)), "cpu")
    assert recorder.counts == [2, 1, 1, 1, 1]


class Smooth:
    """A discriminator of two stages with second derivatives everywhere."""

    depth = 2

    def apply(self, variables, x, stage):
        kernels = variables["params"]
        return jnp.tanh(x.reshape(len(x), -1) @ kernels[0]) if stage == 0 else jnp.sin(x @ kernels[1])


@pytest.mark.parametrize("weights", [{"r1": 3.0, "r2": 0.5}, {"r2": 2.0}], ids=["both", "r2"])
def test_penalties_and_gradients_of_one_pass_are_those_of_the_definition(weights, monkeypatch):
    monkeypatch.setattr(passes, "_CACHED", 1)
    shapes = (2, 7, *SHAPE), (1, 5, *SHAPE), (64, 6), (6, 1), (2, 7, 1), (1, 5, 1), (2, 7, 1)
    fakes, real, *params, d_fake, d_real, g_cotangents = (
        jax.random.normal(jax.random.key(i), shape) / 4 for i, shape in enumerate(shapes)
    )

    def judge(params, images):
        flat = images.reshape(-1, *SHAPE)
        return Smooth().apply({"params": params}, Smooth().apply({"params": params}, flat, 0), 1)

    def penalties(params):
        squares = {}
        for name, images in (("r1", real), ("r2", fakes)):
            squares[name] = jnp.sum(jax.grad(lambda images: judge(params, images).sum())(images) ** 2) / 2
        values = {name: weight * squares[name] for name, weight in weights.items()}
        return sum(values.values()), values

    def losses(params):
        return (judge(params, fakes) * d_fake.reshape(-1, 1)).sum() + (judge(params, real) * d_real[0]).sum()

    @jax.jit
    def update(params, fakes, real):
        *_, vjp, penalty = passes.score_vjp(Smooth(), params, fakes, real, "cpu", weights)
        return vjp(d_fake, d_real, g_cotangents), penalty

    (by_params, by_images), penalty = update(params, fakes, real)
    chex.assert_trees_all_close(penalty, jax.grad(penalties, has_aux=True)(params), rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(by_params, jax.grad(losses)(params), rtol=1e-4, atol=1e-6)
    cotangents = jax.grad(lambda images: judge(params, images).sum())(fakes)
    chex.assert_trees_all_close(by_images, cotangents * g_cotangents[..., None, None], rtol=1e-4, atol=1e-6)
