"""Kill a run again and again, at random and in the middle of saves, and compare its final state with an undisturbed run's.

    python -m experiments.soak --kills 50      # ten minutes on two CPU cores

Two runs of `experiments.mnist` with the same settings: one is never interrupted, the other is killed with SIGKILL, resumed,
killed again, and finishes after the last kill. Lines of metrics.jsonl and all numbers of the final state must be the same. Expect
zeros.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from typing_extensions import Doc

from psgjax.commands import line
from psgjax.config import ConfigError
from psgjax.files import write_atomically
from psgjax.runs.metrics import read_lines
from psgjax.shell import tell, terminal

_SETTINGS = ("--data.source", "packaged", "--data.train-images", "1024", "--network.width", "4", "--batch-size", "32")
_SAVE_SECONDS = 0.5  # far more often than a user's run: many kills fall into a save
_LONGEST = 3.0  # seconds from the first sign of training to a kill, at most


@dataclass(frozen=True)
class Options:
    """Kill, resume, compare."""

    kills: Annotated[int, Doc("How often the run is killed.")] = 50
    method: Annotated[str, Doc("The method that is trained.")] = "psg"
    epochs: Annotated[int, Doc("Length of the run; it must outlast the kills.")] = 1000
    seed: Annotated[int, Doc("Of the moments of the kills.")] = 0
    out: Annotated[Path, Doc("Folder of both runs and of results.json.")] = Path("runs/soak")


def _train(arguments: list[str], log: Path) -> None:
    """A process that trains as the command does, but saves more often."""
    from experiments import mnist
    from psgjax.training import loop

    loop._SAVE_SECONDS = _SAVE_SECONDS
    loop._CALL_SECONDS = _SAVE_SECONDS / 2
    with log.open("a", encoding="utf-8") as file:
        sys.stdout = sys.stderr = file
        sys.exit(mnist.main(arguments))


def _start(options: Options, name: str) -> Any:
    folder = options.out / name
    arguments = ["--methods", options.method, "--epochs", str(options.epochs), "--out", str(folder), *_SETTINGS]
    arguments += ["--evaluation-epochs", "0"]
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(arguments, options.out / f"{name}.log"))
    process.start()
    return process


def _wait_and_kill(process: Any, run: Path, draw: random.Random) -> str:
    """Kill the process at a random moment after it began to train, or as soon as a save is under way; say which."""
    lines, in_save = len(read_lines(run / "metrics.jsonl")), draw.random() < 0.5
    deadline = time.monotonic() + 120
    while len(read_lines(run / "metrics.jsonl")) == lines and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    until = time.monotonic() + draw.uniform(0, _LONGEST)
    while process.is_alive() and time.monotonic() < until:
        if in_save and any(run.glob("checkpoints/*tmp*")):
            time.sleep(draw.uniform(0, 0.02))
            break
        time.sleep(0.002)
    if not process.is_alive():
        raise ConfigError(f"the run ended (status {process.exitcode}) before the last kill; give more --epochs.")
    saving = any(run.glob("checkpoints/*tmp*"))
    process.kill()
    process.join()
    return "in a save" if saving else "elsewhere"


def compare(cut: Path, whole: Path) -> dict[str, int]:
    """Lines lost and doubled in the first run's metrics.jsonl, lines that differ, numbers of the final state with other bits."""
    import numpy as np

    from psgjax import leaves
    from psgjax.commands import sample

    ours, theirs = (
        [{key: value for key, value in line.items() if key != "seconds"} for line in read_lines(run / "metrics.jsonl")]
        for run in (cut, whole)
    )
    counts, wanted = (Counter(line["step"] for line in lines) for lines in (ours, theirs))
    by_step = {line["step"]: line for line in ours}
    states = [leaves.arrays(sample.load(run)[1]) for run in (cut, whole)]
    raw = [(array, states[1][name]) for name, array in states[0].items()]
    return {
        "lines": len(theirs),
        "lines_lost": len(wanted - counts),
        "lines_doubled": sum(counts.values()) - len(counts),
        "lines_differing": sum(by_step.get(line["step"], line) != line for line in theirs),
        "numbers": sum(a.size for a, _ in raw),
        "numbers_differing": sum(int(np.sum(_bits(a) != _bits(b))) for a, b in raw),
    }


def _bits(array: Any) -> Any:
    """[n, bytes]: equal rows are the same bits, NaN and zeros of either sign included."""
    import numpy as np

    return np.frombuffer(array.tobytes(), np.dtype((np.void, array.dtype.itemsize)))


def run(options: Options, console: Console) -> dict[str, Any]:
    """Both runs and the comparison; results.json holds it.

    Raises:
        ConfigError: If the folder is not empty, or a run fails or ends too early.
    """
    from psgjax import environment

    if options.kills < 1:
        raise ConfigError(f"kills is {options.kills}; it must be a whole number of at least 1.")
    if options.out.exists() and any(options.out.iterdir()):
        raise ConfigError(f"--out {options.out} is not empty; choose another folder, or empty it.")
    options.out.mkdir(parents=True, exist_ok=True)
    draw, moments = random.Random(options.seed), Counter[str]()
    started = time.monotonic()
    for kill in range(options.kills):
        process = _start(options, "cut")
        moments[_wait_and_kill(process, options.out / "cut" / options.method, draw)] += 1
        lines = len(read_lines(options.out / "cut" / options.method / "metrics.jsonl"))
        tell(console)(f"kill {kill + 1} of {options.kills}, at {lines} epochs")
    for name in ("cut", "whole"):
        tell(console)(f"{name}: to the end")
        process = _start(options, name)
        process.join()
        if process.exitcode:
            raise ConfigError(f"the run failed with status {process.exitcode}; see {options.out / name}.log.")
    env = json.loads((options.out / "cut" / options.method / "env.json").read_text(encoding="utf-8"))
    results = {
        **environment.provenance(),
        "kills": options.kills,
        "kills_by_moment": dict(moments),
        "resumes": len(env.get("resumed", [])),
        **compare(*(options.out / name / options.method for name in ("cut", "whole"))),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    write_atomically(options.out / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def main(arguments: list[str] | None = None) -> int:
    """The command line: kill, resume, compare; status 1 if anything is lost, doubled or different."""

    def work(options: Options) -> int:
        console = terminal()
        results = run(options, console)
        wrong = ("lines_lost", "lines_doubled", "lines_differing", "numbers_differing")
        for name in ("kills", "resumes", "lines", *wrong):
            tell(console)(f"{name.replace('_', ' ')}: {results[name]:,}")
        return int(any(results[name] for name in wrong))

    return line.command(Options, work, arguments, "experiments.soak", __doc__, interrupted="stopped")


if __name__ == "__main__":
    sys.exit(main())
