"""What training left in a folder, read for the report: the run of one seed of each method, or those of several as one.

What is missing or damaged is said, and the rest is read.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from psgjax.config import Config, ConfigError
from psgjax.data.pictures import read_picture
from psgjax.report import convergence, intervals
from psgjax.runs.metrics import read_lines
from psgjax.schema import from_json
from psgjax.switches import METHODS

_SNAPSHOTS = 6  # of the samples over time


@dataclass(frozen=True)
class Run:
    """What one method left in the run folder: the run of one seed, or those of several taken together."""

    name: str
    seeds: list[Run]  # the run of each seed; empty in those
    config: Config
    environment: dict[str, Any]
    lines: list[dict[str, Any]]
    curves: dict[str, convergence.Curve]
    bands: dict[str, convergence.Curve]  # half the 95 % intervals of the curves: 0 for one seed
    summary: dict[str, Any]
    evaluations: list[tuple[float, dict[str, Any]]]  # epoch, and the result of `evaluation.score`
    neighbours: Any  # picture of samples above their nearest training images, or None
    snapshots: dict[
        int, list[Any]
    ]  # (and neighbours) of the first seed: by epoch, one image [H, W] or [H, W, C] per generator; at most six epochs
    warnings: list[str]


def load(folder: Path) -> tuple[list[Run], list[str]]:
    """The runs in `folder`, in the order of `switches.METHODS`, and a warning for each whose config.json cannot be read.

    Raises:
        FileNotFoundError: If there is none.
    """
    found: dict[str, list[Run]] = {}
    warnings, order = [], list(METHODS)
    for path in sorted([*folder.glob("*/config.json"), *folder.glob("*/seed-*/config.json")]):
        name, *_ = path.relative_to(folder).parts
        try:
            config = from_json(Config, path.read_text(encoding="utf-8"))
        except (ConfigError, UnicodeDecodeError) as error:
            place = path.parent.relative_to(folder)
            warnings.append(f"{place}: left out, its config.json cannot be read: {error}")
        else:
            found.setdefault(name, []).append(_load_one(path.parent, name, config))
    if not found:
        raise FileNotFoundError(f"{folder} holds no run: no subfolder has a readable config.json; train one first.")
    runs = [_together(each) for each in found.values()]
    return sorted(runs, key=lambda run: order.index(run.name) if run.name in order else len(order)), warnings


def _together(runs: list[Run]) -> Run:
    """The runs of one method's seeds as one: means with intervals, pictures of the first."""
    runs = sorted(runs, key=lambda run: run.config.seed)
    epochs = min(len(run.lines) for run in runs)
    names = [name for name in runs[0].curves if all(name in run.curves for run in runs)]
    curves = {name: np.stack([run.curves[name][..., :epochs] for run in runs]) for name in names}
    evaluations = [
        (steps[0][0], intervals.combine([scores for _, scores in steps]))
        for steps in zip(*(run.evaluations for run in runs), strict=False)
    ]
    diverged = [run.summary["diverged"] for run in runs if run.summary["diverged"] is not None]
    said: dict[str, list[str]] = {}
    for run in runs:
        for text in run.warnings:
            said.setdefault(text, []).append(str(run.config.seed))
    return dataclasses.replace(
        runs[0],
        seeds=runs,
        lines=runs[0].lines[:epochs],
        curves={name: curve.mean(axis=0) for name, curve in curves.items()},
        bands={name: intervals.half_width(curve) for name, curve in curves.items()},
        summary=intervals.combine([run.summary for run in runs]) | {"diverged": min(diverged, default=None)},
        evaluations=evaluations,
        warnings=[text if len(of) == len(runs) else f"seed {' '.join(of)}: {text}" for text, of in said.items()],
    )


def _load_one(folder: Path, name: str, config: Config) -> Run:
    warnings: list[str] = []
    environment: dict[str, Any] = {}
    snapshots = {}
    try:
        environment = dict(json.loads((folder / "env.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        warnings.append("env.json is missing or damaged: data and machine are unknown.")
    if warning := (environment.get("data") or {}).get("warning"):
        warnings.append(warning)
    lines = read_lines(folder / "metrics.jsonl")
    if not lines:
        warnings.append("metrics.jsonl is missing or empty: nothing was measured.")
    paths = sorted(folder.glob("samples/epoch-*.png"))
    for index in np.linspace(0, len(paths) - 1, min(_SNAPSHOTS, len(paths))).round().astype(int):
        path = paths[index]
        try:
            blocks = np.array_split(read_picture(path) / 255, config.method.generators)
            # As many columns as rows: fewer images, each large enough to recognise.
            snapshots[int(path.stem.removeprefix("epoch-"))] = [block[:, : len(block)] for block in blocks]
        except (ConfigError, ValueError):
            warnings.append(f"samples/{path.name} is damaged or too large.")
    if not snapshots:
        warnings.append("no samples were saved.")
    summary = convergence.summarise(config.method, lines)
    finished = summary["steps"] >= config.steps
    diverged = None if finished else _diverged_at(folder)
    if diverged is not None:
        warnings.append(
            f"training diverged at step {diverged:,} of {config.steps:,}; diverged.safetensors holds that update."
        )
    elif not finished:
        warnings.append(f"the run is unfinished: {summary['steps']:,} of {config.steps:,} steps.")
    if diverged is None and lines and None in (summary["loss"]["discriminator"], *summary["loss"]["generators"]):
        warnings.append("the losses are not finite at the end: training diverged.")
    summary |= {
        "planned_steps": config.steps,
        "finished": finished,
        "diverged": diverged,
        "data": environment.get("data"),
    }
    curves = convergence.curves(config.method, lines)
    evaluations = [(line["epoch"], _scores(line["evaluation"])) for line in lines if "evaluation" in line]
    summary["quality"] = evaluations[-1][1] if evaluations else None
    neighbours = None
    if (folder / "neighbours.png").is_file():
        try:
            neighbours = read_picture(folder / "neighbours.png") / 255
        except ConfigError:
            warnings.append("neighbours.png is damaged or too large.")
    return Run(name, [], config, environment, lines, curves, {}, summary, evaluations, neighbours, snapshots, warnings)


def _diverged_at(folder: Path) -> int | None:
    """The step of the update that was not finite (`divergence.write`), or None where there is none or it cannot be read."""
    try:
        with safetensors.safe_open(folder / "diverged.safetensors", framework="np") as file:
            return int(json.loads(file.metadata()["divergence"])["report"]["step"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError, safetensors.SafetensorError):
        return None


def _scores(evaluation: dict[str, Any]) -> dict[str, Any]:
    """A result of `evaluation.score`, earlier versions' names replaced."""
    return {"c2st" if name == "told_apart" else name: value for name, value in evaluation.items()}
