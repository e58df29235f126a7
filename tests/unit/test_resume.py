"""A run that was stopped and goes on ends bit for bit where an uninterrupted one does."""

import json

import pytest
import safetensors.torch
import torch

import headstart
from headstart import runs
from headstart.errors import UserError
from headstart.methods.simclr import SimCLR
from headstart.training import checkpoint
from headstart.training.fit import NonFiniteLossError
from headstart.training.record import Recorder
from headstart.verbs import finetune as finetune_module
from headstart.verbs import pretrain as pretrain_module
from headstart.verbs.finetuning.classify import ClassifyJob
from headstart.verbs.finetuning.loop import Supervised

NARROW = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1], "zero_init_last": False}
SHARED = {"data": "digits", "limit": 200, "model": "timm/resnet18", "model_args": NARROW, "quiet": True}
PRETRAIN = {**SHARED, "epochs": 3, "batch_size": 40, "checkpoint_every": 1e-9}
FINETUNE = {
    **{**SHARED, "labels": "5", "epochs": 1, "min_steps": 12, "evaluations": 6},
    **{"batch_size": 25, "learning_rate": 0.02, "checkpoint_every": 1e-9},
}
STEPS = {"pretrain": 9, "finetune": 12}
TIMED = ("images_per_second", "data_wait")


class KilledError(Exception):
    """Stands for the end of the process: nothing in Headstart catches it."""


@pytest.fixture(autouse=True)
def one_thread(seeded):
    torch.set_num_threads(1)


def start(verb, folder, **changes):
    settings = {"pretrain": PRETRAIN, "finetune": FINETUNE}[verb]
    return getattr(headstart, verb)(out=folder, **{**settings, **changes})


def stop_at(monkeypatch, step, *, saved):
    """Stop the next training in its step, after the metrics were written, and before or after the checkpoint."""
    before, name = (Recorder.save, "save") if saved else (Recorder.record, "record")

    def stop(self, seen, *arguments, **named):
        before(self, seen, *arguments, **named)
        if seen.step == step:
            raise KilledError

    monkeypatch.setattr(Recorder, name, stop)


def left_behind(folder):
    """Return everything about a run that must not depend on whether it was interrupted."""
    lines = [{name: value for name, value in line.items() if name not in TIMED} for line in runs.read_metrics(folder)]
    weights = {name: (folder / name).read_bytes() for name in (runs.BACKBONE, runs.HEAD)}
    result = json.loads((folder / runs.RESULT).read_text())
    return lines, weights, result["scores"], result.get("confusion"), result.get("best_epoch")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.set_num_threads(1)
    return {verb: left_behind(start(verb, tmp_path_factory.mktemp(verb) / "run").out) for verb in STEPS}


@pytest.mark.parametrize("saved", [True, False], ids=["saved", "not-saved"])
@pytest.mark.parametrize(
    ("verb", "step"), [("pretrain", 1), ("pretrain", 5), ("pretrain", 9), ("finetune", 7), ("finetune", 8)]
)
def test_a_resumed_run_is_the_uninterrupted_one(verb, step, saved, uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, step, saved=saved)
        with pytest.raises(KilledError):
            start(verb, tmp_path / "run")
    assert runs.read_result(tmp_path / "run") is None
    assert (tmp_path / "run" / runs.LAST).exists() == (saved or step > 1)
    found = start(verb, tmp_path / "run", resume=True)
    assert left_behind(found.out) == uninterrupted[verb]
    assert [line["step"] for line in runs.read_metrics(found.out)] == list(range(1, STEPS[verb] + 1))


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_training_that_broke_goes_on_from_the_step_before(broken, uninterrupted, tmp_path, monkeypatch):
    losses, calls = SimCLR.losses, []

    def breaks(self, batch):
        calls.append(batch)
        value = losses(self, batch)["loss"]
        if len(calls) < 5:
            return {"loss": value}
        return {"loss": value * torch.inf if broken == "loss" else (0 * value).sqrt()}

    with monkeypatch.context() as patch:
        patch.setattr(SimCLR, "losses", breaks)
        with pytest.raises(NonFiniteLossError, match=r"learning_rate: .* at step 5"):
            start("pretrain", tmp_path / "run")
    assert [line["step"] for line in runs.read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
    assert checkpoint.read(tmp_path / "run" / runs.LAST, "resume")["step"] == 4
    assert left_behind(start("pretrain", tmp_path / "run", resume=True).out) == uninterrupted["pretrain"]


def test_metrics_after_the_last_checkpoint_are_written_once(uninterrupted, tmp_path, monkeypatch):
    rare = {"checkpoint_every": 1e9}  # no checkpoint but the one that is made by hand
    with monkeypatch.context() as patch:
        due = Recorder.checkpoint_due
        patch.setattr(Recorder, "checkpoint_due", lambda self, step: step.step == 3 or due(self, step))
        stop_at(patch, 6, saved=False)
        with pytest.raises(KilledError):
            start("pretrain", tmp_path / "run", **rare)
    assert [line["step"] for line in runs.read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert left_behind(start("pretrain", tmp_path / "run", resume=True, **rare).out) == uninterrupted["pretrain"]


def test_the_best_weights_are_remembered(tmp_path, monkeypatch):
    # the best look is before the stop, every later one is worse
    def look(self):
        looked.append(None)
        return (0.9, 1.0) if len(looked) == 2 else (0.1, 1.0)

    monkeypatch.setattr(ClassifyJob, "look", look)
    looked = []
    whole = start("finetune", tmp_path / "whole")
    looked = []
    with monkeypatch.context() as patch:
        stop_at(patch, 7, saved=True)
        with pytest.raises(KilledError):
            start("finetune", tmp_path / "run")
    found = start("finetune", tmp_path / "run", resume=True)
    assert left_behind(found.out) == left_behind(whole.out)
    assert found.scores["val_accuracy"] == 0.9


def test_a_run_that_stopped_early_does_not_go_on(tmp_path, monkeypatch):
    looks = iter([(0.5, 1.0), (0.4, 1.0), (0.3, 1.0), (0.9, 0.1)])
    monkeypatch.setattr(ClassifyJob, "look", lambda self: next(looks))
    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "hand_over", lambda *arguments, **named: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            start("finetune", tmp_path / "run", patience=2)
    found = start("finetune", tmp_path / "run", patience=2, resume=True)
    assert [line["step"] for line in runs.read_metrics(found.out)] == [1, 2, 3, 4, 5, 6]
    assert found.scores["val_accuracy"] == 0.5


def test_a_finished_run_is_returned_as_it_is(tmp_path, monkeypatch):
    first = start("pretrain", tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in first.out.rglob("*") if path.is_file()}
    monkeypatch.setattr(pretrain_module, "run_pretrain", lambda *arguments, **named: pytest.fail("trained again"))
    monkeypatch.setattr(finetune_module, "run_finetune", lambda *arguments, **named: pytest.fail("trained again"))
    again = start("pretrain", tmp_path / "run", resume=True)
    assert (again.scores, again.text) == (first.scores, first.text)
    assert {path: path.stat().st_mtime_ns for path in first.out.rglob("*") if path.is_file()} == files


def test_the_words_that_began_a_run_resume_it(tmp_path, monkeypatch, save_image):
    for number in range(10):
        save_image(tmp_path / "images" / f"{number}.png", seed=number)
    monkeypatch.chdir(tmp_path)
    words = {**PRETRAIN, "data": "images", "limit": None, "batch_size": 5, "method_args": {"temperature": 0.5}}
    with monkeypatch.context() as patch:
        stop_at(patch, 2, saved=True)
        with pytest.raises(KilledError):
            headstart.pretrain(out="run", **words)
    for change, message in [
        ({"method_args": {"temperature": 0.6}}, "method_args: .* differs from"),
        ({"method_args": {"projection_dim": 64}}, "method_args: .* differs from"),
        ({"seed": 1}, "seed: 1 differs from 0"),
    ]:
        with pytest.raises(UserError, match=message):
            headstart.pretrain(out="run", resume=True, **{**words, **change})
    headstart.pretrain(out="run", resume=True, **words)
    assert runs.read_result(tmp_path / "run") is not None


def test_weights_do_not_depend_on_the_number_of_workers(tmp_path, save_image, monkeypatch):
    for number in range(12):
        save_image(tmp_path / "images" / f"{number}.jpg", size=(24 + number, 22), seed=number)
    settings = {**PRETRAIN, "data": tmp_path / "images", "limit": None, "batch_size": 6, "image_size": 16}
    none = headstart.pretrain(out=tmp_path / "none", **settings, workers=0)
    with monkeypatch.context() as patch:
        stop_at(patch, 3, saved=True)
        with pytest.raises(KilledError):
            headstart.pretrain(out=tmp_path / "two", **settings, workers=2)
    two = headstart.pretrain(out=tmp_path / "two", **settings, workers=2, resume=True)
    assert left_behind(none.out) == left_behind(two.out)
    assert safetensors.torch.load_file(two.out / runs.BACKBONE)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_broken_checkpoint_is_named(content, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 2, saved=True)
        with pytest.raises(KilledError):
            start("pretrain", tmp_path / "run")
    (tmp_path / "run" / runs.LAST).write_bytes(content)
    with pytest.raises(UserError, match=r"resume: .*last\.ckpt is no Headstart checkpoint"):
        start("pretrain", tmp_path / "run", resume=True)
