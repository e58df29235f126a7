"""The verb ``list``: what there is to choose from."""

from collections.abc import Callable

from headstart.errors import unknown


def listing(what: str) -> str:
    """Return a table of the methods, models, augments, data or tasks that there are.

    Raises:
        UserError: there is no such list.
    """
    if what not in _LISTS:
        raise unknown("list", what, _LISTS)
    return _LISTS[what]()


def _methods() -> str:
    from headstart.methods import METHODS, hyper_parameters
    from headstart.verbs.result import table

    lines = []
    for name, method in METHODS.items():
        arguments = ", ".join(f"{key}={value.default}" for key, value in hyper_parameters(method).items())
        lines.append([name, method.paper, " ".join(method.views), arguments])
    return table(["method", "paper", "views", "method_args"], lines)


def _models() -> str:
    from headstart.backbones import list_models

    return "\n".join(list_models())


def _augments() -> str:
    from headstart.verbs.result import table
    from headstart.views import PRESETS

    lines = []
    for name, augment in PRESETS.items():
        shown = augment.model_dump(exclude_defaults=True)
        lines.append([name, ", ".join(f"{key} {value}" for key, value in shown.items()) or "the whole image"])
    return table(["augment", "what it does"], lines)


def _data() -> str:
    from headstart.data.sources import KNOWN_DATA, cache_folder

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
    "models": _models,
    "augments": _augments,
    "data": _data,
    "tasks": _tasks,
}
