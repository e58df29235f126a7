"""The verb ``list``: what there is to choose from."""

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from headstart.errors import unknown

if TYPE_CHECKING:
    from headstart.contracts import Method, Recipe

_LINE = 110  # characters of running text
_NEEDS = {"labels": "labels", "vit": "a ViT of timm"}
_BATCHES = {
    "shuffled": "every image once per epoch",
    "balanced": "every class equally often",
    "anchored": "anchors of one class, then images of others",
}
_RATES = (
    "Rates are for a batch of 256. They grow in proportion to the batch; where it says sqrt, with its square root.\n"
    "few: what changes below 10,000 images, beside epochs and batch."
)
_KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "none",
}


def listing(what: str) -> str:
    """Return what there is of a kind, or what there is to know of one method.

    Args:
        what: methods, recipes, models, augments, data, tasks, or the name of a method.

    Raises:
        UserError: there is no such list and no such method.
    """
    if what in _LISTS:
        return _LISTS[what]()
    from headstart.methods import METHODS

    if what not in METHODS:
        raise unknown("list", what, (*_LISTS, *METHODS))
    return _method(what)


def _methods() -> str:
    from headstart.methods import METHODS, hyper_parameters
    from headstart.verbs.resolve import written_views

    lines = []
    for name, method in METHODS.items():
        recipe = method.recipes.natural
        settings = f"{_rate(recipe)}, {recipe.epochs} × {recipe.batch_size}"
        lines.append([name, _needs(method), written_views(method.views), settings, method.paper])
    temperature = hyper_parameters(METHODS["simclr"])["temperature"].default
    return (
        f"{_columns(['method', 'needs', 'views', 'recipe (epochs × batch)', 'paper'], lines)}\n\n"
        "recipe                  of photographs above 64 px; there are others for small images and for small data\n"
        "headstart list NAME     one method: what it does, its recipes, its hyper-parameters\n"
        "headstart list recipes  the settings of all of them, which pretrain takes where none are given\n"
        f"--method-args.KEY VALUE sets a hyper-parameter, such as simclr's temperature={temperature}"
    )


def _recipes() -> str:
    from headstart.methods import METHODS

    lines = []
    for name in METHODS:
        above, below = _recipe_lines(name)
        lines += [[name, *above], ["", *below]]
    return f"{_columns(['method', *_recipe_head()], lines)}\n\n{_RATES}"


def _method(name: str) -> str:
    from headstart.methods import METHODS, hyper_parameters

    method = METHODS[name]
    first = (inspect.getdoc(inspect.getmodule(method)) or "").partition("\n\n")[0]
    paragraphs = [first, *(inspect.getdoc(method) or "").split("\n\n")]
    facts = {
        "paper": method.paper,
        "needs": _needs(method),
        "batches": _BATCHES[method.sampling],
        "collapse?": method.remedy,
    }
    arguments = [
        [key, _kind(parameter.annotation), _value(parameter.default)]
        for key, parameter in hyper_parameters(method).items()
    ]
    return "\n\n".join(
        [
            *(textwrap.fill(paragraph.replace("``", "`"), _LINE) for paragraph in paragraphs),
            "\n".join(f"{key:<10} {fact}" for key, fact in facts.items()),
            f"{_columns(_recipe_head(), _recipe_lines(name))}\n{_RATES}",
            _columns(["method_args", "is", "default"], arguments),
        ]
    )


def _needs(method: "type[Method]") -> str:
    from headstart.methods import hyper_parameters

    needs = [_NEEDS[need] for need in method.needs]
    if "teacher" in hyper_parameters(method):
        needs.append("a teacher")
    return ", ".join(needs) or "nothing"


def _rate(recipe: "Recipe") -> str:
    rule = "" if recipe.learning_rate_scaling == "linear" else f" {recipe.learning_rate_scaling}"
    return f"{recipe.optimizer} {_value(recipe.learning_rate)}{rule}"


def _recipe_head() -> list[str]:
    from headstart.verbs.resolve import SMALL_DATA

    return [
        "images",
        "optimiser, rate",
        "decay",
        "warm-up",
        "epochs × batch",
        f"below {SMALL_DATA:,}",
        "views; what differs from the defaults",
    ]


def _recipe_lines(name: str) -> list[list[str]]:
    """Return two lines: for images above 64 px and for small ones."""
    from headstart.backbones.stems import LARGEST_SMALL_IMAGE as LARGEST
    from headstart.methods import METHODS
    from headstart.verbs import resolve

    method, lines = METHODS[name], []
    for images, size in ((f"> {LARGEST} px", LARGEST + 1), (f"≤ {LARGEST} px", LARGEST)):
        usual = resolve.recipe(method, resolve.SMALL_DATA, size)
        few = resolve.recipe(method, resolve.SMALL_DATA - 1, size)
        differing = [resolve.written_views(usual.views or method.views), *_differing(usual, few)]
        lines.append(
            [
                images,
                _rate(usual),
                _value(usual.weight_decay),
                f"{usual.warmup:.0%}",
                f"{usual.epochs} × {usual.batch_size}",
                f"{few.epochs} × {few.batch_size}",
                "; ".join(differing),
            ]
        )
    return lines


def _differing(usual: "Recipe", few: "Recipe") -> list[str]:
    """Return what no column of a recipe has: hyper-parameters, betas, and what else changes where images are few."""
    changed = {key: value for key, value in few.method_args.items() if usual.method_args.get(key) != value}
    columns = ("epochs", "batch_size", "method_args")
    for field in fields(few):
        value = getattr(few, field.name)
        if field.name not in columns and value != getattr(usual, field.name):
            changed[field.name] = value
    betas = {} if usual.betas == type(usual).betas else {"betas": usual.betas}
    found = [_written({**usual.method_args, **betas}), f"few: {_written(changed)}" if changed else ""]
    return [part for part in found if part]


def _written(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_value(value)}" for key, value in values.items())


def _value(value: object) -> str:
    """Return a value as one would type it.

    >>> [_value(value) for value in (1.5e-06, 25.0, True, "auto", None, (0.9, 0.95))]
    ['1.5e-6', '25', 'true', 'auto', 'none', '0.9,0.95']
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(_value(item) for item in value)
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def _kind(annotation: Any) -> str:
    """Return in words what a hyper-parameter may be."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(annotation).json_schema()
    return " or ".join(_words(part) for part in schema.get("anyOf", [schema]))


def _words(schema: Mapping[str, Any]) -> str:
    """Return in words what a part of a JSON schema allows.

    >>> _words({"type": "integer", "minimum": 1}), _words({"type": "number", "exclusiveMinimum": 0})
    ('whole number from 1', 'number above 0')
    """
    if "const" in schema:
        return str(schema["const"])
    kind = _KINDS[schema["type"]]
    # bounds behind a validator of our own keep pydantic's names
    least, most = schema.get("minimum", schema.get("ge")), schema.get("maximum", schema.get("le"))
    if "exclusiveMinimum" in schema:
        return f"{kind} above {schema['exclusiveMinimum']}"
    return kind + (f" from {least}" if least is not None else "") + (f" to {most}" if most is not None else "")


def _columns(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return lines as a table of words, which unlike numbers begin at the left.

    >>> print(_columns(["method", "needs"], [["supcon", "labels"], ["moco", "nothing"]]))
    method  needs
    ───────────────
    supcon  labels
    moco    nothing
    """
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rows = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in (head, *lines)]
    return "\n".join(row.rstrip() for row in [rows[0], "─" * max(map(len, rows)), *rows[1:]])


def _models() -> str:
    from headstart.backbones import list_models

    return "\n".join(list_models())


def _augments() -> str:
    from headstart.views import PRESETS

    lines = []
    for name, augment in PRESETS.items():
        shown = augment.model_dump(exclude_defaults=True)
        lines.append([name, ", ".join(f"{key} {value}" for key, value in shown.items()) or "the whole image"])
    return _columns(["augment", "what it does"], lines)


def _data() -> str:
    from headstart.data.known import KNOWN_DATA, cache_folder

    names = ", ".join(KNOWN_DATA)
    return (
        f"known data sets, kept in {cache_folder()}: {names}\n"
        "or a folder: of images at any depth (unlabelled), or of class folders, with or without train/ val/ test/ above"
    )


def _tasks() -> str:
    from headstart.tasks import TASKS

    return "\n".join(TASKS)


_LISTS: dict[str, Callable[[], str]] = {
    "methods": _methods,
    "recipes": _recipes,
    "models": _models,
    "augments": _augments,
    "data": _data,
    "tasks": _tasks,
}
