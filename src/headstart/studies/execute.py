"""Runs the cells of a study on this machine: finished ones are skipped, failed ones do not stop the others."""

import json
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import lru_cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from headstart import runs
from headstart.config import Data, Finetune, Pretrain, Probe, Study
from headstart.errors import UserError
from headstart.progress import Track, say
from headstart.studies.plan import Cell, Prepared

if TYPE_CHECKING:
    from headstart.data.index import DataSet

T = TypeVar("T")
VERBS = ("pretrain", "probe", "finetune")


def error_file(folder: Path, cell_id: str) -> Path:
    """Return where the traceback of a failed cell is kept."""
    return folder / f"{cell_id}.error"


def execute(cells: Sequence[Cell], folder: Path, *, workers: int, quiet: bool) -> dict[str, str]:
    """Run every cell that is not finished, a cell after the one that it needs.

    Args:
        cells: of the study.
        folder: a run folder is made in it for each cell, under the cell's id.
        workers: processes that run cells at the same time.
        quiet: show no progress.

    Returns:
        Why cells failed, by their ids, in one line each.
    """
    left = {cell.id: cell for cell in cells if runs.read_result(folder / cell.id) is None}
    done = {cell.id for cell in cells} - left.keys()
    failed: dict[str, str] = {}
    with Track("study", len(cells), unit="cells", start=len(done), quiet=quiet) as track:
        while left:
            # A worker that is killed (out of memory, say) takes the pool with it: the cells it may have been at fail,
            # a new pool goes on with the others.
            with _pool(min(workers, len(left))) as pool:
                try:
                    _drain(pool, left, done, failed, folder, track)
                except BrokenProcessPool:
                    lost = [cell_id for cell_id in left if _begun(folder / cell_id)]
                    for cell_id in lost or list(left):
                        _fail(left.pop(cell_id), "a worker process was killed", failed, folder)
    return failed


def _drain(
    pool: ProcessPoolExecutor,
    left: dict[str, Cell],
    done: set[str],
    failed: dict[str, str],
    folder: Path,
    track: Track,
) -> None:
    """Hand cells to the pool as what they need is done, until none is left."""
    running: dict[Future[str | None], str] = {}
    while left:
        for cell in [cell for cell in left.values() if cell.needs in failed]:
            _fail(left.pop(cell.id), f"its pretraining {cell.needs} failed", failed, folder)
            track.update()
        ready = [cell for cell in left.values() if cell.needs is None or cell.needs in done]
        for cell in ready:
            if cell.id not in running.values():
                running[pool.submit(run_cell, cell, folder)] = cell.id
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            cell_id = running.pop(future)
            error = future.result()
            cell = left.pop(cell_id)
            if error is None:
                done.add(cell_id)
            else:
                _fail(cell, error, failed, folder)
            track.update(text=f"{cell.arm} {cell.kind}, seed {cell.seed} ")


def _fail(cell: Cell, error: str, failed: dict[str, str], folder: Path) -> None:
    failed[cell.id] = error
    say(f"failed: {cell.arm} {cell.kind}, seed {cell.seed}: {error} ({error_file(folder, cell.id)})")


def _begun(folder: Path) -> bool:
    return (folder / runs.CONFIG).exists() and runs.read_result(folder) is None


def in_worker(job: Callable[..., T], *arguments: Any) -> T:
    """Return what a job gives that needs torch, run in a process of its own so that this one need not load it."""
    with _pool(1) as pool:
        return pool.submit(job, *arguments).result()


def prepare_study(study: Study) -> Prepared:
    """Do the job of `headstart.studies.prepare.prepare`."""
    from headstart.studies.prepare import prepare

    return prepare(study)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of processes, which end at once when this process is interrupted or killed."""
    # The fork server imports torch once, and its children share that memory; it never runs it, so forking is safe.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["headstart.studies.prepare", *(f"headstart.verbs.{verb}" for verb in VERBS)])
    with _safe_path():
        forkserver.ensure_running()
    heard, alive = multiprocessing.Pipe(duplex=False)
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(threads, heard))
    with heard, alive:
        try:
            yield pool
        except BaseException:
            alive.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _safe_path() -> Iterator[None]:
    """Keep the fork server from importing a timm.py that happens to lie in the working folder."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _start_worker(threads: int, heard: Connection) -> None:
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    Thread(target=_end_with_parent, args=(heard,), daemon=True).start()


def _end_with_parent(heard: Connection) -> None:
    with suppress(EOFError, OSError):
        heard.recv()  # nothing is ever sent: it returns when the parent's end is closed, by whatever ended the parent
    os._exit(1)


def run_cell(cell: Cell, folder: Path) -> str | None:
    """Run one cell in its folder and return None, or in one line why it failed; the folder has the traceback then."""
    try:
        _run(cell, folder)
    except UserError as error:
        return _note(error_file(folder, cell.id), str(error), str(error))
    except Exception as error:  # a cell may fail in any way; the others go on
        short = " ".join(f"{type(error).__name__}: {error}".split())
        return _note(error_file(folder, cell.id), short, traceback.format_exc())
    return None


def _note(path: Path, short: str, long: str) -> str:
    runs.write_text(path, long + "\n")
    return short


def _run(cell: Cell, folder: Path) -> None:
    from headstart.verbs import finetune, pretrain, probe

    out = folder / cell.id
    error_file(folder, cell.id).unlink(missing_ok=True)
    settings: Mapping[str, Any] = cell.settings
    if cell.needs is not None:
        settings = {**settings, "init": str(folder / cell.needs)}
    data = _open(json.dumps({name: settings[name] for name in Data.model_fields}))
    if cell.kind == "pretrain":
        checked = pretrain.check(Pretrain.create(**settings))
        pretrain.run_pretrain(checked, data, out, resume=True, overwrite=False, quiet=True, lean=True)
    elif cell.kind == "probe":
        probe.run_probe(probe.check(Probe.create(**settings)), data, out, overwrite=out.exists(), quiet=True)
    else:
        trained = finetune.check(Finetune.create(**settings))
        finetune.run_finetune(trained, data, out, resume=True, overwrite=False, quiet=True, lean=True)


@lru_cache(maxsize=2)
def _open(settings: str) -> "DataSet":
    """Return an opened data set; the cells that a worker runs after each other read the same images."""
    from headstart.verbs import start

    return start.opened(Data.create(**json.loads(settings)))
