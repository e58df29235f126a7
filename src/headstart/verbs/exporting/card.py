"""A model card: what a file of weights is, how to load it, and what it was made of."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from headstart import runs
from headstart.data.scan import printable
from headstart.verbs.exporting.source import Source
from headstart.verbs.result import mean_and_spread

_SHOWN = 30  # classes that are named
_PLACES = ("data", "init", "teacher")  # settings that may name folders of the machine that it was made on


def write(source: Source, code: Sequence[str], kind: str, file: str) -> str:
    """Return the card as Markdown.

    Args:
        source: the RUN.
        code: the lines of Python that load the file.
        kind: the format of the file.
        file: its name.
    """
    parts = [
        f"# {title(source)}",
        f"{_plain(file)}: the backbone of a Headstart {source.environment['verb']}, as {kind}.",
        _section("Input", _table(("input", "is"), inputs(source, kind))),
        _section("How to load it", "```python\n" + "\n".join(code) + "\n```"),
        _section("Data", _table(("data", "is"), data(source))),
        _section("Recipe", f"```yaml\n{recipe(source.config)}```"),
        _section("Scores", scores(source)),
        _section("Made with", _table(("what", "is"), made_with(source.environment))),
        _section("Licence", "Not stated yet: it is up to those who own the images and the weights to choose one here."),
    ]
    return "\n\n".join(parts) + "\n"


def title(source: Source) -> str:
    """Return what the weights are in one line."""
    how = source.config.get("method") or f"{source.config.get('transfer')} to {source.config.get('task')}"
    return f"{_plain(source.begun.model)}, {_plain(how)}, {_plain(_known(source).get('name', '?'))}"


def inputs(source: Source, kind: str) -> dict[str, str]:
    """Return how images are to be prepared."""
    mean, std = source.normalisation
    size, ranges = source.begun.image_size, source.pixel_range
    values = f"{_numbers(mean)} of each channel is subtracted, then divided by {_numbers(std)}"
    low_high = "; ".join(f"{low:g} … {high:g}" for low, high in ranges) if ranges else "0 … 255"
    return {
        "size": f"{size} × {size} pixels (the shorter side resized, the centre cropped)",
        "channels": f"{source.channels}{' (red, green, blue)' if source.channels == 3 else ''}",
        "pixels": f"{low_high} become 0 … 1",
        "normalisation": "none, it is in the first layer" if kind == "ultralytics" else values,
        "first layers": f"{source.begun.stem} stem",
        "features": f"{source.begun.backbone.dim} numbers per image",
    }


def data(source: Source) -> dict[str, str]:
    """Return what the images were."""
    known = _known(source)
    classes = [_plain(name) for name in known.get("classes", [])]
    more = f", … {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else ""
    parts = {
        name: f"{part['images']:,} images, file names {_plain(part['hash'])}"
        for name, part in known.get("parts", {}).items()
    }
    return {
        "name": _plain(known.get("name", "?")),
        "layout": _plain(known.get("layout", "?")),
        "images": f"{known.get('images', 0):,}",
        "classes": f"{len(classes)}: {', '.join(classes[:_SHOWN])}{more}" if classes else "none",
        "fingerprint": _plain(known.get("fingerprint", "?")),
        **parts,
    }


def recipe(config: Mapping[str, Any]) -> str:
    """Return the settings as YAML, of folders only the names."""
    shown = _without_folders(config)
    if config.get("method_args"):
        shown["method_args"] = _without_folders(config["method_args"])
    text: str = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    return text


def scores(source: Source) -> str:
    """Return what the run and the probes of its backbone scored."""
    found = {name: value for name, value in source.result.get("scores", {}).items() if isinstance(value, int | float)}
    parts = [_table(("score of the run", "is"), {name: f"{value:.4g}" for name, value in found.items()})]
    for file in sorted(source.folder.glob(f"probes/*/{runs.RESULT}")):
        parts.append(_probe(file))
    return "\n\n".join(parts)


def made_with(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return versions and machine."""
    device = {"device": environment["device"]} if "device" in environment else {}
    return {name: _plain(value) for name, value in {**environment.get("versions", {}), **device}.items()}


def _without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: Path(value).name if name in _PLACES and value else value for name, value in settings.items()}


def _probe(file: Path) -> str:
    """Return the scores of a probe as a table: test accuracy in percent by stage and labels."""
    rows = json.loads(file.read_text())["scores"]["rows"]
    try:
        name = json.loads((file.parent / runs.ENVIRONMENT).read_text())["data"]["name"]
    except (OSError, ValueError, KeyError):
        name = "?"
    measures = [measure for measure in rows[0] if measure.endswith("accuracy") and measure != "val_accuracy"]
    lines = []
    for stage, labels in dict.fromkeys((row.get("stage", "pooled"), row["labels"]) for row in rows):
        of = [row for row in rows if (row.get("stage", "pooled"), row["labels"]) == (stage, labels)]
        lines.append([stage, labels, str(len(of)), *(mean_and_spread([row[name] for row in of]) for name in measures)])
    head = ["stage", "labels", "seeds", *(measure.replace("_", " ") for measure in measures)]
    text = f"Probe on {_plain(name)}: test scores in %, mean ± standard deviation over label subsets."
    return f"{text}\n\n{_rows(head, lines)}"


def _known(source: Source) -> Mapping[str, Any]:
    known: Mapping[str, Any] = source.environment.get("data", {})
    return known


def _section(name: str, text: str) -> str:
    return f"## {name}\n\n{text}"


def _table(head: Sequence[str], values: Mapping[str, str]) -> str:
    return _rows(head, [[_plain(name), value] for name, value in values.items()])


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: object) -> str:
    r"""Return a text in which Markdown and HTML see nothing but letters.

    >>> _plain("a|b<i>")
    'a\\|b&lt;i&gt;'
    """
    escaped = printable(str(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "\\`*[]|#" else letter for letter in escaped)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
