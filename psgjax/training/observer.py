"""What the end of an epoch asks of a run: D's accuracy on held-out images, samples to look at, their quality.

Each is asked of the device when the epoch's last update has been, and waited for when the next call is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from psgjax.config import Config
from psgjax.data.dataset import Dataset
from psgjax.data.pictures import image_grid, write_png
from psgjax.evaluation.features import Features, of_data
from psgjax.evaluation.score import Reference, Scores, beside_nearest, described, reference, score
from psgjax.method.inference import make_accuracy, make_batch_sampler, make_grid
from psgjax.method.state import TrainState, copied
from psgjax.progress import busy, tracker
from psgjax.runs.folder import RunFolder
from psgjax.shell import tell

Tree = Any

_NEIGHBOURS = 12  # samples of each generator shown above their nearest training images
_JUDGED = 2000  # held-out images on which D's accuracy is taken


def _shown(epoch: float) -> bool:
    """Whether a sample grid is kept of that epoch: 0, 1, 2, 5, 10, 20, 50, ..."""
    return epoch == 0 or (epoch == int(epoch) and str(int(epoch)).rstrip("0") in ("1", "2", "5"))


def _rounded(tree: Tree) -> Tree:
    """Arrays as numbers and lists for JSON, to six decimals; None, which is null there, for what is not finite."""

    def plain(leaf: Any) -> Any:
        numbers = np.asarray(leaf, np.float64).round(6)
        values = np.array(numbers, object)
        values[~np.isfinite(numbers)] = None
        return values.tolist()

    return jax.tree.map(plain, tree)


class Observer:
    """What is seen of runs of one configuration on one data set; images are scored by `worker`, beside the device's next call."""

    def __init__(
        self,
        config: Config,
        data: Dataset,
        per_epoch: int,
        worker: ThreadPoolExecutor,
        console: Console,
        given: Features | None = None,
    ) -> None:
        self.config, self.data, self.per_epoch = config, data, per_epoch
        self.worker, self.console, self.given = worker, console, given
        image_shape = data.images.shape[1:]
        self.held_out = jnp.asarray(data.held_out_images[:_JUDGED])
        self.judge = make_accuracy(config, image_shape)
        self.grid = make_grid(config, image_shape)
        self.sampler = make_batch_sampler(config, image_shape)
        self.real: Future[Reference] | None = None

    def check_features(self, runs: list[RunFolder]) -> None:
        """Refuse to go on with runs whose samples were scored by other features.

        Raises:
            ConfigError: If one was.
        """
        unlabelled = self.data.labels is None or self.data.held_out_labels is None
        name, sha256 = "rotations" if unlabelled else "classifier", None
        if self.given is not None:
            name, sha256 = self.given.name, self.given.sha256
        for run in runs if self.config.evaluation_epochs else ():
            run.check_features(name, sha256)

    def _reference(self, run: RunFolder) -> Reference:
        """The real images with their features, for which a network may be trained on first use, and say so."""
        line, data = tell(self.console), self.data
        classifier, features, why = of_data(data, line, self.given, tracker(self.console))
        if features is None:
            line(f"the quality of samples is not measured: {why}")
        else:
            run.check_features(features.name, features.sha256, line)
        with busy(self.console, "measuring held-out images", plain=False):
            return reference(data.held_out_images, data.images, classifier, described(data), features, why)

    def begin(self, runs: list[tuple[RunFolder, TrainState]], step: int) -> None:
        """The first pictures; and D's judgement, compiled now and not when the first epoch ends."""
        if step == 0:
            for run, state in runs:
                run.picture(0.0, np.asarray(self.grid(state)))
        for _, state in runs[:1]:
            jax.block_until_ready(self.judge(state, self.held_out))

    def end_epoch(self, run: RunFolder, state: TrainState, step: int) -> Callable[[Tree, float], None]:
        """Ask for one run's figures and samples; the function returned takes the epoch's sums and the seconds so far."""
        config, last = self.config, step == self.config.steps
        epoch = round(step / self.per_epoch, 4)
        judged = self.judge(state, self.held_out)
        shown = self.grid(state) if _shown(epoch) or last else None
        due = config.evaluation_epochs and (last or epoch % config.evaluation_epochs == 0)
        evaluated = self._evaluate(run, state, last) if due else None

        def write(totals: Tree, seconds: float) -> None:
            updates = step % self.per_epoch or self.per_epoch
            means = _rounded(jax.tree.map(lambda total: np.asarray(total, np.float64) / updates, totals))
            run.write(
                {
                    "epoch": int(epoch) if epoch == int(epoch) else epoch,
                    "step": step,
                    "images": step * config.batch_size * config.method.discriminator_steps,
                    **means,
                    **{f"held_out_{name}": value for name, value in _rounded(judged).items()},
                    **({"evaluation": evaluated()} if evaluated else {}),
                    "seconds": round(seconds, 3),
                }
            )
            if shown is not None:
                run.picture(epoch, np.asarray(shown))

        return write

    def _evaluate(self, run: RunFolder, state: TrainState, last: bool) -> Callable[[], Scores]:
        """Ask the device for samples and score them beside its next call; the function returned waits, and keeps the best state."""
        self.real = self.real or self.worker.submit(self._reference, run)  # not sooner: pictures come first
        count = self.config.evaluation_samples // self.config.method.generators
        batches = self.sampler(state, jax.random.key(0), count)
        kept = copied(state)
        awaited = self.real

        def work() -> Scores:
            with busy(self.console, "measuring samples", plain=last):
                images, real = np.concatenate(jax.device_get(batches), axis=1), awaited.result()
                if last:
                    write_png(
                        run.path / "neighbours.png",
                        image_grid(beside_nearest(images[:, :_NEIGHBOURS], real), columns=_NEIGHBOURS),
                    )
                return score(images, real)

        future = self.worker.submit(work)

        def wait() -> Scores:
            scores = future.result()
            run.offer(kept, scores)
            return scores

        return wait
