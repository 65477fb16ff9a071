"""Scores as people read them: what was measured against what, a table, and what is left out of it and why."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from psgjax.evaluation.score import Scores
from psgjax.shell import tell

_BESIDE = 3  # generators in a table: more do not fit 80 columns
_ELSEWHERE = (
    "samples",
    "reference",
    "reference_description",
    "reference_sha256",
    "classifier",
    "features",
    "features_sha256",
    "features_note",
    "generators",
    "left_out",
    "notes",
)


def show(scores: Scores, images: Path, console: Console) -> None:
    """What was measured, of all images and of each generator, against what, and what is left out."""
    say = tell(console)
    say(f"{images}: {scores['samples']:,} images")
    count, sha256 = scores["reference"], scores["reference_sha256"]
    say(f"against {scores['reference_description']}: {count:,} images, SHA-256 {sha256[:12]}")
    if "classifier" in scores:
        say(f"with the classifier whose weights have the SHA-256 {scores['classifier']}")
    if "features" in scores:
        say(f"on the features {scores['features']}, SHA-256 {scores['features_sha256'][:12]}")
    console.width = max(console.width, 80)  # a narrower terminal wraps lines, and cuts none
    for table in tables(scores):
        console.print(table)
    reasons: dict[str, list[str]] = {}
    for name, reason in scores["left_out"].items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        say(f"left out: {', '.join(names)}: {reason}")


def tables(scores: Scores) -> list[Table]:
    """The scores as tables that fit 80 columns: a column for all images, and one for each of at most three generators."""
    generators = scores.get("generators", [])
    groups = [generators[i : i + _BESIDE] for i in range(0, len(generators), _BESIDE)] or [[]]
    result = []
    for i, group in enumerate(groups):
        names = [f"gen. {_BESIDE * i + j + 1}" for j in range(len(group))]
        columns = [_rows(scores), *map(_rows, group)]
        table = Table("", *(["all"] if i == 0 else []), *names, box=box.SIMPLE_HEAD)
        for column in table.columns[1:]:
            column.justify = "right"
        for name in columns[0] if i == 0 else columns[1]:
            cells = [column.get(name, "") for column in (columns if i == 0 else columns[1:])]
            table.add_row(name, *cells)
        result.append(table)
    return result


def _rows(scores: Scores) -> dict[str, str]:
    """The text of each number, of a histogram one for each class."""
    rows: dict[str, str] = {}
    for name, value in scores.items():
        if isinstance(value, list) and name == "histogram":
            rows |= {f"class {i}": f"{100 * share:.1f} %" for i, share in enumerate(value)}
        elif name not in _ELSEWHERE:
            rows[name] = "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return rows
