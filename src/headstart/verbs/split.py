"""The verb ``split``: data divided into named parts, stratified, seeded, and with groups that stay together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.config import Split
from headstart.data.groups import groups_of
from headstart.data.index import NO_SPLIT, SPLITS, DataSet
from headstart.data.manifests import MANIFEST, SPLIT, Reference, parted, with_groups, write_split
from headstart.data.options import Options
from headstart.data.parts import divide, rarest
from headstart.data.scan import first, printable
from headstart.data.splits import limited
from headstart.data.trees import write_tree
from headstart.errors import UserError
from headstart.progress import Track
from headstart.settings import signature
from headstart.verbs import parameters, start
from headstart.verbs.prepared import MARK, check_apart, file_names, prepared
from headstart.verbs.result import table

_SHOWN = 30  # classes in the table


@dataclass(frozen=True)
class SplitResult:
    """A division that was written.

    Attributes:
        out: its folder.
        counts: the images in each part.
        classes: for each class, its images in each part; of boxes, its objects.
        notes: what the user should know, a line each.
    """

    out: Path
    counts: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Return the table of classes and parts, and the notes."""
        rows = [*[*self.classes.items()][:_SHOWN], ("images", self.counts)]
        lines = [
            [printable(name), *(f"{found[part]:,}" for part in self.counts), f"{sum(found.values()):,}"]
            for name, found in rows
        ]
        more = [f"… {len(self.classes) - _SHOWN} more classes"] if len(self.classes) > _SHOWN else []
        return "\n".join([table(["", *self.counts, "all"], lines), *more, *self.notes, f"written to {self.out}"])


def split(
    data: str | Path,
    *,
    out: str | Path,
    config: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **given: Any,
) -> SplitResult:
    """Divide data into parts, by class within one image of the sizes asked for, and write them.

    Parts called train, val, test and unlabelled become the splits of one data set. Parts of other names become a data
    set each, in a folder of that name; they keep the splits that the data came with.

    Args:
        data: DATA; its images stay where they are.
        out: the folder to write into.
        config: a YAML file of settings; those given win.
        overwrite: replace the split that is in the folder.
        quiet: show no progress.
        **given: the settings of `headstart.config.Split`.

    Raises:
        UserError: one line that names the setting and what is allowed.
    """
    settings = start.settings(Split, {**given, "data": str(data)}, _check, config=config, out=None, resume=False)
    folder = Path(out)
    facts = {"settings": settings.model_dump(mode="json")}
    with prepared(folder, "split", settings.data, facts, overwrite=overwrite) as building:
        origin = start.opened(settings.updated(limit=None))
        check_apart(folder, origin)
        source = limited(origin, settings.limit)
        names = tuple(settings.parts)
        named = not set(names) <= set(SPLITS)
        group = settings.group
        marked = source if group is None else with_groups(source, groups_of(source, settings.data, group))
        shares = [size / 100 for size in settings.parts.values()]
        parts = divide(_strata(source, keep_splits=named), shares, settings.seed, marked.groups)
        _check_parts(parts, names, grouped=marked.groups is not None)
        reference = _reference(settings, origin)
        with Track("writing", source.count, unit="images", quiet=quiet or settings.by == "manifest") as track:
            if named:
                _write_named(settings, marked, parts, reference, building, track)
            else:
                codes = torch.tensor([SPLITS.index(name) for name in names])
                divided = parted(marked, torch.arange(source.count), codes[parts])
                _write(settings, divided, reference, building, track)
    notes = [*_large_groups(marked, parts, shares, names)]
    if not named and (source.splits != NO_SPLIT).any():
        notes.append("the splits that the data came with are replaced")
    missing = _missing(source, parts, names)
    return SplitResult(folder, _counts(parts, names), _classes(source, parts, names), (*notes, *missing))


split.__signature__ = signature(Split, before=parameters.PREPARATION)  # type: ignore[attr-defined]


def _check(settings: Split) -> Split:
    for name, folder in zip(settings.parts, file_names([*settings.parts]), strict=True):
        if name != folder or name in (SPLIT, MANIFEST, MARK):
            shown = printable(name)
            raise UserError(f"parts: '{shown}' cannot be the name of a folder (allowed: names such as train, ssl)")
    total = sum(settings.parts.values())
    if abs(total - 100) > 1e-6:
        raise UserError(f"parts: the sizes add up to {total:g} (allowed: percentages that add up to 100)")
    if settings.group is not None and not settings.group:
        raise UserError("group: is empty (allowed: a column of the table, or a regular expression with one group)")
    return settings.updated(data=start.absolute(settings.data))


def _strata(data: DataSet, *, keep_splits: bool) -> Tensor:
    """Return what each part is to have its share of: classes, of boxes the rarest in the image, within each split."""
    labels = data.labels
    if data.objects is not None:
        images, objects = (torch.tensor(data.objects[name].to_numpy()).long() for name in ("image", "label"))
        labels = rarest(images, objects, data.count)
    return labels + (len(data.classes) + 1) * data.splits if keep_splits else labels


def _check_parts(parts: Tensor, names: tuple[str, ...], *, grouped: bool) -> None:
    for name, count in _counts(parts, names).items():
        if count == 0:
            what = "groups" if grouped else "images"
            raise UserError(
                f"parts: {name} gets none of {len(parts)} images (allowed: a larger part, fewer parts or more {what})"
            )


def _write_named(
    settings: Split, data: DataSet, parts: Tensor, reference: Reference, folder: Path, track: Track
) -> None:
    names = tuple(settings.parts)
    for number, name in enumerate(names):
        rows = (parts == number).nonzero().squeeze(1)
        _write(settings, parted(data, rows, data.splits[rows]), replace(reference, part=name), folder / name, track)
    if settings.by == "manifest":
        write_split(folder, reference, data, [names[part] for part in parts.tolist()])


def _write(settings: Split, data: DataSet, reference: Reference, folder: Path, track: Track) -> None:
    if settings.by == "manifest":
        write_split(folder, reference, data)
        return
    if settings.classes and "mask" in data.index.column_names:
        raise UserError("by: copies of masks have all of their classes (allowed with classes: manifest)")
    link = settings.by == "links"
    write_tree(data, folder, file_names(data.classes), link=link, written=track.update)


def _reference(settings: Split, origin: DataSet) -> Reference:
    options = Options(settings.max_bad, settings.classes, settings.channels, settings.pixel_range)
    return Reference(
        settings.data, origin.fingerprint, options, parts=settings.parts, seed=settings.seed, group=settings.group
    )


def _counts(parts: Tensor, names: tuple[str, ...]) -> dict[str, int]:
    return dict(zip(names, torch.bincount(parts, minlength=len(names)).tolist(), strict=True))


def _classes(data: DataSet, parts: Tensor, names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Return for each class its images in each part; of boxes, its objects."""
    labels = data.labels
    if data.objects is not None:
        images, labels = (torch.tensor(data.objects[name].to_numpy()).long() for name in ("image", "label"))
        parts = parts[images]
    if not (labels >= 0).any():
        return {}
    return {name: _counts(parts[labels == label], names) for label, name in enumerate(data.classes)}


def _missing(data: DataSet, parts: Tensor, names: tuple[str, ...]) -> list[str]:
    """Return for each part a line that names the classes that are not in it."""
    found = _classes(data, parts, names)
    lines = []
    for part in names:
        absent = [name for name, counts in found.items() if not counts[part]]
        if absent:
            lines.append(f"{part} has nothing of {len(absent)} of {len(found)} classes: {first(absent)}")
    return lines


def _large_groups(data: DataSet, parts: Tensor, shares: list[float], names: tuple[str, ...]) -> list[str]:
    """Return a line about how many groups there are, and one about each that is larger than its part should be."""
    if data.groups is None:
        return []
    _, numbers, sizes = torch.unique(data.groups, return_inverse=True, return_counts=True)
    asked = torch.tensor(shares, dtype=torch.float64)[parts] * data.count
    large = torch.unique(numbers[sizes[numbers] > asked.ceil()]).tolist()
    lines = [f"{len(sizes):,} groups, each of them in one part"]
    for group in large[:_SHOWN]:
        row = int((numbers == group).nonzero()[0])
        name = printable(str(data.index["group"][row].as_py()))
        wanted = f"more than {names[int(parts[row])]} should have ({float(asked[row]):,.0f})"
        lines.append(f"group {name} has {int(sizes[group]):,} images, {wanted}")
    return lines
