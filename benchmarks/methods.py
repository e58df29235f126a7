"""What the features of every method are worth, each pretrained with its own recipe, beside those of random weights.

    python benchmarks/methods.py --data cifar10 --model torchvision/resnet18 --epochs 200 --out methods-cifar10

Accuracies are those of the last epoch on the test images, never of the best one. Every pretraining has a process of its
own, so that its peak memory is its own too. A row of OUT/table.csv is added per method and seed: run it again and it
goes on where it stopped. With that model and so many epochs the table has lightly's published accuracies beside it.
"""

import argparse
import csv
import io
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any, ParamSpec, TypeVar

from headstart import UserError, runs
from headstart.errors import unknown
from headstart.studies.statistics import t_interval

# kNN (k = 200, T = 0.1) on CIFAR-10, ResNet-18 with a small stem, 200 epochs, batch 512 or 128: the best epoch on test
# of one seed. https://docs.lightly.ai/self-supervised-learning/getting_started/benchmarks.html
LIGHTLY = {"simclr": 84.8, "moco": 84.7, "byol": 86.8, "barlow-twins": 84.2, "swav": 84.2, "dino": 84.0}
LIGHTLY_SETTING = ("torchvision/resnet18", 200)
SCORES = {"knn200": "kNN, k = 200", "knn20": "kNN, k = 20", "linear10": "linear, 10 labels", "linear": "linear"}

Row = dict[str, Any]
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Options:
    """What decides the numbers; the same for all methods."""

    data: str
    epochs: int
    limit: int | None
    probe_limit: int | None
    model: str
    model_args: Mapping[str, Any]
    transformer: str
    transformer_args: Mapping[str, Any]
    image_size: int | None
    batch_size: int | None
    stages: tuple[str, ...]
    teacher: str | None


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="DATA with labels")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--out", type=Path, default=Path("methods"), help="folder of the table and of the runs")
    parser.add_argument("--methods", help="names with commas between them (default: all)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit", type=int, help="use at most this many images")
    parser.add_argument("--probe-limit", type=int, help="use at most this many images for scoring (default: --limit)")
    parser.add_argument("--model", default="torchvision/resnet18")
    parser.add_argument("--model-args", type=json.loads, default={}, help="JSON")
    parser.add_argument("--transformer", default="timm/vit_tiny_patch16_224", help="MODEL of methods that need one")
    parser.add_argument("--transformer-args", type=json.loads, default={}, help="JSON")
    parser.add_argument("--image-size", type=int, help="pixels (default: the images' own)")
    parser.add_argument("--batch-size", type=int, help="images per step (default: each method's recipe)")
    parser.add_argument("--stages", default="rotation", help="methods judged by their best stage on validation images")
    parser.add_argument("--teacher", help="of distill: a RUN or weights (default: simclr's RUN of the same seed)")
    return parser.parse_args()


def in_own_process(work: Callable[Arguments, Answer], *given: Arguments.args, **named: Arguments.kwargs) -> Answer:
    """Return what a function returns in a new process, which inherits nothing from this one."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *given, **named).result()


def method_names() -> dict[str, bool]:
    """Return the names of all methods, and whether each needs a vision transformer."""
    from headstart.methods import METHODS

    return {name: "vit" in method.needs for name, method in METHODS.items()}


def measure(options: Options, name: str, seed: int, settings: Mapping[str, Any], folder: Path) -> Row:
    """Pretrain with a method, or finish or take the RUN that is in the folder, and return its row."""
    import headstart

    given = {key: value for key in ("epochs", "limit", "batch_size") if (value := getattr(options, key)) is not None}
    if name == "distill":
        given["method_args"] = {"teacher": options.teacher or str(folder.with_name(f"simclr-{seed}"))}
    run = headstart.pretrain(
        data=options.data,
        method=name,
        seed=seed,
        out=folder,
        resume=(folder / runs.CONFIG).exists(),
        **settings,
        **given,
    )
    result = runs.read_result(folder)
    assert result is not None
    return {
        "method": name,
        "seed": seed,
        "baseline": baseline_name(settings["model"], name in options.stages),
        **scores(options, str(folder), staged=name in options.stages, settings={}),
        **{key: result[key] for key in ("seconds", "images_per_second", "peak_memory_bytes", "collapsed_at_step")},
        **{key: result["health"].get(key) for key in ("health_std", "health_rank", "health_rank_limit")},
        "batch_size": run.config["batch_size"],
    }


def measure_baseline(options: Options, seed: int, settings: Mapping[str, Any], staged: bool) -> Row:
    """Return the row of a backbone with the random weights that a pretraining of that seed begins with."""
    found = scores(options, "none", staged=staged, settings={**settings, "seed": seed})
    return {"method": baseline_name(settings["model"], staged), "seed": seed, **found}


def baseline_name(model: str, staged: bool) -> str:
    return f"random {model}, best stage" if staged else f"random {model}"


def scores(options: Options, init: str, *, staged: bool, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return test accuracies in percent, with 10 labels per class those of five subsets."""
    import headstart

    given = {**settings, "data": options.data, "limit": options.probe_limit, "stages": staged, "quiet": True}
    few = at_one_stage(headstart.probe(init, labels="10", seeds=5, **given).scores["rows"])
    (every,) = at_one_stage(headstart.probe(init, labels="all", seeds=1, **given).scores["rows"])
    return {
        "knn200": 100 * every["knn200_accuracy"],
        "knn20": 100 * every["knn20_accuracy"],
        "linear10": [100 * row["accuracy"] for row in few],
        "linear": 100 * every["accuracy"],
        "stage": every["stage"],
    }


def at_one_stage(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the stage that is best on the validation images, whatever it does on the test images."""
    stages = dict.fromkeys(row["stage"] for row in rows)
    best = max(stages, key=lambda stage: mean(row["val_accuracy"] for row in rows if row["stage"] == stage))
    return [row for row in rows if row["stage"] == best]


def read_table(path: Path) -> list[Row]:
    """Return the rows that are there; every cell is JSON."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{key: json.loads(text) for key, text in row.items() if text} for row in csv.DictReader(file)]


def write_table(path: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: json.dumps(value) for key, value in row.items()} for row in rows)
    runs.write_text(path, text.getvalue())


def check_settings(options: Options, folder: Path) -> None:
    """Keep the settings in the folder; raise a UserError when rows of others are there."""
    path, text = folder / "settings.json", json.dumps(asdict(options), indent=1)
    if path.exists() and path.read_text() != text:
        raise UserError(f"out: {folder} holds measurements with other settings, see {path} (allowed: another folder)")
    runs.write_text(path, text)


def fill_table(options: Options, names: Mapping[str, bool], seeds: int, folder: Path) -> list[Row]:
    """Measure what is not in the folder's table yet, and return its rows; say which methods cannot run."""
    path = folder / "table.csv"
    rows = read_table(path)
    size = {} if options.image_size is None else {"image_size": options.image_size}

    def add(name: str, seed: int, work: Callable[..., Row], *arguments: object) -> None:
        if not any((row["method"], row["seed"]) == (name, seed) for row in rows):
            rows.append(in_own_process(work, options, *arguments))
            write_table(path, rows)

    for seed in range(seeds):
        for name, needs_vit in names.items():
            if name == "distill" and not options.teacher and not (folder / f"simclr-{seed}" / runs.RESULT).exists():
                print("distill is left out: no teacher (give --teacher, or simclr among --methods)", file=sys.stderr)
                continue
            model, model_args = options.model, options.model_args
            if needs_vit:
                model, model_args = options.transformer, options.transformer_args
            settings = {"model": model, "model_args": model_args, **size}
            staged = name in options.stages
            try:
                add(baseline_name(model, staged), seed, measure_baseline, seed, settings, staged)
                add(name, seed, measure, name, seed, settings, folder / f"{name}-{seed}")
            except UserError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
    return rows


def cell(values: Sequence[float], *, signed: bool = False) -> str:
    """Return a mean, and half of its 95 % interval when there is more than one value.

    >>> cell([3.0], signed=True), cell([1.0, 3.0])
    ('+3.0', '2.0 ± 12.7')
    """
    low, high = t_interval(values, 0.95)
    spread = f" ± {(high - low) / 2:.1f}" if low is not None and high is not None else ""
    return f"{mean(values):{'+' if signed else ''}.1f}{spread}"


def values_of(rows: Sequence[Row], score: str) -> list[float]:
    """Return one value per seed, or of a single seed one per label subset."""
    found = [row[score] for row in rows]
    if not isinstance(found[0], list):
        return found
    return found[0] if len(found) == 1 else [mean(each) for each in found]


def line(rows: Sequence[Row], baselines: Sequence[Row], with_lightly: bool) -> list[str]:
    """Return the cells of one method: its rows, and those of its baseline, in the order of the seeds."""
    first = rows[0]
    cells = [first["method"]]
    for score in SCORES:
        own = values_of(rows, score)
        gains = [mine - other for mine, other in zip(own, values_of(baselines, score), strict=True)]
        cells.append(cell(own) + (f" ({cell(gains, signed=True)})" if rows is not baselines else ""))
    if rows is baselines:
        return [*cells, *[""] * (6 + with_lightly)]
    known = [row for row in rows if "health_std" in row]
    collapsed = [row["collapsed_at_step"] for row in rows if row.get("collapsed_at_step") is not None]
    cells += [
        f"{mean(row['seconds'] for row in rows):,.0f}",
        f"{mean(row['images_per_second'] for row in rows):,.0f}",
        f"{mean(row['peak_memory_bytes'] for row in rows) / 1e6:,.0f}",
        f"{mean(row['health_std'] for row in known):.2f}" if known else "",
        f"{mean(row['health_rank'] for row in rows):.0f} of {first['health_rank_limit']:.0f}",
        ", ".join(f"at step {step}" for step in collapsed) or "no",
    ]
    return [*cells, *([str(LIGHTLY.get(first["method"], ""))] if with_lightly else [])]


def markdown(rows: Sequence[Row], options: Options) -> str:
    """Return the table of all rows, baselines first."""
    with_lightly = (options.model, options.epochs) == LIGHTLY_SETTING
    head = ["method", *SCORES.values(), "seconds", "images/s", "memory, MB", "std", "rank", "collapsed"]
    lines = [[*head, *(["lightly, kNN"] if with_lightly else [])]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    of_method: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: "baseline" in row):
        of_method.setdefault(row["method"], []).append(row)
    for found in of_method.values():
        others = of_method[str(found[0].get("baseline", found[0]["method"]))]
        paired = [other for row in found for other in others if other["seed"] == row["seed"]]
        lines.append(line(found, others if others is found else paired, with_lightly))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Fill the table and print it."""
    given = vars(read_options())
    folder, seeds, wanted = given.pop("out"), given.pop("seeds"), given.pop("methods")
    given["probe_limit"] = given["probe_limit"] or given["limit"]
    options = Options(**{**given, "stages": tuple(given["stages"].split(","))})
    every = in_own_process(method_names)
    for name in wanted.split(",") if wanted else ():
        if name not in every:
            raise unknown("methods", name, every)
    check_settings(options, folder)
    names = {name: vit for name, vit in every.items() if not wanted or name in wanted.split(",")}
    rows = fill_table(options, names, seeds, folder)
    here = runs.environment()
    versions = ", ".join(f"{package} {version}" for package, version in here["versions"].items())
    print(f"{date.today()}, {here['processor']}, {here['cores']} cores, trained on {device(folder)}")
    print(f"commit {here['commit']}, {versions}")
    print(f"`python {shlex.join(sys.argv)}`\n\n{markdown(rows, options)}")
    print(
        "\nTest accuracy in % at the last epoch, in brackets the difference to random weights of the same seeds; "
        "± half of the 95 % interval over the seeds, with a single seed over five subsets of 10 labels per class."
    )


def device(folder: Path) -> str:
    """Return what the trainings ran on."""
    found = sorted(folder.glob(f"*/{runs.ENVIRONMENT}"))
    return " and ".join(sorted({json.loads(path.read_text())["device"] for path in found})) or "unknown"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
