"""What the main command refuses: bad options, damaged data, folders that hold something else."""

import gzip
import re

import pytest
from small_mnist import SMALL, main, write_idx

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

# Arguments, and what the one line on standard error must say. {idx} is a folder of good files.
BAD = [
    (["--methods", "psgg"], "unknown method 'psgg'; known are psg, sngan.* Did you mean 'psg'"),
    (["--methods"], "--methods names none"),
    (["--data.dir", "missing"], "missing"),
    (["--data.source", "idx", "--data.dir", "empty"], "empty"),
    (["--data.source", "idx"], "--data.dir"),
    (["--data.dir", "{idx}", "--batch-size", "65"], "batch_size 65 .* use a --batch-size of at most 64"),
    (["--steps", "0"], "steps is 0; it must be a whole number of at least 1"),
    (["--steps", "-5"], "steps is -5"),
    (["--epochs", "0"], "epochs is 0; it must be a whole number of at least 1"),
    (["--epochs", "1", "--steps", "1"], "give one of them"),
    (["--seed", "0", "--seeds", "0", "1"], "--seed 0 and --seeds 0 1 are both given; give one of them"),
    (["--seeds", "0", "1", "0"], "--seeds 0 1 0: give one or more, each once"),
    (["--seeds"], "--seeds names none"),
    (["--data.dir", "{idx}", "--seeds", "0", "-1"], "seed is -1; it must be a whole number from 0"),
    (["--optimizer.learning-rate", "0"], "learning_rate is 0.0; it must be a finite number above 0"),
    (["--optimizer.learning-rate", "-1e-3"], "learning_rate is -0.001"),
    (["--optimizer.learning-rate", "nan"], "learning_rate is nan"),
    (["--optimizer.learning-rate", "inf"], "learning_rate is inf"),
    (["--methods", "gan", "--method.scores", "softmax", "--method.loss", "hinge"], "only cross-entropy optimises"),
    (["--methods", "wgan-gp", "--method.gate", "triplet"], "no choice to gate by"),
    (["--methods", "mad-gan", "--method.generators", "1"], "needs at least two"),
    (["--data.dir", "{idx}", "--out", "a-file"], "a-file is a file; it must name a folder"),
    (["--data.dir", "{idx}", "--out", "a-file/sub"], "a-file"),
    (["--data.dir", "{idx}", "--out", "thesis"], "thesis/report.html is of no run and would be overwritten"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_one_line_and_status_2_and_writes_nothing(arguments, message, idx, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a-file").write_text("precious")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/report.html").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    assert main(*(str(argument).format(idx=idx) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    assert re.search(message, captured.err)
    assert "Traceback" not in captured.err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "a-file").read_text() == "precious"


def damage(name, change):
    def apply(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


def gzipped(change):
    def apply(folder):
        path = folder / "train-images-idx3-ubyte"
        path.with_name(path.name + ".gz").write_bytes(change(gzip.compress(path.read_bytes())))
        path.unlink()

    return apply


DAMAGE = {
    "a truncated gzip": (gzipped(lambda data: data[:-100]), "train-images-idx3-ubyte.gz"),
    "a corrupt gzip": (gzipped(lambda data: data[:200] + b"\0" * 50 + data[250:]), "train-images-idx3-ubyte.gz"),
    "a wrong magic number": (damage("train-images-idx3-ubyte", lambda data: b"\0\0\x08\x09" + data[4:]), "magic"),
    "too few bytes": (damage("train-images-idx3-ubyte", lambda data: data[:-1]), "train-images-idx3-ubyte"),
    "counts that disagree": (lambda folder: write_label_count(folder, 63), "63"),
    "an unsupported size": (lambda folder: write_idx(folder, side=27), "27"),
    "a missing file": (lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(), "t10k-labels-idx1-ubyte"),
}


def write_label_count(folder, count):
    header = b"".join(int(n).to_bytes(4, "big") for n in (2049, count))
    (folder / "train-labels-idx1-ubyte").write_bytes(header + bytes(count))


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_data_are_refused(case, tmp_path, capsys):
    folder = write_idx(tmp_path / "data")
    break_it, message = DAMAGE[case]
    break_it(folder)
    assert main("--data.source", "idx", "--data.dir", folder, *SMALL, "--network.name", "dcgan") == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "runs").exists()


def test_data_that_change_between_start_and_resumption_are_refused(tmp_path, capsys):
    arguments = (
        "--steps",
        "1",
        "--data.source",
        "idx",
        "--data.dir",
        write_idx(tmp_path / "data"),
        "--methods",
        "gan",
        *SMALL,
    )
    assert main(*arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.name != "lock"}
    damage("train-images-idx3-ubyte", lambda data: data[:-1] + bytes([data[-1] ^ 1]))(tmp_path / "data")
    assert main(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert "the training images are not those that runs/mnist/gan began with" in error
    assert "\n" not in error
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.name != "lock"} == before


def test_an_output_folder_that_cannot_be_written(idx, capsys):
    assert main("--data.dir", idx, "--out", "/proc/nothing/here", *SMALL) == 2
    error = capsys.readouterr().err.strip()
    assert "/proc/nothing" in error
    assert "\n" not in error
