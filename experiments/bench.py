"""Time psgjax and its alternatives in one run: a plain Flax port, PyTorch eager and `torch.compile`.

    python -m experiments.bench                   # psg, sngan and gan at batch size 128: twelve minutes on two cores
    python -m experiments.bench --convolutions    # each convolution of the step, inside a loop and outside: three minutes
    python -m experiments.bench --network resnet --width 16    # residual networks instead of dcgan
    python -m experiments.bench --methods gan gan-r1r2         # what R1 and R2 cost, without them and with them
    python -m experiments.bench --json results.json --methods psg --contenders psgjax torch

Each contender trains in a process of its own. In every round, each makes a fixed number of steps, one after the other, and the
machine's matmul peak is measured between rounds. Compilation and the first steps are not timed. Medians over the rounds are
shown, with the fastest and the slowest. Operations are those the update needs (the layers' kernels alone), so that GFLOP/s
compare between contenders. On a GPU the defaults also sweep the replicas from 1 to 64 and the batch sizes until they no longer
pay. Expect psgjax to be the fastest. Run nothing else meanwhile: another busy process slows PyTorch's threads down several times,
JAX's about twice.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from typing_extensions import Doc

from experiments.peers import Worker, cores, race
from psgjax.config import ConfigError
from psgjax.files import write_atomically
from psgjax.schema import local_paths
from psgjax.shell import check_output, run_command

METHODS = ("psg", "sngan", "gan")
ALL_METHODS = (*METHODS, "psg-r1r2", "gan-r1r2", "r3gan", "choice")


@dataclass(frozen=True)
class Options:
    """The command line: lists take several values."""

    methods: Annotated[
        tuple[str, ...],
        Doc(
            f"Methods to train, of {', '.join(ALL_METHODS)}; if not given, the first three, for resnet without sngan, as some of "
            "its kernels are zero at first."
        ),
    ] = ()
    contenders: Annotated[
        tuple[str, ...], Doc(f"Contenders: {', '.join(race.CONTENDERS)}; if not given, all that are installed.")
    ] = ()
    batch_sizes: Annotated[
        tuple[int, ...],
        Doc("Real images in an update; if not given, 128, and on a GPU powers of two while they pay."),
    ] = ()
    replicas: Annotated[
        tuple[int, ...], Doc("Independent runs trained at once; if not given, 1, and on a GPU up to 64.")
    ] = ()
    network: Annotated[
        Literal["dcgan", "resnet"],
        Doc("The networks that all contenders train; there is no plain Flax port of resnet."),
    ] = "dcgan"
    width: Annotated[int, Doc("Channels of the layer next to the image.")] = 64
    precision: Annotated[
        Literal["float32", "tf32"],
        Doc("Of all contenders' matrix products and convolutions; tf32 where the GPU has it."),
    ] = "float32"
    rounds: Annotated[int, Doc("Timed rounds.")] = 7
    seconds: Annotated[
        float, Doc("About how long each contender trains in a round; a call in training lasts as long.")
    ] = 4.0
    limit: Annotated[
        float,
        Doc(
            "Most seconds that a contender may take to be built, for one call, and for all rounds; beyond that it is dropped."
        ),
    ] = 120.0
    convolutions: Annotated[bool, Doc("Time the step's convolutions instead, inside a loop and outside.")] = False
    json: Annotated[Path | None, Doc("File for all measurements; rewritten after each case.")] = None
    profile: Annotated[
        Path | None, Doc("Folder for traces of psgjax, one per case, which Perfetto and TensorBoard open.")
    ] = None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(message)


def parse(arguments: list[str] | None) -> Options:
    """The options on a command line; by argparse, so that a GPU machine for benchmarks needs no tyro.

    Raises:
        ConfigError: For options that cannot be parsed, and for values that cannot be used.
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
    options = local_paths(Options(**values))
    for name, known in (("methods", ALL_METHODS), ("contenders", tuple(race.CONTENDERS))):
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
    missing = {"resnet": {"sngan", "flax"}}.get(options.network, set())
    for name in (*options.methods, *options.contenders):
        if name in missing:
            raise ConfigError(f"--network {options.network} with {name}: there is none; leave it out.")
    everyone = [name for name in race.CONTENDERS if installed or not name.startswith("torch")]
    return dataclasses.replace(
        options,
        methods=options.methods or tuple(name for name in METHODS if name not in missing),
        contenders=options.contenders or tuple(name for name in everyone if name not in missing),
    )


def show_race(results: list[dict[str, Any]]) -> str:
    """The table of one case."""
    first = results[0]
    peak = first["matmul_peak"]
    xla, xla_done = (
        f"{value / 1e9:.4g}" if value else "none" for value in (first["xla_operations"], first["xla_operations_done"])
    )
    title = (
        f"{first['method']}, {first['network']}, batch size {first['batch_size']}, replicas {first['replicas']}, "
        f"width {first['width']}, {first['precision']}: {first['operations'] / 1e9:.4g} GFLOP per step by definition (XLA counts "
        f"{xla}), of which psgjax does {first['operations_done'] / 1e9:.4g} here ({xla_done}); "
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
    """Aligned columns, numbers to the right."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        for row in rows
    )


def environment(machine: Worker, options: Options) -> dict[str, Any]:
    """Command, commit, versions, hardware and load, for the JSON."""
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
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
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
    """Time every case; print its results, and write them to the JSON."""
    check_output("--json", options.json)
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
            write_atomically(options.json, json.dumps(document, indent=2) + "\n")

    def keep_race(results: list[dict[str, Any]]) -> None:
        print("\n" + show_race(results), flush=True)
        keep(results)

    if options.convolutions:
        # It imports jax, which the process of every contender would do too if this were at the top.
        from experiments.peers import convolutions

        def keep_convolution(result: dict[str, Any]) -> None:
            print(convolutions.show(result), flush=True)
            keep([result])

        print(f"{'':58}{'outside ms':>10}{'inside ms':>10}{'ratio':>10}{'GFLOP/s':>10}", flush=True)
        convolutions.time_all(machine, options, keep_convolution)
    else:
        race.race_all(machine, options, keep_race)
    print(f"\nload average at the end: {' '.join(f'{x:.2f}' for x in document['load_average']['end'])}")
    machine.close()


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    return run_command(lambda: run(parse(arguments)), "stopped: --json has the measurements so far")


if __name__ == "__main__":
    sys.exit(main())
