"""Findings about images that are there twice, and about groups that lie in several splits."""

import numpy as np
import torch
from torch import Tensor

from headstart.data.duplicates import groups, near_pairs
from headstart.data.examination import Examined
from headstart.data.index import NO_SPLIT, SPLITS, TEST, VAL, DataSet
from headstart.data.scan import printable
from headstart.verbs.doctoring.finding import SHOWN, Finding, Severity, counted, fine, found

_LISTED = 4  # images of one group in an example
_EXACT = "pixel for pixel the same"


def twins(data: DataSet, examined: Examined, equal_files: np.ndarray, near: int) -> list[Finding]:
    """Find images that are equal or similar, above all those that are in a held-out split and in another one.

    Args:
        data: the data.
        examined: what was decoded of them.
        equal_files: pairs of rows of files with the same bytes, int64 ``[p 2]``.
        near: bits of the perceptual hash in which similar images differ at most.
    """
    exact_pairs = np.concatenate([equal_files, _equal_pixels(examined)])
    exact = torch.from_numpy(groups(exact_pairs, data.count))
    both = torch.from_numpy(groups(np.concatenate([exact_pairs, _similar(examined, near)]), data.count))
    # a group of which all are equal has been told of already
    kinds = torch.unique(torch.stack([both, exact], dim=1), dim=0)[:, 0].bincount(minlength=len(both))
    similar = torch.where(kinds[both] > 1, both, len(both) + torch.arange(len(both)))
    looks_like = f"similar: at most {near} of 64 bits of their perceptual hashes differ"
    return [*_told(data, exact, "exact duplicates", _EXACT), *_told(data, similar, "near duplicates", looks_like)]


def divided_groups(data: DataSet) -> list[Finding]:
    """Find groups, such as the crops of one picture, of which some images are held out and others are not."""
    if data.groups is None:
        return []
    across = _across(data, data.groups)
    if not across.any():
        return [
            fine("groups", f"{counted(len(set(data.groups.tolist())), 'group')}, none in a held-out split and another")
        ]
    count = len(set(data.groups[across].tolist()))
    text = f"{counted(count, 'group')} with images in a held-out split and in another one"
    remedy = "split the data anew: headstart split keeps groups together"
    return [found("groups across splits", "must fix", count, text, remedy, _examples(data, data.groups, across))]


def _equal_pixels(examined: Examined) -> np.ndarray:
    _, first, group = np.unique(examined.digests, return_index=True, return_inverse=True)
    rows = examined.rows.numpy()
    return _different(np.stack([rows[first[group]], rows], axis=1))


def _similar(examined: Examined, near: int) -> np.ndarray:
    """Return pairs of rows that connect all similar images, int64 ``[p 2]``; images of one colour say nothing."""
    varied = np.flatnonzero(~examined.constant)
    rows = examined.rows.numpy()[varied]
    hashes, first, group = np.unique(examined.hashes[varied], return_index=True, return_inverse=True)
    equal = np.stack([rows[first[group]], rows], axis=1)
    near_ones = rows[first[near_pairs(hashes, near)]].reshape(-1, 2)
    return _different(np.concatenate([equal, near_ones]))


def _different(pairs: np.ndarray) -> np.ndarray:
    kept: np.ndarray = pairs[pairs[:, 0] != pairs[:, 1]]
    return kept


def _told(data: DataSet, group: Tensor, name: str, what: str) -> list[Finding]:
    """Return the findings about one kind of duplicates: across splits, of several classes, and all others."""
    together = torch.unique(group, return_inverse=True)[1]
    many = together.bincount()[together] > 1
    if not many.any():
        return [fine(name, "none")]
    across = _across(data, together) & many
    labels = _several(together, data.labels, data.labels >= 0) & many & ~across
    exact = what == _EXACT
    splits = "" if (data.splits != NO_SPLIT).any() else ", before the data are split: headstart split --group"
    kinds: tuple[tuple[Tensor, str, Severity, str, str], ...] = (
        (across, f"{name} across splits", "must fix", "in a held-out split and in another one",
         "delete them from one of the splits: the scores would be too good"),
        (labels, f"{name} of several classes", "must fix" if exact else "should look", "in more than one class",
         "decide on one class or delete them"),
        (many & ~across & ~labels, name, "should look", "more than once",
         "keep one of each" if exact else f"keep them together or one of each{splits}"),
    )  # fmt: skip
    findings = []
    for rows, title, severity, where, remedy in kinds:
        if rows.any():
            number = len(set(together[rows].tolist()))
            text = f"{counted(int(rows.sum()), 'image')} in {counted(number, 'group')}, {where}; {what}"
            findings.append(found(title, severity, int(rows.sum()), text, remedy, _examples(data, together, rows)))
    return findings


def _across(data: DataSet, group: Tensor) -> Tensor:
    """Say for each image whether its group has images in val or test, and in another split, bool ``[n]``."""
    held_out = (data.splits == VAL) | (data.splits == TEST)
    members = torch.zeros(int(group.max()) + 1, dtype=torch.bool).index_fill(0, group[held_out], True)
    return _several(group, data.splits, data.splits != NO_SPLIT) & members[group]


def _several(group: Tensor, values: Tensor, counts: Tensor) -> Tensor:
    """Say for each image whether the values that count differ within its group, bool ``[n]``."""
    pairs = torch.unique(torch.stack([group[counts], values[counts]], dim=1), dim=0)
    several: Tensor = (pairs[:, 0].bincount(minlength=int(group.max()) + 1) > 1)[group]
    return several


def _examples(data: DataSet, group: Tensor, rows: Tensor) -> list[str]:
    """Return one line for each of the first groups: the images that are the same."""
    chosen = rows.nonzero()[:, 0]
    lines = []
    for number in sorted(set(group[chosen].tolist()))[:SHOWN]:
        members = chosen[group[chosen] == number].tolist()
        more = f" and {len(members) - _LISTED} more" if len(members) > _LISTED else ""
        lines.append(" = ".join(_placed(data, row) for row in members[:_LISTED]) + more)
    return lines


def _placed(data: DataSet, row: int) -> str:
    """Return the path of an image, with its split where the path does not begin with it."""
    path = printable(data.paths[row].as_py())
    code = int(data.splits[row])
    return path if code == NO_SPLIT or path.startswith(SPLITS[code]) else f"{path} ({SPLITS[code]})"
