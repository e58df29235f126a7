"""The verb ``demo``: the main job in a few minutes, on scanned digits or on the user's own class folders."""

from pathlib import Path
from typing import Any

from headstart.config import Study
from headstart.studies.study import run_study
from headstart.verbs import start
from headstart.verbs.result import Result

DIGITS: dict[str, Any] = {}


def demo(
    *,
    data: str = "digits",
    out: str | Path = "demo",
    workers: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Result:
    """Compare a SimCLR pretraining with training from scratch at several label budgets, and say what came out.

    Args:
        data: DATA with labels; digits are the 1,797 scanned digits that scikit-learn ships.
        out: the folder of the study.
        workers: cells that run at the same time (none: one per GPU, else one per core for small images).
        overwrite: replace the study that is in the folder.
        quiet: show no progress.

    Raises:
        UserError: one line that names the setting and what is allowed.
    """
