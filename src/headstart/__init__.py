"""Headstart: does pretraining on my unlabelled images save me labels?

Every command is a function here, with the same name and arguments. They are loaded when first used, so that
``headstart --help`` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headstart.errors import UserError

if TYPE_CHECKING:
    from headstart.reports.page import report
    from headstart.studies.demo import demo
    from headstart.studies.study import study
    from headstart.verbs.count import count
    from headstart.verbs.crop import crop
    from headstart.verbs.doctor import doctor
    from headstart.verbs.embed import embed
    from headstart.verbs.export import export
    from headstart.verbs.finetune import finetune
    from headstart.verbs.predict import predict
    from headstart.verbs.pretrain import pretrain
    from headstart.verbs.probe import probe
    from headstart.verbs.pseudo_label import pseudo_label
    from headstart.verbs.split import split

__all__ = [
    "UserError",
    "count",
    "crop",
    "demo",
    "doctor",
    "embed",
    "export",
    "finetune",
    "predict",
    "pretrain",
    "probe",
    "pseudo_label",
    "report",
    "split",
    "study",
]

_TRAININGS = ("finetune", "pretrain", "probe")
_VERBS = ("count", "crop", "doctor", "embed", "export", "predict", "pseudo_label", "split", *_TRAININGS)
_ROOMS = {
    **{verb: f"headstart.verbs.{verb}" for verb in _VERBS},
    "study": "headstart.studies.study",
    "demo": "headstart.studies.demo",
    "report": "headstart.reports.page",
}


def __getattr__(name: str) -> Any:
    """Load a verb when it is first asked for."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'headstart' has no attribute '{name}'")
    return getattr(import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
