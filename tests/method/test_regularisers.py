"""R1 and R2: the update's gradients against PyTorch's, in both orders, gated or not; and parts of one's own, by name."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE, POINTS, SHAPE, first_state, same, tiny

from psgjax import parts, schema
from psgjax.config import Config, ConfigError, Method
from psgjax.method import objectives, regularisers
from psgjax.method import state as states
from psgjax.method import step as stepping
from psgjax.switches import METHODS

PENALTIES = (("r1", 3.0), ("r2", 0.5))


def one_step(config, images):
    state = first_state(config)
    return state, *jax.jit(stepping.make_step(config, SHAPE))(state, jnp.asarray(images[: config.batch_size])[None])


def generated(config, state):
    """The images [K, B, H, W, C] of the first pass of D in an update."""
    generator, _ = states.build(config, SHAPE)
    latents = stepping.draw_latents(config, stepping.pass_keys(state, 0)[0], config.batch_size)
    variables = {"params": state.generators.params, "batch_stats": state.generators.batch_stats}
    return jax.jit(jax.vmap(lambda v, z: generator.apply(v, z, mutable=["batch_stats"])[0]))(variables, latents)


def torchs_gradient(config, state, images, loss_too=True):
    """D's gradient of its gated loss and the penalties, as PyTorch finds it from the definitions; and the penalties."""
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `bench`)")
    flat = jax.tree_util.tree_leaves_with_path(state.discriminator.params)
    params = {jax.tree_util.keystr(path): torch.tensor(np.asarray(leaf), requires_grad=True) for path, leaf in flat}

    def score(x):  # [n, 8, 8, 1]
        if config.network.name == "mlp":
            x = x.flatten(1)
            for i in range(3):
                x = x @ params[f"['Dense_{i}']['kernel']"] + params[f"['Dense_{i}']['bias']"]
                x = x.relu() if i < 2 else x
            return x[:, 0]
        x = x.permute(0, 3, 1, 2)
        for i in range(2):
            kernel = params[f"['Down_{i}']['kernel']"].permute(3, 2, 0, 1)
            x = torch.nn.functional.conv2d(x, kernel, params[f"['Down_{i}']['bias']"], stride=2, padding=1)
            x = torch.nn.functional.leaky_relu(x, 0.2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        return (x @ params["['Dense_0']['kernel']"] + params["['Dense_0']['bias']"])[:, 0]

    real = torch.tensor(np.float32(images[: config.batch_size]) / 127.5 - 1, requires_grad=True)
    fakes = torch.tensor(np.asarray(generated(config, state)), requires_grad=True)
    k = len(fakes)
    scores = torch.stack([score(x) for x in (*fakes, real)])
    if config.method.scores == "softmax":
        loss = -scores.log_softmax(0)[-1]
    else:
        loss = torch.nn.functional.softplus(-scores[-1]) + torch.nn.functional.softplus(scores[:-1]).mean(0)
    if config.method.gate == "triplet":
        loss = loss * (scores.argmax(0) != k)
    values = {}
    for name, x in (("r1", real), ("r2", fakes)):
        (grad,) = torch.autograd.grad(score(x.reshape(-1, *SHAPE)).sum(), x, create_graph=True)
        values[name] = dict(config.method.regularisers)[name] / 2 * grad.pow(2).sum() / (x.numel() / 64)
    total = sum(values.values()) + (loss.mean() if loss_too else 0)
    grads = torch.autograd.grad(total, [*params.values()], allow_unused=True)
    found = [
        np.zeros(p.shape, np.float32) if g is None else g.numpy() for p, g in zip(params.values(), grads, strict=True)
    ]
    return found, {name: float(value.detach()) for name, value in values.items()}


CASES = [  # any two of number, gate and order in every combination
    (1, "triplet", "simultaneous", POINTS),
    (1, "none", "alternating", POINTS),
    (3, "triplet", "alternating", POINTS),
    (3, "none", "simultaneous", POINTS),
    (1, "none", "simultaneous", IMAGE),
    (3, "triplet", "alternating", IMAGE),
]


@pytest.mark.uncovered
@pytest.mark.parametrize(("k", "gate", "order", "network"), CASES)
def test_gradients_are_pytorchs(k, gate, order, network, images):
    scores = "softmax" if gate == "triplet" else "independent"
    switches = {"generators": k, "gate": gate, "scores": scores, "update_order": order, "regularisers": PENALTIES}
    config = tiny(batch_size=8, network=network, **switches)
    before, after, metrics = one_step(config, images)
    expected, values = torchs_gradient(config, before, images)
    found = [2 * leaf for leaf in jax.tree.leaves(after.discriminator.opt_state[0].mu)]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics["regularisers"], values, rtol=1e-5)
    if gate == "triplet":
        assert 0 < float(metrics["updates"]["discriminator"]) < 1  # or the gate would not be seen


@pytest.mark.uncovered
def test_a_penalty_acts_where_the_gate_gives_d_nothing(images, monkeypatch):
    config = tiny(batch_size=8, regularisers=PENALTIES)
    monkeypatch.setattr(objectives, "read_scores", _real_wins)
    before, after, metrics = one_step(config, images)
    assert float(metrics["updates"]["discriminator"]) == 0
    expected, _ = torchs_gradient(config, before, images, loss_too=False)
    for leaf, theirs in zip(jax.tree.leaves(after.discriminator.opt_state[0].mu), expected, strict=True):
        np.testing.assert_allclose(2 * leaf, theirs, rtol=1e-5, atol=1e-6)
    assert not same(before.discriminator.params, after.discriminator.params)


def _real_wins(method, outputs):
    """A stand-in for D's reading of scores in which the real images are chosen in every triplet."""
    scores = outputs[..., 0]
    tuples = scores.ndim == 2 and len(scores) == method.generators + 1
    return scores + 100.0 * (jnp.arange(len(scores)) == len(scores) - 1)[:, None] if tuples else scores


@pytest.mark.uncovered
def test_under_spectral_normalisation_the_gradient_is_the_normalised_ds(images):
    config = tiny("sngan", network=IMAGE, regularisers=(("r1", 2.0),))
    state, _, metrics = one_step(config, images)
    update = stepping.Update(config, *states.build(config, SHAPE), stepping.Shards(), None)
    params, _, _ = stepping.normalised(update, state.discriminator)
    real = stepping.scale(jnp.asarray(images[:4]))
    gradient = jax.jit(jax.grad(lambda x: stepping.score(update, params, x[None])[0, 0]))
    grads = [gradient(x) for x in real]
    np.testing.assert_allclose(metrics["regularisers"]["r1"], sum(float((g**2).sum()) for g in grads) / 4, rtol=1e-5)


@pytest.fixture
def registered():
    """Parts of one's own, for one test."""
    kept = [(table, dict(table)) for table in (parts.LOSSES, parts.GATES, parts.REGULARISERS)]
    parts.register_loss("least-squares", least_squares, equilibrium=lambda k, minimax: (0.5, 0.25))
    parts.register_gate("first", lambda scores, key: jnp.zeros_like(scores).at[0].set(1.0))
    parts.register_regulariser("small-scores", lambda score, real, fake, draw: score(real) ** 2)
    yield
    for table, before in kept:
        table.clear()
        table.update(before)


def least_squares(outputs):
    """Mao et al. 2017, equation 2, with labels 0 and 1."""
    fake, real = outputs[:-1, :, 0], outputs[-1, :, 0]
    return ((real - 1) ** 2 + (fake**2).mean(0)) / 2, (fake - 1) ** 2 / 2


@pytest.mark.usefixtures("registered")
def test_parts_of_ones_own_are_trained_with_by_name(images):
    own = {"loss": "least-squares", "scores": "independent", "gate": "first", "regularisers": (("small-scores", 2.0),)}
    config = tiny(**own)
    assert schema.from_json(Config, schema.to_json(config)) == config
    state, _, metrics = one_step(config, images)
    np.testing.assert_array_equal(metrics["branches"], [1, 0, 0])
    _, discriminator = states.build(config, SHAPE)
    scores = discriminator.apply({"params": state.discriminator.params}, stepping.scale(jnp.asarray(images[:4])))
    np.testing.assert_allclose(metrics["regularisers"]["small-scores"], 2 * (scores**2).mean(), rtol=1e-5)
    assert metrics["updates"]["generators"].tolist() == [0, 1]
    with pytest.raises(ConfigError, match="one generator loss only"):
        Method(**own, generator_loss="minimax")


def test_names_of_the_packages_parts_are_taken_and_unknown_ones_refused():
    with pytest.raises(ConfigError, match="loss hinge is one of psgjax's own; register yours under another name"):
        parts.register_loss("hinge", least_squares)
    with pytest.raises(ConfigError, match="unknown method.regularisers 'r3'; known are r1, r2, gradient-penalty"):
        Method(regularisers=(("r3", 1.0),))
    with pytest.raises(ConfigError, match="method.regularisers r1 is -1.0; it must be a finite weight, 0 or more"):
        Method(regularisers=(("r1", -1.0),))
    with pytest.raises(ConfigError, match="names one twice"):
        Method(regularisers=(("r1", 1.0), ("r1", 2.0)))
    with pytest.raises(ConfigError, match="method.regularisers is "):
        Method(regularisers={"r1": 1.0})


def test_every_entry_names_a_function_that_is_there():
    for table in (parts.LOSSES, parts.GATES, parts.REGULARISERS):
        for name, part in table.items():
            functions = [part.function, *(getattr(part, f, None) for f in ("scores", "minimax", "classifier"))]
            assert all(callable(parts.resolved(function)) for function in functions if function), name
            assert part.doc
    assert {field.name for field in dataclasses.fields(parts.Loss)} >= {"equilibrium", "ungated", "outputs", "paper"}


def test_a_run_of_an_earlier_version_keeps_its_penalty():
    text = schema.to_json(tiny("wgan-gp"))
    assert '"regularisers": [' in text
    values = dataclasses.asdict(METHODS["wgan-gp"])
    del values["regularisers"]
    for loss, expected in (("wasserstein", (("gradient-penalty", 5.0),)), ("cross-entropy", ())):
        former = Method.upgraded({**values, "loss": loss, "gradient_penalty": 5.0})
        assert schema._build(Method, former, "").regularisers == expected


def test_each_score_depends_on_one_image_alone_so_the_gradient_of_the_sum_has_all():
    squared = regularisers.squared_norms(lambda x: (x**2).sum((-3, -2, -1)), jnp.arange(12.0).reshape(3, 2, 2, 1))
    np.testing.assert_allclose(squared, [4 * sum(n**2 for n in range(4 * i, 4 * i + 4)) for i in range(3)])
