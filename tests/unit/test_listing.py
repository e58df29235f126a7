"""The verb ``list``: tables that fit a terminal and say what the code does, and the documents that quote them."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from headstart.backbones.stems import LARGEST_SMALL_IMAGE
from headstart.config import Pretrain
from headstart.contracts import Planned
from headstart.errors import UserError
from headstart.listing import listing
from headstart.methods import METHODS, hyper_parameters, resolve
from headstart.methods.simclr import SimCLR
from headstart.verbs import resolve as verbs_resolve
from headstart.verbs.health import SMALLEST_STD, looks, smallest_rank
from headstart.verbs.pretrain import check
from headstart.views import PRESETS

ROOT = Path(__file__).parents[2]
METHODS_PAGE = (ROOT / "docs" / "methods.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def rows_of(table):
    """Return the rows of a table as dicts, cut where its head has columns."""
    lines = table.splitlines()
    starts = [found.start() for found in re.finditer(r"(?:(?<=^)|(?<=  ))\S", lines[0])]
    ends = [*starts[1:], None]
    head = [lines[0][start:end].strip() for start, end in zip(starts, ends, strict=True)]
    cut = [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines[2:]]
    return [dict(zip(head, cells, strict=True)) for cells in cut]


def first_table(text):
    """Return the table in a text that has a rule under its head, without what follows it."""
    lines = text.splitlines()
    rule = next(number for number, line in enumerate(lines) if line.startswith("─"))
    end = next((number for number in range(rule, len(lines)) if not lines[number]), len(lines))
    return "\n".join(lines[rule - 1 : end])


@pytest.mark.parametrize(("what", "width"), [("methods", 150), ("recipes", 160), *((name, 160) for name in METHODS)])
def test_a_list_fits_a_terminal(what, width):
    lines = listing(what).splitlines()
    assert max(map(len, lines)) <= width
    assert [line for line in lines if line != line.rstrip()] == []


def test_methods_are_listed_with_what_they_need():
    rows = {row["method"]: row for row in rows_of(first_table(listing("methods")))}
    assert list(rows) == list(METHODS)
    needs = {name: row["needs"] for name, row in rows.items() if row["needs"] != "nothing"}
    labels = {"supcon": "labels", "supcon-pairs": "labels", "supcon-anchor": "labels"}
    assert needs == {"mae": "a ViT of timm", "distill": "a teacher", **labels}
    assert rows["swav"]["views"] == "2*swav,6*swav-local"
    assert rows["swav"]["paper"] == METHODS["swav"].paper


@pytest.mark.parametrize("images", [9_999, 10_000])
@pytest.mark.parametrize("side", [64, 65])
@pytest.mark.parametrize("name", METHODS)
def test_a_listed_recipe_is_what_pretrain_resolves(name, side, images):
    # the row of the table, against the settings of a run for which nothing was given
    rows = rows_of(first_table(listing(name)))
    row = rows[0] if side > LARGEST_SMALL_IMAGE else rows[1]
    plan = Planned(images, side, 0, torch.arange(images) % 2, ("a", "b"))
    settings = verbs_resolve.pretrain(check(Pretrain(data="folder", method=name)), plan)
    epochs, batch_size = row["epochs × batch" if images >= 10_000 else "below 10,000"].split(" × ")
    assert (settings.epochs, settings.batch_size) == (int(epochs), int(batch_size))
    optimizer, rate, *rule = row["optimiser, rate"].split()
    found = (settings.optimizer, settings.learning_rate, settings.learning_rate_scaling)
    assert found == (optimizer, float(rate), rule[0] if rule else "linear")
    assert settings.weight_decay == float(row["decay"])
    assert settings.warmup == pytest.approx(float(row["warm-up"].rstrip("%")) / 100)
    views, *differing = row["views; what differs from the defaults"].split("; ")
    assert settings.views == views
    listed = {}
    for part in differing:
        few = part.startswith("few: ")
        if not few or images < 10_000:
            listed |= dict(re.findall(r"(\w+)=(.+?)(?=, \w+=|$)", part.removeprefix("few: ")))
    betas = tuple(map(float, listed.pop("betas", "0.9,0.999").split(",")))
    assert settings.betas == betas
    assert settings.clip_gradient is None
    defaults = resolve(name, {})
    changed = {key: value for key, value in settings.method_args.items() if value != defaults[key]}
    resolved = {key for key, value in defaults.items() if value == "auto"}  # by the plan, not by the recipe
    shown = {key: str(value).lower() for key, value in changed.items() if key not in resolved}
    assert listed == shown


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_shown_whole(name):
    text = listing(name)
    method = METHODS[name]
    words = " ".join(text.split())
    for paragraph in inspect.getdoc(method).split("\n\n"):
        assert " ".join(paragraph.replace("``", "`").split()) in words
    assert method.paper in text
    assert f"collapse?  {method.remedy}" in text
    arguments = rows_of(text.rpartition("\n\n")[2])
    assert [row["method_args"] for row in arguments] == list(hyper_parameters(method))


def test_hyper_parameters_are_shown_as_they_are_typed():
    def arguments(name):
        return {row["method_args"]: (row["is"], row["default"]) for row in rows_of(listing(name).rpartition("\n\n")[2])}

    assert arguments("moco") == {
        "temperature": ("number above 0", "0.2"),
        "momentum": ("number from 0 to 1", "0.999"),
        "queue": ("whole number from 1 or auto", "auto"),
        "splits": ("whole number from 1", "8"),
        "symmetric": ("true or false", "false"),
        "projection_dim": ("whole number from 1", "128"),
    }
    assert arguments("simclr")["hidden_dim"] == ("whole number from 1 or none", "none")
    assert resolve("simclr", {"hidden_dim": "none"}) == resolve("simclr", {})
    assert arguments("swav")["queue"] == ("whole number from 0 or auto", "auto")
    assert arguments("distill")["teacher_size"] == ("whole number from 1 to 8192 or auto", "auto")
    assert arguments("vicreg")["covariance_weight"] == ("number from 0", "1")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("recipe", "list: unknown 'recipe', did you mean 'recipes'?"),
        ("simclrr", "list: unknown 'simclrr', did you mean 'simclr'?"),
        ("SimCLR", "list: unknown 'SimCLR', did you mean 'simclr'?"),
        ("", "list: unknown '' (allowed: methods, recipes, models, augments, data, tasks, simclr,"),
    ],
)
def test_an_unknown_name_gets_the_nearest(what, message):
    with pytest.raises(UserError) as error:
        listing(what)
    assert str(error.value).startswith(message)
    assert str(error.value).endswith("supcon-anchor)")


def test_augments_are_listed():
    assert [row["augment"] for row in rows_of(first_table(listing("augments")))] == list(PRESETS)


def test_the_recipes_in_the_documents_are_those_of_the_code():
    quoted = re.search(r"<!-- recipes -->\n```\n(.*?)\n```", METHODS_PAGE, re.DOTALL).group(1)
    assert quoted == listing("recipes")


def test_the_documents_name_every_method_and_no_other():
    named = set(re.findall(r"`([a-z][a-z-]*)`", METHODS_PAGE))
    assert set(METHODS) <= named
    assert set(re.findall(r"--method ([a-z-]+)", METHODS_PAGE)) <= set(METHODS)
    readme = (ROOT / "README.md").read_text().partition("## Methods")[2].partition("\n## ")[0]
    rows = [line for line in readme.splitlines() if line.startswith("|")]
    assert sorted(name for row in rows for name in re.findall(r"`([a-z-]+)`", row)) == sorted(METHODS)
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert [name for name in METHODS if f"(`{name}`)" not in changes] == []


def test_the_thresholds_in_the_documents_are_those_of_the_code():
    rows = [line for line in METHODS_PAGE.splitlines() if line.startswith("| `health_")]
    std = next(line for line in rows if line.startswith("| `health_std`"))
    rank = next(line for line in rows if line.startswith("| `health_rank`"))
    assert float(re.search(r"\*\*([\d.]+)\*\*", std).group(1)) == SMALLEST_STD
    least, share = re.search(r"\*\*([\d.]+)\*\*.*\*\*([\d.]+) %\*\*", rank).groups()
    assert smallest_rank(1) == float(least)
    assert smallest_rank(1000) == pytest.approx(1000 * float(share) / 100)
    first, last = re.search(r"`auto` is (\d+) to (\d+)", METHODS_PAGE).groups()
    assert (looks(1, "auto"), looks(10**6, "auto")) == (int(first), int(last))


def test_contributing_shows_all_of_simclr_and_its_line():
    diffs = re.findall(r"```diff\n(.*?)\n```", CONTRIBUTING, re.DOTALL)
    added = [[line[1:] for line in diff.splitlines() if re.match(r"\+(?!\+\+ )", line)] for diff in diffs]
    assert added[0] == Path(inspect.getfile(SimCLR)).read_text().splitlines()
    registry = (ROOT / "src" / "headstart" / "methods" / "__init__.py").read_text().splitlines()
    assert len(added[1]) == 2
    assert [line for line in added[1] if line not in registry] == []
