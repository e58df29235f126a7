"""What the user may set, verb by verb. The text under a setting is its line in ``--help``."""

from headstart.config.comparison import SCORE_NAMES, SCORES, Probe, Study
from headstart.config.data import Data
from headstart.config.handing_over import Embed, Export, Predict
from headstart.config.preparation import Count, Crop, Doctor, PseudoLabel, Split
from headstart.config.training import Finetune, Pretrain, Training

__all__ = [
    "SCORES",
    "SCORE_NAMES",
    "Count",
    "Crop",
    "Data",
    "Doctor",
    "Embed",
    "Export",
    "Finetune",
    "Predict",
    "Pretrain",
    "Probe",
    "PseudoLabel",
    "Split",
    "Study",
    "Training",
]
