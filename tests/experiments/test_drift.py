"""Who draws what: the shares and what is said of them by hand, and the command from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from experiments import drift

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def test_shares_and_what_is_said_of_them_by_hand():
    centres = np.array([[0.0, 0], [10, 0], [0, 10]])
    first, second = np.repeat(centres[:2], [3, 1], 0), np.repeat(centres[:2], [1, 3], 0)
    found = drift.shares(np.stack([[first, second], [first, first]]).astype(np.float32) + 0.3, centres)
    np.testing.assert_array_equal(found, [[0.75, 0.25, 0.5], [0.5, 0.5, 0.5]])  # nobody draws the third
    over = np.array([[[0.0, 1.0], [0.1, 0.8], [0.2, 0.4], [0.9, 0.0]]])  # one seed, four checkpoints, two modes
    said = [float(measure(over)[0]) for measure in drift.MEASURES.values()]
    assert said == pytest.approx([0.9, 0.4, 100 * (0 + 0.5 + 0.5) / 3, 50])


def test_the_command_end_to_end(capsys):
    tiny = ["--steps", "5", "--every", "2", "--seeds", "2", "--points", "200", "--samples", "50", "--out", "out"]
    assert drift.main([*tiny, "--rows", "psg-ungated"]) == 0
    record = json.loads(Path("out/cells/psg-ungated.json").read_text())
    assert record["settings"]["optimizer"]["schedule"] == "constant"
    assert record["result"]["updates"] == [2, 4, 5]
    assert np.array([seed["shares"] for seed in record["result"]["per_seed"]]).shape == (2, 3, 25)
    assert "specialisation" in Path("out/results.md").read_text()
    assert imread("out/drift.png").shape[1] > 500
    assert drift.main([*tiny, "--rows", "r3gan"]) == 2
    assert "--rows r3gan has 1 generators" in capsys.readouterr().err
