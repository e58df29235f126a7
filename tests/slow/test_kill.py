"""A training that is killed at any moment, and resumed, ends with the weights of one that was not."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

SETTINGS = [
    *("--data", "digits", "--limit", "400", "--model", "timm/resnet18", "--model-args.layers", "[1, 1, 1, 1]"),
    *("--model-args.channels", "[16, 16, 32, 32]", "--epochs", "15", "--batch-size", "60"),
    *("--checkpoint-every", "0.01", "--seed", "3"),
]


def start(folder, *more):
    command = [sys.executable, "-m", "headstart.cli", "pretrain", *SETTINGS, "--out", str(folder), *more]
    # two threads that wait for each other without spinning, which on a busy machine takes most of the time
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return the bytes of the weights, and when the first metrics were written and the run was finished."""
    folder, begin = tmp_path_factory.mktemp("kill") / "run", time.monotonic()
    process, first = start(folder), None
    while process.poll() is None:
        if first is None and (folder / "metrics.jsonl").exists():
            first = time.monotonic() - begin
        time.sleep(0.01)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert first is not None
    return (folder / "backbone.safetensors").read_bytes(), first, time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(5))
def test_a_killed_run_goes_on_to_the_same_weights(repetition, uninterrupted, tmp_path):
    weights, first, end = uninterrupted
    folder, process = tmp_path / "run", start(tmp_path / "run")
    time.sleep(random.Random(repetition).uniform(first, end))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    resumed = start(folder, "--resume")
    said, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, said
    assert (folder / "backbone.safetensors").read_bytes() == weights
    assert (folder / "result.json").exists()
