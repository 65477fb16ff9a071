"""The benchmark's arithmetic, its workers and its options, and one race from end to end."""

import dataclasses
import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from experiments import bench
from experiments.peers import Case, Failed, TooSlow, Worker, convolutions, ours, race
from psgjax.config import ConfigError


def test_operations_of_a_layer_are_those_worked_out_by_hand():
    generator, discriminator = ours.layers(Case("psg", width=4))
    assert [layer.operations for layer in generator] == [
        2 * 100 * 7 * 7 * 8,
        2 * 7 * 7 * 8 * 4 * 4 * 4,
        2 * 14 * 14 * 4 * 4 * 4 * 1,
    ]
    assert [layer.operations for layer in discriminator] == [
        2 * 14 * 14 * 4 * 4 * 1 * 4,
        2 * 7 * 7 * 4 * 4 * 4 * 8,
        2 * 7 * 7 * 8 * 1,
    ]


@pytest.mark.parametrize(("method", "expected"), [("psg", 26_038_534_144), ("gan", 15_539_306_496)])
def test_operations_of_the_reference_step_agree_with_xla(method, expected):
    case = Case(method)
    batches = 15 if method == "psg" else 9  # in wide convolutions: three directions of K in generators, of K + 1 in D
    wide = batches * 128 * 2 * 7 * 7 * 128 * 4 * 4 * 64
    assert ours.operations(case) == expected
    assert ours.operations(dataclasses.replace(case, replicas=3)) == 3 * expected
    # XLA's convolutions leave out the taps that fall on padding: two of 28 each way in 14x14 <-> 7x7, the layer that dominates.
    assert ours.xla_operations(case) == pytest.approx(expected * (26 / 28) ** 2, rel=0.03)
    # Minimal filtering: eight multiplications instead of fourteen.
    assert ours.operations(case, done=True) == expected - wide * 6 // 14
    assert ours.xla_operations(case, done=True) == pytest.approx(expected - wide * 6 / 14, rel=0.03)
    assert ours.operations(dataclasses.replace(case, precision="bfloat16"), done=True) == expected


@pytest.mark.parametrize("owner", ["generator", "discriminator"])
@pytest.mark.parametrize("direction", convolutions._DIRECTIONS)
def test_a_convolution_is_timed_on_the_same_arithmetic_inside_and_outside(owner, direction):
    case = Case("psg", width=2, batch_size=2)
    layer = next(layer for layer in ours.layers(case)[owner == "discriminator"] if layer.convolution)
    mine, plain = (convolutions.Convolution(case, owner, layer, direction, plain) for plain in (False, True))
    assert mine.facts["operations"] == layer.operations * (4 if owner == "generator" else 6)
    assert mine.time("inside", 3) > 0
    assert plain.time("outside", 3) > 0
    np.testing.assert_allclose(mine.carry[0], plain.carry[0], rtol=1e-4, atol=1e-4)


def test_a_worker_that_takes_too_long_or_fails_is_ended():
    with pytest.raises(TooSlow, match=r"within 0\.5 s"):
        Worker("time:sleep", 60, limit=0.5)
    with pytest.raises(Failed, match="^ValueError: invalid literal"):
        Worker("builtins:int", "three")
    with pytest.raises(Failed, match="exit status 3"):
        Worker("os:_exit", 3)


def test_what_a_contenders_process_imports_with_the_command_is_not_jax():
    """A contender's process begins with the command's module; jax would count towards PyTorch's memory there."""
    program = "import sys, experiments.bench; print(sorted({'jax', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_spread():
    assert race.spread([4.0, 1.0, 2.0, 3.0, 100.0]) == {
        "median": 3.0,
        "quartiles": [2.0, 4.0],
        "least": 1.0,
        "most": 100.0,
        "rounds": [4.0, 1.0, 2.0, 3.0, 100.0],
    }
    assert race.spread([2.0])["quartiles"] == [2.0, 2.0]


def test_on_a_gpu_replicas_and_batch_sizes_are_swept_to_saturation(monkeypatch):
    def saturated(case, machine, options):
        return [{"images_per_second": 1000.0 * min(case.batch_size, 1024) * case.replicas, "case": case}]

    class Gpu:
        facts = {"platform": "gpu"}  # noqa: RUF012

    monkeypatch.setattr(race, "race", saturated)
    seen = []
    options = bench.parse(["--methods", "psg"])
    race.race_all(Gpu(), options, lambda results: seen.append(results[0]["case"]))
    assert [case.replicas for case in seen[:7]] == [1, 2, 4, 8, 16, 32, 64]
    assert [case.batch_size for case in seen[7:]] == [256, 512, 1024, 2048]


@pytest.mark.long
def test_a_race_from_end_to_end(tmp_path, capsys, monkeypatch):
    contenders = ["psgjax", "torch"] if find_spec("torch") else ["psgjax"]
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    path = tmp_path / "bench.json"
    arguments = ["--methods", "gan", "--width", "4", "--batch-sizes", "4", "--rounds", "2", "--seconds", "0.05"]
    arguments += ["--contenders", *contenders, "--json", str(path), "--profile", str(tmp_path / "trace")]
    assert bench.main(arguments) == 0
    written = json.loads(path.read_text())
    printed = capsys.readouterr().out
    assert {"jax", "flax", "numpy"} <= set(written["versions"])
    assert len(written["load_average"]["begin"]) == len(written["load_average"]["end"]) == 3
    assert written["hardware"]["cores"] >= 1
    assert written["options"]["rounds"] == 2
    assert [result["contender"] for result in written["results"]] == contenders
    for result in written["results"]:
        taken = result["milliseconds"]
        assert len(taken["rounds"]) == 2
        assert 0 < taken["least"] <= taken["median"] <= taken["most"]
        assert result["images_per_second"] == pytest.approx(4000 / taken["median"])
        assert result["operations_per_second"] == pytest.approx(1000 * result["operations"] / taken["median"])
        assert result["share_of_peak"] * result["matmul_peak"]["median"] == pytest.approx(
            result["operations_per_second"]
        )
        assert result["peak_bytes"] > result["imported_bytes"] > 10e6
        assert np.isfinite(result["loss"])
        assert f"\n{result['contender']} " in printed
    assert written["results"][0]["compile_seconds"] > 0
    assert list((tmp_path / "trace").rglob("perfetto_trace.json.gz"))


def test_a_contender_that_takes_too_long_is_reported_and_not_waited_for(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert (
        bench.main(
            ["--methods", "gan", "--contenders", "flax", "--limit", "0.01", "--rounds", "1", "--json", str(path)]
        )
        == 0
    )
    (result,) = json.loads(path.read_text())["results"]
    assert result["note"] == "not built: no answer within 0.01 s"
    assert result["note"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "biggan"], "--methods biggan: known are psg, sngan, gan, "),
        (["--contenders", "keras"], "--contenders keras: known are"),
        (["--network", "resnet", "--contenders", "flax"], "--network resnet with flax: there is none"),
        (["--rounds", "0"], "--rounds 0: it must be a number above 0"),
        (["--limit", "nan"], "--limit nan"),
        (["--batch-sizes", "64", "-1"], "--batch-sizes -1"),
        (["--batch-sizes", "many"], "invalid int value: 'many'"),
        (["--precision", "float8"], "float8"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
        (["--json", "nowhere/at/all.json"], "no folder"),
    ],
)
def test_bad_options_end_with_one_line_and_status_2(arguments, message, refusal):
    assert message in refusal(bench.main, arguments)


def test_convolutions_of_pytorch_are_not_timed():
    with pytest.raises(ConfigError, match="psgjax and flax; --contenders torch names neither"):
        convolutions.time_all(None, bench.Options(methods=("psg",), convolutions=True, contenders=("torch",)), print)


def test_help_says_what_every_option_is(capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all("--" + field.name.replace("_", "-") in shown for field in dataclasses.fields(bench.Options))
