"""The commands: options become calls of the functions of the same name, nothing else."""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnusedCliTokensError

import headstart
from headstart.errors import UserError, unknown

# name: (what it does, its settings in headstart.config, its own arguments in headstart.verbs.parameters)
COMMANDS: dict[str, tuple[str, str | None, str]] = {
    "demo": ("The main job in a few minutes, on scanned digits or on your own class folders.", None, "DEMO"),
    "doctor": ("Examine data before a training: what is broken, what it will cost, what to type.", "Doctor", "DOCTOR"),
    "count": ("Count images, objects and pixels of each class and split.", "Count", "COUNT"),
    "split": ("Divide data into parts by class and by group, and write them.", "Split", "PREPARATION"),
    "crop": ("Cut out every labelled object, and background, into class folders.", "Crop", "PREPARATION"),
    "pseudo-label": ("Label images by a detector, as a YOLO data set.", "PseudoLabel", "PSEUDO_LABEL"),
    "pretrain": ("Pretrain a backbone on images without labels.", "Pretrain", "RUN"),
    "probe": ("Score a frozen backbone with kNN and a linear classifier at several label budgets.", "Probe", "PROBE"),
    "finetune": (
        "Learn classes, masks or boxes from a backbone and a few labels, and score them.",
        "Finetune",
        "RUN",
    ),
    "predict": ("Predict classes, masks or boxes of images with a finetuned RUN.", "Predict", "PREDICT"),
    "embed": ("Write the features of images as Parquet, CSV or npz.", "Embed", "EMBED"),
    "export": ("Hand the backbone of a RUN over to another library, and prove that it arrived.", "Export", "EXPORT"),
    "study": ("Compare arms × transfers × label budgets × seeds, and write the report.", "Study", "STUDY"),
    "report": ("Write the report of a study again, as one HTML page.", None, "REPORT"),
    "list": ("List methods, recipes, models, augments, data or tasks, or tell of one method.", None, "LIST"),
}

_GOES_ON = {
    **dict.fromkeys(("study", "demo"), "; the same command goes on"),
    **dict.fromkeys(("pretrain", "finetune"), "; the same command with --resume goes on"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 1 for data to be mended, 2 after a mistake, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words and not words[0].startswith("-") and words[0] not in COMMANDS:
            raise unknown("command", words[0], COMMANDS)
        # only the command that is asked for loads its settings: the others need no more than their line of help
        outcome = build_app(words[0] if words else "")(words, exit_on_error=False, print_error=False)
    except (UserError, CycloptsError) as error:
        print(f"headstart: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"headstart: interrupted{_GOES_ON.get(words[0], '')}", file=sys.stderr)
        return 130
    # a training on several devices starts this command again for each of them
    if outcome is not None and os.environ.get("LOCAL_RANK", "0") == "0":
        print(outcome)
    return 1 if getattr(outcome, "must_fix", False) else 0


def build_app(asked: str) -> App:
    """Return the app, in which the asked command has its options."""
    app = App(
        name="headstart",
        help="Does pretraining on my unlabelled images save me labels?",
        version_flags=["--version"],
        version=_version,
        help_format="plaintext",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(negative=()),
    )
    for name, (help_line, settings, own) in COMMANDS.items():
        app.command(_command(name, settings, own) if name == asked else _nothing, name=name, help=help_line)
    return app


def _nothing() -> None:
    """Stand in for a command that was not asked for."""


def _command(verb: str, settings: str | None, own: str) -> Callable[..., Any]:
    """Return the function behind a command, with an option for each of the verb's arguments and settings."""
    parameters = import_module("headstart.verbs.parameters")
    before: tuple[inspect.Parameter, ...] = getattr(parameters, own)
    fields = getattr(import_module("headstart.config"), settings).model_fields if settings else {}
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_option(
                field.annotation, field.description or "", _default(field), written=bool(field.metadata)
            ),
        )
        for name, field in fields.items()
        if name not in {parameter.name for parameter in before}
    ]

    def call(*positional: Any, **given: Any) -> Any:
        return getattr(import_module("headstart.listing") if verb == "list" else headstart, _function(verb))(
            *positional, **{name: _value(value) for name, value in given.items()}
        )

    own_lines = [f"    {parameter.name}: {parameters.HELP[parameter.name]}" for parameter in before]
    call.__doc__ = "\n".join([COMMANDS[verb][0], "", "Args:", *own_lines])
    call.__signature__ = inspect.Signature([*before, *options])  # type: ignore[attr-defined]
    return call


def _function(verb: str) -> str:
    return "listing" if verb == "list" else verb.replace("-", "_")


def _default(field: Any) -> str:
    if field.is_required():
        return "needed"
    shown = field.default
    if isinstance(shown, tuple):
        shown = ",".join(str(item) for item in shown) or "none"
    return "none" if shown is None else str(shown)


def _option(kind: Any, help_line: str, default: str, *, written: bool) -> Any:
    """Return the annotation of an option. Its text is read by the settings themselves, so errors have one form.

    A mapping is given by dotted names, unless it is ``written`` in one text that its settings know how to read.
    """
    if get_origin(kind) is dict and not written:
        return Annotated[dict[str, str] | None, Parameter(help=help_line, show_default=False, negative=())]
    if kind is bool:
        return Annotated[bool | None, Parameter(help=help_line, show_default=lambda _: default)]
    shown = Parameter(help=help_line, show_default=lambda _: default, metavar="|".join(_forms(kind)))
    return Annotated[str | None, shown]


def _forms(kind: Any) -> list[str]:
    """Return what may be written for a type, as help shows it.

    >>> _forms(int | Literal["auto"]), _forms(tuple[float, ...])
    (['INT', 'auto'], ['FLOAT,...'])
    """
    if kind is type(None):
        return []
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [str(part) for part in parts]
    if origin is Annotated:
        return _forms(parts[0])
    if origin is dict:
        return ["NAME=VALUE,..."]
    if origin is tuple:
        return [f"{'|'.join(_forms(parts[0]))},..."]
    if parts:
        return [form for part in parts for form in _forms(part)]
    return [{str: "TEXT"}.get(kind, kind.__name__.upper())]


def _value(value: Any) -> Any:
    """Return an option's value; dotted ones are read as in YAML, because only the method knows their type."""
    if not isinstance(value, dict):
        return value
    import yaml

    try:
        return {name: yaml.safe_load(text) for name, text in value.items()}
    except yaml.YAMLError:
        raise UserError(f"{', '.join(value)}: {', '.join(value.values())} cannot be read as YAML") from None


def _version() -> str:
    from importlib.metadata import version

    return version("headstart")


def _one_line(error: Exception) -> str:
    match error:
        case MissingArgumentError(argument=argument) if argument is not None:
            return f"{argument.name.lstrip('-')}: needs a value"
        case UnusedCliTokensError(unused_tokens=[first, *_]):
            return f"'{first}': belongs to no option (allowed: --name value)"
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
