"""What an examination of data gave, and how it is told in the terminal."""

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headstart.data.scan import printable
from headstart.verbs.doctoring.advice import Advice
from headstart.verbs.doctoring.finding import Finding, counted
from headstart.verbs.doctoring.speed import Speed

WIDTH = 110  # columns of the text
_SHOWN = 3  # examples of a finding in the text; doctor.json has more
_MARKS = {"must fix": "✗", "should look": "!", "fine": "✓"}


@dataclass(frozen=True)
class Diagnosis:
    """What an examination of data gave.

    Attributes:
        data: name, layout, counts, sizes and fingerprint of the data.
        findings: what was looked at, the worst first.
        speed: what was measured; None where it was skipped, or no pretraining is possible.
        advice: what to do; None where no pretraining is possible.
        config: the settings.
        out: the folder that holds doctor.json and the pictures; None where nothing was asked to be kept.
    """

    data: Mapping[str, Any]
    findings: tuple[Finding, ...]
    speed: Speed | None
    advice: Advice | None
    config: Mapping[str, Any]
    out: Path | None = None

    @property
    def must_fix(self) -> tuple[Finding, ...]:
        """The findings that make scores wrong or trainings fail."""
        return tuple(finding for finding in self.findings if finding.severity == "must fix")

    def to_json(self) -> str:
        """Return all of it but the folder, as the text of doctor.json."""
        record = asdict(self)
        del record["out"]
        return json.dumps({**record, "must_fix": len(self.must_fix)}, indent=1)

    def __str__(self) -> str:
        """Return it as text for a terminal."""
        parts = [_headline(self.data), "\n".join(_finding_lines(finding) for finding in self.findings)]
        parts += [_speed_text(self.speed, self.config)] if self.speed else []
        parts += [_advice_text(self.advice)] if self.advice else []
        return "\n\n".join(parts)


def _headline(data: Mapping[str, Any]) -> str:
    splits = ", ".join(f"{name} {count:,}" for name, count in data["splits"].items())
    decoded = "all" if data["decoded"] == data["images"] else f"a sample of {data['decoded']:,}"
    classes = f", {counted(len(data['classes']), 'class', 'classes')}" if data["classes"] else ""
    text = f"{printable(data['name'])}: {counted(data['images'], 'image')}{classes}; {printable(data['layout'])}"
    return _wrapped(f"{text}{f'; {splits}' if splits else ''}; {decoded} decoded")


def _finding_lines(finding: Finding) -> str:
    lines = [_wrapped(f"{_MARKS[finding.severity]} {finding.severity:<13}{finding.name}: {finding.text}", 15)]
    for example in finding.examples[:_SHOWN]:
        lines.append(f"{'':17}{example}")
    if len(finding.examples) > _SHOWN:
        lines.append(f"{'':17}…")
    if finding.remedy:
        lines.append(_wrapped(f"{'':15}→ {finding.remedy}", 17))
    return "\n".join(lines)


def _speed_text(speed: Speed, config: Mapping[str, Any]) -> str:
    decoding = "in memory" if speed.decoding is None else f"{speed.decoding:,.0f} images/s in one thread"
    memory = "unknown" if speed.memory is None else gigabytes(speed.memory)
    lines = (
        ("machine", speed.device),
        ("decoding", decoding),
        ("views", f"{speed.views:,.1f} images/s"),
        (
            "training",
            f"{speed.training:,.1f} images/s, {config['model']}, timed in batches of up to {speed.measured_batch}",
        ),
        ("together", f"{speed.overall:,.1f} images/s"),
        ("estimate", f"{speed.hours:,.1f} hours for {speed.steps:,} steps, {memory} of memory"),
    )
    return "\n".join(f"  {name:<12}{text}" for name, text in lines)


def _advice_text(advice: Advice) -> str:
    about = f"Begin with {advice.method}, {advice.epochs} epochs of batch {advice.batch_size}: {advice.reason}."
    return "\n".join([_wrapped(about), *(_wrapped(f"- {note}", 2) for note in advice.notes), f"  {advice.command}"])


def gigabytes(count: int) -> str:
    """Return a number of bytes for people.

    >>> gigabytes(3 << 29)
    '1.5 GiB'
    """
    return f"{count / 2**30:.1f} GiB"


def _wrapped(text: str, indent: int = 0) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)
