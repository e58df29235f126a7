"""What is in a tar file of images and labels, found without unpacking it."""

import json
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

from headstart.data.images import EXTENSIONS
from headstart.data.index import BadImage
from headstart.data.scan import printable
from headstart.errors import UserError

_LABELS = ("cls", "json")  # the first one counts
_LONGEST = 1 << 20  # bytes of a label
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)  # KEY.EXTENSION, cut at the first dot as webdataset does


class Member(NamedTuple):
    """An image in a tar file: its name, where its bytes begin, how many they are, and its label or None."""

    name: str
    offset: int
    size: int
    label: str | None


class Shard(NamedTuple):
    """What is in a tar file: images, what cannot be used, and how many members are neither images nor labels."""

    images: list[Member]
    bad: list[BadImage]
    ignored: int


def read_shard(path: Path, name: str) -> Shard:
    """Return what is in a tar file, after a look at its headers and labels.

    Args:
        path: of the tar file.
        name: what messages call it.

    Raises:
        UserError: it is not a tar file, is compressed or truncated, or a name in it leads out of it.
    """
    images, labels = list[tuple[str, Member]](), dict[tuple[str, str], str | BadImage | None]()
    bad, ignored = list[BadImage](), 0
    try:
        with tarfile.open(path, "r:") as archive:
            while (entry := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # or it would keep all of them
                place = _checked(entry, name)
                if entry.isdir():
                    continue
                if not entry.isreg() or entry.issparse():
                    bad.append(BadImage(printable(f"{name}/{place}"), "a link, or another thing that is not a file"))
                    continue
                cut = _NAME.fullmatch(place)
                key, extension = (cut[1], cut[2].lower()) if cut else ("", "")
                if f".{extension}" in EXTENSIONS:
                    images.append((key, Member(place, entry.offset_data, entry.size, None)))
                elif extension in _LABELS:
                    labels[key, extension] = _label(archive, entry, name)
                else:
                    ignored += 1
            _check_end(archive)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"data: {printable(name)} is damaged or not an uncompressed tar file ({error})") from error
    labelled = list[Member]()
    for key, member in images:
        label = next((labels[key, kind] for kind in _LABELS if (key, kind) in labels), None)
        if isinstance(label, BadImage):
            bad.append(label)
        else:
            labelled.append(member._replace(label=label))
    return Shard(labelled, bad, ignored)


def _checked(entry: tarfile.TarInfo, name: str) -> str:
    """Return the name of a member without a leading ``./``; raise a UserError if it leads out of the archive."""
    if entry.name.startswith("/") or ".." in entry.name.split("/"):
        raise UserError(
            f"data: {printable(name)}: the member {printable(entry.name)} leads out of the archive"
            " (allowed: relative names without ..)"
        )
    return entry.name.removeprefix("./")


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise a TarError unless the archive has its end, where tarfile takes a damaged header for it, too."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"unexpected end at byte {archive.offset:,}")


def _label(archive: tarfile.TarFile, entry: tarfile.TarInfo, name: str) -> str | BadImage | None:
    """Return the label that a member holds, None for none."""
    if entry.size > _LONGEST:
        return BadImage(printable(f"{name}/{entry.name}"), f"a label of {entry.size:,} bytes")
    file = archive.extractfile(entry)
    assert file is not None
    try:
        text = file.read().decode()
        if entry.name.lower().endswith(".cls"):
            return text.strip() or None
        found = json.loads(text)
        label = found.get("label") if isinstance(found, dict) else found
    except (UnicodeDecodeError, ValueError, RecursionError):
        return BadImage(printable(f"{name}/{entry.name}"), "a label that cannot be read")
    if label is None or (isinstance(label, int | str) and not isinstance(label, bool)):
        return None if label is None or label == "" else str(label).strip()
    return BadImage(printable(f"{name}/{entry.name}"), "a label that is neither a number nor a name")
