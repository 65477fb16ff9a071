"""What the figures show."""

import numpy as np
import pytest
import scipy.stats
from left_runs import WARNING, Page, leave_run, summary

from psgjax.report import figures, page, results


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("sngan", "psg"):
        leave_run(folder, name)
    return results.load(folder)[0]


def test_loss_figure_has_equal_scales_and_the_equilibrium(runs):
    psg, sngan = figures.loss_figure(runs).axes
    assert psg.get_ylim() == sngan.get_ylim()
    assert [text.get_text() for text in psg.texts] == ["both 1.10"]
    assert [text.get_text() for text in sngan.texts] == ["D 1.39", "G 0.69"]
    discriminator, first, second, level = psg.lines
    assert discriminator.get_ydata()[0] == 2
    assert [line.get_ydata()[-1] for line in (first, second)] == pytest.approx([1.1, 1.2])
    assert first.get_color() != second.get_color()
    assert set(level.get_ydata()) == {np.log(3)}


def test_accuracy_figure_has_the_two_levels_of_chance(runs):
    (axes,) = figures.accuracy_figure(runs).axes
    assert {text.get_text(): text.get_position()[1] for text in axes.texts} == {
        "chance 1/3": 1 / 3,
        "chance 1/2": 1 / 2,
    }
    levels = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert sorted(set(levels)) == [1 / 3, 1 / 2, 0.75, 0.8]
    assert axes.get_ylim() == (0, 1)


def test_samples_figure_has_a_row_a_generator_and_six_moments(runs):
    axes = figures.samples_figure(runs).axes
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


def test_regularisers_are_drawn_and_listed(tmp_path):
    leave_run(tmp_path, regularisers={"r1": 0.25, "r2": 0.5})
    leave_run(tmp_path, "sngan")
    page.write(tmp_path)
    (axes,) = figures.regularisers_figure(results.load(tmp_path)[0]).axes
    assert [(line.get_label(), line.get_ydata()[-1]) for line in axes.lines] == [("r1", 0.25), ("r2", 0.5)]
    text = " ".join(Page(tmp_path / "report.html").text.split())
    assert "Regulariser r10.250–" in text
    assert (tmp_path / "figures" / "regularisers.png").is_file()


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
