"""The section of the report that puts the confusion matrices of two arms side by side, from cells made by hand."""

import csv
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from headstart.reports.confusion import percent, read_answers, side_by_side
from headstart.reports.page import report
from headstart.studies.statistics import summarise

CLASSES = ("cat", "dog", "<script>alert('x')</script>")
TITLE = "Where the arms differ"
VOID = {"meta", "link", "br", "line"}


def make_study(folder, classes=CLASSES, transfers=("finetune",), budgets=("1", "5"), seeds=3, task="classify"):
    """Write a study whose networks answer at random, the pretrained ones more often right; return truth and answers."""
    random = np.random.default_rng(0)
    truth = np.repeat(np.arange(len(classes)), 15)
    rows, answers = [], {}
    for arm in ("scratch", "simclr"):
        for transfer in transfers:
            for labels in budgets:
                for seed in range(seeds):
                    skill = 0.3 + 0.4 * (arm == "simclr") + 0.02 * int(labels)
                    right = random.random(len(truth)) < skill
                    predicted = np.where(right, truth, random.integers(0, len(classes), len(truth)))
                    answers[arm, transfer, labels, seed] = predicted
                    cell = f"{arm}-{transfer}-{labels}-{seed}"
                    write_cell(folder, cell, truth, predicted, classes, transfer)
                    score = float((truth == predicted).mean())
                    images = int(labels) * len(classes)
                    rows.append((arm, transfer, labels, images, seed, score, cell, True))
    names = ("arm", "transfer", "labels", "images", "seed", "score", "cell", "chosen")
    with (folder / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    scores = [dict(zip(names, row, strict=True)) for row in rows]
    summary = {
        **summarise(scores, baseline="scratch", score="accuracy", bootstrap=20, classes=len(classes)),
        "name": "by hand",
        "data": {"name": "pets", "images": 9, "classes": classes, "fingerprint": "9f", "train": 3, "val": 3, "test": 3},
        "task": task,
        "model": "torchvision/resnet18",
        "date": "2026-11-22",
        "cells": {"planned": len(rows), "finished": len(rows), "failed": []},
        "unfinished": False,
        "hardware": "2 CPU cores",
        "seconds": 3.0,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return truth, answers


def write_cell(folder, cell, truth, predicted, classes, transfer):
    known = {"labels": range(len(classes)), "zero_division": 0.0}
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, **known)
    result = {
        "scores": {"accuracy": 0.5},
        "classes": list(classes),
        "per_class": {"precision": list(precision), "recall": list(recall), "f1": list(f1)},
        "confusion": confusion_matrix(truth, predicted, labels=range(len(classes))).tolist(),
    }
    (folder / "cells" / cell).mkdir(parents=True)
    kept = {"scores": {"rows": []}} if transfer == "probe" else result
    (folder / "cells" / cell / "result.json").write_text(json.dumps(kept))


def read(folder):
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "results.csv").open() as file:
        return side_by_side(summary, read_answers(folder, list(csv.DictReader(file))))


class Page(HTMLParser):
    """The tables of a page, as rows of cells with their attributes, by class; fails on elements not closed in order."""

    def __init__(self, folder):
        super().__init__()
        self.open, self.tables, self.scripts, self.text = [], [], 0, ""
        self.feed(report(folder).read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        if tag == "table":
            self.tables.append((dict(attributes).get("class") or "", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][1][-1].append(["", dict(attributes)])

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if {"script", "style"}.isdisjoint(self.open):
            self.text += data
            if "td" in self.open or "th" in self.open:
                self.tables[-1][1][-1][-1][0] += data

    def rows(self, kind):
        """Return the tables of a class, each a list of rows of texts."""
        return [[[text for text, _ in row] for row in rows] for name, rows in self.tables if kind in name.split()]


def test_matrices_are_sums_over_seeds_in_shares_of_the_true_class(tmp_path):
    truth, answers = make_study(tmp_path)
    for pair in read(tmp_path):
        labels = pair.title.split("at ")[1].split()[0]
        for matrix, arm in zip(pair.matrices, ("scratch", "simclr"), strict=True):
            assert matrix.name == f"{arm} + finetune"
            predicted = np.concatenate([answers[arm, "finetune", labels, seed] for seed in range(3)])
            counts = confusion_matrix(np.tile(truth, 3), predicted)
            shares = confusion_matrix(np.tile(truth, 3), predicted, normalize="true")
            assert [[entry.counted for entry in row] for row in matrix.rows] == counts.tolist()
            assert {entry.total for row in matrix.rows for entry in row} == {45}
            shown = [[float(entry.text) for entry in row] for row in matrix.rows]
            np.testing.assert_allclose(shown, 100 * shares, atol=0.5)
            shades = np.array([entry.shade for row in matrix.rows for entry in row])
            assert np.all(np.diff(shades[np.argsort(shares.ravel())]) >= 0)
            assert len(set(shades)) > 3


def test_scores_by_class_are_means_over_seeds_sorted_by_gain(tmp_path):
    truth, answers = make_study(tmp_path)
    pair = next(pair for pair in read(tmp_path) if "at 5 " in pair.title)
    expected = {
        arm: np.mean(
            [
                precision_recall_fscore_support(truth, answers[arm, "finetune", "5", s], zero_division=0)
                for s in range(3)
            ],
            axis=0,
        )
        for arm in ("scratch", "simclr")
    }
    for scores in pair.scores:
        i = CLASSES.index(scores.name)
        assert scores.support == 15
        for row, share in enumerate(("precision", "recall", "f1")):
            assert scores.shares[share] == pytest.approx((expected["scratch"][row, i], expected["simclr"][row, i]))
    gains = expected["simclr"][2] - expected["scratch"][2]
    assert [scores.name for scores in pair.scores] == [CLASSES[i] for i in np.argsort(-gains)]
    assert [scores.gain("f1") for scores in pair.scores] == pytest.approx(sorted(gains, reverse=True))


def test_only_seeds_of_both_arms_count(tmp_path):
    make_study(tmp_path)
    shutil.rmtree(tmp_path / "cells" / "scratch-finetune-5-1")
    shutil.rmtree(tmp_path / "cells" / "simclr-finetune-5-2")
    found = {pair.title: pair for pair in read(tmp_path)}
    pair = found["simclr + finetune against scratch + finetune, at 5 labels per class (1 seed)"]
    assert {entry.total for matrix in pair.matrices for row in matrix.rows for entry in row} == {15}
    shutil.rmtree(tmp_path / "cells" / "simclr-finetune-5-0")
    assert [pair.title.split("at ")[1] for pair in read(tmp_path)] == ["1 label per class (3 seeds)"]


def test_of_a_grid_the_chosen_point_counts(tmp_path):
    truth, _ = make_study(tmp_path, budgets=("5",), seeds=1)
    write_cell(tmp_path, "worse", truth, np.zeros_like(truth), CLASSES, "finetune")
    before = read(tmp_path)
    with (tmp_path / "results.csv").open("a", newline="") as file:
        csv.writer(file).writerow(("simclr", "finetune", "5", 15, 0, 0.1, "worse", False))
    assert read(tmp_path) == before


@pytest.mark.parametrize(
    ("best", "first"),
    [
        (("simclr", "head", "scratch", "head", "1"), "simclr + head against scratch + head, at 1 label"),
        (("simclr", "head", "scratch", "finetune", "5"), "simclr + head against scratch + finetune, at 5 labels"),
        (("simclr", "probe", "scratch", "finetune", "1"), "simclr + head against scratch + finetune, at 1 label"),
        (None, "simclr + head against scratch + finetune, at 20 labels"),
    ],
)
def test_what_the_verdict_speaks_of_is_first(tmp_path, best, first):
    make_study(tmp_path, transfers=("probe", "head", "finetune"), budgets=("1", "5", "20"), seeds=2)
    summary = json.loads((tmp_path / "summary.json").read_text())
    names = ("arm", "transfer", "baseline", "baseline_transfer", "labels")
    summary["verdict"]["best"] = best and dict(zip(names, best, strict=True))
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    titles = [pair.title for pair in read(tmp_path)]
    assert len(set(titles)) == 9  # head against head and finetune, finetune against finetune, at three budgets
    assert titles[0].startswith(first)


def test_the_verdict_and_the_section_agree(tmp_path):
    make_study(tmp_path, budgets=("1", "5", "20"))
    best = json.loads((tmp_path / "summary.json").read_text())["verdict"]["best"]
    assert f"at {best['labels']} label" in read(tmp_path)[0].title


@pytest.mark.parametrize(
    ("count", "total", "text"),
    [(0, 7, "0"), (7, 7, "100"), (1, 1000, "<1"), (999, 1000, ">99"), (1, 3, "33"), (0, 0, "–")],
)
def test_only_none_is_0_and_only_all_is_100(count, total, text):
    assert percent(count, total) == text


def test_the_page_shows_every_number_without_a_script(tmp_path):
    make_study(tmp_path)
    page, pairs = Page(tmp_path), read(tmp_path)
    assert TITLE in page.text
    assert page.scripts == 3  # none of them came from a class name
    matrices = [matrix for pair in pairs for matrix in pair.matrices]
    tables = [rows for name, rows in page.tables if "confusion" in name.split()]
    assert len(tables) == len(matrices) == 4
    for matrix, (head, *rows) in zip(matrices, tables, strict=True):
        assert [text for text, _ in head[1:]] == [row[0][0] for row in rows] == list(CLASSES)
        for i, (entries, (_, *cells)) in enumerate(zip(matrix.rows, rows, strict=True)):
            for j, (entry, (text, attributes)) in enumerate(zip(entries, cells, strict=True)):
                assert text == entry.text
                assert attributes["title"] == f"{CLASSES[i]} → {CLASSES[j]}: {entry.counted} of 45"
                assert attributes.get("class") == (None if not entry.shade else "right" if i == j else "wrong")
    for pair, (head, *rows) in zip(pairs, page.rows("by-class"), strict=True):
        assert head == ["Class", "Test images", "F1", "Precision", "Recall"]
        for scores, row in zip(pair.scores, rows, strict=True):
            before, after = (100 * share for share in scores.shares["f1"])
            sign = "−" if round(after - before, 1) < 0 else "+"
            assert row[:3] == [scores.name, "15", f"{sign}{abs(after - before):.1f}{before:.1f} → {after:.1f}"]
    assert f"Other arms, transfers and budgets ({len(pairs) - 1})" in page.text


def test_pixels_are_called_pixels(tmp_path):
    make_study(tmp_path, classes=tuple(f"class {i}" for i in range(20)), budgets=("5",), task="segment")
    page = Page(tmp_path)
    assert [len(rows) - 1 for rows in page.rows("confusion")] == [20, 20]  # as many as matrices may have
    assert page.rows("by-class")[0][0][1] == "Test pixels"
    assert "Other arms" not in page.text


def test_more_than_20_classes_are_a_table_only(tmp_path):
    make_study(tmp_path, classes=tuple(f"class {i}" for i in range(21)), seeds=2)
    page = Page(tmp_path)
    assert page.rows("confusion") == []
    assert [len(rows) - 1 for rows in page.rows("by-class")] == [21, 21]
    assert "Confusion matrices" not in page.text
    assert "left out" not in page.text


def test_of_very_many_classes_those_that_differ_most_are_shown(tmp_path):
    make_study(tmp_path, classes=tuple(f"class {i}" for i in range(230)), budgets=("1",), seeds=1)
    (pair,) = read(tmp_path)
    assert (len(pair.scores), pair.left_out) == (200, 30)
    f1 = {}
    for arm in ("scratch", "simclr"):
        result = json.loads((tmp_path / "cells" / f"{arm}-finetune-1-0" / "result.json").read_text())
        f1[arm] = np.array(result["per_class"]["f1"])
    gains = np.sort(f1["simclr"] - f1["scratch"])[::-1]
    shown = [scores.gain("f1") for scores in pair.scores]
    np.testing.assert_allclose(shown, [*gains[:100], *gains[-100:]], atol=1e-12)
    assert "30 classes in the middle of this order are left out" in Page(tmp_path).text


def test_probes_alone_leave_the_section_out(tmp_path):
    make_study(tmp_path, transfers=("probe",))
    assert TITLE not in Page(tmp_path).text


def rewrite(folder, change):
    for path in folder.glob("cells/simclr*/result.json"):
        path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    "lose",
    [
        lambda folder: shutil.rmtree(folder / "cells"),
        lambda folder: (folder / "results.csv").write_text("arm,seed\nsimclr,0\n"),
        lambda folder: [path.write_text("{") for path in folder.glob("cells/*/result.json")],
        lambda folder: rewrite(folder, lambda result: {"scores": result["scores"]}),
        lambda folder: rewrite(folder, lambda result: {**result, "per_class": {}}),
        lambda folder: rewrite(folder, lambda result: {**result, "classes": ["other", "names", "now"]}),
    ],
    ids=["cells", "older results", "broken", "no matrix", "no scores", "other classes"],
)
def test_what_is_missing_leaves_the_section_out(tmp_path, lose):
    make_study(tmp_path, budgets=("5",), seeds=2)
    assert len(read(tmp_path)) == 1
    lose(tmp_path)
    assert read(tmp_path) == []


def test_a_page_without_cells_is_whole(tmp_path):
    make_study(tmp_path, seeds=2)
    shutil.rmtree(tmp_path / "cells")
    assert TITLE not in Page(tmp_path).text
