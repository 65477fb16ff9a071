"""The loop: updates on the device, metrics as they come, checkpoints, resumption, a clean stop."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from psgjax.config import Config, ConfigError
from psgjax.data.dataset import Dataset
from psgjax.environment import device_name, seconds_per_operation
from psgjax.evaluation.features import Features, Given, chosen
from psgjax.lowering.heaps import SCRATCH, keep_heaps, limit_heaps, trim_heaps
from psgjax.method.epochs import make_run
from psgjax.method.sharding import agreed, gathered, place_images
from psgjax.method.state import Begin, TrainState, abstract, make_init, placed
from psgjax.networks import build, stack
from psgjax.progress import ProgressDisplay, duration
from psgjax.runs import divergence
from psgjax.runs.folder import RunFolder, opened, restore
from psgjax.runs.identity import check_folder, runs_of
from psgjax.runs.metrics import Line, check_lines
from psgjax.shell import Failure, Stop, tell
from psgjax.training.observer import Observer

Tree = Any

_SAVE_SECONDS = 30.0  # at most so much work is lost to a crash
_GROWTH_CALLS = 4  # in which heaps grow: by then they suffice for operations, and what else is made there would stay
_CALL_SECONDS = 4.0  # the length of one call to the device: what a signal may have to wait for, twice
IN_TURN = ("cpu",)  # backends that the convolutions of one run keep busy: batched with others it would be slower


class Diverged(Failure):
    """A metric that is not finite; the message says which, at which step, and how to see more."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: the updates made in all, and whether the run is complete."""

    step: int
    finished: bool

    def stopped(self, name: str, steps: int) -> str:
        """What to say of a run of that name and that length that was stopped."""
        done = (
            f"at step {self.step:,} of {steps:,} of {name} and saved"
            if self.step
            else f"before the first step of {name}"
        )
        return f"stopped {done}; run the same command again to {'go on' if self.step else 'begin'}"


def _unstack(tree: Tree, count: int) -> list[Tree]:
    """The reverse of `networks.stack`."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


def train(
    config: Config,
    data: Dataset,
    folder: Path,
    *,
    seeds: Sequence[int] = (),
    mesh: jax.sharding.Mesh | None = None,
    console: Console | None = None,
    stop: Stop | None = None,
    on_line: Callable[[Line], None] = lambda line: None,
    features: Given = None,
) -> Outcome:
    """Train one run, or one for each seed together, to the end, from the last checkpoint if there is one.

    On one CPU each of several runs has the bits that it would have alone; elsewhere, in one batch, the same up to rounding. Of
    several processes that train together all call this; the first reads and writes the folder.

    Args:
        config: The run; the folder must be free or hold this very run, or these (`check_folder`).
        data: What it trains on and is judged by.
        folder: Receives config.json, env.json, metrics.jsonl, checkpoints/ and samples/; with seeds, seed-N/ for each does.
        seeds: In place of the configuration's one.
        mesh: The devices to spread over (`sharding.make_mesh`); one device where none is given.
        console: Where progress is shown; nowhere if not given.
        stop: Asked once a call to the device; a run that is stopped is saved and can be continued.
        on_line: Called with each line of metrics.jsonl as it is written.
        features: By which samples are compared (`features.chosen`), if not by the usual ones.

    Raises:
        ConfigError: If the folder holds another run, another process trains it, the data are not those it began with, or what it
            holds is damaged; damaged checkpoints alone are set aside, and the last sound one is used.
        Diverged: If a metric is not finite; the last good checkpoint stays, and diverged.safetensors holds the update.
    """
    console, stop = console or Console(quiet=True), stop or Stop()
    _check(config, data)
    writes = jax.process_index() == 0
    if writes:
        check_folder(folder, config, data, seeds)
    given, per_epoch = chosen(features, data.held_out_images), config.steps_per_epoch(len(data.images))
    limit_heaps()
    with ExitStack() as resources:
        wanted = runs_of(folder, config, seeds)
        folders = wanted.items() if writes else ()
        runs = [resources.enter_context(opened(path, each, data, mesh, tell(console))) for path, each in folders]
        name = config.method_name + (f" ({len(wanted)} seeds)" if len(wanted) > 1 else "")
        begin = make_init(config, data.images.shape[1:])
        found = restore(runs, abstract(begin)) if runs else []
        (step,) = agreed(max((int(state.step) for state, _ in found), default=0))
        for run in runs:
            run.on_line = on_line
            check_lines(run.path / "metrics.jsonl", step, per_epoch)
        if step == config.steps:
            tell(console)(f"{name}: finished already, {step:,} steps")
            return Outcome(step, finished=True)
        images_per_step = len(wanted) * config.batch_size * config.method.discriminator_steps
        display = resources.enter_context(ProgressDisplay(console, name, config.steps, step, images_per_step))
        loop = _Loop(config, data, name, runs, len(wanted), mesh, console, stop, per_epoch, given, begin)
        states = [state for state, _ in found] or [begin(jax.random.key(each.seed)) for each in wanted.values()]
        seconds = max((progress["seconds"] for _, progress in found), default=0.0)
        return loop.run(states, step, seconds, display)


def _check(config: Config, data: Dataset) -> None:
    """Refuse, before anything is written, data that the run cannot be trained on, or that differ between processes."""
    data.check(classes=config.evaluation_epochs > 0)
    build(config.network, data.images.shape[1:], 1)  # refuses sides that do not fit
    fingerprint = int(data.info["sha256"][:7], 16)
    if agreed(fingerprint, -fingerprint) != (fingerprint, -fingerprint):
        raise ConfigError(f"the processes read different training images; this one {data.info['description']}.")


class _Loop:
    """One call of `train`. Its program is traced and compiled while all else that there is to begin with is made.

    All runs take the same program: one after the other, or as one stacked state. Only the first of several processes has `runs`.
    """

    def __init__(
        self,
        config: Config,
        data: Dataset,
        name: str,
        runs: list[RunFolder],
        count: int,
        mesh: jax.sharding.Mesh | None,
        console: Console,
        stop: Stop,
        per_epoch: int,
        given: Features | None,
        begin: Begin,
    ) -> None:
        self.config, self.data, self.name, self.runs, self.begin = config, data, name, runs, begin
        self.console, self.stop, self.per_epoch = console, stop, per_epoch
        self.count, self.mesh = count, mesh
        self.images = place_images(data.images, mesh)
        image_shape = data.images.shape[1:]
        self.stacked = count > 1 and (mesh is not None or jax.default_backend() not in IN_TURN)
        self.unstack = jax.jit(_unstack, static_argnums=1)
        self.rate = 0.0 if console.quiet else seconds_per_operation()  # before the compiler takes the processor
        self.worker = ThreadPoolExecutor(1)  # beside the device's calls; at first it compiles their program
        self.observer = Observer(config, data, per_epoch, self.worker, console, given)
        state = abstract(begin, mesh, count if self.stacked else None)
        updates = make_run(config, len(data.images), image_shape, self.stacked, mesh)
        self.lowered = self.worker.submit(updates.lower, state, self.images, jnp.int32(0))
        self.program = self.worker.submit(lambda: self.lowered.result().compile())

    def run(self, states: list[TrainState], step: int, seconds: float, display: ProgressDisplay) -> Outcome:
        config = self.config
        states = [stack(states)] if self.stacked else states
        if self.mesh is not None:
            states = [placed(states[0], self.mesh, self.stacked)]
        pending: Callable[[], None] | None = None
        with ExitStack() as ends:
            ends.callback(self.worker.shutdown, cancel_futures=True)
            self._announce(self.lowered.result(), config.steps - step, len(states))
            started = time.monotonic() - seconds
            for run in self.runs:
                run.begin(step)
            if self.runs:
                self.observer.check_features(self.runs)
            saved_at, calls, count = time.monotonic(), 0, 1
            with self.stop.listening():
                self.observer.begin(self._each(states), step)
                program = self.program.result()
                del self.lowered, self.program  # what was traced is not needed any more
                limit_heaps(SCRATCH)
                keep_heaps()
                trim_heaps()
                while step < config.steps:
                    calls += 1
                    if calls == _GROWTH_CALLS:
                        limit_heaps()
                    called = time.monotonic()
                    count = min(count, self.per_epoch - step % self.per_epoch, config.steps - step)
                    count, due, asked_to_stop = agreed(count, called - saved_at > _SAVE_SECONDS, self.stop.signal)
                    if asked_to_stop:
                        break
                    results = [program(state, self.images, jnp.int32(count)) for state in states]
                    states, sums = map(list, zip(*results, strict=True))
                    step += count
                    if pending:  # read while the device works on the call just made
                        pending()
                    pending = self._report(states, sums, step, started, display)
                    if step == config.steps or due:
                        pending()
                        pending = None
                        self._save(states, time.monotonic() - started)
                        trim_heaps()
                        saved_at = time.monotonic()
                    took = (time.monotonic() - called) / count
                    count = max(1, min(2 * count, int(_CALL_SECONDS / max(took, 1e-6))))
                if pending:  # a signal between two calls
                    pending()
                    self._save(states, time.monotonic() - started)
        return Outcome(step, finished=step == config.steps)

    def _own(self, trees: list[Tree]) -> list[Tree]:
        """What belongs to each run, on one device."""
        trees = trees if self.mesh is None else [gathered(trees[0], self.mesh)]
        return self.unstack(trees[0], self.count) if self.stacked else trees

    def _each(self, states: list[TrainState]) -> list[tuple[RunFolder, TrainState]]:
        """The runs that this process writes, each with its own state."""
        return list(zip(self.runs, self._own(states), strict=False))

    def _save(self, states: list[TrainState], seconds: float) -> None:
        for run in self.runs:  # each keeps two steps: so one that all have is there at any moment
            run.checkpoints.wait()
        for run, state in self._each(states):
            run.save(state, seconds)

    def _announce(self, lowered: Any, left: int, calls: int) -> None:
        if self.console.quiet:
            return  # counting operations takes a tenth of a second from the compiler
        config, step = self.config, self.config.steps - left
        operations = (lowered.cost_analysis() or {}).get("flops")
        about = f"; about {duration(operations * left * calls * self.rate)}" if operations else ""
        tell(self.console)(
            f"{self.name}: {'continuing at step ' + format(step, ',') + ' of' if step else 'training'} {config.steps:,} "
            f"steps ({config.steps / self.per_epoch:,.4g} epochs) at batch size {config.batch_size} "
            f"on {device_name()}, on {self.data.info['description']}{about}"
        )

    def _report(
        self, states: list[TrainState], sums: list[Tree], step: int, started: float, display: ProgressDisplay
    ) -> Callable[[], None]:
        """Ask the device now for what the end of an epoch needs; the function returned waits for it and writes it down."""
        made = [jnp.copy(state.step) for state in states]  # fewer than `step` where an update failed
        ends = step % self.per_epoch == 0 or step == self.config.steps
        asked = [self.observer.end_epoch(run, state, step) for run, state in (self._each(states) if ends else ())]

        def write() -> None:
            totals = jax.device_get(self._own(sums))
            for index, total in enumerate(totals):
                if names := divergence.not_finite(total):
                    raise self._diverged(index, int(self._own(made)[index]), names)
            for finish, total in zip(asked, totals, strict=False):
                finish(total, time.monotonic() - started)
            lines = [run.last_line for run in self.runs if run.last_line]
            display.update(step, _mean(lines) if lines else None)

        return write

    def _diverged(self, index: int, step: int, names: list[str]) -> Diverged:
        """Make one run's updates since its last checkpoint again, up to the one that failed, and keep that one.

        On one device and alone: of runs in one batch or on a mesh, the same up to rounding.
        """
        kept = ""
        for run in self.runs[index : index + 1]:
            images, found = jnp.asarray(self.data.images), run.checkpoints.restore(abstract(self.begin))
            state = found[0] if found else self.begin(jax.random.key(run.config.seed))
            state = divergence.advance(run.config, state, images, step - 1)
            path = run.path / "diverged.safetensors"
            divergence.write(path, run.config, state, divergence.next_batch(run.config, state, images), names)
            kept = f"python -m psgjax replay {shlex.quote(str(path))} shows what happened. "
        return Diverged(
            f"{self.name}: {', '.join(names)} not finite at step {step:,}; the run stopped there and its folder keeps what came "
            f"before. {kept}Try a smaller --optimizer.learning-rate in another --out."
        )


def _mean(lines: Sequence[Line]) -> Line:
    """Epoch and losses of all runs' last lines, averaged: what the display shows."""
    shown = [{key: line[key] for key in ("epoch", "loss")} for line in lines]
    return jax.tree.map(lambda *values: sum(values) / len(values), *shown)
