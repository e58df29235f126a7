"""Ultralytics' own trainer, held such that it trains the backbone that it is given and keeps to the run folder."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from headstart import runs
from headstart.backbones import yolo
from headstart.backbones.weights import Matched
from headstart.progress import Track, say
from headstart.verbs.finetuning import transfer
from headstart.verbs.finetuning.yolo_network import Draft, put

SCORES = {
    "val_precision": "metrics/precision(B)",
    "val_recall": "metrics/recall(B)",
    "val_map50": "metrics/mAP50(B)",
    "val_map50_95": "metrics/mAP50-95(B)",
}


@dataclass
class Held:
    """What a trainer is told beside Ultralytics' own arguments, and what it tells.

    Attributes:
        draft: of the network.
        data: the folder of the images.
        run: the run folder, for the metrics.
        track: shows the progress.
        quiet: say nothing.
        matched: how the weights fit the network, when it has been built.
        line: the proof that they arrived, when training has begun, or has gone on.
    """

    draft: Draft
    data: Path
    run: runs.Run
    track: Track
    quiet: bool
    matched: Matched | None = None
    line: str = ""

    def begin(self, training: Any, expected: Sequence[Tensor], resumed: str) -> None:
        """Prove that what is about to be trained, and its moving average, give the features that are expected."""
        nets = (training.model, training.ema.ema)
        found = max(transfer.check(expected, self.draft.features(net)) for net in nets)
        assert self.matched is not None
        head = len(training.model.state_dict()) - self.matched.total
        said = transfer.line(self.matched, head, found)
        self.line = resumed or said
        if not self.quiet:
            say(f"goes on after epoch {training.start_epoch}: {said}" if resumed else said)

    def show(self, training: Any) -> None:
        """Show how far the training is."""
        loss = sum(float(value) for value in training.tloss.values())
        self.track.update(1, f"epoch {training.epoch + 1}, loss {loss:.3f} ")


class Replaced:
    """What is done in another way than Ultralytics' trainer does it, whose attributes are named here.

    * The network has the backbone's weights, every tensor of them, or nothing is trained.
    * Checkpoints are in float32, where Ultralytics would round to float16: a frozen backbone ends as it began. They
      are there whole or not at all, and hold nothing that only a pickle could.
    * Nobody looks at the best weights once more at the end, nor rounds them.
    """

    held: ClassVar[Held]
    args: Any
    ema: Any
    optimizer: Any
    scaler: Any
    stopper: Any
    train_loader: Any
    epoch: int
    stop: bool
    last: Path
    best: Path
    best_fitness: float
    fitness: float
    tloss: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    lr: Mapping[str, float]

    def get_dataset(self) -> dict[str, Any]:
        """Return what Ultralytics is to know of the data; its own way looks for fonts, and downloads them."""
        draft, data = self.held.draft, self.held.data
        places = {name: str(data / "images" / name) for name in ("train", "val", "test")}
        return {"path": data, **places, "names": draft.names, "nc": len(draft.names), "channels": draft.channels}

    def get_model(self, cfg: object = None, weights: nn.Module | None = None, verbose: bool = False) -> nn.Module:
        """Return the network: with the backbone's weights, or with all of those that training goes on from."""
        draft = self.held.draft
        net = draft.build()
        if weights is None:
            self.held.matched = put(draft.state(), net, draft.layers)
        else:
            self.held.matched = put(dict(weights.state_dict()), net, len(net.model))  # type: ignore[arg-type]
        return net

    def save_model(self) -> bool:
        """Record the epoch, and write what training can go on from."""
        figures = epoch_figures(self.tloss, self.metrics, self.lr)
        epoch = self.epoch + 1
        self.held.run.append(step=epoch * len(self.train_loader), epoch=epoch, **figures)
        net = deepcopy(self.ema.ema)
        net.criterion, net.args = None, dict(vars(self.args))
        checkpoint = {
            "epoch": self.epoch,
            "finished": bool(self.stop),
            "best_fitness": float(self.best_fitness),
            "stopper": {key: _plain(getattr(self.stopper, key)) for key in ("best_fitness", "best_epoch")},
            "model": None,
            "ema": net,
            "updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "train_args": net.args,
            "figures": figures,
            "transfer": self.held.line,
            "version": version("ultralytics"),
        }
        places = [self.best, self.last] if self.best_fitness == self.fitness else [self.last]
        for place in places:  # a run that is killed in between repeats the epoch
            runs.replace(place, partial(torch.save, checkpoint))
        return True

    def final_eval(self) -> None:
        """Leave the best weights as they are."""


def trainer(held: Held, arguments: Mapping[str, Any]) -> Any:
    """Return Ultralytics' trainer; it goes on from ``arguments["resume"]``, if that names a checkpoint."""
    base = yolo.library("models.yolo.detect").DetectionTrainer
    training = type("Trainer", (Replaced, base), {"held": held})(overrides=dict(arguments))
    last, resumed = arguments.get("resume"), ""
    if last:
        checkpoint = read_checkpoint(Path(last))
        expected, resumed = held.draft.features(checkpoint["ema"]), checkpoint["transfer"]
    else:
        expected = held.draft.expected()
    training.add_callback("on_train_start", lambda training: held.begin(training, expected, resumed))
    training.add_callback("on_train_batch_end", held.show)
    return training


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what ``save_model`` has written, by Ultralytics' restricted loader."""
    checkpoint: dict[str, Any] = yolo.library("nn.tasks").torch_safe_load(str(path), safe_only=True)[0]
    return checkpoint


def epoch_figures(
    losses: Mapping[str, Tensor], metrics: Mapping[str, float], rates: Mapping[str, float]
) -> dict[str, float]:
    """Return what is recorded of an epoch, under our names."""
    trained = {name: float(value) for name, value in losses.items()}
    looked = {name.partition("/")[2]: float(value) for name, value in metrics.items() if name.startswith("val/")}
    return {
        "loss": sum(trained.values()),
        **trained,
        "val_loss": sum(looked.values()),
        **{f"val_{name}": value for name, value in looked.items()},
        **{name: float(metrics[key]) for name, key in SCORES.items()},
        "learning_rate": float(rates["lr/pg0"]),
    }


@contextmanager
def secluded() -> Iterator[None]:
    """Let Ultralytics load no integrations, fonts or pickles while it lasts, and put back what it changes in torch.

    Nor does it drop boxes on a slow machine, as its suppression would after a while.
    """
    suppression = yolo.library("utils.nms")
    changes: list[tuple[Any, str, Any]] = [
        (yolo.library("nn.tasks"), "SAFE_LOAD", True),
        (yolo.library("data.utils"), "check_font", _nothing),
        (yolo.library("utils.callbacks"), "add_integration_callbacks", _nothing),
        (suppression, "non_max_suppression", partial(suppression.non_max_suppression, max_time_img=inf)),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    threads = torch.get_num_threads()
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        torch.set_num_threads(threads)


def _nothing(*_: object) -> None:
    """Do nothing."""


def _plain(value: Any) -> Any:
    """Return a number of NumPy as one of Python, which is read back without executing a pickle."""
    return value.item() if hasattr(value, "item") else value
