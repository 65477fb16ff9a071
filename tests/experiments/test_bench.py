"""The benchmark's arithmetic, its peers against psgjax's own step, and one race from end to end."""

import dataclasses
import json
import subprocess
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bench, peers
from experiments.peers import Case, Failed, TooSlow, Worker, convolutions, flax_plain, ours, race
from psgjax.config import ConfigError
from psgjax.method import state as states
from psgjax.method import step

pytestmark = pytest.mark.uncovered

METHODS = ("psg", "sngan", "gan")
QUICKLY = {"xla_backend_optimization_level": 0}  # compiled in half the time
SMALL = {name: Case(name, width=4, batch_size=16) for name in METHODS}
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed (extra [bench])")


@pytest.fixture(params=METHODS)
def update(request, monkeypatch):
    """One update of psgjax: case, state before, uint8 images, latents, state after, metrics; D's u at its limit."""
    case = SMALL[request.param]
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
    assert request.param != "psg" or (np.asarray(metrics["branches"]) > 0).all()  # every branch of Algorithm 1 is taken
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
    np.testing.assert_allclose(d_loss.item(), gated["discriminator"], rtol=1e-4)
    np.testing.assert_allclose(g_loss.item(), gated["generators"].sum(), rtol=1e-4)
    moments = after.generators.opt_state[0].mu, after.discriminator.opt_state[0].mu
    updated = after.generators.params, after.discriminator.params
    for module, slopes, values in zip(modules, converted(*moments), converted(*updated), strict=True):
        agree([2 * slope for slope in slopes], [p.grad.numpy() for p in by_name(module)])
        # Adam's first step goes by a gradient's sign, and that of one that should be zero is chance.
        clear = [np.abs(slope) > 1e-6 for slope in slopes]
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


def test_the_plain_port_makes_the_same_update(update):
    case, state, images, latents, after, metrics = update
    training = flax_plain.Training(case)

    def converted(tree):
        def change(name, layer):
            if not name.startswith("Up"):
                return layer
            return {**layer, "kernel": layer["kernel"][..., ::-1, ::-1, :, :].swapaxes(-1, -2)}

        names = {"Up": "ConvTranspose", "Down": "Conv"}
        return {
            names.get(name.split("_")[0], name.split("_")[0]) + name[-2:]: change(name, x) for name, x in tree.items()
        }

    mine = jax.jit(training.init)(jax.random.key(0))
    mine["g"]["params"] = converted(state.generators.params)
    mine["d"]["params"] = converted(state.discriminator.params)
    for path, vector in state.discriminator.spectral_vectors.items():
        layer = path.split("'")[1].replace("Down", "Conv")
        normalisation = {"Conv_0": "SpectralNorm_0", "Conv_1": "SpectralNorm_1", "Dense_0": "SpectralNorm_2"}[layer]
        mine["d"]["batch_stats"][normalisation][f"{layer}/kernel/u"] = vector[None]
    new, (d_loss, g_losses) = jax.jit(training.step, compiler_options=QUICKLY)(mine, scaled(images), latents)
    np.testing.assert_allclose(d_loss, metrics["gated_loss"]["discriminator"], rtol=1e-5)
    np.testing.assert_allclose(g_losses, metrics["gated_loss"]["generators"], rtol=1e-5)
    for side, whole in (("g", after.generators), ("d", after.discriminator)):
        agree(jax.tree.leaves(converted(whole.opt_state[0].mu)), jax.tree.leaves(new[side]["opt_state"][0].mu))


def test_operations_of_a_layer_are_those_worked_out_by_hand():
    generator, discriminator = ours.layers(SMALL["psg"])
    assert [layer.operations for layer in generator] == [
        2 * 100 * 7 * 7 * 8,
        2 * 7 * 7 * 8 * 4 * 4 * 4,
        2 * 14 * 14 * 4 * 4 * 4 * 1,
    ]
    assert [layer.operations for layer in discriminator] == [
        2 * 14 * 14 * 4 * 4 * 1 * 4,
        2 * 7 * 7 * 4 * 4 * 4 * 8,
        2 * 7 * 7 * 8 * 1,
    ]


@pytest.mark.parametrize(("method", "expected"), [("psg", 26_038_534_144), ("gan", 15_539_306_496)])
def test_operations_of_the_reference_step_agree_with_xla(method, expected):
    case = Case(method)
    batches = 15 if method == "psg" else 9  # in wide convolutions: three directions of K in generators, of K + 1 in D
    wide = batches * 128 * 2 * 7 * 7 * 128 * 4 * 4 * 64
    assert ours.operations(case) == expected
    assert ours.operations(dataclasses.replace(case, replicas=3)) == 3 * expected
    # XLA's convolutions leave out the taps that fall on padding: two of 28 each way in 14x14 <-> 7x7, the layer that dominates.
    assert ours.xla_operations(case) == pytest.approx(expected * (26 / 28) ** 2, rel=0.03)
    # Minimal filtering: eight multiplications instead of fourteen.
    assert ours.operations(case, done=True) == expected - wide * 6 // 14
    assert ours.xla_operations(case, done=True) == pytest.approx(expected - wide * 6 / 14, rel=0.03)
    assert ours.operations(dataclasses.replace(case, precision="bfloat16"), done=True) == expected


@pytest.mark.parametrize("owner", ["generator", "discriminator"])
@pytest.mark.parametrize("direction", convolutions._DIRECTIONS)
def test_a_convolution_is_timed_on_the_same_arithmetic_inside_and_outside(owner, direction):
    case = Case("psg", width=2, batch_size=2)
    layer = next(layer for layer in ours.layers(case)[owner == "discriminator"] if layer.convolution)
    mine, plain = (convolutions.Convolution(case, owner, layer, direction, plain) for plain in (False, True))
    assert mine.facts["operations"] == layer.operations * (4 if owner == "generator" else 6)
    assert mine.time("inside", 3) > 0
    assert plain.time("outside", 3) > 0
    np.testing.assert_allclose(mine.carry[0], plain.carry[0], rtol=1e-4, atol=1e-4)


def test_a_worker_that_takes_too_long_or_fails_is_ended():
    with pytest.raises(TooSlow, match=r"within 0\.5 s"):
        Worker("time:sleep", 60, limit=0.5)
    with pytest.raises(Failed, match="^ValueError: invalid literal"):
        Worker("builtins:int", "three")
    with pytest.raises(Failed, match="exit status 3"):
        Worker("os:_exit", 3)


def test_what_a_contenders_process_imports_with_the_command_is_not_jax():
    """A contender's process begins with the command's module; jax would count towards PyTorch's memory there."""
    program = "import sys, experiments.bench; print(sorted({'jax', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_spread():
    assert race.spread([4.0, 1.0, 2.0, 3.0, 100.0]) == {
        "median": 3.0,
        "quartiles": [2.0, 4.0],
        "least": 1.0,
        "most": 100.0,
        "rounds": [4.0, 1.0, 2.0, 3.0, 100.0],
    }
    assert race.spread([2.0])["quartiles"] == [2.0, 2.0]


def test_on_a_gpu_replicas_and_batch_sizes_are_swept_to_saturation(monkeypatch):
    def saturated(case, machine, options):
        return [{"images_per_second": 1000.0 * min(case.batch_size, 1024) * case.replicas, "case": case}]

    class Gpu:
        facts = {"platform": "gpu"}  # noqa: RUF012

    monkeypatch.setattr(race, "race", saturated)
    seen = []
    options = bench.parse(["--methods", "psg"])
    race.race_all(Gpu(), options, lambda results: seen.append(results[0]["case"]))
    assert [case.replicas for case in seen[:7]] == [1, 2, 4, 8, 16, 32, 64]
    assert [case.batch_size for case in seen[7:]] == [256, 512, 1024, 2048]


def test_a_race_from_end_to_end(tmp_path, capsys, monkeypatch):
    contenders = ["psgjax", "torch"] if find_spec("torch") else ["psgjax"]
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    path = tmp_path / "bench.json"
    arguments = ["--methods", "gan", "--width", "4", "--batch-sizes", "4", "--rounds", "2", "--seconds", "0.05"]
    arguments += ["--contenders", *contenders, "--json", str(path), "--profile", str(tmp_path / "trace")]
    assert bench.main(arguments) == 0
    written = json.loads(path.read_text())
    printed = capsys.readouterr().out
    assert {"jax", "flax", "numpy"} <= set(written["versions"])
    assert len(written["load_average"]["begin"]) == len(written["load_average"]["end"]) == 3
    assert written["hardware"]["cores"] >= 1
    assert written["options"]["rounds"] == 2
    assert [result["contender"] for result in written["results"]] == contenders
    for result in written["results"]:
        taken = result["milliseconds"]
        assert len(taken["rounds"]) == 2
        assert 0 < taken["least"] <= taken["median"] <= taken["most"]
        assert result["images_per_second"] == pytest.approx(4000 / taken["median"])
        assert result["operations_per_second"] == pytest.approx(1000 * result["operations"] / taken["median"])
        assert result["share_of_peak"] * result["matmul_peak"]["median"] == pytest.approx(
            result["operations_per_second"]
        )
        assert result["peak_bytes"] > result["imported_bytes"] > 10e6
        assert np.isfinite(result["loss"])
        assert f"\n{result['contender']} " in printed
    assert written["results"][0]["compile_seconds"] > 0
    assert list((tmp_path / "trace").rglob("perfetto_trace.json.gz"))


def test_a_contender_that_takes_too_long_is_reported_and_not_waited_for(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert (
        bench.main(
            ["--methods", "gan", "--contenders", "flax", "--limit", "0.01", "--rounds", "1", "--json", str(path)]
        )
        == 0
    )
    (result,) = json.loads(path.read_text())["results"]
    assert result["note"] == "not built: no answer within 0.01 s"
    assert result["note"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "biggan"], "--methods biggan: known are psg, sngan, gan."),
        (["--contenders", "keras"], "--contenders keras: known are"),
        (["--network", "resnet", "--contenders", "flax"], "--network resnet with flax: there is none"),
        (["--rounds", "0"], "--rounds 0: it must be a number above 0"),
        (["--limit", "nan"], "--limit nan"),
        (["--batch-sizes", "64", "-1"], "--batch-sizes -1"),
        (["--batch-sizes", "many"], "invalid int value: 'many'"),
        (["--precision", "float8"], "float8"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
        (["--json", "nowhere/at/all.json"], "no folder"),
    ],
)
def test_bad_options_end_with_one_line_and_status_2(arguments, message, capsys):
    assert bench.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_convolutions_of_pytorch_are_not_timed():
    with pytest.raises(ConfigError, match="psgjax and flax; --contenders torch names neither"):
        convolutions.time_all(None, bench.Options(convolutions=True, contenders=("torch",)), print)


def test_help_says_what_every_option_is(capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all("--" + field.name.replace("_", "-") in shown for field in dataclasses.fields(bench.Options))
