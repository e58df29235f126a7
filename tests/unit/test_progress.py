"""Progress without a terminal: plain lines with count, rate and time left; nothing when quiet."""

import re

import pytest

from headstart import progress
from headstart.progress import Track


@pytest.fixture
def clock(monkeypatch):
    """Let every look at the clock be ten seconds after the one before."""
    times = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(times)))


def test_plain_lines_have_count_rate_and_time_left(clock, capsys):
    with Track("pretrain", 400, unit="images") as track:
        for _ in range(4):
            track.update(100, "loss 1.5 ")
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out == ""
    assert re.fullmatch(r"pretrain: [12]00/400 loss 1\.5 \([\d.]+ images/s, .+ left\)", lines[0])
    assert re.fullmatch(r"pretrain: 400/400 loss 1\.5 \([\d.]+ images/s in .+\)", lines[-1])


def test_the_rate_is_that_of_this_process(clock, capsys):
    with Track("study", 1000, unit="cells", start=990) as track:
        track.update(10)
    (line,) = capsys.readouterr().err.splitlines()
    rate = float(re.search(r"\(([\d.]+) cells/s", line)[1])
    assert 0 < rate < 1.1  # ten cells in tens of seconds, not a thousand


def test_quiet_says_nothing(clock, capsys):
    with Track("pretrain", 400, unit="images", quiet=True) as track:
        for _ in range(4):
            track.update(100)
    assert capsys.readouterr() == ("", "")


def test_work_that_fails_is_not_said_to_be_done(capsys):
    def work():
        with Track("pretrain", 4, unit="images") as track:
            track.update(4)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        work()
    assert capsys.readouterr().err == ""
