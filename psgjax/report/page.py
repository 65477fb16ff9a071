"""A run folder in, its figures, one HTML page and summary.json out.

Everything is read from the files that training left behind, so the report can be drawn again at any time, also of a run that
is still going on, was interrupted, or lost some of its files: the page says what is missing.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from psgjax.files import write_atomically
from psgjax.report import claims, convergence, intervals
from psgjax.report.figures import STYLE, drawn
from psgjax.report.results import Run, load
from psgjax.runs.metrics import distance_name


def write(folder: Path) -> Path:
    """Draw `folder`/figures/*.png and write summary.json and report.html, each complete or not at all.

    Args:
        folder: A run folder: one subfolder per method, in which several seeds have one each, as training leaves them.

    Returns:
        The path of report.html, which holds its figures and refers to no other file.

    Raises:
        FileNotFoundError: If no subfolder holds a config.json that can be read.
    """
    runs, warnings = load(folder)
    warnings += _collect(runs)
    by_name = {run.name: run for run in runs}
    pair = [[seed.summary for seed in by_name[name].seeds] for name in ("psg", "sngan") if name in by_name]
    comparison = claims.compare(*pair) if len(pair) == 2 and len(pair[0]) == len(pair[1]) else {}
    methods = {name: _with_seeds(run) for name, run in by_name.items()}
    summary = {"methods": methods, "comparison": comparison, "warnings": warnings}
    (folder / "figures").mkdir(exist_ok=True)
    figures = {}
    with matplotlib.rc_context(STYLE):
        for name, draw in drawn(runs).items():
            figure, image = draw(runs), io.BytesIO()
            figure.savefig(image, format="png", metadata={"Software": None})
            write_atomically(folder / "figures" / f"{name}.png", image.getvalue())
            figures[name] = base64.b64encode(image.getvalue()).decode(), round(100 * figure.get_figwidth())
    page = _template().render(
        **summary,
        runs=runs,
        evaluated=[run for run in runs if run.evaluations],
        trained_on=sorted({(run.summary["data"] or {"description": "unknown data"})["description"] for run in runs}),
        figures=figures,
        settings=_rows(
            [dataclasses.asdict(run.config) | {"seed": [seed.config.seed for seed in run.seeds]} for run in runs]
        ),
        environment=_rows([run.environment for run in runs]),
        distances=_distances(runs),
        regularisers=sorted({name for run in runs for name in run.summary["regularisers"]}),
        convergence=convergence,
        claims=claims,
        intervals=intervals,
    )
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


@functools.cache
def _template() -> Template:
    """The page, compiled once."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    templates.filters |= {
        "show": _show,
        "percent": _percent,
        "distance": lambda scores: scores.get(distance_name(scores)),
    }
    return templates.get_template("page.html.j2")


def _distances(runs: list[Run]) -> list[tuple[str, str, int]]:
    """The Fréchet distances that were measured: what scores call each, what the page does, and its decimals."""
    names = filter(None, {distance_name(run.summary["quality"] or {}) for run in runs})
    labels = {"fcd": "FCD (Fréchet distance on the classifier's features)"}
    return [(name, labels.get(name, f"Fréchet distance on the features {name[3:]}"), 2) for name in sorted(names)]


def _with_seeds(run: Run) -> dict[str, Any]:
    """A method's part of summary.json: for several seeds the means, half their intervals, and each seed's own values."""
    if len(run.seeds) == 1:
        return run.summary
    own = {str(seed.config.seed): seed.summary for seed in run.seeds}
    return run.summary | {"intervals": intervals.half_widths(run.summary), "seeds": own}


def _collect(runs: list[Run]) -> list[str]:
    """The warnings of all runs, each once, with the methods that it is about."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for text in run.warnings:
            found.setdefault(text, []).append(run.name)
    return [f"{', '.join(names)}: {text}" for text, names in found.items()]


def _rows(columns: list[dict[str, Any]]) -> list[tuple[str, list[str], bool]]:
    """Nested dictionaries as a table's rows: dotted name, the value in each column, whether the columns differ."""

    def flat(value: Any, name: str) -> dict[str, str]:
        if isinstance(value, list):
            value = dict(enumerate(value, 1)) if dict in map(type, value) else " ".join(map(str, value))
        if isinstance(value, dict):
            return {key: text for part, item in value.items() for key, text in flat(item, f"{name}.{part}").items()}
        return {name[1:]: "–" if value is None else str(value)}

    tables = [flat(column, "") for column in columns]
    rows = {name: [table.get(name, "–") for table in tables] for table in tables for name in table}
    return [(name, values, len(set(values)) > 1) for name, values in rows.items()]


def _show(value: Any, digits: int = 3) -> str:
    """A number, or several, as a person reads it, with half its interval; a dash where there is none."""
    if isinstance(value, list):
        return ", ".join(_show(item, digits) for item in value) or "–"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else _with_half(value, digits)


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else _with_half(value, digits, 100) + " %"


def _with_half(value: float, digits: int, factor: int = 1) -> str:
    half = f" ± {factor * value.half:.{digits}f}" if isinstance(value, intervals.Estimate) else ""
    return f"{factor * value:.{digits}f}{half}"
