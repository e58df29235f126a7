"""The verb ``demo``: the main job in a few minutes, on scanned digits or on the user's own class folders."""

from pathlib import Path
from typing import Any

from headstart.config import Study
from headstart.data import facts
from headstart.data.index import DataSet
from headstart.data.sources import open_data
from headstart.data.splits import limited, split
from headstart.studies.study import run_study
from headstart.verbs.result import Result

LABELS = (1, 2, 5, 10, 20, 50)
LARGEST_IMAGE = 32  # pixels
MOST_IMAGES = 2000
PRETRAINING_STEPS = 160

# A ResNet-10 a quarter as wide: what two CPU cores train 65 times in some minutes. Its residual branches do not start
# at zero, because then hardly anything of the image would reach the features of the untrained network, which is what
# the frozen pretrained features are compared with.
MODEL: dict[str, Any] = {
    "model": "timm/resnet18",
    "model_args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128], "zero_init_last": False},
}
# Chosen on validation images of one seed; the learning rate of finetune is the best one of both arms.
PRETRAIN: dict[str, Any] = {"batch_size": 128, "learning_rate": 0.5}
FINETUNE: dict[str, Any] = {
    "epochs": 15,
    "min_steps": 100,
    "batch_size": 32,
    "learning_rate": 3e-3,
    "evaluations": 10,
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
    opened = limited(open_data(data), MOST_IMAGES)
    opened.require_labels("data")
    return run_study(settings(data, opened), Path(out), workers=workers, overwrite=overwrite, quiet=quiet)


def settings(data: str, opened: DataSet) -> Study:
    """Return the study of a demo: the label budgets that every class can fill, and images of at most 32 px."""
    train = split(opened).train
    smallest = int(opened.labels[train].bincount(minlength=len(opened.classes)).min())
    batch = min(PRETRAIN["batch_size"], len(train))
    return Study.create(
        name=f"demo on {opened.name}",
        data=data,
        limit=MOST_IMAGES if opened.count >= MOST_IMAGES else None,
        **MODEL,
        image_size=min(facts.native_size(opened), LARGEST_IMAGE),
        transfers=["probe", "finetune"],
        arms={"scratch": "none", "simclr": {"method": "simclr"}},
        labels=[labels for labels in LABELS if labels <= smallest],
        seeds=5,
        pretrain={**PRETRAIN, "batch_size": batch, "epochs": max(1, PRETRAINING_STEPS // (len(train) // batch))},
        finetune=FINETUNE,
    )
