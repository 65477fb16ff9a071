"""Means over seeds, and tables of them: on a terminal, in Markdown, and every number in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from psgjax.files import write_atomically


class Table(NamedTuple):
    """A table as people read it: all of its cells are text."""

    title: str
    header: list[str]
    rows: list[list[str]]


def mean(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Mean and standard deviation over the seeds that have a value, and the number of these seeds."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "seeds": len(known),
    }


def show_mean(value: dict[str, Any], seeds: int, scale: float = 1, digits: int = 1) -> str:
    """A mean as a person reads it: 6.3 ± 0.5, with the number of seeds where some have no value."""
    if value["mean"] is None:
        return "–"
    text = f"{scale * value['mean']:.{digits}f}"
    text += f" ± {scale * value['std']:.{digits}f}" if value["std"] is not None else ""
    return text if value["seeds"] == seeds else f"{text} ({value['seeds']} of {seeds} seeds)"


def show(console: Console, table: Table) -> None:
    """Print a table with all of its text: folded on a narrow terminal, as wide as need be in a file."""
    shown = RichTable(title=table.title, title_justify="left")
    for index, column in enumerate(table.header):
        shown.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    if not console.is_terminal:
        console.width = 140
    console.print(shown)


def markdown(table: Table) -> str:
    """The table in Markdown."""
    lines = [table.header, ["---", *["---:"] * (len(table.header) - 1)], *table.rows]
    return f"## {table.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def to_json(record: Any) -> str:
    """JSON for people: indented, but a list of plain values is one line."""
    text = json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False)
    return re.sub(r"\[[^][{}]*\]", lambda match: f"[{' '.join(match.group()[1:-1].split())}]", text) + "\n"


def write(out: Path, record: dict[str, Any], paragraphs: Sequence[str | Table]) -> None:
    """Write results.md, the record's command and then the paragraphs, and results.json, the record, to a folder made if need be."""
    out.mkdir(parents=True, exist_ok=True)
    texts = [markdown(part) if isinstance(part, Table) else f"{part}\n" for part in paragraphs]
    write_atomically(out / "results.md", "\n".join([f"`{record['command']}`\n", *texts]))
    write_atomically(out / "results.json", to_json(record))
