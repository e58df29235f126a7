"""The verb ``probe``: what frozen features are worth, by kNN and a linear classifier, at several label budgets."""

import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from headstart import runs
from headstart.backbones.given import initialise, run_settings
from headstart.config import Probe
from headstart.contracts import Backbone
from headstart.data import facts
from headstart.data.index import DataSet
from headstart.data.loading import images_at
from headstart.data.splits import Splits, label_subset, parse_budget, split
from headstart.evaluation.features import (
    POOLED,
    Extracted,
    cached_stages,
    extract,
    extract_stages,
    hash_weights,
    stages,
)
from headstart.evaluation.knn import knn_predict
from headstart.evaluation.linear import probe as probe_linear
from headstart.evaluation.scores import classification_scores, confusion
from headstart.progress import say
from headstart.settings import identity, signature
from headstart.training.machine import resolve_precision
from headstart.verbs import parameters, resolve, start
from headstart.verbs.result import Result, mean_and_spread, table


def probe(
    init: str | Path,
    *,
    out: str | Path | None = None,
    config: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **given: Any,
) -> Result:
    """Score a frozen backbone: weighted kNN and a linear classifier at each label budget, for each seed.

    The penalty of the linear classifier is chosen on validation images; test images are scored once.

    Args:
        init: a RUN, a weights file, a published torchvision/ or timm/ name, or none for random features.
        out: the folder to keep the scores in; a RUN keeps them in itself under probes/.
        config: a YAML file of settings; those given win.
        overwrite: replace the scores that are in the folder.
        quiet: say nothing.
        **given: the settings of `headstart.config.Probe`.

    Raises:
        UserError: one line that names the setting and what is allowed.
    """
    settings = start.settings(Probe, {**given, "init": str(init)}, check, config=config, out=None, resume=False)
    data = start.opened(settings, settings.init)
    folder = Path(out) if out is not None else None
    if folder is None and settings.init != "none" and Path(settings.init).is_dir():
        folder = Path(settings.init) / "probes" / identity(settings.model_dump(mode="json"), data.fingerprint)
        overwrite = True  # the name says that the settings and the data are the same
    return run_probe(settings, data, folder, overwrite=overwrite, quiet=quiet)


probe.__signature__ = signature(Probe, before=parameters.PROBE)  # type: ignore[attr-defined]


def check(settings: Probe) -> Probe:
    """Return the settings with all that can be known before anything is loaded checked and resolved."""
    for budget in settings.labels:
        parse_budget(budget)
    run_settings(settings.init)
    return settings.updated(
        precision=resolve_precision(settings.precision),
        data=start.absolute(settings.data),
        init=start.absolute(settings.init),
    )


def run_probe(settings: Probe, data: DataSet, folder: Path | None, *, overwrite: bool, quiet: bool) -> Result:
    """Probe on an opened data set with checked settings."""
    data.require_labels("data")
    splits = split(data)
    seeds = tuple(range(settings.seeds)) if isinstance(settings.seeds, int) else settings.seeds
    # budgets that the data cannot fill are refused before the features are computed
    subsets = {
        (labels, seed): label_subset(data.labels, splits.train, labels, seed, classes=data.classes)
        for labels in settings.labels
        for seed in seeds
    }
    size = start.image_size(settings.init, settings.image_size, data)
    begun = initialise(
        settings.init,
        model=settings.model,
        model_args=settings.model_args,
        stem=settings.stem,
        image_size=size,
        channels=data.pixels.channels,
        seed=settings.seed,
    )
    if begun.matched is not None and not quiet:
        say(begun.matched.describe())
    settings = start.recorded(settings, data).updated(
        model=begun.model, model_args=begun.model_args, stem=begun.stem, image_size=size
    )
    features = _features(settings, begun.backbone, data, splits)
    scores = [
        {**row, "stage": stage}
        for stage in features["train"]
        for row in _score(settings, data, {part: found[stage] for part, found in features.items()}, subsets)
    ]
    if folder is not None:
        known = {"verb": "probe", "data": facts.describe(data, {name: getattr(splits, name) for name in start.PARTS})}
        run = runs.create(folder, settings, known, resume=False, overwrite=overwrite)
        runs.write_text(folder / "scores.csv", _csv(scores))
        run.finish(settings, {"rows": scores})
    return Result(folder, settings.model_dump(mode="json"), {"rows": scores}, _text(scores, settings, folder))


def _features(settings: Probe, backbone: Backbone, data: DataSet, splits: Splits) -> dict[str, dict[str, Extracted]]:
    """Return the features of each split and stage, computed only where no file has them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    files = _files(settings, backbone, data)

    def compute(part: str) -> dict[str, Extracted]:
        batches = images_at(
            data,
            getattr(splits, part),
            int(settings.image_size),
            batch_size=settings.batch_size,
            workers=resolve.workers(settings.workers),
            device=device,
        )
        if settings.stages:
            return extract_stages(backbone, batches, device=device, precision=settings.precision)
        return {POOLED: extract(backbone, batches, device=device, precision=settings.precision)}

    return {part: cached_stages(files[part], partial(compute, part)) for part in start.PARTS}


def _files(settings: Probe, backbone: Backbone, data: DataSet) -> dict[str, dict[str, Path]]:
    """Return the files in which a RUN keeps its features, for each split and stage; none where there is no RUN."""
    if settings.init == "none" or not Path(settings.init).is_dir():
        return {part: {} for part in start.PARTS}
    # equal weights give other features in a network of other strides
    deciding = ("model", "model_args", "stem", "image_size", "precision", "channels", "pixel_range")
    known: dict[str, Any] = {name: getattr(settings, name) for name in deciding}
    known["weights"] = hash_weights(backbone)
    wanted = stages(backbone) if settings.stages else [POOLED]

    def file(part: str, stage: str) -> Path:
        name = f"{data.fingerprint}-{identity({**known, 'part': part, 'stage': stage})}.safetensors"
        return Path(settings.init) / "features" / name

    return {part: {stage: file(part, stage) for stage in wanted} for part in start.PARTS}


def _score(
    settings: Probe, data: DataSet, features: dict[str, Extracted], subsets: dict[tuple[str, int], Tensor]
) -> list[dict[str, Any]]:
    """Return one row of scores per label budget and seed, from the features of one stage."""
    labels = {part: data.labels[found.rows] for part, found in features.items()}
    train, test, classes = features["train"].features, features["test"].features, len(data.classes)
    # subsets name rows of the data set, the solver wants rows of the training features
    chosen = [torch.isin(features["train"].rows, rows).nonzero().squeeze(1) for rows in subsets.values()]
    penalties = torch.tensor(settings.penalties, dtype=torch.float64)
    solved = probe_linear(
        train,
        labels["train"],
        features["val"].features,
        labels["val"],
        test,
        labels["test"],
        chosen,
        penalties,
        classes,
    )
    found = []
    for (budget, seed), rows, score in zip(subsets, chosen, solved, strict=True):
        bank, answers = train[rows], labels["train"][rows]
        neighbours = {}
        for k in settings.neighbours:
            predicted = knn_predict(bank, answers, test, classes, k)
            neighbours[f"knn{k}_accuracy"] = float((predicted == labels["test"]).double().mean())
        found.append(
            {
                "labels": budget,
                "images": len(rows),
                "seed": seed,
                **classification_scores(confusion(labels["test"], score.predictions, classes)),
                **neighbours,
                "val_accuracy": score.val_accuracy,
                "penalty": score.penalty,
            }
        )
    return found


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _text(rows: list[dict[str, Any]], settings: Probe, folder: Path | None) -> str:
    names = {"accuracy": "linear", **{f"knn{k}_accuracy": f"kNN, k = {k}" for k in settings.neighbours}}
    lines = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        for labels in settings.labels:
            found = [row for row in rows if (row["stage"], row["labels"]) == (stage, labels)]
            cells = [mean_and_spread([row[name] for row in found]) for name in names]
            lines.append([stage, labels, str(found[0]["images"]), *cells])
    head = ["stage", "labels", "images", *names.values()]
    if not settings.stages:
        head, lines = head[1:], [line[1:] for line in lines]
    seeds = len({row["seed"] for row in rows})
    title = f"test accuracy in %, mean ± standard deviation over {seeds} label subset{'s' if seeds > 1 else ''}"
    best = f"\n{_best_stages(rows, settings.labels)}" if settings.stages else ""
    kept = f"\nscores in {folder / 'scores.csv'}" if folder is not None else ""
    return f"{title}\n{table(head, lines)}{best}{kept}"


def _best_stages(rows: list[dict[str, Any]], budgets: Sequence[str]) -> str:
    """Return which stage is best at each label budget on the validation images, whatever it does on the test images."""
    of_stage: dict[str, list[str]] = {}
    for labels in budgets:
        accuracies: dict[str, list[float]] = {}
        for row in rows:
            if row["labels"] == labels:
                accuracies.setdefault(row["stage"], []).append(row["val_accuracy"])
        best = max(accuracies, key=lambda stage: mean(accuracies[stage]))  # of equals the first
        of_stage.setdefault(best, []).append(labels)
    found = "; ".join(f"{stage} at labels {', '.join(labels)}" for stage, labels in of_stage.items())
    return f"best stage by linear validation accuracy: {found}"
