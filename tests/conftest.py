"""What all tests share: seeds, threads, slow tests, real images and made-up ones."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that train for minutes, too")
    parser.addoption("--rewrite-golden", action="store_true", help="record the traces in tests/golden anew")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="trains for minutes; run with --slow"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return the folder of a real data set by its name; skip the test where it cannot be had."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("HEADSTART_TEST_DATA") or "~/.cache/headstart-test-data").expanduser() / name
        unpack = Path(__file__).parents[2] / "shared" / "data" / "unpack"
        if not folder.is_dir() and unpack.is_file():
            subprocess.run([unpack, name], check=True, capture_output=True)
        if not folder.is_dir():
            pytest.skip(f"no real images: {folder} is not there")
        return folder

    return find


@pytest.fixture
def save_image() -> Callable[..., Path]:
    """Return a function that writes an image of noise, with a smooth part so that JPEG changes it little."""

    def save(path: Path, *, size: tuple[int, int] = (20, 16), seed: int = 0, **options: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(seed)
        small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize(size).save(path, **options)
        return path

    return save
