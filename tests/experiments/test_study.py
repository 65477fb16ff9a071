"""experiments/study.py: two small runs of each system become one table, and a second start trains nothing again."""

import json

from experiments import study


def test_the_study_makes_its_tables_and_goes_on(tmp_path, monkeypatch, capsys):
    quick = ("--network.name", "mlp", "--network.width", "4", "--batch-size", "500", "--evaluation-epochs", "0")
    monkeypatch.setattr(study, "RUNS", {name: (*own, *quick) for name, own in study.RUNS.items()})
    arguments = ["--epochs", "1", "--seeds", "0", "1", "--out", str(tmp_path / "study")]
    assert study.main(arguments) == 0
    first = (tmp_path / "study" / "results.json").read_text()
    found = json.loads(first)
    assert set(found["methods"]) == {"psg", "sngan", "psg, no gate"}
    assert found["methods"]["psg, no gate"]["figures"]["share of tuples that update D"] == [1.0, 1.0]
    assert found["claims"]["accuracy"]["verdict"] == "inconclusive"  # one epoch
    assert len(found["methods"]["sngan"]["figures"]["accuracy"]) == 2
    assert found["methods"]["psg"]["command"]

    capsys.readouterr()
    assert study.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("finished already") == 3
    assert "| accuracy | " in printed
    assert json.loads((tmp_path / "study" / "results.json").read_text())["methods"] == found["methods"]
