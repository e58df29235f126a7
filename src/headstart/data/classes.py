"""Some of the classes of a data set, and several of them as one."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from headstart.data.index import NO_LABEL, OBJECTS, DataSet, fingerprint
from headstart.errors import UserError, unknown


def select_classes(data: DataSet, classes: Mapping[str, tuple[str, ...]]) -> DataSet:
    """Return the data set with other classes.

    Images of other classes are left out; images without a label stay. Of boxes, those of other classes are left out,
    and every image stays: one without boxes left is background. Of masks, pixels of other classes become void: they are
    of no class, as those that were void before, and every image stays.

    Args:
        data: the data.
        classes: the new classes in their order, each with the names of those that it is made of.

    Raises:
        UserError: the data have no classes, or not one of these.
    """
    if not data.classes:
        raise UserError(f"classes: {data.name} has no labels ({data.layout})")
    for name in (name for names in classes.values() for name in names):
        if name not in data.classes:
            raise unknown("classes", name, data.classes)
    new = {name: number for number, names in enumerate(classes.values()) for name in names}
    numbers = np.array([*(new.get(name, NO_LABEL) for name in data.classes), NO_LABEL], np.int64)  # -1 finds the last
    if data.objects is not None:
        labels = numbers[data.objects["label"].to_numpy()]
        kept = data.objects.set_column(1, OBJECTS.field("label"), pa.array(labels, pa.int32()))
        return _changed(data, tuple(classes), objects=kept.filter(pa.array(labels != NO_LABEL)))
    if data.mask_values:
        values = dict(zip(data.classes, data.mask_values, strict=True))
        merged = tuple(tuple(value for name in names for value in values[name]) for names in classes.values())
        return _changed(replace(data, mask_values=merged), tuple(classes))
    labels = numbers[data.labels.numpy()]
    rows = ((torch.from_numpy(labels) != NO_LABEL) | (data.labels == NO_LABEL)).nonzero().squeeze(1)
    place = data.index.column_names.index("label")
    index = data.index.set_column(place, data.index.field("label"), pa.array(labels, pa.int32()))
    return _changed(replace(data, index=index).take(rows), tuple(classes))


def _changed(data: DataSet, classes: tuple[str, ...], objects: pa.Table | None = None) -> DataSet:
    values = repr(data.mask_values) if data.mask_values else ""
    named = fingerprint(data.index, classes, f"{data.fingerprint}{values}".encode(), objects)
    return replace(data, classes=classes, objects=objects, fingerprint=named)
