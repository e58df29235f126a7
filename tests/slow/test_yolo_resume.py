"""A YOLO training that is killed goes on from its last epoch, and ends as a run that was not killed ends."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from headstart import runs

EPOCHS = 12


@pytest.fixture
def squares(tmp_path):
    """Return the folder of a data set of bright squares on noise."""
    folder, draws = tmp_path / "squares", np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4), ("test", 4)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            pixels = draws.integers(0, 90, (64, 64, 3), dtype=np.uint8)
            left, top = draws.integers(0, 44, 2)
            pixels[top : top + 20, left : left + 20] = 255
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
            text = f"0 {(left + 10) / 64} {(top + 10) / 64} {20 / 64} {20 / 64}\n"
            (folder / "labels" / split / f"{number}.txt").write_text(text)
    known = {split: f"images/{split}" for split in ("train", "val", "test")}
    (folder / "data.yaml").write_text(yaml.safe_dump({**known, "names": ["square"]}))
    return folder


def start(data, folder, *more):
    settings = [
        *("--data", str(data), "--task", "detect", "--model", "ultralytics/yolov8n", "--model-args.width", "0.125"),
        *("--image-size", "64", "--batch-size", "8", "--epochs", str(EPOCHS), "--seed", "3"),
    ]
    command = [sys.executable, "-m", "headstart.cli", "finetune", *settings, "--out", str(folder), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def epochs_in(folder):
    return [line["epoch"] for line in runs.read_metrics(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 4])
def test_a_killed_training_goes_on(squares, tmp_path, after):
    folder = tmp_path / "run"
    process = start(squares, folder)
    while not (folder / "ultralytics" / "data" / "data.yaml").exists() or len(epochs_in(folder)) < after:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / runs.RESULT).exists()
    process = start(squares, folder, "--resume")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert epochs_in(folder) == list(range(1, EPOCHS + 1))
    assert ("goes on after epoch" in said) == (after > 0)
    result = json.loads((folder / runs.RESULT).read_text())
    assert result["transfer"].startswith("backbone")
    assert result["optimizer_steps"] > 1
    assert len({line["loss"] for line in runs.read_metrics(folder)}) == EPOCHS
