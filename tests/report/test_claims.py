import pytest

from psgjax.report import claims


def compare(psg, sngan):
    return claims.compare([psg], [sngan])


def summaries(accuracies=(0.35, 0.52), epochs=(75, 125), trained=500, gaps=(0.1, 0.2), **changed):
    """A psg's and an sngan's that bear out every claim; `gaps` stands for all four forms of it, `changed` for one."""
    return [
        {
            "finished": True,
            "epochs": trained,
            **{key: changed.get(key, gaps)[side] for key in claims.GAPS},
            "accuracy": accuracies[side],
            "chance": (1 / 3, 1 / 2)[side],
            "convergence_epoch": {"loss": epochs[side], "accuracy": None},
        }
        for side in (0, 1)
    ]


@pytest.mark.parametrize(
    ("claim", "changes", "verdict", "reason"),
    [
        ("loss_gap", {}, "reproduced", None),
        ("loss_gap", {"gaps": (0.19, 0.2)}, "not reproduced", None),
        *(
            ("loss_gap", {key: (0.19, 0.2)}, "inconclusive", f"; not: {claims.GAPS[key]}")
            for key in ("normalised_loss_gap", "calibrated_loss_gap", "normalised_calibrated_loss_gap")
        ),
        (
            "loss_gap",
            {"calibrated_loss_gap": (None, 0.2)},
            "inconclusive",
            "no value, or zero for sngan: calibrated",
        ),
        ("loss_gap", {"gaps": (0.1, 0.0)}, "inconclusive", "no value, or zero for sngan: raw, normalised"),
        ("loss_gap", {"trained": 9}, "inconclusive", "fewer than 10 epochs"),
        ("accuracy", {}, "reproduced", None),
        ("accuracy", {"accuracies": (0.79, 0.52)}, "not reproduced", None),
        ("accuracy", {"accuracies": (0.35, 0.7)}, "not reproduced", None),
        ("accuracy", {"accuracies": (None, 0.5)}, "inconclusive", "an accuracy is missing"),
        ("convergence_epoch", {}, "reproduced", None),
        ("convergence_epoch", {"epochs": (110, 125)}, "not reproduced", None),
        ("convergence_epoch", {"epochs": (None, 125)}, "inconclusive", "the losses of psg do not settle"),
        ("convergence_epoch", {"epochs": (75, None)}, "inconclusive", "the losses of sngan do not settle"),
        ("convergence_epoch", {"epochs": (None, None)}, "inconclusive", "the losses of psg and of sngan do not settle"),
        ("convergence_epoch", {"epochs": (10, 30), "trained": 50}, "inconclusive", "fewer than 125 epochs"),
    ],
)
def test_verdicts_on_the_papers_claims(claim, changes, verdict, reason):
    found = compare(*summaries(**changes))[claim]
    assert found["verdict"] == verdict
    assert (found["reason"] is None) if reason is None else (reason in found["reason"])


def test_nothing_is_said_of_an_unfinished_run():
    psg, sngan = summaries()
    sngan["finished"] = False
    found = compare(psg, sngan).values()
    assert {(claim["verdict"], claim["reason"]) for claim in found} == {("inconclusive", "not every run is finished")}


def test_a_run_from_before_losses_were_calibrated_leaves_the_gap_inconclusive():
    psg, sngan = summaries()
    for summary in (psg, sngan):
        del summary["calibrated_loss_gap"], summary["normalised_calibrated_loss_gap"]
    found = compare(psg, sngan)["loss_gap"]
    assert found["verdict"] == "inconclusive"
    assert found["reason"].endswith(": calibrated, calibrated and normalised")
    assert found["reductions"]["calibrated_loss_gap"] is None


def test_the_reduction_of_each_gap_is_given_as_a_share():
    reductions = compare(*summaries(loss_gap=(0.6, 1.0), normalised_loss_gap=(3.0, 2.0)))["loss_gap"]["reductions"]
    assert list(reductions) == list(claims.GAPS)
    assert list(reductions.values()) == pytest.approx([0.4, -0.5, 0.5, 0.5])


# Values of four seeds around those of `summaries`: half the interval of the mean is 1.84 times the spread.
@pytest.mark.parametrize(
    ("claim", "changes", "spread", "verdict"),
    [
        ("loss_gap", {}, 0.01, "reproduced"),
        ("loss_gap", {}, 0.03, "inconclusive"),
        ("loss_gap", {"gaps": (0.2, 0.2)}, 0.01, "not reproduced"),
        ("accuracy", {}, 0.01, "reproduced"),
        ("accuracy", {}, 0.03, "inconclusive"),
        ("accuracy", {"accuracies": (0.79, 0.52)}, 0.03, "not reproduced"),
        ("convergence_epoch", {}, 5, "reproduced"),
        ("convergence_epoch", {}, 30, "inconclusive"),
        ("convergence_epoch", {"epochs": (140, 125)}, 5, "not reproduced"),
    ],
)
def test_several_seeds_are_judged_by_the_interval_of_their_mean(claim, changes, spread, verdict):
    seeds = []
    for offset in (-spread, -spread, spread, spread):
        psg, sngan = summaries(**changes)
        psg |= {key: psg[key] + offset for key in (*claims.GAPS, "accuracy")}
        psg["convergence_epoch"] = {"loss": psg["convergence_epoch"]["loss"] + offset}
        seeds.append((psg, sngan))
    found = claims.compare(*zip(*seeds, strict=True))[claim]
    assert found["verdict"] == verdict
    assert ("interval of the mean" in (found["reason"] or "")) == (verdict == "inconclusive")
    seeds[2][0]["convergence_epoch"]["loss"] = None
    found = claims.compare(*zip(*seeds, strict=True))["convergence_epoch"]
    assert (found["verdict"], found["psg"]) == ("inconclusive", None)
    assert found["reason"] == "the losses of psg do not settle for every seed"
