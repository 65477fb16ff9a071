"""The paper's claims on five seeds of 150 epochs: psg, sngan, and psg without its gate, on the packaged images.

    python -m experiments.study        # took 2 h 10 min on two busy CPU cores; run again to go on

Writes runs/study/: `paper` and `ungated`, two folders of runs with a report each, and results.json and results.md: every figure of
every seed, and the tables. results/study.md has what was found.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Doc

from experiments import mnist
from psgjax import environment
from psgjax.commands import line, train
from psgjax.files import write_atomically
from psgjax.report import claims, intervals, results

# The folders of runs, and what each is given beside what all are.
RUNS: dict[str, tuple[str, ...]] = {
    "paper": ("--methods", "psg", "sngan"),
    "ungated": ("--methods", "psg", "--method.gate", "none"),
}
FIGURES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "L_D": lambda summary: summary["loss"]["discriminator"],
    "mean L_G": lambda summary: _mean(summary["loss"]["generators"]),
    "gap, raw": lambda summary: summary["loss_gap"],
    "gap, normalised": lambda summary: summary["normalised_loss_gap"],
    "gap, calibrated": lambda summary: summary["calibrated_loss_gap"],
    "gap, calibrated and normalised": lambda summary: summary["normalised_calibrated_loss_gap"],
    "best temperature": lambda summary: summary["held_out_temperature"],
    "accuracy": lambda summary: summary["accuracy"],
    "accuracy, held-out": lambda summary: summary["held_out_accuracy"],
    "pairwise accuracy": lambda summary: summary["pairwise_accuracy"],
    "share of tuples that update D": lambda summary: summary["updates"]["discriminator"],
    "losses settle at epoch": lambda summary: summary["convergence_epoch"]["loss"],
    "FCD": lambda summary: (summary["quality"] or {}).get("fcd"),
    "coverage": lambda summary: (summary["quality"] or {}).get("coverage"),
    "KL of the classes": lambda summary: (summary["quality"] or {}).get("histogram_kl"),
}


@dataclass(frozen=True)
class Options:
    """Train what the claims are about, and say what the runs bear out."""

    epochs: Annotated[int, Doc("Passes over the 4,500 training images.")] = 150
    seeds: Annotated[tuple[int, ...], Doc("Seeds of each method.")] = (0, 1, 2, 3, 4)
    out: Annotated[Path, Doc("Folder for everything that is written.")] = Path("runs/study")


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def collect(out: Path) -> dict[str, Any]:
    """Every figure of every seed of the runs under `out`, their means with 95 % intervals, and the claims' verdicts."""
    found, origins = {}, {}
    for folder in RUNS:
        runs, _ = results.load(out / folder)
        for run in runs:
            name = run.name if folder == "paper" else f"{run.name}, no gate"
            found[name] = run.seeds or [run]
            origins[name] = {key: run.environment.get(key) for key in ("command", "commit", "device", "processor")}
            origins[name] |= {key: run.environment.get(key) for key in ("versions", "started", "data")}
    summaries = {name: [run.summary for run in runs] for name, runs in found.items()}
    return {
        "methods": {
            name: {
                "seeds": [run.config.seed for run in found[name]],
                "figures": {label: [read(summary) for summary in each] for label, read in FIGURES.items()},
                **origins[name],
            }
            for name, each in summaries.items()
        },
        "claims": claims.compare(summaries["psg"], summaries["sngan"]),
    }


def markdown(found: dict[str, Any]) -> str:
    """The tables: each figure's mean and half its 95 % interval, and the verdicts with their reasons."""
    methods = found["methods"]
    seeds = {tuple(each["seeds"]) for each in methods.values()}
    first = next(iter(methods.values()))
    counts = [first["data"][f"{kind}_images"] for kind in ("train", "held_out")]
    numbers = " ".join(map(str, seeds.pop()))
    lines = [
        f"`{found['command']}`",
        "",
        f"Runs of commit {first['commit']}; {first['device']}, {first['processor']}; packaged MNIST, "
        f"{counts[0]:,} images to train on and {counts[1]} held out. Mean and half the 95 % interval over the seeds {numbers}; "
        "the JSON file has every figure of every seed.",
        "",
    ]
    lines += ["| | " + " | ".join(methods) + " |", "| --- |" + " ---: |" * len(methods)]
    for label in FIGURES:
        cells = [_text(intervals.combine(each["figures"][label])) for each in methods.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", "| claim | verdict | why |", "| --- | --- | --- |"]
    lines += [f"| {name} | {claim['verdict']} | {claim['reason'] or ''} |" for name, claim in found["claims"].items()]
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f} ± {value.half:.3f}" if isinstance(value, intervals.Estimate) else f"{value:.3f}"


def run(options: Options) -> int:
    """Train, or go on; then write the tables. The exit status."""
    common = ("--epochs", str(options.epochs), "--seeds", *map(str, options.seeds), "--data.source", "packaged")
    for folder, own in RUNS.items():
        status = mnist.main([*own, *common, "--out", str(options.out / folder)])
        if status:
            return status
    found = {**environment.provenance(), **collect(options.out)}
    text = markdown(found)
    print(text, end="")
    write_atomically(options.out / "results.json", json.dumps(found, indent=1) + "\n")
    write_atomically(options.out / "results.md", text)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    return line.command(Options, run, arguments, "experiments.study", __doc__, interrupted=train.GO_ON)


if __name__ == "__main__":
    sys.exit(main())
