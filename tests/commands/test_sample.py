"""Exported generators give the sampler's numbers without this package; a state's hash sees every bit; mistakes are one line."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE, SHAPE, first_state, leaves, like, same, tiny
from jax import export

from psgjax.commands import sample
from psgjax.config import Config, ConfigError, Network, Optimizer
from psgjax.leaves import arrays, digest
from psgjax.method import epochs
from psgjax.method.inference import make_sampler
from psgjax.runs.checkpoint import Checkpoints
from psgjax.schema import to_json


def leave_run(folder, config, state):
    """What sampling needs of a run."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config))
    (folder / "env.json").write_text(json.dumps({"image_shape": SHAPE}))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(state, {"seconds": 0.0})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny(network=IMAGE)
    return leave_run(tmp_path_factory.mktemp("runs") / "psg", config, first_state(config))


# Nothing but jax can be imported here; the README's snippet, for two batch sizes.
ELSEWHERE = """
import sys
sys.modules.update(dict.fromkeys(["psgjax", "flax", "optax", "orbax"]))  # importing them raises
import jax, numpy
from jax import export
with open("psg.stablehlo", "rb") as file:
    sampler = export.deserialize(bytearray(file.read()))
for name in ("psgjax", "flax"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(name)
numpy.savez("images.npz", **{name: sampler.call(latents) for name, latents in numpy.load("latents.npz").items()})
assert not [name for name, module in sys.modules.items() if name.startswith("psgjax") and module]
"""


@pytest.mark.uncovered
def test_an_exported_run_is_sampled_where_this_package_is_not(run, tmp_path):
    assert sample.main([str(run), "--export", str(tmp_path / "psg.stablehlo")]) == 0
    config, state, image_shape = sample.load(run)
    draw = np.random.default_rng(0).standard_normal
    latents = {f"of_{count}": draw((2, count, 6), dtype=np.float32) for count in (1, 5)}
    np.savez(tmp_path / "latents.npz", **latents)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-I", "-c", ELSEWHERE], cwd=tmp_path, env=environment, check=True)
    sampler = jax.jit(make_sampler(config, image_shape))
    with np.load(tmp_path / "images.npz") as images:
        for name, given in latents.items():
            assert images[name].dtype == np.float32
            np.testing.assert_allclose(images[name], sampler(state, given), rtol=0, atol=1e-6)
            assert images[name].std() > 0


def test_one_file_is_lowered_for_every_platform_and_names_no_folder(run, tmp_path):
    path = tmp_path / "psg.stablehlo"
    path.write_text("replaced as a whole")
    assert sample.main([str(run), "--export", str(path)]) == 0
    assert os.listdir(tmp_path) == [path.name]
    exported = export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals) == "(ShapedArray(float32[2,batch,6]),)"
    assert str(exported.out_avals) == "(ShapedArray(float32[2,batch,8,8,1]),)"
    module = exported.mlir_module()
    assert "_platform_index" in module
    # The forms for a CPU, and the native ones with K generators as the groups of one convolution.
    assert "feature_group_count = 1" in module
    assert "feature_group_count = 2" in module
    calls = [line for line in module.splitlines() if "custom_call" in line]
    assert all("@shape_assertion" in line for line in calls)  # nothing that only some devices have
    assert b".py" not in path.read_bytes()


@pytest.mark.uncovered
@pytest.mark.parametrize(
    "config",
    [
        tiny("sngan", network=Network("sngan32", width=2, latent_size=6)),
        tiny("gan", network=Network("mlp", width=3, latent_size=6)),
        tiny("gan", optimizer=Optimizer(average_decay=0.5), precision="bfloat16"),
    ],
    ids=lambda config: f"{config.network.name}-{config.precision}",
)
def test_every_network_is_exported_with_what_is_sampled(config):
    state = first_state(config)
    exported = export.deserialize(bytearray(sample.to_stablehlo(config, state, SHAPE)))
    latents = jax.random.normal(jax.random.key(0), (1, 3, 6))
    np.testing.assert_allclose(
        exported.call(latents), jax.jit(make_sampler(config, SHAPE))(state, latents), rtol=0, atol=1e-6
    )


USERS = [  # networks, widths and image shapes as users have them: with minimal filtering, which narrow ones are too small for
    (Network("dcgan28", width=32), (28, 28, 1)),
    (Network("dcgan28"), (28, 28, 1)),
    (Network("infogan28"), (28, 28, 1)),
    (Network("sngan32", width=32), (32, 32, 3)),
    (Network("resnet", width=32), (28, 28, 1)),
    (Network("snresnet32", width=32), (32, 32, 3)),
    (Network("mlp"), (28, 28, 1)),
]


@pytest.mark.uncovered
@pytest.mark.parametrize(("network", "shape"), USERS, ids=lambda value: getattr(value, "name", None))
def test_runs_of_the_size_that_users_train_are_exported(network, shape):
    config, draw = Config(network=network), np.random.default_rng(0)
    state = like(config, shape)
    g = jax.tree.map(lambda leaf: jnp.asarray(0.02 * draw.random(leaf.shape), leaf.dtype), state.generators)
    rest = dataclasses.replace(state, generators=None, key=None)
    rest = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest)
    state = dataclasses.replace(rest, generators=g, key=jax.random.key(0))
    exported = export.deserialize(bytearray(sample.to_stablehlo(config, state, shape)))
    assert [aval.shape[2:] for aval in exported.out_avals] == [shape]
    if network.name == "dcgan28":
        latents = draw.standard_normal((config.method.generators, 2, 100), dtype=np.float32)
        images = exported.call(latents)
        np.testing.assert_allclose(images, jax.jit(make_sampler(config, shape))(state, latents), rtol=0, atol=1e-5)
        assert np.std(images) > 1e-3


def test_a_hash_sees_every_bit_of_every_leaf():
    config = tiny("psg-sn")
    state = first_state(config)
    assert digest(state) == digest(jax.tree.map(jnp.copy, state))
    assert len(arrays(state)) == len(leaves(state))
    seen = {digest(state)}
    flat, structure = jax.tree.flatten(state)
    for i, leaf in enumerate(flat):
        key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        flipped = np.array(jax.random.key_data(leaf) if key else leaf)
        flipped.reshape(-1).view(np.uint8)[-1] ^= 1 << 7
        other = jax.random.wrap_key_data(flipped) if key else flipped
        seen.add(digest(jax.tree.unflatten(structure, [*flat[:i], other, *flat[i + 1 :]])))
    assert len(seen) == 1 + len(flat)
    assert digest(first_state(dataclasses.replace(config, seed=1))) not in seen


@pytest.mark.uncovered
def test_a_hash_does_not_depend_on_how_updates_are_cut(images):
    config = tiny("gan")
    program = epochs.make_run(config, len(images), SHAPE)

    def after(*counts):
        state = jax.tree.map(jnp.copy, first_state(config))
        for count in counts:
            state, _ = program(state, images, jnp.int32(count))
        return state

    assert digest(after(6)) == digest(after(1, 3, 2)) != digest(after(5))


def test_verify_prints_the_hash_of_the_last_state(run, tmp_path, capsys):
    config, state, _ = sample.load(run)
    copy = leave_run(tmp_path / "copy", config, state)
    other = leave_run(tmp_path / "other", config, first_state(dataclasses.replace(config, seed=1)))
    assert same(state, first_state(config))
    for folder in (run, copy, other):
        assert sample.main([str(folder), "--verify"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{digest(first_state(config))}  step 0 of {run}"
    hashes = [line.split()[0] for line in lines]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_best_state_or_one_by_its_step_is_chosen_and_nothing_is_changed(run, tmp_path, capsys):
    config = tiny()
    kept = [dataclasses.replace(first_state(config), step=jnp.int32(step)) for step in (7, 8, 3)]
    copy = leave_run(tmp_path / "psg", config, kept[0])
    for name, state in (("checkpoints", kept[1]), ("best", kept[2])):
        with Checkpoints(copy / name) as checkpoints:
            checkpoints.save(state, {})
        (copy / name / "9.orbax-checkpoint-tmp").mkdir()
    listing = sorted(copy.rglob("*"))
    asked = [
        [str(copy)],
        [f"{copy}/checkpoints"],
        [str(copy), "--checkpoint", "7"],
        [str(copy), "--checkpoint", "best"],
    ]
    for arguments in [*asked, [f"{copy}/best"]]:
        assert sample.main([*arguments, "--verify"]) == 0
    steps = [line.split(" step ")[1].split()[0] for line in capsys.readouterr().out.splitlines()]
    assert steps == ["8", "8", "7", "3", "3"]
    export_best = [f"{copy}/best", "--export", str(tmp_path / "best.stablehlo")]
    assert sample.main(export_best) == 0
    assert "step 3:" in capsys.readouterr().out
    assert sorted(copy.rglob("*")) == listing
    for folder, given, message in [
        (copy, "9", "no checkpoint of step 9; it has those of 7, 8"),
        (copy, "worst", "checkpoint is 'worst'; it must be last, best, or the step"),
        (run, "best", "no best checkpoint: one is kept when training scores"),
    ]:
        assert sample.main([str(folder), "--checkpoint", given, "--verify"]) == 2
        assert message in capsys.readouterr().err


def test_a_folder_of_several_runs_is_answered_with_the_folders_to_give(tmp_path):
    config = tiny()
    runs = [leave_run(tmp_path / "my runs/psg" / f"seed-{seed}", config, first_state(config)) for seed in (0, 1)]
    for folder in (tmp_path / "my runs/psg", tmp_path / "my runs"):
        with pytest.raises(ConfigError, match="holds no run itself; give the folder of one") as error:
            sample.load(folder)
        assert str(error.value).endswith(f": '{runs[0]}', '{runs[1]}'.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing holds no run"),
        (["."], "holds no run"),
        (["missing", "--count", "0"], "count is 0"),
        (["missing", "--out", "a.jpg"], "a.jpg must end in .png or .npz"),
        (["missing", "--out", "none/a.png"], "none/a.png lies in a folder that does not exist"),
        (["missing", "--export", "a.bin"], "a.bin must end in .stablehlo"),
        (["missing", "--export", "folder.stablehlo"], "--export folder.stablehlo is a folder"),
        (["missing", "--export", "a.stablehlo", "--verify"], "--export with --verify"),
        (["missing", "--verify", "--seed", "3"], "--verify with --seed"),
        (["missing", "--export", "a.stablehlo", "--out", "a.png"], "--export with --out"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.stablehlo").mkdir()
    assert sample.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert os.listdir(tmp_path) == ["folder.stablehlo"]


@pytest.mark.parametrize("content", [None, "{", "[]", "[" * 100_000, '{"image_shape": [8, 8, "1"]}', "\xff"])
def test_a_damaged_environment_is_one_line(content, run, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    if content is not None:
        (tmp_path / "env.json").write_text(content, encoding="latin-1")
    assert sample.main([str(tmp_path), "--verify"]) == 2
    assert "env.json is missing, or its image_shape" in capsys.readouterr().err
