"""Every bash and Python block of the documents runs, in their order, unless it says that it does not and why."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    path.relative_to(ROOT).as_posix()
    for path in sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
]
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")
ELSEWHERE = ("pip ", "git clone ", "cd ")  # what sets a machine up is run by people, not by tests


class Block(NamedTuple):
    """A block of code: where it starts, its language, its text, and whether it is to be run."""

    line: int
    language: str
    text: str
    run: bool


def blocks(text):
    """Return the bash and Python blocks of a document."""
    found, lines = [], text.splitlines()
    starts = iter([number for number, line in enumerate(lines) if line.startswith("```")])
    for start, end in zip(starts, starts, strict=True):
        language = lines[start].removeprefix("```").strip()
        marked = start > 0 and NOT_RUN.fullmatch(lines[start - 1].strip()) is not None
        if language in ("bash", "python"):
            found.append(Block(start + 1, language, "\n".join(lines[start + 1 : end]), not marked))
    return found


def targets():
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def without_set_up(text):
    """Return a bash block without the commands that set a machine up, of which make's targets must exist."""
    kept = []
    for line in text.splitlines():
        if line.startswith("make"):
            assert set(line.split("#")[0].split()[1:]) <= targets(), line
        elif not line.startswith(ELSEWHERE):
            kept.append(line)
    return "\n".join(kept)


@pytest.fixture
def folder(tmp_path):
    """Return a folder with ``images/``: class folders of scanned digits; and ``headstart`` as a command beside it."""
    digits = load_digits()
    for number in range(200):
        place = tmp_path / "images" / f"digit-{digits.target[number]}"
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((digits.images[number] * 255 / 16).round().astype(np.uint8))
        image.resize((16, 16)).save(place / f"{number}.png")
    command = tmp_path / ".bin" / "headstart"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m headstart.cli "$@"\n')
    command.chmod(0o755)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_blocks_of_a_document_run(document, folder):
    paths = f"{folder / '.bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": paths, "OMP_NUM_THREADS": "1"}
    for block in blocks((ROOT / document).read_text()):
        if not block.run:
            continue
        if block.language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", without_set_up(block.text)]
        else:
            (folder / "block.py").write_text(block.text)
            command = [sys.executable, "block.py"]
        found = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=500
        )
        assert found.returncode == 0, f"{document}:{block.line}\n{found.stdout}\n{found.stderr}"


def test_blocks_are_found_and_marks_are_heeded():
    text = "```bash\nls\n```\n<!-- not run: takes hours -->\n```python\nwait()\n```\n```diff\n+x\n```\n"
    assert blocks(text) == [Block(1, "bash", "ls", True), Block(5, "python", "wait()", False)]
    assert without_set_up("make test\npip install .\nheadstart list tasks") == "headstart list tasks"
    with pytest.raises(AssertionError, match="make tset"):
        without_set_up("make tset")
