"""An experiment as a table of cells: each is done once and leaves one file, so that the command can be stopped and run again.

OUT/cells/NAME.json has the cell's settings and result, and command, commit, versions, hardware, start and seconds. OUT/runs/NAME/
is the cell's folder, for a run that it can resume.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import command as commands
from experiments.tables import to_json
from psgjax import schema
from psgjax.config import ConfigError
from psgjax.files import write_atomically

Record = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One result of an experiment and how to get it.

    Attributes:
        name: Of its file.
        settings: Everything that decides the result, as JSON has it.
        work: Given the cell's folder, which need not exist, returns the result, ready for JSON; None if it was stopped.
    """

    name: str
    settings: dict[str, Any]
    work: Callable[[Path], dict[str, Any] | None]


def check_out(out: Path) -> None:
    """Refuse a folder in which something that is no table of cells would be overwritten. Writes nothing.

    Raises:
        ConfigError: With what is in the way.
    """
    commands.check_out(out, (out / "cells").is_dir(), ("results.json", "results.md", "accuracy.png", "runs"))


def read(out: Path, cell: Cell) -> Record | None:
    """The record of a cell that is done; None where it is not.

    Raises:
        ConfigError: If its file cannot be read, or the cell was done with other settings.
    """
    path = _file(out, cell.name)
    if not path.exists():
        return None
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        different, _ = schema.differences(record["settings"], cell.settings), record["result"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is damaged; delete it, and the cell will be done again.") from None
    if different:
        raise ConfigError(
            f"{path} was done with other settings: {'; '.join(different)}. Choose another --out, the same settings, "
            "or delete the file to have the cell done again."
        )
    return record


def done(out: Path, cells: Sequence[Cell]) -> dict[str, Record]:
    """The records of those cells that are done, by name.

    Raises:
        ConfigError: If one cannot be read, or was done with other settings.
    """
    found = {cell.name: read(out, cell) for cell in cells}
    return {name: record for name, record in found.items() if record is not None}


def do(
    out: Path, cells: Sequence[Cell], command: str, say: Callable[[str], None], only: Sequence[str] = ()
) -> dict[str, Record] | None:
    """Do every cell that is not done, one after the other.

    Args:
        out: The experiment's folder.
        cells: In the order in which they are done.
        command: As it was typed.
        say: Hears one line on each cell.
        only: Names of cells to do alone. One that is done is done again, from the beginning; its file and folder of before are
            set aside, and `say` hears whether the result is the same.

    Returns:
        The record of each cell that is done, by name; None if a cell was stopped.

    Raises:
        ConfigError: Before anything is written, for an unknown name in `only`, or a cell that was done with other settings.
    """
    for name in only:
        schema.known("cell", name, tuple(cell.name for cell in cells))
    records = done(out, cells)
    if records:
        say(f"{len(records)} of {len(cells)} cells are done already")
    (out / "cells").mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells, 1):
        before = records.get(cell.name)
        if cell.name not in only if only else before is not None:
            continue
        say(f"cell {number} of {len(cells)}: {cell.name}")
        if only:
            for path in (_file(out, cell.name), _folder(out, cell.name)):
                _set_aside(path)
        record = _done(out, cell, command)
        if record is None:
            say(f"stopped in {cell.name}; run the same command again to go on")
            return None
        records[cell.name] = record
        if before is not None:
            same = before["result"] == record["result"]
            say(f"{cell.name}: {'the same result as' if same else 'not the result of'} before")
    return records


def _done(out: Path, cell: Cell, command: str) -> Record | None:
    """The record of a cell, done now and written to its file; None if it was stopped."""
    from psgjax import environment

    provenance, started = {**environment.provenance(), "command": command}, time.monotonic()
    result = cell.work(_folder(out, cell.name))
    if result is None:
        return None
    seconds = round(time.monotonic() - started, 1)
    text = to_json({"settings": cell.settings, **provenance, "seconds": seconds, "result": result})
    write_atomically(_file(out, cell.name), text)
    record: Record = json.loads(text)
    return record


def _file(out: Path, name: str) -> Path:
    return out / "cells" / f"{name}.json"


def _folder(out: Path, name: str) -> Path:
    return out / "runs" / name


def _set_aside(path: Path) -> None:
    """Rename a file or folder, if it is there, to the first name that is free: NAME.before-1, NAME.before-2 and so on."""
    if path.exists():
        number = 1
        while (aside := path.with_name(f"{path.name}.before-{number}")).exists():
            number += 1
        path.rename(aside)
