"""The figures of a report, drawn from runs that were read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from psgjax.report import convergence
from psgjax.report.results import Run
from psgjax.runs.metrics import distance_of

# Okabe and Ito's palette, distinct for every kind of colour vision; yellow last, being the weakest on white. Black is D's.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
BLACK, GREY = "#000000", "#666666"
DOTS_PER_INCH = 150
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "text.parse_math": False,  # names of methods are text, whatever they contain
    "figure.dpi": DOTS_PER_INCH,
}


def loss_figure(runs: list[Run]) -> Figure:
    """The paper's Fig. 3: ungated losses in each epoch, one panel per method."""
    figure, panels = _panels(runs, "loss (before any gate)")
    for run, axes in zip(runs, panels, strict=True):
        _plot(axes, run, "discriminator", color=BLACK, label="discriminator")
        for index in range(run.config.method.generators):
            _plot(axes, run, "generators", index, color=_colour(index), label=f"generator {index + 1}")
        discriminator, generator = convergence.equilibrium(run.config.method)
        if discriminator == generator:
            _level(axes, generator, f"both {generator:.2f}", "value at equilibrium")
        else:
            _level(axes, discriminator, f"D {discriminator:.2f}", "value at equilibrium")
            _level(axes, generator, f"G {generator:.2f}", "value at equilibrium")
    return _with_legend(figure, panels)


def accuracy_figure(runs: list[Run]) -> Figure:
    """The paper's Fig. 4: top-1 accuracy in each epoch, of all methods, with each one's chance level."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="epoch", ylabel="share of tuples whose real image was chosen", ylim=(0, 1))
    axes.set_title("solid: training images, dotted: held-out images", fontsize=10)
    for index, run in enumerate(runs):
        style = {"color": _colour(index), "linestyle": "-" if index < len(PALETTE) else "-."}
        _plot(axes, run, "accuracy", None, label=_title(run), **style)
        _plot(axes, run, "held_out_accuracy", None, **style | {"linestyle": ":", "linewidth": 1})
    for choices in sorted({run.config.method.generators + 1 for run in runs}):
        _level(axes, 1 / choices, f"chance 1/{choices}")
    return _with_legend(figure, [axes])


def branches_figure(runs: list[Run]) -> Figure:
    """How often each branch of Algorithm 1 was taken: whose image the discriminator classified as real, one panel per method."""
    figure, panels = _panels(runs, "share of triplets")
    for run, axes in zip(runs, panels, strict=True):
        _plot(axes, run, "branches", -1, color=BLACK, label="real image called real")
        for index in range(run.config.method.generators):
            _plot(axes, run, "branches", index, color=_colour(index), label=f"generator {index + 1} called real")
        axes.set_ylim(0, 1)
    return _with_legend(figure, panels)


def samples_figure(runs: list[Run]) -> Figure:
    """The paper's Fig. 5: one row per generator, one column per snapshot; one sample's pixel is n by n pixels of the figure."""
    columns = max(1, *(len(run.snapshots) for run in runs))
    blocks = [block for run in runs for snapshot in run.snapshots.values() for block in snapshot]
    height, width = (max((block.shape[axis] for block in blocks), default=64) for axis in (0, 1))
    zoom = max(1, min(4, 2400 // (columns * width)))
    height, width, margin, gap = zoom * height, zoom * width, 260, 40
    rows = sum(run.config.method.generators for run in runs)
    size = np.array([margin + columns * (width + gap), rows * (height + gap) + (len(runs) + 1) * gap])
    figure = Figure(figsize=tuple(size / DOTS_PER_INCH))
    top = 0
    for run in runs:
        top += gap  # room for the epochs
        for index in range(run.config.method.generators):
            top += gap
            middle = 1 - (top + height / 2) / size[1]
            text = f"{run.name}\ngenerator {index + 1}" + ("" if run.snapshots else "\nno samples")
            figure.text((margin - gap) / size[0], middle, text, ha="right", va="center", fontsize=14)
            for column, (epoch, snapshot) in enumerate(run.snapshots.items()):
                corner = np.array([margin + column * (width + gap), size[1] - top - height])
                axes = figure.add_axes((*(corner / size), width / size[0], height / size[1]))
                axes.imshow(snapshot[index], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set_axis_off()
                if index == 0:
                    axes.set_title(f"epoch {epoch}", pad=4, fontsize=14)
            top += height
    return figure


def quality_figure(runs: list[Run]) -> Figure:
    """FCD (Fréchet distance on the features of the shipped classifier) and coverage at each evaluation, by generator and of all."""
    runs = [run for run in runs if run.evaluations]
    figure = Figure(figsize=(1 + 4.5 * len(runs), 6.5), layout="constrained")
    panels = figure.subplots(2, len(runs), sharex="col", sharey="row", squeeze=False)
    for key, label, row in (("fcd", "Fréchet distance", panels[0]), ("coverage", "coverage", panels[1])):
        for run, axes in zip(runs, row, strict=True):
            epochs = [epoch for epoch, _ in run.evaluations]
            found = [scores for _, scores in run.evaluations]
            rows = [[scores["generators"][i] for scores in found] for i in range(len(found[-1].get("generators", [])))]
            for index, scores_of in enumerate([*rows, found]):
                values = [
                    scores.get(key, math.nan) if key == "coverage" else distance_of(scores) for scores in scores_of
                ]
                own = {"color": _colour(index), "marker": ".", "label": f"generator {index + 1}"}
                together = {"color": BLACK, "marker": "o", "label": "all samples", "linewidth": 2.0}
                half = np.array([getattr(value, "half", 0.0) for value in values])
                _plot_with_band(axes, epochs, np.array(values), half, **(own if index < len(rows) else together))
            axes.set_ylim(0, 1.05 if key == "coverage" else None)
            axes.set(**({"title": _title(run)} if key == "fcd" else {"xlabel": "epoch"}))
        row[0].set_ylabel(f"{label} (held-out images)")
    return _with_legend(figure, list(panels.flat))


def classes_figure(runs: list[Run]) -> Figure:
    """The classes that the classifier sees in the samples at each evaluation: one row per generator, one more for all of them."""
    rows = []
    for run in filter(_classified, runs):
        found = [evaluation for _, evaluation in run.seeds[0].evaluations]
        for index in range(len(found[-1].get("generators", []))):
            histograms = [one["generators"][index]["histogram"] for one in found]
            rows.append((f"{run.name}, generator {index + 1}", run, histograms))
        rows.append((f"{run.name}, all samples", run, [one["histogram"] for one in found]))
    figure = Figure(figsize=(8, 0.8 + 1.7 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), squeeze=False)[:, 0]
    for (title, run, histograms), axes in zip(rows, panels, strict=True):
        shares = np.array(histograms).T
        image = axes.imshow(shares, aspect="auto", origin="lower", cmap="viridis", vmin=0, vmax=3 / len(shares))
        epochs = [f"{epoch:g}" for epoch, _ in run.seeds[0].evaluations]
        axes.set(ylabel="class", xticks=range(len(epochs)), xticklabels=epochs, yticks=range(0, len(shares), 3))
        axes.set_title(title, fontsize=10)
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes, extend="max", label="share")
    panels[-1].set_xlabel("epoch")
    return figure


def neighbours_figure(runs: list[Run]) -> Figure:
    """Samples at the end, each above the training image nearest to it."""
    runs = [run for run in runs if run.neighbours is not None]
    figure = Figure(figsize=(8, 0.4 + 2.6 * len(runs)), layout="constrained")
    for run, axes in zip(runs, figure.subplots(len(runs), squeeze=False)[:, 0], strict=True):
        axes.imshow(run.neighbours, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"{run.name}: each generator's samples, the nearest training images below them", fontsize=10)
        axes.set_axis_off()
    return figure


def regularisers_figure(runs: list[Run]) -> Figure:
    """The value of each regulariser in each epoch, one panel per method that has any."""
    runs = [run for run in runs if _regularisers(run)]
    figure, panels = _panels(runs, "value of the regulariser")
    for run, axes in zip(runs, panels, strict=True):
        for index, name in enumerate(_regularisers(run)):
            _plot(axes, run, name, color=_colour(index), label=name.removeprefix("regularisers."))
    return _with_legend(figure, panels)


FIGURES: dict[str, Callable[[list[Run]], Figure]] = {
    "loss": loss_figure,
    "accuracy": accuracy_figure,
    "samples": samples_figure,
    "branches": branches_figure,
}


def drawn(runs: list[Run]) -> dict[str, Callable[[list[Run]], Figure]]:
    """The figures that there is something to draw of, by name."""
    optional: dict[str, tuple[Callable[[list[Run]], Figure], bool]] = {
        "regularisers": (regularisers_figure, any(map(_regularisers, runs))),
        "quality": (quality_figure, any(run.evaluations for run in runs)),
        "classes": (classes_figure, any(map(_classified, runs))),
        "neighbours": (neighbours_figure, any(run.neighbours is not None for run in runs)),
    }
    return FIGURES | {name: draw for name, (draw, something) in optional.items() if something}


def _classified(run: Run) -> bool:
    """Whether a classifier saw its samples: of the first seed, as which generator makes which class differs between seeds."""
    return any("histogram" in scores for _, scores in run.seeds[0].evaluations[-1:])


def _regularisers(run: Run) -> list[str]:
    """The names of their curves."""
    return [name for name in run.curves if name.startswith("regularisers.")]


def _panels(runs: list[Run], label: str) -> tuple[Figure, list[Axes]]:
    """One panel per method, in as square a grid as three or more allow, all with the same scales."""
    columns = len(runs) if len(runs) < 4 else math.ceil(math.sqrt(len(runs)))
    rows = math.ceil(len(runs) / columns)
    figure = Figure(figsize=(1 + 4.5 * columns, 1 + 3.2 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for run, axes in zip(runs, panels, strict=False):
        axes.set(title=_title(run), xlabel="epoch", ylabel=label)
        axes.label_outer(remove_inner_ticks=False)
    for axes in panels[len(runs) :]:
        axes.set_visible(False)
    return figure, panels[: len(runs)]


def _plot(axes: Axes, run: Run, name: str, index: int | None = None, **style: Any) -> None:
    """One of the run's curves, or one row of it, and its interval as a band; a single epoch is a dot."""
    curve, half = (curves[name] if index is None else curves[name][index] for curves in (run.curves, run.bands))
    style = {"marker": "o" if len(run.lines) == 1 else None, "linewidth": 1.5} | style
    _plot_with_band(axes, run.curves["epoch"], curve, half, **style)


def _plot_with_band(axes: Axes, epochs: Any, curve: Any, half: Any, **style: Any) -> None:
    axes.plot(epochs, curve, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    if np.any(half):
        axes.fill_between(epochs, curve - half, curve + half, color=style["color"], alpha=0.2, linewidth=0)


def _level(axes: Axes, value: float, text: str, label: str = "") -> None:
    """A dashed line across, named in the right margin, where no curve hides the name."""
    axes.axhline(value, color=GREY, linestyle=(0, (5, 3)), linewidth=1, label=label)
    axes.text(1.01, value, text, transform=axes.get_yaxis_transform(), color=GREY, va="center")


def _title(run: Run) -> str:
    seeds = f", {len(run.seeds)} seeds" if len(run.seeds) > 1 else ""
    return run.name + seeds if run.lines else f"{run.name} (no metrics)"


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _with_legend(figure: Figure, panels: list[Axes]) -> Figure:
    """One legend below the panels, each label once."""
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = int(figure.get_figwidth() / 2.4)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)
    return figure
