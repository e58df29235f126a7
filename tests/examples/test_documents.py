"""Every bash and Python block of the documents runs, in their order, unless it says that it does not and why."""

import multiprocessing
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
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
    """Return a folder with ``images/``: class folders of scanned digits."""
    digits = load_digits()
    for number in range(200):
        place = tmp_path / "images" / f"digit-{digits.target[number]}"
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((digits.images[number] * 255 / 16).round().astype(np.uint8))
        image.resize((16, 16)).save(place / f"{number}.png")
    return tmp_path


def commands(block: Block) -> Iterator[list[str]]:
    """Yield what to run for a block: the arguments of a headstart command, or a command of its own."""
    if block.language == "python":
        yield [sys.executable, "-c", block.text]
        return
    held: list[str] = []
    for line in without_set_up(block.text).replace("\\\n", " ").splitlines():
        if line.startswith("headstart "):
            yield from [["bash", "-euo", "pipefail", "-c", "\n".join(held)]] if held else []
            yield shlex.split(line)
            held = []
        else:
            held.append(line)
    yield from [["bash", "-euo", "pipefail", "-c", "\n".join(held)]] if held else []


def call(arguments, folder, log):
    """Do in a process of its own what the command would do there."""
    os.chdir(folder)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    from headstart.cli import main

    sys.argv = ["headstart", *arguments]
    sys.exit(main())


@pytest.fixture(scope="module")
def context():
    """Return what starts processes that have loaded torch already, which takes a command most of its time."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["headstart.cli", "headstart.verbs.pretrain", "headstart.verbs.probe"])
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a page of commands takes minutes, more on a machine that does something else too
@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_blocks_of_a_document_run(document, folder, context):
    log = folder / "log.txt"
    for block in blocks((ROOT / document).read_text()):
        for command in commands(block) if block.run else []:
            log.write_text("")
            if command[0] == "headstart":
                process = context.Process(target=call, args=(command[1:], folder, log))
                process.start()
                process.join(500)
                status = process.exitcode
            else:
                with log.open("a") as out:
                    status = subprocess.run(command, cwd=folder, stdout=out, stderr=out, check=False).returncode
            assert status == 0, f"{document}:{block.line}\n{shlex.join(command)}\n{log.read_text()}"


def test_blocks_are_found_and_marks_are_heeded():
    text = "```bash\nls\n```\n<!-- not run: takes hours -->\n```python\nwait()\n```\n```diff\n+x\n```\n"
    assert blocks(text) == [Block(1, "bash", "ls", True), Block(5, "python", "wait()", False)]
    assert without_set_up("make test\npip install .\nheadstart list tasks") == "headstart list tasks"
    with pytest.raises(AssertionError, match="make tset"):
        without_set_up("make tset")
