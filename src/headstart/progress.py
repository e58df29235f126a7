"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 15.0  # seconds between plain lines


def console() -> Console:
    """Return the console for what is said beside the results: standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print one line beside the results."""
    console().print(text, markup=False)


class Track:
    """Counts done work of a known total and shows it, with the rate and the time left.

    Args:
        title: what is being done.
        total: how many units there are.
        unit: what is counted, for the rate.
        start: units done before, in an earlier process.
        quiet: show nothing.
    """

    def __init__(self, title: str, total: int, *, unit: str, start: int = 0, quiet: bool = False) -> None:
        self.title, self.total, self.unit, self.quiet = title, total, unit, quiet
        self.done, self.start, self.text = start, start, ""
        self.begin = self.said = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        """Show the bar when standard error is a terminal."""
        if not self.quiet and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console())
            self._bar.add_task(self.title, total=self.total, completed=self.done, text="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away, or print the last line."""
        if self._bar is not None:
            self._bar.stop()
        elif not self.quiet and kind is None and self.done > self.start:
            say(self._line())

    def update(self, count: int = 1, text: str = "") -> None:
        """Count done units; ``text`` is shown behind the rate."""
        self.done += count
        self.text = text
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, text=f"{self._rate()} {text}")
        elif not self.quiet and time.monotonic() - self.said > _EVERY:
            self.said = time.monotonic()
            say(self._line())

    def _rate(self) -> str:
        rate = (self.done - self.start) / max(time.monotonic() - self.begin, 1e-9)
        return f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.2g} {self.unit}/s"

    def _line(self) -> str:
        passed = time.monotonic() - self.begin
        left = passed / max(self.done - self.start, 1) * (self.total - self.done)
        ahead = f", {_duration(left)} left" if self.done < self.total else f" in {_duration(passed)}"
        return f"{self.title}: {self.done}/{self.total} {self.text}({self._rate()}{ahead})".replace("  ", " ")


def _duration(seconds: float) -> str:
    """Return a duration for people.

    >>> _duration(75), _duration(4.2), _duration(7300)
    ('1 min 15 s', '4 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
