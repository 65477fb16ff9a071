"""What a notebook calls: loaded when it is used, doing what its examples say, and what the commands do."""

import doctest
import functools
import subprocess
import sys

import numpy as np
import pytest
from conftest import SHAPE, first_state, same, tiny

import psgjax
from psgjax.config import ConfigError, Network
from psgjax.evaluation import fitting

SMALL = {"batch_size": 4, "network": Network("mlp", width=2, latent_size=4)}

ALONE = """
import sys, time
started = time.process_time()
import psgjax
took = time.process_time() - started
heavy = {"jax", "flax", "optax", "orbax", "numpy", "matplotlib", "tyro", "mlxtend", "rich", "PIL"} & set(sys.modules)
assert not heavy, heavy
assert took < 0.2, took
"""


USED = """
import sys
import psgjax
psgjax.train, psgjax.load, psgjax.methods, psgjax.make_step, psgjax.Run, psgjax.Dataset
needless = {"matplotlib", "jinja2", "tyro", "mlxtend"} & set(sys.modules)
assert not needless, needless
"""


@pytest.mark.parametrize("program", [ALONE, USED], ids=["alone", "used"])
def test_an_import_loads_no_more_than_it_needs(program):
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_public_name_is_there_and_no_other():
    for name in psgjax.__all__:
        assert getattr(psgjax, name) is not None
    assert set(psgjax.__all__) <= set(dir(psgjax))
    assert psgjax.__version__.split(".")[0].isdigit()
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        psgjax.trian  # noqa: B018
    assert list(psgjax.methods()) == list(psgjax.METHODS)
    psgjax.register_method("mine", psgjax.Method(generators=3), "three generators", "ours")
    assert psgjax.methods()["mine"] == "three generators (ours)"
    with pytest.raises(ConfigError, match="method psg is one of psgjax's own"):
        psgjax.register_method("psg", psgjax.Method())
    with pytest.raises(ConfigError, match="unknown setting of loss mine 'gated'"):
        psgjax.register_loss("mine", lambda outputs: outputs, gated=False)


EXAMPLES = [*(name for name in psgjax.__all__ if callable(getattr(psgjax, name))), "Run.sample", "Run.score"]


@pytest.mark.uncovered
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_public_name_has_an_example_that_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = functools.reduce(getattr, name.split("."), psgjax)
    known = {**vars(sys.modules[thing.__module__]), "np": np}
    tests = doctest.DocTestFinder(recurse=False).find(thing, name, globs=known)
    tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in tests:
        tried.run(test)
    assert tried.tries
    assert not tried.failures


def test_a_run_is_kept_goes_on_and_is_the_same_as_in_memory(images, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines = []

    def once(line):
        lines.append(line)
        return False

    settings = {"epochs": 40, "seed": 3, **SMALL}
    cut = psgjax.train("gan", images, out="~/gan", on_epoch=once, **settings)
    assert cut.metrics[0] == lines[0]
    assert cut.step == cut.metrics[-1]["step"] <= cut.config.steps
    whole = psgjax.train("gan", images, out=tmp_path / "gan", **settings)
    alone = psgjax.train("gan", images, **settings)
    assert whole.step == alone.step == alone.config.steps == 40 * 7
    assert same(whole.state, alone.state)
    assert same(psgjax.load("~/gan").state, alone.state)
    assert (repr(whole), alone.folder) == (f"<Run of gan, step 280 of 280, in '{tmp_path / 'gan'}'>", None)
    assert [line["epoch"] for line in alone.metrics] == list(range(1, 41))


def means(images):
    return np.asarray(images, np.float32).mean((1, 2))


def spreads(images):
    return np.asarray(images, np.float32).std((1, 2))


@pytest.mark.uncovered
def test_features_of_ones_own_measure_a_run_while_it_trains_and_afterwards(images, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "_kept_or_trained", None)  # nothing else is trained for it
    data = psgjax.Dataset.from_arrays(images, held_out=0.5)
    given = {"epochs": 5, "evaluation_epochs": 1, "evaluation_samples": 24, "out": tmp_path / "psg", **SMALL}
    run = psgjax.train("psg", data, features=means, on_epoch=lambda line: False, **given)
    assert run.step < run.config.steps
    logged = run.metrics[-1]["evaluation"]
    assert (logged["features"], len(logged["features_sha256"])) == ("means", 64)
    for other in (spreads, functools.update_wrapper(lambda images: 2 * means(images), means)):
        refusal = rf"was scored by the features means \(SHA.* now it would be by {other.__name__} \(SHA"
        with pytest.raises(ConfigError, match=refusal):
            psgjax.train("psg", data, features=other, **given)
    whole = psgjax.train("psg", data, features=means, **given)
    assert {line["evaluation"]["features_sha256"] for line in whole.metrics} == {logged["features_sha256"]}
    assert whole.score(data) == whole.metrics[-1]["evaluation"]
    assert whole.score(data, features=spreads)["features"] == "spreads"
    with pytest.raises(ConfigError, match=r"features lambda of 16 images are \[16, 8, 8, 1\]; they must be \[n, F\]"):
        psgjax.train("gan", data, features=lambda images: images, steps=1, out=tmp_path / "gan")
    assert not (tmp_path / "gan").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 1, "batchsize": 4}, "unknown setting 'batchsize'.* 'batch_size'"),
        ({}, "length of the run once"),
        ({"steps": 1, "epochs": 1}, "length of the run once"),
        ({"epochs": 0}, "epochs is 0"),
        (
            {"steps": 1, "optimizer": psgjax.Optimizer(penalty_end=0.1)},
            "penalty_end 0.1 would be ignored: there are no",
        ),
        ({"method": "psgg", "steps": 1}, "unknown method 'psgg'.* 'psg'"),
        ({"images": np.full((9, 8, 8), 0.5), "steps": 1}, "not certain: say it with range="),
        ({"images": np.zeros((1, 8, 8), np.uint8), "range": "0..255", "steps": 1}, "at least two"),
    ],
)
def test_mistakes_are_a_sentence(arguments, message, images):
    method = arguments.pop("method", "psg")
    with pytest.raises(ConfigError, match=message):
        psgjax.train(method, arguments.pop("images", images), **arguments)


def test_samples_are_of_the_mixture_and_follow_from_the_seed(first_run):
    many, few = first_run.sample(40, seed=1), first_run.sample(7, seed=1)
    assert (many.shape, many.dtype) == ((40, *SHAPE), np.uint8)
    np.testing.assert_array_equal(many[:7], few)
    each = [first_run.sample(40, seed=1, generator=k) for k in (0, 1)]
    of = [(many == images).all((1, 2, 3)) for images in each]
    assert (of[0] | of[1]).all()
    assert 8 < of[0].sum() < 32
    assert not np.array_equal(first_run.sample(40, seed=2), many)
    for wrong in ({"count": 0}, {"count": 1, "generator": 2}, {"count": 1, "seed": -1}):
        with pytest.raises(ConfigError):
            first_run.sample(**wrong)


def test_a_run_is_scored_against_images_with_and_without_labels(first_run, images):
    data = psgjax.Dataset.from_arrays(images, held_out=0.5, name="noise")
    scores = first_run.score(data, samples=24)
    assert (scores["samples"], scores["reference"]) == (24, 16)
    assert 0 <= scores["memorisation_rate"] <= 1
    assert "are useless" in scores["left_out"]["fcd"]  # of noise: nothing tells how it was turned
    assert first_run.score(images, samples=24)["reference"] == 32
    with pytest.raises(ConfigError, match="the reference needs"):
        first_run.score(images[:, :4], samples=24)


@pytest.fixture(scope="module")
def first_run():
    config = tiny("psg")
    return psgjax.Run(config, first_state(config), SHAPE)


def test_arrays_become_a_data_set_the_same_way_each_time(images):
    one, two = (psgjax.Dataset.from_arrays(images, np.arange(32) % 3) for _ in range(2))
    assert one.info == two.info
    assert (len(one.images), len(one.held_out_images)) == (29, 3)
    together = np.concatenate([one.images, one.held_out_images])
    assert len(np.unique(together.reshape(32, -1), axis=0)) == 32
    where = [int(np.flatnonzero((images == image).all((1, 2, 3)))[0]) for image in together]
    np.testing.assert_array_equal(np.array(where) % 3, np.concatenate([one.labels, one.held_out_labels]))
    floats = psgjax.Dataset.from_arrays(images / 255.0, np.arange(32) % 3, range="0..1")
    np.testing.assert_array_equal(floats.images, one.images)
    with pytest.raises(ConfigError, match=r"32 images, and labels \[3\]"):
        psgjax.Dataset.from_arrays(images, np.zeros(3))


def test_too_few_held_out_images_to_measure_by_are_one_line(images):
    data = psgjax.Dataset.from_arrays(images[:20])
    with pytest.raises(psgjax.ConfigError, match=r"2 image\(s\) held out: .* at least 6; hold out"):
        psgjax.train("gan", data, steps=1, evaluation_epochs=1, network=psgjax.Network(width=2), batch_size=4)
