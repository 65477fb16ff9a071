import base64
import dataclasses
import html.parser
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import scipy.stats
from matplotlib.image import imread, imsave
from PIL import Image

from psgjax.config import METHODS, Config, Data
from psgjax.report import figures, page, results
from psgjax.schema import to_json

WARNING = "the packaged 5,000 images are used <b>instead</b>"


def metrics(generators, epoch, **changes):
    return {
        "epoch": epoch,
        "step": 70 * epoch,
        "images": 4480 * epoch,
        "seconds": 5.0 + 2.0 * epoch,
        "loss": {"discriminator": 1.0 + 1 / epoch, "generators": [1.1 + 0.1 * k for k in range(generators)]},
        "gated_loss": {"discriminator": 0.2, "generators": [0.5] * generators},
        "accuracy": 0.8,
        "pairwise_accuracy": 0.9,
        "held_out_accuracy": 0.75,
        "held_out_pairwise_accuracy": 0.85,
        "held_out_calibrated_loss": {"discriminator": 0.5, "generators": [1.5, 2.5][:generators]},
        "held_out_temperature": 0.25,
        "branches": [0.2 / generators] * generators + [0.8],
        "updates": {"discriminator": 0.2, "generators": [0.9] * generators},
    } | changes


def leave_run(
    folder,
    name="psg",
    epochs=12,
    planned=12,
    snapshots=(0, 1, 2, 3, 5, 8, 12),
    config=None,
    data=(),
    seed=None,
    **changes,
):
    """What training leaves behind; the samples are grids of 2 by 4 cells of 8 by 8 pixels, whose grey tells the generator."""
    config = config or Config(method_name=name, method=METHODS[name], steps=70 * planned)
    run, generators = folder / name, config.method.generators
    if seed is not None:
        run, config = run / f"seed-{seed}", dataclasses.replace(config, seed=seed)
    (run / "samples").mkdir(parents=True)
    (run / "config.json").write_text(to_json(config))
    data = {
        "source": "packaged",
        "name": "mnist",
        "description": "MNIST, a subset",
        "train_images": 4480,
        "held_out_images": 520,
        "canonical": False,
        "sha256": "ab" * 32,
        "warning": WARNING,
    } | dict(data)
    environment = {"command": ["python", "-m", "experiments.mnist"], "versions": {"jax": "0.10.2"}, "commit": None}
    (run / "env.json").write_text(json.dumps(environment | {"data": data, "steps_per_epoch": 70}))
    lines = [json.dumps(metrics(generators, epoch, **changes)) + "\n" for epoch in range(1, epochs + 1)]
    (run / "metrics.jsonl").write_text("".join(lines))
    for epoch in snapshots:
        grey = np.repeat(np.linspace(0.2, 1, generators), 16)[:, None] * np.ones((1, 32))
        imsave(run / "samples" / f"epoch-{epoch:04d}.png", grey, cmap="gray", vmin=0, vmax=1)
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("sngan", "psg"):
        leave_run(folder, name)
    assert page.write(folder) == folder / "report.html"
    return folder


def summary(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((folder / "summary.json").read_text(), parse_constant=refuse)


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_all_files_are_there_and_no_other(finished):
    left = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    made = {path for path in left if not path.startswith(("psg/", "sngan/"))}
    assert made == {"report.html", "summary.json"} | {f"figures/{name}.png" for name in figures.FIGURES}
    for name in ("loss", "accuracy", "samples", "branches"):
        image = imread(finished / "figures" / f"{name}.png")
        assert min(image.shape[:2]) > 200
        assert image[..., :3].std() > 0


def test_summary_has_the_figures_of_every_method(finished):
    found = summary(finished)
    assert list(found["methods"]) == ["psg", "sngan"]
    psg = found["methods"]["psg"]
    assert psg["loss"]["generators"] == pytest.approx([1.1, 1.2])
    assert psg["steps_per_second"] == pytest.approx(35)
    assert psg["finished"]
    assert psg["data"]["train_images"] == 4480
    assert found["comparison"]["accuracy"] == {
        "verdict": "not reproduced",
        "reason": None,
        "psg": 0.8,
        "sngan": 0.8,
    }
    assert found["warnings"] == [f"psg, sngan: {WARNING}"]


def test_the_page_shows_what_was_found(finished):
    text = " ".join(Page(finished / "report.html").text.split())
    assert "psg and sngan were trained on MNIST, a subset." in text
    assert "chose the real image out of 3 in 80.0 % of cases, where a guess is right in 33.3 %" in text
    assert "(840 updates in 0.5 minutes)" in text
    assert "0 reproduced, 1 not reproduced, 2 inconclusive" in text
    assert "raw 0.067 against 0.017, 300 % larger" in text
    assert "calibrated 1.500 against 1.000, 50 % larger" in text
    assert (
        "1.500 where the discriminator's outputs are divided by their best temperature, 0.250 (normalised: 1.365)"
        in text
    )
    assert "Under the gate (psg) a small loss gap is no sign of balance" in text
    assert "method.spectral_norm differs" in text
    assert "batch_size differs" not in text
    assert text.index(WARNING) < text.index("were trained on")


def test_the_page_refers_to_nothing_outside_itself(finished):
    shown = Page(finished / "report.html")
    for tag, attributes in shown.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        assert not {"href", "srcset", "action", "data"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
    source = (finished / "report.html").read_text()
    assert not re.search(r"https?:|@import|url\(", source)
    assert str(finished) not in source


def test_the_page_embeds_the_figures_and_describes_them(finished):
    images = [attributes for tag, attributes in Page(finished / "report.html").tags if tag == "img"]
    for name, attributes in zip(("loss", "accuracy", "samples", "branches"), images, strict=True):
        content = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        assert content == (finished / "figures" / f"{name}.png").read_bytes()
        assert imread(io.BytesIO(content)).size
        assert "psg" in attributes["alt"]


def test_the_page_can_be_read_aloud(finished):
    tags = Page(finished / "report.html").tags
    assert ("html", {"lang": "en"}) in tags
    assert all(attributes.get("scope") in {"row", "col"} for tag, attributes in tags if tag == "th")


def test_drawn_again_it_is_the_same(finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    page.write(finished)
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_loss_figure_has_equal_scales_and_the_equilibrium(finished):
    psg, sngan = figures.loss_figure(results.load(finished)[0]).axes
    assert psg.get_ylim() == sngan.get_ylim()
    assert [text.get_text() for text in psg.texts] == ["both 1.10"]
    assert [text.get_text() for text in sngan.texts] == ["D 1.39", "G 0.69"]
    discriminator, first, second, level = psg.lines
    assert discriminator.get_ydata()[0] == 2
    assert [line.get_ydata()[-1] for line in (first, second)] == pytest.approx([1.1, 1.2])
    assert first.get_color() != second.get_color()
    assert set(level.get_ydata()) == {np.log(3)}


def test_accuracy_figure_has_the_two_levels_of_chance(finished):
    (axes,) = figures.accuracy_figure(results.load(finished)[0]).axes
    assert {text.get_text(): text.get_position()[1] for text in axes.texts} == {
        "chance 1/3": 1 / 3,
        "chance 1/2": 1 / 2,
    }
    levels = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert sorted(set(levels)) == [1 / 3, 1 / 2, 0.75, 0.8]
    assert axes.get_ylim() == (0, 1)


def test_samples_figure_has_a_row_a_generator_and_six_moments(finished):
    axes = figures.samples_figure(results.load(finished)[0]).axes
    assert len(axes) == 3 * 6
    assert [panel.get_title() for panel in axes[:6]] == [f"epoch {epoch}" for epoch in (0, 1, 2, 5, 8, 12)]
    images = [panel.images[0] for panel in axes]
    assert {image.get_interpolation() for image in images} == {"nearest"}
    assert {image.get_array().shape[:2] for image in images} == {(16, 16)}  # two whole rows and columns of cells
    greys = [float(image.get_array()[..., 0].mean()) for image in images[::6]]
    assert greys == pytest.approx([0.2, 1.0, 0.2], abs=0.01)  # psg's two generators, then sngan's
    corners = np.array([panel.get_position().bounds for panel in axes])
    assert len(np.unique(corners[:, :2].round(6), axis=0)) == 18
    assert ((corners >= 0) & (corners <= 1)).all()


def test_all_nine_methods_fit(tmp_path):
    for name in METHODS:
        leave_run(tmp_path, name, snapshots=(0,))
    page.write(tmp_path)
    assert list(summary(tmp_path)["methods"]) == list(METHODS)


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_of_no_or_one_epoch(tmp_path, epochs):
    run = leave_run(tmp_path, epochs=epochs, snapshots=(0,))
    if not epochs:
        (run / "metrics.jsonl").unlink()
    page.write(tmp_path)
    warnings = summary(tmp_path)["warnings"]
    assert f"psg: the run is unfinished: {70 * epochs} of 840 steps." in warnings
    assert ("psg: metrics.jsonl is missing or empty: nothing was measured." in warnings) == (not epochs)
    assert not summary(tmp_path)["comparison"]


def test_a_run_that_lost_files_or_was_cut_off_while_writing(tmp_path):
    leave_run(tmp_path, "sngan")
    run = leave_run(tmp_path, planned=13, snapshots=(0, 5))
    (run / "env.json").unlink()
    (run / "samples" / "epoch-0000.png").write_bytes(b"\x89PNG cut")
    (run / "samples" / "epoch-0005.png").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 13, "st')
    (tmp_path / "gan").mkdir()
    (tmp_path / "gan" / "config.json").write_text("{")
    page.write(tmp_path)
    found = summary(tmp_path)
    assert found["methods"]["psg"]["epochs"] == 12
    assert found["methods"]["psg"]["data"] is None
    assert [warning.split(",")[0] for warning in found["warnings"]] == [
        "gan: left out",
        "psg: env.json is missing or damaged: data and machine are unknown.",
        "psg: samples/epoch-0000.png is damaged or too large.",
        "psg: no samples were saved.",
        "psg: the run is unfinished: 840 of 910 steps.",
        "sngan: the packaged 5",
    ]


def test_a_run_that_diverged(tmp_path):
    run = leave_run(tmp_path)
    values = {"loss": {"discriminator": float("nan"), "generators": [float("inf"), 1.0]}, "held_out_accuracy": None}
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(metrics(2, epoch, **values)) + "\n" for epoch in (13, 14))
    page.write(tmp_path)
    assert summary(tmp_path)["methods"]["psg"]["loss"] == {"discriminator": None, "generators": [None, 1.0]}
    assert "psg: the losses are not finite at the end: training diverged." in summary(tmp_path)["warnings"]


@pytest.mark.parametrize("lines", [0, 5])
def test_a_run_that_diverged_is_said_to_have_diverged_at_its_step_and_not_to_be_unfinished(tmp_path, lines):
    run = leave_run(tmp_path, epochs=lines)
    leave_run(tmp_path, "sngan")
    record = {"divergence": json.dumps({"report": {"step": 371}})}
    safetensors.numpy.save_file({"x": np.zeros(1)}, run / "diverged.safetensors", record)
    page.write(tmp_path)
    found = summary(tmp_path)
    (said,) = [warning for warning in found["warnings"] if "step" in warning]
    assert said == "psg: training diverged at step 371 of 840; diverged.safetensors holds that update."
    assert [found["methods"][name]["diverged"] for name in ("psg", "sngan")] == [371, None]
    assert found["comparison"]["loss_gap"]["reason"] == "not every run is finished"
    text = " ".join(Page(tmp_path / "report.html").text.split())
    assert "unfinished" not in text.replace("Unfinished runs", "")
    assert text.count("diverged at step 371") == 3


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"{"])
def test_a_damaged_diverged_safetensors_leaves_a_run_unfinished(tmp_path, content):
    (leave_run(tmp_path, epochs=5) / "diverged.safetensors").write_bytes(content)
    page.write(tmp_path)
    assert "psg: the run is unfinished: 350 of 840 steps." in summary(tmp_path)["warnings"]


def test_of_several_seeds_one_that_diverged_is_named(tmp_path):
    for seed in (0, 1):
        run = leave_run(tmp_path, epochs=5, seed=seed)
    record = {"divergence": json.dumps({"report": {"step": 371}})}
    safetensors.numpy.save_file({"x": np.zeros(1)}, run / "diverged.safetensors", record)
    page.write(tmp_path)
    assert summary(tmp_path)["methods"]["psg"]["diverged"] == 371
    assert "psg, of which a seed diverged at step 371; after 5 epochs" in " ".join(
        Page(tmp_path / "report.html").text.split()
    )
    assert any(warning.startswith("psg: seed 1: training diverged") for warning in summary(tmp_path)["warnings"])
    assert "psg: seed 0: the run is unfinished: 350 of 840 steps." in summary(tmp_path)["warnings"]


def test_regularisers_are_drawn_and_listed(tmp_path):
    leave_run(tmp_path, regularisers={"r1": 0.25, "r2": 0.5})
    leave_run(tmp_path, "sngan")
    page.write(tmp_path)
    (axes,) = figures.regularisers_figure(results.load(tmp_path)[0]).axes
    assert [(line.get_label(), line.get_ydata()[-1]) for line in axes.lines] == [("r1", 0.25), ("r2", 0.5)]
    text = " ".join(Page(tmp_path / "report.html").text.split())
    assert "Regulariser r10.250–" in text
    assert (tmp_path / "figures" / "regularisers.png").is_file()


def test_a_run_that_ends_within_an_epoch_and_was_resumed(tmp_path):
    config = Config(method=METHODS["psg"], steps=860)
    run = leave_run(tmp_path, config=config, snapshots=(0,))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics(2, 12.2857) | {"step": 860}))
    environment = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps(environment | {"resumed": [{"started": "in March"}]}))
    page.write(tmp_path)
    assert summary(tmp_path)["methods"]["psg"]["finished"]
    text = Page(tmp_path / "report.html").text
    assert "after 12.3 epochs" in text
    assert "resumed.1.startedin March" in text


def poisoned(tree, attack):
    """The same tree, the attack in the place of every string, and for every key of a dictionary that has one."""
    if isinstance(tree, dict):
        return {key: poisoned(value, attack) for key, value in tree.items()} | {attack: attack}
    return (
        [poisoned(value, attack) for value in tree]
        if isinstance(tree, list)
        else attack
        if isinstance(tree, str)
        else tree
    )


def test_hostile_text_stays_text(tmp_path):
    attack = "\"'<script>alert('1')<"  # (a folder's name holds no slash)
    data = Data(source="idx", dir=Path(attack))
    config = Config(method_name=attack, method=METHODS["psg"], steps=840, data=data)
    run = leave_run(tmp_path, attack + " $x_{", config=config, snapshots=(0,))
    environment = json.loads((run / "env.json").read_text()) | {"resumed": [{"command": ""}], "commit": ""}
    (run / "env.json").write_text(json.dumps(poisoned(environment, attack)))
    evaluation = {
        "fcd": 1.0,
        "classifier": "",
        "histogram": [0.5, 0.5],
        "generators": [{"fcd": 1.0, "histogram": [1, 0]}],
    }
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(poisoned(metrics(2, 13) | {"evaluation": evaluation, "note": ""}, attack)) + "\n")
    (run / "samples" / f"epoch-{attack}.png").write_bytes(b"")
    (tmp_path / f"other{attack}").mkdir()
    (tmp_path / f"other{attack}" / "config.json").write_text(json.dumps({attack: attack}))
    page.write(tmp_path)
    shown = Page(tmp_path / "report.html")
    assert "script" not in {tag for tag, _ in shown.tags}
    assert not any(name.startswith("on") for _, attributes in shown.tags for name in attributes)
    assert attack + " $x_{" in shown.text
    assert shown.text.count(attack) > 20
    assert sum(attack in attributes["alt"] for tag, attributes in shown.tags if tag == "img") >= 4


def test_metrics_of_earlier_versions_are_read_under_their_names_of_today(tmp_path):
    run = leave_run(tmp_path, snapshots=(0,))
    evaluation = {"fcd": 1.0, "told_apart": 0.765, "generators": []}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics(2, 13) | {"evaluation": evaluation}) + "\n")
    (loaded,), _ = results.load(tmp_path)
    assert loaded.summary["quality"] == {"fcd": 1.0, "c2st": 0.765, "generators": []}


def test_a_picture_that_is_too_large_is_not_decoded(tmp_path):
    run = leave_run(tmp_path, snapshots=(0,))
    for name in ("samples/epoch-0000.png", "neighbours.png"):
        Image.new("L", (5000, 5000)).save(run / name)
    page.write(tmp_path)
    warnings = summary(tmp_path)["warnings"]
    assert "psg: samples/epoch-0000.png is damaged or too large." in warnings
    assert "psg: neighbours.png is damaged or too large." in warnings


@pytest.mark.parametrize("content", ["3", "[1]", "[" * 100_000])
def test_an_environment_that_is_no_object_is_damaged(content, tmp_path):
    run = leave_run(tmp_path, snapshots=(0,))
    (run / "env.json").write_text(content)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\n" + b"[" * 100_000 + b"\n")
    page.write(tmp_path)
    assert "psg: env.json is missing or damaged: data and machine are unknown." in summary(tmp_path)["warnings"]


def test_a_folder_without_a_run_is_refused_and_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        page.write(tmp_path)
    assert not list(tmp_path.iterdir())


ACCURACIES = (0.7, 0.8, 0.84)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    for name in ("sngan", "psg"):
        for seed, accuracy in zip((0, 2, 10), ACCURACIES, strict=True):
            leave_run(folder, name, seed=seed, snapshots=(seed,), accuracy=accuracy)
    page.write(folder)
    return folder


def test_seeds_are_one_method_with_means_and_intervals(seeds):
    found = summary(seeds)
    assert list(found["methods"]) == ["psg", "sngan"]
    psg = found["methods"]["psg"]
    low, high = scipy.stats.t.interval(0.95, 2, loc=0.78, scale=scipy.stats.sem(ACCURACIES))
    assert (psg["accuracy"], psg["intervals"]["accuracy"]) == pytest.approx((0.78, (high - low) / 2))
    assert (psg["loss_gap"], psg["intervals"]["loss_gap"]) == (pytest.approx(1.15 - 13 / 12), None)
    assert [psg["seeds"][seed]["accuracy"] for seed in ("0", "2", "10")] == pytest.approx(ACCURACIES)
    assert found["comparison"]["accuracy"]["psg"] == pytest.approx(0.78)
    assert found["warnings"] == [f"psg, sngan: {WARNING}"]
    text = " ".join(Page(seeds / "report.html").text.split())
    half = f"{100 * (high - low) / 2:.1f}"
    assert f"chose the real image out of 3 in 78.0 ± {half} % of cases" in text
    assert "psg (3 seeds)" in text
    assert "seed0 2 10" in text
    assert "the one seed below" not in text


def test_curves_of_seeds_have_bands_and_pictures_are_the_first_seeds(seeds):
    runs, _ = results.load(seeds)
    (axes,) = figures.accuracy_figure(runs).axes
    assert axes.lines[0].get_ydata() == pytest.approx([0.78] * 12)
    corners = axes.collections[0].get_paths()[0].vertices
    half = summary(seeds)["methods"]["psg"]["intervals"]["accuracy"]
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((0.78 - half, 0.78 + half))
    assert [panel.get_title() for panel in figures.samples_figure(runs).axes[:1]] == ["epoch 0"]


def test_seeds_that_got_less_far_or_cannot_be_read(tmp_path):
    for seed, epochs in ((0, 12), (1, 11)):
        leave_run(tmp_path, seed=seed, epochs=epochs)
    (tmp_path / "psg/seed-2").mkdir()
    (tmp_path / "psg/seed-2/config.json").write_text("{")
    page.write(tmp_path)
    found = summary(tmp_path)
    assert not found["methods"]["psg"]["finished"]
    assert "psg: seed 1: the run is unfinished: 770 of 840 steps." in found["warnings"]
    assert found["warnings"][0].startswith("psg/seed-2: left out, its config.json cannot be read")
