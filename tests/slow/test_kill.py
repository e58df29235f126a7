"""A training that is killed at any moment, and resumed, ends with the weights of one that was not."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import headstart
from headstart import runs
from headstart.methods import METHODS, hyper_parameters
from headstart.training import checkpoint
from headstart.training.record import Recorder
from headstart.verbs import figures

SETTINGS = [
    *("--data", "digits", "--limit", "400", "--model", "timm/resnet18", "--model-args.layers", "[1, 1, 1, 1]"),
    *("--model-args.channels", "[16, 16, 32, 32]", "--epochs", "15", "--batch-size", "60"),
    *("--checkpoint-every", "0.01", "--seed", "3"),
]
SHARED = {"data": "digits", "limit": 100, "epochs": 2, "batch_size": 16, "checkpoint_every": 1e-9, "seed": 3}
NARROW = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1], "zero_init_last": False}
TRANSFORMER = {"depth": 1, "embed_dim": 48, "num_heads": 3}
# a queue of 24 is full, and begins anew, after the second step
SIZES = {"queue": 24, "splits": 2, "symmetric": True, "prototypes": 12, "slices": 16}
DECODER = {"decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 3}
QUEUE = ("entries", "place", "seen")
# what a method has to remember beside what its gradient moves, and beside backbone and projector, which all have
REMEMBERED = {
    "moco": ("teacher_backbone.net.conv1.weight", "teacher_projector.0.weight", *(f"queue.{name}" for name in QUEUE)),
    "densecl": (
        "teacher_dense_projector.0.weight",
        *(f"{own}.{name}" for own in ("queue", "dense_queue") for name in QUEUE),
    ),
    "nnclr": tuple(f"queue.{name}" for name in QUEUE),
    "byol": ("teacher_backbone.net.conv1.weight", "teacher_projector.0.weight"),
    "dino": (
        "teacher_backbone.net.conv1.weight",
        "teacher_projector.0.weight",
        "teacher_prototypes.weight",
        "centre",
        "progress",
    ),
    "swav": ("prototypes.weight", "progress", *(f"queues.{number}.{name}" for number in (0, 1) for name in QUEUE)),
    "visreg": ("step",),
}


def start(folder, *more):
    command = [sys.executable, "-m", "headstart.cli", "pretrain", *SETTINGS, "--out", str(folder), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def lines_in(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_a_run_that_is_killed_from_outside_goes_on_to_the_same_weights(tmp_path):
    whole, draws = start(tmp_path / "whole"), random.Random(0)
    running = {tmp_path / f"run{number}": draws.randrange(1, 70) for number in range(2)}  # of 90 steps
    processes = {folder: start(folder) for folder in running}
    while running:
        for folder, lines in list(running.items()):
            assert processes[folder].poll() is None, processes[folder].communicate()[0]
            if lines_in(folder / runs.METRICS) >= lines:
                processes[folder].kill()
                processes[folder].communicate()
                assert not (folder / runs.RESULT).exists()
                del running[folder]
        time.sleep(0.005)
    for folder, process in [
        (tmp_path / "whole", whole),
        *((folder, start(folder, "--resume")) for folder in processes),
    ]:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert (folder / runs.RESULT).exists()
        assert (folder / runs.BACKBONE).read_bytes() == (tmp_path / "whole" / runs.BACKBONE).read_bytes()


def settings_of(name, teacher):
    """Return what pretrains a narrow network with a method in a few short steps."""
    schema = hyper_parameters(METHODS[name])
    known = {
        **{key: 16 for key in schema if key.endswith("_dim")},
        **SIZES,
        **DECODER,
        "teacher": teacher,
        "teacher_size": 8,
    }
    model = {"model": "timm/resnet18", "model_args": NARROW}
    if "vit" in METHODS[name].needs:
        model = {"model": "timm/vit_tiny_patch16_224", "model_args": TRANSFORMER}
    arguments = {key: value for key, value in known.items() if key in schema}
    return {**SHARED, **model, "method": name, "method_args": arguments}


def pretrain(folder, settings, resume, killed_in):
    """Pretrain in this process, which kills itself when it is told to: in a function of the recorder, at a step."""
    torch.set_num_threads(1)
    for picture in ("view_sheet", "curves", "health_panel"):  # nine tenths of the time, and no part of the state
        setattr(figures, picture, lambda *_: None)
    if killed_in is not None:
        function, last = killed_in
        before = getattr(Recorder, function)

        def kill(self, step, *arguments, **named):
            before(self, step, *arguments, **named)
            if step.step == last:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(Recorder, function, kill)
    headstart.pretrain(out=folder, resume=resume, quiet=True, **settings)


def begin(folder, settings, *, resume=False, killed_in=None):
    """Start a process that pretrains; the fork server has imported everything, so that it starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["headstart.verbs.pretrain"])
    process = context.Process(target=pretrain, args=(folder, settings, resume, killed_in))
    process.start()
    return process


def end(process):
    """Return what ended a process: 0, or minus the number of a signal."""
    process.join(timeout=120)
    return process.exitcode


def left_behind(folder: Path):
    """Return the bytes of the weights, everything in the last checkpoint, and the metrics without times."""
    weights = [(folder / name).read_bytes() for name in (runs.BACKBONE, runs.HEAD)]
    lines = [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]
    metrics = [{key: line[key] for key in line.keys() - {"images_per_second", "data_wait"}} for line in lines]
    return weights, checkpoint.read(folder / runs.LAST, "resume"), metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_killed_twice_goes_on_to_the_same_state(name, teacher, tmp_path):
    settings, folder = settings_of(name, teacher), tmp_path / "run"
    whole = begin(tmp_path / "whole", settings)
    # once with its checkpoint written, once with metrics that no checkpoint has seen
    assert end(begin(folder, settings, killed_in=("save", 2))) == -signal.SIGKILL
    state = checkpoint.read(folder / runs.LAST, "resume")
    assert state["step"] == 2
    assert state["objective"].keys() >= set(REMEMBERED.get(name, ()))
    trained = [parameter for group in state["optimizer"]["param_groups"] for parameter in group["params"]]
    assert state["optimizer"]["state"].keys() == set(trained)
    assert end(begin(folder, settings, resume=True, killed_in=("record", 5))) == -signal.SIGKILL
    assert checkpoint.read(folder / runs.LAST, "resume")["step"] == 4
    assert not (folder / runs.RESULT).exists()
    assert end(begin(folder, settings, resume=True)) == 0
    assert end(whole) == 0
    (weights, found, metrics), (expected_weights, expected, expected_metrics) = map(
        left_behind, (folder, tmp_path / "whole")
    )
    assert weights == expected_weights
    assert metrics == expected_metrics
    assert [line["step"] for line in metrics] == list(range(1, expected["step"] + 1))
    assert found["objective"].keys() == expected["objective"].keys()
    for key, value in expected["objective"].items():
        assert torch.equal(found["objective"][key], value), key
