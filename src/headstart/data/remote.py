"""Files that patterns name, here or at any address that fsspec knows."""

import hashlib
import re
from collections.abc import Iterator
from glob import glob
from pathlib import Path, PurePosixPath
from typing import Any

from headstart.data.home import cache_folder
from headstart.errors import UserError
from headstart.progress import Track
from headstart.runs import replace

_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield the texts that a pattern with braces stands for, as bash does.

    >>> list(expand_braces("{train,val}-{08..10}.tar"))[2:5]
    ['train-10.tar', 'val-08.tar', 'val-09.tar']
    """
    begin = pattern.find("{")
    end = _closing(pattern, begin) if begin >= 0 else None
    if end is None:
        yield pattern
        return
    for choice in _choices(pattern[begin + 1 : end]):
        for rest in expand_braces(pattern[end + 1 :]):
            yield pattern[:begin] + choice + rest


def find_files(pattern: str) -> list[Path]:
    """Return the files that a pattern names, sorted; those of a URL after they have been copied to the cache folder.

    Args:
        pattern: a path or URL with braces (``{00..99}``, ``{train,val}``) and wildcards (``*``).

    Raises:
        UserError: one of the names is of no file, or cannot be copied.
    """
    names = list(expand_braces(pattern.removeprefix("file://")))
    return sorted(set(_remote(names) if "://" in names[0] else _local(names)))


def _closing(pattern: str, begin: int) -> int | None:
    """Return where the brace that opens there is closed."""
    depth = 0
    for place in range(begin, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 0:
            return place
    return None


def _choices(inside: str) -> Iterator[str]:
    limits = _RANGE.fullmatch(inside)
    if limits is None:
        begin = depth = 0
        for place, sign in enumerate(f"{inside},"):
            depth += {"{": 1, "}": -1}.get(sign, 0)
            if sign == "," and depth == 0:
                yield from expand_braces(inside[begin:place])
                begin = place + 1
        return
    first, last = int(limits[1]), int(limits[2])
    width = len(limits[1]) if limits[1].startswith("0") else 0
    step = 1 if last >= first else -1
    yield from (f"{number:0{width}}" for number in range(first, last + step, step))


def _local(names: list[str]) -> list[Path]:
    found = list[Path]()
    for name in names:
        path = Path(name).expanduser()
        files = [path] if path.is_file() else [Path(match) for match in glob(str(path)) if Path(match).is_file()]  # noqa: PTH207  Path.glob has no absolute patterns
        if not files:
            raise UserError(f"data: no file {name} (allowed: wds:FOLDER/train-{{0000..0099}}.tar or wds:FOLDER/*.tar)")
        found += files
    return found


def _remote(names: list[str]) -> list[Path]:
    import fsspec  # type: ignore[import-untyped]  # here, because data on this machine do without it

    found = list[Path]()
    try:
        system, _ = fsspec.core.url_to_fs(names[0])
        paths = [match for name in names for match in _listed(system, system._strip_protocol(name))]
        if not paths:
            raise FileNotFoundError("no such file")
        with Track("copying shards", len(paths), unit="files") as track:
            for path in paths:
                found.append(_copied(system, path))
                track.update()
    except Exception as error:  # each of the file systems has its own kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"data: {names[0]} cannot be copied to {cache_folder()} ({reason})") from error
    return found


def _listed(system: Any, path: str) -> list[str]:
    return list(system.glob(path)) if any(sign in path for sign in "*[") else [path]


def _copied(system: Any, path: str) -> Path:
    """Return the copy of a remote file in the cache folder; it is there whole or not at all."""
    folder, _, name = system.unstrip_protocol(path).rpartition("/")
    key = hashlib.sha256(folder.encode()).hexdigest()[:8]
    copy: Path = cache_folder() / "shards" / f"{PurePosixPath(folder).name or 'root'}-{key}" / name
    if not copy.exists():
        replace(copy, lambda temporary: system.get_file(path, str(temporary)))
    return copy
