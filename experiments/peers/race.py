"""The race of `experiments.bench`: all contenders train the same case, round by round; and the cases of a run."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from experiments.peers import Case, Failed, TooSlow, Worker

if TYPE_CHECKING:
    from experiments.bench import Options

CONTENDERS = {
    "psgjax": "experiments.peers.ours:Psgjax",
    "flax": "experiments.peers.plain:FlaxPlain",
    "torch": "experiments.peers.pytorch:PyTorch",
    "torch-compile": "experiments.peers.pytorch:compiled",
}
_REPLICAS = (1, 2, 4, 8, 16, 32, 64)
_LARGEST_BATCH = 16_384


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
    """A contender in a race: its worker, its times, and the reason why it dropped out, if it did."""

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
        """The seconds of one round, or None for a contender that dropped out."""
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
        """Make one round's steps, unless the contender has used up its time."""
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
    """Time every contender on one case, round by round: one result per contender, in the order of `options.contenders`."""
    counted = machine.call("operations", case)
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
        result |= {**counted, "matmul_peak": spread(peaks)}
        if entrant.times:
            milliseconds = spread(entrant.times)
            rate = 1e3 * counted["operations"] / milliseconds["median"]
            result |= {
                "milliseconds": milliseconds,
                "images_per_second": 1e3 * case.batch_size * case.replicas / milliseconds["median"],
                "operations_per_second": rate,
                "share_of_peak": rate / statistics.median(peaks),
            }
        results.append(result)
    return results


def race_all(machine: Worker, options: Options, report: Callable[[list[dict[str, Any]]], None]) -> None:
    """Every case asked for; on a GPU, if none is, replicas in powers of two, and batch sizes until the gain is below 5 %."""
    sweeps = machine.facts["platform"] != "cpu"

    def rate(method: str, batch_size: int, replicas: int) -> float:
        results = race(
            Case(method, options.width, batch_size, replicas, options.precision, options.network), machine, options
        )
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
