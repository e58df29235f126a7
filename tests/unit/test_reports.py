"""The table, the figures and the page of a study, from a summary without any training."""

import csv
import json
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from headstart.errors import UserError
from headstart.reports.facts import key_facts, questions, saved_tables
from headstart.reports.figures import curve_figures, panels, save_curves_png, styles
from headstart.reports.page import report
from headstart.reports.table import text_table
from headstart.studies.statistics import summarise

PER_CLASS = {"1": 10, "5": 50, "20": 200}
MIXED = {**PER_CLASS, "50": 500, "20%": 700, "50%": 1500, "75%": 2200, "all": 3000}
HOSTILE = "<script>alert('x')</script>"
EMPTY = {"scores": [], "comparisons": [], "labels_saved": [], "cells": {}}
VOID = {"meta", "link", "br", "line"}


def make_summary(arms=("scratch", "simclr"), budgets=PER_CLASS, transfers=("probe", "finetune"), seeds=3, gain=0.1):
    random = np.random.default_rng(0)
    rows = [
        {
            "arm": arm,
            "transfer": transfer,
            "labels": labels,
            "images": images,
            "seed": seed,
            "score": 0.3 + 0.05 * np.log(images) + gain * (arm != "scratch") + random.normal(0, 0.004),
        }
        for arm in arms
        for transfer in transfers
        for labels, images in budgets.items()
        for seed in range(seeds)
    ]
    data = {"name": "digits", "images": 1797, "classes": ["zero", HOSTILE], "fingerprint": "9f3a"}
    return {
        **summarise(rows, baseline="scratch", score="accuracy", bootstrap=100, classes=10),
        "name": HOSTILE,
        "data": {**data, "train": 1078, "val": 359, "test": 360},
        "task": "classify",
        "model": "torchvision/resnet18",
        "date": "2026-11-22",
        "cells": {"planned": len(rows), "finished": len(rows), "failed": []},
        "unfinished": False,
        "hardware": "2 CPU cores",
        "seconds": 3723.4,
    }


def make_study(folder, **settings):
    summary = make_summary(**settings)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "study.yaml").write_text(f"name: {HOSTILE}\nseeds: 3\n")
    (folder / "environment.json").write_text(json.dumps({"device": "cpu", "versions": {"numpy": "2.4.6"}}))
    with (folder / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["arm", "seed", "accuracy"], ["simclr, large", "0", "0.87654321"], [HOSTILE, "1", ""]]
        )
    return summary


class Page(HTMLParser):
    """The text, the addresses and the scripts of a page; fails on elements that are not closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.addresses, self.scripts = [], "", [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "data")]
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts[-1] += data
        elif "style" in self.open:
            assert "url(" not in data
            assert "@import" not in data
        else:
            self.text += data


def test_reports_leave_torch_alone():
    code = (
        "import sys, headstart.reports.page, headstart.reports.table, headstart.reports.figures;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_table_holds_every_score_with_its_interval():
    summary = make_summary()
    text = text_table(summary)
    for row in summary["scores"]:
        half = 100 * (row["high"] - row["mean"])
        assert f"{100 * row['mean']:.1f} ± {half:.1f}" in text
    assert " ".join(summary["verdict"]["headline"].split()) in " ".join(text.split())
    assert "that scratch + finetune needs for the same score" in text
    assert all(line.count("─") == len(line) <= 100 for line in text.splitlines() if "─" in line)


def test_rules_are_as_wide_as_their_tables():
    lines = text_table(make_summary(("scratch", "simclr", "byol"), MIXED), 80).splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("─")]
    assert len(rules) > 3
    for i in rules:
        assert len(lines[i]) == len(lines[i - 1]) == len(lines[i + 1]) <= 80


def test_labels_saved_speak_of_pretrained_arms_against_the_strongest_baseline():
    text = text_table(make_summary())
    head = text[text.index("Labels saved") :].splitlines()[1]
    assert head.split("  ")[0] == "labels per class"
    assert [name.strip() for name in head.split("  ")[1:] if name] == ["simclr + probe", "simclr + finetune"]
    only_probe = text_table(make_summary(transfers=("probe",)))
    assert "that scratch + probe needs" in only_probe


def test_long_verdicts_end_in_the_report():
    summary = make_summary(("scratch", *"abcde"), transfers=("probe", "head", "finetune"))
    assert len(summary["verdict"]["details"]) > 6
    assert f"{len(summary['verdict']['details']) - 6} more in the report" in text_table(summary)


def test_numbers_stay_with_their_percent_sign():
    summary = make_summary()
    for width in range(60, 100):
        assert not any(line.lstrip().startswith("%") for line in text_table(summary, width).splitlines())


@pytest.mark.parametrize("budgets", [{"5": 50}, PER_CLASS, MIXED])
@pytest.mark.parametrize("width", [72, 100])
def test_the_table_fits_the_terminal(budgets, width):
    text = text_table(make_summary(("scratch", "simclr", "x" * 70), budgets), width)
    assert max(map(len, text.splitlines())) <= width
    heads = [line.split() for line in text_table(make_summary(budgets=budgets, seeds=1), width).splitlines()]
    names = ["1/class", "5/class", "all"] if budgets is MIXED else list(budgets)
    assert all(any(name in head for head in heads) for name in names)


def test_columns_that_do_not_fit_go_on_below():
    lines = text_table(make_summary(budgets=MIXED, transfers=("probe",)), 72).splitlines()
    assert sum(line.startswith("simclr ") and "±" in line for line in lines) > 1


def test_figures_draw_the_summary():
    summary = make_summary()
    figures = curve_figures(summary)
    assert list(figures) == ["probe", "finetune"]
    for transfer, figure in figures.items():
        lines = {trace.name: trace for trace in figure.data if trace.name}
        for arm in ("scratch", "simclr"):
            rows = [row for row in summary["scores"] if (row["arm"], row["transfer"]) == (arm, transfer)]
            line = lines[f"{arm} + {transfer}"]
            assert list(line.x) == [row["images"] for row in rows]
            assert list(line.y) == [100 * row["mean"] for row in rows]
            assert line.line.color == styles(summary)[arm].colour
        bands = [trace for trace in figure.data if trace.fill == "toself"]
        assert len(bands) == len(lines)
    low, high = ([100 * row[end] for row in summary["scores"][:3]] for end in ("low", "high"))
    assert list(figures["probe"].data[0].y) == high + low[::-1]
    assert figures["probe"].layout.yaxis.range == figures["finetune"].layout.yaxis.range


def test_frozen_backbones_are_drawn_beside_the_supervised_baseline():
    drawn = {kind: [(r[0]["arm"], r[0]["transfer"]) for r in curves] for kind, curves in panels(make_summary()).items()}
    assert drawn["probe"] == [("scratch", "probe"), ("simclr", "probe"), ("scratch", "finetune")]
    assert drawn["finetune"] == [("scratch", "finetune"), ("simclr", "finetune")]


def test_arms_differ_in_colour_and_marker():
    drawn = styles(make_summary(("scratch", *"abcdefghijkl"), {"5": 50}, ("probe",), seeds=1))
    assert len(set(drawn.values())) == 13
    assert len({drawn[arm].colour for arm in ("scratch", *"abcdef")}) == 7


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_picture_is_a_picture(tmp_path, seeds):
    save_curves_png(make_summary(seeds=seeds, budgets=MIXED), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 1500
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_the_page_is_self_contained_and_escaped(tmp_path):
    summary = make_study(tmp_path)
    path = report(tmp_path)
    assert path == tmp_path / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert len(page.scripts) == 3  # plotly once, the figures as data, ten lines that draw them
    assert "alert" not in page.scripts[1] + page.scripts[2]
    assert page.text.count(HOSTILE) >= 4  # title, heading, class, study.yaml, results: as text
    assert summary["verdict"]["headline"] in page.text.replace("\u00a0", " ")
    assert json.loads(page.scripts[1]).keys() == {"probe", "finetune"}
    for expected in ("simclr, large", "0.8765", "  numpy: 2.4.6", "1 h 2 min", "▲+", "Holm", " ± "):
        assert expected in page.text
    assert "{'" not in page.text


def test_hostile_arms_cannot_leave_their_place(tmp_path):
    make_study(tmp_path, arms=("scratch", HOSTILE))
    page = Page(report(tmp_path).read_text(encoding="utf-8"))
    assert len(page.scripts) == 3
    names = [trace.get("name", "") for figure in json.loads(page.scripts[1]).values() for trace in figure["data"]]
    assert not any("<" in name for name in names)  # plotly reads tags in names


@pytest.mark.parametrize(
    ("seeds", "transfers"), [(1, ("probe",)), (2, ("finetune",)), (3, ("probe", "head", "finetune"))]
)
def test_pages_of_small_and_large_studies(tmp_path, seeds, transfers):
    summary = make_study(tmp_path, seeds=seeds, transfers=transfers, budgets=MIXED)
    for optional in ("study.yaml", "environment.json", "results.csv"):
        (tmp_path / optional).unlink()
    page = Page(report(tmp_path).read_text(encoding="utf-8"))
    assert len(json.loads(page.scripts[1])) == len(transfers)
    assert ("unknown (one seed)" in page.text) == (seeds == 1)
    assert ("What was found" in page.text) == bool(summary["verdict"]["details"])
    assert ("Green and bold" in page.text) == any(row["saves"] for row in summary["labels_saved"])


def test_failed_cells_are_shown(tmp_path):
    summary = make_study(tmp_path)
    failed = {"id": "ab12", "arm": "simclr", "transfer": "finetune", "labels": "5", "seed": 2, "error": "loss is nan"}
    summary |= {"unfinished": True, "cells": {"planned": 40, "finished": 36, "failed": [failed]}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = Page(report(tmp_path).read_text(encoding="utf-8")).text
    assert "Failed cells" in text
    assert "loss is nan" in text
    assert "36 of 40 cells" in text


def test_key_facts_claim_only_what_the_verdict_says():
    summary = make_summary(seeds=5)
    best = summary["verdict"]["best"]
    saved, gain, _, evidence = key_facts(summary)
    row = next(row for row in summary["labels_saved"] if row.items() >= {**best, "gain": 0}.items() - {("gain", 0)})
    assert saved["value"] == f"{row['saved_text']} labels per class"
    assert row["text"] in saved["note"]
    assert gain["value"].endswith(" points")
    assert evidence["value"] == "5 seeds"
    saved, gain, _, evidence = key_facts(make_summary(seeds=1))
    assert (saved["value"], gain["value"], evidence["value"]) == ("none shown", "none shown", "1 seed")
    assert key_facts(make_summary(seeds=5, gain=-0.1))[1]["value"] == "none shown"
    row["saves"] = False
    assert key_facts(summary)[0]["value"] == "not certain"


def test_every_comparison_answers_one_question():
    summary = make_summary(("scratch", "simclr", "byol"))
    asked = questions(summary)
    assert {title: list(lines) for title, lines in asked.items()} == {
        "Pretrained against training from scratch": [
            *("byol + probe", "simclr + probe", "byol + finetune", "simclr + finetune"),
        ],
        "Frozen pretrained features against random features": ["byol + probe", "simclr + probe"],
        "One pretrained arm against another": ["byol + probe against simclr", "byol + finetune against simclr"],
        "Random features against training from scratch": ["scratch + probe"],
    }
    assert sum(len(cells) for lines in asked.values() for cells in lines.values()) == len(summary["comparisons"])
    assert list(saved_tables(summary)) == ["scratch + finetune", "scratch + probe"]


def test_an_older_page_is_replaced_and_survives_a_failure(tmp_path):
    make_study(tmp_path)
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "environment.json").write_text("{broken")
    with pytest.raises(UserError, match=r"environment\.json"):
        report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    (tmp_path / "environment.json").unlink()
    assert report(tmp_path).read_text(encoding="utf-8").startswith("<!doctype html>")
    written = {"report.html", "curves.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"summary.json", "study.yaml", "results.csv"} | written


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no summary.json"),
        ("[1]", "holds no JSON object"),
        ('{"loss": 1}', "is not the summary of a study"),
        (json.dumps(EMPTY | {"verdict": {}}), "older version"),
        (json.dumps(EMPTY | {"verdict": {"best": None}}), "finished yet"),
    ],
)
def test_what_is_no_study_is_refused_in_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        report(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("folder: ")


def test_no_folder_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^folder: '.*none' does not exist \(allowed: a folder"):
        report(tmp_path / "none")
    with pytest.raises(UserError, match=r"^folder: '.*file' is a file \(allowed: a folder"):
        report(tmp_path / "file")
