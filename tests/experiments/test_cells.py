"""Cells of an experiment: each done once and kept with what made it, resumed after a stop, done again when it is named."""

import json

import pytest

from experiments import cells
from experiments.cells import Cell
from psgjax.config import ConfigError

COMMAND = "python -m experiments.some"


class Bench:
    """Three cells that count how often they are done; `result` is what they give."""

    def __init__(self, out):
        self.out, self.done, self.said, self.result = out, [], [], 1.0
        self.cells = [Cell(name, {"name": name, "steps": 3}, self.work) for name in ("one", "two", "three")]

    def work(self, folder):
        self.done.append(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state").write_text(str(self.result))
        return {"modes": (self.result, 2)}

    def do(self, *only):
        return cells.do(self.out, self.cells, COMMAND, self.said.append, only)

    def files(self):
        return {str(path.relative_to(self.out)): path.read_text() for path in self.out.rglob("*") if path.is_file()}


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "out")


def test_each_is_done_once_and_its_file_says_what_made_it(bench):
    records = bench.do()
    assert list(records) == bench.done == ["one", "two", "three"]
    record = json.loads((bench.out / "cells" / "two.json").read_text())
    assert record == records["two"]
    assert (record["settings"], record["result"]) == ({"name": "two", "steps": 3}, {"modes": [1.0, 2]})
    assert record["command"] == COMMAND
    assert {"commit", "versions", "device", "processor", "cores", "started", "seconds"} <= record.keys()
    before = bench.files()
    assert bench.do() == records
    assert len(bench.done) == 3
    assert bench.files() == before
    assert bench.said[-1] == "3 of 3 cells are done already"


@pytest.mark.parametrize("killed", [False, True])
def test_after_a_stop_the_others_are_done(bench, killed):
    def stop(folder):
        if killed:
            raise KeyboardInterrupt

    work, bench.cells[1] = bench.cells[1], Cell("two", bench.cells[1].settings, stop)
    if killed:
        with pytest.raises(KeyboardInterrupt):
            bench.do()
    else:
        assert bench.do() is None
        assert bench.said[-1] == "stopped in two; run the same command again to go on"
    first = bench.files()["cells/one.json"]
    bench.cells[1] = work
    assert list(bench.do()) == ["one", "two", "three"]
    assert bench.done == ["one", "two", "three"]
    assert bench.files()["cells/one.json"] == first


def test_a_named_cell_is_done_again_and_the_one_before_is_kept(bench):
    assert list(bench.do("two")) == ["two"]
    bench.do()
    before = bench.files()
    for result, said in ((1.0, "two: the same result as before"), (5.0, "two: not the result of before")):
        bench.result = result
        assert bench.do("two")["two"]["result"] == {"modes": [result, 2]}
        assert bench.said[-1] == said
    after = bench.files()
    assert bench.done == ["two", "one", "three", "two", "two"]
    assert after["cells/two.json.before-1"] == before["cells/two.json"]
    assert (after["runs/two/state"], after["runs/two.before-2/state"]) == ("5.0", "1.0")
    assert all(after[name] == text for name, text in before.items() if "two" not in name)
    assert list(bench.do()) == ["one", "two", "three"]  # what was set aside is no cell


def test_other_settings_damage_and_unknown_names_are_refused_before_anything_is_done(bench):
    bench.do()
    path, before = bench.out / "cells" / "three.json", bench.files()
    with pytest.raises(ConfigError, match=r"unknown cell 'tow'.*Did you mean 'two'\?"):
        bench.do("tow")
    bench.cells[2] = Cell("three", {"name": "three", "steps": 4}, bench.work)
    with pytest.raises(ConfigError, match=r"three\.json was done with other settings: steps: 3 -> 4\."):
        bench.do("one")
    assert bench.files() == before
    for content in ("{", "[]", '{"settings": {}}', ""):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"three\.json is damaged"):
            bench.do()
    assert len(bench.done) == 3


def test_a_folder_of_something_else_is_refused(bench):
    cells.check_out(bench.out)
    (bench.out / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(ConfigError, match="runs is of no run and would be overwritten"):
        cells.check_out(bench.out)
    (bench.out / "cells").mkdir()
    cells.check_out(bench.out)
