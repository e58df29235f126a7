"""The arguments of a verb that decide nothing: where it writes, what it reads its settings from."""

from inspect import Parameter
from pathlib import Path


def _keyword(name: str, kind: object, default: object = Parameter.empty) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=default)


OUT = _keyword("out", Path)
CONFIG = _keyword("config", Path | None, None)
RESUME = _keyword("resume", bool, False)
OVERWRITE = _keyword("overwrite", bool, False)
QUIET = _keyword("quiet", bool, False)

INIT = Parameter("init", Parameter.POSITIONAL_OR_KEYWORD, annotation=str)
PROBE = (INIT, _keyword("out", Path | None, None), CONFIG, OVERWRITE, QUIET)
EMBED = (INIT, OUT, CONFIG, OVERWRITE, QUIET)
RUN_OF = Parameter("run", Parameter.POSITIONAL_OR_KEYWORD, annotation=str)
EXPORT = (RUN_OF, OUT, OVERWRITE, QUIET)
STUDY = (
    Parameter("file", Parameter.POSITIONAL_OR_KEYWORD, annotation=Path | None, default=None),
    OUT,
    _keyword("workers", int | None, None),
    OVERWRITE,
    QUIET,
)
DATA = Parameter("data", Parameter.POSITIONAL_OR_KEYWORD, annotation=str)
IMAGES = Parameter("images", Parameter.POSITIONAL_OR_KEYWORD, annotation=str)
PREDICT = (RUN_OF, DATA, OUT, CONFIG, OVERWRITE, QUIET)
PREPARATION = (DATA, OUT, CONFIG, OVERWRITE, QUIET)
PSEUDO_LABEL = (IMAGES, OUT, CONFIG, OVERWRITE, QUIET)
COUNT = (DATA, _keyword("out", Path | None, None), OVERWRITE, QUIET)
DOCTOR = (DATA, _keyword("out", Path | None, None), CONFIG, _keyword("report", bool, False), OVERWRITE, QUIET)
HELP = {
    "out": "The folder to write into; of embed and export the file.",
    "run": "The RUN of a pretrain or a finetune.",
    "config": "A YAML file of settings, such as a run's config.yaml; options given beside it win.",
    "resume": "Go on with an interrupted run, with the settings that it began with.",
    "overwrite": "Replace what an earlier run of this command left in the folder.",
    "quiet": "Show no progress.",
    "report": "Write DIR/report.html, too; needs out.",
    "init": "A RUN, a weights file, a published torchvision/ or timm/ name, or none for random features.",
    "file": "The YAML file of the study.",
    "workers": "Runs at the same time (none: one per GPU, else one per core for images of at most 64 px).",
    "data": "DATA: a folder, a file of annotations or a table, hf:NAME, wds:SHARDS, or the name of a known data set.",
    "images": "IMAGES: DATA whose labels are not looked at.",
    "folder": "The folder of a study.",
    "what": "methods, recipes, models, augments, data, tasks, or the name of one method.",
}
RUN = (OUT, CONFIG, RESUME, OVERWRITE, QUIET)
DEMO = (
    _keyword("data", str, "digits"),
    _keyword("out", Path, Path("demo")),
    _keyword("workers", int | None, None),
    OVERWRITE,
    QUIET,
)
REPORT = (Parameter("folder", Parameter.POSITIONAL_OR_KEYWORD, annotation=Path),)
LIST = (Parameter("what", Parameter.POSITIONAL_OR_KEYWORD, annotation=str),)
