"""The run folder: create, lock, append, finish, read. Files are written under another name, then renamed."""

import fcntl
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO, TypeVar

from headstart.errors import UserError
from headstart.settings import Settings, read_yaml

CONFIG, RESULT, METRICS, ENVIRONMENT = "config.yaml", "result.json", "metrics.jsonl", "environment.json"
LAST, BEST = Path("checkpoints", "last.ckpt"), Path("checkpoints", "best.ckpt")
BACKBONE, HEAD, DETECTOR = "backbone.safetensors", "head.safetensors", "detector.pt"
SettingsT = TypeVar("SettingsT", bound=Settings)
STUDY = "study.yaml"
DOCTOR = "doctor.json"
# What a run or a study puts into its folder; anything else is the user's and never deleted.
_FILES = (CONFIG, STUDY, RESULT, METRICS, ENVIRONMENT, BACKBONE, HEAD)
_OURS = {*_FILES, "checkpoints", "plots", "features", "probes", "scores.csv", DOCTOR} | {
    "cells",
    "results.csv",
    "summary.json",
    "report.html",
    "curves.png",
    DETECTOR,
    "detections",
    "ultralytics",
}
_PACKAGES = ("headstart", "torch", "torchvision", "timm", "lightning", "scikit-learn", "numpy", "pillow")


@dataclass
class Run:
    """A run folder that this process holds the lock of."""

    folder: Path
    finished: bool
    _lock: TextIO | None = field(repr=False, default=None)

    def append(self, **values: Any) -> None:
        """Append one line to the metrics."""
        with (self.folder / METRICS).open("a") as file:
            file.write(json.dumps(values) + "\n")

    def rewind(self, step: int) -> None:
        """Forget the metrics after a step, which a run that was killed after its last checkpoint will write again."""
        path = self.folder / METRICS
        lines = [line for line in read_metrics(self.folder) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    def finish(self, settings: Settings, scores: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
        """Write result.json, whose presence says that the run is finished, and release the folder."""
        result = {"config": settings.model_dump(mode="json"), "scores": dict(scores), **facts}
        write_text(self.folder / RESULT, json.dumps(result, indent=1))
        self.finished = True
        self.release()
        return result

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints of a finished run, which nothing will go on from."""
        shutil.rmtree(self.folder / LAST.parent, ignore_errors=True)

    def release(self) -> None:
        """Let other processes use the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def stored_settings(
    kind: type[SettingsT],
    out: Path,
    given: Mapping[str, Any],
    check: Callable[[SettingsT], SettingsT] = lambda settings: settings,
) -> SettingsT:
    """Return the settings of the run that is to go on, with which those given must agree.

    Args:
        kind: of the settings.
        out: the run folder.
        given: settings as the user wrote them.
        check: resolves what the user wrote in short (a relative path, some of a method's arguments) as it was resolved
            for the run.

    Raises:
        UserError: a given setting differs, so that it would be another run.
    """
    stored = kind.read(out / CONFIG)
    # of nested settings some may be given: the others are the stored ones
    whole = {
        name: {**getattr(stored, name), **value} if isinstance(value, Mapping) and name in kind.model_fields else value
        for name, value in given.items()
    }
    asked = check(stored.updated(**whole))
    for name, value in asked.model_dump().items():
        if value != getattr(stored, name) and value != "auto":
            raise UserError(
                f"{name}: {value} differs from {getattr(stored, name)} in {out / CONFIG}; "
                f"--resume goes on with the same settings (a new run from these weights: --init {out})"
            )
    return stored


def check_out(out: Path, verb: str, *, resume: bool, overwrite: bool) -> None:
    """Check that a run of the verb may write into the folder; changes nothing.

    Raises:
        UserError: the folder holds something else, or cannot be.
    """
    if resume and overwrite:
        raise UserError("resume: cannot go with overwrite (allowed: one of them)")
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"out: {out} is a file, not a folder")
        found = {path.name for path in out.iterdir()} if out.exists() else set()
    except OSError as error:
        raise UserError(f"out: {out} cannot be a folder ({error.strerror})") from None
    found = {name for name in found if not _is_leftover(name)}
    if not found:
        return
    held = _held(out)
    if held is None:
        raise UserError(f"out: {out} is not empty and holds no run (allowed: a new or empty folder)")
    if held != verb:
        raise UserError(f"out: {out} holds a {held}, not a {verb} (allowed: a new or empty folder)")
    if overwrite and found - _OURS:
        raise UserError(
            f"overwrite: {out} also holds {sorted(found - _OURS)[0]}, which is of no run; nothing was deleted"
        )
    if not (resume or overwrite):
        raise UserError(f"out: {out} is not empty (allowed: a new or empty folder, --resume or --overwrite)")


def create(
    out: Path, settings: Settings, facts: Mapping[str, Any], *, resume: bool, overwrite: bool, name: str = CONFIG
) -> Run:
    """Make or reopen a run folder with its settings (``name``) and environment.json, and lock it.

    Raises:
        UserError: the folder holds something else, or another process writes to it.
    """
    check_out(out, str(facts["verb"]), resume=resume, overwrite=overwrite)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = _lock(out)
    except OSError as error:
        raise UserError(f"out: {out} cannot be written to ({error.strerror})") from None
    if overwrite:
        _empty(out)
    for leftover in out.rglob(".*.part"):  # of a process that was killed while it wrote
        leftover.unlink()
    finished = (out / RESULT).exists()
    if not finished:
        write_text(out / ENVIRONMENT, json.dumps({**environment(), **facts}, indent=1))
        write_text(out / name, settings.to_yaml())
    return Run(out, finished, lock)


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return what a finished run wrote, None when it is not finished."""
    path = folder / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics; a last line that a kill cut short is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def read_config(folder: Path, field: str) -> dict[str, Any]:
    """Return the settings of a run.

    Raises:
        UserError: the folder is no run.
    """
    if not (folder / CONFIG).exists():
        raise UserError(f"{field}: {folder} is no run (it has no {CONFIG})")
    return read_yaml(folder / CONFIG)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    replace(path, lambda temporary: temporary.write_text(text))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file under a temporary name, and rename it when it is safely on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def environment() -> dict[str, Any]:
    """Return versions, machine and the git commit of the working folder."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str | None:
    try:
        # no optional locks: looking must not change the user's repository
        command = ["git", "--no-optional-locks", "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _lock(out: Path) -> TextIO:
    file = (out / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(f"out: another process is writing to {out}") from None
    return file


def _is_leftover(name: str) -> bool:
    """Say whether a file is what a process leaves that was killed right at its start."""
    return name == ".lock" or (name.startswith(".") and name.endswith(".part"))


def _held(out: Path) -> str | None:
    """Return the verb whose run or study a folder holds, None when it holds none."""
    try:
        verb = json.loads((out / ENVIRONMENT).read_text())["verb"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(verb)


def _empty(out: Path) -> None:
    # what says whose the folder is goes last
    ours = [path for path in out.iterdir() if path.name in _OURS]
    for path in sorted(ours, key=lambda path: path.name == ENVIRONMENT):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
