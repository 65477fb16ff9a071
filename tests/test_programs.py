"""The programs that tests share are those that the package makes."""

import jax
import programs
import pytest
from conftest import IMAGE, POINTS, SCHEDULES, SHAPE, same, tiny
from small_runs import timeless, train

from psgjax.method import state as states
from psgjax.switches import METHODS
from psgjax.training import loop


@pytest.mark.parametrize(
    ("name", "before", "shares"), [("choice", "psg", True), ("wgan-gp", "gan", True), ("sngan", "gan", False)]
)
def test_a_state_begun_with_anothers_program_is_its_own(name, before, shares):
    one, other = tiny(name), tiny(before)
    assert (programs.Begun.of(one, ()) == programs.Begun.of(other, ())) == shares
    programs.make_init(other, SHAPE)
    begin, key = programs.make_init(one, SHAPE), jax.random.key(3)
    assert same(begin(key), states.make_init(one, SHAPE)(key))


CHANGES = [{"network": POINTS, "optimizer": SCHEDULES}, {"network": IMAGE, "pack": 2, "generators": 3}]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: " ".join(changes))
def test_every_method_begins_with_what_it_needs(changes):
    for name, method in METHODS.items():
        config = tiny(
            name, **{key: value for key, value in changes.items() if key != "generators" or method.generators > 1}
        )
        whole, shared = (make(config, SHAPE) for make in (states.make_init, programs.make_init))
        assert states.abstract(whole) == states.abstract(shared)


def test_a_run_begins_with_the_packages_own_initialisation(data, tmp_path, monkeypatch):
    config = tiny("choice", steps=2)
    one = train(config, data, tmp_path / "shared")
    monkeypatch.setattr(loop, "make_init", states.make_init)
    assert train(config, data, tmp_path / "own") == one
    assert timeless(tmp_path / "own") == timeless(tmp_path / "shared")
