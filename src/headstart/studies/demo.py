"""The verb ``demo``: the main job in a few minutes, on scanned digits or on the user's own class folders."""

from pathlib import Path
from typing import Any, NamedTuple

from headstart.config import Data, Study
from headstart.studies.execute import in_worker
from headstart.studies.study import run_study
from headstart.verbs.result import Result

LABELS = (1, 2, 5, 10, 20, 50)
LARGEST_IMAGE = 32  # pixels
MOST_IMAGES = 2000
PRETRAINING_STEPS = 128

# A ResNet-10 a quarter as wide: what two CPU cores train 65 times in some minutes.
MODEL: dict[str, Any] = {
    "model": "timm/resnet18",
    "model_args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]},
}
# Chosen on validation images of one seed; the learning rate of finetune is the best one of both arms.
PRETRAIN: dict[str, Any] = {"batch_size": 128, "learning_rate": 0.5}
FINETUNE: dict[str, Any] = {
    "epochs": 10,
    "min_steps": 80,
    "batch_size": 32,
    "learning_rate": 3e-3,
    "evaluations": 8,
}


def demo(
    *,
    data: str = "digits",
    out: str | Path = "demo",
    workers: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Result:
    """Compare a SimCLR pretraining with training from scratch at several label budgets, and say what came out.

    The settings are for minutes, not for the best scores; OUT/study.yaml has them, to change and to run again with
    ``headstart study``.

    Args:
        data: DATA with labels; digits are the 1,797 scanned digits that scikit-learn ships.
        out: the folder of the study.
        workers: cells that run at the same time (none: one per GPU, else one per core for small images).
        overwrite: replace the study that is in the folder.
        quiet: show no progress.

    Raises:
        UserError: one line that names the setting and what is allowed.
    """
    facts = in_worker(look, data)
    return run_study(settings(data, facts), Path(out), workers=workers, overwrite=overwrite, quiet=quiet)


class Look(NamedTuple):
    """What the settings of a demo depend on: the images' own size in pixels, and how many there are.

    ``smallest`` counts the training images of the smallest class.
    """

    name: str
    images: int
    native_size: int
    train: int
    smallest: int


def look(data: str) -> Look:
    """Open the data, in a process that has torch.

    Raises:
        UserError: the data cannot be opened or have no labels.
    """
    from headstart.data import facts
    from headstart.data.splits import split
    from headstart.verbs import start

    opened = start.opened(Data.create(data=data, limit=MOST_IMAGES))
    opened.require_labels("data")
    train = split(opened).train
    smallest = int(opened.labels[train].bincount(minlength=len(opened.classes)).min())
    return Look(opened.name, opened.count, facts.native_size(opened), len(train), smallest)


def settings(data: str, facts: Look) -> Study:
    """Return the study of a demo: the label budgets that every class can fill, and images of at most 32 px."""
    batch = min(PRETRAIN["batch_size"], facts.train)
    return Study.create(
        name=f"demo on {facts.name}",
        data=data,
        limit=MOST_IMAGES if facts.images >= MOST_IMAGES else None,
        **MODEL,
        image_size=min(facts.native_size, LARGEST_IMAGE),
        transfers=["probe", "finetune"],
        arms={"scratch": "none", "simclr": {"method": "simclr"}},
        labels=[labels for labels in LABELS if labels <= facts.smallest],
        seeds=5,
        pretrain={**PRETRAIN, "batch_size": batch, "epochs": max(1, PRETRAINING_STEPS // (facts.train // batch))},
        finetune=FINETUNE,
    )
