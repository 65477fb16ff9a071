"""The house: imports run one way between the rooms, and no file or function is too long to read."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the top down: a file imports from rooms below its own, or from its own room. Other single files share the lowest one.
ROOMS = (
    "commands",
    "training",
    "report",
    "runs",
    "evaluation",
    "method",
    "data",
    "config",
    "networks",
    "lowering",
)
FILES = sorted((ROOT / "psgjax").rglob("*.py"))


def room_of(parts):
    """The height of what a dotted name below psgjax belongs to: 0 for the single files but config.py."""
    return len(ROOMS) - ROOMS.index(parts[0]) if parts and parts[0] in ROOMS else 0


def imported(tree):
    """Every module of psgjax that a file imports, wherever in it, as its parts below psgjax; what only types need apart."""
    checked = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    for_types = {node for block in checked for node in ast.walk(block)}
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package == "psgjax":
                yield parts


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_from_its_own_room_or_from_those_below(path):
    parts = path.relative_to(ROOT / "psgjax").with_suffix("").parts
    if parts in (("__init__",), ("__main__",)):  # the public face and the door see every room
        return
    own = room_of(parts)
    upward = [".".join(other) for other in imported(ast.parse(path.read_text("utf-8"))) if room_of(other) > own]
    assert not upward


def test_the_library_does_not_import_the_experiments():
    for path in FILES:
        assert not re.search(r"^\s*(import|from) experiments", path.read_text("utf-8"), re.MULTILINE), path


@pytest.mark.parametrize("folder", ["psgjax", "experiments", "tests"])
def test_no_file_is_over_300_lines_and_no_function_over_60(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"
