"""The report's page: what it holds, that it stands alone, and that text in it stays text."""

import base64
import io
import json
import re
from pathlib import Path

import pytest
from left_runs import WARNING, Page, leave_run, metrics, summary
from matplotlib.image import imread

from psgjax.config import Config, Data
from psgjax.report import figures, page
from psgjax.switches import METHODS


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("sngan", "psg"):
        leave_run(folder, name)
    assert page.write(folder) == folder / "report.html"
    return folder


def test_all_files_are_there_and_no_other(finished):
    left = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    made = {path for path in left if not path.startswith(("psg/", "sngan/"))}
    assert made == {"report.html", "summary.json"} | {f"figures/{name}.png" for name in figures.FIGURES}
    for name in ("loss", "accuracy", "samples", "branches"):
        image = imread(finished / "figures" / f"{name}.png")
        assert min(image.shape[:2]) > 200
        assert image[..., :3].std() > 0


def test_summary_has_the_figures_of_every_method(finished):
    found = summary(finished)
    assert list(found["methods"]) == ["psg", "sngan"]
    psg = found["methods"]["psg"]
    assert psg["loss"]["generators"] == pytest.approx([1.1, 1.2])
    assert psg["steps_per_second"] == pytest.approx(35)
    assert psg["finished"]
    assert psg["data"]["train_images"] == 4480
    assert found["comparison"]["accuracy"] == {
        "verdict": "not reproduced",
        "reason": None,
        "psg": 0.8,
        "sngan": 0.8,
    }
    assert found["warnings"] == [f"psg, sngan: {WARNING}"]


def test_the_page_shows_what_was_found(finished):
    text = " ".join(Page(finished / "report.html").text.split())
    assert "psg and sngan were trained on MNIST, a subset." in text
    assert "chose the real image out of 3 in 80.0 % of cases, where a guess is right in 33.3 %" in text
    assert "(840 updates in 0.5 minutes)" in text
    assert "0 reproduced, 1 not reproduced, 2 inconclusive" in text
    assert "raw 0.067 against 0.017, 300 % larger" in text
    assert "calibrated 1.500 against 1.000, 50 % larger" in text
    assert (
        "1.500 where the discriminator's outputs are divided by their best temperature, 0.250 (normalised: 1.365)"
        in text
    )
    assert "Under the gate (psg) a small loss gap is no sign of balance" in text
    assert "method.spectral_norm differs" in text
    assert "batch_size differs" not in text
    assert text.index(WARNING) < text.index("were trained on")


def test_the_page_refers_to_nothing_outside_itself(finished):
    shown = Page(finished / "report.html")
    for tag, attributes in shown.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        assert not {"href", "srcset", "action", "data"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
    source = (finished / "report.html").read_text()
    assert not re.search(r"https?:|@import|url\(", source)
    assert str(finished) not in source


def test_the_page_embeds_the_figures_and_describes_them(finished):
    images = [attributes for tag, attributes in Page(finished / "report.html").tags if tag == "img"]
    for name, attributes in zip(("loss", "accuracy", "samples", "branches"), images, strict=True):
        content = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        assert content == (finished / "figures" / f"{name}.png").read_bytes()
        assert imread(io.BytesIO(content)).size
        assert "psg" in attributes["alt"]


def test_the_page_can_be_read_aloud(finished):
    tags = Page(finished / "report.html").tags
    assert ("html", {"lang": "en"}) in tags
    assert all(attributes.get("scope") in {"row", "col"} for tag, attributes in tags if tag == "th")


def test_drawn_again_it_is_the_same(finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    page.write(finished)
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_of_images_without_labels_the_page_has_what_was_measured_and_why_the_rest_is_left_out(tmp_path):
    left_out = {"histogram": "there are no labels", "missing_classes": "there are no labels", "c2st": "one generator"}
    scores = {"samples": 2000, "fd_rotations": 3.394, "coverage": 0.5, "kid": 0.0001, "left_out": left_out}
    scores["features_note"] = "features of a network that turns"
    leave_run(tmp_path, evaluation=scores | {"generators": [{"fd_rotations": 4.25, "coverage": 0.4}] * 2})
    page.write(tmp_path)
    shown = Page(tmp_path / "report.html")
    text = " ".join(shown.text.split())
    assert "Fréchet distance on the features rotations3.39" in text
    assert "Fréchet distance on the features rotations, of each generator4.25, 4.25" in text
    assert "Measured onfeatures of a network that turns" in text
    assert "Left outc2st: one generator; histogram, missing_classes: there are no labels" in text
    assert not re.search("FCD \\(|Classes missing|Classifier score|Classes among|nearest training", text)
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert drawn == {*figures.FIGURES, "quality"}
    assert "psg ends at 3.39." in [attributes["alt"] for tag, attributes in shown.tags if tag == "img"][-1]


def test_every_method_fits(tmp_path):
    for name in METHODS:
        leave_run(tmp_path, name, snapshots=(0,))
    page.write(tmp_path)
    assert list(summary(tmp_path)["methods"]) == list(METHODS)


def poisoned(tree, attack):
    """The same tree, the attack in the place of every string, and for every key of a dictionary that has one."""
    if isinstance(tree, dict):
        return {key: poisoned(value, attack) for key, value in tree.items()} | {attack: attack}
    return (
        [poisoned(value, attack) for value in tree]
        if isinstance(tree, list)
        else attack
        if isinstance(tree, str)
        else tree
    )


def test_hostile_text_stays_text(tmp_path):
    attack = "\"'<script>alert('1')<"  # (a folder's name holds no slash)
    data = Data(source="idx", dir=Path(attack))
    config = Config(method_name=attack, method=METHODS["psg"], steps=840, data=data)
    run = leave_run(tmp_path, attack + " $x_{", config=config, snapshots=(0,))
    environment = json.loads((run / "env.json").read_text()) | {"resumed": [{"command": ""}], "commit": ""}
    (run / "env.json").write_text(json.dumps(poisoned(environment, attack)))
    evaluation = {
        "fcd": 1.0,
        "classifier": "",
        "histogram": [0.5, 0.5],
        "generators": [{"fcd": 1.0, "histogram": [1, 0]}],
    }
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(poisoned(metrics(2, 13) | {"evaluation": evaluation, "note": ""}, attack)) + "\n")
    (run / "samples" / f"epoch-{attack}.png").write_bytes(b"")
    (tmp_path / f"other{attack}").mkdir()
    (tmp_path / f"other{attack}" / "config.json").write_text(json.dumps({attack: attack}))
    page.write(tmp_path)
    shown = Page(tmp_path / "report.html")
    assert "script" not in {tag for tag, _ in shown.tags}
    assert not any(name.startswith("on") for _, attributes in shown.tags for name in attributes)
    assert attack + " $x_{" in shown.text
    assert shown.text.count(attack) > 20
    assert sum(attack in attributes["alt"] for tag, attributes in shown.tags if tag == "img") >= 4
