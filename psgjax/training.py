"""The loop: updates on the device, metrics, quality and pictures as they come, checkpoints, resumption, a clean stop."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from psgjax import config as configuration
from psgjax.checkpoint import Checkpoints
from psgjax.config import Config, ConfigError
from psgjax.data import Dataset
from psgjax.environment import device_name, forecast, provenance
from psgjax.evaluation.classifier import for_data
from psgjax.evaluation.score import Reference, Scores, beside_nearest, reference, score
from psgjax.inference import make_artist, make_judge, make_sampler
from psgjax.step import Stream, TrainState, draw_latents, init, make_run
from psgjax.tracking import (
    MetricsFile,
    ProgressDisplay,
    duration,
    image_grid,
    read_lines,
    to_pixels,
    write_atomically,
    write_png,
)

_SAVE_SECONDS = 30.0  # at most so much work is lost to a crash
_CALL_SECONDS = 2.0  # the length of one call to the device: what a signal may have to wait for, twice
_GRID = 32  # images a generator in a sample grid
_NEIGHBOURS = 12  # samples of each generator shown above their nearest training images
_JUDGED = 2000  # held-out images on which D's accuracy is taken


class Diverged(Exception):
    """A loss that is not finite."""


class Stop:
    """Whether a signal asked the run to stop, and which."""

    def __init__(self) -> None:
        self.signal = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask once; a second one ends the process at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self.signal:
                os._exit(128 + number)
            self.signal = number

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: the updates made in all, and whether the run is complete."""

    step: int
    finished: bool


def read_config(folder: Path) -> Config | None:
    """The configuration of the run in that folder, or None where there is no run.

    Raises:
        ConfigError: If the folder's config.json cannot be read as one.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        return configuration.from_json(Config, path.read_text())
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a configuration of this version: {error} Choose another --out.") from None


def check_folder(folder: Path, config: Config) -> None:
    """Refuse a folder that holds another run, or something that is no run. Writes nothing.

    Raises:
        ConfigError: With the settings that differ, or with what is in the way.
    """
    existing = read_config(folder)
    if existing is not None:
        different = configuration.differences(existing, config)
        if different:
            raise ConfigError(
                f"{folder} holds a run with other settings: {'; '.join(different)}. Choose another --out, or the same settings."
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty and holds no run (no config.json); choose another --out, or empty it."
        )
    elif folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; --out must name a folder.")


def environment(config: Config, data: Dataset) -> dict[str, Any]:
    """What env.json records: command, commit, versions, hardware, data."""
    shape = {"steps_per_epoch": config.steps_per_epoch(len(data.images)), "image_shape": data.images.shape[1:]}
    return {**provenance(), **shape, "data": data.info}


def _shown(epoch: float) -> bool:
    """Whether a sample grid is kept of that epoch: 0, 1, 2, 5, 10, 20, 50, ..."""
    return epoch == 0 or (epoch == int(epoch) and str(int(epoch)).rstrip("0") in ("1", "2", "5"))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; the operating system lets go of it when the process ends, however it ends.

    Raises:
        ConfigError: If another process holds it, with that one's number and host.
    """
    with (folder / "lock").open("a+") as file:
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


def train(config: Config, data: Dataset, folder: Path, *, console: Console, stop: Stop) -> Outcome:
    """Train one run to its end, from its last checkpoint if it has one.

    Args:
        config: The run; the folder must be free or hold this very run (`check_folder`).
        data: What it trains on and is judged by.
        folder: Receives config.json, env.json, metrics.jsonl, checkpoints/ and samples/.
        console: Where progress is shown.
        stop: Asked once a call to the device; a run that is stopped is saved and can be continued.

    Raises:
        ConfigError: If the folder holds another run, another process trains it, or the data are not those it began with.
        Diverged: If a loss is not finite; the last good checkpoint stays.
    """
    check_folder(folder, config)
    per_epoch = config.steps_per_epoch(len(data.images))
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").exists():
        write_atomically(folder / "config.json", configuration.to_json(config))
    image_shape = data.images.shape[1:]
    abstract = jax.eval_shape(lambda: init(config, image_shape))
    with alone(folder), Checkpoints(folder / "checkpoints") as checkpoints:
        _keep_environment(folder / "env.json", environment(config, data))
        found = checkpoints.restore(abstract)
        state, progress = found if found else (jax.jit(lambda: init(config, image_shape))(), {"seconds": 0.0})
        step = int(state.step)
        if step == config.steps:
            console.print(f"{config.method_name}: finished already, {step:,} steps", highlight=False)
            return Outcome(step, finished=True)
        return _Loop(config, data, folder, console, stop, checkpoints, per_epoch).run(state, step, progress["seconds"])


def _keep_environment(path: Path, now: dict[str, Any]) -> None:
    """Write env.json, or add this resumption to it."""
    if path.exists():
        try:
            before = json.loads(path.read_text())
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


class _Loop:
    """One call of `train` with a state to continue from."""

    def __init__(
        self,
        config: Config,
        data: Dataset,
        folder: Path,
        console: Console,
        stop: Stop,
        checkpoints: Checkpoints,
        per_epoch: int,
    ) -> None:
        self.config, self.folder, self.console, self.stop = config, folder, console, stop
        self.checkpoints, self.per_epoch = checkpoints, per_epoch
        self.images = jnp.asarray(data.images)
        self.held_out = jnp.asarray(data.held_out_images[:_JUDGED])
        image_shape = data.images.shape[1:]
        self.program = make_run(config, len(data.images), image_shape)
        self.judge = make_judge(config, image_shape)
        self.sampler = make_sampler(config, image_shape)
        self.latents = draw_latents(config, jax.random.fold_in(jax.random.key(config.seed), Stream.GRID), _GRID)
        self.data = data
        self.artist = make_artist(config, image_shape)
        self.evaluator = ThreadPoolExecutor(1)  # beside the device's next call
        self.real: Future[Reference] | None = None
        self.best = Checkpoints(folder / "best", keep=1) if config.evaluation_epochs else None
        self.least_fcd = np.inf

    def run(self, state: TrainState, step: int, seconds: float) -> Outcome:
        config = self.config
        lowered = self.program.lower(state, self.images, jnp.int32(0))
        self._announce(step, lowered)
        started = time.monotonic() - seconds
        metrics = MetricsFile(self.folder / "metrics.jsonl", step)
        images_per_step = config.batch_size * config.method.discriminator_steps
        lines = read_lines(self.folder / "metrics.jsonl")
        self.last_line = lines[-1] if lines else None
        if config.evaluation_epochs:
            classifier = for_data(self.data, lambda text: self.console.print(text, highlight=False, soft_wrap=True))
            self.real = self.evaluator.submit(reference, self.data.held_out_images, self.data.images, classifier)
            found = [line["evaluation"].get("fcd", np.inf) for line in lines if "evaluation" in line]
            self.least_fcd = min(found, default=np.inf)
        pending: Callable[[], None] | None = None
        saved_at, count = time.monotonic(), 1
        try:
            with ProgressDisplay(self.console, config.method_name, config.steps, step, images_per_step) as display:
                if step == 0:
                    self._picture(0.0, self.sampler(state, self.latents))
                program = lowered.compile()
                while step < config.steps and not self.stop.signal:
                    called = time.monotonic()
                    count = min(count, self.per_epoch - step % self.per_epoch, config.steps - step)
                    state, sums = program(state, self.images, jnp.int32(count))
                    step += count
                    if pending:  # read while the device works on the call just made
                        pending()
                    pending = self._report(state, sums, step, started, metrics, display)
                    if step == config.steps or self.stop.signal or time.monotonic() - saved_at > _SAVE_SECONDS:
                        pending()
                        pending = None
                        self.checkpoints.save(state, {"seconds": time.monotonic() - started})
                        saved_at = time.monotonic()
                    took = (time.monotonic() - called) / count
                    count = max(1, min(2 * count, int(_CALL_SECONDS / max(took, 1e-6))))
                if pending:  # a signal between two calls
                    pending()
                    self.checkpoints.save(state, {"seconds": time.monotonic() - started})
        finally:
            metrics.close()
            self.evaluator.shutdown(cancel_futures=True)
            if self.best:
                self.best.close()
        return Outcome(step, finished=step == config.steps)

    def _announce(self, step: int, lowered: Any) -> None:
        config = self.config
        left = config.steps - step
        analysis = lowered.cost_analysis()
        about = f"; about {duration(forecast(analysis['flops'] * left))}" if analysis and "flops" in analysis else ""
        self.console.print(
            f"{config.method_name}: {'continuing at step ' + format(step, ',') + ' of' if step else 'training'} {config.steps:,} "
            f"steps ({config.steps / self.per_epoch:,.4g} epochs) at batch size {config.batch_size} "
            f"on {device_name()}, on {self.data.info['description']}{about}",
            highlight=False,
            soft_wrap=True,
        )

    def _report(
        self, state: TrainState, sums: Any, step: int, started: float, metrics: MetricsFile, display: ProgressDisplay
    ) -> Callable[[], None]:
        """Ask the device now for what the end of an epoch needs; the function returned waits for it and writes it down."""
        config = self.config
        ends = step % self.per_epoch == 0 or step == config.steps
        epoch = round(step / self.per_epoch, 4)
        judged = self.judge(state, self.held_out) if ends else {}
        shown = self.sampler(state, self.latents) if ends and (_shown(epoch) or step == config.steps) else None
        evaluated = self._evaluate(state, step) if ends and self._due(epoch, step) else None

        def write() -> None:
            totals = jax.device_get(sums)
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(totals)):
                raise Diverged(
                    f"{config.method_name}: a loss is not finite between the last checkpoint and step {step:,}; the run stopped "
                    f"there and {self.folder} keeps what came before. Try a smaller --optimizer.learning-rate in another --out."
                )
            if ends:
                updates = step % self.per_epoch or self.per_epoch
                means = jax.tree.map(lambda total: (np.asarray(total, np.float64) / updates).round(6).tolist(), totals)
                line = {
                    "epoch": int(epoch) if epoch == int(epoch) else epoch,
                    "step": step,
                    "images": step * config.batch_size * config.method.discriminator_steps,
                    **means,
                    **{f"held_out_{name}": round(float(value), 6) for name, value in judged.items()},
                    **({"evaluation": evaluated()} if evaluated else {}),
                    "seconds": round(time.monotonic() - started, 3),
                }
                metrics.write(line)
                self.last_line = line
            if shown is not None:
                self._picture(epoch, shown)
            display.update(step, self.last_line)

        return write

    def _due(self, epoch: float, step: int) -> bool:
        every = self.config.evaluation_epochs
        return self.real is not None and (step == self.config.steps or (epoch == int(epoch) and epoch % every == 0))

    def _evaluate(self, state: TrainState, step: int) -> Callable[[], Scores]:
        """Ask the device for samples and score them beside its next call; the function returned waits, and keeps the best state."""
        assert self.real is not None
        count = self.config.evaluation_samples // self.config.method.generators
        batches = self.artist(state, jax.random.key(0), count)
        kept = jax.tree.map(jnp.copy, state)
        awaited = self.real
        last = step == self.config.steps

        def work() -> Scores:
            images, real = np.concatenate(jax.device_get(batches), axis=1), awaited.result()
            if last:
                write_png(
                    self.folder / "neighbours.png",
                    image_grid(beside_nearest(images[:, :_NEIGHBOURS], real), columns=_NEIGHBOURS),
                )
            return score(images, real)

        future = self.evaluator.submit(work)

        def wait() -> Scores:
            scores = future.result()
            if self.best and scores.get("fcd", np.inf) < self.least_fcd:
                self.least_fcd = scores["fcd"]
                self.best.save(kept, {"fcd": scores["fcd"]})
            return scores

        return wait

    def _picture(self, epoch: float, images: jax.Array) -> None:
        write_png(
            self.folder / "samples" / f"epoch-{int(np.ceil(epoch)):04d}.png", image_grid(to_pixels(np.asarray(images)))
        )
