"""The verb ``export``: a RUN's backbone as a file of another library, opened again before it is handed over."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from headstart import runs
from headstart.config.handing_over import Export
from headstart.errors import UserError, unknown
from headstart.progress import say
from headstart.settings import signature
from headstart.verbs import parameters
from headstart.verbs.exporting import card, libraries, onnx, ultralytics
from headstart.verbs.exporting.source import Source, read_source


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        libraries: whose models can become one.
        suffixes: of the file.
        write: writes it.
        check: opens it with its own library, and returns by how much the features differ, as a share of the largest.
        load: returns the lines of Python that a user loads it with.
        tolerance: of the features.
    """

    libraries: tuple[str, ...]
    suffixes: tuple[str, ...]
    write: Callable[[Source, Path], None]
    check: Callable[[Source, Path], float]
    load: Callable[[Source, str], list[str]]
    tolerance: float = 1e-5


ALL = ("torchvision", "timm", "ultralytics")
FORMATS = {
    "torchvision": Format(
        ("torchvision",),
        (".pth", ".pt"),
        libraries.write_state,
        libraries.check_torchvision,
        libraries.load_torchvision,
    ),
    "timm": Format(
        ("timm",),
        (".safetensors", ".pth"),
        libraries.write_state,
        libraries.check_timm,
        libraries.load_timm,
    ),
    "ultralytics": Format(
        ("ultralytics",),
        (".pt",),
        ultralytics.write_ultralytics,
        ultralytics.check_ultralytics,
        ultralytics.load_ultralytics,
    ),
    "smp": Format(
        ("torchvision", "timm"),
        (".pth", ".pt"),
        libraries.write_smp,
        libraries.check_smp,
        libraries.load_smp,
    ),
    "safetensors": Format(
        ALL,
        (".safetensors",),
        libraries.write_state,
        libraries.check_safetensors,
        libraries.load_safetensors,
    ),
    "onnx": Format(
        ALL,
        (".onnx",),
        onnx.write_onnx,
        onnx.check_onnx,
        onnx.load_onnx,
        tolerance=1e-4,
    ),
}


@dataclass(frozen=True)
class Exported:
    """A file that is handed over.

    Attributes:
        out: the file.
        run: the RUN that it is of.
        format: its kind.
        model: MODEL.
        tensors: how many the backbone has.
        difference: of the features when its own library had opened it, at most, as a share of the largest.
        code: the lines of Python that load it.
        card: the model card, if one was asked for.
    """

    out: Path
    run: Path
    format: str
    model: str
    tensors: int
    difference: float
    code: tuple[str, ...]
    card: Path | None

    def __str__(self) -> str:
        """Return what was written, how equal it is, and how to load it."""
        lines = [
            f"{self.model} of {self.run} in {self.out} ({self.format}, {self.tensors} tensors); "
            f"opened again, its features differ by {self.difference:.1g} of the largest",
            *([f"model card in {self.card}"] if self.card is not None else []),
            "to load it:",
            *(f"    {line}" for line in self.code),
        ]
        return "\n".join(lines)


def export(run: str | Path, *, out: str | Path, overwrite: bool = False, quiet: bool = False, **given: Any) -> Exported:
    """Write the backbone of a RUN as the file of another library, and open it again to compare the features.

    Images are to be normalised as the card and the metadata of safetensors and ONNX files say; only the networks of
    Ultralytics, which take pixels in 0..1, have the normalisation in their first layer. A file that its own library
    does not open to equal features is not handed over. The head of a finetuned classifier goes into ONNX files alone.

    Args:
        run: the RUN of a pretrain or a finetune.
        out: the file.
        overwrite: replace the file that is there.
        quiet: say nothing.
        **given: the settings of `headstart.config.handing_over.Export`.

    Raises:
        UserError: one line that names the setting and what is allowed.
    """
    settings = Export.create(**{**given, "run": str(run)})
    form, file = FORMATS[settings.format], Path(out)
    check_file(file, form, Path(settings.run), card=settings.card, overwrite=overwrite)
    source = read_source(settings.run)
    if source.library not in form.libraries:
        allowed = [name for name, other in FORMATS.items() if source.library in other.libraries]
        raise UserError(f"format: {source.begun.model} cannot become {settings.format} (allowed: {', '.join(allowed)})")
    assert source.begun.matched is not None
    if not quiet:
        say(source.begun.matched.describe())
    largest = write_checked(source, settings.format, file)
    code = form.load(source, str(file))
    described = card_of(file) if settings.card else None
    if described is not None:
        runs.write_text(described, card.write(source, form.load(source, file.name), settings.format, file.name))
    return Exported(
        file,
        source.folder,
        settings.format,
        source.begun.model,
        source.begun.matched.total,
        largest,
        tuple(code),
        described,
    )


export.__signature__ = signature(  # type: ignore[attr-defined]
    Export,
    before=parameters.EXPORT,
)


def write_checked(source: Source, name: str, file: Path) -> float:
    """Write a file that its own library opens to equal features, and return by how much they differ at most.

    Raises:
        UserError: they differ by more than the format allows, or the library does not take the network; then no file
            was written, and none replaced.
    """
    form = FORMATS[name]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.", suffix=".part") as folder:
            written = Path(folder, file.name)  # libraries go by the name of a file
            try:
                form.write(source, written)
                largest = form.check(source, written)
            except (RuntimeError, KeyError) as error:  # a library that does not take this network
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"format: {source.begun.model} cannot become {name}: {reason}") from error
            if not largest <= form.tolerance:
                raise UserError(
                    f"format: as {name} opens the file, its features differ by {largest:.1g} of the largest "
                    f"(allowed: {form.tolerance:g}); nothing was written"
                )
            runs.replace(file, written.replace)
    except OSError as error:
        raise UserError(f"out: {file} cannot be written ({error.strerror or error})") from None
    return largest


def check_file(file: Path, form: Format, run: Path, *, card: bool, overwrite: bool) -> None:
    """Raise a UserError unless the file is of the format's kind and may be written."""
    if file.suffix not in form.suffixes:
        raise unknown("out", file.name, [f"FILE{suffix}" for suffix in form.suffixes])
    if file.resolve().is_relative_to(run.resolve()):
        raise UserError(f"out: {file} lies inside of the run {run} (allowed: a file outside of it)")
    for path in (file, *([card_of(file)] if card else [])):
        if path.is_dir():
            raise UserError(f"out: {path} is a folder, not a file")
        if path.exists() and not overwrite:
            raise UserError(f"out: {path} is there already (allowed: another file, or --overwrite)")


def card_of(file: Path) -> Path:
    """Return where the model card of a file is.

    >>> card_of(Path("pets.onnx")).name
    'pets.onnx.md'
    """
    return file.with_name(f"{file.name}.md")
