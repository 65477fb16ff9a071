"""Time psgjax beside what a user would pick instead: a plain Flax port, PyTorch eager and `torch.compile`, in one run.

    python -m experiments.bench                   # psg, sngan and gan at batch size 128: ten minutes on two cores
    python -m experiments.bench --convolutions    # each convolution of the step, inside a loop and outside: three minutes
    python -m experiments.bench --json results.json --methods psg --contenders psgjax torch

Each contender trains in a process of its own, and they take turns: so many steps each, round after round, the machine's matmul peak
measured between them. Compilation and the first steps are not timed. Medians over the rounds are shown, with the fastest and the
slowest. Operations are those the update needs (the layers' kernels alone), so that GFLOP/s compare between contenders. On a GPU the
defaults also sweep the replicas from 1 to 64 and the batch sizes until they no longer pay. Expect psgjax to be the fastest.
Leave the machine alone meanwhile: another busy process slows PyTorch's threads several times, JAX's about twice.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from typing_extensions import Doc

from experiments.peers import Case, Failed, TooSlow, Worker, cores
from psgjax.config import ConfigError

CONTENDERS = {
    "psgjax": "experiments.peers.ours:Psgjax",
    "flax": "experiments.peers.flax_plain:FlaxPlain",
    "torch": "experiments.peers.pytorch:PyTorch",
    "torch-compile": "experiments.peers.pytorch:compiled",
}
METHODS = ("psg", "sngan", "gan")
_REPLICAS = (1, 2, 4, 8, 16, 32, 64)
_LARGEST_BATCH = 16_384
_DIRECTIONS = ("forward", "input gradient", "weight gradient")


@dataclass(frozen=True)
class Options:
    """The command line: lists take several values."""

    methods: Annotated[tuple[str, ...], Doc(f"Methods to train: {', '.join(METHODS)}.")] = METHODS
    contenders: Annotated[
        tuple[str, ...], Doc(f"Who takes part: {', '.join(CONTENDERS)}; all that are installed, if not given.")
    ] = ()
    batch_sizes: Annotated[
        tuple[int, ...], Doc("Real images in an update; 128, and on a GPU all powers of two that pay, if not given.")
    ] = ()
    replicas: Annotated[
        tuple[int, ...], Doc("Independent runs trained at once; 1, and on a GPU up to 64, if not given.")
    ] = ()
    width: Annotated[int, Doc("Channels of the layer next to the image.")] = 64
    precision: Annotated[
        Literal["float32", "tf32"], Doc("Of everybody's matrix products and convolutions; tf32 where the GPU has it.")
    ] = "float32"
    rounds: Annotated[int, Doc("Turns of every contender that are timed.")] = 7
    seconds: Annotated[float, Doc("How long a turn is to last, about; a call in training lasts two.")] = 2.0
    limit: Annotated[
        float,
        Doc("Seconds that a contender may take to be built, for a call, and for all its turns; it is dropped then."),
    ] = 120.0
    convolutions: Annotated[bool, Doc("Time the step's convolutions instead, inside a loop and outside any.")] = False
    json: Annotated[Path | None, Doc("File for everything that was measured; rewritten after each case.")] = None
    profile: Annotated[
        Path | None, Doc("Folder for a trace of psgjax that Perfetto and TensorBoard open, one each case.")
    ] = None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(message)


def parse(arguments: list[str] | None) -> Options:
    """The options on a command line; by argparse, since a GPU machine that this runs on need not have tyro.

    Raises:
        ConfigError: For what cannot be read, and for values that nothing can be done with.
    """
    parser = _Parser("python -m experiments.bench", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for item, hint in zip(
        dataclasses.fields(Options), get_type_hints(Options, include_extras=True).values(), strict=True
    ):
        kind, doc = get_args(hint)
        name = "--" + item.name.replace("_", "-")
        text = doc.documentation + (f" Default: {item.default}." if type(item.default) in (int, float, str) else "")
        if kind is bool:
            parser.add_argument(name, action="store_true", help=text)
        elif isinstance(item.default, tuple):
            parser.add_argument(name, nargs="+", type=get_args(kind)[0], default=item.default, help=text)
        elif isinstance(item.default, str):
            parser.add_argument(name, choices=get_args(kind), default=item.default, help=text)
        else:
            parser.add_argument(name, type=Path if item.default is None else kind, default=item.default, help=text)
    values: dict[str, Any] = vars(parser.parse_args(arguments))
    values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    options = Options(**values)
    for name, known in (("methods", METHODS), ("contenders", tuple(CONTENDERS))):
        for value in getattr(options, name):
            if value not in known:
                raise ConfigError(f"--{name} {value}: known are {', '.join(known)}.")
    for name in ("batch_sizes", "replicas", "width", "rounds", "seconds", "limit"):
        value = getattr(options, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not 0 < number < float("inf"):
                raise ConfigError(f"--{name.replace('_', '-')} {number}: it must be a number above 0.")
    installed = importlib.util.find_spec("torch") is not None
    if not installed and any(name.startswith("torch") for name in options.contenders):
        raise ConfigError("--contenders torch: PyTorch is not installed; install it, or name other contenders.")
    for path in (options.json and options.json.parent, options.profile and options.profile.parent):
        if path and not path.is_dir():
            raise ConfigError(f"{path} is no folder; create it first.")
    everyone = tuple(name for name in CONTENDERS if installed or not name.startswith("torch"))
    return dataclasses.replace(options, contenders=options.contenders or everyone)


def spread(values: list[float]) -> dict[str, Any]:
    """Median, quartiles, extremes, and the values in the order of their rounds."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {
        "median": statistics.median(values),
        "quartiles": [quartiles[0], quartiles[2]],
        "least": min(values),
        "most": max(values),
        "rounds": values,
    }


class Entrant:
    """A contender in a race: its worker, its times, and what ended its part, if something did."""

    def __init__(self, name: str, case: Case, options: Options) -> None:
        self.name, self.case, self.options = name, case, options
        self.times: list[float] = []
        self.facts: dict[str, Any] = {}
        self.worker: Worker | None = None
        self.spent = 0.0
        try:
            self.worker = Worker("experiments.peers:Timed", CONTENDERS[name], case, limit=options.limit)
            self.facts = dict(self.worker.facts)
        except (TooSlow, Failed) as error:
            self.facts = {"note": f"not built: {error}"}
            return
        self.steps = self.facts["chunk"]
        first = self._run()
        if first is not None:
            second = self._run() if first < options.seconds else first
            self.steps *= max(1, round(options.seconds / (second or first)))
            self.spent = 0.0

    def _run(self) -> float | None:
        """One turn's seconds, or None for the contender that is out."""
        if self.worker is None:
            return None
        try:
            seconds, loss = self.worker.call("run", self.steps, limit=self.options.limit)
        except TooSlow:
            self.worker = None
            self.facts["note"] = f"{self.steps} steps took over {self.options.limit:g} s"
            self.facts["milliseconds_over"] = 1e3 * self.options.limit / self.steps
            return None
        except Failed as error:
            self.worker = None
            self.facts["note"] = str(error)
            return None
        self.spent += seconds
        self.facts["loss"] = loss
        return seconds

    def turn(self) -> None:
        """Make a turn's steps, unless the contender has had its time."""
        if self.spent < self.options.limit:
            seconds = self._run()
            if seconds is not None:
                self.times.append(1e3 * seconds / self.steps)

    def finish(self) -> None:
        """Ask for the peak memory, write the trace if one is wanted, and end the process."""
        if self.worker is None:
            return
        self.facts["peak_bytes"] = self.worker.call("peak_bytes")
        if self.options.profile and self.name == "psgjax":
            case = self.case
            folder = self.options.profile / f"{case.method}-batch{case.batch_size}-replicas{case.replicas}"
            self.worker.call("profile", str(folder), min(self.steps, 5))
        self.worker.close()


def race(case: Case, machine: Worker, options: Options) -> list[dict[str, Any]]:
    """Time every contender on one case, in turns; one result each, in the order of `options.contenders`."""
    counted, xla = machine.call("operations", case)
    entrants = [Entrant(name, case, options) for name in options.contenders]
    peaks = []
    for _ in range(options.rounds):
        peaks.append(machine.call("matmul"))
        for entrant in entrants:
            entrant.turn()
    results = []
    for entrant in entrants:
        entrant.finish()
        result = {"contender": entrant.name, **dataclasses.asdict(case), **entrant.facts}
        result |= {"operations": counted, "xla_operations": xla, "matmul_peak": spread(peaks)}
        if entrant.times:
            milliseconds = spread(entrant.times)
            rate = 1e3 * counted / milliseconds["median"]
            result |= {
                "milliseconds": milliseconds,
                "images_per_second": 1e3 * case.batch_size * case.replicas / milliseconds["median"],
                "operations_per_second": rate,
                "share_of_peak": rate / statistics.median(peaks),
            }
        results.append(result)
    return results


def race_all(machine: Worker, options: Options, report: Callable[[list[dict[str, Any]]], None]) -> None:
    """Every case asked for; on a GPU, where none is, replicas in powers of two and batch sizes until they gain under 5 %."""
    sweeps = machine.facts["platform"] != "cpu"

    def rate(method: str, batch_size: int, replicas: int) -> float:
        results = race(Case(method, options.width, batch_size, replicas, options.precision), machine, options)
        report(results)
        return results[0].get("images_per_second", 0.0)

    for method in options.methods:
        rates = {
            (batch_size, replicas): rate(method, batch_size, replicas)
            for replicas in options.replicas or (_REPLICAS if sweeps else (1,))
            for batch_size in options.batch_sizes or (128,)
        }
        if sweeps and not options.batch_sizes:
            before, batch_size = rates.get((128, 1), 0.0), 256
            while batch_size <= _LARGEST_BATCH and (now := rate(method, batch_size, 1)) > 1.05 * before:
                before, batch_size = now, 2 * batch_size


def time_convolutions(machine: Worker, options: Options, report: Callable[[dict[str, Any]], None]) -> None:
    """Every direction of every convolution of the first method's step: psgjax's, and flax's if it is asked for."""
    case = Case(options.methods[0], options.width, (options.batch_sizes or (128,))[0], precision=options.precision)
    for owner, layer in machine.call("convolutions", case):
        for direction in _DIRECTIONS:
            for name in options.contenders:
                report(time_convolution(case, owner, layer, direction, name, options))


def time_convolution(case: Case, owner: str, layer: Any, direction: str, name: str, options: Options) -> dict[str, Any]:
    """One direction of one convolution, inside a loop and outside any, in turns."""
    result: dict[str, Any] = {"contender": name, "owner": owner, "layer": layer.name, "direction": direction}
    times: dict[str, list[float]] = {"outside": [], "inside": []}
    try:
        arguments = (case, owner, layer, direction, name == "flax")
        worker = Worker("experiments.peers.ours:Convolution", *arguments, limit=options.limit)
        result |= worker.facts
        calls = {}
        for where in times:
            worker.call("time", where, 1, limit=options.limit)  # compiles
            once = worker.call("time", where, 2, limit=options.limit)
            calls[where] = max(1, round(options.seconds / 4 / once))
        spent = 0.0
        for _ in range(options.rounds):
            for where, taken in times.items():
                if spent < options.limit:
                    seconds = worker.call("time", where, calls[where], limit=options.limit)
                    taken.append(1e3 * seconds)
                    spent += seconds * calls[where]
        worker.close()
    except (TooSlow, Failed) as error:
        result["note"] = str(error)
    result |= {f"milliseconds_{where}": spread(taken) for where, taken in times.items() if taken}
    if times["inside"]:
        result["inside_to_outside"] = statistics.median(times["inside"]) / statistics.median(times["outside"])
    return result


def show_race(results: list[dict[str, Any]]) -> str:
    """The table of one case."""
    first = results[0]
    peak = first["matmul_peak"]
    title = (
        f"{first['method']}, batch size {first['batch_size']}, replicas {first['replicas']}, width {first['width']}, "
        f"{first['precision']}: {first['operations'] / 1e9:.4g} GFLOP a step (XLA counts {first['xla_operations'] / 1e9:.4g}); "
        f"matmul peak {peak['median'] / 1e9:,.0f} GFLOP/s ({peak['least'] / 1e9:,.0f} to {peak['most'] / 1e9:,.0f})"
    )
    rows = [["", "ms/step", "least-most", "images/s", "compile s", "GFLOP/s", "of peak", "memory MB", "x psgjax"]]
    ours = next(
        (r["milliseconds"]["median"] for r in results if r["contender"] == "psgjax" and "milliseconds" in r), None
    )
    for result in results:
        row = [result["contender"]]
        if "milliseconds" in result:
            taken = result["milliseconds"]
            compiled = result["compile_seconds"]
            row += [
                f"{taken['median']:,.4g}",
                f"{taken['least']:,.4g}-{taken['most']:,.4g}",
                f"{result['images_per_second']:,.0f}",
                "-" if compiled is None else f"{compiled:.1f}",
                f"{result['operations_per_second'] / 1e9:,.4g}",
                f"{result['share_of_peak']:.1%}",
                f"{result['peak_bytes'] / 1e6:,.0f}" if "peak_bytes" in result else "-",
                f"{taken['median'] / ours:.2f}" if ours else "-",
            ]
        elif "milliseconds_over" in result:
            row.append(f"> {result['milliseconds_over']:,.4g}")
        rows.append(row)
    notes = [f"{result['contender']}: {result['note']}" for result in results if "note" in result]
    return "\n".join([title, table(rows), *notes])


def table(rows: list[list[str]]) -> str:
    """Columns as wide as they need to be, numbers to the right."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        for row in rows
    )


def show_convolution(result: dict[str, Any]) -> str:
    """One line of the convolutions' table."""
    what = f"{result['contender']:8}{result['owner']:15}{result['layer']:18}{result['direction']:17}"
    if "inside_to_outside" not in result:
        return f"{what}{result['note']}"
    outside, inside = (result[f"milliseconds_{where}"]["median"] for where in ("outside", "inside"))
    rate = result["operations"] / inside / 1e6
    return f"{what}{outside:10.2f}{inside:10.2f}{result['inside_to_outside']:10.2f}{rate:10.1f}"


def environment(machine: Worker, options: Options) -> dict[str, Any]:
    """What the JSON says of the run: command, commit, versions, hardware, load."""
    here = Path(__file__).parent
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(git, cwd=here, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    versions = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "flax", "optax", "numpy", "torch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return {
        "command": shlex.join(["python", "-m", "experiments.bench", *sys.argv[1:]]),
        "options": json.loads(json.dumps(dataclasses.asdict(options), default=str)),
        "commit": commit or None,
        "versions": versions,
        "hardware": {**machine.facts, "processor": processor, "cores": cores()},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": {"begin": os.getloadavg()},
    }


def run(options: Options) -> None:
    """Time what was asked for; print it, and write it after each case."""
    machine = Worker("experiments.peers.ours:Machine", options.precision)
    document = environment(machine, options)
    hardware = document["hardware"]
    packages = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    print(f"{hardware['device']}, {hardware['processor']} ({hardware['cores']} cores); {packages}")
    print(
        f"load average at the beginning: {' '.join(f'{x:.2f}' for x in document['load_average']['begin'])}", flush=True
    )
    key = "convolutions" if options.convolutions else "results"
    document[key] = []

    def keep(new: list[dict[str, Any]]) -> None:
        document[key] += new
        document["load_average"]["end"] = os.getloadavg()
        if options.json:
            options.json.write_text(json.dumps(document, indent=2) + "\n")

    def keep_race(results: list[dict[str, Any]]) -> None:
        keep(results)
        print("\n" + show_race(results), flush=True)

    def keep_convolution(result: dict[str, Any]) -> None:
        keep([result])
        print(show_convolution(result), flush=True)

    if options.convolutions:
        print(f"{'':58}{'outside ms':>10}{'inside ms':>10}{'ratio':>10}{'GFLOP/s':>10}", flush=True)
        time_convolutions(machine, options, keep_convolution)
    else:
        race_all(machine, options, keep_race)
    print(f"\nload average at the end: {' '.join(f'{x:.2f}' for x in document['load_average']['end'])}")
    machine.close()


def main(arguments: list[str] | None = None) -> int:
    """The command line: parse, run, and say in one line what went wrong."""
    try:
        run(parse(arguments))
    except (ConfigError, Failed, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
