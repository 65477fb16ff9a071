"""Runs that are unfinished, damaged, diverged or of earlier versions are read as far as they can be, and the report says so."""

import json

import numpy as np
import pytest
import safetensors.numpy
from left_runs import Page, leave_run, metrics, summary
from PIL import Image

from psgjax.config import Config
from psgjax.report import page, results
from psgjax.switches import METHODS


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_of_no_or_one_epoch(tmp_path, epochs):
    run = leave_run(tmp_path, epochs=epochs, snapshots=(0,))
    if not epochs:
        (run / "metrics.jsonl").unlink()
    page.write(tmp_path)
    warnings = summary(tmp_path)["warnings"]
    assert f"psg: the run is unfinished: {70 * epochs} of 840 steps." in warnings
    assert ("psg: metrics.jsonl is missing or empty: nothing was measured." in warnings) == (not epochs)
    assert not summary(tmp_path)["comparison"]


def test_a_run_that_lost_files_or_was_cut_off_while_writing(tmp_path):
    leave_run(tmp_path, "sngan")
    run = leave_run(tmp_path, planned=13, snapshots=(0, 5))
    (run / "env.json").unlink()
    (run / "samples" / "epoch-0000.png").write_bytes(b"\x89PNG cut")
    (run / "samples" / "epoch-0005.png").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 13, "st')
    (tmp_path / "gan").mkdir()
    (tmp_path / "gan" / "config.json").write_text("{")
    page.write(tmp_path)
    found = summary(tmp_path)
    assert found["methods"]["psg"]["epochs"] == 12
    assert found["methods"]["psg"]["data"] is None
    assert [warning.split(",")[0] for warning in found["warnings"]] == [
        "gan: left out",
        "psg: env.json is missing or damaged: data and machine are unknown.",
        "psg: samples/epoch-0000.png is damaged or too large.",
        "psg: no samples were saved.",
        "psg: the run is unfinished: 840 of 910 steps.",
        "sngan: the packaged 5",
    ]


def test_a_run_that_diverged(tmp_path):
    run = leave_run(tmp_path)
    values = {"loss": {"discriminator": float("nan"), "generators": [float("inf"), 1.0]}, "held_out_accuracy": None}
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(metrics(2, epoch, **values)) + "\n" for epoch in (13, 14))
    page.write(tmp_path)
    assert summary(tmp_path)["methods"]["psg"]["loss"] == {"discriminator": None, "generators": [None, 1.0]}
    assert "psg: the losses are not finite at the end: training diverged." in summary(tmp_path)["warnings"]


@pytest.mark.parametrize("lines", [0, 5])
def test_a_run_that_diverged_is_said_to_have_diverged_at_its_step_and_not_to_be_unfinished(tmp_path, lines):
    run = leave_run(tmp_path, epochs=lines)
    leave_run(tmp_path, "sngan")
    record = {"divergence": json.dumps({"report": {"step": 371}})}
    safetensors.numpy.save_file({"x": np.zeros(1)}, run / "diverged.safetensors", record)
    page.write(tmp_path)
    found = summary(tmp_path)
    (said,) = [warning for warning in found["warnings"] if "step" in warning]
    assert said == "psg: training diverged at step 371 of 840; diverged.safetensors holds that update."
    assert [found["methods"][name]["diverged"] for name in ("psg", "sngan")] == [371, None]
    assert found["comparison"]["loss_gap"]["reason"] == "not every run is finished"
    text = " ".join(Page(tmp_path / "report.html").text.split())
    assert "unfinished" not in text.replace("Unfinished runs", "")
    assert text.count("diverged at step 371") == 3


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"{"])
def test_a_damaged_diverged_safetensors_leaves_a_run_unfinished(tmp_path, content):
    (leave_run(tmp_path, epochs=5) / "diverged.safetensors").write_bytes(content)
    page.write(tmp_path)
    assert "psg: the run is unfinished: 350 of 840 steps." in summary(tmp_path)["warnings"]


def test_of_several_seeds_one_that_diverged_is_named(tmp_path):
    for seed in (0, 1):
        run = leave_run(tmp_path, epochs=5, seed=seed)
    record = {"divergence": json.dumps({"report": {"step": 371}})}
    safetensors.numpy.save_file({"x": np.zeros(1)}, run / "diverged.safetensors", record)
    page.write(tmp_path)
    assert summary(tmp_path)["methods"]["psg"]["diverged"] == 371
    assert "psg, of which a seed diverged at step 371; after 5 epochs" in " ".join(
        Page(tmp_path / "report.html").text.split()
    )
    assert any(warning.startswith("psg: seed 1: training diverged") for warning in summary(tmp_path)["warnings"])
    assert "psg: seed 0: the run is unfinished: 350 of 840 steps." in summary(tmp_path)["warnings"]


def test_a_run_that_ends_within_an_epoch_and_was_resumed(tmp_path):
    config = Config(method=METHODS["psg"], steps=860)
    run = leave_run(tmp_path, config=config, snapshots=(0,))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics(2, 12.2857) | {"step": 860}))
    environment = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps(environment | {"resumed": [{"started": "in March"}]}))
    page.write(tmp_path)
    assert summary(tmp_path)["methods"]["psg"]["finished"]
    text = Page(tmp_path / "report.html").text
    assert "after 12.3 epochs" in text
    assert "resumed.1.startedin March" in text


def test_metrics_of_earlier_versions_are_read_under_their_names_of_today(tmp_path):
    run = leave_run(tmp_path, snapshots=(0,))
    evaluation = {"fcd": 1.0, "told_apart": 0.765, "generators": []}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics(2, 13) | {"evaluation": evaluation}) + "\n")
    (loaded,), _ = results.load(tmp_path)
    assert loaded.summary["quality"] == {"fcd": 1.0, "c2st": 0.765, "generators": []}


def test_a_picture_that_is_too_large_is_not_decoded(tmp_path):
    run = leave_run(tmp_path, snapshots=(0,))
    for name in ("samples/epoch-0000.png", "neighbours.png"):
        Image.new("L", (5000, 5000)).save(run / name)
    page.write(tmp_path)
    warnings = summary(tmp_path)["warnings"]
    assert "psg: samples/epoch-0000.png is damaged or too large." in warnings
    assert "psg: neighbours.png is damaged or too large." in warnings


@pytest.mark.parametrize("content", ["3", "[1]", "[" * 100_000])
def test_an_environment_that_is_no_object_is_damaged(content, tmp_path):
    run = leave_run(tmp_path, snapshots=(0,))
    (run / "env.json").write_text(content)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\n" + b"[" * 100_000 + b"\n")
    page.write(tmp_path)
    assert "psg: env.json is missing or damaged: data and machine are unknown." in summary(tmp_path)["warnings"]


def test_a_folder_without_a_run_is_refused_and_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        page.write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_seeds_that_got_less_far_or_cannot_be_read(tmp_path):
    for seed, epochs in ((0, 12), (1, 11)):
        leave_run(tmp_path, seed=seed, epochs=epochs)
    (tmp_path / "psg/seed-2").mkdir()
    (tmp_path / "psg/seed-2/config.json").write_text("{")
    page.write(tmp_path)
    found = summary(tmp_path)
    assert not found["methods"]["psg"]["finished"]
    assert "psg: seed 1: the run is unfinished: 770 of 840 steps." in found["warnings"]
    assert found["warnings"][0].startswith("psg/seed-2: left out, its config.json cannot be read")
