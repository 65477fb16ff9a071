"""Each row's own setting: the rule by hand, the grid from end to end, and the recipe with what it chose."""

import json
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from experiments import recipe, recipe_rows, recipe_tasks, tuning
from experiments.recipe_rows import Setting
from psgjax.config import ConfigError

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

TINY = ["--mixture", "ring", "--steps", "4", "--seeds", "2", "--points", "200", "--samples", "50", "--out", "out"]


def plane(options=None):
    return recipe_tasks.plane("ring", options or recipe.Options(), 4, Console(quiet=True))


def results(quality, *values):
    return [{"high_quality": None if value is None else quality, "reverse_kl": value} for value in values]


def test_the_rule_by_hand():
    points = {
        Setting(1.0, 0.0, None): results(0.9, 0.1, None),  # of one seed alone
        Setting(2.0, 0.0, None): results(0.1, 0.3, 0.3),  # less than half of the best quality
        Setting(3.0, 0.0, None): results(0.3, 0.5, 0.7),
        Setting(4.0, 0.0, None): results(0.5, 0.6, 0.6),  # of equal means it is the first
    }
    assert tuning.best(points) == Setting(3.0, 0.0, None)
    assert tuning.best({Setting(4.0, 0.0, None): results(0, None, None)}) == Setting(4.0, 0.0, None)


def test_the_declared_grid_has_every_combination_and_weights_for_penalties_alone():
    found = tuning.grid(tuning.Options(), plane())
    assert [len(points) for points in found.values()] == [4, 4, 4, 4, 8, 8, 8, 8]
    for row, points in found.items():
        for (learning_rate, beta1, penalty), config in points.items():
            assert (config.optimizer.learning_rate, config.optimizer.beta1) == (learning_rate, beta1)
            assert config.method.regularisers == ((("r1", penalty), ("r2", penalty)) if penalty else ())
            assert config.method.generators == recipe_rows.configuration(row, plane()).method.generators
    (config,) = (
        tuning.grid(tuning.Options(rows=("wgan-gp",), learning_rates=(1e-3,), beta1s=(0.5,)), plane())["wgan-gp"][
            Setting(1e-3, 0.5, 0.1)
        ],
    )
    assert config.method.regularisers == (("gradient-penalty", 1.0),)  # a factor on its paper's 10
    options = tuning.Options()
    assert (options.seed, options.seeds) == (1000, 3)  # none that the recipe reports


def test_the_grid_from_end_to_end_and_the_recipe_with_its_choice(capsys):
    grid = ["--rows", "gan-r1r2", "--learning-rates", "3e-3", "--beta1s", "0", "--penalties", "0.1", "1"]
    assert tuning.main([*TINY, *grid]) == 0
    names = sorted(path.stem for path in Path("out/cells").glob("*"))
    assert names == ["ring-gan-r1r2-0.003-0-0.1", "ring-gan-r1r2-0.003-0-1"]
    record = json.loads(Path("out/tuned.json").read_text())
    chosen = record["rows"]["gan-r1r2"]
    assert record["command"].startswith("python -m experiments.tuning --mixture ring")
    assert chosen["penalty"] in (0.1, 1.0)
    assert (chosen["learning_rate"], chosen["beta1"]) == (0.003, 0.0)
    text = Path("out/results.md").read_text()
    assert text.count("| gan-r1r2 | 0.003 | 0 |") == 3  # its own, and every point
    assert imread("out/penalties.png").shape[1] > 500
    assert tuning.main([*TINY, *grid]) == 0
    assert "2 of 2 cells are done already" in capsys.readouterr().out

    options = recipe.Options(rows=("gan-r1r2", "gan-r1r2-wide"), tuned=Path("out/tuned.json"))
    config, wide = recipe.configured(options, plane()).values()
    assert wide.optimizer == config.optimizer  # a row of its own takes its method's
    assert config.method.regularisers == (("r1", chosen["penalty"]), ("r2", chosen["penalty"]))
    assert (config.optimizer.learning_rate, config.optimizer.schedule) == (0.003, "linear")
    assert recipe_tasks.settings(plane(), options, config)["optimizer"]["learning_rate"] == 0.003


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("[]", "cannot be read"),
        ('{"rows": {"gan": {"learning_rate": 0.1}}}', "cannot be read"),
        ('{"rows": {"psg": {"learning_rate": 0.1, "beta1": 0, "penalty": null}}}', "unknown tuned row 'gan'"),
        ('{"rows": {"gan": {"learning_rate": -1, "beta1": 0, "penalty": null}}}', "optimizer.learning_rate"),
    ],
)
def test_a_file_that_is_no_choice_is_refused(content, message):
    if content is not None:
        Path("tuned.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        recipe.configured(recipe.Options(rows=("gan",), tuned=Path("tuned.json")), plane())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "gann"], "unknown row 'gann'"),
        (["--beta1s", "1"], "optimizer.beta1"),
        (["--penalties"], "--penalties names none"),
        (["--steps", "0"], "steps is 0"),
        (["--cells", "ring-gan"], "unknown cell"),
    ],
)
def test_bad_options_are_one_line_and_exit_status_2(arguments, message, refusal):
    assert message in refusal(tuning.main, [*TINY, *arguments])
    assert not Path("out").exists()
