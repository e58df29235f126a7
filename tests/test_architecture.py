"""The house is as docs/architecture.md draws it: imports point down, files and functions stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "headstart"
FILES = sorted(SOURCE.rglob("*.py"))

ROWS = [
    {"errors", "settings", "config", "distributed", "contracts", "nets", "randomness", "progress"},
    {"runs", "losses", "views"},
    {"data", "backbones"},
    {"methods", "tasks", "evaluation"},
    {"training", "reports"},
    {"verbs"},
    {"listing"},
    {"studies"},
    {"cli", "__init__"},
]
ROW = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
# Modules of the lowest rows that their own neighbours may use: a word that everybody says.
FOUNDATION = {"errors", "settings", "contracts", "config", "randomness"}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "headstart":
                found |= {name.name for name in node.names}
            elif node.module.startswith("headstart."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("headstart.")}
    return found


def test_every_room_has_a_place_in_the_picture():
    assert {room_of(path) for path in FILES} == set(ROW)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path):
    room = room_of(path)
    if room == "__init__":
        return
    upward = {
        other
        for other in imported_rooms(path) - {room}
        if ROW[other] > ROW[room] or (ROW[other] == ROW[room] and other not in FOUNDATION)
    }
    assert not upward, f"{path.name} of row {ROW[room]} imports {upward}"


def test_training_knows_contracts_but_no_method():
    for path in (SOURCE / "training").glob("*.py"):
        assert not imported_rooms(path) & {"methods", "tasks"}, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_are_small(path):
    assert len(path.read_text().splitlines()) <= 350
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 70, f"{path.name}: {node.name}"


def test_no_room_is_named_for_nothing():
    assert not {path.stem for path in FILES} & {"utils", "helpers", "common", "core", "misc"}


@pytest.mark.parametrize(
    "statement", ["import headstart.reports.page", "import headstart.cli", "import headstart.studies.demo"]
)
def test_reports_and_help_need_no_torch(statement):
    code = f"import sys; {statement}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ultralytics_stays_out():
    # its licence is AGPL-3.0: only an extra that names it may import it
    for path in FILES:
        assert "import ultralytics" not in path.read_text()


def test_the_picture_in_the_docs_is_this_one():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for row, rooms in enumerate(ROWS[:-1]):
        line = next(line for line in text.splitlines() if line.startswith(f"{row} "))
        assert set(line.split()[1:]) == rooms, line


def test_what_workers_send_back_needs_no_torch():
    # a class that lives beside torch would be unpickled by loading it
    from headstart.studies.demo import Look
    from headstart.studies.plan import Prepared

    for kind in (Look, Prepared):
        code = f"import sys, {kind.__module__}; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, kind
