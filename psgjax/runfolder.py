"""What a run leaves in its folder, and whose folder it is: settings, environment, lock, metrics, pictures, checkpoints."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from psgjax import schema
from psgjax.checkpoint import CheckpointError, Checkpoints
from psgjax.config import Config, ConfigError
from psgjax.data import Dataset
from psgjax.environment import provenance, versions
from psgjax.state import TrainState
from psgjax.tracking import Line, MetricsFile, image_grid, read_lines, to_pixels, write_atomically, write_png


def runs_of(folder: Path, config: Config, seeds: Sequence[int] = ()) -> dict[Path, Config]:
    """The folder and the configuration of each run: in folder/seed-N for each of several seeds, or else one in the folder itself.

    Args:
        folder: A method's.
        config: The method's.
        seeds: In place of the configuration's one.
    """
    if len(seeds) > 1:
        return {folder / f"seed-{seed}": dataclasses.replace(config, seed=seed) for seed in seeds}
    return {folder: dataclasses.replace(config, seed=seeds[0]) if seeds else config}


def read_config(folder: Path) -> Config | None:
    """The configuration of the run in that folder, or None where there is no run.

    Raises:
        ConfigError: If the folder's config.json cannot be read as one.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        return schema.from_json(Config, path.read_text(encoding="utf-8"))
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a configuration of this version: {error} Choose another --out.") from None


def runs_in(folder: Path) -> dict[Path, Config]:
    """The runs that `runs_of` once put there, by seed; empty where there is none.

    Raises:
        ConfigError: If a config.json cannot be read as one.
    """
    found = {path: config for path in (folder, *folder.glob("seed-*")) if (config := read_config(path)) is not None}
    return dict(sorted(found.items(), key=lambda item: item[1].seed))


def check_folder(folder: Path, config: Config, seeds: Sequence[int] = ()) -> None:
    """Refuse a folder that holds other runs than those of `runs_of`, or something that is no run. Writes nothing.

    Raises:
        ConfigError: With the settings or seeds that differ, or with what is in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; --out must name a folder.")
    wanted, found = runs_of(folder, config, seeds), runs_in(folder)
    begun = any(any((path / "checkpoints").glob("[0-9]*")) for path in found)
    # A run that was killed before it had made all folders may make the others.
    if found.keys() - wanted.keys() or (begun and wanted.keys() - found.keys()):
        known, given = (" ".join(str(run.seed) for run in runs.values()) for runs in (found, wanted))
        raise ConfigError(
            f"{folder} holds {'the seeds' if len(found) > 1 else 'a run of seed'} {known}, asked for is {given}: seeds are trained "
            "together from the first step. Choose another --out, or the same seeds."
        )
    for path, config in wanted.items():
        different = schema.differences(found[path], config) if path in found else []
        if different:
            raise ConfigError(
                f"{path} holds a run with other settings: {'; '.join(different)}. Choose another --out, or the same settings."
            )
        if path not in found and any(inside.is_file() and inside.name != "lock" for inside in path.rglob("*")):
            raise ConfigError(
                f"{path} is not empty and holds no run (no config.json); choose another --out, or empty it."
            )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; the operating system lets go of it when the process ends, however it ends.

    Raises:
        ConfigError: If another process holds it, with that one's number and host.
    """
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read() or "another process"
            raise ConfigError(
                f"{folder} is in use by {holder}; wait for it, stop it, or choose another --out."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def environment(config: Config, data: Dataset) -> dict[str, Any]:
    """What env.json records: command, commit, versions, hardware, data."""
    shape = {"steps_per_epoch": config.steps_per_epoch(len(data.images)), "image_shape": data.images.shape[1:]}
    return {**provenance(), **shape, "data": data.info}


def _keep_environment(path: Path, now: dict[str, Any]) -> None:
    """Write env.json, or add this resumption to it."""
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            description, sha256 = (str(before["data"][name]) for name in ("description", "sha256"))
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ConfigError(f"{path} is damaged; restore that file, or choose another --out.") from None
        if sha256 != now["data"]["sha256"]:
            raise ConfigError(
                f"the training images are not those that {path.parent} began with: then {description} (SHA-256 "
                f"{sha256[:12]}), now {now['data']['description']} ({now['data']['sha256'][:12]}). "
                "Restore them, or choose another --out."
            )
        keys = ("command", "commit", "versions", "device", "started")
        now = {**before, "resumed": [*before.get("resumed", []), {key: now[key] for key in keys}]}
    write_atomically(path, json.dumps(now, indent=2) + "\n")


class RunFolder:
    """The folder of one run while it trains."""

    def __init__(self, path: Path, config: Config, checkpoints: Checkpoints) -> None:
        """`opened` makes these."""
        self.path, self.config, self.checkpoints = path, config, checkpoints
        self.last_line: Line | None = None
        self._metrics: MetricsFile | None = None
        self._best: Checkpoints | None = None
        self._least_fcd = np.inf

    def begin(self, step: int) -> None:
        """Continue metrics.jsonl, and the search for the best state, after that step."""
        self._metrics = MetricsFile(self.path / "metrics.jsonl", step)
        lines = read_lines(self.path / "metrics.jsonl")
        self.last_line = lines[-1] if lines else None
        self._least_fcd = min(
            (line["evaluation"].get("fcd", np.inf) for line in lines if "evaluation" in line), default=np.inf
        )
        if self.config.evaluation_epochs:
            self._best = Checkpoints(self.path / "best", keep=1)

    def save(self, state: TrainState, seconds: float) -> None:
        """Save the state in the background, with the seconds trained so far, the settings and the versions."""
        settings = json.loads(schema.to_json(self.config))
        self.checkpoints.save(state, {"seconds": seconds, "config": settings, "versions": versions()})

    def write(self, line: Line) -> None:
        """Append one line to metrics.jsonl."""
        assert self._metrics
        self._metrics.write(line)
        self.last_line = line

    def offer(self, state: TrainState, fcd: float) -> None:
        """Keep the state in best/ if none before it had a smaller FCD."""
        assert self._best
        if fcd < self._least_fcd:
            self._least_fcd = fcd
            self._best.save(state, {"fcd": fcd})

    def picture(self, epoch: float, images: np.ndarray) -> None:
        """A grid of images [K, n, H, W, C] in [-1, 1] under samples/."""
        (self.path / "samples").mkdir(exist_ok=True)
        write_png(self.path / "samples" / f"epoch-{int(np.ceil(epoch)):04d}.png", image_grid(to_pixels(images)))

    def close(self) -> None:
        """Close what `begin` opened."""
        for file in (self._metrics, self._best):
            if file:
                file.close()


@contextmanager
def opened(path: Path, config: Config, data: Dataset, tell: Callable[[str], None]) -> Iterator[RunFolder]:
    """A run's folder, made if need be and held for this process, with its settings and environment written down.

    Args:
        path: The folder.
        config: The run's.
        data: What it trains on.
        tell: Hears, in a sentence each, which damaged checkpoints are set aside.

    Raises:
        ConfigError: If another process holds it, or the data are not those that the run began with.
    """
    path.mkdir(parents=True, exist_ok=True)
    with alone(path):
        check_folder(path, config)  # another process may have begun here before this one held it
        if not (path / "config.json").exists():
            write_atomically(path / "config.json", schema.to_json(config))
        _keep_environment(path / "env.json", environment(config, data))
        with Checkpoints(path / "checkpoints", tell=tell) as checkpoints:
            run = RunFolder(path, config, checkpoints)
            try:
                yield run
            finally:
                run.close()


def restore(runs: Sequence[RunFolder], like: TrainState) -> list[tuple[TrainState, dict[str, Any]]]:
    """State and progress of each run at the last step that all have saved; newer states are deleted. Empty where none is saved.

    Args:
        runs: Saved one after the other at the same steps, each save complete before the next step's begins.
        like: A state of the runs' shapes and dtypes, abstract or not.

    Raises:
        CheckpointError: If no step is common to all though some have been trained on, or a checkpoint does not fit.
    """
    saved = [set(run.checkpoints.steps()) for run in runs]
    last = max(set.intersection(*saved), default=-1)
    if last < 0 and len(set.union(*saved)) > 1:  # one alone: the very first save was cut off
        steps = "; ".join(f"{run.path.name}: {sorted(own) or 'none'}" for run, own in zip(runs, saved, strict=True))
        raise CheckpointError(
            f"the seeds in {runs[0].path.parent} have no checkpoint of the same step ({steps}); restore what was deleted, "
            "or choose another --out."
        )
    for run in runs:
        run.checkpoints.drop_after(last)
    found = [run.checkpoints.restore(like) for run in runs]
    return [each for each in found if each]
