"""Stacked MNIST: its images and measures by hand, and the command from end to end."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import stacked_digits, stacked_mnist
from psgjax.data import dataset
from psgjax.evaluation import classifier as classifiers
from psgjax.evaluation import fitting
from psgjax.evaluation.classifier import Classifier

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

TINY = ["--trials", "2", "--epochs", "1", "--images", "32", "--samples", "60", "--batch-size", "8", "--out", "out"]
TINY += ["--network.width", "2", "--network.latent-size", "3"]


@pytest.fixture
def digits(monkeypatch):
    """Images of 8x8 whose brightness is ten times their digit, and a classifier that sees just that."""
    labels = np.arange(40, dtype=np.int32) % 10
    images = np.broadcast_to((10 * labels).astype(np.uint8)[:, None, None, None], (40, 8, 8, 1)).copy()
    info = {"source": "idx", "name": "mnist", "description": "digits", "canonical": False, "sha256": "0"}
    loaded = dataset.Dataset(images, labels, images, labels, info | {"warning": None})
    monkeypatch.setattr(dataset, "load", lambda config, progress: loaded)
    judge = Classifier({}, (8, 8, 1), 10, {"accuracy": 1.0, "sha256": "0", "held_out_images": 40})
    monkeypatch.setattr(fitting, "for_data", lambda dataset, progress: judge)

    def apply(classifier, images):
        seen = np.minimum(images.mean((1, 2, 3)) // 10, 9).astype(int)
        return np.zeros((len(images), 1)), np.eye(10)[seen]

    monkeypatch.setattr(classifiers, "apply", apply)
    return loaded


def test_stacked_images_hold_the_digits_that_their_mode_names(digits):
    images, modes = stacked_digits.stack(digits.images, digits.labels, 500, (0,))
    assert images.shape == (500, 8, 8, 3)
    assert images.dtype == np.uint8
    seen = images[:, 3, 4] // 10
    np.testing.assert_array_equal(seen @ [100, 10, 1], modes)
    assert len(set(modes.tolist())) > 300
    again, other = (stacked_digits.stack(digits.images, digits.labels, 500, (seed,))[1] for seed in (0, 1))
    np.testing.assert_array_equal(again, modes)
    assert not np.array_equal(other, modes)


def test_each_channel_is_classified_alone(digits):
    images, modes = stacked_digits.stack(digits.images, digits.labels, 50, (0,))
    predictions = stacked_digits.predict(fitting.for_data(digits, print), images)
    np.testing.assert_array_equal(predictions @ [100, 10, 1], modes)


def test_a_kl_is_that_of_each_channels_digits_and_of_their_dependence():
    random = np.random.default_rng(0)
    even, odd = (random.integers(0, 5, (20_000, 3)) * 2 + start for start in (0, 1))  # independent channels, each
    alone, mixed = stacked_digits.measure(even), stacked_digits.measure(np.concatenate([even, odd]))
    assert alone["kl"] == pytest.approx(3 * np.log(2), abs=0.01)
    assert alone["digits_kl"] == pytest.approx(alone["kl"], abs=0.01)
    # Any digit is as frequent as another, but those of one image are all even or all odd.
    assert mixed["digits_kl"] == pytest.approx(0, abs=0.01)
    assert mixed["kl"] == pytest.approx(2 * np.log(2), abs=0.01)


def test_the_presets():
    options = {name: stacked_mnist.Options(preset=name) for name in ("quick", "small", "pacgan", "full")}
    quick, small, pacgan, full = map(stacked_mnist.configure, options.values())
    assert quick["gan"][0].steps < 10_000
    configs = pacgan["gan"]
    assert [config.seed for config in configs] == list(range(10))
    some = configs[0]
    assert (some.steps, some.batch_size, some.network.latent_size) == (100_000, 64, 100)
    assert (some.optimizer.learning_rate, some.optimizer.beta1) == (2e-4, 0.5)
    assert (options["pacgan"].protocol.images, options["pacgan"].samples) == (128_000, 26_000)
    assert list(small) == list(full) == ["choice", "r3gan", "gan-r1r2"]
    assert small["choice"][0].steps == 20_000
    assert small["choice"][0].network == quick["gan"][0].network
    some = full["r3gan"][0]
    assert f"{stacked_mnist.sizes(some, (28, 28, 3))['discriminator'] / 1e6:.1f} M parameters" in stacked_mnist.__doc__
    assert (some.batch_size, round(some.steps * some.batch_size, -5)) == (512, 10_000_000)
    config = full["choice"][0]
    assert config.network.name == "resnet"  # without normalisation
    assert config.optimizer.beta1 == 0
    assert (config.optimizer.penalty_end, config.optimizer.early_share) == (0.1, 0.2)
    assert config.optimizer.averages


def test_the_command_end_to_end(digits, capsys):
    arguments = [*TINY, "--methods", "psg"]
    assert stacked_mnist.main(arguments) == 0
    shown = capsys.readouterr().out
    record = json.loads(Path("out/results.json").read_text())
    assert record["command"].startswith("python -m experiments.stacked_mnist --trials 2")
    assert record["protocol"]["seeds"] == [0, 1]
    assert record["protocol"]["classifier"]["sha256"] == "0"
    assert record["settings"]["psg"]["method"]["generators"] == 2
    assert 1 <= record["results"]["real"]["modes"] <= 60
    result = record["results"]["methods"]["psg"]
    assert [trial["seed"] for trial in result["per_trial"]] == [0, 1]
    assert all(len(trial["generators"]) == 2 for trial in result["per_trial"])
    assert result["modes"]["seeds"] == 2
    # Convolutions 4x4 of 3 -> 2 -> 4 channels, and 2x2x4 numbers to one score.
    assert result["parameters"]["discriminator"] == (96 + 2) + (128 + 4) + (16 + 1)
    assert Path("out/psg/seed-1/metrics.jsonl").is_file()
    text = Path("out/results.md").read_text()
    for one in (shown, text):
        assert all(word in one for word in ("modes (of 1,000)", "psg", "PacDCGAN2 (published)", "247", "real images"))

    assert stacked_mnist.main(arguments) == 0  # again: nothing is trained, and the figures are the same
    assert "finished already" in capsys.readouterr().out
    assert json.loads(Path("out/results.json").read_text())["results"] == record["results"]


def test_a_gpu_trains_all_trials_of_a_method_at_once(digits, monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    arguments = [*TINY, "--methods", "gan", "--network.name", "mlp"]
    assert stacked_mnist.main(arguments) == 0
    assert "gan (2 seeds): training 4 steps" in capsys.readouterr().out
    record = json.loads(Path("out/results.json").read_text())
    assert [trial["seed"] for trial in record["results"]["methods"]["gan"]["per_trial"]] == [0, 1]
    assert all(Path(f"out/gan/seed-{seed}/metrics.jsonl").is_file() for seed in (0, 1))
    assert stacked_mnist.main(arguments) == 0
    assert "finished already" in capsys.readouterr().out
    assert stacked_mnist.main([*arguments, "--trials", "3"]) == 2
    assert "seeds are trained together from the first step" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "gann"], "unknown method 'gann'"),
        (["--methods"], "--methods"),
        (["--trials", "0"], "trials is 0"),
        (["--samples", "0"], "samples is 0"),
        (["--seed", str(2**32 - 1)], "last seed is 4294967296"),
        (["--data-seed", "-1"], "data_seed is -1"),
        (["--images", "4"], "batch_size 8"),
        (["--out", "file"], "is a file"),
        (["--out", "full"], "full/results.md is of no run"),
    ],
)
def test_bad_options_are_one_line_and_exit_status_2(digits, arguments, message, occupied, refusal):
    assert message in refusal(stacked_mnist.main, [*TINY, *arguments])
