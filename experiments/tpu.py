"""Compile the training program ahead of time for TPUs: its memory, its operations and its collectives.

    python -m experiments.tpu --topology v5e:2x2 v5e:4x4          # psg and sngan, float32 and bfloat16; extra [tpu]: libtpu
    python -m experiments.tpu --topology v5e:2x2 v5e:16x16 --methods psg --weak    # a batch that grows with the mesh

Works on any machine where libtpu installs; no TPU is needed. Prints for each method, precision and topology: seconds to compile,
bytes of memory on each device and whether they fit, operations of one update on each device, and the collectives of one update
with their bytes. It fails if an array that the mesh should shard is replicated. Compiling proves lowering, memory and
communication; it says nothing about speed.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import re
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from typing_extensions import Doc

from psgjax.commands import line
from psgjax.config import Config, ConfigError, Mesh
from psgjax.schema import Listed
from psgjax.shell import check_output
from psgjax.switches import METHODS, named_method

_IMAGES, _SHAPE = 60_000, (28, 28, 1)  # MNIST's
_MEMORY = {
    "TPU v4": 32,
    "TPU v5 lite": 16,
    "TPU v5": 95,
    "TPU v5p": 95,
    "TPU v6 lite": 32,
}  # GiB a device, as published
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


@dataclass(frozen=True)
class Options:
    """Compile ahead of time for TPU topologies."""

    topology: Annotated[tuple[str, ...], Doc("TPU topologies, as libtpu names them.")] = ("v5e:2x2", "v5e:4x4")
    methods: Annotated[tuple[str, ...], Listed("Methods to compile: {}.", partial(", ".join, METHODS))] = (
        "psg",
        "sngan",
    )
    precisions: Annotated[tuple[Literal["float32", "bfloat16"], ...], Doc("Of the layers' arithmetic.")] = (
        "float32",
        "bfloat16",
    )
    batch_size: Annotated[int, Doc("Images of each kind in an update.")] = 128
    weak: Annotated[
        bool, Doc("The batch size is that of each shard of `data`, so that the batch grows with the mesh.")
    ] = False
    replicas: Annotated[int, Doc("Independent runs trained at once.")] = 1
    mesh: Mesh = field(default_factory=Mesh)
    json: Annotated[Path | None, Doc("File for the results; rewritten after each program.")] = None


def collectives(text: str) -> dict[str, dict[str, int]]:
    """The collectives of a compiled program: for each kind how many there are, and the bytes of their results on one device."""
    found: dict[str, dict[str, int]] = collections.defaultdict(lambda: {"count": 0, "bytes": 0})
    for result, kind in re.findall(rf"= (.+?) ({'|'.join(_COLLECTIVES)})(?:-start)?\(", text):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", result)
        found[kind]["count"] += 1
        found[kind]["bytes"] += sum(
            _BYTES[kind] * math.prod(map(int, filter(None, sizes.split(","))))
            for kind, sizes in arrays
            if kind in _BYTES
        )
    return dict(found)


def compile_for(topology: str, config: Config, options: Options) -> dict[str, Any]:
    """Compile one training program for a topology and describe it.

    Raises:
        ConfigError: If libtpu does not know the topology, or no mesh fits it.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from psgjax.method import epochs, sharding
    from psgjax.method import state as states

    chips = [int(text) for text in re.findall(r"\d+", topology.partition(":")[2])]
    # libtpu takes hosts of 2x2 chips for granted; fewer chips make a smaller host.
    host = {"chips_per_host_bounds": (*chips, 1)[:3]} if 0 < math.prod(chips) < 4 else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **host).devices
    except Exception as error:  # whatever the plugin raises
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"no TPU topology {topology!r}: {reason}") from None
    scaled = dataclasses.replace(config, batch_size=config.batch_size * (len(devices) if options.weak else 1))
    mesh = sharding.make_mesh(options.mesh, scaled, options.replicas, devices)
    if options.weak:
        config = dataclasses.replace(config, batch_size=config.batch_size * mesh.shape["data"])
    replicas = options.replicas if options.replicas > 1 else None
    state = states.abstract(states.make_init(config, _SHAPE), mesh, replicas)
    rows = _IMAGES + -_IMAGES % mesh.shape["data"]
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    images = jax.ShapeDtypeStruct((rows, *_SHAPE), jnp.uint8, sharding=split)
    updates = jax.ShapeDtypeStruct((), jnp.int32)
    program = epochs.make_run(config, _IMAGES, _SHAPE, replicas is not None, mesh)
    started = time.monotonic()
    compiled = program.trace(state, images, updates).lower(lowering_platforms=("tpu",)).compile()
    seconds = time.monotonic() - started
    sizes: Any = compiled.memory_analysis()
    memory = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    memory += sizes.temp_size_in_bytes + sizes.generated_code_size_in_bytes
    kind = mesh.devices.flat[0].device_kind
    return {
        "topology": topology,
        "device": kind,
        "devices": len(devices),
        "mesh": dict(mesh.shape),
        "method": config.method_name,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "replicas": options.replicas,
        "compile_seconds": round(seconds, 1),
        "bytes_per_device": memory,
        "fits": memory < _MEMORY[kind] * 2**30 if kind in _MEMORY else None,
        "operations_per_device": (compiled.cost_analysis() or {}).get("flops"),
        "collectives": collectives(compiled.as_text()),
        "not_split": not_split(compiled, state, images, mesh),
    }


def not_split(compiled: Any, state: Any, images: Any, mesh: Any) -> list[str]:
    """The arrays that are replicated and should be sharded: of generators, the data set, and whatever each replica has."""
    import jax

    arguments = (state, images)
    found = []
    shardings = jax.tree.leaves(compiled.input_shardings[0][: len(arguments)])
    for (path, leaf), sharding in zip(jax.tree_util.tree_leaves_with_path(arguments), shardings, strict=True):
        name = jax.tree_util.keystr(path)
        wanted = mesh.shape["data"] if leaf is images else mesh.shape["replica"]
        wanted *= mesh.shape["generator"] if ".generators" in name else 1
        if math.prod(sharding.shard_shape(leaf.shape)) * wanted > math.prod(leaf.shape):
            found.append(name)
    return found


def show(result: dict[str, Any]) -> str:
    """One line of the table."""
    mesh = "x".join(map(str, result["mesh"].values()))
    fits = {True: "fits", False: "DOES NOT FIT", None: "memory unknown"}[result["fits"]]
    sent = ", ".join(
        f"{found['count']} {kind} ({found['bytes'] / 1e6:.3g} MB)" for kind, found in result["collectives"].items()
    )
    operations = result["operations_per_device"]
    return (
        f"{result['method']:8}{result['precision']:10}{result['topology']:10}{mesh:>8}{result['batch_size']:8,}"
        f"{result['compile_seconds']:8.1f} s{result['bytes_per_device'] / 1e6:9.1f} MB  {fits}  "
        f"{'' if operations is None else f'{operations / 1e9:.3g} GFLOP  '}{sent or 'no collectives'}"
    )


def run(options: Options) -> int:
    """Compile every program asked for; 1 if an array is replicated that should be sharded, or a program does not fit."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}  # before jax starts: no TPU is looked for
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from psgjax.environment import provenance, settle
    from psgjax.files import write_atomically

    check_output("--json", options.json)
    settle()
    configs = [
        Config(name, named_method(name), batch_size=options.batch_size, precision=precision)
        for name in options.methods
        for precision in options.precisions
    ]
    document: dict[str, Any] = {**provenance(), "results": []}
    try:
        document["versions"]["libtpu"] = version("libtpu")
    except PackageNotFoundError:
        raise ConfigError("libtpu is not installed; get it with: pip install 'psgjax[tpu]'.") from None
    print(
        f"{'method':8}{'precision':10}{'topology':10}{'r x g x d':>8}{'batch':>8}{'compile':>10}{'a device':>12}",
        flush=True,
    )
    for topology in options.topology:
        for config in configs:
            result = compile_for(topology, config, options)
            print(show(result), flush=True)
            document["results"].append(result)
            if options.json:
                write_atomically(options.json, json.dumps(document, indent=2) + "\n")
    replicated = sorted({name for result in document["results"] for name in result["not_split"]})
    if replicated:
        print(f"error: replicated, and should be sharded: {', '.join(replicated)}", file=sys.stderr)
    return int(bool(replicated) or any(result["fits"] is False for result in document["results"]))


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    return line.command(Options, run, arguments, "experiments.tpu", __doc__)


if __name__ == "__main__":
    sys.exit(main())
