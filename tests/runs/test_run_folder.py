"""The folder of a run while it trains: its best state is that of a line which is there."""

import dataclasses

import jax.numpy as jnp
from conftest import first_state, like, tiny

from psgjax.runs.checkpoint import read, saved_steps
from psgjax.runs.folder import opened

CONFIG = tiny(evaluation_epochs=1, steps=40)


def train(folder, data, begin, *scored):
    """What a run leaves that goes on behind step `begin` and is scored so; the steps of the states in best/."""
    with opened(folder, CONFIG, data, None, print) as run:
        run.begin(begin)
        for step, distance in scored:
            scores = {"fd_mine": distance}
            run.write({"step": step, "evaluation": scores})
            run.offer(dataclasses.replace(first_state(CONFIG), step=jnp.int32(step)), scores)
    return saved_steps(folder / "best")


def test_the_best_state_is_of_a_line_that_is_there(tmp_path, data):
    folder = tmp_path / "run"
    assert train(folder, data, 0, (10, 5.0), (20, 6.0), (30, 1.0)) == [30]
    assert read(folder / "best", like(CONFIG))[1] == {"fd_mine": 1.0}
    assert train(folder, data, 20) == []  # the line of step 30 is lost, and the state of step 10 is gone
    assert train(folder, data, 20, (25, 7.0)) == [25]
    assert train(folder, data, 25, (30, 8.0)) == [25]
    assert train(folder, data, 30, (35, 6.5)) == [35]
