"""A folder of prepared data: built under another name beside its place, renamed when it is whole."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from headstart.data.index import DataSet
from headstart.errors import UserError
from headstart.runs import write_text
from headstart.verbs import start

MARK = "prepared.json"  # how the folder was made, and what was written into it
_LONGEST = 200  # bytes of a name; file systems allow 255, and numbers and endings are added
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def prepared(out: Path, verb: str, data: str, facts: Mapping[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder to write into, which becomes ``out`` when all went well and is deleted when it did not.

    Args:
        out: where the folder is to be.
        verb: what makes it.
        data: the DATA that it is made of, in which it may not lie.
        facts: how it is made, for ``prepared.json``; what is added before the end counts.
        overwrite: replace what the same verb has written there.

    Yields:
        The folder to write into.

    Raises:
        UserError: something else is there, or the folder cannot be made or filled.
    """
    start.check_outside(out, data)
    out = Path(os.path.realpath(out))
    building = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        _check_free(out, verb, overwrite)
        building.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(out, error) from None
    try:
        yield building
        files = sorted(_files(building))
        write_text(building / MARK, json.dumps({"verb": verb, **facts, "files": files}, indent=1, ensure_ascii=False))
        _check_free(out, verb, overwrite)
        old = building.with_suffix(".old")
        if out.exists():
            out.rename(old)
        building.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _unwritable(out, error) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def check_apart(out: Path, data: DataSet) -> None:
    """Raise a UserError when a folder is to lie among the images, where what is in it would be taken for some."""
    place = Path(os.path.realpath(out))
    if data.root is None or not place.is_relative_to(os.path.realpath(data.root)):
        return
    for folder in pc.unique(pc.replace_substring_regex(data.paths, "/?[^/]*$", "")).to_pylist():
        if place.is_relative_to(os.path.realpath(data.root / folder)):
            raise UserError(f"out: {out} lies among the images of {data.name} (allowed: a folder outside of them)")


def file_names(names: Sequence[str]) -> list[str]:
    """Return names for files or folders, as like the given ones as can be, and distinct whatever the case.

    >>> file_names(["car", "a/b", "a_b", "..", "Car"])
    ['car', 'a_b', 'a_b_2', '_.', 'Car_2']
    """
    found: dict[str, str] = {}
    for name in names:
        base = re.sub(r'[/\\\0-\x1f:*?"<>|]', "_", name)
        base = re.sub(r"^(\.|$)", "_", base).encode()[:_LONGEST].decode(errors="ignore")
        number, chosen = 1, base
        while chosen.lower() in found:
            number += 1
            chosen = f"{base}_{number}"
        found[chosen.lower()] = chosen
    return list(found.values())


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(f"out: {out} cannot be written to ({error.strerror})")


def _check_free(out: Path, verb: str, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"out: {out} is a file, not a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        mark = json.loads((out / MARK).read_text())
        held, known = mark["verb"], {*mark["files"], MARK}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"out: {out} is not empty (allowed: a new or empty folder)") from None
    if held != verb:
        raise UserError(f"out: {out} holds what {held} has written, not {verb} (allowed: a new or empty folder)")
    if not overwrite:
        raise UserError(f"out: {out} is not empty (allowed: a new or empty folder, or --overwrite)")
    others = sorted(set(_files(out)) - known)
    if others:
        raise UserError(f"overwrite: {out} also holds {others[0]}, which {verb} has not written; nothing was deleted")


def _files(folder: Path) -> Iterator[str]:
    for here, below, files in os.walk(folder):
        links = [name for name in below if (Path(here) / name).is_symlink()]
        for name in (*files, *links):
            yield (Path(here) / name).relative_to(folder).as_posix()
