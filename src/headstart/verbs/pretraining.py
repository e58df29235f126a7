"""The training of a method, with looks at its health, and what it leaves behind."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor

from headstart import runs
from headstart.config import Pretrain
from headstart.contracts import Method
from headstart.data.index import DataSet
from headstart.data.loading import ViewLoader, images_at
from headstart.data.sampling import Anchored, Balanced, EveryImage, Sampler
from headstart.progress import Track, say
from headstart.runs import Run
from headstart.training import checkpoint
from headstart.training.fit import fit
from headstart.training.machine import prepared
from headstart.training.optim import build_optimizer, learning_rate, scale_learning_rate
from headstart.training.record import Recorder
from headstart.verbs import figures, resolve, start
from headstart.verbs.health import CollapseError, Watch, looks

DRAWN = 8  # images in the picture of the views


@dataclass(frozen=True)
class Pretraining:
    """A method, and what it learns from.

    Attributes:
        settings: resolved.
        data: the opened data set.
        rows: the images to pretrain on, int64 ``[n]``.
        labels: those that the method may see, int64 ``[data.count]``, -1 for none.
        method: on the CPU, with its first weights.
        fabric: device, precision and processes.
    """

    settings: Pretrain
    data: DataSet
    rows: Tensor
    labels: Tensor
    method: Method
    fabric: Fabric

    @property
    def epoch_steps(self) -> int:
        """Optimiser steps in one pass over the images."""
        return len(self.rows) // int(self.settings.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return int(self.settings.epochs) * self.epoch_steps

    def train(self, run: Run | None, last: Path | None, *, quiet: bool, lean: bool) -> dict[str, Any]:
        """Train to the end from the last checkpoint, if there is one, and return what it took."""
        settings, steps, batch_size = self.settings, self.steps, int(self.settings.batch_size)
        peak = scale_learning_rate(float(settings.learning_rate), batch_size, settings.learning_rate_scaling)
        optimizer = build_optimizer(
            self.method,
            settings.optimizer,
            weight_decay=float(settings.weight_decay),
            betas=(0.9, 0.999) if settings.betas == "auto" else settings.betas,
            peak=peak,
        )
        trained, set_up = self.fabric.setup(prepared(self.method, self.fabric), optimizer)
        first = 0
        if last is not None:
            state = checkpoint.read(last, "resume")
            first = checkpoint.restore(state, objective=self.method, optimizer=optimizer)
        loader = self.loader(first)
        show = Track(
            "pretrain", steps * batch_size, unit="images", start=first * batch_size, quiet=quiet or run is None
        )
        with show as track:
            recorder = Recorder(
                run,
                track,
                self.fabric,
                first=first,
                steps=steps,
                epoch_steps=self.epoch_steps,
                minutes=settings.checkpoint_every,
                save_last=not lean,
            )
            watch = self._watch(run)
            for step in fit(
                trained,
                iter(loader),
                set_up,
                fabric=self.fabric,
                learning_rates=lambda step: learning_rate(step, steps=steps, warmup=float(settings.warmup), peak=peak),
                start=first,
                steps=steps,
                parts=settings.accumulate,
                seed=settings.seed,
                clip_gradient=settings.clip_gradient,
            ):
                if watch.due(step.step):
                    recorder.record(step, **watch.look(step.step, step.batch))
                    try:
                        watch.stop()
                    except CollapseError:
                        if run is not None and not lean:
                            self._draw_health(run, watch.collapsed_at)
                        raise
                else:
                    recorder.record(step)
                if recorder.checkpoint_due(step):
                    recorder.save(step, self.method, optimizer)
        return {**recorder.facts(), **watch.facts(), "unreadable_images": dict(loader.bad)}

    def draw_views(self, run: Run) -> None:
        """Draw some images beside their views of the first step, so that one sees what the method will see."""
        channels = self.data.pixels.channels
        mean, std = (0.0,) * channels, (1.0,) * channels  # as they are, not normalised
        loader = ViewLoader(
            dataset=self.data,
            rows=self.rows,
            augments=resolve.augments(self.settings),
            image_size=int(self.settings.image_size),
            batch_size=int(self.settings.batch_size),
            sampler=self.sampler(),
            seed=self.settings.seed,
            stop=1,
            mean=mean,
            std=std,
        )
        batch = next(iter(loader))
        whole = next(iter(images_at(self.data, batch.rows[:DRAWN], int(self.settings.image_size), mean=mean, std=std)))
        columns = [whole.views[0], *(view[:DRAWN] for view in batch.views)]
        shown = slice(3) if channels >= 3 else [0, 0, 0]  # of many channels the first three
        pictures = [
            [column[image, shown].permute(1, 2, 0).numpy() for column in columns] for image in range(len(whole.rows))
        ]
        titles = ["image", *(f"view {number}" for number in range(1, len(columns)))]
        figures.view_sheet(run.folder / "plots" / "views.png", pictures, titles)

    def hand_over(self, run: Run, took: Mapping[str, Any], *, lean: bool) -> None:
        """Write what the run leaves behind: weights under their library's names, plots, and last of all the result."""
        start.check_weights(self.method)
        start.save_weights(run.folder / runs.BACKBONE, self.method.handed_on.net)
        start.save_weights(run.folder / runs.HEAD, self.method.projector)
        metrics = runs.read_metrics(run.folder)
        if not lean:
            losses = [name for name in metrics[-1] if name.endswith("loss")]
            panels = {"loss": losses, "learning rate": ["learning_rate"]}
            figures.curves(run.folder / "plots" / "curves.png", metrics, panels)
            self._draw_health(run, took["collapsed_at_step"])
        run.finish(self.settings, {"loss": metrics[-1]["loss"]}, **took)
        if lean:
            run.drop_checkpoints()

    def _draw_health(self, run: Run, collapsed_at: int | None) -> None:
        settings = self.settings
        summary = f"{settings.method} on {settings.model}, {settings.epochs} epochs of batch {settings.batch_size}"
        if collapsed_at is not None:
            summary += f": collapsed at step {collapsed_at} of {self.steps}"
        figures.health_panel(run.folder / "plots" / "health.png", runs.read_metrics(run.folder), summary)

    def loader(self, first: int) -> ViewLoader:
        """Return the batches from a step on."""
        return ViewLoader(
            dataset=self.data,
            rows=self.rows,
            labels=self.labels,
            augments=resolve.augments(self.settings),
            image_size=int(self.settings.image_size),
            batch_size=int(self.settings.batch_size),
            sampler=self.sampler(),
            parts=self.settings.accumulate,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            seed=self.settings.seed,
            start=first,
            stop=self.steps,
            workers=resolve.workers(self.settings.workers),
            device=self.fabric.device,
        )

    def sampler(self) -> Sampler:
        """Return what draws the images of each step."""
        batch_size, seed = int(self.settings.batch_size), self.settings.seed
        pieces = self.settings.accumulate * self.fabric.world_size
        labels = self.labels[self.rows]
        if self.settings.sampling == "balanced":
            return Balanced(labels, batch_size, seed, pieces=pieces)
        if self.settings.sampling == "anchored":
            name = self.settings.method_args["background"]
            background = self.data.classes.index(name) if name in self.data.classes else None
            anchors = self.settings.method_args["anchors"]
            return Anchored(labels, batch_size, seed, anchors=anchors, background=background, pieces=pieces)
        return EveryImage(len(self.rows), batch_size, seed, pieces=pieces)

    def _watch(self, run: Run | None) -> Watch:
        return Watch(
            self.method,
            fabric=self.fabric,
            every=looks(self.steps, self.settings.health_every),
            steps=self.steps,
            on_collapse=self.settings.on_collapse,
            say=say,
            past=[] if run is None else runs.read_metrics(run.folder),
        )
