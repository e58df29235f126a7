"""The training of a task, with looks at the validation images, and what it leaves behind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from headstart import runs
from headstart.config import Finetune
from headstart.progress import Track, say
from headstart.runs import Run
from headstart.training import checkpoint
from headstart.training.fit import fit
from headstart.training.machine import prepared
from headstart.training.optim import build_optimizer, learning_rate, scale_learning_rate
from headstart.training.record import Recorder
from headstart.verbs import start
from headstart.verbs.finetuning.job import Job, Look
from headstart.verbs.finetuning.transfer import Transfer

PLATEAU = 0.1  # by which the learning rate is multiplied when looks find nothing better


class Best(NamedTuple):
    """The best look at the validation images so far, and the weights that it was at."""

    step: int
    look: Look
    state: Mapping[str, Tensor]


NO_LOOK = Best(0, Look(-1.0, 0.0), {})


@dataclass(frozen=True)
class Supervised:
    """A task, and how it is trained.

    Attributes:
        settings: resolved.
        job: the task with its images.
        images: how many labelled images it learns from.
        fabric: device, precision and processes.
        transfer: proves that the backbone has the weights that were given; None for random ones.
    """

    settings: Finetune
    job: Job[Any]
    images: int
    fabric: Fabric
    transfer: Transfer | None = None

    @property
    def epoch_steps(self) -> int:
        """Optimiser steps in one pass over the labelled images."""
        return self.images // int(self.settings.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return max(int(self.settings.epochs) * self.epoch_steps, self.settings.min_steps)

    def train(self, run: Run | None, last: Path | None, *, quiet: bool, lean: bool) -> tuple[Best, dict[str, Any]]:
        """Train from the last checkpoint, if there is one; return the best look and what the training took."""
        settings, fabric, steps, task = self.settings, self.fabric, self.steps, self.job.task
        assert settings.betas != "auto"
        optimizer = build_optimizer(
            task, str(settings.optimizer), weight_decay=float(settings.weight_decay), betas=settings.betas
        )
        trained, set_up = fabric.setup(prepared(task, fabric), optimizer)
        if self.transfer is not None:
            self.transfer.check(self.job.task.backbone, self.job.task.head)
            if run is not None and not quiet:
                say(self.transfer.line)
        first, best, history = self._restore(last, optimizer)
        batch_size, looks = int(settings.batch_size), look_steps(steps, settings.evaluations)
        stopped = self._impatient(looks, best, first)  # a run that was killed after it had stopped early
        show = Track(
            "finetune", steps * batch_size, unit="images", start=first * batch_size, quiet=quiet or run is None
        )
        with show as track:
            recorder = Recorder(
                run,
                track,
                fabric,
                first=first,
                steps=steps,
                epoch_steps=self.epoch_steps,
                minutes=settings.checkpoint_every,
                save_last=not lean,
            )
            for step in fit(
                trained,
                iter(self.job.batches(first, steps)),
                set_up,
                fabric=fabric,
                learning_rates=lambda step: self._learning_rate(step, history),
                start=first,
                steps=first if stopped else steps,
                parts=settings.accumulate,
                seed=settings.seed,
                clip_gradient=settings.clip_gradient,
            ):
                if step.step not in looks:
                    recorder.record(step)
                else:
                    # batch statistics may differ between processes, the decision to stop must not
                    look = Look(*fabric.broadcast(tuple(self.job.look())))
                    recorder.record(step, **{f"val_{self.job.score}": look.score}, val_loss=look.loss)
                    history.append(look)
                    if beats(look, best.look):
                        best = Best(step.step, look, start.state_of(task))
                stopped = self._impatient(looks, best, step.step)
                if recorder.checkpoint_due(step) or stopped:
                    self._save_best(run, best)
                    recorder.save(step, task, optimizer, looks=[tuple(look) for look in history])
                if stopped:
                    break
        return best, recorder.facts()

    def hand_over(self, run: Run, best: Best, took: Mapping[str, Any], *, lean: bool) -> None:
        """Score the best weights once on the test images, and write them, plots, and last of all the result."""
        self.job.task.load_state_dict(dict(best.state))
        start.check_weights(self.job.task)
        found = self.job.finish(run.folder, lean=lean)
        scores = found.pop("scores")
        start.save_weights(run.folder / runs.BACKBONE, self.job.task.backbone.net)
        start.save_weights(run.folder / runs.HEAD, self.job.task.handed_on)
        run.finish(
            self.settings,
            {**scores, f"val_{self.job.score}": best.look.score, "val_loss": best.look.loss},
            images=self.images,
            best_epoch=round(best.step / self.epoch_steps, 3),
            transfer=self.transfer.line if self.transfer is not None else None,
            **found,
            **took,
        )
        if lean:
            run.drop_checkpoints()

    def _learning_rate(self, step: int, history: Sequence[Look]) -> float:
        """Return the learning rate of a step; ``history`` has the looks before it."""
        settings = self.settings
        peak = scale_learning_rate(
            float(settings.learning_rate), int(settings.batch_size), str(settings.learning_rate_scaling)
        )
        warmup = float(settings.warmup)
        if settings.schedule == "cosine":
            return learning_rate(step, steps=self.steps, warmup=warmup, peak=peak)
        risen = min(1.0, (step + 1) / max(1, round(warmup * self.steps)))
        falls = plateaus(history, settings.plateau_patience) if settings.schedule == "plateau" else 0
        return peak * risen * PLATEAU**falls

    def _impatient(self, looks: frozenset[int], best: Best, step: int) -> bool:
        patience = self.settings.patience
        return patience is not None and looks_between(looks, best.step, step) >= patience

    def _restore(self, last: Path | None, optimizer: Optimizer) -> tuple[int, Best, list[Look]]:
        if last is None:
            return 0, NO_LOOK, []
        stored = checkpoint.read(last, "resume")
        first = checkpoint.restore(stored, objective=self.job.task, optimizer=optimizer)
        history = [Look(*look) for look in stored["looks"]]
        path = last.with_name(runs.BEST.name)
        if not path.exists():
            return first, NO_LOOK, history
        # It may be of a look after the last checkpoint: then the same look comes again and does not beat it.
        state = checkpoint.read(path, "resume")
        return first, Best(state["step"], Look(*state["look"]), state["objective"]), history

    def _save_best(self, run: Run | None, best: Best) -> None:
        if run is not None and best.step > 0:
            path = run.folder / runs.BEST
            checkpoint.save(path, step=best.step, objective=best.state, look=tuple(best.look))


def beats(look: Look, other: Look) -> bool:
    """Say whether a look is better than another: a higher score, or the same with a lower loss.

    >>> beats(Look(0.5, 1.0), Look(0.5, 2.0)), beats(Look(0.4, 0.1), Look(0.5, 2.0))
    (True, False)
    """
    return (look.score, -look.loss) > (other.score, -other.loss)


def plateaus(history: Sequence[Look], patience: int) -> int:
    """Return how often ``patience`` looks, one after the other, found nothing better than the best before them.

    >>> plateaus([Look(0.5, 1.0), Look(0.4, 1.0), Look(0.4, 1.0), Look(0.6, 1.0), Look(0.5, 1.0)], 2)
    1
    """
    count, waited, best = 0, 0, NO_LOOK.look
    for look in history:
        better = beats(look, best)
        best, waited = (look, 0) if better else (best, waited + 1)
        if waited == patience:
            count, waited = count + 1, 0
    return count


def look_steps(steps: int, looks: int) -> frozenset[int]:
    """Return the steps after which to look at the validation images: evenly spaced, the last one among them.

    >>> sorted(look_steps(10, 4)), sorted(look_steps(2, 5))
    ([2, 5, 8, 10], [1, 2])
    """
    return frozenset(max(1, round(steps * (look + 1) / looks)) for look in range(looks))


def looks_between(looks: frozenset[int], first: int, last: int) -> int:
    """Return how many looks there are after step ``first``, up to step ``last``.

    >>> looks_between(frozenset({2, 4, 6, 8}), 2, 7), looks_between(frozenset({2, 4, 6, 8}), 8, 8)
    (2, 0)
    """
    return sum(first < look <= last for look in looks)
