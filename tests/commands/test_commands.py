"""What every command promises: seeds and outputs are checked before the work, Ctrl-C is one line, a table comes before its file."""

import errno
from pathlib import Path

import pytest

import psgjax
from experiments import bench, footprint, soak, tpu, train_classifier
from psgjax.commands import evaluate as evaluation
from psgjax.commands import replay, sample
from psgjax.config import ConfigError
from psgjax.runs import divergence

RUN = "runs/mnist/psg"


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def never(*arguments):
    raise AssertionError("the work began")


@pytest.mark.parametrize("seed", ["-1", str(2**32), str(2**64)])
def test_seeds_that_jax_would_take_modulo_are_refused(seed, capsys):
    for main in (sample.main, evaluation.main):
        assert main([RUN, "--seed", seed]) == 2
        assert capsys.readouterr().err == f"error: seed is {seed}; it must be a whole number from 0 to 4294967295.\n"
    assert train_classifier.main(["--seed", seed]) == 2
    with pytest.raises(ConfigError, match="seed is"):
        sample.sample(None, None, (8, 8, 1), 1, int(seed))


def test_a_home_is_found_in_every_path_and_addresses_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    found = []
    monkeypatch.setattr(sample, "_write", lambda options: str(found.append(options)))
    assert sample.main(["~/run", "--out", "~/a.png"]) == 0
    assert sample.main(["~/run", "--export", "~/a.stablehlo"]) == 0
    home = tmp_path / "home"
    assert [options.run for options in found] == [home / "run"] * 2
    assert (found[0].out, found[1].export) == (home / "a.png", home / "a.stablehlo")
    assert bench.parse(["--json", "~/x.json", "--profile", "~/x"]).json == home / "x.json"
    for given, name in ((["gs://a/b"], "images"), (["x", "--json", "gs://a/b"], "--json")):
        assert evaluation.main(given) == 2
        assert capsys.readouterr().err.startswith(f"error: {name} gs://a/b is not on this machine; ")
    assert evaluation.main(["x", "--data.dir", "~nobody-here/x"]) == 2
    assert "--data.dir ~nobody-here/x: there is no home folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [home]


def test_every_command_line_is_parsed_in_one_place():
    root = Path(psgjax.__file__).parents[1]
    files = [*root.glob("psgjax/**/*.py"), *root.glob("experiments/*.py")]
    parsing = {path.name for path in files if "= tyro.cli(" in path.read_text("utf-8")}
    assert parsing == {"line.py", "footprint.py"}  # the latter's are constants


def test_a_file_that_cannot_be_written_is_refused_before_the_work(monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "evaluate", never)
    monkeypatch.setattr(footprint, "measure", never)
    monkeypatch.setattr(tpu, "compile_for", never)
    for main, arguments in ((evaluation.main, [RUN]), (footprint.main, []), (tpu.main, [])):
        assert main([*arguments, "--json", "none/x.json"]) == 2
        assert capsys.readouterr().err.startswith(
            "error: --json none/x.json lies in a folder that does not exist; give "
        )


def test_the_table_is_shown_though_its_file_cannot_be_written(tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    scores = {
        "samples": 60,
        "fcd": 1.25,
        "reference": 9,
        "reference_sha256": "0" * 64,
        "reference_description": "r",
        "left_out": {},
    }
    monkeypatch.setattr(evaluation, "evaluate", lambda options, console: scores)
    monkeypatch.setattr(evaluation, "write_atomically", full)
    monkeypatch.setenv("PATH", "")  # nor is git missed
    assert evaluation.main(["[bold]a:smile:", "--json", "x.json"]) == 2
    out, error = capsys.readouterr()
    assert "1.25" in out
    assert "[bold]a:smile:" in out
    assert error == "error: [Errno 28] No space left on device: 'x.json'\n"
    monkeypatch.undo()
    assert not (tmp_path / "x.json").exists()


def test_ctrl_c_is_one_line_whatever_is_at_work(monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "load", interrupt)
    monkeypatch.setattr(evaluation, "evaluate", interrupt)
    monkeypatch.setattr(divergence, "replay", interrupt)
    monkeypatch.setattr(soak, "run", interrupt)
    commands = (sample.main, [RUN]), (evaluation.main, [RUN]), (replay.main, ["x"]), (soak.main, [])
    for main, arguments in commands:
        assert main(arguments) == 130
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("stopped")
        assert error.count("\n") == 1
